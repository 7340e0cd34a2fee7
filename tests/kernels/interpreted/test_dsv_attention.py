"""The attention kernels in Triton's interpreter against the float64 oracle. Memory that no kernel wrote holds NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from stepstack_kernels.dsv import triton_op

from stepstack.ops.attention import sparse_attention
from stepstack.ops.selection import Blocks, Selection
from tests.kernels.oracle import choose, compare, inputs, ragged

BOUND = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the relative L2 error


@pytest.fixture(autouse=True)
def nan_where_nothing_is_written():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


SHAPES = {
    "even": (Blocks.even(64, 16), Blocks.even(64, 16), 64),
    "ragged, cross lengths": (ragged(70, 16, seed=1), ragged(50, 30, seed=2), 32),
    "one token over": (Blocks.even(33, 16), Blocks.even(49, 16), 16),
    "96 dims": (Blocks.even(40, 32), Blocks.even(40, 32), 96),
    "24 dims": (Blocks.even(32, 16), Blocks.even(32, 16), 24),
    "blocks of several tiles": (Blocks.even(270, 130), Blocks.even(200, 100), 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_every_gradient(shape, dtype):
    queries, keys, dim = SHAPES[shape]
    selection = choose(queries, keys)
    errors = compare(selection, inputs(selection, dim, dtype), "triton")
    assert max(errors.relative) < BOUND[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [4, 16])
def test_large_activations(scale, dtype):
    selection = choose(Blocks.even(48, 16), Blocks.even(48, 16))
    errors = compare(selection, inputs(selection, 64, dtype, scale), "triton")
    assert max(errors.relative) < 5e-2
    assert all(abs(ratio - 1) < 0.02 for ratio in errors.ratios)


def test_bfloat16_is_upcast_for_the_interpreter():
    selection = choose(Blocks.even(48, 16), Blocks.even(48, 16))
    errors = compare(selection, inputs(selection, 32, torch.bfloat16), "triton")
    assert max(errors.relative) < BOUND[torch.bfloat16]


def test_two_batches_in_the_layout_of_a_projection_and_a_slice_of_a_fused_one():
    selection = choose(Blocks.even(40, 16), Blocks.even(40, 16), batch=2)
    fused = torch.randn(2, 40, 2, 3 * 16, generator=torch.Generator().manual_seed(3))
    q, k, v = fused.transpose(1, 2).split(16, dim=-1)  # rows contiguous, tensors not
    d_out = torch.randn(2, 2, 40, 16)
    assert max(compare(selection, [q, k, v, d_out], "triton").relative) < BOUND[torch.float32]
    q = torch.randn(2, 2, 16, 40).mT  # rows not contiguous
    assert max(compare(selection, [q, k, v, d_out], "triton").relative) < BOUND[torch.float32]


def test_a_query_that_sees_nothing_gives_0_and_gets_0():
    selection = choose(Blocks.even(48, 16), Blocks.even(48, 16))
    q, k, v, d_out = (x.requires_grad_() for x in inputs(selection, 16, torch.float32))
    out = sparse_attention(q, k, v, selection, impl="triton")
    out.backward(d_out)
    assert selection.counts[0] == 0
    assert (out[:, :, :16] == 0).all()
    assert (q.grad[:, :, :16] == 0).all()


def test_all_blocks_is_dense_attention():
    blocks = Blocks.even(50, 16)
    selection = Selection.dense(blocks, blocks, 1, 2)
    q, k, v, _ = inputs(selection, 32, torch.float32)
    out = sparse_attention(q, k, v, selection, impl="triton")
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v))


def test_torch_accepts_the_operator():
    selection = choose(Blocks.even(32, 16), Blocks.even(48, 16), heads=1)
    q, k, v, _ = (x.requires_grad_() for x in inputs(selection, 16, torch.float32))
    lists = [[s.order, s.offsets, s.indices] for s in (selection, selection.inverse)]
    numbers = 16, 16, 0.25
    args = (q, k, v, selection.queries.starts, selection.keys.starts, *lists, *numbers)
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(triton_op.attention, args)


def test_compiled_in_one_graph_it_gives_the_same():
    selection = choose(Blocks.even(32, 16), Blocks.even(48, 16), heads=1)

    def step(q, k, v):
        return sparse_attention(q * 2, k, v, selection, impl="triton").sin()

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        q, k, v, _ = (x.requires_grad_() for x in inputs(selection, 16, torch.float32))
        out = run(q, k, v)
        out.sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_float64_is_refused_by_name():
    selection = choose(Blocks.even(32, 16), Blocks.even(32, 16))
    with pytest.raises(ValueError, match=r"impl='triton' cannot run: .*not torch.float64"):
        sparse_attention(*inputs(selection, 16, torch.float64)[:3], selection, impl="triton")
