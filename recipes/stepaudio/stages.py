"""The stages that train: the teacher on recordings, and the student, beside the teacher where the config distils."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.sets.speech import Take
from recipes.stepaudio.config import Config, SpeechLmConfig
from recipes.stepaudio.data import layout_of, recordings, rows
from recipes.stepaudio.model import build, mask_of
from stepstack.batching.rows import Row
from stepstack.batching.stream import RowStream
from stepstack.config import Save
from stepstack.core.config import TrainableConfig
from stepstack.core.run import Run, stage
from stepstack.loops import supervised
from stepstack.models.lm import pretrained
from stepstack.models.lm.config import Pretrained
from stepstack.models.lm.distilled import StudentPolicy, TeacherPolicy, check_vocabularies
from stepstack.models.lm.policy import Policy
from stepstack.tuning.distillation import divergence


def train_teacher(run: Run[Config], tokenizer: PreTrainedTokenizerBase) -> Path:
    """Folder of the teacher, trained on the recordings by a stage of the run, or found finished."""
    cfg, folder = run.config, run.dir / "teacher" / "model"
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


def train_student(run: Run[Config], takes: Sequence[Take], tokenizer: PreTrainedTokenizerBase, teacher: Path) -> None:
    """Supervised training of the student from scratch, in the run itself. Where the config distils, it learns beside
    each token what else the teacher would have said."""
    cfg, layout = run.config, layout_of(run.config, tokenizer)
    lm = _new(run, cfg.model, tokenizer)
    mask = mask_of(layout, lm)
    policy = Policy(lm, mask=mask)
    loss: supervised.Loss = supervised.likelihood
    if cfg.distill is not None:
        place = Pretrained(path=str(teacher))
        teacher_lm = run.load(lambda: pretrained.load(place), lambda: pretrained.skeleton(place))
        check_vocabularies(teacher_lm, pretrained.load_tokenizer(place), lm, tokenizer)
        policy = StudentPolicy(lm, partial(divergence, cfg.distill), mask=mask)
        loss = supervised.distilled(cfg.distill, run.frozen(TeacherPolicy(teacher_lm, mask=mask)))
    _fit(run, policy, cfg.student, rows(takes, tokenizer, layout), cfg.batch, cfg.steps, loss)


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
