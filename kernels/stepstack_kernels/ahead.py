"""Compilation of a Triton kernel for an absent GPU, and its resource usage.

With it the test that every autotune configuration builds needs no device.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SPILLED = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True)
class Usage:
    """Resources of a kernel: ``registers`` and ``spills`` in bytes (stored + loaded) of one thread, ``shared`` bytes of
    memory."""

    registers: int
    spills: int
    shared: int


def build(kernel: Any, types: dict[str, Any], constants: dict[str, Any], options: dict[str, int], arch: int) -> Usage:
    """Usage of a kernel compiled for sm_``arch``.

    ``types``: Triton's name of each argument's type ("*bf16", "i32", a tuple of them). ``constants``: the values of
    constexprs. Pointers and strides (tuples) are taken as multiples of 16, which holds for whole tensors; a launch
    detects it by itself. Errors of the compiler propagate.
    """
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned: list[tuple[int, ...]] = []
    for at, kind in enumerate(signature.values()):
        if isinstance(kind, tuple):
            aligned += [(at, part) for part in range(len(kind))]
        elif kind.startswith("*"):
            aligned.append((at,))
    source = ASTSource(kernel, signature, constants, {at: [["tt.divisibility", 16]] for at in aligned})
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    if not compiled.asm["cubin"]:
        raise RuntimeError(f"no cubin for sm_{arch}: {constants} {options}")
    return assembled(compiled.asm["ptx"], arch, compiled.metadata.shared)


def assembled(ptx: str, arch: int, shared: int) -> Usage:
    """Usage that ptxas -v reports for the PTX."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        line = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={name}", str(file), "-o", str(file) + ".cubin"]
        report = subprocess.run(line, capture_output=True, text=True, check=True).stderr
    spills = [int(a) + int(b) for a, b in SPILLED.findall(report)]
    return Usage(max(map(int, USED.findall(report))), sum(spills), shared)
