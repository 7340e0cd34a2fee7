"""Cost and power of the interconnect, from bills of materials.

Unit prices and parts are those of the paper's cost study. They are recalled from arXiv 2502.03885 section 6.5, not read
in its text, and reproduce every total that it prints to the cent. Power of the 1.6T active copper cable is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True, slots=True)
class Part:
    """Price in ``dollars`` and power in ``watts`` of one part; ``watts`` None where it is not known."""

    dollars: float
    watts: float | None


PARTS: Mapping[str, Part] = {
    "Palomar OCS": Part(80_000, 108),
    "400G FR4 transceiver": Part(360, 12),
    "DAC 50 GB/s": Part(63.6, 0.1),
    "fibre": Part(6.8, 0),
    "NVLink switch": Part(28_000, 275),
    "DAC 200 Gb/s": Part(35.6, 0.1),
    "ACC 1.6T": Part(320, None),
    "OSFP 1.6T transceiver": Part(850, 25),
    "OCSTrx 800G": Part(600, 12),
    "DAC 1.6T": Part(199.6, 0.1),
}


@dataclass(frozen=True, slots=True)
class Bill:
    """Smallest unit that is sold: ``gpus`` in it, ``bandwidth`` of each in GB/s, ``parts`` by name."""

    gpus: int
    bandwidth: float
    parts: Mapping[str, int]

    def dollars(self) -> float:
        """Price per GPU."""
        return sum(PARTS[name].dollars * count for name, count in self.parts.items()) / self.gpus

    def watts(self) -> float | None:
        """Power per GPU; None where a part's power is not known."""
        used = [(PARTS[name].watts, count) for name, count in self.parts.items()]
        known = [watts * count for watts, count in used if watts is not None]
        return sum(known) / self.gpus if len(known) == len(used) else None


def infinitepod(hops: int, gpus: int = 4) -> Bill:
    """Bill of one node: 8 transceivers and 8 fibres a bundle, two cables for each copper gap (8K, 8K and 2(R-K))."""
    parts = {"OCSTrx 800G": 8 * hops, "DAC 1.6T": 2 * (gpus - hops), "fibre": 8 * hops}
    return Bill(gpus, 800, parts)


BILLS: Mapping[str, Bill] = {
    "TPUv4": Bill(4096, 300, {"Palomar OCS": 48, "400G FR4 transceiver": 6144, "DAC 50 GB/s": 5120, "fibre": 6144}),
    "NVL-36": Bill(36, 900, {"NVLink switch": 9, "DAC 200 Gb/s": 2592}),
    "NVL-72": Bill(72, 900, {"NVLink switch": 18, "DAC 200 Gb/s": 5184}),
    "NVL-36x2": Bill(72, 900, {"NVLink switch": 36, "DAC 200 Gb/s": 6480, "ACC 1.6T": 162}),
    "NVL-576": Bill(
        576, 900, {"NVLink switch": 432, "DAC 200 Gb/s": 41472, "OSFP 1.6T transceiver": 4608, "fibre": 4608}
    ),
    "InfinitePOD K=2": infinitepod(2),
    "InfinitePOD K=3": infinitepod(3),
}


def table() -> dict[str, dict[str, float | None]]:
    """Map from architecture to $/GPU, $/GPU/GBps, W/GPU and W/GPU/GBps."""
    costs: dict[str, dict[str, float | None]] = {}
    for name, bill in BILLS.items():
        watts = bill.watts()
        costs[name] = {
            "$/GPU": bill.dollars(),
            "$/GPU/GBps": bill.dollars() / bill.bandwidth,
            "W/GPU": watts,
            "W/GPU/GBps": None if watts is None else watts / bill.bandwidth,
        }
    return costs


def by_size(sizes: Sequence[int], waste: Mapping[str, float] | None = None) -> dict[str, list[float]]:
    """Map from architecture to interconnect dollars per wanted GPU at each cluster size, where whole units are bought.

    With ``waste`` (a fraction of GPUs by architecture) enough units are bought that the wanted number of GPUs is
    usable.
    """
    if any(size < 1 for size in sizes):
        raise ValueError(f"cluster sizes {list(sizes)}: give sizes of 1 GPU or more")
    lines = {}
    for name, bill in BILLS.items():
        if waste is not None and name not in waste:
            continue
        useful = bill.gpus * (1 - (waste[name] if waste else 0.0))
        lines[name] = [ceil(size / useful) * bill.gpus * bill.dollars() / size for size in sizes]
    return lines
