"""An exported model as a pipeline of diffusers: `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`.

diffusers imports no module because a folder names it. So the folder holds a line of Python for each class, which
imports it from the installed stepstack, and the caller gives ``trust_remote_code=True``. A repository of a hub is
loaded in the same way.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from diffusers import __version__ as diffusers_version
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from pydantic import Field, PositiveFloat, PositiveInt

from recipes.stepvideo.config import Config, PublishedEncoders, PublishedVae, TinyVaeConfig, WordVectors
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline, fitted
from recipes.stepvideo.model import DIT, VAE, codec_of, encoder_of
from stepstack.config import Resolved, Strict, build, to_dict
from stepstack.core.inputs import PIPELINE_INDEX
from stepstack.diffusion.config import SamplerConfig
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.vae import TinyCodec, TinyVae
from stepstack.report import jsonl

PIPELINE = "pipeline"  # the module in the folder that imports the pipeline


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings(Strict):
    """Everything but weights that decides a model's clips, in model_index.json."""

    text: Annotated[WordVectors | PublishedEncoders, Field(discriminator="type")]
    """Encoders of the prompts."""
    vae: Annotated[TinyVaeConfig | PublishedVae, Field(discriminator="type")]
    """VAE; a published one is read from its own folder or hub name."""
    sampler: SamplerConfig
    """How clips are sampled unless the call says otherwise."""
    frames: PositiveInt
    """Frames of a clip."""
    sizes: tuple[tuple[PositiveInt, PositiveInt], ...]
    """Sizes (height, width) in pixels; that of the nearest shape is taken."""
    negative: str
    """Prompt that guidance moves away from."""
    fps: PositiveFloat
    """Frames per second at which clips are shown."""


@dataclass
class ClipOutput(BaseOutput):
    """``frames``: the clips, each a list of pictures. ``fps``: frames per second."""

    frames: list[list[Image.Image]]
    fps: float


class StepVideoPipeline(DiffusionPipeline):
    """A first frame, a prompt and a motion score become a clip, the one of `stepstack sample`. A model that was trained
    with DSV attends densely."""

    _optional_components = ["vae"]  # noqa: RUF012  # a list, as diffusers has it
    transformer: VideoDiT

    def __init__(self, transformer: VideoDiT, vae: TinyVae | None = None, settings: dict[str, Any] | None = None):
        """``vae``: the tiny one; None where ``settings`` (``Settings`` as plain JSON) name a published one."""
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)
        self.register_to_config(settings=settings)
        self.settings: Settings = build(Settings, Resolved(Path(PIPELINE_INDEX), settings or {}, {}))
        self.encoder = encoder_of(self.settings.text)
        self.codec = codec_of(self.settings.vae, Path()) if vae is None else TinyCodec(vae)

    def __call__(
        self,
        image: Image.Image,
        prompt: str,
        motion_score: float = 5.0,
        seed: int = 0,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        crop: bool = False,
    ) -> ClipOutput:
        """One clip; what is None is the model's own. ConfigError for a picture that the model has no size for, unless
        it may be cut (``crop``)."""
        own = self.settings
        sampler = SamplerConfig(
            steps=own.sampler.steps if num_inference_steps is None else num_inference_steps,
            guidance=own.sampler.guidance if guidance_scale is None else guidance_scale,
            shift=own.sampler.shift,
        )
        negative = own.negative if negative_prompt is None else negative_prompt
        pipeline = Pipeline(
            self.transformer.eval(), self.codec, self.encoder, sampler, own.frames, own.fps, negative, self.device
        )
        picture = fitted(own.sizes, np.asarray(image.convert("RGB")), "the image", crop)
        [clip] = pipeline.clips([ClipRequest(prompt, picture, motion_score, seed)])
        return ClipOutput(frames=[[Image.fromarray(frame) for frame in clip]], fps=own.fps)


def write_pipeline(folder: Path, cfg: Config, fps: float) -> None:
    """Make a folder that holds a DiT, and perhaps a VAE in its own folder, one of diffusers: the DiT goes into a folder
    of its own."""
    (folder / DIT).mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        shutil.move(file, folder / DIT / file.name)
    keys = ("text", "vae", "sampler", "frames", "sizes", "negative")
    index: dict[str, Any] = {"_diffusers_version": diffusers_version}
    index["_class_name"] = _import(folder, PIPELINE, StepVideoPipeline)
    index[DIT] = _import(folder / DIT, "video_dit", VideoDiT)  # "dit" is a module of diffusers' own
    index[VAE] = _import(folder / VAE, "tiny_vae", TinyVae) if (folder / VAE).is_dir() else [None, None]
    index["settings"] = {key: value for key, value in to_dict(cfg).items() if key in keys} | {"fps": fps}
    jsonl.write_json_atomic(folder / PIPELINE_INDEX, index)


def _import(folder: Path, module: str, cls: type) -> Sequence[str]:
    """Have ``cls`` imported by a module in the folder; its entry in the index."""
    line = f"from {cls.__module__} import {cls.__name__}  # noqa: F401\n"
    jsonl.write_text_atomic(folder / f"{module}.py", line)
    return [module, cls.__name__]
