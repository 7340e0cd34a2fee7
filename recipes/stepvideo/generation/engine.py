"""A trained model behind the harness: a request's answer is the file of a clip, an animated PNG of a drawn form, an MP4
of a picture."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.media.frames import mp4
from recipes.stepvideo.config import Config, TinyVaeConfig
from recipes.stepvideo.dsv import exported, restore
from recipes.stepvideo.generation.hub import write_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline, fitted
from recipes.stepvideo.model import DIT, PIPELINE_FILE, VAE, as_video, codec_of, digest, encoder_of, frames, made_by
from recipes.stepvideo.tasks import true_frames
from stepstack.config import ROOT, ConfigError, difference
from stepstack.diffusion.sample import derive_seed
from stepstack.generation.prompts import ClipPrompt
from stepstack.generation.types import Answer, Budget, ClipBudget, EngineError
from stepstack.harness.engine import Question
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.dsv.handle import Dsv
from stepstack.models.video.vae import VideoCodec
from stepstack.report import jsonl

log = logging.getLogger(__name__)

BATCH = 32
MAX_PIXELS_AT_ONCE = 1 << 19  # pixels, over all frames, of clips that are sampled together; a larger clip is alone


@dataclass(frozen=True, slots=True)
class PipelineFiles:
    """Files of a model folder beside the DiT: the tiny VAE, what else decides its clips, and diffusers' index."""

    cfg: Config
    vae: Path
    dsv: Dsv | None
    fps: float

    def save_pretrained(self, folder: Path) -> None:
        facts: dict[str, Any] = made_by(self.cfg, self.vae)
        facts |= exported(self.dsv) | {"fps": self.fps}
        if isinstance(self.cfg.vae, TinyVaeConfig):
            shutil.copytree(self.vae, folder / VAE)
        write_pipeline(folder, self.cfg, self.fps)
        facts["dit_sha256"] = digest(folder / DIT)
        jsonl.write_json_atomic(folder / PIPELINE_FILE, facts)


def open_pipeline(cfg: Config, folder: Path, device: torch.device) -> Pipeline:
    """The sampling pipeline of a model folder. Without ``dsv`` in the config a model that was trained with it attends
    densely. ConfigError where it is none, or was made with other encoders than the config's."""
    if not (folder / PIPELINE_FILE).is_file():
        raise ConfigError(f"{folder} holds no {PIPELINE_FILE}: give a folder that a run of this recipe exported")
    facts = jsonl.read_json(folder / PIPELINE_FILE, "text", "vae", "fps", "dit_sha256")
    wanted = made_by(cfg, folder / VAE)
    if changed := difference({key: facts[key] for key in wanted}, wanted):
        raise ConfigError(
            f"{folder / PIPELINE_FILE}: the model was made otherwise than the config says, or a file was changed; these"
            " differ:\n  " + "\n  ".join(changed)
        )
    if digest(folder / DIT) != facts["dit_sha256"]:
        raise ConfigError(f"{folder}: the DiT is not the one that was exported (sha256): export it again from its run")
    dit = VideoDiT.from_pretrained(folder / DIT).to(device).eval()
    if cfg.dsv is not None:
        restore(dit, cfg.dsv, folder / DIT, facts)
    return pipeline_of(cfg, dit, codec_of(cfg.vae, folder / VAE), device, facts["fps"])


def pipeline_of(cfg: Config, dit: torch.nn.Module, codec: VideoCodec, device: torch.device, fps: float) -> Pipeline:
    return Pipeline(dit, codec, encoder_of(cfg.text), cfg.sampler, cfg.frames, fps, cfg.negative, device)


def open_engine(cfg: Config, folder: Path, device: torch.device) -> ClipEngine:
    return ClipEngine(cfg, open_pipeline(cfg, folder, device))


class ClipEngine:
    """Clips go to runs/<name>/clips, named by what decides them."""

    batch = BATCH

    def __init__(self, cfg: Config, pipeline: Pipeline):
        self.cfg, self.pipeline = cfg, pipeline
        sampler = dataclasses.asdict(pipeline.sampler)
        attention = {} if cfg.dsv is None else {"attention": "DSV"}
        shape = {"frames": pipeline.count, "sizes": [list(size) for size in cfg.sizes]}
        self.facts: Mapping[str, Any] = {
            "engine": "diffusion",
            **sampler,
            "negative": pipeline.negative,
            **shape,
            **attention,
        }

    def complete(self, questions: Sequence[Question], budget: Budget) -> Iterator[tuple[Question, list[Answer]]]:
        """Each question as soon as its clips are there, since a large one takes minutes. Only the request is looked at:
        a clip is made of its first frame, its prompt and its motion score."""
        if not isinstance(budget, ClipBudget):
            raise EngineError("a video model answers with clips: the task's budget must be a ClipBudget")
        rows = [(question, seed) for question in questions for seed in _seeds(budget)]
        requests = [self._request(_prompt(question), seed) for question, seed in rows]
        if cut := self.pipeline.encoder.cut([_prompt(question).text for question in questions]):
            log.warning("of %d prompts, %s", len(questions), cut)
        answers: dict[int, list[Answer]] = {}
        for places in together([request.image.shape for request in requests], self.pipeline.count):
            clips = self._clips([rows[place] for place in places], [requests[place] for place in places])
            for place, clip in zip(places, clips, strict=True):
                question = rows[place][0]
                given = answers.setdefault(question.problem.index, [])
                file = self._write(clip, _prompt(question).lossless)
                given.append(Answer(problem=question.problem, sample=len(given), finish="stop", media=(file,)))
                if len(given) == budget.n:
                    yield question, given

    def clips(self, prompts: Sequence[ClipPrompt], seeds: Sequence[int]) -> NDArray[np.uint8]:
        """[B, F, Y, X, RGB] of prompts whose pictures have one size, all at once."""
        return self.pipeline.clips([self._request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])

    def _request(self, prompt: ClipPrompt, seed: int) -> ClipRequest:
        """The first frame in the config's nearest size, whatever is cut off."""
        [picture] = prompt.pictures
        image = fitted(self.cfg.sizes, np.asarray(picture.image()), repr(picture), crop=True)
        return ClipRequest(prompt.text, image, prompt.motion, derive_seed(prompt.key, seed))

    def _clips(self, rows: Sequence[tuple[Question, int]], requests: Sequence[ClipRequest]) -> NDArray[np.uint8]:
        return self.pipeline.clips(requests)

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        raise EngineError("a video model gives no log-likelihoods of texts: leave this task out")

    def _write(self, clip: NDArray[np.uint8], lossless: bool) -> Path:
        return self._keep(apng(clip), ".png") if lossless else self._keep(mp4(clip, self.pipeline.fps), ".mp4")

    def _keep(self, content: bytes, ending: str) -> Path:
        """Write a clip, named by its content; returns its path from the repository."""
        file = self.cfg.folder / "clips" / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
        if not file.is_file():
            jsonl.write_bytes_atomic(file, content)
        return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


class Ceiling(ClipEngine):
    """The best that the codec allows: true clips, encoded and decoded. It alone looks at the gold."""

    def __init__(self, cfg: Config, pipeline: Pipeline):
        super().__init__(cfg, pipeline)
        self.facts = {"engine": "codec"}

    def _clips(self, rows: Sequence[tuple[Question, int]], requests: Sequence[ClipRequest]) -> NDArray[np.uint8]:
        video = as_video(np.stack([true_frames(self.cfg, question.problem) for question, _ in rows]))
        return frames(self.pipeline.codec.decode(self.pipeline.codec.encode(video)))


def together(shapes: Sequence[tuple[int, ...]], count: int) -> Iterator[list[int]]:
    """Places of images of one shape [Y, X, RGB], as many as are sampled together; ``count``: frames of a clip."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for place, shape in enumerate(shapes):
        by_shape.setdefault(shape, []).append(place)
    for (height, width, _), alike in by_shape.items():
        most = max(1, MAX_PIXELS_AT_ONCE // (count * height * width))
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _prompt(question: Question) -> ClipPrompt:
    if not isinstance(question.request, ClipPrompt):
        raise EngineError(
            f"question {question.problem.index} asks for no clip: a video model answers nothing else: leave "
            "this task out"
        )
    return question.request


def _seeds(budget: ClipBudget) -> list[int]:
    return [budget.seed * 1000 + n for n in range(budget.n)]


def apng(clip: NDArray[np.uint8]) -> bytes:
    """An animated PNG, without loss."""
    images = [Image.fromarray(frame) for frame in clip]
    out = io.BytesIO()
    images[0].save(out, "PNG", save_all=True, append_images=images[1:], duration=120, loop=0)
    return out.getvalue()
