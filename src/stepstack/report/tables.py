"""Tables in the READMEs, generated from evals/: a number in a table is in a file with its provenance. No torch.

A table stands between ``<!-- table: name -->`` and ``<!-- end -->``; the name is that of a layout (evals/tables, see
``layout``) or of one of the makers here, whose shape no layout has. ``measured`` (evals/results, ours) and ``reported``
(evals/reported, published, with source) never share a row of a layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from stepstack.config import ROOT
from stepstack.report import formats, jsonl, layout, plots, pods, steplaw
from stepstack.report.formats import Format, Table
from stepstack.report.layout import origins

BLOCK = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
SUMS, ACCURACY = "orz_tiny", "avg@1"  # the task and metric of the table of single runs


def record(run: Path, root: Path = ROOT) -> Path:
    """evals/results/<name>.json of a run: config, provenance, its evaluations by label (before, after, model, ...), its
    curve on the selection set, what a sweep has fitted, what DSV came to, and CPU seconds; no samples.

    FileNotFoundError where nothing of the run was evaluated or fitted.
    """
    facts = json.loads((run / "config.json").read_text())
    evals: dict[str, list[dict[str, Any]]] = {}
    for file in sorted((run / "evals").glob("*/*/result.json")):
        evals.setdefault(file.parent.parent.name, []).append(json.loads(file.read_text()))
    fit = run / "fit.json"
    if not evals and not fit.is_file():
        raise FileNotFoundError(f"{run / 'evals'} holds no result.json: train to the end, or `stepstack eval` the run")
    stages = [*sorted(run.glob("*/metrics.jsonl")), run / "metrics.jsonl"]
    seconds = [sum(row["cpu_s"] for row in jsonl.read(file)) for file in stages if file.is_file()]
    out = root / "evals" / "results" / f"{facts['config']['name']}.json"
    kept = {"kind": "run", **facts, "evals": evals, "cpu_s": sum(seconds), "cpu_s_by_stage": seconds}
    kept["curve"] = curve(jsonl.read(stages[-1]))
    for extra in (fit, run / "dsv.json"):
        if extra.is_file():
            kept[extra.stem] = json.loads(extra.read_text())
    jsonl.write_json_atomic(out, kept)
    return out


def curve(rows: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """What the selection set gave when, and the mean loss since the time before."""
    points, losses = [], []
    for row in rows:
        losses += [row["loss"]] if "loss" in row else []
        if found := {key: value for key, value in row.items() if key.startswith("eval/")}:
            points.append({"step": row["step"], **found} | ({"loss": fmean(losses)} if losses else {}))
            losses = []
    return points


def generate(check: bool = False, root: Path = ROOT) -> int:
    """Rewrite every table block of the tracked READMEs and docs, and the plots; with ``check`` only compare. Exit
    status."""
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
    makers: dict[str, Callable[[Path], Sequence[Table]]] = {
        "orz-tiny": orz_tiny,
        "bench-rl": bench_rl,
        "bench-video-memory": bench_video_memory,
        "dsv-wan-tiny": dsv_wan_tiny,
        "stepvideo-dsv": stepvideo_dsv,
        **pods.makers(),
        **steplaw.makers(),
    }
    if name in makers:
        return formats.render(makers[name](root), format)
    if name not in layout.names(root):
        raise ValueError(f"no table {name!r}: there are {', '.join([*makers, *layout.names(root)])}")
    return layout.render(name, format, root)


def orz_tiny(root: Path) -> list[Table]:
    """Each recorded run before and after: what a mean over seeds does not show."""
    files = sorted((root / "evals" / "results").glob("orz-tiny-seed*.json"))
    if not files:
        return [Table((), (), ["No run has been recorded."])]
    rows, results = [], []
    for file in files:
        run = json.loads(file.read_text())
        found = [layout.find(file.stem, when, SUMS, ACCURACY, root) for when in ("before", "after")]
        results += [result for result, _ in found]
        rows.append(
            (
                str(run["config"]["seed"]),
                *(f"{metric['value']:.3f} ± {metric['stderr']:.3f}" for _, metric in found),
                *(f"{result['length']:.1f}" for result, _ in found),
                " + ".join(f"{seconds:.0f}" for seconds in run["cpu_s_by_stage"]),
            )
        )
    head = ("seed", "accuracy before", "after", "response tokens before", "after", "CPU-s (SFT + PPO)")
    how = f"n={results[0]['n']} held-out problems, {ACCURACY}, {layout.sampled(results[0])}, ± stderr"
    notes = [f"measured, {how}; {origins(results)}"]
    if differ := layout.differences(results):
        notes.append(f"not comparable: {'; '.join(differ)}")
    return [Table(head, rows, notes)]


def bench_rl(root: Path) -> list[Table]:
    """Against TRL, and against model.generate."""
    file = root / "evals" / "results" / "bench-rl.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    by_who: dict[str, list[dict[str, Any]]] = {}
    for race in result["races"]:
        by_who.setdefault(race["who"], []).append(race)
    peer = _seconds(by_who["TRL GRPO"])
    goal = f"to {result['goal']:.2f} held-out"
    head = (goal, "CPU-s", "speed", "steps", "rollout tokens/s", "seeds that reached it")
    races = Table(head, [_race(who, runs, peer) for who, runs in by_who.items()])
    sampler = []
    for shape in dict.fromkeys(row["shape"] for row in result["sampler"]):
        pairs = [(row["ours"], row["generate"]) for row in result["sampler"] if row["shape"] == shape]
        own, other = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(a / b for a, b in pairs)
        sampler.append((shape, f"{own:.0f}", f"{other:.0f}", f"{ratio:.2f}x", str(len(pairs))))
    columns = ("decoding 64 rows", "ours, tokens/s", "model.generate", "ratio (median)", "pairs")
    return [races, Table(columns, sampler, [f"measured; {origins([result])}"])]


def bench_video_memory(root: Path) -> list[Table]:
    """What was planned of a tiny video DiT, and measured."""
    file = root / "evals" / "results" / "bench-video-memory.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    rows = [
        (row["what"], f"{row['planned']:.4g}", f"{row['measured']:.4g}", f"{row['ratio']:.3f}")
        for row in result["rows"]
    ]
    head = (f"{result['batch']} videos, {result['tokens']} tokens each", "planned", "measured", "measured / planned")
    return [Table(head, rows, [f"measured; {origins([result])}"])]


def dsv_wan_tiny(root: Path) -> list[Table]:
    """Dense and DSV training of the same seeds (examples/dsv_wan.py)."""
    file = root / "evals" / "results" / "dsv-wan-tiny.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    pairs = list(zip(result["dense"], result["sparse"], strict=True))
    seen = ("sparsity", "mass", "recall", "pooled_recall")
    rows = [
        (
            str(dense["seed"]),
            f"{dense['held_out']:.4f}",
            f"{sparse['held_out']:.4f}",
            f"{result['steps'] - sparse['dsv']['dense_steps']} of {result['steps']}",
            *(f"{sparse['dsv'][name]:.3f}" for name in seen),
        )
        for dense, sparse in pairs
    ]
    columns = [[sparse["dsv"][name] for _, sparse in pairs] for name in seen]
    losses = [[one["held_out"] for one in run] for run in (result["dense"], result["sparse"])]
    error = [f"{fmean(c):.4f} ± {stdev(c) / len(c) ** 0.5:.4f}" for c in losses]
    rows.append(("mean ± stderr", *error, "", *(f"{fmean(column):.3f}" for column in columns)))
    head = ("seed", "held-out loss, dense", "DSV", "sparse steps", "sparsity", "mass", "recall", "recall, pooled")
    gaps = [sparse["held_out"] - dense["held_out"] for dense, sparse in pairs]
    gap = f"{fmean(gaps):.5f} ± {stdev(gaps) / len(gaps) ** 0.5:.5f}"
    note = f"measured; DSV less dense of the same seed: {gap} (mean ± stderr); {origins([result])}"
    return [Table(head, rows, [note])]


def stepvideo_dsv(root: Path) -> list[Table]:
    """Each block of stepvideo-tiny-dsv, over the runs' last steps."""
    files = sorted((root / "evals" / "results").glob("stepvideo-tiny-dsv-seed*.json"))
    if not files:
        return [Table((), (), ["No run has been recorded."])]
    runs = [json.loads(file.read_text()) for file in files]
    seen = ("sparsity", "mass", "recall", "pooled_recall")
    rows = [
        (str(i), *(_mean_and_error([block[name] for block in blocks]) for name in seen))
        for i, blocks in enumerate(zip(*(run["dsv"]["blocks"] for run in runs), strict=True))
    ]
    stages = ", ".join(f"{run['dsv']['steps']['stage 2']} of {run['dsv']['steps']['all']}" for run in runs)
    head = ("block", "sparsity", "mass", "recall", "recall, pooled")
    results = [result for run in runs for result in run["evals"]["after"]]
    note = f"measured, mean ± stderr of {len(runs)} seeds, last {runs[0]['dsv']['last']} steps; sparse steps: {stages}"
    return [Table(head, rows, [f"{note}; {origins(results)}"])]


def _mean_and_error(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ± {stdev(values) / len(values) ** 0.5 if len(values) > 1 else float('nan'):.3f}"


def _race(who: str, races: Sequence[Mapping[str, Any]], peer: Sequence[float]) -> tuple[str, ...]:
    seconds = _seconds(races)
    error = stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else float("nan")
    return (
        who,
        f"{fmean(seconds):.1f} ± {error:.1f}",
        f"{fmean(peer) / fmean(seconds):.1f}x",
        f"{fmean(race['steps'] for race in races):.0f}",
        f"{fmean(race['rollout_tokens_per_s'] for race in races):.0f}",
        f"{len(seconds)} of {len(races)}",
    )


def _seconds(races: Sequence[Mapping[str, Any]]) -> list[float]:
    return [race["seconds"] for race in races if race["seconds"] is not None]
