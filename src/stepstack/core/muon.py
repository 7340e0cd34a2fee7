"""Muon (Jordan 2024): each hidden matrix moves along its momentum with all singular values made about one.

The arithmetic is that of ``torch.optim.Muon`` at its defaults, and so are the names in the state dict. What differs is
where Newton-Schulz runs: here in float32 on a CPU, where bfloat16 may be emulated, and many matrices at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of the quintic a x + b x^3 + c x^5; steepest at zero
STEPS = 5
MIN_NORM = 1e-7  # a norm below this is taken for it, so that a gradient of zeros stays one
MAX_BATCH_ELEMENTS = 2**24  # elements of the matrices that are orthogonalised at one time: 64 MiB in float32


def orthogonalized(x_BOI: Tensor) -> Tensor:
    """U S V^T of each matrix becomes about U V^T by Newton-Schulz, in the precision given; singular values that are not
    tiny beside the matrix's norm come out between 0.6 and 1.3. Fewest operations where M <= N."""
    a, b, c = COEFFICIENTS
    x_BOI = x_BOI / torch.linalg.vector_norm(x_BOI, dim=(1, 2), keepdim=True).clamp(min=MIN_NORM)
    for _ in range(STEPS):
        gram_BOO = x_BOI @ x_BOI.mT
        factor_BOO = torch.baddbmm(gram_BOO, gram_BOO, gram_BOO, beta=b, alpha=c)
        x_BOI = torch.baddbmm(x_BOI, factor_BOO, x_BOI, beta=a)
    return x_BOI


def precision(weight: Tensor) -> torch.dtype:
    """The type that Newton-Schulz of a weight runs in: bfloat16 where a GPU has units for it, else float32 at least."""
    if weight.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.promote_types(weight.dtype, torch.float32)


class MuonOptimizer(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times ``lr * sqrt(max(1, rows / columns))``; weight decay is decoupled.

    For matrices only (ValueError). Sharded ones (DTensor) are gathered for Newton-Schulz, which every process then does
    by itself: the step is that of one process, at its price in arithmetic.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim != 2:
                    raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(weight.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for alike in _alike(weights):
                self._move(alike, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})
        return loss

    def _move(self, weights: list[Tensor], lr: float, weight_decay: float, momentum: float) -> None:
        wide = [_wide(self._direction(weight, momentum)) for weight in weights]
        for weight, update in zip(weights, orthogonalized(torch.stack(wide)), strict=True):
            rows, columns = weight.shape
            weight.mul_(1 - lr * weight_decay)
            weight.add_(_placed(update.mT if rows > columns else update, weight), alpha=-lr * _stretch(rows, columns))

    def _direction(self, weight: Tensor, momentum: float) -> Tensor:
        """The gradient with Nesterov momentum, whole and in the precision of Newton-Schulz."""
        grad, state = weight.grad, self.state[weight]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        direction = grad.lerp(buffer, momentum)
        direction = direction.full_tensor() if isinstance(direction, DTensor) else direction
        return direction.to(precision(weight))


def _stretch(rows: int, columns: int) -> float:
    return math.sqrt(max(1.0, rows / columns))


def _wide(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _placed(whole: Tensor, weight: Tensor) -> Tensor:
    """This process's part of a matrix that every process has, in the weight's precision."""
    whole = whole.to(weight.dtype)
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)


def _alike(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Weights whose matrices can be stacked once the tall ones are transposed, as many as ``MAX_BATCH_ELEMENTS``
    allows."""
    by_shape: dict[tuple[Any, ...], list[Tensor]] = {}
    for weight in weights:
        by_shape.setdefault((*sorted(weight.shape), weight.device, weight.dtype), []).append(weight)
    for alike in by_shape.values():
        count = max(1, MAX_BATCH_ELEMENTS // alike[0].numel())
        for start in range(0, len(alike), count):
            yield alike[start : start + count]
