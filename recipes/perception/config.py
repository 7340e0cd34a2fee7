"""Every key of a perception config, on one page. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from data.drawn.scenes import Objects, Words
from data.drawn.splits import SPLITS
from data.media.images import PerceptionTask
from data.prepare.config import IntakeOptions
from data.prepare.manifest import MANIFEST
from stepstack.bounds import Fraction, Magnitude, Text, Weight, WidthOf4Heads
from stepstack.config import ROOT, ConfigError, Footprint, Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.harness.config import TaskData
from stepstack.models.vision.config import PretrainedVl
from stepstack.planning.pipeline.training import PipelineConfig
from stepstack.rl.config import FileReward, PpoConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig(Strict):
    """How a question is asked."""

    style: Literal["qwen", "short"] = "qwen"
    """Form of the prompt: qwen (its chat, the published question) or short (a few tokens, for a tiny model)."""
    thinking: bool = False
    """Whether <think> and <answer> are asked for, which the paper found to hurt."""
    max_tokens: PositiveInt = 2048
    """Most tokens of a prompt, those of the picture counted; longer ones are left out."""


# Sum of the parts, as the paper adds its rewards; ``exact`` of counting is ours and is left out unless asked for.
WEIGHTS: dict[str, dict[str, float]] = {
    "grounding": {"format": 1.0, "iou": 1.0},
    "counting": {"format": 1.0, "points": 1.0, "exact": 0.0},
    "ocr": {"format": 1.0, "similarity": 1.0},
    "detection": {"format": 1.0, "location": 1.0, "cls": 1.0, "count_f1": 1.0, "missing": 1.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Strict):
    """How boxes are written, and what is paid for them."""

    type: Literal["parts"] = "parts"
    """Choice of the reward: the sum of the task's parts."""
    form: Literal["tokens", "json", "plain"] = "tokens"
    """Form in which the model writes boxes and points."""
    space: Literal["pixels", "model", "thousand", "unit"] = "thousand"
    """Coordinates in which the model writes: pixels of the picture, pixels as the model sees it, thousandths, or
    fractions of its sides."""
    weights: dict[str, Weight] = field(default_factory=dict)
    """Weights of single parts of the reward that differ from the task's own (``WEIGHTS``); 0 leaves a part out."""
    squared: bool = True
    """Whether grounding pays the IoU squared, as Perception-R1 does."""
    matching: bool = True
    """Whether boxes and points are matched to the gold ones; without it they are paired by their order."""
    over: Literal["matched", "all"] = "matched"
    """Boxes that detection's ``location`` and ``cls`` are means over: matched ones, as published, or all (ours), which
    does not pay for leaving boxes out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxFileReward(FileReward):
    """A rule of your own in a file; the published figures are still computed, so it says how the model writes boxes."""

    form: Literal["tokens", "json", "plain"] = "tokens"
    """Form in which the model writes boxes and points."""
    space: Literal["pixels", "model", "thousand", "unit"] = "thousand"
    """Coordinates in which the model writes, as in RewardConfig."""


def weights_of(task: str, cfg: RewardConfig) -> dict[str, float]:
    if unknown := cfg.weights.keys() - WEIGHTS[task].keys():
        raise ConfigError(f"reward.weights: {sorted(unknown)} are no parts of {task}: {sorted(WEIGHTS[task])}")
    return WEIGHTS[task] | cfg.weights


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelNoise(Strict):
    """How demonstrations err."""

    jitter: NonNegativeInt = 0
    """Pixels by which edges may be off."""
    dropped: Fraction = 0.0
    """Chance of an object being forgotten."""
    duplicated: Fraction = 0.0
    """Chance of an object being named twice."""
    label: Fraction = 0.0
    """Chance of a wrong label."""
    letter: Fraction = 0.0
    """Chance of a letter being mistaken or left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVl(Strict):
    """The model's shape, and its SFT on scenes of the training split."""

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny one, made on the spot."""
    hidden: WidthOf4Heads = 96
    """Width of the language model."""
    layers: PositiveInt = 3
    """Layers of the language model."""
    intermediate: PositiveInt = 256
    """Width of the language model's MLPs."""
    tower: WidthOf4Heads = 64
    """Width of the vision tower."""
    depth: PositiveInt = 2
    """Blocks of the vision tower."""
    theta: Magnitude = 10.0
    """Base of RoPE's angles; small, because rows and columns of a few patches must differ."""
    steps: PositiveInt = 800
    """Updates of the SFT."""
    batch: PositiveInt = 32
    """Scenes of an update."""
    optim: Optim = Muon(lr=0.02, adamw_lr=2e-3, schedule=Schedule(kind="linear", warmup=10))
    """Optimizer of the SFT."""
    label_noise: LabelNoise = LabelNoise()
    """Errors of the demonstrations."""
    pipeline: PipelineConfig | None = None
    """Cut of the model over the ranks of a pipeline in the SFT; null: every process has all of it."""

    def model_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Scenes are not resized."""
        return size


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedPictures(Strict):
    """A folder of rows with pictures that ``make data`` prepares."""

    type: Literal["prepared"] = "prepared"
    """Choice of the data: a prepared folder."""
    set: Literal["refcoco", "pixmo_count", "page_ocr", "coco"]
    """Published form of the rows, which has a module in data/sets."""
    folder: Text
    """Prepared folder, from the repository."""
    source: tuple[str, ...] = ()
    """Training rows that ``make data`` reads."""
    evals: tuple[str, ...] = ()
    """Eval rows that ``make data`` reads, each written ``name=source``; they are kept out of training."""
    options: IntakeOptions = IntakeOptions()
    """How ``make data`` reads the rows."""
    images: tuple[str, ...] = ()
    """Folders where the pictures are now; empty: where they were when the data was prepared."""
    select: str = "val"
    """Name of the eval that is watched during training."""
    test: str = "test"
    """Name of the eval that is reported."""
    limit: PositiveInt | None = None
    """Number of rows of each split, the first ones, for a trial; null: all."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PpoConfig):
    """Config of a Perception-R1 run: GRPO's keys, a task, a model with eyes, pictures, a prompt and a rule."""

    task: PerceptionTask
    """Question about a picture, which decides the rule of the reward."""
    model: Annotated[TinyVl | PretrainedVl, Field(discriminator="type")]
    """Model that the run begins with."""
    data: Annotated[Objects | Words | PreparedPictures | TaskData, Field(discriminator="type")]
    """Pictures with their questions and golds."""
    prompt: PromptConfig = PromptConfig()
    """How a question is asked."""
    reward: Annotated[RewardConfig | BoxFileReward, Field(discriminator="type")] = RewardConfig()
    """How an answer is written and paid."""

    def __post_init__(self) -> None:
        PpoConfig.__post_init__(self)
        if isinstance(self.reward, RewardConfig):
            weights_of(self.task, self.reward)
        if self.uses_critic:
            raise ValueError("perception has no critic: set advantage.type to grpo or rloo")

    @property
    def task_names(self) -> tuple[str, ...]:
        """Splits, and the evals of a prepared folder: those that it holds, and those that it will be made of."""
        if not isinstance(self.data, PreparedPictures):
            return SPLITS
        names = {entry.partition("=")[0] for entry in self.data.evals}
        manifest = ROOT / self.data.folder / MANIFEST
        if (
            manifest.is_file()
        ):  # one of another version is refused where data is read: here it must not bar preparing anew
            names |= json.loads(manifest.read_text(encoding="utf-8")).get("evals", {}).keys()
        return (*SPLITS, *(f"{self.data.set}_{name}" for name in sorted(names)))

    def footprint(self, shards: int) -> Footprint | None:
        """A frozen tower is counted as if it were trained."""
        if isinstance(self.model, TinyVl) or self.model.size is None:
            return None
        return self.footprint_of(self.model.size, 2 if self.model.dtype == "bfloat16" else 4, shards)
