"""`stepstack bench video-memory`: figures of planning.memory for a tiny Step-Video DiT beside measured ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stepstack.core.config import AdamW
from stepstack.core.ema import Ema
from stepstack.core.optim import optimizers
from stepstack.models.video.dit import VideoDiT
from stepstack.planning.memory import BYTES, Cost, Dit, Machine, cost
from stepstack.report.provenance import describe, provenance
from stepstack.terminal import console

SHAPE: dict[str, Any] = {"layers": 4, "heads": 3, "head_width": 32, "channels": 16}  # stepvideo-tiny's
PLANNED = Dit(**SHAPE, text=(32, 32), text_tokens=(16, 8))
GRID = (5, 4, 4)
TOKENS = 80
SIDE, REPEATS = 1024, 20  # side and number of the matrix products that measure the speed of this machine

Precision = Literal["no", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("no", "bf16")


def measure(batch: int = 16, steps: int = 10) -> dict[str, Any]:
    """Planned and measured figures on one thread. ``batch``: videos of a forward pass. ``steps``: the fastest of them
    counts."""
    torch.set_num_threads(1)
    rows = [_row("parameters", PLANNED.parameters, sum(p.numel() for p in dit().parameters()))]
    rows.append(_row("bytes of weights, gradients, moments, average", planned_cost(batch).states, states(batch)))
    for again in (False, True):
        how = "recomputed" if again else "kept"
        want = planned_cost(batch, again)
        executed = batch * (want.forward + want.backward + want.recomputed)
        rows.append(_row(f"FLOPs of a step, blocks {how}", executed, flops(batch, again)))
    for precision in PRECISIONS:
        for again in (False, True):
            number = "float32" if precision == "no" else "bfloat16"
            what = f"bytes of activations, {number}, blocks {'recomputed' if again else 'kept'}"
            measured = checkpointed_activations(batch, precision) if again else activations(batch, precision)
            rows.append(_row(what, planned_cost(batch, again, precision).activations, measured))
    peak = matmul()
    want = planned_cost(batch)
    seconds = batch * (want.forward + want.backward) / peak
    rows.append(
        _row(f"seconds of a step at the {peak / 1e9:.0f} GFLOP/s of matmul", seconds, fastest_step(batch, steps))
    )
    return {"bench": "video-memory", "batch": batch, "tokens": TOKENS, "rows": rows, "provenance": provenance()}


def show(result: dict[str, Any]) -> None:
    table = Table(f"{result['batch']} videos of {TOKENS} tokens", "planned", "measured", "measured / planned")
    for row in result["rows"]:
        table.add_row(row["what"], f"{row['planned']:.6g}", f"{row['measured']:.6g}", f"{row['ratio']:.4f}")
    out = console()
    out.print(table)
    out.print(describe(result["provenance"]))


def planned_cost(batch: int, again: bool = False, precision: Precision = "no") -> Cost:
    return cost(PLANNED, TOKENS, Machine(gpus=1, micro=batch, precision=precision, again=again))


def dit(again: bool = False, precision: Precision = "no", layers: int = PLANNED.layers) -> VideoDiT:
    torch.manual_seed(0)
    model = VideoDiT(**{**SHAPE, "layers": layers}, text_channels=PLANNED.text, split=(16, 8, 8)).train()
    if precision == "bf16":
        model.to(torch.bfloat16)
    if again:
        model.enable_gradient_checkpointing()
    return model


def inputs(batch: int, dtype: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
    frames, height, width = GRID
    latents = torch.randn(batch, frames, SHAPE["channels"], height, width, dtype=dtype)
    text, clip = (torch.randn(batch, n, c, dtype=dtype) for n, c in zip(PLANNED.text_tokens, PLANNED.text, strict=True))
    return {
        "latents_BFCYX": latents,
        "image_BFCYX": torch.zeros_like(latents),
        "text_BLC": text,
        "clip_BMC": clip,
        "text_mask_BL": torch.ones(text.shape[:2], dtype=torch.bool),
        "time_B": torch.rand(batch),
        "motion_B": torch.rand(batch),
    }


def states(batch: int) -> int:
    """Bytes that remain after a step of AdamW: each parameter, its gradient, moments and average."""
    model = dit()
    parameters = list(model.parameters())
    [optimizer] = optimizers(model, AdamW())
    average = Ema(parameters, 0.9)
    model(**inputs(batch)).square().mean().backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [p.grad for p in parameters if p.grad is not None]
    return sum(x.numel() * x.element_size() for x in [*parameters, *gradients, *moments, *average.averages])


def flops(batch: int, again: bool) -> int:
    """FLOPs counted by torch. Attention uses plain products, because its fused form on CPUs is counted as nothing."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        dit(again)(**inputs(batch)).square().mean().backward()
    return counter.get_total_flops()


def activations(batch: int, precision: Precision, again: bool = False, layers: int = PLANNED.layers) -> int:
    """Bytes of the storages, without weights, that autograd keeps after a forward pass.

    Of blocks that are recomputed these are their inputs. bf16: weights are cast beforehand, like in FSDP2.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model, batch_inputs = dit(again, precision, layers), inputs(batch, dtype)
    cast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with saved_storages({p.untyped_storage().data_ptr() for p in model.parameters()}) as stored, cast:
        model(**batch_inputs)
        return sum(stored().values())


def checkpointed_activations(batch: int, precision: Precision) -> int:
    """Bytes at the height of a backward pass: the inputs of all blocks, and the tensors that one block keeps beside its
    own."""
    less, more = (activations(batch, precision, layers=n) for n in (1, 2))
    own = batch * TOKENS * PLANNED.width * BYTES[precision]
    return activations(batch, precision, again=True) + more - less - own


@contextlib.contextmanager
def saved_storages(without: set[int]) -> Iterator[Any]:
    """Context with a function that returns the bytes of each storage saved for backward so far, by its address."""
    saved: list[Tensor] = []  # held, so that no address is given out twice

    def sizes() -> dict[int, int]:
        storages = [x.untyped_storage() for x in saved]
        return {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in without}

    def pack(x: Tensor) -> Tensor:
        saved.append(x.detach())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield sizes


def matmul() -> float:
    """FLOP/s of float32 matrix products on this machine, one thread: the fastest of several."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(_cpu_seconds(partial(torch.mm, a, b)) for _ in range(REPEATS))


def fastest_step(batch: int, steps: int) -> float:
    """Seconds of a forward and backward pass, the fastest of ``steps``."""
    model, batch_inputs = dit(), inputs(batch)
    return min(_cpu_seconds(lambda: model(**batch_inputs).square().mean().backward()) for _ in range(steps))


def _cpu_seconds(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _row(what: str, planned_cost: float, measured: float) -> dict[str, Any]:
    return {"what": what, "planned": planned_cost, "measured": measured, "ratio": measured / planned_cost}
