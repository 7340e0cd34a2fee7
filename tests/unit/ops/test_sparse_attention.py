"""The reference of block-sparse attention against the oracle, and the call around it."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from stepstack_kernels.dsv import reference

from stepstack.ops import attention
from stepstack.ops.attention import sparse_attention
from stepstack.ops.selection import Blocks, Selection
from tests.kernels.oracle import choose, compare, inputs, ragged

BLOCKS = Blocks.even(40, 16)
SELECTION = choose(BLOCKS, BLOCKS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scores_at_once", [1 << 24, 500])  # of scores: in one piece, and in many
def test_output_and_every_gradient(monkeypatch, seed, scores_at_once):
    monkeypatch.setattr(reference, "MAX_SCORES", scores_at_once)
    selection = choose(ragged(50, 12, seed), ragged(33, 20, seed + 9), batch=2, seed=seed)
    assert max(compare(selection, inputs(selection, 8, torch.float64, seed=seed), "reference").relative) < 1e-12


@pytest.mark.parametrize("scale", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_activations(scale, dtype):
    errors = compare(SELECTION, inputs(SELECTION, 64, dtype, scale), "reference")
    assert max(errors.relative) < 5e-2
    assert all(abs(ratio - 1) < 0.02 for ratio in errors.ratios)


def test_gradcheck():
    selection = choose(Blocks.even(7, 3), Blocks.even(6, 2), heads=1)
    tensors = [x.requires_grad_() for x in inputs(selection, 4, torch.float64)[:3]]
    assert torch.autograd.gradcheck(lambda *qkv: sparse_attention(*qkv, selection, impl="reference"), tensors)


def test_all_blocks_is_dense_attention_exactly():
    selection = Selection.dense(BLOCKS, BLOCKS, 1, 2)
    q, k, v, _ = inputs(selection, 16, torch.float32)
    assert torch.equal(sparse_attention(q, k, v, selection), F.scaled_dot_product_attention(q, k, v))


def test_a_query_that_sees_nothing_gives_0_and_gets_0():
    q, k, v, d_out = (x.requires_grad_() for x in inputs(SELECTION, 16, torch.float32))
    out = sparse_attention(q, k, v, SELECTION)
    out.backward(d_out)
    assert (out[:, :, :16] == 0).all()
    assert (q.grad[:, :, :16] == 0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_auto_says_once_what_it_chose_and_why(caplog):
    attention.log_choice.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            sparse_attention(*inputs(SELECTION, 16, torch.float32)[:3], SELECTION)
    message = [record.getMessage() for record in caplog.records if record.name == attention.__name__]
    assert len(message) == 1
    assert message[0].startswith("sparse attention: reference (the tensors are on cpu, the kernels need a CUDA device")


def test_a_named_implementation_that_cannot_run_raises():
    qkv = inputs(SELECTION, 16, torch.float32)[:3]
    with pytest.raises(ValueError, match="impl='triton' cannot run: the tensors are on cpu"):
        sparse_attention(*qkv, SELECTION, impl="triton")
    with pytest.raises(ValueError, match="impl must be auto, reference or triton, not 'cuda'"):
        sparse_attention(*qkv, SELECTION, impl="cuda")


Q, K, V, _ = inputs(SELECTION, 16, torch.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((Q[0], K, V), r"q must be \[batch, heads, tokens, dim\], not \[2, 40, 16\]"),
        ((Q, K.half(), V), "q, k and v must have one floating dtype"),
        ((Q.int(), K.int(), V.int()), "q, k and v must have one floating dtype"),
        ((Q, K, V.to("meta")), "v is on meta, the selection on cpu"),
        ((Q[:, :1], K, V), r"the selection is for \[1, 2\] \(batch, heads\), q has \[1, 1\]"),
        ((Q, K, V[:, :, 1:]), "do not fit together"),
        ((Q[..., 1:], K, V), "do not fit together"),
        ((Q[:, :, 1:], K, V), "q has 39 tokens, its blocks 40"),
        ((Q, K[:, :, 1:], V[:, :, 1:]), "k has 39 tokens, its blocks 40"),
    ],
)
def test_what_does_not_fit_is_named(tensors, message):
    with pytest.raises(ValueError, match=message):
        sparse_attention(*tensors, SELECTION)


def test_values_are_looked_at_unless_told_not_to():
    twice = Selection(BLOCKS, BLOCKS, 1, 2, SELECTION.offsets, torch.zeros_like(SELECTION.indices))
    with pytest.raises(ValueError, match="must ascend without duplicates"):
        sparse_attention(Q, K, V, twice)
    assert sparse_attention(Q, K, V, twice, check=False).isfinite().all()
