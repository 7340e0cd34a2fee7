"""Our engine as a model of lm-eval."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from stepstack.config import ConfigError
from stepstack.core.types import ProcessGroup, SingleProcess
from stepstack.generation.types import Answer, Prompt, Sampling
from stepstack.harness.answers import answer_of, answer_row
from stepstack.harness.engine import Engine, Question
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.store import digest
from stepstack.records import Problem
from stepstack.report import jsonl

MAX_TOKENS = 256  # of an answer where the task does not say; lm-eval's own default


LIKELIHOODS_AT_ONCE = 256  # log-likelihoods that are asked for, and kept, at a time


KNOWN_KWARGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}  # generation_kwargs, normalised


class StepstackLM(TemplateLM):
    """Our engine as a model of lm-eval; its numbers are those of lm-eval's own ``hf`` model on the same weights.

    Text is tokenised as that model does (its tokenizer's own choice of BOS; a prompt that is too long loses its
    beginning), but through a server, which tokenises itself. No chat template. What ran is kept in ``folder``, and
    nothing that is kept there is asked again; several processes share the requests and all get all answers.

    ``answers``: the answers of each document; ``failed``: the first error of each document that has one, whose
    requests look empty to lm-eval. Whoever uses this class must take those documents out.
    """

    def __init__(self, engine: Engine, *, world: ProcessGroup | None = None, seed: int = 0, folder: Path | None = None):
        super().__init__()
        self.engine, self.world, self.seed = engine, world or SingleProcess(), seed
        self.tokenizer: Any = engine.tokenizer if isinstance(engine, GeneratorEngine) else None
        self.keep_in(folder)

    def keep_in(self, folder: Path | None) -> None:
        """Start a task; reads what a run that was interrupted left in its folder. By all processes together."""
        self.folder = folder
        self.answers: dict[int, list[Answer]] = {}
        self.failed: dict[int, str] = {}
        files = sorted(folder.glob("generated-*.jsonl")) if folder else []
        rows = [row for file in files for row in jsonl.read(file)]
        self._kept: dict[str, Any] = {row["key"]: row["value"] for row in rows}
        self.seconds: float = sum(row["seconds"] for row in rows)
        self.world.gather([])  # nobody writes before all have read

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        assert isinstance(self.engine, GeneratorEngine)
        return self.engine.generator.max_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """A text that begins with the name of BOS gets no second one."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **special)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to their stop string, in order. A request that comes again is sampled anew, unless greedily."""
        requested = [(request.args[0], normalize_gen_kwargs(request.args[1], MAX_TOKENS)) for request in requests]
        samplings = [self._sampling(dict(kwargs)) for _, kwargs in requested]
        repeats: Counter[str] = Counter()
        keys = []
        for (context, kwargs), sampling in zip(requested, samplings, strict=True):
            key = digest(["generate", context, kwargs, self.seed])
            keys.append(digest([key, repeats[key] if sampling.temperature else 0]))
            repeats[key] += 1

        def ask(todo: Sequence[int]) -> Iterator[tuple[int, Any]]:
            for sampling in dict.fromkeys(samplings[i] for i in todo):
                same = [i for i in todo if samplings[i] == sampling]
                for start in range(0, len(same), self.engine.batch):
                    piece = {int(keys[i][:15], 16): i for i in same[start : start + self.engine.batch]}
                    for index, answer in self._complete({k: requested[i][0] for k, i in piece.items()}, sampling):
                        yield piece[index], answer_row(answer)

        texts = []
        for request, (_, kwargs), value in zip(requests, requested, self._once(keys, ask), strict=True):
            answer = answer_of(value, Problem(request.doc_id, request.args[0], ""), 0)
            self.answers.setdefault(request.doc_id, []).append(answer)
            if answer.error is not None:
                self.failed.setdefault(request.doc_id, answer.error)
            texts.append(self._text(answer, kwargs["until"]))
        return texts

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        if unknown := set(kwargs) - KNOWN_KWARGS:
            raise ConfigError(
                f"generation_kwargs {sorted(unknown)} of this lm-eval task are not known here: {kwargs}. "
                "Evaluate it with lm_eval itself"
            )
        return Sampling(
            temperature=float(kwargs.get("temperature", 1.0)) if kwargs["do_sample"] else 0.0,
            top_p=float(kwargs.get("top_p", 1.0)),
            top_k=int(kwargs.get("top_k", -1)),
            max_tokens=kwargs["max_gen_toks"],
            stop=tuple(text for text in kwargs["until"] if text),
            seed=self.seed,
        )

    def _complete(self, contexts: Mapping[int, str], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        """An answer to each context, by the index from which its seed derives."""
        if isinstance(self.engine, GeneratorEngine):
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise ConfigError(
                    f"max_gen_toks {sampling.max_tokens} leaves no room within {self.max_length}: lower it in the task"
                )
            rows = [(Problem(index, text, ""), self.tok_encode(text)[-room:]) for index, text in contexts.items()]
            prompts = [Prompt(problem, tuple(ids)) for problem, ids in rows]
            for group in self.engine.generator.generate(prompts, sampling):
                [rollout] = group.rollouts
                yield group.prompt.problem.index, rollout
        else:
            questions = [Question(Problem(index, text, ""), text) for index, text in contexts.items()]
            for question, [answer] in self.engine.complete(questions, sampling):
                yield question.problem.index, answer

    def _text(self, answer: Answer, until: Sequence[str]) -> str:
        """The text that lm-eval wants: without special tokens, and without the stop string and what follows."""
        if self.tokenizer is None or answer.ids is None:
            return postprocess_generated_text(answer.text, list(until), None)
        end = self.tokenizer.decode(self.eot_token_id)
        text = self.tokenizer.decode(list(answer.ids), skip_special_tokens=True)
        return postprocess_generated_text(text, [*until, end], None)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of continuations; a context that is too long loses its beginning."""
        pairs = []
        for (context, continuation), before, after in requests:
            if not 0 < len(after) <= self.max_length:
                end = context[-40:]
                wrong = f"{continuation!r} after {end!r} has {len(after)} tokens, not 1 to {self.max_length}"
                raise ConfigError(f"{wrong}: leave the task out, or take a model that reads longer texts")
            whole = [*before, *after][-self.max_length - 1 :]
            pairs.append((whole[: -len(after)], after))

        def ask(todo: Sequence[int]) -> Iterator[tuple[int, Any]]:
            for start in range(0, len(todo), LIKELIHOODS_AT_ONCE):
                piece = todo[start : start + LIKELIHOODS_AT_ONCE]
                yield from zip(piece, map(list, self.engine.loglikelihood([pairs[i] for i in piece])), strict=True)

        values = self._once([digest(["loglikelihood", *pair]) for pair in pairs], ask)
        return [(total, greedy) for total, greedy in values]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows of the model's length that predict each token once."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += total
        return totals

    def _once(self, keys: Sequence[str], ask: Callable[[Sequence[int]], Iterator[tuple[int, Any]]]) -> list[Any]:
        """The JSON value of each key. Those that nobody has are asked for by their places, each by one process."""
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key not in self._kept:
                first.setdefault(key, place)
        new_rows, before = [], time.perf_counter()
        for place, value in ask(list(first.values())[self.world.rank :: self.world.processes]):
            now = time.perf_counter()
            row = {"key": keys[place], "value": value, "seconds": now - before}
            before = now
            if self.folder is not None:
                jsonl.append(self.folder / f"generated-{self.world.rank}.jsonl", row)
            new_rows.append(row)
        for row in self.world.gather(new_rows):
            self._kept[row["key"]] = row["value"]
            self.seconds += row["seconds"]
        return [self._kept[key] for key in keys]
