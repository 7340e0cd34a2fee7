"""Parts that the report of every run has: what came of it, its curves, its settings, and where it comes from."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.config import flatten
from stepstack.harness.training import index
from stepstack.harness.training.evaluated import Columns, checkpoint_rows
from stepstack.harness.training.headline import Figure, figures
from stepstack.harness.training.history import RunHistory
from stepstack.report import provenance
from stepstack.report.charts import StageRows
from stepstack.report.html import Report, table_of


def begin(history: RunHistory, columns: Columns, first: Sequence[Figure] = ()) -> Report:
    """A report with its headline. ``first``: figures of the recipe's own, in front of those that every run has."""
    report = Report(history.name)
    if not history.running or (history.folder.parent / index.FILE).is_file():
        report.link("All runs", f"../{index.FILE}")
    report.add(_status(history.status))
    if history.status:
        report.add(f"<p>{html.escape(history.status['about'])}</p>")
    report.add(f'<div class="tiles">{_tiles([*first, *figures(history, columns)])}</div>')
    if history.stages:
        report.add(f'<div class="stages">{"".join(map(_stage, history.stages))}</div>')
        report.add('<p class="dim">Stages in training order, as wide as they are long.</p>')
    return report


def curves(report: Report, history: RunHistory) -> None:
    """Add the curves of all stages, and those of checkpoints that were scored."""
    report.curves("Curves", history.stages, live=history.running)
    if rows := checkpoint_rows(history.folder):
        report.curves("Checkpoints", [StageRows("checkpoints", rows)])


def end(report: Report, history: RunHistory) -> Path:
    """Add settings and provenance, and write the page. A run that is over is in the index of its folder too."""
    config = history.record["config"]
    report.add("<h2>Configuration</h2><p>Every value; <code>config.json</code> in the run's folder is the same.</p>")
    report.add(f'<div class="settings">{"".join(_settings(config))}</div>')
    report.table("Provenance", ("", ""), _provenance(history))
    report.details("Versions, files that were read, and changes of the config", _rest(history.record))
    path = report.write(history.folder / "report.html")
    if not history.running:
        index.write(history.folder.parent)
    return path


def _status(status: Mapping[str, Any] | None) -> str:
    if status is None:
        return ""
    where = f"{status['stage']}, step {status['step']} of {status['total']}. " if status["state"] == "running" else ""
    why = f"{status['why'].rstrip('.')}. " if status["why"] else ""
    time = html.escape(status["time"])
    return (
        f'<p id="status" class="{status["state"]}" data-state="{status["state"]}" data-time="{time}">'
        f"<b>{status['state']}</b> {html.escape(where + why)}Written {time[:16].replace('T', ' ')} UTC.</p>"
    )


def _tiles(items: Sequence[Figure]) -> str:
    cells = []
    for number, (value, label) in enumerate(items):
        kind = "tile first" if number == 0 else "tile"
        cells.append(f'<div class="{kind}"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>')
    return "".join(cells)


def _stage(stage: StageRows) -> str:
    seconds, cpu = stage.total("time/step"), stage.total("cpu_s")
    facts = f"{stage.rows[-1]['step']} steps, {seconds:.0f} s, {cpu:.0f} CPU-s"
    return f'<div style="flex-grow: {max(1, seconds):.0f}"><b>{html.escape(stage.name)}</b>{facts}</div>'


def _settings(config: Mapping[str, Any]) -> list[str]:
    """A folded table for each part of the config; single values are one table in front."""
    single = {key: value for key, value in config.items() if not isinstance(value, dict) or not value}
    parts = {key: value for key, value in config.items() if key not in single}
    tables = [("run", single), *parts.items()]
    return [
        f"<details><summary>{html.escape(name)} <small>{len(pairs)} values</small></summary>"
        f"{table_of(('key', 'value'), [(key, _value(value)) for key, value in pairs])}</details>"
        for name, part in tables
        if (pairs := list(flatten(part)))
    ]


def _value(value: Any) -> str:
    """A value as one may write it in a config file."""
    return value if isinstance(value, str) else json.dumps(value)


def _provenance(history: RunHistory) -> list[tuple[str, str]]:
    facts = history.record["provenance"]
    rows = [("began", facts["time"]), ("made by", provenance.describe(facts))]
    if history.status:
        command = history.status["command"]
        rows.append(("again", command or "from Python: recipe.train(Run(config)), with the configuration above"))
        page = command.replace("stepstack launch", "stepstack report", 1)
        rows.append(("this page", page or "recipe.write_report(folder)"))
    if facts["dirty"]:
        rows.append(("note", "tracked files differed from the commit: it alone does not repeat the run"))
    return [*rows, ("metrics", "metrics.jsonl in the folder of each stage"), ("curves in TensorBoard", "tensorboard/")]


def _rest(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "versions": record["provenance"]["versions"],
        "files": record.get("files", {}),
        "history": record.get("history", []),
        "hash": record.get("hash"),
    }
