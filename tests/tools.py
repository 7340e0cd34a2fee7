"""What many tests need: tiny models whose logits are not flat, tokenizers, made-up rollouts, a run in a folder."""

from __future__ import annotations

import html
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stepstack.batching.rows import Batch, Row
from stepstack.core.run import Run
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Prompt, Rollout, Sampling
from stepstack.models.lm import tiny
from stepstack.records import Problem
from stepstack.report import glossary, jsonl
from stepstack.rl.config import PpoConfig, RolloutConfig

VOCAB = 100
torch.set_num_threads(1)  # more make tiny models slower, on shared cores by far


def perturbed(lm: PreTrainedModel, scale: float = 0.3, seed: int = 0) -> PreTrainedModel:
    """Random initialisation gives flat logits that hide mistakes; this widens them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return lm.eval()


def qwen2(vocab: int = VOCAB, *, scale: float = 0.3, seed: int = 0, max_length: int = 512) -> PreTrainedModel:
    return perturbed(
        tiny.qwen2(vocab, hidden=16, layers=2, intermediate=32, seed=seed, max_length=max_length), scale, seed
    )


def llama(vocab: int = VOCAB, *, scale: float = 0.3, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Four heads, two KV heads, a head_dim that is not hidden / heads, untied embeddings unless told."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return perturbed(LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **shape, **heads, **ends, **changes)), scale, seed)


def gpt2(vocab: int = VOCAB, *, scale: float = 0.3, seed: int = 0, positions: int = 128) -> PreTrainedModel:
    """Absolute positions: the model that notices wrong position_ids."""
    torch.manual_seed(seed)
    shape = {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": positions}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return perturbed(GPT2LMHeadModel(GPT2Config(vocab_size=vocab, **shape, **quiet, **ends)), scale, seed)


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which ``</answer>`` is the tokens ``</ ans wer >`` or ``</ ans wer >_T`` (_ a blank)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("<", "/"), ("a", "n"), ("an", "s"), ("w", "e"), ("we", "r"), (">", "Ġ"), (">Ġ", "T")]
    names = ["<pad>", "<eos>", *alphabet, *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def prompt(index: int, ids: Sequence[int], text: str = "", gold: str = "") -> Prompt:
    return Prompt(Problem(index, text, gold), tuple(ids))


def prompts(lengths: Sequence[int], vocab: int = VOCAB, seed: int = 0) -> list[Prompt]:
    """One prompt a length, of random ids above 1 (0 is <pad>, 1 is <eos>)."""
    rng = random.Random(seed)
    return [prompt(i, [rng.randrange(2, vocab) for _ in range(n)]) for i, n in enumerate(lengths)]


def rows(shapes: Sequence[tuple[int, int]], vocab: int = VOCAB, n: int = 1, seed: int = 0) -> list[Row]:
    """A row of random ids for each (prompt length, response length); every ``n`` in turn form a group, and those of a
    group that have prompts of one length have one prompt."""
    rng, made = random.Random(seed), []
    prompts: dict[tuple[int, int], tuple[int, ...]] = {}
    for i, (before, after) in enumerate(shapes):
        ids = [tuple(rng.randrange(2, vocab) for _ in range(count)) for count in (before, after)]
        prompt = prompts.setdefault((i // n, before), ids[0])
        sampler = {"sampler": torch.zeros(after)}
        made.append(Row(i, prompt, ids[1], float(rng.random() < 0.5), group=i // n, sample=i % n, fields=sampler))
    return made


def batch(of: Sequence[Row], seed: int = 0) -> Batch:
    scores: dict[int, list[float]] = {}
    for row in of:
        scores.setdefault(row.group, []).append(row.reward)
    return Batch(list(of), len(of), seed, scores, len(of))


def rollout(of: Prompt, sample: int, ids: Sequence[int], finish: Any = "stop") -> Rollout:
    ids = tuple(ids)
    return Rollout(
        problem=of.problem,
        prompt=of,
        sample=sample,
        ids=ids,
        logprobs=(-1.0,) * len(ids),
        text=str(ids),
        finish=finish,
        version=0,
    )


def config(folder: Path, *, prompts: int = 4, n: int = 2, temperature: float = 1.0, **overrides: Any) -> PpoConfig:
    """A PPO config without trackers whose run lives in ``folder``."""
    rollouts = RolloutConfig(prompts=prompts, sampling=Sampling(n=n, max_tokens=16, temperature=temperature))
    quiet = {"trackers": (), "eval_every": 0, "peak_tflops": 1.0}
    given = {"steps": 2, "name": "run", "actor_updates": 1, "critic_updates": 1, "rollout": rollouts} | overrides
    return PpoConfig(recipe="test", dir=str(folder), **quiet, **given)


def make_run(folder: Path, **overrides: Any) -> Run:
    return Run(config(folder, **overrides))


def generator(lm: PreTrainedModel, tokenizer: Any = None, **cfg: Any) -> HfGenerator:
    return HfGenerator(lm, tokenizer or tiny.tokenizer(), HfConfig(**cfg))


def sampled(of: HfGenerator, prompts: Sequence[Prompt], sampling: Sampling) -> dict[tuple[int, int], Rollout]:
    """Rollouts by (problem index, sample)."""
    groups = of.generate(prompts, sampling)
    return {(r.prompt.problem.index, r.sample): r for group in groups for r in group.rollouts}


class Scripted:
    """A decoder that continues each prompt with the tokens written down for it."""

    def __init__(self, scripts: dict[tuple[int, ...], Sequence[int]], vocab: int):
        self.of_prompt, self.vocab, self.fed = scripts, vocab, 0

    def load(self, weights: Any) -> None:
        raise AssertionError("a script has no weights")

    def prefill(self, ids_BT: Tensor, pad_B: Tensor, copies: int, room: int, pictures: Any = ()) -> Tensor:
        known = [self.of_prompt[tuple(ids[pad:])] for ids, pad in zip(ids_BT.tolist(), pad_B.tolist(), strict=True)]
        self.scripts = [script for script in known for _ in range(copies)]
        self.at = 0
        return self._logits()

    def step(self, ids_B: Tensor) -> Tensor:
        self.at += 1
        self.fed += len(ids_B)
        return self._logits()

    def keep(self, rows: Tensor) -> None:
        self.scripts = [self.scripts[i] for i in rows.tolist()]

    def _logits(self) -> Tensor:
        wanted = torch.tensor([script[self.at] if self.at < len(script) else 2 for script in self.scripts])
        return 100.0 * torch.nn.functional.one_hot(wanted, self.vocab)


def scripted(tokenizer: Any, scripts: dict[tuple[int, ...], Sequence[int]], **changes: Any) -> HfGenerator:
    """A generator over ``Scripted``: everything of sampling but the model."""
    made = generator(qwen2(len(tokenizer), **changes), tokenizer)
    made.decoder = Scripted(scripts, len(tokenizer))
    return made


def page_data(page: Path) -> dict[str, Any]:
    """Data of a page's script, as a browser reads it; ``charts`` by title."""
    text = page.read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    titles = [html.unescape(title) for title in re.findall(r'<svg role="img" aria-label="(.*?)">', text)]
    return data | {"charts": dict(zip(titles, data["charts"], strict=True))}


def unexplained(folder: Path) -> list[str]:
    """Metrics of a run and its stages that the glossary neither explains nor leaves out on purpose."""
    return glossary.gaps([name for file in folder.rglob("metrics.jsonl") for row in jsonl.read(file) for name in row])


def result_of(task: str, value: float) -> dict[str, Any]:
    """A result.json of an evaluation with one metric."""
    metric = {"name": "avg@1", "value": value, "stderr": None, "n": 5, "higher_is_better": True}
    result = {"task": task, "metrics": [metric], "length": 4.0, "truncated": 0, "samples": 5, "step": 0, "n": 5, "k": 1}
    result |= {"version": 1, "failed": {}, "timing": {}, "plan": {"budget": {}}, "model": {"sha256": "0", "name": "m"}}
    return result | {"provenance": {"commit": "0", "dirty": False}}
