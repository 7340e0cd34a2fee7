"""Which machine an error of the network speaks of."""

from __future__ import annotations

import pytest
from torch.distributed import DistBackendError

from stepstack.core.processes import Machines, this_place

FOUR = Machines([(f"gpu{i // 2 + 1}", f"10.0.0.{i // 2 + 1}") for i in range(8)], rank=0, local=2)
GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.3]:41234"
NCCL = "ncclRemoteError: ... socketProgress: Connection closed by remote peer gpu3<53210>"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), DistBackendError(NCCL)], ids=["gloo", "nccl"])
def test_the_machine_that_the_error_names(error):
    said = FOUR.lost(error)
    assert said is not None
    assert said.startswith("lost the connection to a process on machine 2 (gpu3), which ")
    assert said.endswith("the same command on all machines goes on from the last checkpoint")


def test_one_that_it_does_not_name_is_any_of_the_others():
    said = FOUR.lost(DistBackendError("timed out"))
    assert said is not None
    assert "machine 0 (gpu1) or machine 1 (gpu2) or machine 2 (gpu3) or machine 3 (gpu4), which" in said
    many = Machines([(f"gpu{i}", f"10.0.0.{i}") for i in range(16)], rank=15, local=1)
    assert "machine 3 (gpu3) or one of 11 others, which" in str(many.lost(DistBackendError("timed out")))


def test_a_longer_address_is_another_machine():
    assert "machine 1 (b)" in str(
        Machines([("a", "10.0.0.1"), ("b", "10.0.0.12"), ("c", "10.0.0.2")], rank=0, local=1).lost(
            RuntimeError("gloo: Connection reset by peer [10.0.0.12]:1")
        )
    )


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), RuntimeError("CUDA out of memory")])
def test_other_errors_are_not_of_the_network(error):
    assert FOUR.lost(error) is None


def test_one_process_has_nobody_to_lose():
    assert Machines([this_place()], rank=0, local=1).lost(RuntimeError(GLOO)) is None
