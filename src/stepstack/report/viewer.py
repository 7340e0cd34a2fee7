"""Viewer of every sample of one or two models' evaluations: one HTML page that needs no network. No torch.

The page carries its data as JSON and shows some fifty questions at a time (viewer.js), so that 500 questions with 16
samples each stay fast. Only the page's own script may run in it, whatever a model wrote. Pictures, clips and sounds are
not in the page: it shows the files that the samples name.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from stepstack.config import ROOT
from stepstack.report import jsonl, paired
from stepstack.report.html import json_element, script_page
from stepstack.report.layout import budget_of

SUMMARY = ("task", "model", "metrics", "questions", "failed", "truncated", "length", "sampling", "weights", "commit")
MAX_MODELS = 2  # side by side on a page


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Evaluation in one folder. ``result``: result.json. ``rows``: those of samples.jsonl."""

    result: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def key(self) -> str:
        """Key of comparison: the task, and how it was sampled where that is not one sample a question."""
        greedy, k = budget_of(self.result["plan"]).get("temperature") == 0, self.result["k"]
        return self.result["task"] + (" greedy" if greedy else f" x{k}" if k > 1 else "")


def write(page: Path, folders: Mapping[str, Sequence[Path]]) -> Path:
    """Write one page of all evaluation ``folders``, whose keys are the models' labels, at most two.

    Where two labels have the same task, their samples are side by side, with the paired test of their difference.
    ValueError for no folder, a third label, an evaluation that is not finished, or two of one task under one label.
    """
    if not any(folders.values()):
        raise ValueError("no evaluation to show: give folders with result.json and samples.jsonl")
    if len(folders) > MAX_MODELS:
        raise ValueError(
            f"{', '.join(folders)}: a page shows one model, or two side by side; give at most {MAX_MODELS}"
        )
    by_label = {label: _read_all(places, label) for label, places in folders.items()}
    keys = list(dict.fromkeys(key for evaluations in by_label.values() for key in evaluations))
    tasks = [
        _task(key, {label: evaluations.get(key) for label, evaluations in by_label.items()}, page.parent)
        for key in keys
    ]
    data = {"labels": list(by_label), "tasks": tasks}
    title = f"Samples: {' and '.join(by_label)}"
    jsonl.write_text_atomic(page, _page(title, _summary(keys, by_label), data))
    return page


def _read_all(places: Sequence[Path], label: str) -> dict[str, Evaluation]:
    evaluations: dict[str, Evaluation] = {}
    where: dict[str, Path] = {}
    for place in places:
        file = place / "result.json"
        if not file.is_file():
            raise ValueError(f"{file} does not exist: the evaluation is not finished; run its command again")
        one = Evaluation(
            jsonl.read_json(file, "task", "plan", "k", "metrics"), jsonl.read_whole(place / "samples.jsonl")
        )
        if one.key in evaluations:
            raise ValueError(f"{label}: {place} and {where[one.key]} are both {one.key}: give one of them")
        evaluations[one.key], where[one.key] = one, place
    return evaluations


def _task(key: str, by_label: Mapping[str, Evaluation | None], folder: Path) -> dict[str, Any]:
    """Data of a task for viewer.js, on a page in ``folder``.

    Questions are those of any label. ``by`` has an entry a label, None where the label lacks the question.
    """
    there = {label: one for label, one in by_label.items() if one is not None}
    questions: dict[tuple[int, str, str], dict[str, Any]] = {}
    for label, one in there.items():
        for row in one.rows:
            identity = (row["index"], row["problem"], row["gold"])
            question = questions.setdefault(identity, {"by": dict.fromkeys(by_label)})
            if question["by"][label] is None:  # the prompt of a question's samples is one, and stored once
                question["by"][label] = {"prompt": row["prompt"], "samples": []}
            question["by"][label]["samples"].append(_sample(row, folder))
    return {
        "key": key,
        "paired": _paired(there),
        "questions": [
            {"index": index, "problem": problem, "gold": gold, "by": _columns(columns["by"])}
            for (index, problem, gold), columns in sorted(questions.items())
        ],
    }


def _columns(by: Mapping[str, dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """Columns of a question, where a prompt that equals the one before is left out."""
    columns = [None if column is None else dict(column) for column in by.values()]
    if len(columns) == MAX_MODELS and columns[0] and columns[1] and columns[0]["prompt"] == columns[1]["prompt"]:
        del columns[1]["prompt"]
    return columns


def _sample(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Row without the parts that the page does not show. Keys without a value are left out, since there are thousands
    of rows. Files are named from the page's ``folder``, so that both can be moved together."""
    fields = {
        key: row[key] for key in ("text", "tokens", "finish", "answer", "score", "failure") if row[key] is not None
    }
    parts = {name: value if math.isfinite(value) else str(value) for name, value in row["parts"].items()}
    media = [Path(os.path.relpath(ROOT / file, folder.resolve())).as_posix() for file in row.get("media", ())]
    return fields | ({"parts": parts} if parts else {}) | ({"media": media} if media else {})


def _paired(there: Mapping[str, Evaluation]) -> str | None:
    """Paired test in words, for two models, or the reason why it cannot be made."""
    if len(there) < MAX_MODELS:
        return None
    (a, left), (b, right) = there.items()
    try:
        return paired.compare(left.rows, right.rows).words(a, b)
    except paired.NotPaired as error:
        return f"{a} and {b} are not compared: {error}"


def _summary(keys: Sequence[str], by_label: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Table at the top, which is also there without JavaScript."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in SUMMARY)
    body = ""
    for key in keys:
        for label, evaluations in by_label.items():
            if key in evaluations:
                link = f'<a href="#{html.escape(urlencode({"task": key}))}">{html.escape(key)}</a>'
                cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(label, evaluations[key].result))
                body += f"<tr><td>{link} <small>v{evaluations[key].result['version']}</small></td>{cells}</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cells(label: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Cells of the columns of SUMMARY behind the task."""
    yield label
    yield "\n".join(_metric(metric, result["n"]) for metric in result["metrics"])
    yield f"{result['n']} x {result['k']}"
    lost = {what: count for what, count in result["failed"].items() if count}
    yield ", ".join(f"{what} {count}" for what, count in lost.items()) or "0"
    yield f"{result['truncated']} of {result['samples']}"
    yield "-" if result["length"] is None else f"{result['length']:.1f}"
    yield _sampling(result["plan"])
    yield (result["model"]["sha256"] or result["model"]["name"])[:12]
    source = result["provenance"]
    yield (source["commit"] or "none")[:8] + ("+changes" if source["dirty"] else "")


def _metric(metric: Mapping[str, Any], n: int) -> str:
    if metric["value"] is None:
        return f"{metric['name']} -"
    few = f" (n={metric['n']})" if metric["n"] != n else ""
    less = "" if metric["higher_is_better"] else " (less is better)"
    spread = "" if metric["stderr"] is None else f" ± {metric['stderr']:.3f}"
    return f"{metric['name']} {metric['value']:.3f}{spread}{few}{less}"


def _sampling(plan: Mapping[str, Any]) -> str:
    """Sampling settings in a line, without stop strings, which belong to the prompt.

    Tasks of lm-evaluation-harness have their own settings.
    """
    facts = dict(budget_of(plan)) | {key: plan[key] for key in ("shots", "seed") if key in plan}
    known = {key: value for key, value in facts.items() if key not in ("n", "stop") and value not in (None, -1)}
    return ", ".join(f"{key}={json.dumps(value).removesuffix('.0')}" for key, value in known.items())


def _page(title: str, summary: str, data: Mapping[str, Any]) -> str:
    """Page with its data as JSON in which no tag can end. No text of a model is ever markup, and viewer.js only sets
    text."""
    body = (
        f'<h1>{html.escape(title)}</h1>{summary}<main id="main"></main>'
        "<noscript><p>The samples need JavaScript.</p></noscript>"
        f"{json_element(data)}"
    )
    policy = "img-src 'self' file:; media-src 'self' file:; "  # of clips, pictures and sounds
    return script_page(title, Path(__file__).with_name("viewer.js"), body, policy)
