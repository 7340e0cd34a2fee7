"""M-DocEval on held-out papers, greedy and sampled, and its controls: the same papers with other pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data.drawn.papers import Papers
from data.drawn.splits import SPLITS
from recipes.mdocsum.config import CONTROLS, Config, Control
from recipes.mdocsum.data import control, documents, problems
from recipes.mdocsum.prompt import request_of
from recipes.mdocsum.reward import make_metric
from stepstack.generation.prompts import Pictured
from stepstack.generation.types import Sampling
from stepstack.harness.judging import identity
from stepstack.harness.metrics import Metric, Question, corpus, part, scored
from stepstack.harness.task import Task
from stepstack.records import Problem

# (counts of the documents' parts, their name in tables): shares of all paragraphs, figures or wrong choices of the set.
RATES = [("matched", "cited", "figure match")]
MORE_RATES = [
    ("bare_right", "bare", "None right"),
    ("listed", "figures", "figures listed"),
    ("confused", "wrong", "confusion"),
    ("chance", "cited", "chance"),
]
LESS_IS_BETTER = ("confusion", "match at old places")
PARTS = [
    ("total", "Total"),
    ("following", "IF"),
    ("following_strict", "IF strict"),
    ("completeness", "COM"),
    ("accuracy", "ACC"),
    ("ts", "TS"),
    ("omatch", "OMatch"),
    ("jaccard", "JacSim"),
    ("is", "IS"),
    ("parse", "parse"),
]


def rate(top: str, bottom: str, name: str) -> Metric:
    """A share over the whole set: documents count by what they have of ``bottom``. None where no document has any."""

    def of(questions: Sequence[Question]) -> float | None:
        parts = [sample.parts for question in questions for sample in scored(question)]
        total = sum(row[bottom] for row in parts)
        return sum(row[top] for row in parts) / total if total else None

    return corpus(name, of, higher_is_better=name not in LESS_IS_BETTER)


def metrics_of(kind: Control | None = None) -> list[Metric]:
    """M-DocEval's figures; the match on paragraphs that have a figure is what tables show unless told."""
    old = [rate("old_matched", "cited", "match at old places")] if kind == "exchanged" else []
    rates = [rate(*names) for names in (*RATES, *MORE_RATES)]
    return [rates[0], *old, *(part(name, label) for name, label in PARTS), *rates[1:]]


def tasks(cfg: Config) -> list[Task]:
    """The splits of a config's papers, greedy; ``sampled``, the test split at temperature 1; and of drawn papers the
    controls."""
    every = [summaries(cfg, split, f"the {split} papers of {cfg.name}") for split in (*SPLITS, "sampled")]
    if isinstance(cfg.data, Papers):
        every += [summaries(cfg, kind, f"the test papers of {cfg.name}, figures {kind}") for kind in CONTROLS]
    return every


def summaries(cfg: Config, kind: str, about: str, name: str = "") -> Task:
    """A split, "sampled" or a control as a task, in the config's way of asking and answering."""

    def request(problem: Problem) -> Pictured:
        return request_of(problem.meta["document"], cfg.prompt)

    temperature, served = 1.0 if kind == "sampled" else 0.0, cfg.score.judge
    return Task(
        name=name or kind,
        version=1,
        about=about,
        rows=lambda data: _rows(cfg, kind)(),
        request=request,
        score=make_metric(cfg),
        budget=Sampling(temperature=temperature, max_tokens=cfg.score.max_tokens),
        metrics=lambda budget: metrics_of("exchanged" if kind == "exchanged" else None),
        judge=None if served is None else lambda: identity(served),
    )


def _rows(cfg: Config, kind: str) -> Callable[[], Sequence[Problem]]:
    for split in SPLITS:
        if kind == split:
            return lambda: problems(documents(cfg, split))
    for each in CONTROLS:
        if kind == each:
            return lambda: control(cfg, each, documents(cfg, "test"))
    return lambda: problems(documents(cfg, "test"))
