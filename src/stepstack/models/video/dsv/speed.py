"""Offline speed profile: the sparsity from which on sparse attention is faster than dense attention on this device."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from rich.progress import track
from torch import Tensor

from stepstack.config import ConfigError, Strict
from stepstack.models.video.dsv import profiler
from stepstack.models.video.dsv.config import rope_split
from stepstack.models.video.dsv.layout import CubeLayout
from stepstack.models.video.dsv.predictor import LowRankPredictor
from stepstack.models.video.grid import Grid
from stepstack.ops.attention import sparse_attention
from stepstack.ops.select import low_rank_selection, pooled_selection
from stepstack.report import jsonl
from stepstack.report.provenance import host, provenance

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
COMMAND = "measure it: stepstack profile dsv --help"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape(Strict):
    """Shape and device that the ratio of the times depends on, beside the size of the video."""

    device: str
    dtype: str
    heads: int
    head_dim: int
    cube: tuple[int, int, int]
    selector: Literal["low_rank", "pooled"]
    rank: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRow(Strict):
    """Seconds of forward and backward at one size and sparsity; ``sparse_s`` has selection and layout in it."""

    grid: tuple[int, int, int]
    sparsity: float
    dense_s: float
    sparse_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedProfile(Strict):
    shape: AttentionShape
    rows: tuple[SpeedRow, ...]
    provenance: dict[str, Any]

    @classmethod
    def load(cls, file: Path) -> SpeedProfile:
        """Profile in a file. ConfigError that names the file where it is missing or no profile."""
        if not file.is_file():
            raise ConfigError(f"no speed profile at {file}; {COMMAND}")
        try:
            return cls.parse(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, ValidationError) as error:
            raise ConfigError(f"{file} is no speed profile: {error}; {COMMAND}") from None

    @classmethod
    def parse(cls, values: dict[str, Any]) -> SpeedProfile:
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)

    def save(self, file: Path) -> None:
        jsonl.write_json_atomic(file, asdict(self))

    def check(self, wanted: AttentionShape) -> None:
        """Raise ConfigError that names the differences, unless the profile was measured for this device and shape."""
        mine, other = asdict(self.shape), asdict(wanted)
        differ = [f"{key}: profiled {mine[key]}, here {other[key]}" for key in mine if mine[key] != other[key]]
        if differ:
            raise ConfigError(f"the speed profile is of another device or shape ({'; '.join(differ)}); {COMMAND}")

    def lines(self) -> Iterator[str]:
        """Lines for people, one a size: from which sparsity on sparse attention is faster, and its speed at the highest
        one."""
        for grid in dict.fromkeys(row.grid for row in self.rows):
            last = max((row for row in self.rows if row.grid == grid), key=lambda row: row.sparsity)
            least = self.threshold(grid)
            when = "never faster" if least is None else f"faster from sparsity {least:.2f} on"
            ratio = last.dense_s / last.sparse_s
            yield f"{format_grid(grid)}: {when}; {ratio:.2f}x dense at {last.sparsity}"

    def threshold(self, grid: Grid) -> float | None:
        """Sparsity from which on sparse attention is faster at this size, interpolated linearly between measured ones.

        None where it never is. ConfigError for a size that was not measured.
        """
        points = sorted((row.sparsity, row.sparse_s - row.dense_s) for row in self.rows if row.grid == grid)
        if not points:
            have = ", ".join(map(format_grid, dict.fromkeys(row.grid for row in self.rows)))
            raise ConfigError(f"the speed profile has no grid {format_grid(grid)}, only {have}; {COMMAND}")
        slower = [i for i, (_, excess) in enumerate(points) if excess > 0]
        if not slower:
            return points[0][0]
        if slower[-1] == len(points) - 1:
            return None
        (low, above), (high, below) = points[slower[-1]], points[slower[-1] + 1]
        return low + (high - low) * above / (above - below)


def format_grid(grid: Grid) -> str:
    return "x".join(map(str, grid))


@cache
def device_name(device: torch.device) -> str:
    """Name of a GPU, or the model of a CPU with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{host()['cpu']}, {torch.get_num_threads()} threads"


def parse_grid(text: str) -> Grid:
    """Three numbers of a text such as ``"21x45x80"``."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise ConfigError(f"{text!r} is not of the form FxHxW: give frames, rows and columns, such as 21x45x80")
    f, h, w = map(int, text.split("x"))
    return f, h, w


def measure(shape: AttentionShape, grids: Sequence[Grid], device: torch.device, rounds: int = 5) -> SpeedProfile:
    """Time dense and sparse attention in turn, forward and backward, at every size and sparsity."""
    rope_split(shape.rank)
    cases = [(grid, sparsity) for grid in grids for sparsity in SPARSITIES]
    rows = [time_case(shape, grid, sparsity, device, rounds) for grid, sparsity in track(cases, "measuring")]
    return SpeedProfile(shape=shape, rows=tuple(rows), provenance=provenance())


def time_case(shape: AttentionShape, grid: Grid, sparsity: float, device: torch.device, rounds: int) -> SpeedRow:
    """Medians over ``rounds`` at one size and sparsity. The first round of each warms up and does not count."""
    layout = CubeLayout.build(grid, shape.cube, shape.rank, device)
    dtype: torch.dtype = getattr(torch, shape.dtype)
    generator = torch.Generator().manual_seed(0)
    size = (1, shape.heads, layout.tokens, shape.head_dim)
    q, k, v = qkv = [torch.randn(size, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    width = shape.heads * shape.head_dim
    x = torch.randn(1, layout.tokens, width, generator=generator).to(device, dtype)
    predictor = LowRankPredictor(width, shape.heads, shape.rank).to(device)
    keep_H = profiler.blocks_to_keep(torch.full((shape.heads,), sparsity), layout.blocks.count)

    def sparse() -> Tensor:
        a, b, c = (layout.to_cubes(y) for y in qkv)
        with torch.no_grad():
            if shape.selector == "pooled":
                selection = pooled_selection(a, b, layout.blocks, layout.blocks, keep_H)
            else:
                low_q, low_k = (layout.to_cubes(y) for y in predictor(x, layout.angles))
                selection = low_rank_selection(low_q, low_k, layout.blocks, layout.blocks, keep_H)
        return layout.to_model(sparse_attention(a, b, c, selection, check=False))

    contest = (lambda: F.scaled_dot_product_attention(q, k, v), sparse)
    times = [[seconds(run, qkv, device) for run in contest] for _ in range(rounds + 1)][1:]
    dense_s, sparse_s = (median(column) for column in zip(*times, strict=True))
    return SpeedRow(grid=grid, sparsity=sparsity, dense_s=dense_s, sparse_s=sparse_s)


def seconds(run: Callable[[], Tensor], inputs: Sequence[Tensor], device: torch.device) -> float:
    """Wall time of one forward and backward pass."""
    synchronize(device)
    started = time.perf_counter()
    torch.autograd.grad(run().sum(), inputs)
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
