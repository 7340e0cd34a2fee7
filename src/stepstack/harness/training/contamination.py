"""Which questions of evaluation tasks a training set holds, for a report next to the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepstack.config import ConfigError
from stepstack.harness.task import Task
from stepstack.scoring.text.overlap import EXAMPLES, NGRAM, overlap

EXAMPLE_CHARACTERS = 100  # characters of an example


def report(
    training: Mapping[str, Sequence[str]],
    tasks: Sequence[Task],
    data: Path,
    n: int = NGRAM,
    examples: int = EXAMPLES,
) -> dict[str, Any]:
    """Overlap of each training set (name -> its problems' texts) with each task's questions, as plain JSON.

    A question is hit by an equal text (but for case, white space and dollar signs) or by ``n`` words in a row. Keys:
    n, training (name -> rows), rows; a row is one training set and task, with the task's version and the keys of
    ``scoring.overlap.overlap``, where an example's ``question`` is the problem's index.

    ConfigError for a task or a training set without rows, and for two tasks of one name.
    """
    empty = [name for name, texts in training.items() if not texts]
    if empty or not training:
        raise ConfigError(
            f"no training rows to compare with: {', '.join(empty) or 'no training set is given'}: name prepared data"
        )
    problems = {task.name: list(task.rows(data)) for task in tasks}
    if len(problems) < len(tasks):
        raise ConfigError(f"two of the tasks {', '.join(task.name for task in tasks)} have the same name: rename one")
    for name, rows_of_task in problems.items():
        if not rows_of_task:
            raise ConfigError(f"task {name}: no rows: check the file or dataset that it reads")
    versions = {task.name: task.version for task in tasks}
    texts = {name: [problem.text for problem in rows_of_task] for name, rows_of_task in problems.items()}
    rows = []
    for name, train in training.items():
        for row in overlap(train, texts, n, examples):
            task = row.pop("eval")
            numbered = [{**e, "question": problems[task][e["question"]].index} for e in row.pop("examples")]
            rows.append({"training": name, "task": task, "version": versions[task], **row, "examples": numbered})
    return {"n": n, "training": {name: len(texts) for name, texts in training.items()}, "rows": rows}


def markdown(overlap: Mapping[str, Any]) -> str:
    """A ``report`` as a table, what it cannot see, and examples."""
    n, lines = overlap["n"], []
    head = ("training set", "rows", "task", "questions", "equal", f"{n} words in a row", "share", "training rows hit")
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in overlap["rows"]:
        cells = [row["training"], overlap["training"][row["training"]], row["task"], row["questions"]]
        cells += [row["exact"], row["ngram"], f"{100 * row['share']:.1f}%", row["train_rows"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines.append("")
    short = {row["task"]: f"{row['short']} of {row['questions']}" for row in overlap["rows"] if row["short"]}
    if short:
        counts = ", ".join(f"{task}: {count}" for task, count in short.items())
        lines += [f"Questions shorter than {n} words: {counts}; only exact overlap can find them.", ""]
    for row in overlap["rows"]:
        for e in row["examples"]:
            how = "the same text" if e["kind"] == "exact" else f"{n} words in a row"
            where = f"{row['training']} row {e['train']}, {row['task']} question {e['question']}"
            lines.append(f"- {where}: {how}: `{_short(e['text'])}`")
    return "\n".join(lines).rstrip() + "\n"


def _short(text: str) -> str:
    """On one line, without what would end the code span."""
    text = " ".join(text.replace("`", "'").split())
    return text if len(text) <= EXAMPLE_CHARACTERS else text[:EXAMPLE_CHARACTERS].rstrip() + " ..."
