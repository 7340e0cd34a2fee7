"""`make bench BENCH=dsv-cpu`: cost of the reference of sparse attention on one CPU thread."""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from rich.table import Table

from evals.bench.dsv import BLOCK, SPARSITIES, Attend
from stepstack.ops.attention import sparse_attention
from stepstack.ops.select import pooled_selection
from stepstack.ops.selection import Blocks
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console


def measure(rounds: int = 5, tokens: int = 2048) -> dict[str, Any]:
    """Times of the reference, which computes what it masks, against dense attention on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = Blocks.even(tokens, BLOCK)
    rows = []
    for sparsity in track((0.0, *SPARSITIES), description="bench dsv-cpu"):
        q, k, v = (torch.randn(1, 2, tokens, 64, requires_grad=True) for _ in range(3))
        keep = [max(1, round((1 - sparsity) * blocks.count))] * 2
        selection = pooled_selection(q, k, blocks, blocks, keep)
        attend: dict[str, Attend] = {
            "dense": F.scaled_dot_product_attention,
            "reference": partial(sparse_attention, selection=selection, impl="reference"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in (*attend, "selection")}
        for _ in range(rounds):
            for name, run in attend.items():
                began = time.process_time()
                run(q, k, v).sum().backward()
                seconds[name].append(time.process_time() - began)
            began = time.process_time()
            pooled_selection(q, k, blocks, blocks, keep)
            seconds["selection"].append(time.process_time() - began)
        rows.append({"sparsity": sparsity, "tokens": tokens, **{n: median(s) for n, s in seconds.items()}})
    return {"bench": "dsv-cpu", "block": BLOCK, "rows": rows, "provenance": provenance()}


def show(result: dict[str, Any]) -> None:
    table = Table(title="forward + backward, one thread")
    for column in ("sparsity", "dense, CPU-s", "reference", "ratio", "selection"):
        table.add_column(column)
    for r in result["rows"]:
        figures = [r["dense"], r["reference"], r["reference"] / r["dense"], r["selection"]]
        table.add_row(f"{r['sparsity']:.2f}", *(f"{x:.3f}" for x in figures))
    out = console()
    out.print(table)
    out.print(describe(result["provenance"]))
