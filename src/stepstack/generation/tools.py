"""Responses that call a tool: the policy writes a query between two marks, the tool's answer is put behind it, and the
policy goes on. Any engine samples; the tool's tokens are in the response and are never learned.

One turn is one call of the engine for all rollouts that go on, each with a prompt of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.generation.config import CalculatorTool, ToolConfig
from stepstack.generation.types import Finish, Generator, Group, Prompt, Rollout, Sampling, ToolCall, rollout_seed
from stepstack.scoring.maths.calculator import Calculator
from stepstack.user_code import load_name

FAILED = "error"  # what a policy reads where a tool gives no answer

# A batch of queries -> an answer each, None for one that failed.
Tool = Callable[[Sequence[str]], Sequence[str | None]]
Units = Callable[[Sequence[Prompt], Sampling], Sequence[Sequence[Prompt]]]


def load_tool(cfg: ToolConfig) -> Tool:
    """The tool that a config names. ConfigError for a file or a function that does not exist."""
    if isinstance(cfg, CalculatorTool):
        return Calculator(cfg.timeout)
    function = load_name(cfg.path, cfg.function)
    if not callable(function):
        raise ConfigError(f"{cfg.path}: {cfg.function} is no function: set tool.function to one")
    return function


@dataclass
class _Response:
    """A response while it grows. ``last`` is the newest part that was sampled; ``number`` is another for each response
    of a step."""

    prompt: Prompt
    sample: int
    number: int
    last: Rollout
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: Finish | None = None
    calls: list[ToolCall] = field(default_factory=list)


class ToolGenerator:
    """Generator whose responses may call ``tool`` up to ``cfg.calls`` times.

    ``sampling.max_tokens`` and ``max_length`` bound a response with its tool's tokens; one that has no room left after
    an answer, or that calls once more than it may, ends as cut off. ``units`` cuts prompts into those that decode
    together; each goes through all of its turns before the next, so that the last bits of a response do not depend on
    which other units this process has.
    """

    def __init__(self, inner: Generator, tokenizer: PreTrainedTokenizerBase, cfg: ToolConfig, units: Units):
        self.inner, self.tokenizer, self.cfg, self.units = inner, tokenizer, cfg, units
        self.tool = load_tool(cfg)

    @property
    def max_positions(self) -> int:
        return self.inner.max_positions

    def sleep(self) -> None:
        self.inner.sleep()

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.inner.load(weights, version)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups of a unit as its last response ends, in the order of their prompts."""
        for unit in self.units(prompts, sampling):
            yield from self._generate(unit, sampling)

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        stopping = sampling.replace(stop=(*sampling.stop, self.cfg.close))
        groups = {group.prompt.problem.index: group for group in self.inner.generate(prompts, stopping)}
        responses = [
            _Response(prompt, rollout.sample, prompt.problem.index * sampling.n + rollout.sample, rollout)
            for prompt in prompts
            for rollout in groups[prompt.problem.index].rollouts
        ]
        for response in responses:
            self._take(response, response.last, sampling)
        turn = 0
        while calling := [response for response in responses if response.finish is None]:
            turn += 1
            self._answer(calling, sampling)
            going = {response.number: response for response in calling if response.finish is None}
            if going:
                # Seed and number are those of no other turn and no other response, so the noise is fresh.
                seeded = stopping.replace(n=1, seed=rollout_seed(sampling.seed, turn, 0))
                longest = max(sampling.max_tokens - len(response.ids) for response in going.values())
                nexts = [self._next_prompt(response) for response in going.values()]
                for group in self.inner.generate(nexts, seeded.replace(max_tokens=longest)):
                    self._take(going[group.prompt.problem.index], group.rollouts[0], sampling)
        ended = iter(responses)
        for prompt in prompts:
            yield Group(prompt, tuple(_rollout(next(ended)) for _ in range(sampling.n)))

    def _take(self, response: _Response, part: Rollout, sampling: Sampling) -> None:
        """Append what the policy sampled, as much as there is room for, and see whether it calls the tool."""
        room = sampling.max_tokens - len(response.ids)
        response.last = part
        response.ids += part.ids[:room]
        response.logprobs += part.logprobs[:room]
        if len(part.ids) > room:  # another response of this turn had room for more
            response.text += str(self.tokenizer.decode(list(part.ids[:room]), skip_special_tokens=False))
            response.finish = "length"
            return
        response.text += part.text
        if part.finish != "stop" or not part.text.endswith(self.cfg.close):
            response.finish = part.finish
        elif len(response.calls) == self.cfg.calls:
            response.finish = "length"

    def _answer(self, responses: Sequence[_Response], sampling: Sampling) -> None:
        """Put the tool's answers behind their queries. A mark that closes nothing was opened by nobody: it fails."""
        queries = [self._query(response.last.text) for response in responses]
        asked = [query for query in queries if query is not None]
        answers = list(self.tool(asked)) if asked else []
        if len(answers) != len(asked):
            raise ConfigError(f"the tool gave {len(answers)} answers to {len(asked)} queries: return one for each")
        given = iter(answers)
        for response, query in zip(responses, queries, strict=True):
            answer = None if query is None else next(given)
            text = self.cfg.result.replace("{result}", FAILED if answer is None else str(answer))
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            begin = len(response.ids)
            response.calls.append(ToolCall(begin, begin + len(ids), answer is not None))
            response.ids += ids
            response.logprobs += [0.0] * len(ids)
            response.text += text
            limit = min(self.max_positions, sampling.max_length or self.max_positions)
            if len(response.ids) >= sampling.max_tokens or len(response.prompt.ids) + len(response.ids) >= limit:
                response.finish = "length"
                self._cut(response, min(sampling.max_tokens, limit - len(response.prompt.ids)))

    def _cut(self, response: _Response, room: int) -> None:
        """Keep ``room`` tokens of a response that the tool's answer made too long."""
        last = response.calls[-1]
        del response.ids[room:], response.logprobs[room:]
        response.calls[-1] = replace(last, end=max(last.begin, min(last.end, room)))

    def _query(self, text: str) -> str | None:
        """The text between the marks at the end of what was sampled last."""
        _, opened, query = text.removesuffix(self.cfg.close).rpartition(self.cfg.open)
        return query if opened else None

    def _next_prompt(self, response: _Response) -> Prompt:
        problem = replace(response.prompt.problem, index=response.number)
        return replace(response.prompt, problem=problem, ids=(*response.prompt.ids, *response.ids))


def _rollout(response: _Response) -> Rollout:
    assert response.finish is not None, response
    return Rollout(
        problem=response.prompt.problem,
        prompt=response.prompt,
        sample=response.sample,
        ids=tuple(response.ids),
        logprobs=tuple(response.logprobs),
        text=response.text,
        finish=response.finish,
        version=response.last.version,
        calls=tuple(response.calls),
    )
