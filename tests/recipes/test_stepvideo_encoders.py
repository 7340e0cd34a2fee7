"""A model of own clips behind a Wan VAE and transformers' text encoders, which compute in another type than the DiT."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file, save_file

from data.media import frames, videos
from recipes.protocol import load_config
from recipes.stepvideo.generation.engine import open_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest
from recipes.stepvideo.model import codec_of, encoder_of
from recipes.stepvideo.recipe import train
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.core.run import Run
from stepstack.models.lm import tiny

CLIP_FRAMES = 9


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Four clips of noise with captions, a Wan VAE, a language model and a second one in place of CLIP."""
    place = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).save_pretrained(place / "wan")
    words = tiny.tokenizer()
    for name, hidden in (("language", 16), ("clip", 8)):
        lm = tiny.qwen2(len(words), hidden=hidden, layers=1, intermediate=16, seed=0)
        lm.save_pretrained(place / name)
        words.save_pretrained(place / name)
    rng = np.random.default_rng(0)
    for name in "abcd":
        frames.write_mp4(place / f"{name}.mp4", rng.integers(0, 255, (CLIP_FRAMES, 32, 32, 3), dtype=np.uint8), fps=9)
    rows = [{"video": f"{name}.mp4", "caption": f"noise {name}"} for name in "abcd"]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (32, 32), (90, 120, 150)).save(place / "first.png")
    return place


def words_of(place: Path, dtype: str) -> list[str]:
    """The overrides that make stepvideo-t2v-1b one for these clips; its own text.dtype is bfloat16."""
    return [
        f"dir={place / 'runs'}",
        f"name={dtype}",
        "precision='no'",
        "steps=2",
        "batch=2",
        "micro=1",
        f"frames={CLIP_FRAMES}",
        "sizes=[[32,32]]",
        "sampler.steps=2",
        "launch={file: cpu, processes_per_node: 1, threads: 1}",
        f"data={{folder: {place / f'clips-{dtype}'}, source: {place / 'rows.jsonl'}}}",
        f"data.options={{sizes: [[32, 32]], lengths: [1, {CLIP_FRAMES}], motion: [0, 1e3]}}",
        f"vae={{path: {place / 'wan'}, subfolder: null}}",
        f"text={{language: {place / 'language'}, clip: {place / 'clip'}, lengths: [24, 10], dtype: {dtype}}}",
        "model={layers: 1, heads: 3, head_width: 32, split: [16, 8, 8]}",
        "trackers=[]",
    ]


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def dtype(request, place) -> str:
    """Type of the text encoders, with a run that was trained on what they encoded."""
    words = words_of(place, request.param)
    assert cli.main(["data", "stepvideo-t2v-1b", *words]) == 0
    train(Run(load_config("stepvideo-t2v-1b", words)))
    return request.param


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_clip_is_sampled(place, dtype, precision, tmp_path):
    words = [*words_of(place, dtype), f"precision='{precision}'"]
    line = ["--image", str(place / "first.png"), "--prompt", "noise a", "--out", str(tmp_path / "made")]
    assert cli.main(["sample", "stepvideo-t2v-1b", *words, *line]) == 0
    assert videos.read_video(tmp_path / "made.mp4")[0].shape[0] == CLIP_FRAMES


def test_a_task_is_evaluated(place, dtype, tmp_path):
    item = tmp_path / "ti2v_eval" / "ti2v_eval_real" / "S" / "001.txt"
    item.parent.mkdir(parents=True)
    item.write_text("noise b")
    Image.new("RGB", (32, 32), (60, 90, 120)).save(item.with_suffix(".png"))
    line = ["--tasks", "ti2v_eval", "--data", str(tmp_path)]
    assert cli.main(["eval", "stepvideo-t2v-1b", *words_of(place, dtype), *line]) == 0
    [result] = (place / "runs" / dtype).glob("evals/model-*/ti2v_eval-*/result.json")
    assert json.loads(result.read_text())["n"] == 1


def test_prompts_reach_the_dit_in_its_own_type(place, dtype):
    """The encoders keep theirs, and change no clip by more than bfloat16's rounding."""
    cfg = load_config("stepvideo-t2v-1b", words_of(place, dtype))
    pipeline = open_pipeline(cfg, cfg.folder / "model", torch.device("cpu"))
    seen = []
    pipeline.dit.register_forward_pre_hook(lambda module, inputs: seen.append((inputs[2].dtype, inputs[4].dtype)))
    request = ClipRequest("noise a", np.full((32, 32, 3), 90, np.uint8), 5.0, 0)
    clip = pipeline.clips([request])
    assert set(seen) == {(torch.float32, torch.float32)}
    assert encoder_of(cfg.text).encode(["noise a"]).text_BLC.dtype == getattr(torch, dtype)
    exact = dataclasses.replace(cfg.text, dtype="float32")
    other = dataclasses.replace(pipeline, encoder=encoder_of(exact)).clips([request])
    assert np.abs(clip.astype(int) - other.astype(int)).max() <= 8


@pytest.mark.parametrize("name", ["wan", "language"])
def test_a_part_that_lacks_weights_is_refused(place, tmp_path, name):
    """Drawn at random, they would make latents and prompts that no model knows."""
    shutil.copytree(place / name, tmp_path / name)
    [file] = (tmp_path / name).glob("*.safetensors")
    weights = load_file(file)
    lost = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != lost}, file, {"format": "pt"})
    words = [word.replace(str(place / name), str(tmp_path / name)) for word in words_of(place, "float32")]
    cfg = load_config("stepvideo-t2v-1b", words)
    with pytest.raises(ConfigError, match=r"lacks 1 of the model's weights"):
        codec_of(cfg.vae, tmp_path) if name == "wan" else encoder_of(cfg.text)
