"""Benchmark tables from evals/tables/<name>.yaml, where rows are models and columns are tasks. No torch.

    title: orz-tiny on its held-out sets
    columns:
      - {task: orz_tiny, metric: avg@1, head: sums of 5-7 terms}
    rows:
      - {model: after PPO, results: [orz-tiny-seed1, orz-tiny-seed2], label: after}
      - {model: ORZ-32B, reported: orz, key: ORZ-32B}

``results`` are names in evals/results (measured), ``reported`` is one in evals/reported (published, with source).

A row is measured or reported, never both. Where measured results of a column are not comparable, the table notes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import yaml
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from stepstack.config import ROOT, ConfigError, Strict
from stepstack.report import formats, jsonl
from stepstack.report.formats import Format, Table, TableCell
from stepstack.report.provenance import describe

MAX_VALUE_CHARACTERS = 40  # of a value in a note; a longer one, such as a hash, is cut
Some = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Column(Strict):
    """``metric``: the name of one in the results. ``head``: "" shows the task's name."""

    task: str
    metric: str
    head: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredRow(Strict):
    """``results``: names of evals/results/<name>.json, one a seed. ``label``: which of the evaluations in them.
    ``task``: what the columns' tasks are called there, where a run was evaluated on a split of its own (test)."""

    model: str
    results: Annotated[tuple[str, ...], Some]
    label: str
    task: str = ""


@dataclass(frozen=True, slots=True)
class PublishedRow(Strict):
    """``reported``: the name of evals/reported/<name>.json. ``key``: a row in it."""

    model: str
    reported: str
    key: str


LayoutRow = Annotated[
    Annotated[MeasuredRow, Tag("measured")] | Annotated[PublishedRow, Tag("reported")],
    Discriminator(lambda row: "reported" if "reported" in row else "measured"),
]


@dataclass(frozen=True, slots=True)
class Layout(Strict):
    """``percent``: fractions are shown times 100; published figures must say the same of themselves."""

    title: str
    columns: Annotated[tuple[Column, ...], Some]
    rows: Annotated[tuple[LayoutRow, ...], Some]
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Figure(Strict):
    """A published figure: values by task, or counts, as of wins, ties and losses; ``source``: one of the file's."""

    key: str
    source: str
    values: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Publication(Strict):
    """evals/reported/<name>.json. ``sources``: where the figures were published and how they were measured."""

    percent: bool
    sources: Mapping[str, str]
    rows: tuple[Figure, ...]


@dataclass(slots=True)
class Entry:
    """Measured cell under construction. ``evals``: the results behind it, one a seed."""

    model: str
    evals: Sequence[Mapping[str, Any]]
    value: float
    stderr: float | None
    higher_is_better: bool
    marks: list[str] = field(default_factory=list)


def render(name: str, format: Format = "md", root: Path = ROOT) -> str:
    """Table of a layout as Markdown, LaTeX or HTML."""
    return formats.render([build(name, root)], format)


def names(root: Path = ROOT) -> list[str]:
    """Names of the existing layouts."""
    return sorted(path.stem for path in (root / "evals" / "tables").glob("*.yaml"))


def load(name: str, root: Path = ROOT) -> Layout:
    """Layout in a file. ConfigError that names file and key for a file that is no layout."""
    file = root / "evals" / "tables" / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"{_relative(file, root)} does not exist; there are {', '.join(names(root)) or 'none'}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{_relative(file, root)}: not YAML, repair it: {error}") from None
    for row in values.get("rows") or [] if isinstance(values, dict) else []:
        if isinstance(row, dict) and isinstance(row.get("results"), str):
            row["results"] = [row["results"]]
    return validate(Layout, values, _relative(file, root))


def build(name: str, root: Path = ROOT) -> Table:
    """Table of a layout. ConfigError for results that do not exist."""
    layout = load(name, root)
    sources: dict[str, int] = {}  # in order of appearance: their number in the table
    grid: list[list[Entry | TableCell]] = []
    for row in layout.rows:
        if isinstance(row, MeasuredRow):
            grid.append(_measured(row, layout, name, root))
        else:
            grid.append(_published(row, layout, sources, root))
    notes: list[str] = []
    by_column = [[entry for entry in line if isinstance(entry, Entry)] for line in zip(*grid, strict=True)]
    for column, entries in zip(layout.columns, by_column, strict=True):
        notes += _compare(column, entries)
    best = [id(entry) for column in zip(*grid, strict=True) for entry in _best(column)]
    cells: list[list[str | TableCell]] = [
        [row.model, *(_cell(entry, id(entry) in best, layout.percent) for entry in line)]
        for row, line in zip(layout.rows, grid, strict=True)
    ]
    notes += _footer(layout.columns, by_column)
    notes += [f"[{number}] reported, not measured by us: {source}" for source, number in sources.items()]
    head = ["model", *(c.head or c.task for c in layout.columns)]
    return Table(head, cells, list(dict.fromkeys(notes)), layout.title)  # columns of one task share their notes


def evals(name: str, root: Path = ROOT) -> dict[str, list[dict[str, Any]]]:
    """Results of evals/results/<name>.json by label."""
    file = root / "evals" / "results" / f"{name}.json"
    if not file.is_file():
        raise ConfigError(f"{_relative(file, root)} does not exist: `stepstack record` makes it from a finished run")
    facts = jsonl.read_json(file)
    if "evals" not in facts:
        raise ConfigError(f"{_relative(file, root)} has no key 'evals': record the run again (stepstack record)")
    return facts["evals"]


def find(name: str, label: str, task: str, metric: str, root: Path = ROOT) -> tuple[dict[str, Any], dict[str, Any]]:
    """Result and metric of a task under a label of evals/results/<name>.json. ConfigError where there is not exactly
    one."""
    by_label = evals(name, root)
    where = f"evals/results/{name}.json"
    if label not in by_label:
        raise ConfigError(f"{where} has no label {label!r}: there are {', '.join(by_label)}")
    results = [result for result in by_label[label] if result["task"] == task]
    matches = [(result, m) for result in results for m in result["metrics"] if m["name"] == metric]
    if not matches:
        have = [m["name"] for result in results for m in result["metrics"]]
        problem = f"{task} has no metric {metric!r}: there are {', '.join(have)}"
        problem = problem if results else f"no task {task!r}: evaluate it, then record the run again"
        raise ConfigError(f"{where}, {label}: {problem}")
    if len(matches) > 1:
        raise ConfigError(
            f"{where}, {label}: {task} was evaluated with {metric} {len(matches)} times: remove all but one"
        )
    if matches[0][1]["value"] is None:
        raise ConfigError(
            f"{where}, {label}: {metric} of {task} has no value: every sample failed; eval it with --again"
        )
    return matches[0]


def _measured(row: MeasuredRow, layout: Layout, name: str, root: Path) -> list[Entry | TableCell]:
    """Cells of a measured row.

    A cell is empty where none of the row's files has the task. It is an error where only some have it.
    """
    line: list[Entry | TableCell] = []
    for column in layout.columns:
        task = row.task or column.task
        tasks = [{r["task"] for r in evals(seed, root).get(row.label, [])} for seed in row.results]
        if any(tasks) and not any(task in there for there in tasks):
            line.append(TableCell("-"))
            continue
        matches = [find(seed, row.label, task, column.metric, root) for seed in row.results]
        values = [metric["value"] for _, metric in matches]
        stderr = stdev(values) / len(values) ** 0.5 if len(values) > 1 else matches[0][1]["stderr"]
        stderr = stderr or None  # 0 is no certainty: all questions, or all seeds, came out alike
        results = [result for result, _ in matches]
        line.append(Entry(row.model, results, fmean(values), stderr, matches[0][1]["higher_is_better"]))
    return line


def _published(row: PublishedRow, layout: Layout, sources: dict[str, int], root: Path) -> list[Entry | TableCell]:
    file = root / "evals" / "reported" / f"{row.reported}.json"
    path = _relative(file, root)
    if not file.is_file():
        raise ConfigError(f"{path} does not exist: the row {row.model!r} names it; correct that name")
    published = validate(Publication, jsonl.read_json(file), path)
    if published.percent != layout.percent:
        raise ConfigError(f"{path}: percent is {published.percent}, the layout's {layout.percent}: make them the same")
    figures = {figure.key: figure for figure in published.rows}
    if row.key not in figures:
        raise ConfigError(f"{path} has no row {row.key!r}: there are {', '.join(figures)}")
    figure = figures[row.key]
    if figure.source not in published.sources:
        raise ConfigError(f"{path}: {row.key}: no source {figure.source!r}: there are {', '.join(published.sources)}")
    number = sources.setdefault(published.sources[figure.source], len(sources) + 1)
    texts = {**figure.values, **{task: "-".join(map(str, counts)) for task, counts in figure.counts.items()}}
    values = [texts.get(column.task) for column in layout.columns]
    return [TableCell("-") if v is None else TableCell(f"{v}", italic=True, marks=(f"[{number}]",)) for v in values]


def _compare(column: Column, entries: Sequence[Entry]) -> list[str]:
    """Mark cells that may not be compared (†) and cells that lost samples (‡), and return the notes on them."""
    notes = []
    if differ := differences([result for entry in entries for result in entry.evals]):
        notes.append(f"† {column.task}: {'; '.join(differ)}")
        for entry in entries:
            entry.marks.append("†")
    for entry in entries:
        lost = {why: sum(result["failed"][why] for result in entry.evals) for why in ("engine", "grader")}
        if any(lost.values()):
            entry.marks.append("‡")
            samples = sum(result["samples"] for result in entry.evals)
            why = ", ".join(f"{why} {count}" for why, count in lost.items() if count)
            lost_all = sum(lost.values())
            notes.append(f"‡ {column.task}, {entry.model}: {lost_all} of {samples} samples failed ({why}), not counted")
    return notes


def differences(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what keeps results of one task from being compared: version, rows, sampling, or other parts of their
    plans.

    Model, engine and seed may differ.
    """
    facts = []
    for result in results:
        plan = {
            k: v
            for k, v in result["plan"].items()
            if k not in ("task", "model", "engine", "seed", "sampling", "clips", "parts")
        }
        sampling = {
            "samples a question" if k == "n" else k: v for k, v in budget_of(result["plan"]).items() if k != "seed"
        }
        facts.append(plan | sampling)
    texts: list[str] = []
    for key in dict.fromkeys(key for fact in facts for key in fact):
        values = list(dict.fromkeys(json.dumps(fact.get(key)) for fact in facts))
        if len(values) > 1 and not (key == "rows" and texts):  # another version or n has other rows by nature
            short = [value if len(value) <= MAX_VALUE_CHARACTERS else value.strip('"')[:8] for value in values]
            texts.append(f"{key} differs ({', '.join(short)})")
    return texts


def _best(column: Sequence[Entry | TableCell]) -> list[Entry]:
    """Best measured entries of a column of several; none where they cannot be compared."""
    entries = [entry for entry in column if isinstance(entry, Entry)]
    if len(entries) < 2 or any("†" in entry.marks for entry in entries):
        return []
    choose = max if entries[0].higher_is_better else min
    best = choose(entry.value for entry in entries)
    return [entry for entry in entries if entry.value == best]


def _cell(entry: Entry | TableCell, best: bool, percent: bool) -> TableCell:
    if isinstance(entry, TableCell):
        return entry
    scale, digits = (100, 1) if percent else (1, 3)
    seeds = f" ({len(entry.evals)} seeds)" if len(entry.evals) > 1 else ""
    spread = "" if entry.stderr is None else f" ± {scale * entry.stderr:.{digits}f}"
    return TableCell(f"{scale * entry.value:.{digits}f}{spread}{seeds}", bold=best, marks=entry.marks)


def _footer(columns: Sequence[Column], by_column: Sequence[Sequence[Entry]]) -> list[str]:
    """Notes on how the measured values were obtained."""
    ways_of_task: dict[str, dict[str, None]] = {}  # task -> how it was sampled, each once
    for column, entries in zip(columns, by_column, strict=True):
        for result in (result for entry in entries for result in entry.evals):
            facts = filter(None, (f"n={result['n']}, k={result['k']}", describe_sampling(result)))
            ways_of_task.setdefault(column.task, {})[", ".join(facts)] = None
    if not ways_of_task:
        return []
    how = "; ".join(f"{task} {' or '.join(ways)}" for task, ways in ways_of_task.items())
    entries = [entry for column in by_column for entry in column]
    seeds = " over seeds (mean and its standard error)" if any(len(entry.evals) > 1 for entry in entries) else ""
    return [
        f"measured, value ± standard error{seeds}: {how}; {describe_origins([r for e in entries for r in e.evals])}"
    ]


def describe_sampling(result: Mapping[str, Any]) -> str:
    """Settings that decide a sample, except seeds and stop strings, for example "T=1, top_p=1, max_tokens=64"."""
    facts = {"T" if k == "temperature" else k: v for k, v in budget_of(result["plan"]).items()}
    facts["shots"] = result["plan"].get("shots")
    settings = {k: v for k, v in facts.items() if k not in ("n", "seed", "stop") and v not in (None, -1)}
    return ", ".join(f"{key}={json.dumps(value).removesuffix('.0')}" for key, value in settings.items())


def describe_origins(results: Sequence[Mapping[str, Any]]) -> str:
    """Machine, commit and day of the results, once for equal ones."""
    days = [{**result["provenance"], "time": result["provenance"]["time"][:10]} for result in results]
    return "; ".join(dict.fromkeys(map(describe, days)))


def budget_of(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with which a plan samples text, or those with which it makes clips.

    Tasks of lm-evaluation-harness sample by their own config, whose digest is in the plan instead.
    """
    return plan.get("sampling") or plan.get("clips") or {}


def validate(cls: type, values: Any, file: str) -> Any:
    """Value of a class from plain values, validated through JSON. ConfigError names file and keys.

    In JSON, strict validation still lets a list be a tuple and an int be a float.
    """
    try:
        return TypeAdapter(cls).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"{file}: {_error_text(item)}" for item in error.errors(include_url=False))
        ) from None


def _error_text(item: Mapping[str, Any]) -> str:
    place = [str(part) for i, part in enumerate(item["loc"]) if not (i == 2 and part in ("measured", "reported"))]
    key = ".".join(place) or "the file"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        hint = "; a row has model, results, label (and task), or model, reported, key" if place[0] == "rows" else ""
        return f"{key}: unknown key{hint}"
    return f"{key}: {item['msg']}"


def _relative(file: Path, root: Path) -> str:
    return str(file.relative_to(root))
