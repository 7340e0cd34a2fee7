"""The DSV kernels as compiled for this GPU: what the interpreter shows on a CPU, and bfloat16. `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stepstack.ops.attention import sparse_attention
from stepstack.ops.select import low_rank_selection, pooled_selection, top_blocks
from stepstack.ops.selection import Blocks, Selection
from tests.kernels.oracle import choose, compare, inputs, ragged, to

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

BOUND = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the relative L2 error


@pytest.fixture(autouse=True)
def nan_where_nothing_is_written():
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "blocks",
    [
        (Blocks.even(512, 64), Blocks.even(512, 64)),
        (Blocks.even(512, 128), Blocks.even(700, 64)),
        (ragged(500, 64, seed=1), ragged(390, 64, seed=2)),
        (ragged(500, 200, seed=3), ragged(390, 130, seed=4)),
        (ragged(100, 12, seed=5), ragged(90, 20, seed=6)),
    ],
    ids=["even", "merged queries", "ragged", "large", "small"],
)
def test_output_and_every_gradient(blocks, batch, dim, dtype):
    selection = choose(*blocks, batch=batch, heads=3)
    assert max(compare(selection, inputs(selection, dim, dtype), "triton", "cuda").relative) < BOUND[dtype]


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("scale", [1, 4, 16])
def test_large_activations(scale, dtype):
    selection = choose(Blocks.even(512, 64), Blocks.even(512, 64))
    errors = compare(selection, inputs(selection, 128, dtype, scale), "triton", "cuda")
    assert max(errors.relative) < 5e-2
    assert all(abs(ratio - 1) < 0.02 for ratio in errors.ratios)


@pytest.mark.parametrize("dim", [64, 128])
def test_all_blocks_is_dense_attention(dim):
    blocks = Blocks.even(1000, 64, device="cuda")
    selection = Selection.dense(blocks, blocks, 1, 2)
    q, k, v = (torch.randn(1, 2, 1000, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = sparse_attention(q, k, v, selection)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v), atol=2e-2, rtol=2e-2)


def test_compiled_in_one_graph_it_gives_the_same():
    selection = to(choose(Blocks.even(256, 64), Blocks.even(192, 64)), "cuda")

    def step(q, k, v):
        return sparse_attention(q * 2, k, v, selection, impl="triton").sin()

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        q, k, v = (x.cuda().requires_grad_() for x in inputs(selection, 64, torch.float32)[:3])
        out = run(q, k, v)
        out.sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("select", [pooled_selection, low_rank_selection])
def test_the_kernels_choose_what_the_reference_chooses(select):
    queries, keys = ragged(4000, 64, seed=3), ragged(5000, 64, seed=4)
    q, k = torch.randn(2, 3, 4000, 16), torch.randn(2, 3, 5000, 16)
    wanted = select(q, k, queries, keys, [2, 5, 40], impl="reference")
    moved = [Blocks(b.starts.cuda(), b.size) for b in (queries, keys)]
    made = select(q.cuda(), k.cuda(), *moved, [2, 5, 40], impl="triton")
    made.check()
    # Two scores that are equal but for rounding may change places.
    assert (made.mask().cpu() != wanted.mask()).float().mean() < 1e-3


@pytest.mark.parametrize("length", [1, 100, 2048, 5000])
def test_the_top_with_ties(length):
    scores = torch.randint(-20, 20, (64, length), device="cuda").float()
    keep = torch.randint(1, length + 1, (64,), device="cuda", dtype=torch.int32)
    made = top_blocks(scores, keep, int(keep.sum()), "triton")
    assert torch.equal(made, top_blocks(scores, keep, int(keep.sum()), "reference"))
