"""Muon: its Newton-Schulz against singular values in float64, its steps against torch's, its state dict."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from stepstack.core import muon, optim
from stepstack.core.muon import MuonOptimizer, orthogonalized

SHAPES = ((6, 6), (12, 6), (6, 12), (5, 9), (6, 6), (12, 6), (96, 256), (256, 96))
SETTINGS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}


def weights(shapes: Sequence[tuple[int, int]] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)) for shape in shapes]


def pull(parameters: Sequence[nn.Parameter], seed: int) -> None:
    """Gradients of ``seed``, of very unequal sizes: each matrix is to be normed by itself."""
    draw = torch.Generator().manual_seed(seed)
    for i, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 10.0 ** (i % 5 - 3)
        parameter.grad = gradient.to(parameter.dtype)


def walk(optimizer: torch.optim.Optimizer, first: int = 0, last: int = 3) -> list[Tensor]:
    """Each weight after the steps ``first`` to ``last``, the last not among them."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for seed in range(first, last):
        pull(parameters, seed)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def by_singular_values(matrix: Tensor) -> Tensor:
    """What Newton-Schulz comes to: the quintic five times over each singular value of the normed matrix."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm().clamp(min=1e-7)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


def reference(steps: int, lr: float, momentum: float, weight_decay: float) -> list[Tensor]:
    """The steps of Muon in float64, one matrix at a time, from the formulas of the paper."""
    parameters = weights(dtype=torch.float64)
    buffers = [torch.zeros_like(parameter) for parameter in parameters]
    for seed in range(steps):
        pull(parameters, seed)
        for parameter, buffer in zip(parameters, buffers, strict=True):
            buffer.mul_(momentum).add_(parameter.grad, alpha=1 - momentum)
            update = by_singular_values((1 - momentum) * parameter.grad + momentum * buffer)
            rows, columns = parameter.shape
            parameter.data.mul_(1 - lr * weight_decay).sub_(lr * max(1, rows / columns) ** 0.5 * update)
    return [parameter.detach() for parameter in parameters]


def apart(one: Sequence[Tensor], other: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """Largest distance of two walks from the same start, in the length of the other."""
    return max(
        ((a - b).norm() / (b - c).norm()).item()
        for a, b, c in ((a.double(), b.double(), c.double()) for a, b, c in zip(one, other, start, strict=True))
    )


# -- arithmetic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (96, 256)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_newton_schulz_is_the_quintic_of_singular_values(shape, scale):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) * scale
    for matrix, update in zip(matrices, orthogonalized(matrices), strict=True):
        want = by_singular_values(matrix)
        assert (update - want).norm() < 1e-5 * want.norm()
        assert torch.linalg.svdvals(update).min() > 0.3
        assert torch.linalg.svdvals(update).max() < 1.3


def test_gradients_of_zeros_and_of_low_rank():
    low = torch.randn(8, 1, generator=torch.Generator().manual_seed(1)) @ torch.ones(1, 8)
    zero, update = orthogonalized(torch.stack([torch.zeros(8, 8), low]))
    assert torch.equal(zero, torch.zeros(8, 8))
    assert (update - by_singular_values(low)).norm() < 1e-4


def test_updates_are_those_of_float64():
    start = weights()
    found = walk(MuonOptimizer(weights(), **SETTINGS))
    assert apart(found, reference(3, **SETTINGS), start) < 1e-4


def test_matrices_are_stacked_and_a_stack_has_a_limit(monkeypatch):
    """The same steps, one matrix at a time; and what is stacked is what has one shape, lying or standing."""
    found, start = walk(MuonOptimizer(weights(), **SETTINGS)), weights()
    stacks = []
    monkeypatch.setattr(
        muon, "orthogonalized", lambda x_BMN: stacks.append(tuple(x_BMN.shape)) or orthogonalized(x_BMN)
    )
    walk(MuonOptimizer(weights(), **SETTINGS), last=1)
    assert sorted(stacks) == [(1, 5, 9), (2, 6, 6), (2, 96, 256), (3, 6, 12)]
    stacks.clear()
    monkeypatch.setattr(muon, "MAX_BATCH_ELEMENTS", 2 * 6 * 12)
    singly = walk(MuonOptimizer(weights(), **SETTINGS), last=1)
    assert sorted(stacks) == [(1, 5, 9), (1, 6, 12), (1, 96, 256), (1, 96, 256), (2, 6, 6), (2, 6, 12)]
    assert apart(singly, walk(MuonOptimizer(weights(), **SETTINGS), last=1), start) < 1e-5
    assert apart(found, singly, start) > 0.1  # a step is not three


def test_a_cpu_computes_in_float32_and_in_float64_where_the_weights_are():
    assert muon.precision(torch.zeros(1)) == torch.float32
    assert muon.precision(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    assert muon.precision(torch.zeros(1, dtype=torch.float64)) == torch.float64
    found = walk(MuonOptimizer(weights(dtype=torch.float64), **SETTINGS))
    assert apart(found, reference(3, **SETTINGS), weights()) < 1e-12


def test_weights_without_a_gradient_stay():
    parameters = weights()
    pull(parameters, 0)
    parameters[0].grad = None
    optimizer = MuonOptimizer(parameters, **SETTINGS)
    optimizer.step()
    assert torch.equal(parameters[0], weights()[0])
    assert not torch.equal(parameters[1], weights()[1])
    assert len(optimizer.state) == len(parameters) - 1


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_other_than_matrices_are_refused(shape):
    with pytest.raises(ValueError, match=r"Muon is for matrices, not for a parameter of shape \("):
        MuonOptimizer([nn.Parameter(torch.zeros(shape))])


# -- beside torch's ----------------------------------------------------------------------------------------------------


def test_steps_are_torchs_within_bfloat16():
    """torch's Muon runs in bfloat16 and is itself so far from float64."""
    start, want = weights(), reference(3, **SETTINGS)
    theirs = walk(torch.optim.Muon(weights(), **SETTINGS))
    assert 1e-3 < apart(theirs, want, start) < 0.03
    assert apart(walk(MuonOptimizer(weights(), **SETTINGS)), theirs, start) < 0.03


def test_defaults_are_torchs():
    ours, theirs = MuonOptimizer(weights()), torch.optim.Muon(weights())
    assert ours.defaults.items() <= theirs.defaults.items()
    assert (theirs.defaults["nesterov"], theirs.defaults["ns_steps"], theirs.defaults["adjust_lr_fn"]) == (
        True,
        5,
        None,
    )
    assert theirs.defaults["ns_coefficients"] == muon.COEFFICIENTS
    assert theirs.defaults["eps"] == muon.MIN_NORM


def test_a_state_dict_goes_on_where_it_was_written():
    whole = walk(MuonOptimizer(weights(), **SETTINGS), last=4)
    first = MuonOptimizer(weights(), **SETTINGS)
    walk(first, last=2)
    state = copy.deepcopy(first.state_dict())
    assert {name for of in state["state"].values() for name in of} == {"momentum_buffer"}
    second = MuonOptimizer([nn.Parameter(p.detach().clone()) for p in first.param_groups[0]["params"]], lr=9.0)
    second.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(walk(second, 2, 4), whole, strict=True))


def test_a_state_dict_of_torchs_muon_goes_on_here():
    theirs = torch.optim.Muon(weights(), **SETTINGS)
    walk(theirs, last=2)
    start = [p.detach().clone() for p in theirs.param_groups[0]["params"]]
    ours = MuonOptimizer([nn.Parameter(p.clone()) for p in start])
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert apart(walk(ours, 2, 4), walk(theirs, 2, 4), start) < 0.03


# -- groups ------------------------------------------------------------------------------------------------------------


def test_groups_have_rates_of_their_own():
    """A group at twice the rate moves its weights twice as far; the same shape in two groups is not stacked."""
    one, two, free = weights([(6, 6)] * 3)
    start = [p.detach().clone() for p in (one, two)]
    groups = [{"params": [one]}, {"params": [two], "lr": 0.1, "weight_decay": 0.0}]
    optimizer = MuonOptimizer(groups, lr=0.05, weight_decay=0.0)
    for parameter in (one, two, free):
        parameter.grad = torch.eye(6)
    optimizer.step()
    torch.testing.assert_close((two - start[1]), 2 * (one - start[0]), rtol=1e-5, atol=1e-6)
    assert (one - start[0]).abs().max() > 0.02


def test_our_optimizers_give_it_hidden_matrices_and_remember_the_peak():
    module = nn.ModuleDict({"hidden": nn.Linear(4, 6), "embed": nn.Embedding(5, 4), "lm_head": nn.Linear(4, 5)})
    cfg = optim.Muon(lr=0.03, momentum=0.8, weight_decay=0.2, adamw_lr=0.001)
    by_matrix, rest = optim.optimizers(module, cfg)
    assert isinstance(by_matrix, MuonOptimizer)
    [group] = by_matrix.param_groups
    assert group["params"] == [module["hidden"].weight]
    wanted = {"lr": 0.03, "peak_lr": 0.03, "momentum": 0.8, "weight_decay": 0.2}
    assert {name: group[name] for name in wanted} == wanted
    assert rest.param_groups[0]["peak_lr"] == 0.001
    assert by_matrix.state_dict()["param_groups"][0]["peak_lr"] == 0.03
