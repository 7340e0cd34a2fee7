"""`stepstack bench dsv`: block-sparse attention against dense attention and its peers, on one GPU.

All take the same q, k, v and the same lists. The result is time / (dense time x density), where 1 is the limit that
sparsity allows.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepstack.config import ROOT
from stepstack.ops.attention import sparse_attention
from stepstack.ops.cubes import Cubes
from stepstack.ops.select import low_rank_selection, pooled_selection, top_blocks
from stepstack.ops.selection import Blocks, Selection, offsets_of
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console

HEADS = {64: 24, 128: 12}  # number of heads by head dim
TOKENS = (32768, 65536, 131072)
SPARSITIES = (0.80, 0.90, 0.95)
BLOCK = 64
RANK = 16
GOALS = {"forward": 1 / 0.75, "backward": 1 / 0.55}  # times the limit, at sparsity 0.9
DENSE = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
OURS = "stepstack"

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SequenceShape:
    """Shape of one sequence of ``tokens`` with HEADS of ``dim``."""

    dim: int
    tokens: int

    @property
    def heads(self) -> int:
        return HEADS[self.dim]

    def tensors(self) -> list[Tensor]:
        """Random q, k, v and gradient of the output, bfloat16."""
        shape = 1, self.heads, self.tokens, self.dim
        samples = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
        return [*(x.requires_grad_() for x in samples[:3]), samples[3]]


def measure(
    rounds: int = 20,
    longest: int = TOKENS[-1],
    seed: int = 0,
    shortest: int = TOKENS[0],
    dim: int = 0,
    percent: int = 0,
) -> dict[str, Any]:
    """Times of all shapes from ``shortest`` to ``longest`` tokens, each the median of ``rounds`` timings; of one head
    ``dim`` and one sparsity in ``percent`` where they are not 0."""
    options = {"rounds": rounds, "shortest": shortest, "longest": longest, "dim": dim, "percent": percent}
    *_, last = measurements(**options, seed=seed)
    return last


def measurements(
    *, rounds: int, shortest: int, longest: int, dim: int, percent: int, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """The figures of ``measure`` as far as they have come, after each contestant."""
    if not torch.cuda.is_available():
        raise ValueError("bench dsv needs a CUDA device and there is none; on a CPU run: stepstack bench dsv-cpu")
    shapes = [SequenceShape(d, t) for d in HEADS for t in TOKENS if shortest <= t <= longest and dim in (0, d)]
    sparsities = [sparsity for sparsity in SPARSITIES if percent in (0, round(100 * sparsity))]
    if not shapes or not sparsities:
        raise ValueError(
            f"bench dsv: nothing to measure; tokens are {TOKENS}, dim is one of {tuple(HEADS)}, percent one of "
            f"{tuple(round(100 * s) for s in SPARSITIES)}"
        )
    torch.manual_seed(seed)
    rows: list[dict[str, Any]] = []
    device = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    facts = {"bench": "dsv", "block": BLOCK, **device, "provenance": provenance()}
    for shape in track(shapes, description="bench dsv"):
        for more in shape_times(shape, sparsities, rounds):
            rows += more
            yield {**facts, "rows": rows}


def shape_times(shape: SequenceShape, sparsities: Sequence[float], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """Times of one shape, the dense ones first. ValueError where no dense attention ran, the measure of all others."""
    dense = dense_times(shape, rounds)
    yield dense
    best = {what: min((r["ms"] for r in dense if r["pass"] == what and "ms" in r), default=0.0) for what in GOALS}
    if not all(best.values()):
        raise ValueError(f"no dense attention ran at {shape.tokens} tokens: {dense[0].get('failed')}")
    for sparsity in sparsities:
        for kind in ("uniform", "ragged"):
            yield from sparse_times(shape, sparsity, kind, best, rounds)
    yield layout_times(shape, best, rounds)


def dense_times(shape: SequenceShape, rounds: int) -> list[dict[str, Any]]:
    rows = []
    for who, backend in DENSE.items():
        tensors = shape.tensors()
        row = {"dim": shape.dim, "tokens": shape.tokens, "who": who, "sparsity": 0.0, "k": "all"}
        rows += passes(row, F.scaled_dot_product_attention, tensors, rounds, sdpa_kernel(backend))
    return rows


def sparse_times(
    shape: SequenceShape, sparsity: float, kind: str, best: dict[str, float], rounds: int
) -> Iterator[list[dict[str, Any]]]:
    """Times of every contestant on one selection, and the difference of its output from ours."""
    selection = random_selection(shape, sparsity, kind)
    density = float(selection.density.mean())
    tensors = shape.tensors()
    row = {"dim": shape.dim, "tokens": shape.tokens, "sparsity": sparsity, "k": kind, "density": density}
    q, k, v, _ = tensors
    ours = sparse_attention(q, k, v, selection, impl="triton").detach()
    for who, attend in contestants(selection):
        timings = passes({**row, "who": who}, attend, tensors, rounds, ours=ours)
        yield [{**r, "times_limit": r["ms"] / (best[r["pass"]] * density)} if "ms" in r else r for r in timings]
    keep = keep_counts(shape, sparsity, kind)
    yield selection_times(row, shape, keep, tensors, best["forward"] * density, rounds)


def passes(
    row: dict[str, Any],
    attend: Attend,
    tensors: Sequence[Tensor],
    rounds: int,
    where: AbstractContextManager[Any] | None = None,
    ours: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Rows of forward and backward. A peer that fails gives rows with the reason in its own words."""
    *qkv, d_out = tensors
    try:
        with where or nullcontext():
            out = attend(*qkv)
            more = {} if ours is None else {"difference": float((out - ours).float().norm() / ours.float().norm())}

            def forward() -> None:
                with torch.no_grad():
                    attend(*qkv)

            forward_ms = milliseconds(forward, rounds)
            back_ms = milliseconds(lambda: torch.autograd.grad(out, qkv, d_out, retain_graph=True), rounds)
    except (RuntimeError, ValueError) as error:
        if row["who"] == OURS:
            raise
        return [{**row, "pass": what, "failed": str(error).splitlines()[0][:200]} for what in GOALS]
    return [{**row, **more, "pass": "forward", "ms": forward_ms}, {**row, "pass": "backward", "ms": back_ms}]


def milliseconds(run: Callable[[], Any], rounds: int, warm: int = 3) -> float:
    """Median of the device's time for one call. Caches are flushed before each."""
    for _ in range(warm):
        run()
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    spans = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for began, ended in spans:
        flush.zero_()
        began.record()
        run()
        ended.record()
    torch.cuda.synchronize()
    return median(began.elapsed_time(ended) for began, ended in spans)


def keep_counts(shape: SequenceShape, sparsity: float, kind: str) -> list[int]:
    """Number of key blocks of each head: the same for all, or from half to one and a half of it."""
    mean = (1 - sparsity) * shape.tokens / BLOCK
    spread = [0.5 + h / (shape.heads - 1) if kind == "ragged" else 1.0 for h in range(shape.heads)]
    return [max(1, round(mean * s)) for s in spread]


def random_selection(shape: SequenceShape, sparsity: float, kind: str) -> Selection:
    """Random blocks, the hardest lists for caches, since neighbours share blocks only by chance."""
    blocks = Blocks.even(shape.tokens, BLOCK, device="cuda")
    indices, counts = [], []
    for keep in keep_counts(shape, sparsity, kind):
        keep_Q = torch.full((blocks.count,), keep, dtype=torch.int32, device="cuda")
        scores_QK = torch.rand(blocks.count, blocks.count, device="cuda")
        indices.append(top_blocks(scores_QK, keep_Q, keep * blocks.count, "triton"))
        counts.append(keep_Q)
    return Selection(blocks, blocks, 1, shape.heads, offsets_of(torch.cat(counts)), torch.cat(indices))


def contestants(selection: Selection) -> Iterator[tuple[str, Attend]]:
    """Our kernels, FlexAttention with the same blocks, and FastVideo's VSA where it is installed."""
    yield OURS, lambda q, k, v: sparse_attention(q, k, v, selection, impl="triton", check=False)
    counts_BHQ, lists_BHQK = padded_lists(selection)
    yield "FlexAttention", flex(selection, counts_BHQ, lists_BHQK)
    if importlib.util.find_spec("fastvideo_kernel") is not None:
        from fastvideo_kernel.block_sparse_attn import block_sparse_attn_from_indices, block_sparse_attn_triton

        lists = lists_BHQK[..., : int(counts_BHQ.max())].contiguous(), counts_BHQ, selection.keys.lengths
        yield "VSA Triton", lambda q, k, v: block_sparse_attn_triton(q, k, v, *lists)[0]
        yield "VSA", lambda q, k, v: block_sparse_attn_from_indices(q, k, v, *lists)[0]


def padded_lists(selection: Selection) -> tuple[Tensor, Tensor]:
    """Lists in the form of the peers: lengths [B, H, Q] and indices [B, H, Q, K], int32, padded with 0."""
    shape = selection.batch, selection.heads, selection.queries.count
    lists = torch.zeros(selection.rows, selection.keys.count, dtype=torch.int32, device=selection.indices.device)
    entries = torch.arange(selection.indices.shape[0], device=lists.device) - selection.offsets[selection.row_of]
    lists[selection.row_of, entries] = selection.indices
    return selection.counts.view(shape).int().contiguous(), lists.view(*shape, -1)


def flex(selection: Selection, counts: Tensor, lists: Tensor) -> Attend:
    """Compiled FlexAttention whose blocks are all full, so that it never evaluates the mask.

    The mask is passed because without compilation only the mask would count.
    """
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    mask = selection.mask()

    def attended(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return mask[b, h, q // BLOCK, k // BLOCK]

    blocks = BlockMask.from_kv_blocks(torch.zeros_like(counts), torch.zeros_like(lists), counts, lists, BLOCK, attended)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


def selection_times(
    row: dict[str, Any], shape: SequenceShape, keep: list[int], tensors: Sequence[Tensor], limit: float, rounds: int
) -> list[dict[str, Any]]:
    """Times of the work before attention: selection by pooling and by low rank, and transposing the lists for the
    backward."""
    q, k = (x.detach() for x in tensors[:2])
    blocks = Blocks.even(shape.tokens, BLOCK, device="cuda")
    low_q, low_k = (x[..., :RANK].contiguous() for x in (q, k))
    chosen = pooled_selection(q, k, blocks, blocks, keep)

    def transpose() -> None:
        fresh = Selection(blocks, blocks, 1, shape.heads, chosen.offsets, chosen.indices)
        _ = fresh.order, fresh.inverse.order

    parts = {
        "select pooled": lambda: pooled_selection(q, k, blocks, blocks, keep),
        "select low rank": lambda: low_rank_selection(low_q, low_k, blocks, blocks, keep),
        "transpose lists": transpose,
    }
    times = {name: milliseconds(run, rounds) for name, run in parts.items()}
    return [{**row, "who": OURS, "pass": n, "ms": ms, "times_limit": ms / limit} for n, ms in times.items()]


def layout_times(shape: SequenceShape, best: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """Times into cubes and back for hidden states of all heads, and of a copy of the same size, the limit by
    bandwidth."""
    cubes = Cubes.build((shape.tokens // 1024, 32, 32), device="cuda")
    x = torch.randn(1, shape.tokens, shape.heads * shape.dim, device="cuda", dtype=torch.bfloat16)
    parts = {"to cubes": lambda: cubes.gather(x), "from cubes": lambda: cubes.scatter(x), "copy": x.clone}
    row = {"dim": shape.dim, "tokens": shape.tokens, "who": OURS, "sparsity": 0.0, "k": "all"}
    return [{**row, "pass": name, "ms": milliseconds(run, rounds)} for name, run in parts.items()]


def show(result: dict[str, Any]) -> None:
    out = console()
    table = Table(title=f"block-sparse attention, bfloat16, {result['gpu']}")
    for column in ("D", "tokens", "sparsity", "k", "pass", "who", "ms", "x limit", "goal"):
        table.add_column(column)
    for r in result["rows"]:
        goal = GOALS.get(r["pass"]) if r["sparsity"] == 0.9 and r["who"] == OURS else None
        table.add_row(
            str(r["dim"]),
            str(r["tokens"]),
            f"{r['sparsity']:.2f}",
            r["k"],
            r["pass"],
            r["who"],
            f"{r['ms']:.3f}" if "ms" in r else r["failed"],
            f"{r['times_limit']:.2f}" if "times_limit" in r else "",
            f"{goal:.2f}" if goal else "",
        )
    print(f"-> {plot(result, ROOT / 'evals' / 'results' / 'bench-dsv.png')}")
    out.print(table)
    out.print(describe(result["provenance"]))


def plot(result: dict[str, Any], file: Path) -> Path:
    """Plot of times the limit over length at sparsity 0.9, one panel a head dim and pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(len(HEADS), len(GOALS), sharex=True, squeeze=False)
    rows = [r for r in result["rows"] if "times_limit" in r and r["sparsity"] == 0.9]
    for line, dim in zip(panels, HEADS, strict=True):
        for panel, what in zip(line, GOALS, strict=True):
            here = [r for r in rows if r["dim"] == dim and r["pass"] == what]
            for who, kind in dict.fromkeys((r["who"], r["k"]) for r in here):
                points = sorted((r["tokens"], r["times_limit"]) for r in here if (r["who"], r["k"]) == (who, kind))
                panel.plot(*zip(*points, strict=True), marker="o", label=f"{who}, {kind} k")
            panel.axhline(GOALS[what], linestyle="--", color="grey", linewidth=1)
            panel.set(title=f"{what}, head dim {dim}", xlabel="tokens", ylabel="time / (dense x density)", xscale="log")
            if here:
                panel.legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return file
