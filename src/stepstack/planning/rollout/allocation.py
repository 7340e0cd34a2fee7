"""Algorithm 1 of StreamRL, devices of generation and of training, and when generation gets more. No torch.

``generation`` and ``training`` below are the profiles P_gen and P_train: seconds of an iteration's stage by devices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

StageSeconds = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Devices of both stages, and the seconds that each takes for an iteration."""

    generation: int
    training: int
    generation_seconds: float
    training_seconds: float

    @property
    def seconds(self) -> float:
        """Seconds of an iteration when both stages run at the same time."""
        return max(self.generation_seconds, self.training_seconds)


@dataclass(frozen=True, slots=True)
class Growth:
    """Decision of an iteration: ``delta`` = T_gen - T_train, ``gain``, the seconds that one more unit would save, and
    the devices of generation afterwards."""

    iteration: int
    delta: float
    gain: float
    devices: int


def single(devices: int, generation: StageSeconds, training: StageSeconds, unit: int = 1) -> Allocation:
    """Algorithm 1 in one datacentre: x and y in multiples of ``unit``, x + y <= devices, that minimise
    max(P_gen(x), P_train(y)).

    Of equal ones that with the fewest devices, then with the fewest for generation. ValueError below two units.
    """
    if devices < 2 * unit:
        raise ValueError(
            f"{devices} devices cannot be shared by generation and training in units of {unit}: give {2 * unit} or more"
        )
    sizes = range(unit, devices - unit + 1, unit)
    gen, train = {x: generation(x) for x in sizes}, {y: training(y) for y in sizes}
    pairs = [(x, y) for x in sizes for y in sizes if x + y <= devices]
    x, y = min(pairs, key=lambda pair: (max(gen[pair[0]], train[pair[1]]), sum(pair), pair[0]))
    return Allocation(x, y, gen[x], train[y])


def cross(
    generation_devices: int, training_devices: int, generation: StageSeconds, training: StageSeconds, unit: int = 1
) -> Allocation:
    """Algorithm 1 across datacentres: the slower side keeps its whole budget, the other one the k in multiples of
    ``unit`` whose time is nearest to it, and frees the rest. Of equally near ones the fewest devices.

    ValueError where a side has less than a unit.
    """
    for name, budget in (("generation", generation_devices), ("training", training_devices)):
        if budget < unit:
            raise ValueError(f"{name} has {budget} devices, less than a unit of {unit}: give {unit} or more")
    m, n = generation_devices // unit * unit, training_devices // unit * unit
    slow_gen, slow_train = generation(m), training(n)
    if slow_gen < slow_train:
        k = min(range(unit, m + 1, unit), key=lambda k: (abs(generation(k) - slow_train), k))
        return Allocation(k, n, generation(k), slow_train)
    k = min(range(unit, n + 1, unit), key=lambda k: (abs(training(k) - slow_gen), k))
    return Allocation(m, k, slow_gen, training(k))


def needs_unit(generation_seconds: float, training_seconds: float, gain: float) -> bool:
    """Whether generation gets one more data-parallel unit: delta = T_gen - T_train >= delta', the ``gain`` in seconds
    that is expected of it. No unit is added that gains nothing."""
    return 0 < gain <= generation_seconds - training_seconds


def grow(
    start: int,
    unit: int,
    iterations: int,
    generation: Callable[[int, int], float],
    training: Callable[[int], float],
    most: int,
) -> list[Growth]:
    """One decision an iteration while the workload changes, without interrupting training.

    ``generation(iteration, devices)`` and ``training(iteration)`` are seconds. Generation has ``start`` devices at
    first and never more than ``most``; the unit counts from the next iteration on.
    """
    devices, decisions = start, []
    for iteration in range(iterations):
        slow, fast = generation(iteration, devices), training(iteration)
        gain = slow - generation(iteration, devices + unit)
        if devices + unit <= most and needs_unit(slow, fast, gain):
            devices += unit
        decisions.append(Growth(iteration, slow - fast, gain, devices))
    return decisions
