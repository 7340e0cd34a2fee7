"""Context parallelism on the kernels, interpreted: heads and samples laid end to end are one head to them."""

from __future__ import annotations

import torch

from tests.system.ranks import run
from tests.system.test_context_parallel import Case, check_values, on_rank

CASES = [
    Case((1, 2, "hcp"), heads=2, queries=4, batch=1, dtype=torch.float32, impl="triton"),
    Case((2, 1, "hcp"), heads=3, queries=3, batch=1, dtype=torch.float32, impl="triton"),
]


def test_two_ranks_get_what_the_reference_gets_in_one(tmp_path):
    each = run(tmp_path / "ranks", 2, on_rank, CASES)
    for number, case in enumerate(CASES):
        check_values(case, [rank[number] for rank in each], 1e-5)
