"""What Step-Video costs: published token counts and FLOPs, and parameters counted from the model itself."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKLWan

from evals.bench import video_memory
from recipes.protocol import load_config
from recipes.stepvideo.config import Config
from recipes.stepvideo.model import make_dit
from recipes.stepvideo.recipe import describe
from stepstack.cli import main as cli
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.vae import ChunkedCodec, DcCodec, TinyCodec, TinyVae, WanCodec
from stepstack.planning.memory import PUBLISHED, Dit, Machine, Vae, cost, tokens


def test_tokens_of_the_published_sizes():
    assert [tokens(n, 16, 16) for n in (1, 17, 102, 136, 204)] == [1, 3, 18, 24, 36]
    assert tokens(102, 544, 992) == 37_944
    assert tokens(204, 544, 992) == 75_888
    assert tokens(204, 192, 320) == 8_640
    assert tokens(1, 256, 256) == 256
    with pytest.raises(ValueError, match="take 102, or 1"):
        tokens(100, 544, 992)
    with pytest.raises(ValueError, match="multiples of 16"):
        tokens(102, 540, 992)


def test_tokens_are_those_of_the_codecs():
    codecs = {
        Vae(stride=(2, 8, 8), channels=4): TinyCodec(TinyVae(channels=4, width=8)),
        Vae(stride=(8, 16, 16), channels=4, chunk=17): ChunkedCodec(
            TinyCodec(TinyVae(patch=(8, 16, 16), channels=4, width=8)), 17
        ),
    }
    for vae, codec in codecs.items():
        for frames in (1, 9, 17, 34, 40):
            try:
                want = math.prod(codec.grid(frames, 48, 32))
            except ValueError:
                with pytest.raises(ValueError, match=f"^{frames} frames"):
                    tokens(frames, 48, 32, vae)
            else:
                assert tokens(frames, 48, 32, vae) == want
    with torch.device("meta"):  # as they are published
        published = {"wan": WanCodec(AutoencoderKLWan()), "dc": DcCodec(AutoencoderDC())}
    for name, codec in published.items():
        assert (codec.stride, codec.channels) == (PUBLISHED[name].stride, PUBLISHED[name].channels)


def test_flops_of_a_forward_pass_are_the_known_ones():
    """1.70 and 6.79 PFLOP of attention at 102 and 204 frames. Two for each weight of a block and token would be 2.20
    and 4.40 of the rest; but keys and values of cross-attention are made of text tokens alone."""
    for frames, every, attention in ((102, 2.20, 1.70), (204, 4.40, 6.79)):
        count = tokens(frames, 544, 992)
        result, d = cost(Dit(), count, Machine()), 6144
        assert result.attention / 1e15 == pytest.approx(attention, rel=0.02)
        assert 2 * 48 * Dit().block * count / 1e15 == pytest.approx(every, rel=0.005)
        saved = 48 * 2 * 2 * d * d * (count - 397)
        assert (result.linear + saved) / 1e15 == pytest.approx(every, rel=0.005)


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("motion", [True, False])
def test_parameters_are_those_of_the_model(image, motion):
    shape = {"layers": 2, "heads": 3, "head_width": 16, "channels": 4}
    dit = VideoDiT(**shape, text_channels=(10, 6), split=(8, 4, 4), with_image=image, with_motion=motion)
    planned = Dit(**shape, text=(10, 6), with_image=image, with_motion=motion)
    assert planned.parameters == sum(p.numel() for p in dit.parameters())
    with torch.device("meta"):
        whole = VideoDiT()
    assert Dit().parameters == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize(
    "changes", [(), ("model.mlp=2",), ("model.with_motion=false",), ("vae.channels=8", "text.widths=[24, 40]")]
)
def test_a_dry_run_counts_the_parameters_of_the_model_that_is_trained(changes):
    cfg = load_config("stepvideo-tiny", changes, kind=Config)
    videos = SimpleNamespace(channels=cfg.vae.channels, widths=cfg.text.widths)
    assert describe(cfg)["parameters"] == f"{sum(p.numel() for p in make_dit(cfg.model, videos).parameters()):,}"
    published = describe(load_config("stepvideo-t2v-1b", kind=Config))["parameters"]
    assert published.endswith(" with Step-Video's text widths")


def test_flops_are_those_that_torch_counts():
    for again in (False, True):
        want = video_memory.planned_cost(2, again)
        assert 2 * (want.forward + want.backward + want.recomputed) == video_memory.flops(2, again)
    assert video_memory.planned_cost(2).recomputed == 0 < want.recomputed < want.forward


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("motion", [True, False])
def test_flops_without_a_condition(image, motion, monkeypatch):
    flags = {"with_image": image, "with_motion": motion}
    monkeypatch.setattr(video_memory, "SHAPE", {**video_memory.SHAPE, **flags})
    monkeypatch.setattr(video_memory, "PLANNED", dataclasses.replace(video_memory.PLANNED, **flags))
    arguments = dict(video_memory.inputs(1))
    for name, there in (("image_BFCYX", image), ("motion_B", motion)):
        if not there:
            del arguments[name]
    monkeypatch.setattr(video_memory, "inputs", lambda batch: arguments)
    want = video_memory.planned_cost(1)
    assert want.forward + want.backward == video_memory.flops(1, again=False)


def test_states_are_the_bytes_that_a_step_leaves():
    assert video_memory.states(2) == video_memory.planned_cost(2).states


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_are_what_autograd_keeps(precision):
    """Within 2%: norms' statistics, the embedded time and rotary angles are not in the plan."""
    planned = [video_memory.planned_cost(4, again, precision).activations for again in (False, True)]
    result = [video_memory.activations(4, precision), video_memory.checkpointed_activations(4, precision)]
    for want, measured in zip(planned, result, strict=True):
        assert measured == pytest.approx(want, rel=0.02)
        assert measured > want
    assert result[1] < 0.45 * result[0]


def test_memory_falls_with_gpus_and_rises_with_videos():
    count = tokens(102, 544, 992)
    few, many = (cost(Dit(), count, Machine(gpus=n)) for n in (8, 128))
    shared = Dit().parameters * 20
    assert few.states - many.states == pytest.approx(shared / 8 - shared / 128, abs=2)
    assert cost(Dit(), count, Machine(micro=2)).activations == 2 * many.activations
    assert cost(Dit(), count, Machine(ema=False)).states < many.states


def test_gpus_that_share_a_video_share_its_tokens_and_its_time():
    count = tokens(102, 544, 992)
    alone, shared = (cost(Dit(), count, Machine(context=n)) for n in (1, 8))
    assert (alone.shard, shared.shard) == (count, count // 8)
    assert 8 * shared.seconds == pytest.approx(alone.seconds)
    assert 1 < 8 * shared.activations / alone.activations < 1.03  # each has the text
    assert (shared.states, shared.forward) == (alone.states, alone.forward)
    assert cost(Dit(), 13, Machine(context=4)).shard == 4


def test_the_command_tells_it_for_a_config(capsys):
    assert cli.main(["plan", "memory", "stepvideo-ti2v-30b", "--vae", "step-video", "--frames", "102"]) == 0
    output = capsys.readouterr().out
    assert f"{Dit().parameters:,}" in output
    assert "37,944" in output
    assert "sharded over 128" in output
    assert "4,743 a video, 8 GPUs share one, 1 at a time" in output
    assert cli.main(["plan", "memory", "stepvideo-ti2v-30b"]) == 0  # Wan's VAE, which the config has
    assert f"{26 * 68 * 124:,} (101 frames of 544 x 992, VAE 4 x 8 x 8)" in capsys.readouterr().out
    assert cli.main(["plan", "memory", "stepvideo-tiny"]) == 0
    output = capsys.readouterr().out
    assert "80 (9 frames of 32 x 32, VAE 2 x 8 x 8)" in output
    tiny = VideoDiT(layers=4, heads=3, head_width=32, channels=16, text_channels=(32, 32), split=(16, 8, 8))
    assert f"{sum(p.numel() for p in tiny.parameters()):,}\n" in output
    assert cli.main(["plan", "memory", "orz-tiny", "--frames", "3"]) == 2
    assert "--frames is about clips" in capsys.readouterr().err
    assert cli.main(["plan", "memory", "stepvideo-ti2v-30b", "--size", "big"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err


def test_the_command_knows_models_of_other_recipes(capsys):
    assert cli.main(["plan", "memory", "mdocsum-7b-sft"]) == 0
    output = capsys.readouterr().out
    weights = 4 * 8_291_375_616 / 2**30
    assert f"{4 * weights / 8:.3g} GiB a GPU, sharded over 8" in output
    assert f"{weights:.3g} GiB for whole copies" in output
    assert cli.main(["plan", "memory", "mdocsum-7b-dpo"]) == 2  # it begins with a folder that is not there yet
    assert "give model.path a name" in capsys.readouterr().err
    assert cli.main(["plan", "memory", "mdocsum-7b-dpo", "model.path=Qwen/Qwen2-VL-7B-Instruct"]) == 0
    assert cli.main(["plan", "memory", "chat-dpo-0.5b"]) == 0
    output = capsys.readouterr().out
    assert f"{4 * 494_032_768 / 2**30 / 8:.3g} GiB a GPU" in output  # adapters: weights alone
