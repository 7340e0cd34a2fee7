"""Responses that call a tool: what they are made of, where they end, and that the policy's tokens alone are learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.generation.config import CalculatorTool, FileTool, ToolConfig
from stepstack.generation.service.wire import group_arrays, group_of
from stepstack.generation.tools import ToolGenerator
from stepstack.generation.types import Group, Prompt, Rollout, Sampling, ToolCall
from stepstack.models.lm import tiny
from stepstack.models.lm.policy import Policy
from tests import tools

TOKENIZER = tiny.tokenizer()
SAMPLING = Sampling(n=2, max_tokens=40, stop=("</answer>",))
MARKS = CalculatorTool(open="[", close="]", result="{result};", calls=2)


class Scripted:
    """An engine that says the next of its texts for whatever it is asked, by the tokens that stand before."""

    max_positions = 200

    def __init__(self, says: dict[str, Sequence[str]]):
        self.says, self.asked = says, []

    def load(self, weights: Iterable, version: int) -> None:
        raise AssertionError("not asked")

    def sleep(self) -> None:
        raise AssertionError("not asked")

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        self.asked.append((sampling, [prompt.problem.index for prompt in prompts]))
        for prompt in reversed(prompts):  # groups end in any order
            texts = self.says[TOKENIZER.decode(prompt.ids)]
            yield Group(prompt, tuple(self.rollout(prompt, at, text, sampling) for at, text in enumerate(texts)))

    def rollout(self, prompt: Prompt, sample: int, text: str, sampling: Sampling) -> Rollout:
        ids = tuple(TOKENIZER(text).input_ids)[: sampling.max_tokens]
        finish = "stop" if text.endswith(sampling.stop) and len(ids) == len(TOKENIZER(text).input_ids) else "length"
        return replace(tools.rollout(prompt, sample, ids, finish), text=TOKENIZER.decode(ids))


def one_unit(prompts: Sequence[Prompt], sampling: Sampling) -> list[Sequence[Prompt]]:
    return [prompts]


def ask(text: str, index: int = 3) -> Prompt:
    return tools.prompt(index, TOKENIZER(text).input_ids)


def generated(says: dict[str, Sequence[str]], cfg: ToolConfig = MARKS, sampling: Sampling = SAMPLING):
    engine = Scripted(says)
    [group] = ToolGenerator(engine, TOKENIZER, cfg, one_unit).generate([ask("Q")], sampling)
    return engine, group.rollouts


def test_the_answer_stands_behind_the_query_and_the_policy_goes_on():
    engine, (calls, plain) = generated({"Q": ("a[1+2]", "no</answer>"), "Qa[1+2]3;": ["b</answer>"]})
    assert calls.text == "a[1+2]3;b</answer>" == TOKENIZER.decode(calls.ids)
    assert (calls.finish, calls.calls) == ("stop", (ToolCall(6, 8, True),))
    assert calls.weights == (1.0,) * 6 + (0.0,) * 2 + (1.0,) * 2
    assert calls.logprobs == (-1.0,) * 6 + (0.0,) * 2 + (-1.0,) * 2
    assert (plain.text, plain.calls, plain.weights, plain.sample) == ("no</answer>", (), None, 1)
    (first, _), (second, numbers) = engine.asked
    assert first.stop == second.stop == ("</answer>", "]")
    assert (second.n, second.max_tokens, numbers) == (1, 40 - 8, [6])
    assert first.seed != second.seed


def test_turns_of_several_responses_go_on_together_and_each_has_noise_of_its_own():
    says = {"Q": ("[1]", "[2]"), "Q[1]1;": ["[3]"], "Q[2]2;": ["</answer>"], "Q[1]1;[3]3;": ["x</answer>"]}
    engine, (first, second) = generated(says)
    assert (first.text, second.text) == ("[1]1;[3]3;x</answer>", "[2]2;</answer>")
    assert [numbers for _, numbers in engine.asked] == [[3], [6, 7], [6]]
    assert len({sampling.seed for sampling, _ in engine.asked}) == 3


def test_a_call_beyond_the_last_one_and_a_response_without_room_are_cut_off():
    says = {"Q": ("[1]", "y" * 36 + "[7]"), "Q[1]1;": ["[2]"], "Q[1]1;[2]2;": ["[3]"]}
    _, (often, long) = generated(says)
    assert (often.text, often.finish, len(often.calls)) == ("[1]1;[2]2;[3]", "length", 2)
    assert (len(long.ids), long.finish, long.calls) == (40, "length", (ToolCall(39, 40, True),))


def test_another_responses_room_is_not_ones_own():
    """One turn has one budget; whose own is smaller is cut to it."""
    says = {"Q": ("[1]", "y" * 20 + "[1]"), "Q[1]1;": ["z" * 35], "Q" + "y" * 20 + "[1]1;": ["z" * 35]}
    _, (short, long) = generated(says)
    assert (len(short.ids), len(long.ids), long.finish) == (40, 40, "length")
    assert long.text == "y" * 20 + "[1]1;" + "z" * 15


def test_the_models_own_limit_counts_the_prompt():
    engine = Scripted({"Q": ("[1]", "</answer>")})
    engine.max_positions = 5
    [group] = ToolGenerator(engine, TOKENIZER, MARKS, one_unit).generate([ask("Q")], SAMPLING)
    assert (len(group.rollouts[0].ids), group.rollouts[0].finish) == (4, "length")


def test_what_a_tool_cannot_answer_is_told_and_counted():
    says = {"Q": ("[1/0]", "4]"), "Q[1/0]error;": ["</answer>"], "Q4]error;": ["</answer>"]}
    _, (divided, unopened) = generated(says)
    assert (divided.text, unopened.text) == ("[1/0]error;</answer>", "4]error;</answer>")
    assert not divided.calls[0].succeeded
    assert not unopened.calls[0].succeeded


def test_a_tool_of_your_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def answer(queries):\n    return [query.upper() for query in queries]\n\n\nnone = 1\n")
    says = {"Q": ("[ab]", "</answer>"), "Q[ab]AB;": ["</answer>"]}
    marks = {"path": str(file), "open": "[", "close": "]", "result": "{result};"}
    _, (called, _) = generated(says, FileTool(**marks))
    assert called.text == "[ab]AB;</answer>"
    with pytest.raises(ConfigError, match="none is no function"):
        generated(says, FileTool(**marks, function="none"))
    file.write_text("def answer(queries):\n    return []\n")
    with pytest.raises(ConfigError, match="the tool gave 0 answers to 1 queries"):
        generated(says, FileTool(**marks))


@pytest.mark.parametrize(
    ("words", "why"), [({"result": "x"}, "result must hold"), ({"open": "|", "close": "|"}, "open and close are the")]
)
def test_marks_that_cannot_be(words, why):
    with pytest.raises(ValueError, match=why):
        CalculatorTool(**words)


def test_calls_come_over_the_wire():
    _, rollouts = generated({"Q": ("a[1+2]", "no</answer>"), "Qa[1+2]3;": ["b</answer>"]})
    facts, arrays = group_arrays(Group(rollouts[0].prompt, rollouts))
    assert group_of(rollouts[0].prompt, facts, arrays).rollouts == rollouts


def test_log_probabilities_of_what_is_learned_are_the_policys():
    """A real engine on random weights, in whose responses a frequent letter calls the tool: the trainer's forward pass
    over the whole response, the tool's tokens in it, agrees on every token that the policy sampled."""
    lm = tools.qwen2(len(TOKENIZER), scale=0.15, seed=3)
    engine = tools.generator(lm, TOKENIZER)
    prompts, sampling = [ask("User: 1", 0), ask("User: 22", 1)], Sampling(n=8, max_tokens=60)
    texts = [rollout.text for group in engine.generate(prompts, sampling) for rollout in group.rollouts]
    mark = max((chr(code) for code in range(33, 127)), key="".join(texts).count)
    cfg = CalculatorTool(open="never", close=mark, result="<{result}>", calls=5)
    groups = ToolGenerator(engine, TOKENIZER, cfg, one_unit).generate(prompts, sampling)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert sum(len(rollout.calls) > 1 for rollout in rollouts) > 2
    rows = [Row.of(rollout, 0.0, at) for at, rollout in enumerate(rollouts)]
    micro = collate(rows, pack=False, device="cpu")
    assert micro.count == sum(int(sum(r.weights or (1.0,) * len(r.ids))) for r in rollouts)
    with torch.no_grad():
        logp_N, _ = Policy(lm)(**micro.inputs(), temperature=1.0)
    torch.testing.assert_close(logp_N, micro.field("sampler"), rtol=0, atol=2e-5)
