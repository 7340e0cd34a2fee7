"""Peak throughput of a device, for MFU, and the memory that was taken."""

from __future__ import annotations

import functools
import resource
import time

import torch

# Dense bf16 tensor-core peaks from the vendors' data sheets, TFLOP/s.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "H800": 989.0, "A100": 312.0, "A800": 312.0, "L40S": 362.0, "4090": 165.0}


@functools.cache
def peak_flops(device: torch.device, precision: str, given_tflops: float | None) -> float:
    """FLOP/s of one device: the given figure, a data sheet's (bf16 on a known GPU), or a measured matmul."""
    if given_tflops is not None:
        return given_tflops * 1e12
    if device.type == "cuda" and precision == "bf16":
        name = torch.cuda.get_device_name(device)
        for key, tflops in PEAK_TFLOPS.items():
            if key in name:
                return tflops * 1e12
    return measured_flops(device)


def measured_flops(device: torch.device, size: int = 512, rounds: int = 8) -> float:
    """Best of several fp32 square matmuls with the threads that the run has."""
    size = size if device.type == "cpu" else 8192
    a, b = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def memory_gib(device: torch.device) -> float:
    """Peak memory of a GPU that this process allocated, or of the process itself, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
