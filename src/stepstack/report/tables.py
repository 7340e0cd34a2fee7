"""Tables in the READMEs, generated from evals/: each number in a table is in a file with its provenance. No torch.

A table is the text between ``<!-- table: name -->`` and ``<!-- end -->``. evals/tables holds a file for it: name.yaml,
a layout (see ``layout``), or name.py, whose function ``table`` builds it (and ``part`` table name.part). ``measured``
(evals/results, ours) and ``reported`` (evals/reported, published, with source) never share a row of a layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from stepstack.config import ROOT
from stepstack.report import formats, jsonl, layout, plots
from stepstack.report.formats import Format
from stepstack.user_code import load_name

TABLE_FOLDER = ROOT / "evals" / "tables"  # x.py builds table x by ``table(root)``, and table x.y by ``y(root)``
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def record(run: Path, root: Path = ROOT) -> Path:
    """Write evals/results/<name>.json of a run, without samples.

    It has config, provenance, evaluations by label (before, after, model, ...), the curve on the selection set, the fit
    of a sweep, the state of DSV, and CPU seconds. FileNotFoundError where there is no such run, or nothing of it was
    evaluated or fitted.
    """
    if not (run / "config.json").is_file():
        raise FileNotFoundError(f"{run} is no run: train it first, or say which by name=... and dir=...")
    facts = jsonl.read_json(run / "config.json", "config", "provenance")
    evals: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((run / "evals").glob("*/*/result.json")):
        evals.setdefault(file.parent.parent.name, []).append(jsonl.read_json(file, "task", "metrics"))
    fit = run / "fit.json"
    if not evals and not fit.is_file():
        raise FileNotFoundError(f"{run / 'evals'} holds no result.json: train to the end, or `stepstack eval` the run")
    files = [*sorted(run.glob("*/metrics.jsonl")), run / "metrics.jsonl"]
    stages: list[list[dict[str, float]]] = [list(jsonl.read(file)) for file in files if file.is_file()]
    seconds = [sum(row["cpu_s"] for row in rows) for rows in stages]
    out = root / "evals" / "results" / f"{facts['config']['name']}.json"
    result = {"kind": "run", **facts, "evals": evals, "cpu_s": sum(seconds), "cpu_s_by_stage": seconds}
    result["curve"] = next((points for rows in reversed(stages) if (points := curve(rows))), [])
    for extra in (fit, run / "dsv.json"):
        if extra.is_file():
            result[extra.stem] = jsonl.read_json(extra)
    jsonl.write_json_atomic(out, result)
    return out


def curve(rows: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Metrics of the selection set by step, each with the mean loss since the step before."""
    points, losses = [], []
    for row in rows:
        losses += [row["loss"]] if "loss" in row else []
        if figures := {key: value for key, value in row.items() if key.startswith("eval/")}:
            points.append({"step": row["step"], **figures} | ({"loss": fmean(losses)} if losses else {}))
            losses = []
    return points


def generate(check: bool = False, root: Path = ROOT) -> int:
    """Rewrite every table block of the tracked READMEs and docs, and the plots; with ``check`` only compare.

    Returns the exit status.
    """
    stale = [path.relative_to(root) for path in plots.generate(check, root)]
    folders = ("recipes/*/README.md", "docs/*.md", "kernels/stepstack_kernels/*/README.md")
    for page in [root / "README.md", *(page for folder in folders for page in sorted(root.glob(folder)))]:
        old = page.read_text() if page.is_file() else ""
        new = BLOCK.sub(lambda m: f"{m[1]}{render(m['name'], root=root)}{m[3]}", old)
        if new != old:
            stale.append(page.relative_to(root))
            if not check:
                jsonl.write_text_atomic(page, new)
    for page in stale:
        print(f"{page}: {'stale: run make table' if check else 'written'}")
    return 1 if check and stale else 0


def render(name: str, format: Format = "md", root: Path = ROOT) -> str:
    """One table, by its name, as Markdown, LaTeX or HTML."""
    stem, _, part = name.partition(".")
    file = TABLE_FOLDER / f"{stem.replace('-', '_')}.py"
    if file.is_file():
        return formats.render(load_name(file, part or "table")(root), format)
    if name not in layout.names(root):
        have = [*sorted(path.stem.replace("_", "-") for path in TABLE_FOLDER.glob("[a-z]*.py")), *layout.names(root)]
        raise ValueError(f"no table {name!r}: there are {', '.join(have)}")
    return layout.render(name, format, root)
