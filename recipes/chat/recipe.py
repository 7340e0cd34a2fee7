"""Chats: supervised fine-tuning on conversations, and preference tuning (DPO) on pairs of answers; each alone, or both
one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recipes.chat.config import Config
from recipes.chat.data import load_pairs, load_rows, prepare, select_prompts, shown_pairs, shown_rows
from recipes.chat.model import load_encoder, load_model, open_engine, prompt_builder, start_model
from recipes.chat.report import keep_report, write_report
from recipes.chat.reward import exact
from recipes.chat.stages import dpo, sft
from recipes.chat.tasks import tasks
from stepstack.core.run import Run, stage
from stepstack.core.trainable import Trainable
from stepstack.generation.build import build_generator
from stepstack.harness.engines.generator import engine_of
from stepstack.harness.training.outcome import measure, report_outcome
from stepstack.harness.training.validation import validate
from stepstack.models.lm.config import Pretrained
from stepstack.report.tokens import ShownRow
from stepstack.tuning.config import DpoStage, SftStage

__all__ = ["Config", "describe", "open_engine", "prepare", "show_rows", "tasks", "train", "write_report"]


def train(run: Run[Config]) -> None:
    """The whole recipe: one stage, or sft as a stage inside of the run and dpo on the model that it made."""
    keep_report(run)
    cfg, place = run.config, start_model(run)
    last = cfg.dpo or cfg.sft
    if cfg.sft is not None and cfg.dpo is not None:
        sft_model = run.dir / "sft" / "model"
        if not sft_model.is_dir():
            tune(stage(run, "sft"), cfg.sft, place)
        place = place.moved(sft_model)
    assert last is not None, "the config asks for a stage"
    tune(run, last, place)
    report_outcome(run)
    run.finish()


def tune(run: Run[Config], cfg: SftStage | DpoStage, place: Pretrained) -> None:
    """One stage, from the model in ``place`` to one in the run's folder. Held-out questions are answered before and
    after; the model between two stages is only asked before the second."""
    lm, encoder = load_model(run, place)
    tokenizer, processor = encoder.tokenizer, encoder.processor
    run.reseed()
    generator = build_generator(run.config.generator, lm, tokenizer, place.path, run.device, processor)
    engine = engine_of(run.config.generator, generator, tokenizer, prompt=prompt_builder(encoder))

    def before(policy: Trainable) -> None:
        generator.load(policy.named_weights(), version=run.resume())
        if run.step == 0:
            measure(run, "before", engine, place.path, tasks(run.config))

    def watch(policy: Trainable) -> Mapping[str, float]:
        if not prompts:
            return {}
        generator.load(policy.named_weights(), version=run.step)
        return validate(generator, prompts, run.config.answers, exact, run).metrics("eval")

    prompts = select_prompts(run.config, encoder)
    match cfg:
        case DpoStage():
            policy = dpo(run, cfg, lm, encoder, before, watch)
        case SftStage():
            policy = sft(run, cfg, lm, encoder, before, watch)
    folder = run.export("policy", run.dir / "model", processor or tokenizer)
    if run.inner:
        run.finish()
        return
    generator.load(policy.finished_weights(), version=run.step)
    measure(run, "after", engine, str(folder), tasks(run.config))


def show_rows(cfg: Config, count: int) -> Iterator[ShownRow]:
    """The first rows of each stage, token by token."""
    encoder = load_encoder(cfg)
    if cfg.sft is not None:
        yield from shown_rows(load_rows(cfg, encoder).train, encoder, count)
    if cfg.dpo is not None:
        yield from shown_pairs(load_pairs(cfg, encoder).train, encoder, count)


def describe(cfg: Config) -> dict[str, Any]:
    """Numbers that follow from those of a config, for ``--dry-run``."""
    facts: dict[str, Any] = {}
    for name, stage_cfg in (("sft", cfg.sft), ("dpo", cfg.dpo)):
        if stage_cfg is not None:
            length = f"{stage_cfg.steps} updates" if stage_cfg.steps else f"{stage_cfg.epochs:g} epochs"
            trained = "all weights" if stage_cfg.policy.lora is None else f"adapters of rank {stage_cfg.policy.lora.r}"
            facts[name] = f"{length} of {stage_cfg.batch}, {trained}"
    return facts | {
        "micro-batch": f"up to {cfg.layout.max_tokens} tokens, {'packed' if cfg.layout.pack else 'padded'}",
        "longest conversation": f"{cfg.chat.max_tokens} tokens; longer ones: {cfg.chat.long}",
        "processes": f"{cfg.launch.processes} = {cfg.launch.nodes} nodes x {cfg.launch.processes_per_node}",
        "folder": cfg.folder,
    }
