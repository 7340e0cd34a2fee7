"""A trained model behind the harness: a request's answer is the file of a clip, an animated PNG of a drawn form, an MP4
of a picture."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from data.media.frames import mp4
from recipes.stepvideo.config import Config, TinyVaeConfig
from recipes.stepvideo.dsv import exported, restore
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline, fitted, rate
from recipes.stepvideo.model import codec_of, digest, encoder_of, frames, pixels
from stepstack.config import ROOT, ConfigError, to_dict
from stepstack.diffusion.sample import seed_of
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import EngineError, Sampling
from stepstack.harness.answers import Completion
from stepstack.harness.engine import Question
from stepstack.models.video.dit import VideoDiT
from stepstack.models.video.dsv.handle import Dsv
from stepstack.models.video.vae import VideoCodec
from stepstack.report import jsonl

BATCH = 32
TOGETHER = 1 << 19  # pixels, over all frames, of clips that are sampled together; a larger clip is alone
KIT = "pipeline.json"


@dataclass(frozen=True, slots=True)
class PipelineFiles:
    """What a model folder holds beside the DiT: the tiny VAE, and what else decides its clips."""

    cfg: Config
    vae: Path
    dsv: Dsv | None

    def save_pretrained(self, folder: Path) -> None:
        facts: dict[str, Any] = encoders(self.cfg)
        facts |= exported(self.dsv)
        if isinstance(self.cfg.vae, TinyVaeConfig):
            shutil.copytree(self.vae, folder / "vae")
            facts["vae_sha256"] = digest(self.vae)
        jsonl.write_json_atomic(folder / KIT, facts)


def encoders(cfg: Config) -> dict[str, Any]:
    """What latents and prompts a model knows. Of a tiny VAE how it was trained says nothing: it is in the folder."""
    tiny = isinstance(cfg.vae, TinyVaeConfig)
    return {"text": to_dict(cfg.text), "vae": {"type": cfg.vae.type} if tiny else to_dict(cfg.vae)}


def open_pipeline(cfg: Config, folder: Path, device: torch.device) -> Pipeline:
    """Of a model folder. With DSV where the config has it: without, a model that was trained with it attends densely.
    ConfigError where it is none, or was made with other encoders than the config's."""
    if not (folder / KIT).is_file():
        raise ConfigError(f"{folder} holds no {KIT}: it is no folder that a run of this recipe exported")
    facts = json.loads((folder / KIT).read_text())
    for key, now in encoders(cfg).items():
        if facts[key] != now:
            raise ConfigError(f"{folder / KIT} was made with {key}={facts[key]}, the config has {now}")
    dit = VideoDiT.from_pretrained(folder).to(device).eval()
    if cfg.dsv is not None:
        restore(dit, cfg.dsv, folder, facts)
    return pipeline_of(cfg, dit, codec_of(cfg.vae, folder / "vae"), device)


def pipeline_of(cfg: Config, dit: torch.nn.Module, codec: VideoCodec, device: torch.device) -> Pipeline:
    return Pipeline(dit, codec, encoder_of(cfg.text), cfg.sampler, cfg.frames, cfg.negative, device)


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
            "engine": "diffusion", **sampler, "negative": pipeline.negative, **shape, **attention
        }  # fmt: skip

    def complete(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        """``sampling`` has a say in the number of clips and in their seeds. A request with a picture is answered for
        itself, any other is of a drawn form."""
        yield from self._of_pictures([q for q in questions if isinstance(q.request, Pictured)], sampling)
        if forms := [q for q in questions if not isinstance(q.request, Pictured)]:
            yield from self._of_forms(forms, sampling)

    def _of_forms(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        rows = [(question, seed) for question in questions for seed in _seeds(sampling)]
        made = self.clips([Clip.read(q.problem.gold) for q, _ in rows], [seed for _, seed in rows])
        files = [self._keep(apng(clip), ".png") for clip in made]
        for at, question in enumerate(questions):
            mine = files[at * sampling.n : (at + 1) * sampling.n]
            yield question, [Completion(file, None, 0, "stop") for file in mine]

    def _of_pictures(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        """Each question as soon as its clips are there: a large one takes minutes."""
        rows = [(question, self._ask(question, seed)) for question in questions for seed in _seeds(sampling)]
        made: dict[int, list[Completion]] = {}
        for some in together(rows, self.pipeline.count):
            clips = self.pipeline.clips([ask for _, ask in some])
            for (question, _), clip in zip(some, clips, strict=True):
                file = self._keep(mp4(clip, rate(len(clip))), ".mp4")
                done = made.setdefault(question.problem.index, [])
                done.append(Completion(file, None, 0, "stop"))
                if len(done) == sampling.n:
                    yield question, done

    def _ask(self, question: Question, seed: int) -> ClipRequest:
        """The first frame in the config's nearest size, whatever is cut off."""
        assert isinstance(question.request, Pictured)
        problem, picture = question.problem, question.request.pictures[0]
        image = fitted(self.cfg, np.asarray(picture.image()), repr(picture), crop=True)
        return ClipRequest(question.request.text, image, problem.meta["motion"], seed_of(problem.gold, seed))

    def clips(self, asked: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
        data = drawn(self.cfg)
        return self.pipeline.clips(
            [
                ClipRequest(clip.prompt, moving.render(clip, data)[0], clip.score, seed_of(clip.write(), seed))
                for clip, seed in zip(asked, seeds, strict=True)
            ]
        )

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        raise EngineError("a video model gives no log-likelihoods of texts")

    def _keep(self, content: bytes, ending: str) -> str:
        """The file's path from the repository, by its content."""
        file = self.cfg.folder / "clips" / f"{hashlib.sha256(content).hexdigest()[:16]}{ending}"
        if not file.is_file():
            jsonl.write_bytes_atomic(file, content)
        return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


class Ceiling(ClipEngine):
    """The best that the codec allows: true clips, encoded and decoded."""

    def __init__(self, cfg: Config, pipeline: Pipeline):
        super().__init__(cfg, pipeline)
        self.facts = {"engine": "codec"}

    def clips(self, asked: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
        video = pixels(list(asked), drawn(self.cfg)).to(self.pipeline.device)
        return frames(self.pipeline.codec.decode(self.pipeline.codec.encode(video)))


def together(rows: Sequence[tuple[Question, ClipRequest]], count: int) -> Iterator[list[tuple[Question, ClipRequest]]]:
    """Rows whose images have one size, as many as are sampled together; ``count``: frames of a clip."""
    by_shape: dict[tuple[int, ...], list[tuple[Question, ClipRequest]]] = {}
    for row in rows:
        by_shape.setdefault(row[1].image.shape, []).append(row)
    for (height, width, _), alike in by_shape.items():
        most = max(1, TOGETHER // (count * height * width))
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _seeds(sampling: Sampling) -> list[int]:
    return [sampling.seed * 1000 + n for n in range(sampling.n)]


def drawn(cfg: Config) -> Moving:
    if not isinstance(cfg.data, Moving):
        raise ConfigError("these tasks are of drawn clips: data.type must be moving")
    return cfg.data


def apng(clip: NDArray[np.uint8]) -> bytes:
    """An animated PNG, without loss."""
    images = [Image.fromarray(frame) for frame in clip]
    out = io.BytesIO()
    images[0].save(out, "PNG", save_all=True, append_images=images[1:], duration=120, loop=0)
    return out.getvalue()
