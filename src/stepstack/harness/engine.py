"""What answers requests: the generators of rl/ behind one small protocol (a server is in ``harness.server``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.harness.samples import Completion
from stepstack.records import Problem
from stepstack.rl.prompts import Pictured, Request, encode
from stepstack.rl.types import EngineError, Generator, Prompt, Sampling, room

LIKELIHOOD_BATCH = 16


@dataclass(frozen=True, slots=True)
class Question:
    """A problem and how it is put to the model. Seeds derive from ``problem.index``."""

    problem: Problem
    request: Request


class Engine(Protocol):
    """``batch``: samples that it likes to be given at a time. ``facts``: plain JSON that tells how it computes."""

    batch: int
    facts: Mapping[str, Any]

    def complete(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        """Each question with its ``sampling.n`` completions, as soon as it has them, in any order.

        Raises EngineError when the engine is gone; a failure of one request is a Completion with an error.
        """
        ...

    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """(sum of log-probabilities of the continuation, whether it is the greedy one) of (context, continuation)
        token ids. Raises EngineError where the engine cannot tell."""
        ...


class GeneratorEngine:
    """A rollout generator and the tokenizer of its model.

    ``lm`` gives the same model as a module, for log-likelihoods; it is called when the first is asked for. ``prompt``
    makes prompts of questions, where the text is not all.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch: int,
        facts: Mapping[str, Any],
        lm: Callable[[], PreTrainedModel] | None = None,
        prompt: Callable[[Question], Prompt] | None = None,
    ):
        self.generator, self.tokenizer, self.batch, self.facts = generator, tokenizer, batch, facts
        self._make_lm, self._prompt = lm, prompt or self._of_text
        self._lm: PreTrainedModel | None = None

    def complete(
        self, questions: Sequence[Question], sampling: Sampling
    ) -> Iterator[tuple[Question, list[Completion]]]:
        """A prompt that leaves no room for a response is a failed request."""
        asked = {}
        prompts = []
        for question in questions:
            prompt = self._prompt(question)
            try:
                room(prompt, sampling, self.generator.max_positions)
            except ValueError as error:
                yield question, [Completion("", None, 0, "error", str(error))] * sampling.n
                continue
            asked[question.problem.index] = question
            prompts.append(prompt)
        for group in self.generator.generate(prompts, sampling):
            done = [Completion(r.text, r.ids, len(r.ids), r.finish) for r in group.rollouts]
            yield asked[group.prompt.problem.index], done

    def _of_text(self, question: Question) -> Prompt:
        if isinstance(question.request, Pictured):
            raise EngineError(f"the engine {self.facts} reads no pictures: evaluate with a config of their recipe")
        return Prompt(question.problem, encode(question.request, self.tokenizer))

    @torch.no_grad()
    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        if self._make_lm is None:
            raise EngineError(f"the engine {self.facts} gives no log-likelihoods: take rollout.generator.type=hf")
        lm = self._lm = self._lm or self._make_lm()
        found = {}
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        for start in range(0, len(order), LIKELIHOOD_BATCH):
            rows = order[start : start + LIKELIHOOD_BATCH]
            texts = [[*pairs[i][0], *pairs[i][1]][:-1] for i in rows]  # nothing follows the last token
            ids_BT = torch.zeros(len(rows), max(map(len, texts)), dtype=torch.long)
            for row, text in enumerate(texts):  # padded at the right, which causal attention never looks at
                ids_BT[row, : len(text)] = torch.tensor(text)
            hidden_BTD = lm.base_model(input_ids=ids_BT.to(lm.device), use_cache=False).last_hidden_state
            for row, i in enumerate(rows):
                size, end = len(pairs[i][1]), len(texts[row])
                logp_NV = torch.log_softmax(lm.get_output_embeddings()(hidden_BTD[row, end - size : end]).float(), -1)
                labels_N = torch.tensor(list(pairs[i][1]), device=logp_NV.device)
                total = float(logp_NV.gather(-1, labels_N[:, None]).sum())
                found[i] = total, bool((logp_NV.argmax(-1) == labels_N).all())
        return [found[i] for i in range(len(pairs))]
