"""A student and its teacher as policies: logits of the one, and how far the other is from them at the same tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.models.lm.policy import Policy, TokenMask, in_chunks, token_logprobs

Divergence = Callable[[Tensor, Tensor], Tensor]  # of logits [N, V] of student and teacher, [N]


class TeacherPolicy(Policy):
    """Policy that returns logits: a student is held against them. They take N x V numbers of the model's precision
    until the student's backward pass is over: at 4,096 tokens and 70,656 logits 0.6 GB in bfloat16."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [N, V] at the selected positions, without what is banned and what the mask forbids. ``labels`` are
        those that the student gets, and have no part in it."""
        return self._logits(*self._selected(input_ids, position_ids, select, attention_mask))


class StudentPolicy(Policy):
    """Policy that also returns its ``divergence`` from a teacher. The mask's tokens are out of both distributions."""

    def __init__(
        self,
        lm: PreTrainedModel,
        divergence: Divergence,
        banned: Sequence[int] = (),
        mask: TokenMask | None = None,
    ):
        super().__init__(lm, banned, mask)
        self.divergence = divergence

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        labels: Tensor,
        teacher_NV: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Log-probability, entropy and divergence [N] in fp32; ``teacher_NV`` are logits of a ``TeacherPolicy`` with
        the same mask at the same positions. Without them, what a Policy returns: no divergence."""
        if teacher_NV is None:
            return super().forward(input_ids, position_ids, select, labels, attention_mask=attention_mask)
        hidden_ND, states = self._selected(input_ids, position_ids, select, attention_mask)

        def head(hidden_ND: Tensor, labels_N: Tensor, teacher_NV: Tensor, states: Tensor | None) -> tuple[Tensor, ...]:
            logits_NV = self._logits(hidden_ND, states)
            return *token_logprobs(logits_NV, labels_N), self.divergence(logits_NV, teacher_NV)

        logp_N, entropy_N, divergence_N = in_chunks(head, hidden_ND, labels, teacher_NV, states)
        return logp_N, entropy_N, divergence_N


def check_vocabularies(
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerBase,
    student: PreTrainedModel,
    student_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """ConfigError where logits of teacher and student are not over the same tokens by the same ids: their divergence
    would be a number, and mean nothing."""
    one, other = (
        f"{lm.config.get_text_config().vocab_size} logits over the vocabulary {vocabulary_digest(tokenizer)}"
        for lm, tokenizer in ((teacher, teacher_tokenizer), (student, student_tokenizer))
    )
    if one != other:
        raise ConfigError(
            f"the teacher has {one}, the student {other}: a student that learns its teacher's distribution needs the "
            "same tokenizer and as many logits: make both with one tokenizer, or learn the teacher's samples alone "
            "(distill=null)"
        )


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """First 16 hex digits of the sha256 of a tokenizer's tokens with their ids, and of their number."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return f"{hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]} ({len(tokens)} tokens)"
