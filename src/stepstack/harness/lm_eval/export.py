"""Our tasks in lm-eval's own command line. What is written imports stepstack to grade, and nothing else of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import yaml

from stepstack.config import ConfigError
from stepstack.generation.prompts import NotText
from stepstack.generation.types import Answer, Budget, Sampling
from stepstack.harness.answers import Sample
from stepstack.harness.evaluate import checked
from stepstack.harness.metrics import Metric
from stepstack.harness.task import TASKS, Task, load
from stepstack.records import Problem, gold_text
from stepstack.report import jsonl
from stepstack.rl.reward import Reward

MODULE = '''"""The task {name}, version {version}, for lm-eval: how its rows are read and its answers graded."""

from pathlib import Path

from stepstack.harness.lm_eval.export import judged, read_rows

{imports}

SAMPLING = {sampling}


def rows(**options):
    return read_rows(Path(__file__).with_suffix(".jsonl"))


def process_results(document, results):
    return judged(document, results[0], {score}, {metrics}, SAMPLING)
'''


def export(tasks: Sequence[Task], out: Path, data: Path) -> Path:
    """Write ``out``, for ``lm_eval --include_path OUT --tasks stepstack_<name>``; it may be moved.

    The score is the same function's on the same rows, and a greedy answer's the very same: lm-eval is given no stop
    string, since it strips it from the text and a grader may need it. Answers go on to EOS or max_tokens, which costs
    time, and are cut here right after their first stop string, as our engines cut them. What cannot be told from the
    text is whether an answer without a stop string met EOS or the bound: it counts as finished. A tokenizer that has a
    BOS and does not add it by itself makes other prompts there than here, where each begins with one BOS: lm-eval's
    switch for that is --model_args add_bos_token=True. A chat of one user turn becomes that turn, for
    --apply_chat_template. Not run: either of these two.

    ConfigError for a task whose score lives in no file that another process can import, for figures of the whole set,
    for longer chats, and for sampling.max_length.
    """
    for task in tasks:
        name = f"stepstack_{task.name}".replace(".", "_").replace("-", "_")
        figures = _checked(task)
        rows = [_row(task, problem) for problem in checked(task, task.rows(data))]
        imports, score, metrics = _where(task)
        sampling = {name: getattr(_sampling(task), name) for name in ("n", "temperature", "max_tokens", "stop")}
        facts = {"name": task.name, "version": task.version, "imports": imports, "score": score, "metrics": metrics}
        jsonl.write_rows_atomic(out / f"{name}.jsonl", rows)
        jsonl.write_text_atomic(out / f"{name}.py", MODULE.format(sampling=sampling, **facts))
        functions = "".join(f"{key}: !function {name}.{function}\n" for key, function in FUNCTIONS.items())
        text = yaml.safe_dump(_config(name, task, figures), sort_keys=False, allow_unicode=True)
        jsonl.write_text_atomic(out / f"{name}.yaml", text + functions)
    return out


FUNCTIONS = {"custom_dataset": "rows", "process_results": "process_results"}


def _config(name: str, task: Task, figures: Sequence[Metric]) -> dict[str, Any]:
    sampling = _sampling(task)
    # Everything a model's generation_config could set; 0 is no top_k.
    sampled = {"top_p": sampling.top_p, "top_k": max(0, sampling.top_k)} if sampling.temperature else {}
    return {
        "task": name,
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": [],
            "max_gen_toks": sampling.max_tokens,
            "do_sample": sampling.temperature > 0,
            "temperature": sampling.temperature,
            **sampled,
        },
        "repeats": sampling.n,
        "filter_list": [{"name": "none", "filter": [{"function": "take_first_k", "k": sampling.n}]}],
        "metric_list": [
            {"metric": metric.name, "aggregation": "mean", "higher_is_better": metric.higher_is_better}
            for metric in figures
        ],
        "metadata": {"version": task.version},
    }


def read_rows(path: Path) -> dict[str, Any]:
    """The split of an exported task."""
    from datasets import Dataset

    return {"test": Dataset.from_list(jsonl.read(path))}


def judged(
    document: Mapping[str, Any],
    texts: Sequence[str],
    score: Reward,
    figures: Callable[[Budget], Sequence[Metric]],
    sampling: Mapping[str, Any],
) -> dict[str, float]:
    """The figures of one document's answers; one that has no verdict has no figure, and lm-eval leaves it out."""
    how = Sampling(**sampling)
    problem = Problem(document["index"], document["problem"], document["gold"], json.loads(document["meta"]))
    answers = [_cut(problem, number, text, how.stop) for number, text in enumerate(texts)]
    samples = [
        Sample(
            index=problem.index,
            sample=rollout.sample,
            problem=problem.text,
            gold=gold_text(problem.gold),
            prompt=document["prompt"],
            text=rollout.text,
            ids=None,
            tokens=0,
            finish=rollout.finish,
            answer=verdict.answer,
            score=None if verdict.failure else verdict.value,
            failure=verdict.failure and f"grader: {verdict.failure}",
            parts=dict(verdict.parts),
        )
        for rollout, verdict in zip(answers, score(answers), strict=True)
    ]
    measured = {metric.name: metric.measure([samples]) for metric in figures(how)}
    return {name: figure.value for name, figure in measured.items() if figure is not None}


def _cut(problem: Problem, number: int, text: str, stop: Sequence[str]) -> Answer:
    """The answer as an engine that knows the stop strings would have given it."""
    ends = [text.index(s) + len(s) for s in stop if s in text]
    return Answer(problem=problem, sample=number, text=text[: min(ends)] if ends else text, finish="stop")


def _row(task: Task, problem: Problem) -> dict[str, Any]:
    request = task.request(problem)
    if isinstance(request, NotText):
        raise ConfigError(
            f"task {task.name}: its questions have pictures, which the export cannot write: evaluate it here"
        )
    if not isinstance(request, str):
        if [message.role for message in request] != ["user"]:
            raise ConfigError(
                f"task {task.name}: row {problem.index} is a chat of several turns, which lm-eval has not: "
                "evaluate it here"
            )
        request = request[0].content
    meta = json.dumps(dict(problem.meta))  # of any shape, which a table's column has not
    return {
        "index": problem.index,
        "problem": problem.text,
        "prompt": request,
        "gold": gold_text(problem.gold),
        "meta": meta,
    }


def _sampling(task: Task) -> Sampling:
    """ConfigError for a task whose answers are no texts."""
    if not isinstance(task.budget, Sampling):
        raise ConfigError(f"task {task.name} asks for clips, which lm-eval has not: evaluate it here")
    return task.budget


def _checked(task: Task) -> Sequence[Metric]:
    """The task's figures, if lm-eval can aggregate them."""
    if _sampling(task).max_length is not None:
        raise ConfigError(f"task {task.name}: lm-eval bounds no prompt plus response: set sampling.max_length to None")
    if _sampling(task).repetition is not None:
        raise ConfigError(
            f"task {task.name}: lm-eval has no repetition-aware sampling: set sampling.repetition to None"
        )
    figures = task.metrics(task.budget)
    for metric in figures:
        if metric.whole:
            raise ConfigError(
                f"task {task.name}: {metric.name} is a figure of the whole set, which has no value for one "
                "document: leave the metric out"
            )
    return figures


def _where(task: Task) -> tuple[str, str, str]:
    """(import lines, score, metrics) as Python: from the task's file, or functions of modules."""
    if (file := _file(task)) is not None:
        lines = ["from stepstack.harness.task import load", "", f"TASK = load({file!r})"]
        return "\n".join(lines), "TASK.score", "TASK.metrics"
    lines = []
    for part, function in (("score", task.score), ("metrics", task.metrics)):
        importable = isinstance(function, FunctionType) and function.__module__ != "__main__"
        if not importable or vars(sys.modules[function.__module__]).get(function.__name__) is not function:
            raise ConfigError(
                f"task {task.name}: its {part} is no function of a module, so lm-eval's process cannot import it: make "
                f"the task a file, {TASKS / task.name}.py"
            )
        lines.append(f"from {function.__module__} import {function.__name__} as {part}")
    return "\n".join(lines), "score", "metrics"


def _file(task: Task) -> str | None:
    """The argument by which ``load`` returns this task: its name on the menu, or the file that defines it."""
    if (TASKS / f"{task.name}.py").is_file():
        loaded = load(task.name)
        if (loaded.version, loaded.about, loaded.budget) == (task.version, task.about, task.budget):
            return task.name
    for part in (task.score, task.rows, task.request):
        if isinstance(part, FunctionType) and part.__module__ == f"stepstack_user_{task.name}":
            return str(Path(part.__globals__["__file__"]).resolve())
    return None
