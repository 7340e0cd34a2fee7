"""Analytic MFU trend over cluster sizes, which shows why large TP groups pay at scale.

With a fixed global batch, a TP of 8 leaves many pipeline stages and few microbatches each, so that bubbles grow. A
larger high-bandwidth domain trades them for TP communication, which it carries fast. Defaults: Llama-3.1-405B on GPUs
of 989 TFLOPS at 0.6 efficiency, 450 GB/s each way, no overlap of TP communication. The paper's 3.37x comes from its own
simulator, which is not published. This module shows the trend and its size, not that number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """Shape of a language model and its global batch."""

    layers: int = 126
    hidden: int = 16384
    ffn: int = 53248
    kv_ratio: float = 1 / 16  # of key-value heads to query heads
    vocabulary: int = 128_256
    sequence: int = 8192
    batch: int = 2048  # sequences a step

    def layer_parameters(self) -> float:
        return (2 + 2 * self.kv_ratio) * self.hidden**2 + 3 * self.hidden * self.ffn

    def layer_flops(self) -> float:
        """FLOPs of forward and backward of one sequence: 6 a parameter and token, and causal attention."""
        return 6 * self.layer_parameters() * self.sequence + 6 * self.sequence**2 * self.hidden


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One GPU and its share of the domain.

    ``flops`` per second at its peak, ``efficiency`` of matrix products, ``bandwidth`` of the domain in bytes per second
    each way, ``memory`` in bytes for weights, gradients and optimizer state.
    """

    flops: float = 989e12
    efficiency: float = 0.6
    bandwidth: float = 450e9
    memory: float = 64e9


STATE_BYTES = 6.0  # of a parameter on each rank: bf16 weights and gradients, and a share of the sharded fp32 state
SHARED_BYTES = 12.0  # of a parameter, sharded over DP: fp32 weights and moments


def step_mfu(model: Model, machine: GpuSpec, gpus: int, tp: int, pp: int) -> float | None:
    """MFU of a step of 1F1B pipelines with one sequence a microbatch; None where the layout does not fit.

    It does not fit where GPUs or batch do not divide, or weights exceed memory. The slowest stage has ceil(layers / pp)
    layers.
    """
    if gpus % (tp * pp) or pp > model.layers:
        return None
    dp = gpus // (tp * pp)
    if model.batch % dp:
        return None
    parameters = model.layers * model.layer_parameters() + 2 * model.vocabulary * model.hidden
    if parameters / (tp * pp) * (STATE_BYTES + SHARED_BYTES / dp) > machine.memory:
        return None
    microbatches = model.batch // dp
    compute = model.layer_flops() / tp / (machine.flops * machine.efficiency)
    # Four all-reduces a layer (two forward, two backward) of the activations, each 2(t-1)/t of them on the wire.
    volume = 4 * 2 * (tp - 1) / tp * model.sequence * model.hidden * 2
    layer = compute + volume / machine.bandwidth
    slots = microbatches + pp - 1  # a bubble of pp - 1
    useful = model.layer_flops() * microbatches * model.layers / (tp * pp)
    return useful / (machine.flops * slots * layer * ceil(model.layers / pp))


def best(model: Model, machine: GpuSpec, gpus: int, tps: Sequence[int]) -> dict[str, Any] | None:
    """Layout with the highest MFU: tp, pp, mfu."""
    stages = [2**i for i in range(model.layers.bit_length())]
    layouts = [
        {"tp": tp, "pp": pp, "mfu": mfu}
        for tp in tps
        for pp in stages
        if (mfu := step_mfu(model, machine, gpus, tp, pp)) is not None
    ]
    return max(layouts, key=lambda row: row["mfu"]) if layouts else None


def trend(
    sizes: Sequence[int],
    tps: Sequence[int] = (8, 16, 32, 64, 128),
    model: Model | None = None,
    machine: GpuSpec | None = None,
) -> list[dict[str, Any]]:
    """Best layout with TP up to 8 (a DGX), best layout of ``tps``, and the ratio of their MFU, for each cluster size.

    Sizes at which either has no layout are left out.
    """
    model, machine = model or Model(), machine or GpuSpec()
    rows = []
    for gpus in sizes:
        small, large = best(model, machine, gpus, [8]), best(model, machine, gpus, tps)
        if small and large:
            rows.append({"gpus": gpus, "dgx": small, "best": large, "ratio": large["mfu"] / small["mfu"]})
    return rows
