"""The problems of a run, as prompts: training, selection (watched) and test (reported)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.drawn import chains
from data.drawn.chains import Chains
from data.drawn.splits import SPLITS, Split
from data.errors import BadRow, refuse
from data.prepare.manifest import on_hub, read_source
from data.sets import orz_math
from recipes.orz.config import ChatPrompt, Config, PreparedMath, ReasoningGym, RewardConfig, RowsData
from recipes.orz.prompt import encode, request_of
from stepstack.config import ROOT, ConfigError
from stepstack.generation.prompts import Message, NotText
from stepstack.generation.types import Prompt
from stepstack.harness import answers
from stepstack.harness.config import TaskData
from stepstack.harness.training.task_data import hold_out, load_task, split_rows
from stepstack.records import Problem, gold_text
from stepstack.rl.prompts import PromptSplits
from stepstack.scoring.maths.golds import why_unreadable

log = logging.getLogger(__name__)


def problems(cfg: Chains | PreparedMath | RowsData | ReasoningGym | TaskData) -> Mapping[Split, list[Problem]]:
    """Each split's problems; indices are unique within a split."""
    match cfg:
        case Chains():
            return {split: chains.problems(cfg, split) for split in SPLITS}
        case PreparedMath():
            return dict(zip(SPLITS, _prepared(cfg), strict=True))
        case RowsData():
            return hold_out(questions(cfg), cfg.select, cfg.test, cfg.path)
        case ReasoningGym():
            return dict(zip(SPLITS, _reasoning_gym(cfg), strict=True))
        case TaskData():
            return split_rows(cfg, load_task(cfg))


def load_prompts(cfg: Config, tokenizer: Any) -> PromptSplits:
    """Tokenised splits; prompts that are too long go by ``prompt.overlong``. ConfigError for chats where the model's
    tokenizer has no chat template."""
    if isinstance(cfg.prompt, ChatPrompt) and tokenizer.chat_template is None:
        raise ConfigError(
            "prompt.type=chat: the model's tokenizer has no chat template: take an Instruct model, or "
            "prompt.type=template"
        )
    named = problems(cfg.data)
    return PromptSplits(**{name: _encode(name, split, tokenizer, cfg) for name, split in named.items()})


def _encode(name: str, problems: Sequence[Problem], tokenizer: Any, cfg: Config) -> list[Prompt]:
    request = request_maker(cfg)
    encoded = [
        encode(problem, request(problem), tokenizer, cfg.prompt.max_tokens, cfg.prompt.overlong) for problem in problems
    ]
    prompts = [prompt for prompt in encoded if prompt is not None]
    if dropped := len(encoded) - len(prompts):
        where = f"prompt.max_tokens={cfg.prompt.max_tokens}"
        log.warning("%d of %d %s prompts are longer than %s and left out", dropped, len(encoded), name, where)
    return prompts


def request_maker(cfg: Config) -> Callable[[Problem], str | Sequence[Message]]:
    """How a problem is put to the model: as the config says, or as a task file puts it. ConfigError for a task that
    asks with pictures."""
    if not isinstance(cfg.data, TaskData):
        return lambda problem: request_of(problem, cfg.prompt)
    task = load_task(cfg.data)

    def request(problem: Problem) -> str | Sequence[Message]:
        asked = task.request(problem)
        if isinstance(asked, NotText):
            raise ConfigError(
                f"{task.name}: recipe orz trains on text and chats, row {problem.index} asks with "
                f"{asked!r:.80}: give it text"
            )
        return asked

    return request


def questions(cfg: RowsData) -> list[Problem]:
    """Rows of a file of your own, in order. DataError names up to 20 bad rows by file and line."""
    path = cfg.path if on_hub(cfg.path) or Path(cfg.path).exists() else str(ROOT / cfg.path)
    rows, errors = [], []
    for where, row in read_source(path).rows:
        try:
            rows.append((_cell(row, cfg.columns.question), _gold(_cell(row, cfg.columns.answer), cfg.gold_after)))
        except BadRow as error:
            errors.append(f"{where}: {error}")
    refuse(errors)
    return [Problem(index, question, gold) for index, (question, gold) in enumerate(rows)]


def _cell(row: Any, column: str) -> str:
    """A column as text that is not empty."""
    if not isinstance(row, Mapping) or column not in row:
        there = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise BadRow(f"has no column {column!r}, only {there}: set data.columns={{question: ..., answer: ...}}")
    value = row[column]
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        raise BadRow(f"column {column!r} is {value!r:.80}: it must be a text or a number")
    return str(value)


def _gold(answer: str, after: str | None) -> str:
    if after is None:
        return answer.strip()
    _, mark, gold = answer.rpartition(after)
    if not mark or not gold.strip():
        raise BadRow(f"no gold behind {after!r} in its answer: leave data.gold_after out, or repair the row")
    return gold.strip()


def _prepared(cfg: PreparedMath) -> list[list[Problem]]:
    folder = ROOT / cfg.folder
    train = orz_math.load(folder, "train")
    if cfg.hard is not None:
        right: Counter[int] = Counter()
        for sample in answers.read(ROOT / cfg.hard):
            right[sample.index] += bool(sample.score)
        train = orz_math.hard_set(train, [right[problem.index] for problem in train])
    train = train[: cfg.limit]
    evals = [
        _renumbered([p for name in names for p in orz_math.load(folder, name)[: cfg.limit]])
        for names in (cfg.select, cfg.test)
    ]
    return [train, *evals]


def _renumbered(problems: Sequence[Problem]) -> list[Problem]:
    """Indices are unique within a split."""
    return [Problem(i, p.text, p.gold, p.meta) for i, p in enumerate(problems)]


def _reasoning_gym(cfg: ReasoningGym) -> list[list[Problem]]:
    import reasoning_gym  # an extra: imported where it is asked for

    def split(size: int, seed: int) -> list[Problem]:
        rows = reasoning_gym.create_dataset(cfg.dataset, size=size, seed=seed, **cfg.options)
        return [Problem(i, row["question"], str(row["answer"])) for i, row in enumerate(rows)]

    select, test = split(cfg.select, cfg.seed + 1), split(cfg.test, cfg.seed + 2)
    seen = {p.text for p in (*select, *test)}
    return [[p for p in split(cfg.train, cfg.seed) if p.text not in seen], select, test]


def prepare(cfg: Config) -> str:
    """``make data``: write the data that a config reads; returns a line to print."""
    match cfg.data:
        case PreparedMath() as kind:
            if not kind.source:
                raise ConfigError("data.source is empty: name the files, folders or hf:names to prepare from")
            manifest = orz_math.prepare(ROOT / kind.folder, kind.source, kind.evals, algebra=_by_algebra(cfg))
            counts = dict(manifest.counts)
            listed = counts.pop("unreadable_golds")
            return f"{ROOT / kind.folder}: {counts}" + _warning(counts["unreadable"], listed)
        case RowsData() as kind:
            rows = questions(kind)
            golds = [gold_text(row.gold) for row in rows] if _by_algebra(cfg) else []
            listed = [f"{gold[:80]!r} is {why}" for gold in golds if (why := why_unreadable(gold)) is not None]
            done = f"{kind.path}: {len(rows)} rows, read where they are; there is nothing to prepare"
            return done + _warning(len(listed), listed)
        case _:
            return f"{cfg.name}: the data ({cfg.data.type}) is made while training; there is nothing to prepare"


def _by_algebra(cfg: Config) -> bool:
    """Whether a grader reads the golds as mathematics; a reward of the user's own may read them as anything."""
    return isinstance(cfg.reward, RewardConfig) and cfg.reward.grader != "exact"


def _warning(count: int, listed: Sequence[str]) -> str:
    """A line to print beside the outcome; empty where every gold can be read."""
    if not count:
        return ""
    return f"\n{count} golds cannot be read as mathematics, and are matched by their spelling alone: {listed[0]}" + (
        f", and {count - 1} more" * (count > 1) + "; repair or remove them, or set reward.grader=exact"
    )
