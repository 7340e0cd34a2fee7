"""Race against TRL, and decoding against model.generate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from stepstack.report.formats import Table
from stepstack.report.layout import describe_origins


def table(root: Path) -> list[Table]:
    """Race against TRL, and decoding against model.generate."""
    file = root / "evals" / "results" / "bench-rl.json"
    if not file.is_file():
        return [Table((), (), ["Not measured yet."])]
    result = json.loads(file.read_text())
    by_who: dict[str, list[dict[str, Any]]] = {}
    for race in result["races"]:
        by_who.setdefault(race["who"], []).append(race)
    peer = _seconds(by_who["TRL GRPO"])
    goal = f"to {result['goal']:.2f} held-out"
    head = (goal, "CPU-s", "at the matmul peak", "speed", "steps", "rollout tokens/s", "seeds that reached it")
    races = Table(head, [_race(who, runs, peer, result["peak"]) for who, runs in by_who.items()])
    sampler = []
    for shape in dict.fromkeys(row["shape"] for row in result["sampler"]):
        rows = [row for row in result["sampler"] if row["shape"] == shape]
        own, other, flops = (median(row[name] for row in rows) for name in ("ours", "generate", "ours_flops"))
        ratio = median(row["ours"] / row["generate"] for row in rows)
        floor = result["peak"] / flops
        sampler.append((shape, f"{own:.0f}", f"{floor:.0f}", f"{other:.0f}", f"{ratio:.2f}x", str(len(rows))))
    columns = ("decoding 64 rows", "ours, tokens/s", "at the matmul peak", "model.generate", "ratio (median)", "pairs")
    return [races, Table(columns, sampler, [f"measured; {describe_origins([result])}"])]


def _race(who: str, races: Sequence[Mapping[str, Any]], peer: Sequence[float], peak: float) -> tuple[str, ...]:
    seconds = _seconds(races)
    error = stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else float("nan")
    return (
        who,
        f"{fmean(seconds):.1f} ± {error:.1f}",
        f"{fmean(race['flops'] for race in races) / peak:.1f}",
        f"{fmean(peer) / fmean(seconds):.1f}x",
        f"{fmean(race['steps'] for race in races):.0f}",
        f"{fmean(race['rollout_tokens_per_s'] for race in races):.0f}",
        f"{len(seconds)} of {len(races)}",
    )


def _seconds(races: Sequence[Mapping[str, Any]]) -> list[float]:
    return [race["seconds"] for race in races if race["seconds"] is not None]
