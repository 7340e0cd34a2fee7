"""M-DocSum-7B (arXiv 2503.21839): instruction tuning, then DPO, for summaries that show the right figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.drawn.papers import Papers
from recipes.mdocsum.config import Config, Dpo, GrpoStage, MoreSft, Sft, TinyVl
from recipes.mdocsum.data import load_prompts, prepare, shown_rows
from recipes.mdocsum.model import base_model, load_model, open_engine, sampler, skeleton, untrained
from recipes.mdocsum.report import keep_report, write_report
from recipes.mdocsum.reward import make_metric, watched
from recipes.mdocsum.stages import first_stage, fit_grpo, fit_lessons, fit_second
from recipes.mdocsum.tasks import tasks
from stepstack.core.run import Run
from stepstack.core.trainable import Trainable
from stepstack.harness.training.outcome import measure, report_outcome
from stepstack.harness.training.validation import validate
from stepstack.models.vision.config import PretrainedVl
from stepstack.models.vision.pretrained import load_processor
from stepstack.report.tokens import ShownRow

__all__ = ["Config", "describe", "open_engine", "prepare", "show_rows", "skeleton", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: instruction tuning, then the second stage, each where the config has it, and a look at them."""
    cfg = run.config
    keep_report(run)
    place = base_model(run)
    if cfg.sft is not None and cfg.second is not None:
        place = first_stage(run, cfg.sft, place)
    lm, processor = load_model(run, place)
    prompts = load_prompts(cfg, processor)
    run.reseed()
    generator, engine = sampler(run, lm, processor, place)
    metric = make_metric(cfg)

    def begin(policy: Trainable) -> None:
        generator.load(policy.named_weights(), version=0)
        measure(run, "before", engine, place.path, tasks(cfg))

    def select(policy: Trainable) -> dict[str, float]:
        generator.load(policy.named_weights(), version=policy.updates)
        greedy = cfg.pairs.sampling.replace(n=1, temperature=0.0, max_tokens=cfg.score.max_tokens)
        return watched(validate(generator, prompts.select, greedy, metric, run))

    match cfg.second:
        case None:
            assert cfg.sft is not None
            inner, policy = run, fit_lessons(run, cfg.sft, lm, processor, prompts, begin, select)
        case GrpoStage():
            inner, policy = fit_grpo(run, lm, processor, generator, prompts, begin, select)
        case kind:
            inner, policy = run, fit_second(run, kind, lm, processor, generator, prompts.train, begin, select)
    generator.load(policy.finished_weights(), version=policy.updates)
    folder = inner.export(policy.role, run.dir / "model", processor)
    measure(run, "after", engine, str(folder), tasks(cfg))
    report_outcome(run)
    run.finish()


def show_rows(cfg: Config, count: int) -> Iterator[ShownRow]:
    """The first rows of instruction tuning, token by token."""
    match cfg.model:
        case TinyVl() as kind:
            assert isinstance(cfg.data, Papers)
            processor = untrained(kind, cfg.data, cfg.seed)[1]
        case PretrainedVl() as kind:
            processor = load_processor(kind)
    return shown_rows(cfg, processor, count)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    facts: dict[str, Any] = {"figures": cfg.data.type, "first stage": "none" if cfg.sft is None else length(cfg.sft)}
    match cfg.second:
        case None:
            facts["second stage"] = "none"
        case GrpoStage() as kind:
            facts["second stage"] = f"grpo, {kind.steps} steps of {kind.prompts} papers x {kind.sampling.n} summaries"
        case kind:
            facts["second stage"] = f"{kind.type}, {length(kind)}"
            facts["pairs"] = ", ".join(name for name, weight in cfg.pairs.kinds.items() if weight)
    return facts | {
        "longest prompt": f"{cfg.prompt.max_tokens} tokens",
        "micro-batch": f"up to {cfg.layout.max_tokens} tokens, {'packed' if cfg.layout.pack else 'padded'}",
        "summaries from": cfg.generator.type,
        "key points judged by": "exact sentences" if cfg.score.judge is None else cfg.score.judge.url,
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": cfg.folder,
    }


def length(kind: Sft | Dpo | MoreSft) -> str:
    return (
        f"{kind.steps} updates of {kind.batch}" if kind.steps else f"{kind.epochs:g} epochs in updates of {kind.batch}"
    )
