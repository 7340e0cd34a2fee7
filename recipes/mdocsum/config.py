"""Every key of an M-DocSum config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import Field, PositiveInt

from data.drawn.papers import Papers
from data.drawn.splits import SPLITS
from stepstack.batching.config import BatchLayout
from stepstack.bounds import Fraction, Magnitude, Text, Weight, WidthOf4Heads
from stepstack.config import Footprint, RunConfig, Strict
from stepstack.core.config import TrainableConfig
from stepstack.generation.config import GeneratorConfig, HfConfig
from stepstack.generation.types import Sampling
from stepstack.harness.config import ServedJudge
from stepstack.models.vision.config import PretrainedVl
from stepstack.planning.pipeline.training import PipelineConfig
from stepstack.rl.config import Grpo, PpoConfig, RolloutConfig
from stepstack.tuning.config import DpoStage, SftStage, tuning_footprint

Instruction = Literal["summary", "section", "captioning", "retrieval", "choice", "key_points", "figures"]
INSTRUCTIONS: tuple[Instruction, ...] = get_args(Instruction)
PairKind = Literal["sampled", "similar", "exchanged", "none", "number", "dropped"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)
Control = Literal["exchanged", "unrelated"]
CONTROLS: tuple[Control, ...] = get_args(Control)


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyVl(Strict):
    """A tiny Qwen2.5-VL, made on the spot, whose tokens are long pieces of papers and summaries."""

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny one, made on the spot."""
    hidden: WidthOf4Heads = 96
    """Width of the language model."""
    layers: PositiveInt = 4
    """Layers of the language model."""
    intermediate: PositiveInt = 256
    """Width of the language model's MLPs."""
    tower: WidthOf4Heads = 64
    """Width of the vision tower."""
    depth: PositiveInt = 2
    """Blocks of the vision tower."""
    theta: Magnitude = 10_000.0
    """Base of RoPE's angles."""
    pieces: Literal["sentences", "words"] = "sentences"
    """Longest pieces of the tokenizer: sentences (and a figure with its caption), so that a reference is looked up in
    one step, or words, so that it takes two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderData(Strict):
    """Papers in the benchmark's form: a folder of markdown files with figures behind idx tags, and references."""

    type: Literal["folder"] = "folder"
    """Choice of the data: papers in a folder (data/sets/mdocsum.py has the form)."""
    folder: Text
    """Folder that holds train, select and test, absolute or from the repository."""
    limit: PositiveInt | None = None
    """Number of papers of each split, the first ones, for a trial; null: all."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig(Strict):
    """How a paper and an instruction are put."""

    style: Literal["qwen", "short"] = "qwen"
    """Form of the prompt: qwen (its chat, an instruction in words) or short (a few tokens, for a tiny model)."""
    listing: bool = False
    """Whether an answer begins with the model's own list of figures, before the published form."""
    max_tokens: PositiveInt = 24_576
    """Most tokens of a prompt, those of the figures counted; papers that are longer are left out, never cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelNoise(Strict):
    """How references err."""

    first: Fraction = 0.0
    """Chance that a paragraph with a figure names the paper's first figure, whatever its text says."""
    random: Fraction = 0.0
    """Chance that a paragraph with a figure names any other figure of the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sft(SftStage):
    """Instruction tuning: the first stage."""

    mix: dict[Instruction, Weight] = field(default_factory=lambda: {"summary": 1.0})
    """Weights of the instructions that rows are drawn from: whole summary, one section, captioning by idx, retrieval of
    the figure of a description, choice of a paragraph's idx or None, key points, and the list of all figures."""
    figures_first: Fraction = 0.0
    """Share of the updates, the first ones, that are about listing figures alone."""
    label_noise: LabelNoise = LabelNoise()
    """Errors of the references that are trained on."""
    pipeline: PipelineConfig | None = None
    """Cut of the model over the ranks of a pipeline; null: every process has all of it, or a shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig(Strict):
    """How preference pairs are made."""

    kinds: dict[PairKind, Weight] = field(default_factory=lambda: {"sampled": 1.0})
    """Weights of the kinds: sampled (the model's own samples, best against worst) is made wherever they differ; of the
    others, which spoil the reference (a similar figure, two figures exchanged, None for a figure and back, a wrong
    number, a dropped key point), each paper gets one by these weights."""
    papers: PositiveInt | None = None
    """Number of training papers that pairs are made of, the first ones; null: all."""
    sampling: Sampling = Sampling(n=4, temperature=1.0, max_tokens=64)
    """How the model's own samples are drawn."""
    margin: Fraction = 0.05
    """Least difference of two samples' total for them to be a pair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dpo(DpoStage):
    """Preference tuning, the paper's second stage."""

    type: Literal["dpo"] = "dpo"
    """Choice of the second stage: DPO."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoreSft(SftStage):
    """SFT on better answers, which stands beside DPO."""

    type: Literal["sft"] = "sft"
    """Choice of the second stage: SFT."""
    answers: Literal["gold", "chosen"] = "gold"
    """Answers that are trained on: gold references, or the chosen samples of the pairs that DPO would have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpoStage(Strict):
    """GRPO on the same score, which stands beside DPO."""

    type: Literal["grpo"] = "grpo"
    """Choice of the second stage: GRPO."""
    steps: PositiveInt
    """Training steps: each samples summaries, scores them and updates the model."""
    prompts: PositiveInt = 8
    """Papers of a step over all processes."""
    sampling: Sampling = Sampling(n=8, temperature=1.0, max_tokens=64)
    """How summaries are sampled; ``n`` of each paper."""
    policy: TrainableConfig = TrainableConfig()
    """How the model is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(Strict):
    """M-DocEval: what is open in the paper is set here."""

    weight: Fraction = 0.5
    """Share of OMatch in the image score, the rest being the Jaccard similarity. The paper does not say it."""
    judge: ServedJudge | None = None
    """Model that judges key points; null: exact sentences, which is right for drawn papers."""
    max_tokens: PositiveInt = 1024
    """Most tokens of a summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    """Config of an M-DocSum run: a model, papers, instruction tuning and what follows it."""

    model: Annotated[TinyVl | PretrainedVl, Field(discriminator="type")]
    """Model that the run begins with."""
    data: Annotated[Papers | FolderData, Field(discriminator="type")]
    """Papers with their figures and reference summaries."""
    prompt: PromptConfig = PromptConfig()
    """How a paper and an instruction are put."""
    sft: Sft | None = None
    """Instruction tuning, the first stage; null: the model begins with the second stage."""
    second: Annotated[Dpo | MoreSft | GrpoStage, Field(discriminator="type")] | None = None
    """Second stage: dpo, or one of those that stand beside it; null: none."""
    pairs: PairsConfig = PairsConfig()
    """How preference pairs are made."""
    generator: Annotated[GeneratorConfig, Field(discriminator="type")] = HfConfig()
    """Engine that samples, for pairs and evaluations."""
    score: ScoreConfig = ScoreConfig()
    """How summaries are scored."""
    layout: BatchLayout = BatchLayout()
    """How rows become micro-batches."""

    def __post_init__(self) -> None:
        if self.sft is None and self.second is None:
            raise ValueError("nothing to train: give sft, second, or both")
        for key, weights in (("sft.mix", self.sft.mix if self.sft else None), ("pairs.kinds", self.pairs.kinds)):
            if weights is not None and not any(weights.values()):
                raise ValueError(f"{key}: all weights are 0: raise one")
        if isinstance(self.model, TinyVl) and isinstance(self.data, FolderData):
            raise ValueError("model.type=tiny reads drawn papers alone: give data.type=papers, or a pretrained model")

    @property
    def task_names(self) -> tuple[str, ...]:
        return (*SPLITS, "sampled", *(CONTROLS if isinstance(self.data, Papers) else ()))

    def footprint(self, shards: int) -> Footprint | None:
        """Footprint of the larger stage; a frozen tower is counted as if it were trained. Activations and the engine
        come on top."""
        if isinstance(self.model, TinyVl) or self.model.size is None:
            return None
        width = 2 if self.model.dtype == "bfloat16" else 4
        stages = [stage for stage in (self.sft, self.second) if stage is not None]
        return tuning_footprint(width * self.model.size, shards, stages)

    @property
    def grpo(self) -> PpoConfig:
        """The second stage as a run of PPO, which GRPO is a case of."""
        assert isinstance(self.second, GrpoStage)
        shared = {key: getattr(self, key) for key in ("recipe", "name", "dir", "seed", "precision", "launch", "save")}
        return PpoConfig(
            **shared,
            evals=self.evals,
            eval_every=self.eval_every,
            trackers=self.trackers,
            tracking=self.tracking,
            peak_tflops=self.peak_tflops,
            max_skipped=self.max_skipped,
            steps=self.second.steps,
            rollout=RolloutConfig(prompts=self.second.prompts, sampling=self.second.sampling, generator=self.generator),
            advantage=Grpo(),
            actor=self.second.policy,
            layout=self.layout,
        )
