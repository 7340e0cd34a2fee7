"""Sampling with a local model: batched, KV-cached, exact log-probabilities, finished rows leave the batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stepstack.config import ConfigError
from stepstack.generation.config import HfConfig
from stepstack.generation.decode import Decoder, Fused, Module, unfit, with_memory
from stepstack.generation.decode_vision import FusedVision
from stepstack.generation.types import (
    Finish,
    Group,
    Prompt,
    Repetition,
    Rollout,
    Sampling,
    response_budget,
    rollout_seed,
)
from stepstack.models.lm.policy import MIN_LOGIT, TokenMask
from stepstack.models.vision.policy import ImagePatcher

log = logging.getLogger(__name__)

MAY_STOP, STOPS = 1, 2  # what a token can do to its row


class HfGenerator:
    """Generator on this process's device, with its own copy of the weights."""

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        cfg: HfConfig,
        device: torch.device | None = None,
        *,
        patcher: ImagePatcher | None = None,
        banned: Sequence[int] = (),
        mask: TokenMask | None = None,
    ):
        """Starts with the weights of ``lm``; where it has none (the meta device) ``load`` must come first. ``patcher``:
        of a model that takes pictures; ``banned`` ids are never sampled, nor is what ``mask`` forbids."""
        self.device = lm.device if device is None else device
        self.tokenizer, self.cfg, self.version = tokenizer, cfg, 0
        text = lm.config.get_text_config()
        kind = cfg.decoder if cfg.decoder != "auto" else ("module" if unfit(text) else "fused")
        log.info("hf generator: decoder %s (asked: %s) for %s", kind, cfg.decoder, lm.config.model_type)
        self.decoder: Decoder
        if kind == "fused":
            if patcher is None:
                self.decoder = Fused(text, self.device, lm.dtype)
            else:
                self.decoder = FusedVision(lm, patcher, self.device)
            if lm.device.type != "meta":
                self.decoder.load(lm.named_parameters())
        else:
            self.decoder = Module(with_memory(deepcopy(lm), self.device))
        self.eos = torch.tensor(end_ids(lm, tokenizer), dtype=torch.long, device=self.device)
        self.max_positions = text.max_position_embeddings
        self.banned = torch.tensor(list(banned), dtype=torch.long, device=self.device)
        self.mask, self.forbidden = mask, None if mask is None else mask.forbidden.to(self.device)
        self._tables: dict[tuple[str, ...], np.ndarray] = {}
        self.vocab_size = text.vocab_size

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        self.decoder.load(weights)
        self.version = version

    def sleep(self) -> None:
        """Nothing to lend: the cache lives only while a wave does."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Groups as their last row ends. A prompt that leaves no room is an error, and so is a model that nothing can
        stop."""
        self._check_end(sampling)
        for prompt in prompts:
            response_budget(prompt, sampling, self.max_positions)
        for wave in waves(prompts, sampling, self.cfg):
            yield from self._wave(wave, sampling)

    def stream(self, prompt: Prompt, sampling: Sampling, watch: Callable[[int], None]) -> Rollout:
        """One rollout, the same as ``generate`` gives; ``watch`` is called with each of its tokens as it is sampled.
        ValueError where more than one sample is asked for."""
        if sampling.n != 1:
            raise ValueError(f"sampling.n={sampling.n}: one sample can be watched, not several")
        self._check_end(sampling)
        response_budget(prompt, sampling, self.max_positions)
        [group] = self._wave([prompt], sampling, watch)
        return group.rollouts[0]

    def _check_end(self, sampling: Sampling) -> None:
        if not len(self.eos) and not sampling.stop:
            raise ConfigError(
                "neither the model nor its tokenizer names an end token (eos_token_id), so that no response ends: name "
                "it in generation_config.json, or set rollout.sampling.stop"
            )

    @torch.inference_mode()
    def _wave(
        self, prompts: Sequence[Prompt], sampling: Sampling, watch: Callable[[int], None] | None = None
    ) -> Iterator[Group]:
        n, rows = sampling.n, len(prompts) * sampling.n
        width = max(len(p.ids) for p in prompts)
        budgets = np.repeat([response_budget(p, sampling, self.max_positions) for p in prompts], n)
        horizon = int(budgets.max())
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        pad = torch.tensor([width - len(p.ids) for p in prompts])
        noise = self._noise(prompts, sampling, horizon)
        kinds = self._kinds(sampling.stop)
        alive = np.arange(rows)  # rows that decode; some may have ended and not left yet
        going = np.ones(rows, dtype=bool)
        tokens = torch.zeros(horizon, rows, dtype=torch.long, device=self.device)  # columns of the rows that decode
        logps = torch.zeros(horizon, rows, device=self.device)
        ended: dict[int, Rollout] = {}
        recent = self._last_tokens(ids, pad, sampling)
        logits = self.decoder.prefill(ids, pad, n, horizon, [prompt.pictures for prompt in prompts])
        for t in range(horizon):
            token, logp = sample(self._allowed(logits, recent, sampling), noise[t], sampling)
            tokens[t], logps[t] = token, logp
            if watch is not None:
                watch(int(token[0]))
            if recent is not None:
                recent = torch.cat([recent[:, 1:], token[:, None]], dim=1)
            for at, finish in self._ends(tokens[: t + 1], kinds, budgets, going, sampling.stop):
                going[at] = False
                row = int(alive[at])
                prompt = prompts[row // n]
                ended[row] = self._rollout(prompt, row % n, tokens[: t + 1, at], logps[: t + 1, at], finish, sampling)
                group = range(row // n * n, row // n * n + n)
                if all(other in ended for other in group):
                    yield Group(prompt, tuple(ended[other] for other in group))
            if len(ended) == rows:
                break
            # Copying the cache costs about one step; leave when enough have ended to win it back.
            if rows - len(ended) <= 0.8 * len(alive):
                kept = torch.from_numpy(going.nonzero()[0]).to(self.device)
                self.decoder.keep(kept)
                token, noise, tokens, logps = token[kept], noise[:, kept], tokens[:, kept], logps[:, kept]
                recent = None if recent is None else recent[kept]
                alive, budgets, going = alive[going], budgets[going], going[going]
            logits = self.decoder.step(token)

    def _allowed(self, logits_BV: Tensor, recent_BT: Tensor | None, sampling: Sampling) -> Tensor:
        """Logits without what is banned, what the mask forbids and what repeats too much."""
        if len(self.banned):
            logits_BV = logits_BV.index_fill(-1, self.banned, MIN_LOGIT)
        if recent_BT is None:
            return logits_BV
        if self.mask is not None and self.forbidden is not None:
            states = self.mask.states(recent_BT[:, -self.mask.window :])
            logits_BV = logits_BV.masked_fill(self.forbidden[states], MIN_LOGIT)
        if sampling.repetition is not None:
            logits_BV = without_repetition(logits_BV, recent_BT, sampling.repetition)
        return logits_BV

    def _ends(
        self, tokens_TB: Tensor, kinds: np.ndarray, budgets: np.ndarray, going: np.ndarray, stop: tuple[str, ...]
    ) -> list[tuple[int, Finish]]:
        """Places in the batch of the rows that end with their last token: those that stop, then those whose budget is
        spent. The device is waited for once."""
        kind = kinds[tokens_TB[-1].cpu().numpy()]
        ends: list[tuple[int, Finish]] = [
            (at, "stop")
            for at in ((kind > 0) & going).nonzero()[0].tolist()
            if kind[at] == STOPS or self._completes_stop(tokens_TB[:, at], stop)
        ]
        stopped = {at for at, _ in ends}
        spent = ((budgets <= len(tokens_TB)) & going).nonzero()[0].tolist()
        return ends + [(at, "length") for at in spent if at not in stopped]

    def _last_tokens(self, ids_BT: Tensor, pad_B: Tensor, sampling: Sampling) -> Tensor | None:
        """Last tokens of left-padded prompts, -1 where there was none, [rows, columns], as many as the mask or the rule
        against repetition looks back; None where neither is there."""
        windows = [rule.window for rule in (self.mask, sampling.repetition) if rule is not None]
        if not windows:
            return None
        ids_BT = ids_BT.masked_fill(torch.arange(ids_BT.shape[1]) < pad_B[:, None], -1)
        ids_BT = torch.nn.functional.pad(ids_BT, (max(windows), 0), value=-1)[:, -max(windows) :]
        return ids_BT.repeat_interleave(sampling.n, 0).to(self.device)

    def _rollout(
        self, prompt: Prompt, sample_index: int, ids_N: Tensor, logp_N: Tensor, finish: Finish, sampling: Sampling
    ) -> Rollout:
        ids = tuple(ids_N.tolist())
        return Rollout(
            problem=prompt.problem,
            prompt=prompt,
            sample=sample_index,
            ids=ids,
            logprobs=tuple(logp_N.tolist()),
            text=response_text(self.tokenizer, ids, self.eos.tolist(), sampling.stop),
            finish=finish,
            version=self.version,
        )

    def _noise(self, prompts: Sequence[Prompt], sampling: Sampling, horizon: int) -> Tensor:
        """Uniform noise [horizon, rows]; a column belongs to (seed, problem, sample) and to nothing else."""
        rows = [
            np.random.Generator(np.random.Philox(rollout_seed(sampling.seed, p.problem.index, s))).random(horizon)
            for p in prompts
            for s in range(sampling.n)
        ]
        return torch.from_numpy(np.stack(rows, axis=1)).to(self.device)

    def _kinds(self, stop: tuple[str, ...]) -> np.ndarray:
        """[V] STOPS for EOS and for tokens that hold a whole stop string, MAY_STOP for tokens that can be the last of
        one (only those rows are decoded and searched), else 0."""
        if stop not in self._tables:
            texts = [str(self.tokenizer.decode([i], skip_special_tokens=False)) for i in range(len(self.tokenizer))]
            can = [any(text.startswith(s[k:]) for s in stop for k in range(1, len(s))) for text in texts]
            if not all(s.isascii() for s in stop):  # part of a letter of several bytes shows as a replacement mark
                can = [known or "\ufffd" in text for known, text in zip(can, texts, strict=True)]
            table = np.zeros(max(len(can), self.vocab_size), dtype=np.uint8)
            table[: len(can)] = np.array(can) * MAY_STOP
            table[[i for i, text in enumerate(texts) if any(s in text for s in stop)]] = STOPS
            table[self.eos.tolist()] = STOPS
            self._tables[stop] = table
        return self._tables[stop]

    def _completes_stop(self, ids_T: Tensor, stop: tuple[str, ...]) -> bool:
        """True if the newest token of a response completed a stop string in it (never in the prompt)."""
        longest = 2 * max(len(s.encode()) for s in stop)
        tail = str(self.tokenizer.decode(ids_T[-longest:].tolist(), skip_special_tokens=False))
        return any(s in tail for s in stop)


def waves(prompts: Sequence[Prompt], sampling: Sampling, cfg: HfConfig) -> list[list[Prompt]]:
    """Prompts that decode together: in the order of their lengths, as many as ``cfg`` allows. Which rows share a wave
    decides the last bits of their log-probabilities."""
    found: list[list[Prompt]] = []
    for prompt in sorted(prompts, key=lambda p: len(p.ids)):
        size = len(found[-1]) + 1 if found else 1
        if not found or size * sampling.n > cfg.batch or size * len(prompt.ids) > cfg.prefill:
            found.append([])
        found[-1].append(prompt)
    return found


def sample(logits_BV: Tensor, noise_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(token [B], its log-probability [B]) by inverting the cumulative distribution at ``noise_B`` in [0, 1).

    Greedy at temperature 0 (log-probability then at temperature 1). top_k and top_p cut the distribution, and the
    log-probability is that of the cut one, as engines report it.
    """
    if sampling.temperature == 0:
        logp = torch.log_softmax(logits_BV.float(), -1)
        token = logp.argmax(-1)
        return token, logp.gather(-1, token[:, None])[:, 0]
    logits_BV = logits_BV.float() if sampling.temperature == 1 else logits_BV.float() / sampling.temperature
    if sampling.cuts:
        logits_BV = _cut(torch.log_softmax(logits_BV, -1), sampling)
    probability = torch.softmax(logits_BV, -1)
    cumulative = probability.cumsum(-1, dtype=torch.float64)
    target = noise_B[:, None].double() * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).clamp_(max=probability.shape[-1] - 1)
    return token[:, 0], probability.gather(-1, token)[:, 0].log()


def without_repetition(logits_BV: Tensor, recent_BT: Tensor, cfg: Repetition) -> Tensor:
    """Logits in which the last token of a row is forbidden where its share of the last ``cfg.window`` tokens is beyond
    ``cfg.threshold``. ``recent_BT`` has at least so many columns, -1 before a row's beginning."""
    window_BT = recent_BT[:, -cfg.window :]
    last_B1 = window_BT[:, -1:]
    often_B1 = ((window_BT == last_B1).float().mean(1, keepdim=True) > cfg.threshold) & (window_BT[:, :1] >= 0)
    banned_BV = torch.zeros_like(logits_BV, dtype=torch.bool).scatter(1, last_B1.clamp(min=0), often_B1)
    return logits_BV.masked_fill(banned_BV, MIN_LOGIT)


def _cut(logp_BV: Tensor, sampling: Sampling) -> Tensor:
    ordered, order = logp_BV.sort(-1, descending=True)
    drop = ordered.exp().cumsum(-1) - ordered.exp() >= sampling.top_p  # the first token to cross top_p stays
    if sampling.top_k > 0:
        drop[:, sampling.top_k :] = True
    return logp_BV.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), float("-inf"))


def end_ids(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Ids that end a response: those of the model's generation config, or of its config, and the tokenizer's own, which
    is all that some base models name."""
    named = lm.generation_config.eos_token_id if lm.generation_config is not None else None
    named = lm.config.eos_token_id if named is None else named
    ids = [named] if isinstance(named, int) else list(named or [])
    own = None if tokenizer is None else tokenizer.eos_token_id
    return ids if own is None or own in ids else [*ids, own]


def response_text(tokenizer, ids: Sequence[int], eos: Sequence[int], stop: Sequence[str]) -> str:
    """Text of a response: without a final EOS, and ending with the first stop string where there is one."""
    body = ids[:-1] if ids and ids[-1] in eos else ids
    text = tokenizer.decode(list(body), skip_special_tokens=False)
    ends = [text.index(s) + len(s) for s in stop if s in text]
    return text[: min(ends)] if ends else text
