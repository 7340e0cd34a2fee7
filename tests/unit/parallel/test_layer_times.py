"""Layers are measured alone with the model's own inputs, all kinds of them, and bytes are those that autograd holds."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
import torch
from torch import nn

from recipes.protocol import load_config, skeleton_of
from stepstack import config
from stepstack.cli.main import main
from stepstack.config import ConfigError
from stepstack.core import hf
from stepstack.models.lm import tiny
from stepstack.parallel import layer_times
from stepstack.parallel.layer_times import MeasuredBlock, Sizes
from stepstack.planning.pipeline.profile import PassCost, PipelineProfile

CPU = torch.device("cpu")
SIZES = Sizes(tokens=(16, 32), pictures=(1, 2), picture=(112, 112))
WORDS = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))


def visual(depth: int = 3, full: tuple[int, ...] = (1,)):
    lm = tiny.qwen2_5_vl(WORDS, hidden=48, layers=2, intermediate=32, tower=32, depth=depth, seed=0)
    lm.config.vision_config.fullatt_block_indexes = list(full)
    return lm


def test_bytes_of_a_linear_layer_by_hand():
    """The forward pass keeps its input; gradients of inputs add that of the output, which the weights need."""
    linear = nn.Linear(8, 4, bias=False)
    block = MeasuredBlock(linear, torch.randn(16, 8), tuple(linear.parameters()), trained=True)
    cost = layer_times.cost(block, 1, CPU)
    assert cost.saved == 16 * 8 * 4
    assert cost.kept == cost.saved + 16 * 4 * 4


def test_the_weights_of_an_entry_take_all_of_its_backward_pass():
    embed = nn.Embedding(10, 4)
    block = MeasuredBlock(embed, torch.tensor([1, 2, 3]), tuple(embed.parameters()), trained=True, entry=True)
    cost = layer_times.cost(block, 2, CPU)
    assert (cost.input, cost.weight, cost.kept) == (0, cost.backward, cost.saved)


@pytest.mark.parametrize("full", [(), (1,), (0, 1, 2)])
def test_a_tower_has_each_kind_of_block_once_and_they_are_counted(full):
    small, kinds = layer_times.shallow(visual(full=full), CPU)
    counts = [count for count in (len(full), 3 - len(full)) if count]
    assert kinds == {"text": [2], "vision": counts}
    assert len(small.model.visual.blocks) == len(counts)
    assert len(small.model.language_model.layers) == 1


def test_a_block_alone_computes_what_it_computes_in_the_model():
    small, _ = layer_times.shallow(visual(), CPU)
    tower = small.model.visual
    pixels, grid = torch.randn(200, 3 * 2 * 14 * 14), torch.tensor([[1, 10, 20]])

    def forward() -> None:
        tower(pixels, grid_thw=grid)

    full, window, merger = (layer_times.captured(m, forward) for m in (*tower.blocks, tower.merger))
    with torch.no_grad():
        torch.testing.assert_close(full.call(full.input), window.input, rtol=0, atol=0)
        torch.testing.assert_close(window.call(window.input), merger.input, rtol=0, atol=0)
        assert (full.call(window.input) - window.call(window.input)).abs().max() > 1e-4  # another attention


def test_the_mean_of_kinds_is_weighted():
    assert layer_times.mean([PassCost(forward=1.0, saved=8), PassCost(forward=5.0)], [1, 3]) == PassCost(4.0, saved=2)


def test_a_model_without_memory_is_measured_and_read_again(tmp_path):
    lm = hf.without_memory(visual)
    profile = layer_times.measure(lm, SIZES, CPU, rounds=1, name="small")
    vision, text = profile.modules
    assert (vision.layers, vision.unit, text.layers, text.reads) == (3, "patches", 2, ("vision",))
    assert vision.layer.sizes == (64, 128)
    assert (vision.hidden_bytes, vision.output_bytes) == (32 * 4, 48 * 4 / 4)  # 4 patches become a token
    assert text.hidden_bytes == 48 * 4
    assert text.layer_parameters == sum(p.numel() for p in visual().model.language_model.layers[0].parameters())
    for module in profile.modules:
        for part in (module.layer, module.entry, module.exit):
            assert part is not None
            assert min(part.forward) > 0
            assert min(part.backward) > 0
            assert min(part.weight) > 0
        assert min(module.layer.saved) >= module.layer.sizes[0] * module.hidden_bytes  # its input at least
        assert all(kept > saved for kept, saved in zip(module.layer.kept, module.layer.saved, strict=True))
    profile.save(tmp_path / "a.json")
    assert asdict(config.read(PipelineProfile, tmp_path / "a.json")) == asdict(profile)


def test_a_frozen_tower_has_no_backward_pass():
    lm = visual()
    lm.model.visual.requires_grad_(False)
    profile = layer_times.measure(lm, SIZES, CPU, rounds=1)
    layer = profile.module("vision").layer
    assert min(layer.forward) > 0
    assert max(*layer.backward, *layer.input, *layer.weight, *layer.saved, *layer.kept) == 0
    assert min(profile.module("text").layer.backward) > 0


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (Sizes((16,), (1, 2), (112, 112)), "--tokens 16: give two different sizes"),
        (Sizes((16, 32), (0, 2), (112, 112)), "--pictures 0 2: give two different sizes above 0"),
        (Sizes((16, 1024), (1, 2), (112, 112)), "--tokens 1024: the model takes 512 at most"),
        (Sizes((16, 32), (1, 2), (112, 100)), "--picture 112x100: sides must be multiples of 28"),
    ],
)
def test_sizes_that_cannot_be_measured_are_refused(sizes, why):
    with pytest.raises(ConfigError, match=why):
        layer_times.measure(visual(), sizes, CPU)


def test_models_that_pipelines_do_not_know_are_refused():
    lm = visual()
    lm.config.model_type = "llama"
    with pytest.raises(ConfigError, match="the model is a llama: pipelines know qwen2, "):
        layer_times.measure(lm, SIZES, CPU)
    with pytest.raises(ConfigError, match="recipe steplaw has no model for pipelines: take one of orz, "):
        skeleton_of(load_config("steplaw-tiny"))


@pytest.mark.parametrize(("name", "kind"), [("orz-tiny", "qwen2"), ("mdocsum-tiny", "qwen2_5_vl")])
def test_a_config_has_its_model_without_memory(name, kind):
    lm = skeleton_of(load_config(name))
    assert lm.config.model_type == kind
    assert all(parameter.is_meta for parameter in lm.parameters())


def test_the_command_measures_a_config(tmp_path, capsys):
    out = tmp_path / "f.json"
    words = ["--tokens", "16", "32", "--pictures", "1", "2", "--picture", "56x56", "--rounds", "1"]
    assert main(["profile", "pipeline", "perception-tiny", "model.layers=2", "--out", str(out), *words]) == 0
    profile = config.read(PipelineProfile, out)
    assert (profile.model, [module.layers for module in profile.modules]) == ("perception-tiny", [2, 2])
    assert profile.link is not None
    assert "commit" in profile.provenance
    assert f"-> {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--picture", "224"], "--picture 224: give width and height"),
        (["--rounds", "0"], "--rounds 0: measure at least once"),
        (["--out", "a.yaml"], r"--out a\.yaml: must end in \.json"),
    ],
)
def test_the_commands_words_are_checked(words, why, capsys):
    assert main(["profile", "pipeline", "orz-tiny", "--out", "a.json", *words]) == 2
    error = capsys.readouterr().err
    assert re.search(why, error)
    assert len(error.splitlines()) == 1
