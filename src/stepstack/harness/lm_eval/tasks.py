"""EleutherAI's lm-eval, both ways: its tasks through our engines (``evaluate``), our tasks in its CLI (``export``).

The only home of ``lm_eval`` (extra ``eval``); nothing else of the harness imports this module before it is needed.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from stepstack.config import ConfigError
from stepstack.core.types import ProcessGroup, SingleProcess
from stepstack.generation.types import EngineError, Prompt, Sampling
from stepstack.harness import answers as io
from stepstack.harness.answers import Completion, Sample
from stepstack.harness.engine import Engine, Question
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.evaluate import Stopped
from stepstack.harness.store import PLAN, RESULT, SAMPLES, digest
from stepstack.records import Problem
from stepstack.report import jsonl
from stepstack.report.provenance import LIBRARIES, provenance

MAX_TOKENS = 256  # of an answer where the task does not say; lm-eval's own default
PAIRS = 256  # log-likelihoods that are asked for, and kept, at a time
RESAMPLES = 1000  # of the bootstrap of figures without a closed form
SEEDS = (0, 1234)  # lm-eval's defaults: python's random; numpy, torch and the choice of few-shot examples
KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}  # generation_kwargs, normalised


class StepstackLM(TemplateLM):
    """Our engine as a model of lm-eval; its numbers are those of lm-eval's own ``hf`` model on the same weights.

    Text is tokenised as that model does (its tokenizer's own choice of BOS; a prompt that is too long loses its
    beginning), but through a server, which tokenises itself. No chat template. What ran is kept in ``folder``, and
    nothing that is kept there is asked again; several processes share the requests and all get all answers.

    ``answers``: the completions of each document; ``failed``: the first error of each document that has one, whose
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
        self.answers: dict[int, list[Completion]] = {}
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
        """What stands before a text without a context."""
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
        wanted = [(request.args[0], normalize_gen_kwargs(request.args[1], MAX_TOKENS)) for request in requests]
        samplings = [self._sampling(dict(kwargs)) for _, kwargs in wanted]
        seen: Counter[str] = Counter()
        keys = []
        for (context, kwargs), sampling in zip(wanted, samplings, strict=True):
            key = digest(["generate", context, kwargs, self.seed])
            keys.append(digest([key, seen[key] if sampling.temperature else 0]))
            seen[key] += 1

        def ask(todo: Sequence[int]) -> Iterator[tuple[int, Any]]:
            for sampling in dict.fromkeys(samplings[i] for i in todo):
                same = [i for i in todo if samplings[i] == sampling]
                for start in range(0, len(same), self.engine.batch):
                    piece = {int(keys[i][:15], 16): i for i in same[start : start + self.engine.batch]}
                    for index, made in self._complete({k: wanted[i][0] for k, i in piece.items()}, sampling):
                        yield piece[index], dataclasses.asdict(made)

        texts = []
        for request, (_, kwargs), value in zip(requests, wanted, self._once(keys, ask), strict=True):
            made = Completion(**value)
            self.answers.setdefault(request.doc_id, []).append(made)
            if made.error is not None:
                self.failed.setdefault(request.doc_id, made.error)
            texts.append(self._text(made, kwargs["until"]))
        return texts

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        if unknown := set(kwargs) - KNOWN:
            raise ConfigError(f"generation_kwargs {sorted(unknown)} of this lm-eval task are not known here: {kwargs}")
        return Sampling(
            temperature=float(kwargs.get("temperature", 1.0)) if kwargs["do_sample"] else 0.0,
            top_p=float(kwargs.get("top_p", 1.0)),
            top_k=int(kwargs.get("top_k", -1)),
            max_tokens=kwargs["max_gen_toks"],
            stop=tuple(text for text in kwargs["until"] if text),
            seed=self.seed,
        )

    def _complete(self, contexts: Mapping[int, str], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """A completion of each context, by the index from which its seed derives."""
        if isinstance(self.engine, GeneratorEngine):
            room = self.max_length - sampling.max_tokens
            if room < 1:
                raise ConfigError(f"max_gen_toks {sampling.max_tokens} leaves no room within {self.max_length}")
            rows = [(Problem(index, text, ""), self.tok_encode(text)[-room:]) for index, text in contexts.items()]
            prompts = [Prompt(problem, tuple(ids)) for problem, ids in rows]
            for group in self.engine.generator.generate(prompts, sampling):
                [made] = group.rollouts
                yield group.prompt.problem.index, Completion(made.text, list(made.ids), len(made.ids), made.finish)
        else:
            asked = [Question(Problem(index, text, ""), text) for index, text in contexts.items()]
            for question, [completion] in self.engine.complete(asked, sampling):
                yield question.problem.index, completion

    def _text(self, made: Completion, until: Sequence[str]) -> str:
        """As lm-eval wants it: without special tokens, and without the stop string and what follows."""
        if self.tokenizer is None or made.ids is None:
            return postprocess_generated_text(made.text, list(until), None)
        end = self.tokenizer.decode(self.eot_token_id)
        text = self.tokenizer.decode(list(made.ids), skip_special_tokens=True)
        return postprocess_generated_text(text, [*until, end], None)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, greedy) of continuations; a context that is too long loses its beginning."""
        pairs = []
        for (context, continuation), before, after in requests:
            if not 0 < len(after) <= self.max_length:
                end = context[-40:]
                raise ConfigError(f"{continuation!r} after {end!r} has {len(after)} tokens, not 1 to {self.max_length}")
            whole = [*before, *after][-self.max_length - 1 :]
            pairs.append((whole[: -len(after)], after))

        def ask(todo: Sequence[int]) -> Iterator[tuple[int, Any]]:
            for start in range(0, len(todo), PAIRS):
                piece = todo[start : start + PAIRS]
                yield from zip(piece, map(list, self.engine.loglikelihood([pairs[i] for i in piece])), strict=True)

        found = self._once([digest(["loglikelihood", *pair]) for pair in pairs], ask)
        return [(total, greedy) for total, greedy in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the model's length that predict each token once."""
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
        found, before = [], time.perf_counter()
        for place, value in ask(list(first.values())[self.world.rank :: self.world.processes]):
            now = time.perf_counter()
            row = {"key": keys[place], "value": value, "seconds": now - before}
            before = now
            if self.folder is not None:
                jsonl.append(self.folder / f"generated-{self.world.rank}.jsonl", row)
            found.append(row)
        for row in self.world.gather(found):
            self._kept[row["key"]] = row["value"]
            self.seconds += row["seconds"]
        return [self._kept[key] for key in keys]


def evaluate(
    names: Sequence[str],
    engine: Engine,
    world: ProcessGroup,
    *,
    root: Path,
    model: Mapping[str, Any],
    limit: int | None,
    seed: int,
    include: Path | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, result) of each lm-eval task of ``names``, in the form of ``harness.run``; a finished one stays.

    A name is a task, a group or a tag; a group that lm-eval aggregates has a folder too. ``limit``: the first so many
    documents; ``seed``: of sampled completions (few-shot examples are drawn as lm-eval draws them by default);
    ``include``: a folder with more tasks. Every process runs lm-eval, and its requests are shared among them.

    Figures are lm-eval's aggregation and standard error over the documents that the engine answered; the others are
    counted in ``failed``. Raises ConfigError for a name that lm-eval does not know and for a task that needs
    log-likelihoods of an engine that has none, Stopped when the engine goes away.
    """
    manager = _manager(names, include)
    lm = StepstackLM(engine, world=world, seed=seed)
    done = []
    for name in names:
        with _seeded():
            loaded = manager.load([name])
        parts = {}
        for part, task in loaded["tasks"].items():
            parts[part] = _task(part, task, lm, root, model, limit, about or {})
        groups = [group for group in loaded["groups"].values() if group.has_aggregation]
        done += [*parts.values(), *(_group(group, parts, world, root, about or {}) for group in groups)]
    return done


def _manager(names: Sequence[str], include: Path | None) -> TaskManager:
    """One that knows all names. That of all of lm-eval's own takes seconds to make."""
    own = TaskManager(include_path=include, include_defaults=False)
    if set(names) <= set(own.all_subtasks):
        return own
    manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"Did you mean {', '.join(near)}? " if near else ""
            where = f" nor in {include}" if include else ""
            raise ConfigError(f"no lm-eval task {name!r} in lm-eval{where}. {hint}`lm_eval ls tasks` lists its own")
    return manager


def _task(
    name: str,
    task: Any,
    lm: StepstackLM,
    root: Path,
    model: Mapping[str, Any],
    limit: int | None,
    about: Mapping[str, Any],
) -> tuple[Path, dict[str, Any]]:
    """One task, from its documents to its folder."""
    world, started = lm.world, time.perf_counter()
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEEDS[1])
    if task.OUTPUT_TYPE != "generate_until":
        try:
            lm.engine.loglikelihood([])
        except EngineError as error:
            raise ConfigError(f"lm_eval:{name} needs log-likelihoods: {error}") from error
    made = _plan(name, task, lm, model, limit)
    folder = _folder(root, made)
    if world.rank == 0 and not folder.is_dir():
        jsonl.write_json_atomic(folder / PLAN, made)
    world.gather([])  # the others look only now
    if not (folder / RESULT).is_file():
        lm.keep_in(folder)
        try:
            with _seeded():
                alone = {"tasks": {name: task}, "groups": {}}
                rows = evaluator.evaluate(lm, alone, limit=limit, bootstrap_iters=0)["samples"][name]
        except EngineError as error:
            raise Stopped(
                f"the engine went away: {error}\nWhat it had answered is kept; the same command goes on from there"
            ) from error
        world.gather([])  # all have read what is about to go
        if world.rank == 0:
            found = _samples(task, lm, rows)
            io.write(folder / SAMPLES, found)
            record = _result(task, lm, rows, found) | {"plan": made, "model": dict(model), **about}
            timing = {"wall_s": time.perf_counter() - started, "generation_s": lm.seconds}
            jsonl.write_json_atomic(folder / RESULT, record | {"provenance": _provenance(), "timing": timing})
            for file in folder.glob("generated-*.jsonl"):
                file.unlink()
        world.gather([])
    return folder, json.loads((folder / RESULT).read_text())


def _plan(name: str, task: Any, lm: StepstackLM, model: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """What decides every sample."""
    documents = _plain(list(task.eval_docs)[:limit])
    return {
        "task": f"lm_eval:{name}",
        "version": task.VERSION,
        "n": len(documents),
        "rows": digest(documents),
        "config": digest(_plain(task.dump_config())),
        "shots": task.get_config("num_fewshot"),
        "seed": lm.seed,
        "model": model["sha256"] or model["name"],
        "engine": dict(lm.engine.facts),
    }


def _plain(value: Any) -> Any:
    """As JSON that is the same in every process: no addresses."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=repr)))


def _folder(root: Path, plan: Mapping[str, Any]) -> Path:
    name = re.sub(r"[^\w.-]", "_", plan["task"].removeprefix("lm_eval:"))
    return root / f"lm_eval.{name}-{digest(plan)[:8]}"


def _result(task: Any, lm: StepstackLM, rows: Sequence[dict[str, Any]], found: Sequence[Sample]) -> dict[str, Any]:
    answers = [made for document in lm.answers.values() for made in document]
    lengths = [made.tokens for made in answers if made.error is None]
    if len(lm.failed) == len({sample.index for sample in found}):
        error = next(iter(lm.failed.values()))
        raise Stopped(f"the engine failed on every document of {task.task_name}: {error}")
    return {
        "kind": "eval",
        "task": f"lm_eval:{task.task_name}",
        "version": task.VERSION,
        "shots": task.get_config("num_fewshot"),
        "metrics": _figures(task, [row for row in rows if row["doc_id"] not in lm.failed]),
        "n": len({sample.index for sample in found}),
        "k": 1 + max(sample.sample for sample in found),
        "samples": len(found),
        "failed": {"engine": sum(made.error is not None for made in answers), "grader": 0},
        "truncated": sum(made.finish == "length" for made in answers),
        "tokens": sum(made.tokens for made in answers),
        "length": fmean(lengths) if lengths else None,
    }


def _figures(task: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's aggregation of each metric and filter over the documents that have it."""
    values: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        for metric in row["metrics"]:
            values.setdefault((metric, row["filter"]), []).append(row[metric])
    figures = []
    for (metric, kind), known in values.items():
        of = task.aggregation().get(metric, mean)
        error = stderr_for_metric(metric=of, bootstrap_iters=RESAMPLES) if len(known) > 1 else None
        figures.append(
            {
                "name": f"{metric},{kind}",
                "value": float(of(known)),
                "stderr": float(error(known)) if error else None,
                "n": len(known),
                "higher_is_better": task.higher_is_better().get(metric, True),
            }
        )
    return figures


def _samples(task: Any, lm: StepstackLM, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Of a document that is chosen by likelihood, the likeliest continuation is the text."""
    documents: dict[int, list[dict[str, Any]]] = {}
    for row in rows:  # one a filter
        documents.setdefault(row["doc_id"], []).append(row)
    made = []
    for index, of in documents.items():
        first, failure = of[0], None
        parts = {f"{m},{row['filter']}": row[m] for row in of for m in row["metrics"]}
        main = next(iter(parts.values()))
        score = float(main) if isinstance(main, int | float) and index not in lm.failed else None
        if score is None:
            whole = f"grader: {next(iter(parts))} is a figure of all documents together"
            failure = f"engine: {lm.failed[index]}" if index in lm.failed else whole
        for number, completion in enumerate(lm.answers.get(index) or [_likeliest(first)]):
            answer = first["filtered_resps"][0] if task.OUTPUT_TYPE == "generate_until" else completion.text
            made.append(
                Sample(
                    index=index,
                    sample=number,
                    problem=str(task.doc_to_text(first["doc"])),
                    gold=str(first["target"]),
                    prompt=first["arguments"][0][0],
                    answer=answer if isinstance(answer, str) else None,
                    score=score,
                    failure=failure,
                    parts={name: float(value) for name, value in parts.items() if isinstance(value, int | float)},
                    **{name: getattr(completion, name) for name in ("text", "ids", "tokens", "finish")},
                )
            )
    return made


def _likeliest(row: dict[str, Any]) -> Completion:
    """The continuation that was chosen; of a text that was only scored, the text."""
    if not isinstance(row["resps"][0][0], tuple):
        return Completion(row["arguments"][0][0], None, 0, "stop")
    best = max(range(len(row["resps"])), key=lambda i: row["resps"][i][0][0])
    return Completion(row["arguments"][best][1], None, 0, "stop")


def _group(
    group: Any,
    members: Mapping[str, tuple[Path, dict[str, Any]]],
    world: ProcessGroup,
    root: Path,
    about: Mapping[str, Any],
) -> tuple[Path, dict[str, Any]]:
    """A group's figures, which lm-eval aggregates from those of its tasks. It has no samples of its own."""
    results = {name: members[name][1] for name in (task.task_name for task in group.get_all_tasks())}
    figures: dict[str, dict[str, Any]] = {}
    better: dict[str, bool] = {}
    for name, result in results.items():
        figures[name] = {"sample_len": max(metric["n"] for metric in result["metrics"])}
        for metric in result["metrics"]:
            spread = "N/A" if metric["stderr"] is None else metric["stderr"]
            figures[name] |= {metric["name"]: metric["value"], _spread(metric["name"]): spread}
            better[metric["name"]] = metric["higher_is_better"]
    whole: Any = group.aggregate(figures)
    numbers = [(name, whole[_spread(name)]) for name in better if name in whole]
    parts = {name: digest(result["plan"]) for name, result in results.items()}
    made = {"task": f"lm_eval:{group.name}", "version": group.version, "parts": parts}
    record = {
        "kind": "eval",
        "task": made["task"],
        "version": group.version,
        "shots": next(iter(results.values()))["shots"],
        "metrics": [
            {
                "name": name,
                "value": float(whole[name]),
                "stderr": None if spread == "N/A" else float(spread),
                "n": whole["sample_count"][name],
                "higher_is_better": better[name],
            }
            for name, spread in numbers
        ],
        "k": max(result["k"] for result in results.values()),
        **{key: sum(result[key] for result in results.values()) for key in ("n", "samples", "truncated", "tokens")},
        "failed": {who: sum(r["failed"][who] for r in results.values()) for who in ("engine", "grader")},
        "length": None,
        "plan": made,
        "model": next(iter(results.values()))["model"],
        **about,
    }
    timing = {key: sum(r["timing"][key] for r in results.values()) for key in ("wall_s", "generation_s")}
    folder = _folder(root, made)
    if world.rank == 0 and not (folder / RESULT).is_file():
        jsonl.write_json_atomic(folder / PLAN, made)
        io.write(folder / SAMPLES, [])
        jsonl.write_json_atomic(folder / RESULT, record | {"provenance": _provenance(), "timing": timing})
    world.gather([])
    return folder, json.loads((folder / RESULT).read_text())


def _spread(metric: str) -> str:
    """lm-eval's key of the standard error of "metric,filter"."""
    name, _, kind = metric.rpartition(",")
    return f"{name}_stderr,{kind}"


def _provenance() -> dict[str, Any]:
    return provenance(libraries=(*LIBRARIES, "lm_eval"))


@contextmanager
def _seeded() -> Iterator[None]:
    """lm-eval's own seeds for tasks that draw at random; those of the process come back."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[1])
        yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
