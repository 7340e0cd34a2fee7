"""Every key of a perception config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from data.drawn.scenes import Objects, Words
from data.media.images import PerceptionTask
from data.prepare.config import IntakeOptions
from stepstack.config import ConfigError, Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.harness.config import TaskData
from stepstack.models.lm.config import Pretrained
from stepstack.rl.config import FileReward, PpoConfig
from stepstack.scoring.vision.spatial import smart_resize


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig(Strict):
    """``style``: qwen (its chat, the published question) or short (a few tokens, for a tiny model). ``thinking`` asks
    for <think> and <answer>, which the paper found to hurt. Longer prompts than ``max_tokens`` are left out."""

    style: Literal["qwen", "short"] = "qwen"
    thinking: bool = False
    max_tokens: int = 2048


# Sum of the parts, as the paper adds its rewards; ``exact`` of counting is ours and is left out unless asked for.
WEIGHTS: dict[str, dict[str, float]] = {
    "grounding": {"format": 1.0, "iou": 1.0},
    "counting": {"format": 1.0, "points": 1.0, "exact": 0.0},
    "ocr": {"format": 1.0, "similarity": 1.0},
    "detection": {"format": 1.0, "location": 1.0, "cls": 1.0, "count_f1": 1.0, "missing": 1.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Strict):
    """``form`` and ``space``: how the model writes boxes. ``weights`` change those of single parts (0 leaves one out).
    ``squared``: IoU squared, as Perception-R1's grounding. ``matching`` off pairs boxes by their order. ``over``: what
    detection's ``location`` and ``cls`` are means over; all (of ours) does not pay for leaving boxes out."""

    type: Literal["parts"] = "parts"
    form: Literal["tokens", "json", "plain"] = "tokens"
    space: Literal["pixels", "model", "thousand", "unit"] = "thousand"
    weights: dict[str, float] = field(default_factory=dict)
    squared: bool = True
    matching: bool = True
    over: Literal["matched", "all"] = "matched"


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFileReward(FileReward):
    """A rule of your own in a file; the published figures are still computed, so it says how the model writes boxes."""

    form: Literal["tokens", "json", "plain"] = "tokens"
    space: Literal["pixels", "model", "thousand", "unit"] = "thousand"


def weights_of(task: str, cfg: RewardConfig) -> dict[str, float]:
    if unknown := cfg.weights.keys() - WEIGHTS[task].keys():
        raise ConfigError(f"reward.weights: {sorted(unknown)} are no parts of {task}: {sorted(WEIGHTS[task])}")
    return WEIGHTS[task] | cfg.weights


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelNoise(Strict):
    """How demonstrations err: edges off by up to ``jitter`` pixels; chance of an object being forgotten, of being named
    twice, of a wrong label; of a letter being mistaken or left out."""

    jitter: int = 0
    forgotten: float = 0.0
    twice: float = 0.0
    label: float = 0.0
    letter: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVl(Strict):
    """The model's shape, and its SFT on scenes of the training split."""

    type: Literal["tiny"] = "tiny"
    hidden: int = 96
    layers: int = 3
    intermediate: int = 256
    tower: int = 64
    depth: int = 2
    theta: float = 10.0
    steps: int = 800
    batch: int = 32
    optim: Optim = Muon(lr=0.02, adamw_lr=2e-3, schedule=Schedule(kind="linear", warmup=10))
    careless: LabelNoise = LabelNoise()

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Scenes are not resized."""
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedVl(Pretrained):
    """A vision-language model by hub name or local path. Pictures are resized to between ``min_pixels`` and
    ``max_pixels``; ``freeze`` tower trains the language model alone (adapters: actor.lora)."""

    min_pixels: int = 3136
    max_pixels: int = 1_000_000
    freeze: Literal["none", "tower"] = "none"

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of a picture as the model sees it."""
        return smart_resize(*size, min_pixels=self.min_pixels, max_pixels=self.max_pixels)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPictures(Strict):
    """A folder that ``make data`` prepares from ``source`` (training rows) and ``evals`` (``name=source``); ``select``
    and ``test`` name evals. ``images``: where the folders of the pictures are now, if not where they were."""

    type: Literal["prepared"] = "prepared"
    set: Literal["refcoco", "pixmo_count", "page_ocr", "coco"]
    folder: str
    source: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()
    options: IntakeOptions = IntakeOptions()
    images: tuple[str, ...] = ()
    select: str = "val"
    test: str = "test"
    limit: int | None = None  # the first so many of each split, for a trial


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PpoConfig):
    """What Perception-R1 adds to GRPO: a task, a model with eyes, pictures, a prompt and a rule."""

    task: PerceptionTask
    model: Annotated[TinyVl | PretrainedVl, Field(discriminator="type")]
    data: Annotated[Objects | Words | PreparedPictures | TaskData, Field(discriminator="type")]
    prompt: PromptConfig = PromptConfig()
    reward: Annotated[RewardConfig | BoxFileReward, Field(discriminator="type")] = RewardConfig()

    def __post_init__(self) -> None:
        PpoConfig.__post_init__(self)
        if isinstance(self.reward, RewardConfig):
            weights_of(self.task, self.reward)
        if self.uses_critic:
            raise ValueError("perception has no critic: set advantage.type to grpo or rloo")
        if self.layout.pack:
            raise ValueError("rows with pictures are not packed: set layout.pack=false")
