"""runs/index.html: every run of a folder of runs, and the curves of those that one chooses over each other."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from stepstack.harness.training.evaluated import columns_of
from stepstack.harness.training.headline import Figure, score
from stepstack.harness.training.history import RunHistory, read
from stepstack.report import jsonl
from stepstack.report.html import Report

FILE = "index.html"
CHOSEN = 3  # runs whose curves are shown at first, the newest
HEAD = ("", "run", "recipe", "status", "before → after", "of what", "CPU-s", "began (UTC)", "commit")
COMPARED = 50  # runs whose curves are in the page, the newest


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """Run in the index, with the value and the name of its first figure."""

    history: RunHistory
    score: Figure

    @property
    def folder(self) -> Path:
        return self.history.folder


@dataclass(frozen=True, slots=True)
class UnreadableRun:
    """Folder that looks like a run's and cannot be read."""

    folder: Path
    why: str


def write(runs: Path) -> Path:
    """Write the index of a folder of runs. A run that cannot be read stands in it with the reason."""
    found = sorted((_read(file.parent) for file in runs.glob("*/config.json")), key=_began, reverse=True)
    compared = [run.history for run in found if isinstance(run, IndexedRun)][:COMPARED]
    numbers = {history.folder: number for number, history in enumerate(compared)}
    report = Report("Runs")
    bound = f" Curves are those of the newest {COMPARED}." if len(found) > COMPARED else ""
    choice = f"The boxes choose whose curves are drawn, the last stage of each.{bound}"
    report.add(f"<p>{len(found)} runs, the newest first. {choice}</p>")
    body = "".join(_row(run, numbers.get(run.folder)) for run in found)
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in HEAD)
    report.add(f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>')
    report.compare("Curves of the chosen runs", {run.folder.name: run.stages[-1:] for run in compared}, CHOSEN)
    return report.write(runs / FILE)


def _read(folder: Path) -> IndexedRun | UnreadableRun:
    try:
        history = read(folder)
        return IndexedRun(history, next(iter(score(history, columns_of(folder))), ("", "")))
    except (jsonl.JsonError, OSError, KeyError) as error:  # of one run of many: its line says it
        return UnreadableRun(folder, str(error))


def _began(run: IndexedRun | UnreadableRun) -> str:
    return run.history.record["provenance"]["time"] if isinstance(run, IndexedRun) else ""


def _row(run: IndexedRun | UnreadableRun, number: int | None) -> str:
    """Line of a run; ``number`` among those that are compared."""
    name = html.escape(run.folder.name)
    if isinstance(run, UnreadableRun):
        return _cells(["", name, "", "unreadable", "", html.escape(run.why), "", "", ""])
    history = run.history
    box = "" if number is None else f'<input type="checkbox" data-choose="{number}" aria-label="curves of {name}">'
    there = (run.folder / "report.html").is_file()
    page = f'<a href="{quote(run.folder.name)}/report.html">{name}</a>' if there else name
    state = history.status["state"] if history.status else "not recorded"
    source = history.record["provenance"]
    commit = (source["commit"] or "none")[:8] + ("+changes" if source["dirty"] else "")
    facts = [history.record["config"]["recipe"], state, *run.score]
    facts += [f"{history.cpu_seconds:,.0f}", source["time"][:16].replace("T", " "), commit]
    return _cells([box, page, *map(html.escape, facts)])


def _cells(markup: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in markup)}</tr>"
