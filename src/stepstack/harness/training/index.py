"""runs/index.html: every run of a folder of runs, and the curves of those that one chooses over each other."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from stepstack.harness.training import headline, history
from stepstack.harness.training.evaluated import columns_of
from stepstack.harness.training.history import RunHistory
from stepstack.report import jsonl
from stepstack.report.html import Report

FILE = "index.html"
CHOSEN = 3  # runs whose curves are shown at first, the newest
HEAD = ("", "run", "recipe", "status", "before → after", "of what", "CPU-s", "began (UTC)", "commit")
COMPARED = 50  # runs whose curves are in the page, the newest


@dataclass(frozen=True, slots=True)
class UnreadableRun:
    """Folder that looks like a run's and cannot be read."""

    folder: Path
    why: str


def write(runs: Path) -> Path:
    """Write the index of a folder of runs. A run that cannot be read stands in it with the reason."""
    found = sorted((_read(file.parent) for file in runs.glob("*/config.json")), key=_began, reverse=True)
    good = [run for run in found if isinstance(run, RunHistory)][:COMPARED]
    report = Report("Runs")
    bound = f" Curves are those of the newest {COMPARED}." if len(found) > COMPARED else ""
    choice = f"The boxes choose whose curves are drawn, the last stage of each.{bound}"
    report.add(f"<p>{len(found)} runs, the newest first. {choice}</p>")
    body = "".join(_row(run, good) for run in found)
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in HEAD)
    report.add(f'<div class="wide"><table class="runs"><tr>{cells}</tr>{body}</table></div>')
    report.compare("Curves of the chosen runs", {run.folder.name: run.stages[-1:] for run in good}, CHOSEN)
    return report.write(runs / FILE)


def _read(folder: Path) -> RunHistory | UnreadableRun:
    try:
        return history.read(folder)
    except (jsonl.JsonError, OSError, KeyError) as error:
        return UnreadableRun(folder, str(error))


def _began(run: RunHistory | UnreadableRun) -> str:
    return run.record["provenance"]["time"] if isinstance(run, RunHistory) else ""


def _row(run: RunHistory | UnreadableRun, compared: list[RunHistory]) -> str:
    name = html.escape(run.folder.name)
    if isinstance(run, UnreadableRun):
        return _cells(["", name, "", "unreadable", "", html.escape(run.why), "", "", ""])
    number = compared.index(run) if run in compared else None
    box = "" if number is None else f'<input type="checkbox" data-choose="{number}" aria-label="curves of {name}">'
    there = (run.folder / "report.html").is_file()
    page = f'<a href="{quote(run.folder.name)}/report.html">{name}</a>' if there else name
    state = run.status["state"] if run.status else "not recorded"
    value, label = next(iter(headline.score(run, columns_of(run.folder))), ("", ""))
    source = run.record["provenance"]
    commit = (source["commit"] or "none")[:8] + ("+changes" if source["dirty"] else "")
    facts = [run.record["config"]["recipe"], state, value, label]
    facts += [f"{run.cpu_seconds:,.0f}", source["time"][:16].replace("T", " "), commit]
    return _cells([box, page, *map(html.escape, facts)])


def _cells(markup: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in markup)}</tr>"
