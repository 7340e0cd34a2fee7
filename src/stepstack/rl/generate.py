"""Sampling with a local model: batched, KV-cached, exact log-probabilities, finished rows leave the batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import Strict
from stepstack.models.decode import FUSED, Decoder, Fused, Module
from stepstack.rl.types import Group, Prompt, Rollout, Sampling, row_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HfConfig(Strict):
    """``batch`` rows decode together. decoder: fused (Qwen2, Llama) or module (any model); auto takes fused where it
    can and logs what it took."""

    type: Literal["hf"] = "hf"
    batch: int = 256
    decoder: Literal["auto", "fused", "module"] = "auto"


class HfGenerator:
    """Generator on this process's device, with its own copy of the weights."""

    def __init__(self, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cfg: HfConfig, copy: bool = True):
        """``copy=False`` decodes from ``lm`` itself (evaluation); with True ``load`` must come before ``generate``."""
        self.tokenizer, self.cfg, self.version = tokenizer, cfg, 0
        kind = cfg.decoder if cfg.decoder != "auto" else ("fused" if lm.config.model_type in FUSED else "module")
        log.info("hf generator: decoder %s (asked: %s) for %s", kind, cfg.decoder, lm.config.model_type)
        self.decoder: Decoder
        if kind == "fused":
            self.decoder = Fused(lm.config, lm.device, lm.dtype)
            self.decoder.load(lm.state_dict().items())
        else:
            self.decoder = Module(deepcopy(lm) if copy else lm)
        eos = lm.generation_config.eos_token_id if lm.generation_config is not None else None
        eos = lm.config.eos_token_id if eos is None else eos
        self.eos = torch.tensor([eos] if isinstance(eos, int) else eos or [], device=lm.device)
        self.device = lm.device
        self.max_positions = lm.config.max_position_embeddings
        self._completers: dict[tuple[str, ...], Tensor] = {}

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.decoder.load(weights)
        self.version = version

    def sleep(self) -> None:
        """Nothing to lend: the cache lives only while a wave does."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups in the order of prompt length within a wave. A prompt that leaves no room is an error."""
        for prompt in prompts:
            self._budget(prompt, sampling)
        per_wave = max(1, self.cfg.batch // sampling.n)
        ordered = sorted(prompts, key=lambda p: len(p.ids))
        for start in range(0, len(ordered), per_wave):
            yield from self._wave(ordered[start : start + per_wave], sampling)

    def _budget(self, prompt: Prompt, sampling: Sampling) -> int:
        limit = min(self.max_positions, sampling.max_length or self.max_positions)
        room = min(sampling.max_tokens, limit - len(prompt.ids))
        if room < 1:
            raise ValueError(
                f"prompt {prompt.problem.index} has {len(prompt.ids)} tokens and leaves no room within {limit}: "
                "drop it when preparing the data (prompt.overlong=drop) or raise max_length"
            )
        return room

    @torch.no_grad()
    def _wave(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        n, rows = sampling.n, len(prompts) * sampling.n
        width = max(len(p.ids) for p in prompts)
        budgets = torch.tensor([self._budget(p, sampling) for p in prompts], device=self.device).repeat_interleave(n)
        horizon = int(budgets.max())
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        pad = torch.tensor([width - len(p.ids) for p in prompts])
        noise = self._noise(prompts, sampling, horizon)
        completes = self._completing_tokens(sampling.stop)
        tokens = torch.zeros(rows, horizon, dtype=torch.long, device=self.device)
        logps = torch.zeros(rows, horizon, device=self.device)
        alive = torch.arange(rows, device=self.device)
        ends: dict[int, tuple[int, Literal["stop", "length"]]] = {}
        done = torch.zeros(rows, dtype=torch.bool, device=self.device)
        logits = self.decoder.prefill(ids, pad, n, horizon)
        for t in range(horizon):
            token, logp = sample(logits, noise[alive, t], sampling)
            tokens[alive, t], logps[alive, t] = token, logp
            eos = torch.isin(token, self.eos)
            candidate = completes[token] & ~done[alive]
            stopped = eos.clone()
            for at in candidate.nonzero()[:, 0].tolist():
                stopped[at] |= self._ends_with_stop(tokens[alive[at], : t + 1].tolist(), sampling.stop)
            full = (budgets[alive] <= t + 1) & ~stopped
            ended = (stopped | full) & ~done[alive]
            for at in ended.nonzero()[:, 0].tolist():
                ends[int(alive[at])] = (t + 1, "stop" if stopped[at] else "length")
            done[alive[ended]] = True
            if len(ends) == rows:
                break
            going = ~done[alive]
            # Copying the cache costs about one step; leave when enough have ended to win it back.
            if int(going.sum()) <= 0.8 * len(alive):
                self.decoder.keep(going.nonzero()[:, 0])
                alive, token = alive[going], token[going]
            logits = self.decoder.step(token)
        yield from self._groups(prompts, sampling, tokens.tolist(), logps.tolist(), ends)

    def _groups(self, prompts, sampling: Sampling, tokens: list, logps: list, ends: dict) -> Iterator[Group]:
        for i, prompt in enumerate(prompts):
            rollouts = []
            for sample_index in range(sampling.n):
                row = i * sampling.n + sample_index
                length, finish = ends[row]
                ids = tuple(tokens[row][:length])
                rollouts.append(
                    Rollout(
                        prompt=prompt,
                        sample=sample_index,
                        ids=ids,
                        logprobs=tuple(logps[row][:length]),
                        text=response_text(self.tokenizer, ids, self.eos.tolist(), sampling.stop),
                        finish=finish,
                        version=self.version,
                    )
                )
            yield Group(prompt, tuple(rollouts))

    def _noise(self, prompts: Sequence[Prompt], sampling: Sampling, horizon: int) -> Tensor:
        """Uniform noise [rows, horizon] that belongs to (seed, problem, sample) and to nothing else."""
        rows = [
            np.random.Generator(np.random.Philox(row_seed(sampling.seed, p.problem.index, s))).random(horizon)
            for p in prompts
            for s in range(sampling.n)
        ]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def _completing_tokens(self, stop: tuple[str, ...]) -> Tensor:
        """[V] True for tokens that can be the last of a stop string; only those rows are decoded and searched."""
        if stop not in self._completers:
            texts = [str(self.tokenizer.decode([i], skip_special_tokens=False)) for i in range(len(self.tokenizer))]
            can = [
                any(s in text or any(text.startswith(s[k:]) for k in range(1, len(s))) for s in stop) for text in texts
            ]
            size = max(len(can), self.tokenizer.vocab_size, 1 << 18)  # models pad their vocabulary
            table = torch.zeros(size, dtype=torch.bool, device=self.device)
            table[: len(can)] = torch.tensor(can, device=self.device)
            self._completers[stop] = table
        return self._completers[stop]

    def _ends_with_stop(self, ids: list[int], stop: tuple[str, ...]) -> bool:
        """True if the newest token completed a stop string in the response (the prompt is not looked at)."""
        tail = self.tokenizer.decode(ids[-2 * max(map(len, stop), default=1) :], skip_special_tokens=False)
        return any(s in tail for s in stop)


def sample(logits_BV: Tensor, noise_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(token [B], its log-probability [B]) by inverting the cumulative distribution at ``noise_B`` in [0, 1).

    Greedy at temperature 0 (log-probability then at temperature 1). top_k and top_p cut the distribution, and the
    log-probability is that of the cut one, as engines report it.
    """
    if sampling.temperature == 0:
        logp = torch.log_softmax(logits_BV.float(), -1)
        token = logp.argmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]
    logp = torch.log_softmax(logits_BV.float() / sampling.temperature, -1)
    if sampling.top_k > 0 or sampling.top_p < 1:
        logp = torch.log_softmax(_cut(logp, sampling), -1)
    cumulative = logp.double().exp().cumsum(-1)
    target = noise_B[:, None].double() * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logp.shape[-1] - 1)
    return token, logp.gather(-1, token[:, None])[:, 0]


def _cut(logp_BV: Tensor, sampling: Sampling) -> Tensor:
    ordered, order = logp_BV.sort(-1, descending=True)
    drop = ordered.exp().cumsum(-1) - ordered.exp() >= sampling.top_p  # the first token to cross top_p stays
    if sampling.top_k > 0:
        drop[:, sampling.top_k :] = True
    return logp_BV.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))


def response_text(tokenizer, ids: Sequence[int], eos: Sequence[int], stop: Sequence[str]) -> str:
    """Text of a response: without a final EOS, and ending with the first stop string where there is one."""
    body = ids[:-1] if ids and ids[-1] in eos else ids
    text = tokenizer.decode(list(body), skip_special_tokens=False)
    ends = [text.index(s) + len(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
