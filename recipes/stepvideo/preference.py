"""Video-DPO's pairs (arXiv 2502.10248 §8): clips that a model makes of one condition, the one more as asked and the one
less. The paper lets people choose; of drawn clips the checker can."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import track
from torch import Tensor, nn

from data.drawn import moving
from data.drawn.moving import Clip, Moving
from recipes.stepvideo.config import Config, Preference
from recipes.stepvideo.generation.engine import BATCH, open_pipeline
from recipes.stepvideo.generation.pipeline import ClipRequest, Pipeline
from recipes.stepvideo.model import clips_of, frames, made_by, make_dit, pixels, vae_folder
from recipes.stepvideo.tasks import judge
from stepstack.config import ROOT, ConfigError
from stepstack.core import hf
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.diffusion.latents import INDEX, Latents, LatentWriter
from stepstack.diffusion.preference import video_loss, video_pairs
from stepstack.diffusion.sample import derive_seed
from stepstack.loops import preference
from stepstack.parallel.ulysses import context_parallel
from stepstack.tuning.config import PreferenceLoss

QualityKey = tuple[float, float]  # colour kept, minus the track's error


def make_reference(run: Run[Config], videos: Latents) -> nn.Module:
    """The model that training begins from, frozen. ConfigError for data without losers."""
    if videos[0].loser_FCYX is None:
        raise ConfigError(f"{videos.folder} has no losers: preference needs rows with a key loser (stepstack data)")
    build = partial(make_dit, run.config.model, videos)
    return run.frozen(run.load(build, build))


def prefer(
    run: Run[Config],
    cfg: Preference,
    dit: Trainable,
    videos: Latents,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
) -> None:
    """Video-DPO on pairs, by the loop of all preference tuning."""
    loss = video_loss(PreferenceLoss(beta=cfg.beta), make_reference(run, videos))
    preference.train(
        run,
        policy=dit,
        minibatch=lambda step: video_pairs(run, run.config, videos, step),
        loss=lambda batch: loss,
        steps=run.config.steps,
        evaluate=evaluate,
        together=context_parallel(hf.pretrained(dit.module), run.config.context),
    )


def load_pairs(run: Run[Config], cfg: Preference) -> Latents:
    """Pairs of drawn data, made once a run by its first process, in runs/<name>/latents."""
    folder = run.dir / "latents"
    if run.is_main and not (folder / INDEX).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        pipeline = open_pipeline(run.config, ROOT / str(run.config.model.start), run.device)
        write(folder, run.config, cfg, pipeline, made_by(run.config, vae_folder(run)))
    run.accelerator.wait_for_everyone()
    return Latents(folder, made_by(run.config, vae_folder(run)))


def write(folder: Path, config: Config, cfg: Preference, pipeline: Pipeline, made: Mapping[str, Any]) -> None:
    """ConfigError where there are fewer pairs than a step takes."""
    data = config.data
    assert isinstance(data, Moving)
    conditions = moving.clips(data, "train")[: cfg.conditions]
    rows = clips_of(config, "train")[: cfg.conditions]
    writer, each, pairs = LatentWriter(folder, pipeline.encoder, made), max(1, BATCH // cfg.clips), 0
    for start in track(range(0, len(conditions), each), "making pairs", transient=True):
        batch = conditions[start : start + each]
        latents, marks = candidates(batch, config.seed, cfg.clips, data, pipeline)
        images = pipeline.codec.encode(pixels(rows[start : start + each])[:, :1])[:, 0].to(pipeline.device)
        for row, clip in enumerate(batch):
            if pair := choose(marks[row], cfg.margin):
                best, worst = (latents[row * cfg.clips + n] for n in pair)
                writer.add(best, images[row], clip.score, clip.prompt, worst)
                pairs += 1
    if pairs < config.batch:
        raise ConfigError(
            f"{len(conditions)} conditions gave {pairs} pairs, fewer than batch={config.batch}: lower "
            "preference.margin, or ask for more conditions or clips"
        )
    writer.close()


def candidates(
    conditions: Sequence[Clip], seed: int, count: int, data: Moving, pipeline: Pipeline
) -> tuple[Tensor, list[list[QualityKey]]]:
    """(latents [asked x count, F, C, Y, X], marks of each condition's clips)."""
    asks = [
        ClipRequest(clip.prompt, moving.render(clip, data)[0], clip.score, derive_seed("pairs", clip.write(), seed, n))
        for clip in conditions
        for n in range(count)
    ]
    *_, latents = pipeline.steps(asks)
    videos = frames(pipeline.codec.decode(latents))
    parts = [judge(video, conditions[i // count], data) for i, video in enumerate(videos)]
    marks = [(part["colour"], -part["error"]) for part in parts]
    return latents, [marks[start : start + count] for start in range(0, len(marks), count)]


def choose(marks: Sequence[QualityKey], margin: float) -> tuple[int, int] | None:
    """(best, worst) of clips, or None where they are too much alike. The colour counts before the track."""
    order = sorted(range(len(marks)), key=lambda n: marks[n])
    best, worst = order[-1], order[0]
    apart = marks[best][0] > marks[worst][0] or marks[best][1] - marks[worst][1] >= margin
    return (best, worst) if apart else None
