"""Tables in the READMEs, generated from evals/: a number in a table is in a file with its provenance.

``measured`` (evals/results, ours) and ``reported`` (evals/reported, published, with source) never share a table, and
reported figures are in italics. A table stands between ``<!-- table: name -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from stepstack.config import ROOT
from stepstack.report import jsonl
from stepstack.report.provenance import describe

RESULTS, REPORTED = ROOT / "evals" / "results", ROOT / "evals" / "reported"
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def record(run: Path) -> Path:
    """evals/results/<name>.json of a finished run: config, provenance, before and after, CPU seconds; no samples."""
    facts = json.loads((run / "config.json").read_text())
    results: dict[str, Any] = {}
    for when in ("before", "after"):
        file = run / f"{when}.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist: the run is not over; the same make train goes on with it")
        results[when] = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("samples", "provenance")}
    stages = [run / "base" / "metrics.jsonl", run / "metrics.jsonl"]
    seconds = [sum(row["cpu_s"] for row in jsonl.read(file)) for file in stages if file.is_file()]
    out = RESULTS / f"{facts['config']['name']}.json"
    jsonl.write_json_atomic(out, {"kind": "run", **facts, **results, "cpu_s": sum(seconds), "cpu_s_by_stage": seconds})
    return out


def generate(check: bool = False, root: Path = ROOT) -> int:
    """Rewrite every table block of the tracked READMEs and docs; with ``check`` only compare. Exit status."""
    stale = []
    for page in [root / "README.md", *sorted(root.glob("recipes/*/README.md")), *sorted(root.glob("docs/*.md"))]:
        old = page.read_text() if page.is_file() else ""
        new = BLOCK.sub(lambda m: f"{m[1]}{render(m['name'])}{m[3]}", old)
        if new != old:
            stale.append(page.relative_to(root))
            if not check:
                jsonl.write_text_atomic(page, new)
    for page in stale:
        print(f"{page}: {'stale: run make table' if check else 'written'}")
    return 1 if check and stale else 0


def render(name: str) -> str:
    """Markdown of one table."""
    makers: dict[str, Callable[[], str]] = {
        "orz-tiny": orz_tiny,
        "bench-rl": bench_rl,
        "orz-reported": lambda: reported(REPORTED / "orz.json"),
    }
    if name not in makers:
        raise ValueError(f"no table {name!r}: there are {', '.join(makers)}")
    return makers[name]()


def orz_tiny() -> str:
    runs = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("orz-tiny-seed*.json"))]
    if not runs:
        return "No run has been recorded.\n"
    rows = [
        (
            str(run["config"]["seed"]),
            *(f"{run[when]['accuracy']:.3f} ± {run[when]['stderr']:.3f}" for when in ("before", "after")),
            *(f"{run[when]['length']:.1f}" for when in ("before", "after")),
            " + ".join(f"{seconds:.0f}" for seconds in run["cpu_s_by_stage"]),
        )
        for run in runs
    ]
    head = ("seed", "accuracy before", "after", "response tokens before", "after", "CPU-s (SFT + PPO)")
    n, k = runs[0]["after"]["n"], runs[0]["after"]["k"]
    note = f"measured, n={n} held-out problems, avg@{k}, T=1, ± stderr; {_origins(runs)}"
    return markdown(head, rows) + f"\n{note}\n"


def bench_rl() -> str:
    file = RESULTS / "bench-rl.json"
    if not file.is_file():
        return "Not measured yet.\n"
    result = json.loads(file.read_text())
    by_who: dict[str, list[dict[str, Any]]] = {}
    for race in result["races"]:
        by_who.setdefault(race["who"], []).append(race)
    peer = _seconds(by_who["TRL GRPO"])
    rows = []
    for who, races in by_who.items():
        seconds = _seconds(races)
        error = stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else float("nan")
        rate = fmean(race["rollout_tokens_per_s"] for race in races)
        rows.append(
            (
                who,
                f"{fmean(seconds):.1f} ± {error:.1f}",
                f"{fmean(peer) / fmean(seconds):.1f}x",
                f"{fmean(race['steps'] for race in races):.0f}",
                f"{rate:.0f}",
                f"{len(seconds)} of {len(races)}",
            )
        )
    head = (f"to {result['goal']:.2f} held-out", "CPU-s", "speed", "steps", "rollout tokens/s", "seeds that reached it")
    text = markdown(head, rows) + "\n"
    sampler = []
    for shape in dict.fromkeys(row["shape"] for row in result["sampler"]):
        pairs = [(row["ours"], row["generate"]) for row in result["sampler"] if row["shape"] == shape]
        own, other = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        sampler.append((shape, f"{own:.0f}", f"{other:.0f}", f"{ratio:.2f}x", str(len(pairs))))
    text += markdown(("decoding 64 rows", "ours, tokens/s", "model.generate", "ratio (median)", "pairs"), sampler)
    return text + f"\nmeasured; {_origins([result])}\n"


def reported(file: Path) -> str:
    """Published figures in italics, with their source."""
    facts = json.loads(file.read_text())
    rows = [(row["model"], *(_italic(row.get(column)) for column in facts["columns"])) for row in facts["rows"]]
    return markdown(("model", *facts["columns"]), rows) + f"\nreported, not measured by us: {facts['source']}\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _seconds(races: Sequence[dict[str, Any]]) -> list[float]:
    return [race["seconds"] for race in races if race["seconds"] is not None]


def _italic(value: float | None) -> str:
    return "-" if value is None else f"*{value}*"


def _origins(results: Sequence[dict[str, Any]]) -> str:
    """Where and when, once for results of one commit, day and machine."""
    days = [{**result["provenance"], "time": result["provenance"]["time"][:10]} for result in results]
    return "; ".join(dict.fromkeys(map(describe, days)))
