"""Every configuration that autotuning may try becomes machine code for A100 and H100, without either."""

from __future__ import annotations

import pytest

from tests.kernels import grid

SPILLS = 256  # bytes a thread; more, and the configuration is not worth its place in the list
ARCHES = (80, 90)
# One dtype and the largest head dim here; the other dtypes' and dims' in the opt-in test.
CHOSEN = [*grid.cases(("bf16",), (128,), ARCHES), *grid.cases(("fp32",), (64,), ARCHES)]
REST = [case for case in grid.cases(("bf16", "fp16", "fp32"), (64, 96, 128), ARCHES) if case not in CHOSEN]


def name(case) -> str:
    return "-".join(map(str, case))


def test_every_configuration_is_built():
    numbers = {(kernel, number) for kernel, number, *_ in CHOSEN}
    assert numbers == {(kernel, i) for kernel, (_, configs) in grid.LISTS.items() for i in range(len(configs))}


@pytest.mark.parametrize("case", CHOSEN, ids=name)
def test_builds(case, record_property):
    usage = grid.build(*case)
    record_property("usage", str(usage))
    assert usage.spills <= SPILLS, f"{case}: {usage}"


@pytest.mark.optin
@pytest.mark.parametrize("case", REST, ids=name)
def test_builds_of_the_other_types_and_dims(case):
    usage = grid.build(*case)
    assert usage.spills <= SPILLS, f"{case}: {usage}"


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("kernel", ["mean_kernel", "score_kernel", "top_kernel"])
def test_selection_kernels_build(kernel, arch):
    assert grid.build_selection(kernel, arch).spills == 0
