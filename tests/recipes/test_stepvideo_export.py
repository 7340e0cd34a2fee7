"""The exported folder of stepvideo: in the type that its start had, and as a pipeline of diffusers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from PIL import Image
from safetensors.torch import load_file

from recipes.protocol import load_config
from recipes.stepvideo.generation.engine import open_pipeline
from recipes.stepvideo.generation.sampling import SampleArgs, clip_request
from recipes.stepvideo.model import DIT
from recipes.stepvideo.recipe import train
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.models.video.dit import VideoDiT
from tests.hub import hub
from tests.recipes.test_stepvideo import SHORT, picture


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    words = [*SHORT, f"dir={tmp_path_factory.mktemp('runs')}", "name=short", "evals=[]"]
    made = Run(load_config("stepvideo-tiny", words))
    train(made)
    return made


def test_weights_in_bfloat16_are_exported_so_and_are_sampled(run, tmp_path):
    start = shutil.copytree(run.dir / "model", tmp_path / "start")
    VideoDiT.from_pretrained(start / DIT).bfloat16().save_pretrained(start / DIT)
    words = [*SHORT, f"dir={tmp_path}", "name=half", f"model.start={start}", "evals=[]", "steps=1"]
    half = Run(load_config("stepvideo-tiny", words))
    train(half)
    file = half.dir / "model" / DIT / "diffusion_pytorch_model.safetensors"
    assert {value.dtype for value in load_file(file).values()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in half.trainables["dit"].parameters} == {torch.float32}
    request = clip_request(half.config, SampleArgs(image=picture(tmp_path), prompt="a red circle moves right"))
    pipeline = open_pipeline(half.config, half.dir / "model", torch.device("cpu"))
    assert pipeline.clips([request]).shape == (1, half.config.frames, 32, 32, 3)


def test_diffusers_loads_the_folder_and_samples_the_same_clip(run, tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(run.dir / "model", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(folder)
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    args = SampleArgs(image=picture(tmp_path), prompt="a red circle moves right", motion=7.0, seed=3)
    request = clip_request(run.config, args)
    [want] = open_pipeline(run.config, run.dir / "model", torch.device("cpu")).clips([request])
    made = pipe(Image.open(args.image), args.prompt, motion_score=7.0, seed=3)
    assert (np.stack([np.asarray(frame) for frame in made.frames[0]]) == want).all()
    assert made.fps == 6
    other = pipe(Image.open(args.image), args.prompt, motion_score=7.0, seed=3, num_inference_steps=1)
    assert (np.stack([np.asarray(frame) for frame in other.frames[0]]) != want).any()
    with hub() as served:  # the same from a hub
        served.private["me/clips"] = False
        files = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        served.branches["me/clips", "main"] = files
        served.serve_this_process(monkeypatch)
        pipe = DiffusionPipeline.from_pretrained("me/clips", trust_remote_code=True, cache_dir=tmp_path / "cache")
    again = pipe(Image.open(args.image), args.prompt, motion_score=7.0, seed=3)
    assert (np.stack([np.asarray(frame) for frame in again.frames[0]]) == want).all()
    with pytest.raises(ConfigError, match=r"the image is 32 x 8: cut to"):
        pipe(Image.new("RGB", (32, 8)), args.prompt)
