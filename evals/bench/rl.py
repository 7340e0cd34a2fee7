"""`stepstack bench rl`: PPO and GRPO against TRL in one run on one machine, compared by their ratio."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from rich.table import Table

from evals.bench._trl import QUIET
from recipes.orz.config import Config
from recipes.orz.data import load_prompts
from recipes.orz.model import build_base
from recipes.orz.reward import reward_of
from recipes.protocol import load_config
from stepstack.config import Save
from stepstack.core.run import Run
from stepstack.core.types import SingleProcess
from stepstack.generation.build import build_generator
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator, response_text
from stepstack.generation.types import Answer, Finish, Prompt, Sampling
from stepstack.harness.training.validation import validate
from stepstack.loops import ppo
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.report import jsonl
from stepstack.report.provenance import describe, provenance
from stepstack.rl.config import Grpo
from stepstack.rl.prompts import PromptSplits, PromptStream
from stepstack.rl.roles import roles
from stepstack.terminal import console

GOAL = 0.70  # held-out accuracy at which the race ends
STOPS = ("</answer>",)  # one token of the tiny tokenizer, so that it can be an EOS id for the peer


def measure(seeds: int = 3, steps: int = 40) -> dict[str, Any]:
    """Race to GOAL on orz-tiny's task, and decoding speed.

    The contestants of a seed share the base model, the rollouts per step, the optimizer's numbers and the evaluation,
    whose time is not counted. One thread, process CPU time.
    """
    torch.set_num_threads(1)
    races: list[dict[str, Any]] = []
    sampler: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, seeds + 1):
            words = [f"seed={seed}", f"steps={steps}", "trackers=[]", f"dir={folder}"]
            cfg = load_config("orz-tiny", words, kind=Config)
            base = base_model(cfg, Path(folder))
            grpo = replace(cfg, advantage=Grpo(), name="grpo")
            for who, contest in (("stepstack PPO", cfg), ("stepstack GRPO", grpo)):
                races.append({"who": who, "seed": seed, **ours(contest, base, Path(folder) / f"{who}-{seed}")})
            races.append({"who": "TRL GRPO", "seed": seed, **trl_grpo(cfg, base, folder)})
            sampler += decoding(cfg, base)
    return {"bench": "rl", "goal": GOAL, "races": races, "sampler": sampler, "provenance": provenance()}


def base_model(cfg: Any, folder: Path) -> Path:
    """Folder of orz-tiny's SFT model for this seed."""
    run = Run(replace(cfg, name=f"base-{cfg.seed}", save=Save(every=0)))
    model = folder / f"base-{cfg.seed}" / "base" / "model"
    build_base(run, cfg.model, cfg.data, model)
    return model


class Race:
    """Clock that stands still while the contestant is evaluated, with the curve of (CPU seconds, accuracy)."""

    def __init__(self) -> None:
        self.spent = 0.0
        self.curve: list[tuple[float, float]] = []
        self.started = time.process_time()

    def judge(self, accuracy: Callable[[], float]) -> float:
        self.spent += time.process_time() - self.started
        self.curve.append((self.spent, accuracy()))
        self.started = time.process_time()
        return self.curve[-1][1]

    def result(self) -> dict[str, Any]:
        """Curve and ``seconds``: CPU seconds at the first evaluation at or over GOAL, None without one."""
        reached = [seconds for seconds, accuracy in self.curve if accuracy >= GOAL]
        return {"seconds": reached[0] if reached else None, "curve": self.curve}


def accuracy_function(cfg: Any, prompts: PromptSplits, lm: Any, tokenizer: Any) -> Callable[[Any], float]:
    """Function from weights to held-out accuracy, with the same sampler, seeds and questions for every contestant."""
    generator = HfGenerator(lm, tokenizer, HfConfig())
    sampling = cfg.rollout.sampling.replace(n=1, seed=7)
    reward = reward_of(cfg)

    def accuracy(weights: Any) -> float:
        generator.load(weights, version=0)
        return validate(generator, prompts.test[:512], sampling, reward, SingleProcess()).accuracy

    return accuracy


def ours(cfg: Any, base: Path, folder: Path) -> dict[str, Any]:
    """Result of the recipe's own composition, evaluated every second step and ended at GOAL."""
    place = Pretrained(path=str(base))
    lm, tokenizer = pretrained.load(place), pretrained.load_tokenizer(place)
    run = Run(replace(cfg, eval_every=2, save=Save(every=0)), folder=folder)
    prompts = load_prompts(cfg, tokenizer)
    accuracy = accuracy_function(cfg, prompts, copy.deepcopy(lm), tokenizer)
    generator = build_generator(cfg.rollout.generator, lm, tokenizer, str(base), lm.device)
    models = roles(run, cfg, lm)
    race = Race()

    def judge() -> dict[str, float]:
        value = race.judge(lambda: accuracy(models.actor.named_weights()))
        if value >= GOAL:
            run.stop_after = run.step
        return {"accuracy": value}

    with contextlib.suppress(SystemExit):  # the clean stop at GOAL
        ppo.train(
            run,
            roles=models,
            generator=generator,
            prompts=PromptStream(prompts.train, cfg.seed),
            reward=reward_of(cfg),
            evaluate=judge,
        )
    rows = [row for row in jsonl.read(run.metrics_file) if "tokens" in row]
    rate = sum(row["tokens"] for row in rows) / sum(row["time/rollout"] for row in rows)
    return {**race.result(), "steps": len(rows), "rollout_tokens_per_s": rate}


def trl_grpo(cfg: Any, base: Path, folder: str) -> dict[str, Any]:
    """Result of TRL's GRPOTrainer with its own defaults where ours has no counterpart."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # its telemetry would call out
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    place = Pretrained(path=str(base))
    lm, tokenizer = pretrained.load(place), pretrained.load_tokenizer(place)
    prompts = load_prompts(cfg, tokenizer)
    accuracy = accuracy_function(cfg, prompts, copy.deepcopy(lm), tokenizer)
    lm.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(STOPS[0])]
    by_text = {tokenizer.decode(list(p.ids)): p for p in prompts.train}
    reward = reward_of(cfg)

    def scores(prompts: list[str], completion_ids: list[list[int]], **unused: Any) -> list[float | None]:
        rollouts = []
        for text, ids in zip(prompts, completion_ids, strict=True):
            finish: Finish = "stop" if ids[-1] in lm.generation_config.eos_token_id else "length"
            response = response_text(tokenizer, ids, [tokenizer.eos_token_id], STOPS)
            rollouts.append(
                Answer(problem=by_text[text].problem, sample=0, ids=tuple(ids), text=response, finish=finish)
            )
        return [score.value for score in reward(rollouts)]

    race = Race()

    class Judge(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights = kwargs["model"].named_parameters()
            due = state.global_step % (2 * cfg.actor_updates) == 0
            if due and race.judge(lambda: accuracy(weights)) >= GOAL:
                control.should_training_stop = True

    trainer = GRPOTrainer(
        model=lm,
        processing_class=tokenizer,
        reward_funcs=scores,
        args=GRPOConfig(output_dir=folder, **trl_settings(cfg)),
        train_dataset=Dataset.from_dict({"prompt": list(by_text)}),
        callbacks=[Judge()],
    )
    generated = {"tokens": 0, "seconds": 0.0}
    inner = trainer._generate_single_turn

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        completions, logprobs = inner(*args, **kwargs)
        generated["seconds"] += time.perf_counter() - started
        generated["tokens"] += sum(map(len, completions))
        return completions, logprobs

    trainer._generate_single_turn = timed  # type: ignore[method-assign]
    race.started = time.process_time()
    trainer.train()
    steps = trainer.state.global_step // cfg.actor_updates
    return {**race.result(), "steps": steps, "rollout_tokens_per_s": generated["tokens"] / generated["seconds"]}


def trl_settings(cfg: Any) -> dict[str, Any]:
    """Settings of orz-tiny under TRL's names: as many rollouts and optimizer updates a step."""
    rollout, optim = cfg.rollout, cfg.actor.optim
    return {
        "per_device_train_batch_size": cfg.rollouts_per_step // cfg.actor_updates,
        "steps_per_generation": cfg.actor_updates,
        "gradient_accumulation_steps": 1,
        "num_generations": rollout.sampling.n,
        "max_completion_length": rollout.sampling.max_tokens,
        "max_steps": cfg.steps * cfg.actor_updates,
        "learning_rate": optim.lr,
        "lr_scheduler_type": "constant",
        "adam_beta1": optim.betas[0],
        "adam_beta2": optim.betas[1],
        "weight_decay": optim.weight_decay,
        "max_grad_norm": cfg.actor.clip,
        "temperature": rollout.sampling.temperature,
        "seed": cfg.seed,
        **QUIET,
    }


def decoding(cfg: Any, base: Path, rounds: int = 5) -> list[dict[str, Any]]:
    """Tokens/s at 64 rows of our sampler and ``model.generate`` in turn, on 64 prompts and on 8 prompts x 8 samples.

    Each once with responses that end where the model ends them, and once equally long: both engines then ban what ends
    a response, so that no row leaves ours early.
    """
    place = Pretrained(path=str(base))
    lm, tokenizer = pretrained.load(place), pretrained.load_tokenizer(place)
    lm.eval()
    prompts = load_prompts(cfg, tokenizer).test
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(STOPS[0])]
    rows = []
    for equal in (False, True):
        generator = HfGenerator(lm, tokenizer, HfConfig(), banned=ends if equal else ())
        for shape, n in (("64 prompts", 1), ("8 prompts x 8", 8)):
            name = f"{shape}, equally long" if equal else shape
            for turn in range(rounds + 1):
                sampling = cfg.rollout.sampling.replace(n=n, seed=turn, stop=STOPS)
                own = our_rate(generator, prompts[: 64 // n], sampling)
                peer = generate_rate(lm, prompts[: 64 // n], sampling, ends, equal)
                if turn:  # the first warms up
                    rows.append({"shape": name, "seed": cfg.seed, "ours": own, "generate": peer})
    return rows


def our_rate(generator: HfGenerator, prompts: Sequence[Prompt], sampling: Sampling) -> float:
    """Tokens a CPU second of our sampler, the texts of the rollouts included."""
    started = time.process_time()
    groups = list(generator.generate(prompts, sampling))
    return sum(len(r.ids) for g in groups for r in g.rollouts) / (time.process_time() - started)


def generate_rate(lm: Any, prompts: Sequence[Prompt], sampling: Sampling, ends: Sequence[int], equal: bool) -> float:
    """Tokens a CPU second of ``model.generate`` up to the first of ``ends``; with ``equal`` none of them is sampled."""
    ids = [list(p.ids) for p in prompts for _ in range(sampling.n)]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    started = time.process_time()
    out = lm.generate(
        padded,
        attention_mask=(padded != 0).long(),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        min_new_tokens=sampling.max_tokens if equal else None,
        max_new_tokens=sampling.max_tokens,
        eos_token_id=list(ends),
        pad_token_id=0,
    )[:, width:].tolist()
    spent = time.process_time() - started
    return sum(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in out) / spent


def show(result: dict[str, Any]) -> None:
    out = console()
    table = Table(title=f"CPU seconds to {result['goal']:.2f} held-out accuracy, one thread")
    for column in ("", "seconds", "stderr", "steps", "rollout tokens/s", "reached"):
        table.add_column(column, justify="right" if column else "left")
    means: dict[str, float] = {}
    for who in dict.fromkeys(race["who"] for race in result["races"]):
        races = [race for race in result["races"] if race["who"] == who]
        seconds = [race["seconds"] for race in races if race["seconds"] is not None]
        if seconds:
            means[who] = fmean(seconds)
        error = stdev(seconds) / len(seconds) ** 0.5 if len(seconds) > 1 else float("nan")
        table.add_row(
            who,
            f"{means.get(who, float('nan')):.1f}",
            f"{error:.1f}",
            f"{fmean(race['steps'] for race in races):.0f}",
            f"{fmean(race['rollout_tokens_per_s'] for race in races):.0f}",
            f"{len(seconds)} of {len(races)}",
        )
    out.print(table)
    for who in ("stepstack PPO", "stepstack GRPO"):
        if who in means and "TRL GRPO" in means:
            out.print(f"{who}: {means['TRL GRPO'] / means[who]:.1f}x TRL's speed to the goal")
    for shape in dict.fromkeys(row["shape"] for row in result["sampler"]):
        pairs = [(row["ours"], row["generate"]) for row in result["sampler"] if row["shape"] == shape]
        ratio = median(a / b for a, b in pairs)
        own, peer = (median(column) for column in zip(*pairs, strict=True))
        out.print(f"decoding, {shape}: {own:.0f} against generate's {peer:.0f} tokens/s, {ratio:.2f}x")
    out.print(describe(result["provenance"]))
