"""videolora on tiny random pipelines of Wan and LTX: diffusers' own pipelines are the oracles of what is trained."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline, WanPipeline
from safetensors.torch import load_file

from data.drawn import moving
from data.drawn.moving import Moving
from data.media import frames
from recipes.protocol import load_config
from recipes.videolora.model import published
from recipes.videolora.recipe import train
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.diffusion import flow
from stepstack.models.video.published import PIPELINES, tiny_pipeline
from stepstack.models.video.vae import LtxCodec
from stepstack.report import jsonl
from tests import tools

SHORT = ("steps=8", "eval_every=4", "samples=1", "sampler_steps=2", "draws=4", "trackers=[]", "save.every=0")
DSV = "dsv={dispatch: {type: fixed}, cube: [1, 2, 2], sampling: 1, switch: 10.0, lr: 1e-2, warmup: 2}"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=["wan", "ltx"])
def run(request, tmp_path_factory) -> Run:
    words = [*SHORT, f"model.family={request.param}", f"dir={tmp_path_factory.mktemp('runs')}", "name=short"]
    made = Run(load_config("videolora-tiny", words))
    train(made)
    return made


def pipe_of(run: Run):
    kind = run.config.model.family
    pipe = PIPELINES[kind].from_pretrained(run.dir / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shape_of(run: Run) -> dict[str, int]:
    frame_count, height, width = run.config.shape
    return {"num_frames": frame_count, "height": height, "width": width}


def test_the_velocity_integrates_to_what_the_pipeline_samples(run):
    """Sign and time of the velocity, the prompt's encoding, LTX's tokens and positions: all against the pipeline."""
    pipe, source = pipe_of(run), published(run.config)
    velocity, codec = source.velocity().eval(), source.codec()
    grid = codec.grid(*run.config.shape)
    noise = torch.randn(1, grid[0], codec.channels, *grid[1:], generator=torch.Generator().manual_seed(0))
    packed = noise.transpose(1, 2)
    if isinstance(pipe, LTXPipeline):
        packed = pipe._pack_latents(packed)
    prompt, steps = "a red circle moves right", 4
    how = {"num_inference_steps": steps, "guidance_scale": 1.0, "max_sequence_length": source.text_tokens}
    latents = packed.clone()
    sampled = pipe(prompt, latents=latents, output_type="latent", **how, **shape_of(run)).frames
    if isinstance(pipe, LTXPipeline):
        sampled = pipe._unpack_latents(sampled, *grid)
    text = source.prompts(torch.device("cpu")).encode([prompt])
    x = noise
    with torch.no_grad():
        for sigma, then in itertools.pairwise(pipe.scheduler.sigmas.tolist()):
            v = velocity(
                latents_BFCYX=x, time_B=torch.tensor([1 - sigma]), text_BLC=text.text_BLC, text_mask_BL=text.mask_BL
            )
            x = x + (sigma - then) * v
    torch.testing.assert_close(x.transpose(1, 2), sampled, rtol=1e-4, atol=1e-5)
    assert (x - noise).abs().max() > 0.1


def test_noise_and_target_are_those_of_the_scheduler(run):
    """The scheduler's noising is ours, and a step of it by the target, in diffusers' sign, leads to the data."""
    scheduler = pipe_of(run).scheduler
    scheduler.set_timesteps(5, mu=1.0) if run.config.model.family == "ltx" else scheduler.set_timesteps(5)
    data, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))[:, None]
    for place, sigma in enumerate(scheduler.sigmas[:-1]):
        timestep = scheduler.timesteps[place : place + 1]
        t_B = 1 - sigma[None]
        assert float(timestep) == pytest.approx(1000 * float(sigma), rel=1e-5)
        x = flow.interpolate(data, noise, t_B)
        torch.testing.assert_close(x, scheduler.scale_noise(data, timestep, noise))
        scheduler._step_index = place
        sigma_of, predicted = flow.to_sigma(t_B, flow.velocity(data, noise))
        torch.testing.assert_close(sigma_of, sigma[None])
        stepped = scheduler.step(predicted, timestep[0], x).prev_sample
        torch.testing.assert_close(stepped, flow.interpolate(data, noise, 1 - scheduler.sigmas[place + 1][None]))


def test_the_adapters_lower_the_loss_of_clips_that_they_never_saw(run):
    losses = [row["eval/loss"] for row in jsonl.read(run.metrics_file) if "eval/loss" in row]
    assert len(losses) == 3
    assert losses[-1] < 0.9 * losses[0]


def test_the_pipeline_loads_the_adapters_and_is_the_trained_model(run):
    assert run.config.dit.lora.alpha != run.config.dit.lora.r  # the scale is in the file, or outputs differ
    names = load_file(run.dir / "lora" / WEIGHTS).keys()
    assert all(name.startswith("transformer.") and ".lora_" in name for name in names)
    assert {name.split(".lora_")[0].rpartition("attn")[2][2:] for name in names} == {
        *("to_q", "to_k", "to_v", "to_out.0")
    }
    pipe, source = pipe_of(run), published(run.config)
    trained = run.trainables["dit"].unwrapped.eval()
    base = source.velocity().eval()
    pipe.load_lora_weights(run.dir / "lora")
    codec = source.codec()
    grid = codec.grid(*run.config.shape)
    text = source.prompts(torch.device("cpu")).encode(["a red circle moves right", ""])
    inputs = {
        "latents_BFCYX": torch.randn(2, grid[0], codec.channels, *grid[1:]),
        "time_B": torch.tensor([0.2, 0.9]),
        "text_BLC": text.text_BLC,
        "text_mask_BL": text.mask_BL,
    }
    loaded = source.velocity().eval()
    loaded.transformer = pipe.transformer
    with torch.no_grad():
        want, got, untrained = (module(**inputs) for module in (trained, loaded, base))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert (want - untrained).abs().max() > 0.05


def test_the_report_shows_clips_without_and_with_the_adapters(run):
    page = (run.dir / "report.html").read_text()
    assert tools.unexplained(run.dir) == []
    clip = moving.clips(run.config.data, "select")[0]
    assert clip.prompt in page
    assert "data:image/png;base64" in page
    source = published(run.config)
    how = {"num_inference_steps": 2, "guidance_scale": 5.0, **shape_of(run)}
    plain, adapted = (source.generate([clip.prompt], f, run.device, **how)[0] for f in (None, run.dir / "lora"))
    assert plain.shape == (9, 32, 32, 3)
    assert (plain != adapted).any()
    clips = {file: file.stat().st_mtime_ns for file in (run.dir / "clips").iterdir()}
    train(Run(run.config))  # a finished run makes no clips anew
    assert clips == {file: file.stat().st_mtime_ns for file in clips}


def test_latents_of_ltx_are_normalised_as_its_pipeline_does():
    torch.manual_seed(0)
    vae = tiny_pipeline("ltx", "abc").vae.eval()
    vae.latents_mean.copy_(torch.randn(8))
    vae.latents_std.copy_(torch.rand(8) + 0.5)
    vae.register_to_config(scaling_factor=1.7)
    video = torch.rand(1, 9, 3, 32, 32) * 2 - 1
    latents = LtxCodec(vae).encode(video)
    with torch.no_grad():
        z = vae.encode(video.transpose(1, 2)).latent_dist.mode()
    want = LTXPipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, 1.7)
    torch.testing.assert_close(latents.transpose(1, 2), want)
    with torch.no_grad():
        torch.testing.assert_close(LtxCodec(vae).decode(latents).transpose(1, 2), vae.decode(z).sample)


def test_a_run_that_stops_goes_on_bit_for_bit_with_dsv_too(tmp_path):
    words = [*SHORT, DSV, "samples=0", "steps=5"]
    whole = Run(load_config("videolora-tiny", [*words, f"dir={tmp_path}", "name=whole"]))
    train(whole)
    rows = list(jsonl.read(whole.metrics_file))
    assert [row.get("dsv/stage") for row in rows[1:]] == [1, 2, 2, 2, 2]  # a row has the stage of the next step
    assert rows[-1]["dsv/sparse"] == 1.0
    cut = load_config("videolora-tiny", [*words, f"dir={tmp_path}", "name=cut"])
    with pytest.raises(SystemExit):
        train(Run(cut, stop_after=3))
    assert not (cut.folder / "lora").exists()
    train(Run(cut))
    want, got = (load_file(folder / "lora" / WEIGHTS) for folder in (whole.dir, cut.folder))
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    pipe = WanPipeline.from_pretrained(cut.folder / "pipeline")
    pipe.load_lora_weights(cut.folder / "lora")  # predictors of DSV are not among them


def test_a_folder_of_clips_trains_adapters_of_a_pipeline_in_bfloat16(run, tmp_path):
    data = Moving(train=5)
    rows = []
    for number, clip in enumerate(moving.clips(data, "train")):
        frames.write_mp4(tmp_path / "clips" / f"{number}.mp4", moving.render(clip, data), fps=8)
        rows.append(json.dumps({"video": f"{number}.mp4", "caption": clip.prompt}))
    (tmp_path / "clips" / "rows.jsonl").write_text("\n".join(rows))
    kind, path = run.config.model.family, run.dir / "pipeline"
    model = f"model={{type: {kind}, path: {path}, dtype: bfloat16, text_tokens: 32}}"
    clips = f"data={{type: clips, folder: {tmp_path / 'clips'}}}"
    made = Run(load_config("videolora-tiny", [*SHORT, "steps=2", model, clips, f"dir={tmp_path}", "name=bf16"]))
    train(made)
    parameters = dict(made.trainables["dit"].unwrapped.named_parameters())
    assert {str(p.dtype) for name, p in parameters.items() if ".lora_" in name} == {"torch.float32"}
    assert any(p.dtype == torch.bfloat16 for p in parameters.values())
    assert (made.dir / "lora" / WEIGHTS).is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dit.lora=null"], r"dit\.lora is null: this recipe trains low-rank adapters"),
        (["conditions.noise_mean=-1"], "drop_text alone can be set"),
        (["frames=7", "data.frames=7"], "7 frames of 32 x 32: the model takes one frame more than a multiple of 4"),
        (["model.family=ltx", "size=[16, 16]", "data.size=16"], "leaves the frame"),
        (["model.family=ltx", "size=[48, 48]", "data.size=48"], "multiples of 32 pixels"),
        (["frames=13"], r"drawn clips have data\.frames=9"),
        (["context=2", "launch.processes_per_node=2"], "context=2: processes cannot share a video"),
        (["dsv={dispatch: {type: fixed}, warmup: 400}"], r"dsv\.warmup=400 is not less than steps=400"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        load_config("videolora-tiny", words)


def test_pipelines_that_cannot_be_trained_are_named(run, tmp_path):
    source = published(run.config)
    source.check()
    other = {"wan": "ltx", "ltx": "wan"}[source.kind]
    wanted = PIPELINES[other].__name__
    with pytest.raises(ConfigError, match=rf"model\.type={other} takes a {wanted}, text to video"):
        replace(source, kind=other).check()
    shutil.copytree(source.path, tmp_path / "two")
    index = tmp_path / "two" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "boundary_ratio": 0.9}))
    with pytest.raises(ConfigError, match=r"two is of Wan 2\.2"):
        replace(source, path=str(tmp_path / "two")).check()
    with pytest.raises(ConfigError, match="none cannot be read as a model"):
        replace(source, path=str(tmp_path / "none")).check()
    assert Path(source.path).is_dir()
