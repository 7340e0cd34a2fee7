"""A student beside its teacher: the same tokens, one mask for both, logits in parts, and vocabularies that differ."""

from __future__ import annotations

import pytest
import torch

from stepstack.batching.collate import collate
from stepstack.batching.rows import Row
from stepstack.config import ConfigError
from stepstack.models.lm import tiny
from stepstack.models.lm.distilled import StudentPolicy, TeacherPolicy, check_vocabularies, vocabulary_digest
from stepstack.models.lm.policy import MIN_LOGIT, Policy
from stepstack.models.speech.mask import GroupMask
from stepstack.models.speech.tokens import TokenLayout
from stepstack.tuning.config import Distillation
from stepstack.tuning.distillation import divergence
from tests import tools

LAYOUT, END = TokenLayout(first=40, linguistic=20, semantic=30), 1
MASK = GroupMask(LAYOUT, [END], tools.VOCAB)
SPOKEN = [Row(k, (2, 3 + k), (*LAYOUT.interleave([k, 5, 6, 7], [k, 9, 10, 11, 12, 13]), END)) for k in range(3)]
CFG = Distillation()


def forward_kl(student_NV, teacher_NV):
    return divergence(CFG, student_NV, teacher_NV)


@pytest.mark.parametrize("pack", [False, True])
def test_the_mask_is_on_both_distributions(pack):
    """By hand: softmax over what the state allows alone, in both; forgetting it in one is nats off."""
    lm, teacher = tools.qwen2(), tools.qwen2(seed=1)
    inputs = collate(SPOKEN, pack, "cpu").inputs()
    with torch.no_grad():
        teacher_NV = TeacherPolicy(teacher, mask=MASK)(**inputs)
        logp_N, entropy_N, divergence_N = StudentPolicy(lm, forward_kl, mask=MASK)(**inputs, teacher_NV=teacher_NV)
        raw_NV = TeacherPolicy(teacher)(**inputs)
        mine_NV = TeacherPolicy(lm)(**inputs)
        plain_N, plain_entropy_N = Policy(lm, mask=MASK)(**inputs)
    assert torch.equal(logp_N, plain_N)
    assert torch.equal(entropy_N, plain_entropy_N)
    states = [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5] * len(SPOKEN)
    for place, state in enumerate(states):
        allowed = ~MASK.forbidden[state]
        p, q = (of[place][allowed].softmax(0) for of in (raw_NV, mine_NV))
        assert divergence_N[place].item() == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)
        assert (teacher_NV[place][~allowed] == MIN_LOGIT).all()
    with torch.no_grad():
        forgotten = StudentPolicy(lm, forward_kl, mask=MASK)(**inputs, teacher_NV=raw_NV)[2]
    assert forgotten.min() > 1e3


def test_the_teacher_reads_the_same_tokens():
    """A student that is its teacher has no divergence, one place further on it has."""
    lm, inputs = tools.qwen2(), collate(SPOKEN, False, "cpu").inputs()
    student = StudentPolicy(lm, forward_kl, mask=MASK)
    with torch.no_grad():
        teacher_NV = TeacherPolicy(lm, mask=MASK)(**inputs)
        assert student(**inputs, teacher_NV=teacher_NV)[2].abs().max() < 1e-6
        assert student(**inputs, teacher_NV=teacher_NV.roll(1, 0))[2].max() > 0.1


def test_logits_in_parts_are_the_same_with_their_gradients(monkeypatch):
    lm, inputs = tools.qwen2(), collate(SPOKEN, True, "cpu").inputs()
    with torch.no_grad():
        teacher_NV = TeacherPolicy(tools.qwen2(seed=1), mask=MASK)(**inputs)
    found = []
    for most in (4096, 7):
        monkeypatch.setattr("stepstack.models.lm.policy.MAX_LOGIT_POSITIONS", most)
        lm.zero_grad()
        out = StudentPolicy(lm, forward_kl, mask=MASK)(**inputs, teacher_NV=teacher_NV)
        sum(part.sum() for part in out).backward()
        found.append((out, [parameter.grad.clone() for parameter in lm.parameters()]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_vocabularies_that_differ_are_refused_by_size_and_digest():
    one, longer = tiny.tokenizer(), tiny.tokenizer(pieces=(*tiny.PIECES, "more"))
    swapped = tiny.tokenizer(pieces=(*tiny.PIECES[1:], tiny.PIECES[0]))
    lm, wide = tools.qwen2(len(one)), tools.qwen2(len(longer))
    check_vocabularies(lm, one, tools.qwen2(len(one), seed=1), tiny.tokenizer())
    for teacher, its, student, mine in ((wide, longer, lm, one), (lm, one, wide, one), (lm, swapped, lm, one)):
        with pytest.raises(ConfigError, match="the same tokenizer and as many logits") as refused:
            check_vocabularies(teacher, its, student, mine)
        for part in (teacher.config.vocab_size, vocabulary_digest(its), student.config.vocab_size, len(one)):
            assert str(part) in str(refused.value)
