"""stepvideo on a folder of one's own videos: the VAE learns them, the DiT is trained on them, the report shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.drawn import moving
from data.drawn.moving import Moving
from data.errors import DataError
from data.media import frames
from data.sets.captioned import read_folder
from recipes.protocol import load_config
from recipes.stepvideo.generation.engine import open_pipeline
from recipes.stepvideo.model import DIT, clips_of, explained_variance, made_by, pixels, vae_folder
from recipes.stepvideo.recipe import train
from stepstack.config import ROOT, ConfigError
from stepstack.core.run import Run
from stepstack.diffusion.latents import Latents
from stepstack.harness.training.outcome import results
from stepstack.report import jsonl

SIZE, COUNT = 16, 5
SHORT = (
    "steps=3",
    "eval_every=2",
    "vae.steps=200",
    "vae.width=32",
    "vae.channels=8",
    "vae.optim={type: muon, lr: 0.01, adamw_lr: 3e-3}",
    "data.gate=0.2",
    f"frames={COUNT}",
    f"sizes=[[{SIZE}, {SIZE}]]",
    "sampler.steps=2",
    "batch=4",
    "micro=4",
    "trackers=[]",
    "model.layers=1",
)


def write_folder(folder: Path, count: int = 12) -> Path:
    """A dozen videos of 24 x 20 pixels and 8 frames, longer and larger than the clips that are made of them."""
    folder.mkdir(parents=True)
    data = Moving(size=24, frames=8, train=count, radius=(3.0, 4.0), grey=(40, 90))
    rows = []
    for number, clip in enumerate(moving.clips(data, "train")):
        name = f"{number:02d}.mp4"
        frames.write_mp4(folder / name, moving.render(clip, data)[:, 2:22], fps=10)
        rows.append({"video": name, "caption": clip.prompt})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    place = tmp_path_factory.mktemp("own")
    folder = write_folder(place / "videos")
    made = Run(load_config("stepvideo-tiny-clips", [*SHORT, f"data.folder={folder}", f"dir={place}", "name=own"]))
    train(made)
    return made


def test_the_vae_and_the_dit_learn_the_clips_that_are_not_held_out(run):
    rows = list(jsonl.read(run.dir / "vae" / "metrics.jsonl"))
    quality = [row["eval/psnr"] for row in rows if "eval/psnr" in row]
    assert len(quality) == 11  # before, and ten times on the way
    assert quality[-1] > quality[0] + 5
    train_clips, held_out = (clips_of(run.config, split) for split in ("train", "select"))
    assert (len(train_clips), len(held_out)) == (10, 2)
    assert {clip.name for clip in train_clips}.isdisjoint(clip.name for clip in held_out)
    latents = Latents(run.dir / "latents", made_by(run.config, vae_folder(run)))
    codec = open_pipeline(run.config, run.dir / "model", torch.device("cpu")).codec
    want = codec.encode(pixels(train_clips))
    for video, clip, row in zip(latents, train_clips, want, strict=True):
        torch.testing.assert_close(video.latents_FCYX, row)
        assert video.motion == pytest.approx(clip.motion)
    assert len({clip.motion for clip in train_clips}) > 3  # measured, not one number for all


def test_held_out_clips_are_generated_measured_and_shown(run):
    for label in ("codec", "after"):
        figures = {m["name"]: m["value"] for m in results(run.dir / "evals" / label)["test"][1]["metrics"]}
        assert set(figures) == {"first frame PSNR", "clip PSNR"}
    ceiling = {m["name"]: m["value"] for m in results(run.dir / "evals" / "codec")["test"][1]["metrics"]}
    last = list(jsonl.read(run.dir / "vae" / "metrics.jsonl"))[-1]["eval/psnr"]
    assert ceiling["clip PSNR"] == pytest.approx(last, abs=0.2)  # the true clips through the VAE, calibrated since
    assert [r["step"] for r in jsonl.read(run.metrics_file) if "eval/clip_psnr" in r] == [0, 2, 3]
    page = (run.dir / "report.html").read_text()
    for clip in clips_of(run.config, "test"):
        assert clip.prompt in page
        assert Path(clip.name).name in page
    assert "PSNR of pictures" in page
    assert json.loads((run.dir / "model" / "pipeline.json").read_text())["fps"] == 10


def test_the_run_is_left_as_it_is_until_a_video_is_changed(run):
    model = run.dir / "model" / DIT / "diffusion_pytorch_model.safetensors"
    before = model.read_bytes()
    train(Run(run.config))
    assert model.read_bytes() == before
    changed = Path(clips_of(run.config, "train")[0].name)
    content = changed.read_bytes()
    changed.write_bytes(content + b"\0")
    try:
        with pytest.raises(ConfigError, match=r"videos: sha256 \w+ -> \w+"):
            Run(run.config)
    finally:
        changed.write_bytes(content)


def test_a_vae_that_shows_grounds_alone_stops_the_run(run, tmp_path):
    lazy = [word for word in SHORT if not word.startswith(("vae.steps", "data.gate"))]
    words = [*lazy, "vae.steps=1", f"data.folder={run.config.data.folder}", f"dir={tmp_path}", "name=gate"]
    with pytest.raises(ConfigError, match=r"of the variance of held-out clips .* data\.gate asks for 50%"):
        train(Run(load_config("stepvideo-tiny-clips", words)))
    clips = clips_of(run.config, "test")
    true = np.stack([clip.frames() for clip in clips])
    ground = np.broadcast_to(true.mean((1, 2, 3), keepdims=True), true.shape)
    assert explained_variance(clips, true) == 1.0
    assert explained_variance(clips, ground) == 0.0
    assert explained_variance(clips, 0.5 * ground + 0.5 * true) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sizes=[[16, 16], [32, 16]]"], "give one, which all clips of data.type=clips are cut to"),
        (["sizes=[[20, 16]]"], r"frames, sizes and vae\.patch: 9 frames of 16 x 20 do not fit"),
        (["vae={type: wan, path: x}"], r"vae\.type=wan does not go with data\.type=clips"),
        (["preference={}", "model.start=x"], r"data\.type=clips has no losers"),
        (["dsv={dispatch: {type: fixed}, cube: [8, 2, 2]}", "sizes=[[16, 16]]"], "holds a whole clip of"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        load_config("stepvideo-tiny-clips", words)


def test_the_example_draws_a_folder_that_can_be_read(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "draw_clips.py"), str(tmp_path / "clips"), "count=4"]
    subprocess.run(
        command,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src")))},
        timeout=120,
    )
    cfg = load_config("stepvideo-tiny-clips", [f"data.folder={tmp_path / 'clips'}"])
    train_clips, held_out, _ = read_folder(cfg.data, cfg.frames, cfg.sizes[0])
    assert len(train_clips) + len(held_out) == 4
    assert all(clip.prompt and clip.frames().shape[0] == cfg.frames for clip in (*train_clips, *held_out))


def test_folders_that_cannot_be_used_are_named(tmp_path):
    data = load_config("stepvideo-tiny-clips", [f"data.folder={tmp_path / 'none'}"]).data
    with pytest.raises(DataError, match=r"data\.folder=.*none is no folder"):
        read_folder(data, COUNT, (SIZE, SIZE))
    folder = write_folder(tmp_path / "two", count=2)
    data = load_config("stepvideo-tiny-clips", [f"data.folder={folder}"]).data
    with pytest.raises(ConfigError, match=r"has 2 different clips and data\.held_out=2 .*: none is left to train on"):
        read_folder(data, COUNT, (SIZE, SIZE))
    with pytest.raises(DataError, match=r"00\.mp4 has 8 frames, the shortest of options\.lengths is 99"):
        read_folder(data, 99, (SIZE, SIZE))
