"""The four tasks as evaluation tasks: the published protocol is greedy, and so are these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from data.drawn.splits import SPLITS, Split
from recipes.perception.config import Config, PreparedPictures
from recipes.perception.data import as_problems, evals_of, held_out, problems, request_maker
from recipes.perception.reward import Gold, make_metric
from stepstack.generation.types import Sampling
from stepstack.harness.config import TaskData
from stepstack.harness.metrics import Metric, Question, corpus, part
from stepstack.harness.task import Task
from stepstack.harness.training.task_data import load_task, split_tasks
from stepstack.records import Problem
from stepstack.scoring.vision.answers import Form, mended
from stepstack.scoring.vision.detection import Compared, SizeRange, compare, precision_of
from stepstack.scoring.vision.perception import detected_boxes
from stepstack.scoring.vision.spatial import Space

# Detection: 2 ignores crowds and reports AP by size.
VERSIONS = {"grounding": 1, "counting": 1, "ocr": 1, "detection": 2}
# (part of a score, its name in tables, whether higher is better); the first is what tables show unless told.
FORMED = ("well_formed", "well-formed")  # share of the answers; what others hold is counted all the same
FIGURES = {
    "grounding": [("acc75", "acc@.75"), ("acc50", "acc@.5"), ("acc95", "acc@.95"), ("iou", "IoU"), FORMED],
    "counting": [("exact", "exact"), ("absolute_error", "MAE"), FORMED],
    "ocr": [
        ("edit", "edit distance"),
        ("f1", "F1"),
        ("precision", "P"),
        ("recall", "R"),
        ("bleu", "BLEU"),
        ("meteor", "METEOR"),
    ],
    "detection": [("location", "IoU of matched"), ("count_f1", "F1 at .5"), FORMED],
}
# (name in tables, part of ``precision_of``, areas of the objects)
AVERAGE_PRECISIONS: list[tuple[str, str, SizeRange]] = [
    ("AP", "ap", "all"),
    ("AP50", "ap50", "all"),
    ("AP75", "ap75", "all"),
    ("AP small", "ap", "small"),
    ("AP medium", "ap", "medium"),
    ("AP large", "ap", "large"),
]
LESS_IS_BETTER = ("absolute_error", "edit")


def metrics_of(cfg: Config) -> list[Metric]:
    """The published metrics of the config's task."""
    metrics = [part(name, label, higher_is_better=name not in LESS_IS_BETTER) for name, label in FIGURES[cfg.task]]
    if cfg.task == "detection":
        form, space = cfg.reward.form, cfg.reward.space
        metrics = [average_precision(*row, form, space) for row in AVERAGE_PRECISIONS] + metrics
    return metrics


def average_precision(label: str, name: str, size: SizeRange, form: Form, space: Space) -> Metric:
    """COCO's AP under the no-confidence protocol: every box has score 1.

    Crowds are ignored as COCOeval ignores them. The figure is None where no object has that size.
    """

    @cache
    def compared(gold_text: str, answer: str) -> Compared:
        gold = Gold.read(gold_text)
        return compare(gold.annotated, detected_boxes(mended(answer, form)[0], gold.frame(space), form)[0], size)

    def of(questions: Sequence[Question]) -> float | None:
        figures = precision_of([compared(q[0].gold, q[0].answer or "") for q in questions])
        return None if figures is None else figures[name]

    return corpus(label, of)


def tasks(cfg: Config) -> list[Task]:
    """The splits of a config's data: ``test`` is reported, ``select`` watched; and every eval of a prepared folder by
    its own name, such as refcoco_testA."""
    if isinstance(cfg.data, TaskData):
        return split_tasks(cfg.data, load_task(cfg.data))
    splits = [scored(cfg, split, f"the {split} split of {cfg.name}'s data") for split in SPLITS]
    return splits + [
        published(cfg, cfg.data, name) for name in evals_of(cfg.data) if isinstance(cfg.data, PreparedPictures)
    ]


def published(cfg: Config, data: PreparedPictures, name: str) -> Task:
    """An eval of a prepared folder, in the published protocol."""
    return _task(cfg, f"{data.set}_{name}", f"{name} in {data.folder}", lambda: as_problems(cfg, held_out(data, name)))


def scored(cfg: Config, split: Split, about: str, name: str = "") -> Task:
    """A split as a task, in the config's way of asking and answering."""
    return _task(cfg, name or split, about, lambda: problems(cfg, split))


def _task(cfg: Config, name: str, about: str, rows: Callable[[], Sequence[Problem]]) -> Task:
    return Task(
        name=name,
        version=VERSIONS[cfg.task],
        about=about,
        rows=lambda data: rows(),
        request=request_maker(cfg),
        score=make_metric(cfg),
        budget=Sampling(temperature=0.0, max_tokens=cfg.rollout.sampling.max_tokens),
        metrics=lambda budget: metrics_of(cfg),
    )
