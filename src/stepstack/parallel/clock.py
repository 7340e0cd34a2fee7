"""When the passes of a batch were carried out."""

from __future__ import annotations

import time

import torch

from stepstack.planning.pipeline.graph import Action


class PassClock:
    """Seconds of passes from the making of the clock. On a GPU its events are taken, so that nobody waits for it before
    ``times`` is asked for."""

    def __init__(self, device: torch.device):
        self.device = device
        self._passes: dict[Action, tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = {}
        self._start = self._begun = self._now()

    def begin(self) -> None:
        """A pass begins now."""
        self._begun = self._now()

    def end(self, action: Action) -> None:
        """The pass that began last has ended."""
        self._passes[action] = self._begun, self._now()

    def times(self) -> dict[Action, tuple[float, float]]:
        """Beginning and end of each pass."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return {action: (self._since(begun), self._since(ended)) for action, (begun, ended) in self._passes.items()}

    def _now(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _since(self, mark: float | torch.cuda.Event) -> float:
        if isinstance(mark, float):
            assert isinstance(self._start, float)
            return mark - self._start
        return self._start.elapsed_time(mark) / 1000  # type: ignore[union-attr]
