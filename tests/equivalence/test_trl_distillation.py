"""Our token-level distillation against TRL's generalized_jsd_loss on whole sequences: loss and gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from stepstack.batching.config import BatchLayout
from stepstack.batching.minibatch import minibatches
from stepstack.batching.rows import Batch
from stepstack.loops import supervised
from stepstack.models.lm.distilled import StudentPolicy, TeacherPolicy
from stepstack.tuning.config import Distillation
from stepstack.tuning.distillation import divergence
from tests import tools

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BETAS = {"forward": 0.0, "reverse": 1.0, "js": 0.5}
ROWS = tools.rows([(3, 5), (7, 1), (2, 9), (5, 4), (1, 6)])
LAYOUTS = (BatchLayout(max_tokens=10_000), BatchLayout(max_tokens=24), BatchLayout(pack=True))


def theirs(student, teacher, beta: float, temperature: float) -> torch.Tensor:
    """TRL's loss of the rows, right-padded, with labels on the response alone."""
    from trl.experimental.gkd import GKDTrainer

    width = max(map(len, ROWS))
    ids, labels = torch.zeros(len(ROWS), width, dtype=torch.long), torch.full((len(ROWS), width), -100)
    for place, row in enumerate(ROWS):
        ids[place, : len(row)] = torch.tensor((*row.prompt_ids, *row.ids))
        labels[place, len(row.prompt_ids) : len(row)] = torch.tensor(row.ids)
    with torch.no_grad():
        teacher_logits = teacher(ids).logits[:, :-1]
    logits = student(ids).logits[:, :-1]
    return GKDTrainer.generalized_jsd_loss(logits, teacher_logits, labels[:, 1:], beta, temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", BETAS)
def test_divergences_and_gradients(tmp_path, kind, temperature):
    """In one micro-batch, in several, and packed. TRL's loss has no squared temperature and no likelihood."""
    cfg = Distillation(divergence=kind, weight=temperature**-2, likelihood=0.0, temperature=temperature)
    lm, teacher_lm = tools.qwen2(scale=0.2), tools.llama(scale=0.2, seed=1)
    reference = copy.deepcopy(lm)
    want = theirs(reference, teacher_lm, BETAS[kind], temperature)
    want.backward()
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    assert max(value.abs().max() for value in wanted.values()) > 1e-3
    student = StudentPolicy(lm, lambda mine, its: divergence(cfg, mine, its))
    loss, run = supervised.distilled(cfg, TeacherPolicy(teacher_lm)), tools.make_run(tmp_path)
    for layout in LAYOUTS:
        lm.zero_grad()
        [part] = minibatches(run, Batch(ROWS, len(ROWS), 0), 1, layout)
        total = sum(loss(student, micro).total for micro in part.micros) / part.tokens
        torch.testing.assert_close(total, want, **CLOSE)
        total.backward()
        for name, parameter in lm.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], **CLOSE, msg=name)
        assert all(parameter.grad is None for parameter in teacher_lm.parameters())


def test_likelihood_and_divergence_together(tmp_path):
    cfg = Distillation(weight=0.7, likelihood=0.8)
    lm, teacher_lm = tools.qwen2(scale=0.2), tools.qwen2(scale=0.2, seed=1)
    [part] = minibatches(tools.make_run(tmp_path), Batch(ROWS, len(ROWS), 0), 1, LAYOUTS[0])
    [micro] = part.micros
    student = StudentPolicy(lm, lambda mine, its: divergence(cfg, mine, its))
    out = supervised.distilled(cfg, TeacherPolicy(teacher_lm))(student, micro)
    kl, nll = (
        theirs(lm, teacher_lm, 0.0, 1.0) * part.tokens,
        -student(**micro.inputs(), teacher_NV=torch.zeros(micro.count, tools.VOCAB))[0].sum(),
    )
    torch.testing.assert_close(out.total, 0.7 * kl + 0.8 * nll, **CLOSE)
    torch.testing.assert_close(out.metrics["divergence"], kl, **CLOSE)
    torch.testing.assert_close(out.metrics["nll"], nll, **CLOSE)
