"""The words of RL: prompt, rollout, group, sampling, reward, generator. No torch at run time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt

from stepstack.bounds import Text
from stepstack.config import Strict
from stepstack.records import Picture, Problem

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model reads it. ``ids`` are exactly the tokens every engine gets: nobody tokenises again; each
    of ``pictures`` has its image tokens among them, in order."""

    problem: Problem
    ids: tuple[int, ...]
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition(Strict):
    """Repetition-aware sampling, as the released code of Step-Audio-TTS-3B has it: a token that came too often of late
    may not come once more at once."""

    window: Annotated[int, Field(ge=2)] = 10
    """Last tokens, those of the prompt among them, in which the last one is counted; before there are so many, nothing
    is forbidden."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the window beyond which the last token is forbidden; of 10 tokens, 0.1 are one: itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling(Strict):
    """How to sample. ``logprobs`` of a rollout are those of this distribution, temperature applied."""

    n: PositiveInt = 1
    """Samples of each prompt."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Temperature of the distribution; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability that the likeliest tokens, from which is sampled, hold together; 1: all tokens."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Number of likeliest tokens from which is sampled; -1 or 0: all tokens."""
    max_tokens: PositiveInt = 64
    """Most tokens of a response."""
    max_length: PositiveInt | None = None
    """Most tokens of prompt and response together; null: no bound beyond the model's own."""
    stop: tuple[Text, ...] = ()
    """Strings that end a response, which keeps the string."""
    repetition: Repetition | None = None
    """Repetition-aware sampling, by the engine hf alone; its log-probabilities are no policy's, so that training
    refuses it. Null: none."""
    seed: NonNegativeInt = 0
    """Seed of the samples. Each rollout has one of its own, derived from (seed, problem index, sample), so a result
    depends neither on the batch nor on the number of processes."""

    @property
    def cuts(self) -> bool:
        """Whether the distribution is cut before it is sampled."""
        return self.top_k > 0 or self.top_p < 1

    @property
    def greedy(self) -> Sampling:
        """One response of the likeliest tokens, in place of samples."""
        return self.replace(n=1, temperature=0.0)

    def replace(self, **changes) -> Sampling:
        return replace(self, **changes)

    def refuse_repetition(self, engine: str) -> None:
        """EngineError where repetition-aware sampling is asked of an engine that has none."""
        if self.repetition is not None:
            raise EngineError(
                f"{engine} has no repetition-aware sampling: take the engine hf, or sampling.repetition=null"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipBudget:
    """How many clips a question gets; the engine's config says how they are sampled. Seeds derive from ``seed``."""

    n: int = 1
    seed: int = 0


Budget = Sampling | ClipBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of one request, which rewards and metrics look at.

    ``ids`` are the engine's tokens, EOS included when it was emitted, up to the token that completes a stop string;
    None where the engine does not tell them, and ``tokens`` then counts them. ``text`` ends with that stop string.
    ``media`` holds files, such as a clip, by paths from the repository. ``finish`` is "stop" for EOS or a stop string,
    "length" for an answer that was cut off, and "error", with ``error`` set, where this one request failed and the
    engine goes on. An engine that cannot go on raises EngineError. ``left_out``: settings of the budget that the
    engine could not pass on.
    """

    problem: Problem
    sample: int
    finish: Finish
    text: str = ""
    ids: tuple[int, ...] | None = None
    tokens: int = 0
    media: tuple[Path, ...] = ()
    error: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return self.tokens if self.ids is None else len(self.ids)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Answer of a tool inside a response: ``ids[begin:end]`` are the tool's. ``succeeded`` is False where the tool had
    no answer and the policy was told so."""

    begin: int
    end: int
    succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(Answer):
    """An answer of a policy that is trained on it. ``logprobs[i]`` belongs to ``ids[i]``; ``version`` is the policy
    version that sampled it. Tokens of ``calls`` are the tool's: they have log-probability 0 and are never learned."""

    prompt: Prompt
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    calls: tuple[ToolCall, ...] = ()

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Loss weights of ``ids``: 0 for a tool's tokens, 1 for others; None where there is no tool's token."""
        foreign = {place for call in self.calls for place in range(call.begin, call.end)}
        return tuple(float(place not in foreign) for place in range(len(self.ids))) if foreign else None


@dataclass(frozen=True, slots=True)
class Group:
    """The n rollouts of one prompt, ordered by ``sample``."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


class Generator(Protocol):
    """The one seam behind which any engine samples."""

    @property
    def max_positions(self) -> int:
        """Tokens that prompt and response may have together."""
        ...

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield a group as soon as its n rollouts have ended, in any order."""
        ...

    def sleep(self) -> None:
        """Lend the device's memory to training until the next ``load``; an engine that holds none does nothing."""
        ...

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new policy weights under their Hugging Face names; ``version`` marks the rollouts that follow."""
        ...


class EngineError(RuntimeError):
    """An engine that cannot do what was asked: the message names it and what to do."""


def response_budget(prompt: Prompt, sampling: Sampling, limit: int) -> int:
    """Tokens that a response to ``prompt`` may have within the model's ``limit``; ValueError if none."""
    limit = min(limit, sampling.max_length or limit)
    left = min(sampling.max_tokens, limit - len(prompt.ids))
    if left < 1:
        raise ValueError(
            f"prompt {prompt.problem.index} has {len(prompt.ids)} tokens and leaves no room within {limit}: "
            "lower prompt.max_tokens, which drops it when the data is loaded, or raise max_length (and max_model_len)"
        )
    return left


def rollout_seed(seed: int, index: int, sample: int) -> int:
    """63-bit seed of one rollout (splitmix64 over the triple), the same in every engine that takes seeds."""
    x = 0
    for part in (seed, index, sample):
        x = (x ^ (part & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 31
    return x >> 1
