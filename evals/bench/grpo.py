"""`stepstack bench grpo`: an update of GRPO by the length of its prompts, against TRL in one run on one machine.

Contestants share model, rollouts and the optimizer's numbers; nothing is generated, and every group has signal. Ours
takes part twice, with rows of their own and with shared prompts; TRL has its defaults. One thread, process CPU time of
the updates alone. A ratio is that of one round.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel

from evals.bench._trl import QUIET
from recipes.orz.config import Config
from recipes.protocol import load_config
from stepstack.batching.rows import Batch, Row
from stepstack.core.run import Run
from stepstack.models.lm import tiny
from stepstack.report.provenance import describe, provenance
from stepstack.rl.roles import roles
from stepstack.rl.update import learn
from stepstack.terminal import console

PROMPTS, SAMPLES, MAX_RESPONSE = 8, 8, 64  # of an update; tokens
LENGTHS = (16, 64, 256, 1024)  # tokens of a prompt
LR = 1e-5
Step = list[Row]


def measure(rounds: int = 4, steps: int = 1) -> dict[str, Any]:
    """CPU seconds an update, of ``rounds`` trainings of ``steps`` updates each, after one that warms up."""
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"  # TRL's telemetry would call out
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # its rollout_func is one
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for length in LENGTHS:
            for turn in range(rounds + 1):
                data = [rollouts(length, seed=turn * steps + step) for step in range(steps)]
                place = Path(folder) / f"{length}-{turn}"
                seconds = {
                    "own": ours(data, place / "own", share=False),
                    "shared": ours(data, place / "shared", share=True),
                    "trl": theirs(data, str(place / "trl")),
                }
                if turn:
                    rows.append({"prompt": length, "seed": turn, **seconds})
    facts = {"rollouts": PROMPTS * SAMPLES, "parameters": sum(p.numel() for p in model().parameters())}
    return {"bench": "grpo", **facts, "steps": steps, "rows": rows, "provenance": provenance()}


def model() -> PreTrainedModel:
    """Small, but wide enough that matrices are what takes the time."""
    return tiny.qwen2(len(tiny.tokenizer()), hidden=192, layers=4, intermediate=512, seed=0, max_length=4096)


def rollouts(length: int, seed: int) -> Step:
    """A step's rows: random tokens, responses of 8 to 64 tokens, half of each group rewarded."""
    rng, vocab = random.Random(seed), len(tiny.tokenizer())
    rows: Step = []
    for group in range(PROMPTS):
        prompt = tuple(rng.randrange(2, vocab) for _ in range(length))
        for sample in range(SAMPLES):
            ids = tuple(rng.randrange(2, vocab) for _ in range(rng.randint(8, MAX_RESPONSE)))
            row = Row(len(rows), prompt, ids, float(sample % 2), group, sample)
            row.fields["sampler"] = torch.zeros(len(ids))
            rows.append(row)
    return rows


def ours(data: list[Step], folder: Path, share: bool) -> float:
    """CPU seconds an update."""
    words = ["advantage.type=grpo", "actor_updates=1", f"rollout.prompts={PROMPTS}", f"rollout.sampling.n={SAMPLES}"]
    words += [f"steps={len(data)}", f"actor.optim.lr={LR}", "trackers=[]", "save.every=0", f"dir={folder.parent}"]
    words += [f"name={folder.name}", "layout.max_tokens=2048", f"layout.share_prompts={str(share).lower()}"]
    cfg = load_config("orz-tiny", words, kind=Config)
    run = Run(cfg)
    models = roles(run, cfg, model())
    started = time.process_time()
    for step, rows in enumerate(data):
        scores = {group: [row.reward for row in rows if row.group == group] for group in range(PROMPTS)}
        learn(run, cfg, models, Batch(rows, len(rows), step, scores, len(rows)))
    return (time.process_time() - started) / len(data)


def theirs(data: list[Step], folder: str) -> float:
    """CPU seconds an update of TRL's GRPOTrainer, which is handed the rollouts."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    groups = {f"{step} {group}": rows[group * SAMPLES :] for step, rows in enumerate(data) for group in range(PROMPTS)}
    reward = {row.ids: row.reward for rows in data for row in rows}
    given: Counter[str] = Counter()

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        rows = []
        for text in prompts:
            rows.append(groups[text][given[text]])
            given[text] += 1
        return {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.ids) for row in rows],
            "logprobs": [[0.0] * len(row.ids) for row in rows],
        }

    def scores(completion_ids: list[list[int]], **unused: Any) -> list[float | None]:
        return [reward[tuple(ids)] for ids in completion_ids]

    tokenizer = tiny.tokenizer()
    settings: dict[str, Any] = {
        "per_device_train_batch_size": PROMPTS * SAMPLES,
        "num_generations": SAMPLES,
        "max_completion_length": MAX_RESPONSE,
        "max_steps": len(data),
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        **QUIET,
    }
    trainer = GRPOTrainer(
        model=model(),
        reward_funcs=scores,
        args=GRPOConfig(output_dir=folder, **settings),
        train_dataset=Dataset.from_dict({"prompt": list(groups)}),
        processing_class=tokenizer,
        rollout_func=rollout,
    )
    started = time.process_time()
    trainer.train()
    return (time.process_time() - started) / len(data)


def show(result: dict[str, Any]) -> None:
    out = console()
    table = Table(title=f"An update of GRPO on {result['rollouts']} rollouts, CPU seconds, one thread")
    for column in ("prompt tokens", "shared prompts", "rows of their own", "TRL", "own / shared", "TRL / shared"):
        table.add_column(column, justify="right")
    for length in LENGTHS:
        rows = [row for row in result["rows"] if row["prompt"] == length]
        seconds = [f"{fmean(row[who] for row in rows):.2f}" for who in ("shared", "own", "trl")]
        both = [f"{fmean(row[who] / row['shared'] for row in rows):.2f}x" for who in ("own", "trl")]
        table.add_row(str(length), *seconds, *both)
    out.print(table)
    out.print(describe(result["provenance"]))
