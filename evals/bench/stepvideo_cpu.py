"""`make bench BENCH=stepvideo-cpu`: a DiT step dense and with DSV on one CPU thread, to check that all of it runs."""

from __future__ import annotations

from typing import Any

import torch

from evals.bench.stepvideo import Case, measure_grids, show
from stepstack.models.video.dsv.config import DsvConfig, Fixed

__all__ = ["measure", "show"]


def measure(rounds: int = 8, percent: int = 75, seed: int = 0) -> dict[str, Any]:
    """CPU seconds of one thread. The reference computes what it masks, so DSV is slower here."""
    torch.set_num_threads(1)
    case = Case(2, 2, 32, percent / 100, DsvConfig(dispatch=Fixed(), cube=(1, 2, 2)))
    return measure_grids("stepvideo-cpu", case, [(4, 8, 8)], torch.device("cpu"), rounds, seed)
