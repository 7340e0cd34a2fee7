"""The stages that train: the teacher on recordings, the student on takes, and GRPO on what is heard of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.drawn.sentences import Line
from data.sets.speech import Take
from recipes.stepaudio.config import Config, SpeechLmConfig
from recipes.stepaudio.data import engine_lines, layout_of, prompt_ids, recordings, rows, split_lines
from recipes.stepaudio.model import build, mask_of
from recipes.stepaudio.reward import reward_of
from recipes.stepaudio.tasks import problems
from stepstack.batching.rows import Row
from stepstack.batching.stream import RowStream
from stepstack.config import ROOT, ConfigError, Save
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Prompt
from stepstack.harness.training.validation import validate
from stepstack.loops import ppo, supervised
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.distilled import StudentPolicy, TeacherPolicy, check_vocabularies, vocabulary_digest
from stepstack.models.lm.policy import Policy
from stepstack.rl.config import PpoConfig
from stepstack.rl.prompts import PromptStream
from stepstack.rl.roles import roles
from stepstack.tuning.distillation import divergence


def train_teacher(run: Run[Config], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of the teacher: the config's, or one that a stage of the run trains on the recordings, or found finished.
    ConfigError for a folder of the config that holds no model, or one of another vocabulary."""
    cfg, folder = run.config, run.dir / "teacher" / "model"
    if cfg.teacher.folder is not None:
        folder = ROOT / cfg.teacher.folder
        if not (folder / "config.json").is_file():
            raise ConfigError(f"teacher.folder={folder} holds no model: train one, or set it to null")
        its, mine = (
            vocabulary_digest(pretrained.load_tokenizer(Pretrained(path=str(folder)))),
            vocabulary_digest(tokenizer),
        )
        if its != mine:
            raise ConfigError(
                f"teacher.folder={folder} has the vocabulary {its}, this config the vocabulary {mine}: give the "
                "codebooks that it was trained with, or set it to null"
            )
    if not folder.is_dir():
        inner = stage(run, "teacher", eval_every=0, save=Save(every=cfg.save.every, keep=1))
        learned = rows(recordings(cfg, "train"), tokenizer, layout_of(cfg, tokenizer))
        kind = cfg.teacher
        lm = _new(inner, kind.model, tokenizer)
        policy = Policy(lm, mask=mask_of(layout_of(cfg, tokenizer), lm))
        _fit(inner, policy, TrainableConfig(optim=kind.optim), learned, kind.batch, kind.steps)
        inner.export("policy", folder, tokenizer)
        inner.finish()
        inner.accelerator.free_memory()
    return folder


def train_student(run: Run[Config], takes: Sequence[Take], tokenizer: PreTrainedTokenizerBase, teacher: Path) -> Path:
    """Folder of the student, trained from scratch: in the run itself, or, where GRPO follows, by a stage of its own in
    runs/<name>/student. Where the config distils, it learns beside each token what else the teacher would have said."""
    cfg, layout = run.config, layout_of(run.config, tokenizer)
    inner = run if cfg.rl is None else stage(run, "student")
    lm = _new(inner, cfg.student_shape, tokenizer)
    mask = mask_of(layout, lm)
    policy = Policy(lm, mask=mask)
    loss: supervised.Loss = supervised.likelihood
    if cfg.distill is not None:
        place = Pretrained(path=str(teacher))
        teacher_lm = inner.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
        check_vocabularies(teacher_lm, pretrained.load_tokenizer(place), lm, tokenizer)
        policy = StudentPolicy(lm, partial(divergence, cfg.distill), mask=mask)
        loss = supervised.distilled(cfg.distill, inner.frozen(TeacherPolicy(teacher_lm, mask=mask)))
    _fit(inner, policy, cfg.student, rows(takes, tokenizer, layout), cfg.batch, cfg.steps, loss)
    folder = inner.export("policy", inner.dir / "model", tokenizer)
    if inner is not run:
        inner.finish()
        inner.accelerator.free_memory()
    return folder


def train_by_reward(run: Run[Config], student: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    """GRPO of a student's folder on the reward, as a stage of its own in runs/<name>/grpo, and the folder of its model.
    The mask is in the sampler and in the trainer. Lines are those of teacher and engine, spoken by nobody but it."""
    cfg, layout = run.config, layout_of(run.config, tokenizer)
    inner: Run[PpoConfig] = Run(cfg.grpo, folder=run.dir / "grpo", live=run.live)
    place = Pretrained(path=str(student))
    lm = inner.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
    mask, reward = mask_of(layout, lm), reward_of(cfg)
    generator = HfGenerator(lm, tokenizer, cfg.generator, inner.device, mask=mask)
    models = roles(inner, cfg.grpo, lm, lambda lm: Policy(lm, mask=mask))
    watched = prompts(split_lines(cfg, "select"), tokenizer)

    def select() -> dict[str, float]:
        sampling = cfg.grpo.rollout.sampling.replace(n=1, temperature=0.0)
        return validate(generator, watched, sampling, reward, inner).metrics("eval")

    ppo.train(
        inner,
        roles=models,
        generator=generator,
        prompts=PromptStream(prompts([*split_lines(cfg, "train"), *engine_lines(cfg)], tokenizer), cfg.seed),
        reward=reward,
        evaluate=select,
    )
    folder = inner.export("actor", run.dir / "model", tokenizer)
    inner.finish()
    return folder


def prompts(lines: Sequence[Line], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Prompts of lines, for the sampler."""
    return [Prompt(problem, prompt_ids(line, tokenizer)) for line, problem in zip(lines, problems(lines), strict=True)]


def _new(run: Run[Config], shape: SpeechLmConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """An untrained model, the same whatever the run did before."""
    run.reseed()
    make = partial(build, shape, tokenizer, run.config.seed)
    return run.load(make, make)


def _fit(
    run: Run[Config],
    module: Policy,
    cfg: TrainableConfig,
    learned: Sequence[Row],
    batch: int,
    steps: int,
    loss: supervised.Loss = supervised.likelihood,
) -> None:
    """Training of one model by the loop. The module's mask leaves what no turn can hold out of the loss."""
    policy = run.trainable("policy", module, cfg, steps)
    stream: RowStream[Row] = RowStream(learned, batch, run.config.seed)
    supervised.train(run, policy=policy, rows=stream.take, steps=steps, layout=run.config.layout, loss=loss)
