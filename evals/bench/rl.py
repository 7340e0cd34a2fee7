"""`stepstack bench rl`: PPO and GRPO against TRL in one run on one machine, compared by their ratio."""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from evals.bench._trl import QUIET
from recipes.orz.config import Config
from recipes.orz.data import load_prompts
from recipes.orz.model import build_base
from recipes.orz.reward import reward_of
from recipes.protocol import load_config
from stepstack.config import Save
from stepstack.core.device import measured_flops
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
    """Race to GOAL on orz-tiny's task, and decoding speed, each with the operations of its matrix products, which a
    second, equal run counts: at ``peak`` a second they are the floor.

    The contestants of a seed share the base model, the rollouts per step, the optimizer's numbers and the evaluation,
    whose time is not counted. One thread, process CPU time.
    """
    torch.set_num_threads(1)
    peak = measured_flops(torch.device("cpu"), size=1024)
    races: list[dict[str, Any]] = []
    sampler: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, seeds + 1):
            words = [f"seed={seed}", f"steps={steps}", "trackers=[]", f"dir={folder}"]
            cfg = load_config("orz-tiny", words, kind=Config)
            base = base_model(cfg, Path(folder))
            grpo = replace(cfg, advantage=Grpo(), name="grpo")
            contestants = {
                "stepstack PPO": partial(ours, cfg, base),
                "stepstack GRPO": partial(ours, grpo, base),
                "TRL GRPO": partial(trl_grpo, cfg, base),
            }
            races += [{"who": who, "seed": seed, **raced(contest)} for who, contest in contestants.items()]
            sampler += decoding(cfg, base)
    figures = {"bench": "rl", "goal": GOAL, "peak": peak, "races": races, "sampler": sampler}
    return figures | {"provenance": provenance()}


Contest = Callable[["Race", Path], dict[str, Any]]


def raced(contest: Contest) -> dict[str, Any]:
    """Result of a contestant, with ``flops`` up to the goal. RuntimeError where the run that counts them differs."""
    with tempfile.TemporaryDirectory() as folder:
        result = contest(Race(), Path(folder))
    with tempfile.TemporaryDirectory() as folder, counting() as counter:
        counted = contest(Race(counter), Path(folder))
    if counted["steps"] != result["steps"]:
        raise RuntimeError(f"{counted['steps']} steps where operations were counted, {result['steps']} before")
    return result | {"flops": counted["flops"]}


def counting() -> FlopCounterMode:
    """Counter of the operations of matrix products and of attention, with those that torch's own leaves out: attention
    on a CPU, and products that are added in place."""
    aten: Any = torch.ops.aten
    uncounted = {
        aten.addmm_: lambda added_to, a, b, *_, **__: 2 * a[0] * a[1] * b[1],
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=uncounted)


def base_model(cfg: Any, folder: Path) -> Path:
    """Folder of orz-tiny's SFT model for this seed."""
    run = Run(replace(cfg, name=f"base-{cfg.seed}", save=Save(every=0)))
    model = folder / f"base-{cfg.seed}" / "base" / "model"
    build_base(run, cfg.model, cfg.data, model)
    return model


class Race:
    """Clock, and counter of operations where one is given, that stand still while the contestant is evaluated, with the
    curve of (CPU seconds, accuracy)."""

    def __init__(self, counter: FlopCounterMode | None = None) -> None:
        self.counter, self.flops = counter, 0
        self.spent = 0.0
        self.curve: list[tuple[float, float]] = []
        self.start()

    def start(self) -> None:
        self.started, self.counted = time.process_time(), self._count()

    def judge(self, accuracy: Callable[[], float]) -> float:
        self.spent += time.process_time() - self.started
        self.flops += self._count() - self.counted
        self.curve.append((self.spent, accuracy()))
        self.start()
        return self.curve[-1][1]

    def result(self) -> dict[str, Any]:
        """Curve, operations counted, and ``seconds``: CPU seconds at the first evaluation at or over GOAL, None without
        one."""
        reached = [seconds for seconds, accuracy in self.curve if accuracy >= GOAL]
        return {"seconds": reached[0] if reached else None, "curve": self.curve, "flops": self.flops}

    def _count(self) -> int:
        return self.counter.get_total_flops() if self.counter else 0


def accuracy_function(cfg: Any, prompts: PromptSplits, lm: Any, tokenizer: Any) -> Callable[[Any], float]:
    """Function from weights to held-out accuracy, with the same sampler, seeds and questions for every contestant."""
    generator = HfGenerator(lm, tokenizer, HfConfig())
    sampling = cfg.rollout.sampling.replace(n=1, seed=7)
    reward = reward_of(cfg)

    def accuracy(weights: Any) -> float:
        generator.load(weights, version=0)
        return validate(generator, prompts.test[:512], sampling, reward, SingleProcess()).accuracy

    return accuracy


def ours(cfg: Any, base: Path, race: Race, folder: Path) -> dict[str, Any]:
    """Result of the recipe's own composition, evaluated every second step and ended at GOAL."""
    place = Pretrained(path=str(base))
    lm, tokenizer = pretrained.load(place), pretrained.load_tokenizer(place)
    run = Run(replace(cfg, eval_every=2, save=Save(every=0)), folder=folder)
    prompts = load_prompts(cfg, tokenizer)
    accuracy = accuracy_function(cfg, prompts, copy.deepcopy(lm), tokenizer)
    generator = build_generator(cfg.rollout.generator, lm, tokenizer, str(base), lm.device)
    models = roles(run, cfg, lm)
    race.start()

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


def trl_grpo(cfg: Any, base: Path, race: Race, folder: Path) -> dict[str, Any]:
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
        args=GRPOConfig(output_dir=str(folder), **trl_settings(cfg)),
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
    race.start()
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
    """Tokens/s at 64 rows of our sampler and ``model.generate`` in turn, on 64 prompts and on 8 prompts x 8 samples;
    operations a token of each are counted while they warm up.

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
                if turn == 0:
                    flops = {
                        "ours_flops": flops_a_token(our_tokens, generator, prompts[: 64 // n], sampling),
                        "generate_flops": flops_a_token(generate_tokens, lm, prompts[: 64 // n], sampling, ends, equal),
                    }
                    continue
                own = rate(our_tokens, generator, prompts[: 64 // n], sampling)
                peer = rate(generate_tokens, lm, prompts[: 64 // n], sampling, ends, equal)
                rows.append({"shape": name, "seed": cfg.seed, "ours": own, "generate": peer, **flops})
    return rows


def rate(decode: Callable[..., int], *arguments: Any) -> float:
    """Tokens a CPU second."""
    started = time.process_time()
    tokens = decode(*arguments)
    return tokens / (time.process_time() - started)


def flops_a_token(decode: Callable[..., int], *arguments: Any) -> float:
    with counting() as counter:
        tokens = decode(*arguments)
    return counter.get_total_flops() / tokens


def our_tokens(generator: HfGenerator, prompts: Sequence[Prompt], sampling: Sampling) -> int:
    """Count of the tokens of our sampler, which makes the texts of the rollouts too."""
    return sum(len(r.ids) for group in generator.generate(prompts, sampling) for r in group.rollouts)


def generate_tokens(lm: Any, prompts: Sequence[Prompt], sampling: Sampling, ends: Sequence[int], equal: bool) -> int:
    """Count of the tokens of ``model.generate`` up to the first of ``ends``; with ``equal`` none of them is sampled."""
    ids = [list(p.ids) for p in prompts for _ in range(sampling.n)]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
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
    return sum(next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in out)


def show(result: dict[str, Any]) -> None:
    out = console()
    table = Table(title=f"CPU seconds to {result['goal']:.2f} held-out accuracy, one thread")
    for column in ("", "seconds", "stderr", "at the matmul peak", "steps", "rollout tokens/s", "reached"):
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
            f"{fmean(race['flops'] for race in races) / result['peak']:.1f}",
            f"{fmean(race['steps'] for race in races):.0f}",
            f"{fmean(race['rollout_tokens_per_s'] for race in races):.0f}",
            f"{len(seconds)} of {len(races)}",
        )
    out.print(table)
    for who in ("stepstack PPO", "stepstack GRPO"):
        if who in means and "TRL GRPO" in means:
            out.print(f"{who}: {means['TRL GRPO'] / means[who]:.1f}x TRL's speed to the goal")
    for shape in dict.fromkeys(row["shape"] for row in result["sampler"]):
        rows = [row for row in result["sampler"] if row["shape"] == shape]
        ratio = median(row["ours"] / row["generate"] for row in rows)
        own, peer, flops = (median(row[name] for row in rows) for name in ("ours", "generate", "ours_flops"))
        out.print(
            f"decoding, {shape}: {own:.0f} against generate's {peer:.0f} tokens/s, {ratio:.2f}x; "
            f"at the matmul peak {result['peak'] / flops:.0f}"
        )
    out.print(describe(result["provenance"]))
