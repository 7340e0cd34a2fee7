"""Policy: a causal LM that returns log-probabilities of chosen tokens, never a [B, T, V] tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from stepstack.config import ConfigError

if TYPE_CHECKING:
    from stepstack.records import Picture

LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
)  # config keys
WINDOWS = ("sliding_window", "attention_chunk_size")  # config keys
MIN_LOGIT = -1e30  # logit of a banned token; not -inf, whose product with probability 0 is NaN
MAX_LOGIT_POSITIONS = 4096  # positions whose logits exist at one time: 4096 x 152k fp32 is 2.5 GB


class TokenMask(Protocol):
    """Rule of which tokens may follow the last ``window`` ones: a few states, and what each forbids."""

    window: int
    forbidden: Tensor  # bool [states, V]

    def states(self, recent_NT: Tensor) -> Tensor:
        """States [N] after the last ``window`` tokens [N, window], -1 where a sequence had none."""
        ...


def recent_tokens(input_ids: Tensor, position_ids: Tensor, select_N: Tensor, window: int) -> Tensor:
    """Last ``window`` tokens [N, window] up to each selected flat position, -1 before the beginning of its row. Where
    answers share a prompt, that of an answer goes before it."""
    position, flat = position_ids.flatten(), input_ids.flatten()
    place = torch.arange(len(flat), device=flat.device)
    start = torch.where(position == 0, place, 0).cummax(0).values
    # Positions count on by one but where a sequence begins, and where an answer goes back to its prompt's end.
    goes_on = torch.nn.functional.pad(position[1:] == position[:-1] + 1, (1, 0))
    before = torch.where(goes_on, place - 1, (start + position - 1).clamp(min=0))
    places = [select_N]
    while len(places) < window:
        places.insert(0, before[places[0]])
    back = torch.arange(window - 1, -1, -1, device=select_N.device)
    known = position[select_N][:, None] >= back
    return torch.where(known, flat[torch.stack(places, 1)], -1)


def token_logprobs(logits_NV: Tensor, labels_N: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of each distribution, both [N], fp32, of softmax(logits / T).

    The temperature is the sampler's: a policy gradient needs the distribution that was sampled from.
    """
    logp_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    entropy_N = -(logp_NV.exp() * logp_NV).sum(-1)
    # No view: FSDP2 hooks what a module returns.
    return logp_NV.gather(-1, labels_N[:, None])[:, 0].clone(), entropy_N


def in_chunks(head: Callable[..., tuple[Tensor, ...]], *columns: Tensor | None) -> tuple[Tensor, ...]:
    """Outputs [N] of ``head``, which makes logits of what it gets: rows of ``columns``, at most MAX_LOGIT_POSITIONS at
    one time, whose logits are then made again in the backward pass. A column that is None is None in each part."""
    assert columns[0] is not None
    if len(columns[0]) <= MAX_LOGIT_POSITIONS:
        return head(*columns)
    count = -(-len(columns[0]) // MAX_LOGIT_POSITIONS)
    parts = zip(
        *([None] * count if column is None else column.split(MAX_LOGIT_POSITIONS) for column in columns), strict=True
    )
    outputs = [checkpoint(head, *part, use_reentrant=False) for part in parts]
    return tuple(torch.cat(output) for output in zip(*outputs, strict=True))


def checked_mask(config: PreTrainedConfig, attention_mask: Tensor | None) -> Tensor | None:
    """The mask [B, 1, T, T] for the attention of a model with ``config``; ConfigError where that takes none, and where
    it looks back less than T tokens, which such a mask does not say."""
    text = config.get_text_config()
    if attention_mask is None:
        return None
    if text._attn_implementation != "sdpa":
        raise ConfigError(
            f"model.attention={text._attn_implementation} takes no mask of answers that share a prompt: set it to "
            "sdpa, or layout.share_prompts=false"
        )
    values, width = text.to_dict(), attention_mask.shape[-1]
    windows = [values[key] for key in WINDOWS if values.get(key)]
    if windows and min(windows) < width:
        raise ConfigError(
            f"{text.model_type} looks back {min(windows)} tokens, and a prompt with its answers has {width}: set "
            f"layout.share_prompts=false, or layout.max_tokens to at most {min(windows)}"
        )
    return attention_mask


class Policy(nn.Module):
    """Wrapper of a Hugging Face causal LM. Weight names are the LM's behind the prefix ``lm.``."""

    def __init__(self, lm: PreTrainedModel, banned: Sequence[int] = (), mask: TokenMask | None = None):
        """``banned`` ids are never sampled, nor is what ``mask`` forbids; they have no part in the distribution here
        either."""
        super().__init__()
        self.banned, self.mask = list(banned), mask
        for key in LOGIT_TRANSFORMS:
            if (value := lm.config.to_dict().get(key)) not in (None, 1.0):
                raise ValueError(f"{key}={value}: Policy does not scale logits; take a model without it")
        self.lm = lm
        self.config = lm.config
        self._no_split_modules = lm._no_split_modules  # what accelerate shards by under FSDP

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        select: Tensor,
        labels: Tensor,
        temperature: float = 1.0,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability [N] and entropy [N] in fp32 of the labels at the selected positions.

        input_ids, position_ids [B, T]; select [N] flat positions in B*T whose next token is labels [N]. Rows are
        right-padded, or one row packs several sequences by restarting position_ids at 0. Neither needs a mask
        (``stepstack.batching.rows`` explains why). An ``attention_mask`` [B, 1, T, T], True where a token sees another,
        takes the place of what is inferred (``stepstack.batching.shared``); ConfigError for an attention without masks.
        """
        hidden_ND, states = self._selected(input_ids, position_ids, select, attention_mask)
        return self.scored(hidden_ND, labels, temperature, states)

    def _selected(
        self, input_ids: Tensor, position_ids: Tensor, select: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Last hidden states [N, D] at the selected positions, and the mask's states [N] there, None without a mask."""
        hidden_BTD = self.lm.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=checked_mask(self.config, attention_mask),
            use_cache=False,
        ).last_hidden_state
        return hidden_BTD.flatten(0, 1)[select], self.mask_states(input_ids, position_ids, select)

    def embedded(self, input_ids: Tensor, features_RD: Tensor | None = None) -> Tensor:
        """Embeddings [B, T, D] of tokens. There are no features [R, D] of pictures here."""
        assert features_RD is None, "a model of texts reads no pictures"
        return self.lm.get_input_embeddings()(input_ids)

    def model_positions(
        self, input_ids: Tensor, position_ids: Tensor, pictures: Sequence[Sequence[Picture]] = ()
    ) -> Tensor:
        """Positions as the language model takes them: here those of the tokens themselves."""
        return position_ids

    def mask_states(self, input_ids: Tensor, position_ids: Tensor, select: Tensor) -> Tensor | None:
        """States [N] of the mask of tokens at the selected positions; None without such a mask."""
        if self.mask is None:
            return None
        return self.mask.states(recent_tokens(input_ids, position_ids, select, self.mask.window))

    def tie_weights(self) -> None:
        """Make tied embeddings one parameter again: accelerate's FSDP2 calls it, having made two of them."""
        self.lm.tie_weights()

    def scored(
        self, hidden_ND: Tensor, labels: Tensor, temperature: float, states: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-probability [N] and entropy [N] of labels from the last hidden states before them; ``states`` [N] of the
        mask."""

        def head(hidden_ND: Tensor, labels_N: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
            return token_logprobs(self._logits(hidden_ND, states), labels_N, temperature)

        logp_N, entropy_N = in_chunks(head, hidden_ND, labels, states)
        return logp_N, entropy_N

    def _logits(self, hidden_ND: Tensor, states: Tensor | None) -> Tensor:
        """Logits [N, V] without what is banned and what the mask forbids."""
        logits_NV = self.lm.get_output_embeddings()(hidden_ND)
        if self.banned:
            logits_NV = logits_NV.index_fill(-1, torch.tensor(self.banned, device=logits_NV.device), MIN_LOGIT)
        if self.mask is not None:
            assert states is not None
            logits_NV = logits_NV.masked_fill(self.mask.forbidden.to(logits_NV.device)[states], MIN_LOGIT)
        return logits_NV
