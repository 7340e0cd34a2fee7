"""EleutherAI's lm-eval, both ways: its tasks through our engines (``evaluate``), our tasks in its CLI (``export``).

The only home of ``lm_eval`` (extra ``eval``); nothing else of the harness imports this module before it is needed.
"""

from __future__ import annotations

import difflib
import json
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.metrics import mean, stderr_for_metric
from lm_eval.tasks import TaskManager

from stepstack.config import ConfigError
from stepstack.core.types import ProcessGroup
from stepstack.generation.types import Answer, EngineError
from stepstack.harness import answers as io
from stepstack.harness.answers import Sample
from stepstack.harness.engine import Engine
from stepstack.harness.evaluate import Stopped
from stepstack.harness.lm_eval.groups import RESAMPLES, evaluate_group, folder_of, provenance_of
from stepstack.harness.lm_eval.model import StepstackLM
from stepstack.harness.store import PLAN, RESULT, RESULT_KEYS, SAMPLES, digest, model_key
from stepstack.records import Problem
from stepstack.report import jsonl

SEEDS = (0, 1234)  # lm-eval's defaults: python's random; numpy, torch and the choice of few-shot examples


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
    again: bool = False,
) -> list[tuple[Path, dict[str, Any]]]:
    """(folder, result) of each lm-eval task of ``names``, in the form of ``harness.evaluate``; a finished one stays.

    A name is a task, a group or a tag; a group that lm-eval aggregates has a folder too. ``limit``: the first so many
    documents; ``seed``: of sampled completions (few-shot examples are drawn as lm-eval draws them by default);
    ``include``: a folder with more tasks; ``again`` asks everything anew. Every process runs lm-eval, and its requests
    are shared among them.

    Figures are lm-eval's aggregation and standard error over the documents that the engine answered; the others are
    counted in ``failed``. Raises ConfigError for a name that lm-eval does not know and for a task that needs
    log-likelihoods of an engine that has none, Stopped when the engine goes away.
    """
    manager = _manager(names, include)
    lm = StepstackLM(engine, world=world, seed=seed)
    results = []
    for name in names:
        with _seeded():
            loaded = manager.load([name])
        parts = {}
        for part, task in loaded["tasks"].items():
            parts[part] = _task(part, task, lm, root, model, limit, about or {}, again)
        groups = [group for group in loaded["groups"].values() if group.has_aggregation]
        results += [*parts.values(), *(evaluate_group(group, parts, world, root, about or {}) for group in groups)]
    return results


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
    again: bool,
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
    plan = _plan(name, task, lm, model, limit)
    folder = folder_of(root, plan)
    if world.rank == 0 and not folder.is_dir():
        jsonl.write_json_atomic(folder / PLAN, plan)
    if world.rank == 0 and again:
        (folder / RESULT).unlink(missing_ok=True)
        _drop_parts(folder)
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
        if len(lm.failed) == len({row["doc_id"] for row in rows}):
            if world.rank == 0:
                _drop_parts(folder)
            raise Stopped(
                f"the engine failed on every document of {name}: {next(iter(lm.failed.values()))}\n"
                "Mend that, and give the same command again"
            )
        if world.rank == 0:
            samples = _samples(task, lm, rows)
            io.write(folder / SAMPLES, samples)
            record = _result(task, lm, rows, samples) | {"plan": plan, "model": dict(model), **about}
            timing = {"wall_s": time.perf_counter() - started, "generation_s": lm.seconds}
            jsonl.write_json_atomic(folder / RESULT, record | {"provenance": provenance_of(), "timing": timing})
            _drop_parts(folder)
        world.gather([])
    return folder, jsonl.read_json(folder / RESULT, *RESULT_KEYS)


def _drop_parts(folder: Path) -> None:
    for file in folder.glob("generated-*.jsonl"):
        file.unlink()


def _plan(name: str, task: Any, lm: StepstackLM, model: Mapping[str, Any], limit: int | None) -> dict[str, Any]:
    """Everything that decides a sample."""
    documents = _plain(list(task.eval_docs)[:limit])
    return {
        "task": f"lm_eval:{name}",
        "version": task.VERSION,
        "n": len(documents),
        "rows": digest(documents),
        "config": digest(_plain(task.dump_config())),
        "shots": task.get_config("num_fewshot"),
        "seed": lm.seed,
        "model": model_key(model),
        "engine": dict(lm.engine.facts),
    }


def _plain(value: Any) -> Any:
    """The value as JSON that is the same in every process, without addresses."""
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", json.dumps(value, default=repr)))


def _result(task: Any, lm: StepstackLM, rows: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> dict[str, Any]:
    answers = [answer for document in lm.answers.values() for answer in document]
    lengths = [answer.length for answer in answers if answer.error is None]
    left_out = sorted({name for answer in answers for name in answer.left_out})
    return {
        "kind": "eval",
        "task": f"lm_eval:{task.task_name}",
        "version": task.VERSION,
        "shots": task.get_config("num_fewshot"),
        "metrics": _figures(task, [row for row in rows if row["doc_id"] not in lm.failed]),
        "n": len({sample.index for sample in samples}),
        "k": 1 + max(sample.sample for sample in samples),
        "samples": len(samples),
        "failed": {"engine": sum(answer.error is not None for answer in answers), "grader": 0},
        "truncated": sum(answer.finish == "length" for answer in answers),
        "tokens": sum(answer.length for answer in answers),
        "length": fmean(lengths) if lengths else None,
        **({"left_out": left_out} if left_out else {}),
    }


def _figures(task: Any, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's aggregation of each metric and filter over the documents that have it."""
    values: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        for metric in row["metrics"]:
            values.setdefault((metric, row["filter"]), []).append(row[metric])
    figures = []
    for (metric, kind), numbers in values.items():
        aggregate = task.aggregation().get(metric, mean)
        error = stderr_for_metric(metric=aggregate, bootstrap_iters=RESAMPLES) if len(numbers) > 1 else None
        figures.append(
            {
                "name": f"{metric},{kind}",
                "value": float(aggregate(numbers)),
                "stderr": float(error(numbers)) if error else None,
                "n": len(numbers),
                "higher_is_better": task.higher_is_better().get(metric, True),
            }
        )
    return figures


def _samples(task: Any, lm: StepstackLM, rows: Sequence[dict[str, Any]]) -> list[Sample]:
    """Rows of samples.jsonl. The text of a document that is chosen by likelihood is its likeliest continuation."""
    documents: dict[int, list[dict[str, Any]]] = {}
    for row in rows:  # one a filter
        documents.setdefault(row["doc_id"], []).append(row)
    samples = []
    for index, filtered in documents.items():
        first, failure = filtered[0], None
        parts = {f"{m},{row['filter']}": row[m] for row in filtered for m in row["metrics"]}
        main = next(iter(parts.values()))
        score = float(main) if isinstance(main, int | float) and index not in lm.failed else None
        if score is None:
            whole = f"grader: {next(iter(parts))} is a figure of all documents together"
            failure = f"engine: {lm.failed[index]}" if index in lm.failed else whole
        for number, given in enumerate(lm.answers.get(index) or [_likeliest(first)]):
            answer = first["filtered_resps"][0] if task.OUTPUT_TYPE == "generate_until" else given.text
            samples.append(
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
                    text=given.text,
                    ids=None if given.ids is None else list(given.ids),
                    tokens=given.length,
                    finish=given.finish,
                )
            )
    return samples


def _likeliest(row: dict[str, Any]) -> Answer:
    """The continuation that was chosen; of a text that was only scored, the text."""
    problem = Problem(row["doc_id"], row["arguments"][0][0], "")
    if not isinstance(row["resps"][0][0], tuple):
        return Answer(problem=problem, sample=0, text=row["arguments"][0][0], finish="stop")
    best = max(range(len(row["resps"])), key=lambda i: row["resps"][i][0][0])
    return Answer(problem=problem, sample=0, text=row["arguments"][best][1], finish="stop")


@contextmanager
def _seeded() -> Iterator[None]:
    """lm-eval's own seeds for tasks that draw at random; those of the process come back."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(SEEDS[0])
        np.random.seed(SEEDS[1])
        torch.manual_seed(SEEDS[1])
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])
