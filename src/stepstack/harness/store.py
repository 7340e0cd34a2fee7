"""An evaluation's folder: what has been generated survives a kill, and is never generated again. No torch.

plan.json               what is evaluated: task, version, rows, sampling, model, engine; its digest is in the name
generated-<rank>.jsonl  while it goes on: one line a question, written as soon as its samples are there
samples.jsonl           every sample with its score, in order
result.json             the figures, last: where it stands the evaluation is over
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.generation.types import Answer, Budget, ClipBudget, Sampling
from stepstack.harness import answers
from stepstack.harness.answers import Sample, answer_of, answer_row
from stepstack.records import Problem, gold_text
from stepstack.report import jsonl

PLAN, SAMPLES, RESULT = "plan.json", "samples.jsonl", "result.json"
RESULT_KEYS = ("task", "version", "metrics", "samples", "failed", "truncated", "length", "timing", "plan", "model")


def digest(value: Any) -> str:
    """sha256 of a value's JSON; what JSON does not know counts by its repr."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()


def plan(
    task: str,
    version: int,
    problems: Sequence[Problem],
    budget: Budget,
    model: Mapping,
    engine: Mapping,
    judge: Mapping | None = None,
) -> dict[str, Any]:
    """Everything that decides a sample and its verdict. Where the model and the rows lie does not: only the hash of a
    model counts where it has one, the identity of one behind a server, and ``source`` of a problem does not count."""
    rows = digest(
        [[p.index, p.text, gold_text(p.gold), {k: v for k, v in p.meta.items() if k != "source"}] for p in problems]
    )
    return {
        "task": task,
        "version": version,
        "n": len(problems),
        "rows": rows,
        **_spent(budget),
        "model": model_key(model),
        "engine": dict(engine),
        **({} if judge is None else {"judge": dict(judge)}),
    }


def model_key(model: Mapping[str, Any]) -> Any:
    """A model as plans name it: by its hash, behind a server by its name there and its identity, else by its name."""
    if model["sha256"]:
        return model["sha256"]
    return {"name": model["name"], **model["identity"]} if "identity" in model else model["name"]


def _spent(budget: Budget) -> dict[str, Any]:
    """A budget under the name of its kind."""
    match budget:
        case Sampling():
            found = dataclasses.asdict(budget) | {"stop": list(budget.stop)}
            # Samples without it are those that were made before it could be asked for, and keep their plan.
            return {"sampling": {k: v for k, v in found.items() if k != "repetition" or v is not None}}
        case ClipBudget():
            return {"clips": dataclasses.asdict(budget)}


class Store:
    """The folder of one plan under ``root``."""

    def __init__(self, root: Path, plan: Mapping[str, Any]):
        if "clips" in plan:
            how = f"clips{plan['clips']['n']}"
        else:
            how = "greedy" if plan["sampling"]["temperature"] == 0 else f"avg{plan['sampling']['n']}"
        self.folder = root / f"{plan['task']}-{how}-{digest(plan)[:8]}"
        self.plan = plan

    def begin(self) -> None:
        """Make the folder, or clear away what a kill left beside a result; by one process."""
        if not (self.folder / PLAN).is_file():
            jsonl.write_json_atomic(self.folder / PLAN, self.plan)
        if self.result() is not None:
            self._drop_parts()

    def result(self) -> dict[str, Any] | None:
        """The result of an evaluation that is over."""
        file = self.folder / RESULT
        return jsonl.read_json(file, *RESULT_KEYS) if file.is_file() else None

    def append(self, rank: int, answered: Sequence[tuple[int, Sequence[Answer]]], seconds: float) -> None:
        """Questions with all their answers, in one write."""
        rows = [_row(index, given) for index, given in answered]
        if rows:
            rows[0]["seconds"] = seconds
            jsonl.append(self.folder / f"generated-{rank}.jsonl", *rows)

    def generated(self, problems: Sequence[Problem]) -> tuple[dict[int, list[Answer]], float]:
        """Answers of the questions that are done, by whichever process, and the seconds that they took."""
        by_index = {problem.index: problem for problem in problems}
        answers_by_index, seconds = {}, 0.0
        for file in sorted(self.folder.glob("generated-*.jsonl")):
            for row in jsonl.read(file):
                problem = by_index[row["index"]]
                answers_by_index[row["index"]] = [
                    answer_of(one, problem, number) for number, one in enumerate(row["answers"])
                ]
                seconds += row.get("seconds", 0.0)
        return answers_by_index, seconds

    def forget(self) -> None:
        """Let every question be asked again. By one process, before others look."""
        (self.folder / RESULT).unlink(missing_ok=True)
        (self.folder / SAMPLES).unlink(missing_ok=True)
        self._drop_parts()

    def forget_failures(self) -> int:
        """Let the questions be asked again that the engine failed on, and everything be graded again; returns how many
        questions. By one process, before others look."""
        if (old := self.result()) is None:
            rows = [row for file in sorted(self.folder.glob("generated-*.jsonl")) for row in jsonl.read(file)]
            seconds = sum(row.get("seconds", 0.0) for row in rows)
        else:
            rows = _answer_rows(answers.read(self.folder / SAMPLES, old["samples"]), old.get("left_out", ()))
            seconds = old["timing"]["generation_s"]
        whole = [row | {"seconds": 0.0} for row in rows if all(one["error"] is None for one in row["answers"])]
        if whole:
            whole[0]["seconds"] = seconds
        jsonl.write_rows_atomic(self.folder / "generated-0.jsonl", whole)
        for file in self.folder.glob("generated-*.jsonl"):
            if file.name != "generated-0.jsonl":
                file.unlink()
        (self.folder / RESULT).unlink(missing_ok=True)
        return len(rows) - len(whole)

    def finish(self, result: Mapping[str, Any]) -> None:
        """The result last, then the parts go."""
        jsonl.write_json_atomic(self.folder / RESULT, result)
        self._drop_parts()

    def _drop_parts(self) -> None:
        for file in self.folder.glob("generated-*.jsonl"):
            file.unlink()


def _row(index: int, given: Sequence[Answer]) -> dict[str, Any]:
    return {"index": index, "answers": [answer_row(answer) for answer in given]}


def _answer_rows(samples: Sequence[Sample], left_out: Sequence[str]) -> list[dict[str, Any]]:
    """Answers of the engine out of scored samples, a row a question; ``left_out``: settings that some did without."""
    by_index: dict[int, list[dict[str, Any]]] = {}
    for s in samples:
        error = s.failure.removeprefix("engine: ") if s.failure and s.finish == "error" else None
        row = {"text": s.text, "ids": s.ids, "tokens": s.tokens, "media": s.media, "finish": s.finish, "error": error}
        by_index.setdefault(s.index, []).append(row | ({"left_out": list(left_out)} if left_out else {}))
    return [{"index": index, "answers": rows} for index, rows in by_index.items()]
