"""A rollout generator as the engine of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import to_dict
from stepstack.generation.build import build_generator, refuse_server
from stepstack.generation.config import GeneratorConfig, ToolConfig
from stepstack.generation.prompts import NotText, encode
from stepstack.generation.types import Answer, Budget, EngineError, Generator, Prompt, Sampling, response_budget
from stepstack.harness.engine import Question
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.vision.processor import Processor

LIKELIHOOD_BATCH = 16


def engine_of(
    cfg: GeneratorConfig,
    generator: Generator,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lm: Callable[[], PreTrainedModel] | None = None,
    prompt: Callable[[Question], Prompt] | None = None,
    tool: ToolConfig | None = None,
) -> GeneratorEngine:
    """A run's generator as the harness asks it; ``lm`` and ``prompt`` as in ``GeneratorEngine``, ``tool`` is what its
    responses may call."""
    facts = cfg.facts if tool is None else {**cfg.facts, "tool": to_dict(tool)}
    return GeneratorEngine(generator, tokenizer, batch=cfg.samples_at_once, facts=facts, lm=lm, prompt=prompt)


def open_generator(
    cfg: GeneratorConfig,
    place: Pretrained,
    device: torch.device,
    tokenizer: PreTrainedTokenizerBase,
    *,
    auto: Any = AutoModelForCausalLM,
    processor: Processor | None = None,
    prompt: Callable[[Question], Prompt] | None = None,
    tool: ToolConfig | None = None,
) -> GeneratorEngine:
    """A model folder, answering on ``device`` by the generator of a config; vLLM reads its weights by itself. ``auto``
    is the Auto class of the model's task. ConfigError for servers, which hold weights of their own."""
    refuse_server(cfg)
    lm = pretrained.load(place, auto) if cfg.needs_weights else pretrained.skeleton(place, auto)
    generator = build_generator(cfg, lm, tokenizer, place.path, device, processor, tool)
    module = (lambda: lm.to(device)) if cfg.needs_weights else None  # type: ignore[arg-type]
    return engine_of(cfg, generator, tokenizer, lm=module, prompt=prompt, tool=tool)


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

    def complete(self, questions: Sequence[Question], budget: Budget) -> Iterator[tuple[Question, list[Answer]]]:
        """A prompt that leaves no room for a response is a failed request."""
        if not isinstance(budget, Sampling):
            raise EngineError(f"the engine {self.facts} makes no clips: evaluate with a config of their recipe")
        by_index = {}
        prompts = []
        for question in questions:
            prompt = self._prompt(question)
            try:
                response_budget(prompt, budget, self.generator.max_positions)
            except ValueError as error:
                failed = Answer(problem=question.problem, sample=0, finish="error", error=str(error))
                yield question, [replace(failed, sample=number) for number in range(budget.n)]
                continue
            by_index[question.problem.index] = question
            prompts.append(prompt)
        for group in self.generator.generate(prompts, budget):
            yield by_index[group.prompt.problem.index], list(group.rollouts)

    def _of_text(self, question: Question) -> Prompt:
        if isinstance(question.request, NotText):
            raise EngineError(
                f"the engine {self.facts} reads and answers text alone: evaluate with a config of their recipe"
            )
        return Prompt(question.problem, encode(question.request, self.tokenizer))

    @torch.no_grad()
    def loglikelihood(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        if self._make_lm is None:
            raise EngineError(f"the engine {self.facts} gives no log-likelihoods: take rollout.generator.type=hf")
        lm = self._lm = self._lm or self._make_lm()
        results = {}
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
                results[i] = total, bool((logp_NV.argmax(-1) == labels_N).all())
        return [results[i] for i in range(len(pairs))]
