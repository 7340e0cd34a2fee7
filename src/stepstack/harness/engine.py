"""What answers requests: the generators of rl/ behind one small protocol (a server is in ``harness.server``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.harness.samples import Completion
from stepstack.records import Problem
from stepstack.rl.generate import HfConfig
from stepstack.rl.prompts import Pictured, Request, encode
from stepstack.rl.rollout import GeneratorConfig
from stepstack.rl.types import EngineError, Generator, Prompt, Sampling, room
from stepstack.rl.vllm import VllmConfig, VllmServerConfig

LIKELIHOOD_BATCH = 16
VLLM_BATCH = 4096  # samples that a vLLM engine is given at a time; it schedules them itself


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


def engine_of(
    cfg: GeneratorConfig,
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lm: Callable[[], PreTrainedModel] | None = None,
    prompt: Callable[[Question], Prompt] | None = None,
) -> GeneratorEngine:
    """A run's generator as the harness asks it; ``lm`` and ``prompt`` as in ``GeneratorEngine``."""
    match cfg:
        case HfConfig():
            batch, facts = cfg.batch, {"engine": "hf", "batch": cfg.batch, "decoder": cfg.decoder}
        case VllmConfig():
            batch, facts = VLLM_BATCH, {"engine": "vllm", "dtype": cfg.dtype}
        case VllmServerConfig():
            batch, facts = VLLM_BATCH, {"engine": "vllm_server"}
    return GeneratorEngine(generator, tokenizer, batch=batch, facts=facts, lm=lm, prompt=prompt)


def refuse_server(cfg: GeneratorConfig) -> None:
    """ConfigError where the engine would answer with other weights than the model that is evaluated."""
    if isinstance(cfg, VllmServerConfig):
        raise ConfigError(
            "rollout.generator.type=vllm_server answers with whatever weights its servers hold: give --server URL to "
            "evaluate those, or rollout.generator={type: vllm} (or hf) to evaluate a model"
        )


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
