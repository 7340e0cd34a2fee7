"""Drawn clips of one moving form, whose motion is known exactly, for the tiny video recipe. No torch.

The prompt gives the form and its direction ("a red circle moves right"), the motion score its speed. The first frame
gives neither: start, radius and background are drawn independently of direction and score.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter

from data.drawn.scenes import RGB
from data.drawn.splits import Split, split_of
from stepstack.config import ConfigError, Strict

Colour = Literal["red", "green", "blue", "yellow"]
Form = Literal["circle", "square"]
Direction = Literal["right", "left", "down", "up"]

# x, y; y goes down
STEP: dict[str, tuple[int, int]] = {
    "right": (1, 0),
    "left": (-1, 0),
    "down": (0, 1),
    "up": (0, -1),
}
SPEED = 0.1  # pixels per frame for a motion score of 1
MAX_FAILED_DRAWS = 20_000  # draws without a new clip, after which there are no more
HELD_OUT_PROMPT_MODULUS = 8  # one prompt in this many is held out of training


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip(Strict):
    """All that ``render`` draws."""

    form: Form
    """Form that moves."""
    colour: Colour
    """Colour of the form."""
    direction: Direction
    """Direction in which the form moves."""
    score: float
    """Motion score; 1 is a tenth of a pixel a frame."""
    start: tuple[float, float]
    """Centre (x, y) in the first frame, pixels from the upper left corner, of which the first pixel spans 0 to 1."""
    radius: float
    """Radius of the form in pixels."""
    grey: int
    """Grey of the background, 0 to 255."""

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.form} moves {self.direction}"

    def track(self, frames: int) -> NDArray[np.float64]:
        """Centres [frames, (x, y)] in pixels."""
        step = SPEED * self.score * np.array(STEP[self.direction], float)
        return np.array(self.start, float) + np.arange(frames)[:, None] * step

    def write(self) -> str:
        """Clip as JSON, its form as a gold answer."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def read(cls, text: str) -> Clip:
        return TypeAdapter(cls).validate_json(text, strict=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Moving(Strict):
    """How clips are drawn. One prompt in eight is in ``select`` and ``test`` only."""

    type: Literal["moving"] = "moving"
    """Choice of the data: drawn clips."""
    frames: PositiveInt = 9
    """Frames of a clip."""
    size: PositiveInt = 32
    """Width and height of a frame in pixels."""
    scores: Annotated[tuple[float, ...], Field(min_length=1)] = (0.0, 5.0, 10.0)
    """Motion scores that clips have; 0 stands still, 1 is a tenth of a pixel a frame."""
    radius: tuple[float, float] = (3.0, 5.0)
    """Least and greatest radius of the form in pixels."""
    grey: tuple[NonNegativeInt, NonNegativeInt] = (40, 215)
    """Least and greatest grey of the background, within 0 to 255."""
    train: NonNegativeInt = 6000
    """Distinct clips of the training set."""
    select: PositiveInt = 32
    """Distinct clips that are watched during training; disjoint from the other sets."""
    test: PositiveInt = 128
    """Distinct clips that are reported; disjoint from the other sets."""
    seed: NonNegativeInt = 0
    """Seed of the drawing; which clips are held out does not depend on it."""

    def __post_init__(self) -> None:
        if min(self.scores) < 0 or self.radius[0] <= 0 or self.radius[0] > self.radius[1]:
            raise ValueError(f"scores={self.scores} must not be negative, radius={self.radius} must rise from above 0")
        if not 0 <= self.grey[0] <= self.grey[1] <= 255:
            raise ValueError(f"grey={self.grey} must rise within 0 to 255")
        if self.start_range(self.radius[1]) < 0:
            raise ValueError(
                f"size={self.size}: a form of radius {self.radius[1]} that moves {self.reach:g} pixels leaves the "
                "frame; take a larger size, fewer frames or lower scores"
            )

    @property
    def reach(self) -> float:
        """Pixels that the fastest form moves in a clip."""
        return SPEED * max(self.scores) * (self.frames - 1)

    def start_range(self, radius: float) -> float:
        """Largest distance of the start from the middle, in x and in y, for which the form stays in the frame."""
        return self.size / 2 - radius - self.reach


def clips(cfg: Moving, split: Split) -> list[Clip]:
    """Distinct clips of a split, a pure function of the config. ConfigError where there are not that many."""
    wanted = {"train": cfg.train, "select": cfg.select, "test": cfg.test}[split]
    rng = random.Random(f"{cfg.seed}-{split}")
    distinct: dict[Clip, None] = {}
    in_vain = 0
    while len(distinct) < wanted:
        clip = draw(rng, cfg)
        if (
            split_of(clip.write()) == split
            and clip not in distinct
            and not (split == "train" and is_held_out_prompt(clip.prompt))
        ):
            distinct[clip], in_vain = None, 0
        elif (in_vain := in_vain + 1) == MAX_FAILED_DRAWS:
            raise ConfigError(f"data.{split}={wanted}: only {len(distinct)} such clips were found; ask for fewer")
    return list(distinct)


def is_held_out_prompt(prompt: str) -> bool:
    """Whether no training clip has this prompt."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_PROMPT_MODULUS == 0


def draw(rng: random.Random, cfg: Moving) -> Clip:
    """Random clip. The content of the first frame is drawn before, and apart from, direction and score."""
    radius = round(rng.uniform(*cfg.radius), 2)
    start_range, middle = cfg.start_range(radius), cfg.size / 2
    start = (
        round(middle + rng.uniform(-start_range, start_range), 2),
        round(middle + rng.uniform(-start_range, start_range), 2),
    )
    form, colour = rng.choice(get_args(Form)), rng.choice(get_args(Colour))
    grey = rng.randint(*cfg.grey)
    direction, score = rng.choice(get_args(Direction)), rng.choice(cfg.scores)
    return Clip(form=form, colour=colour, direction=direction, score=score, start=start, radius=radius, grey=grey)


def render(clip: Clip, cfg: Moving) -> NDArray[np.uint8]:
    """Frames of a clip [frames, size, size, RGB]. A pixel on the edge is mixed by how much of it the form covers."""
    places = np.arange(cfg.size) + 0.5
    track = clip.track(cfg.frames)
    dx = places[None, None, :] - track[:, 0, None, None]
    dy = places[None, :, None] - track[:, 1, None, None]
    covered = _disc(dx, dy, clip.radius) if clip.form == "circle" else _box(dx, clip.radius) * _box(dy, clip.radius)
    ink = np.array(RGB[clip.colour], float)
    return np.round(clip.grey + covered[..., None] * (ink - clip.grey)).astype(np.uint8)


def _box(distance: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Covered part of a pixel's unit length, exactly."""
    return np.clip(np.minimum(distance + 0.5, radius) - np.maximum(distance - 0.5, -radius), 0, 1)


def _disc(dx: NDArray[np.float64], dy: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Covered part of a pixel, where the edge is taken as straight across it."""
    return np.clip(radius - np.hypot(dx, dy) + 0.5, 0, 1)


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """First frame of a drawn clip, as a picture that is drawn when its pixels are asked for."""

    clip: Clip
    data: Moving

    def image(self) -> Image.Image:
        return Image.fromarray(render(self.clip, self.data)[0])


def with_other_directions(clips: Sequence[Clip], seed: int = 0) -> list[Clip]:
    """Clips with the same first frames whose prompts have another direction."""
    rng = random.Random(f"swapped-{seed}")
    return [
        Clip(**(asdict(clip) | {"direction": rng.choice([way for way in STEP if way != clip.direction])}))
        for clip in clips
    ]


def with_each_score(clips: Sequence[Clip], scores: Sequence[float]) -> list[Clip]:
    """Clips with the same first frames and prompts at every motion score."""
    return [Clip(**(asdict(clip) | {"score": score})) for clip in clips for score in scores]
