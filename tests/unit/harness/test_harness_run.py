"""The harness on a real tiny model: interruption, failures, what a result accounts for, bad input."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from stepstack.config import ConfigError
from stepstack.core.types import SingleProcess
from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import Message
from stepstack.generation.types import EngineError, Sampling
from stepstack.harness import answers as io
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.evaluate import Stopped, evaluate
from stepstack.harness.model import folder_of, record
from stepstack.harness.store import Store
from stepstack.harness.suite import SuiteOptions, evaluate_all
from stepstack.harness.task import Task, load
from stepstack.models.lm import tiny
from stepstack.records import Problem, Score
from tests import tools

MODEL = {"name": "tiny", "sha256": "0" * 64}
ROWS = [Problem(i, f"{i}+{i}", str(2 * i)) for i in range(11)]


def reward(rollouts):
    """Half of the samples are right; one question's grader hangs."""
    return [
        Score(0.0, failure="timeout") if r.problem.index == 7 else Score(float(len(r.text) % 2), {}, r.text[:1])
        for r in rollouts
    ]


def task(**changes) -> Task:
    given = Task(
        name="sums",
        version=3,
        about="sums",
        rows=lambda data: ROWS,
        request=lambda problem: problem.text,
        score=reward,
        budget=Sampling(n=2, max_tokens=6),
    )
    return dataclasses.replace(given, **changes)


class Counting:
    """A generator that notes what it was asked, and goes away after so many groups."""

    def __init__(self, dies_after: int | None = None):
        tokenizer = tiny.tokenizer()
        self.inner = HfGenerator(tools.qwen2(len(tokenizer)), tokenizer, HfConfig(batch=8))
        self.max_positions = self.inner.max_positions
        self.made: list[int] = []
        self.left = dies_after

    def generate(self, prompts, sampling):
        for group in self.inner.generate(prompts, sampling):
            if self.left == 0:
                raise EngineError("no answer from the engine")
            if self.left is not None:
                self.left -= 1
            self.made.append(group.prompt.problem.index)
            yield group


def engine(generator) -> GeneratorEngine:
    return GeneratorEngine(generator, tiny.tokenizer(), batch=8, facts={"engine": "hf"})


def run(root: Path, generator=None, what=None, **more):
    return evaluate(
        what or task(), engine(generator or Counting()), SingleProcess(), root=root, data=root, model=MODEL, **more
    )


def without_times(result: dict) -> dict:
    """All that must not depend on when it was run."""
    kept = {k: v for k, v in result.items() if k != "timing"}
    return {**kept, "provenance": {k: v for k, v in result["provenance"].items() if k != "time"}}


def test_every_sample_is_accounted_for(tmp_path):
    folder, result = run(tmp_path)
    kept = io.read(folder / "samples.jsonl")
    assert [(s.index, s.sample) for s in kept] == [(p.index, s) for p in ROWS for s in range(2)]
    assert (result["n"], result["k"], result["samples"]) == (11, 2, 22)
    assert result["failed"] == {"engine": 0, "grader": 2}
    right = [s.score for s in kept if s.index != 7]
    assert result["metrics"][0]["name"] == "avg@2"
    assert result["metrics"][0]["value"] == pytest.approx(sum(right) / 20)
    assert result["metrics"][0]["n"] == 10
    assert 0 < sum(right) < 20
    assert result["tokens"] == sum(s.tokens for s in kept) == sum(len(s.ids) for s in kept)
    assert result["truncated"] == sum(s.finish == "length" for s in kept)
    assert (result["version"], result["model"], result["plan"]["sampling"]["max_tokens"]) == (3, MODEL, 6)
    assert {"commit", "host", "versions"} <= result["provenance"].keys()
    assert {p.name for p in folder.iterdir()} == {"plan.json", "result.json", "samples.jsonl"}


def test_the_hung_grader_is_no_zero(tmp_path):
    folder, _ = run(tmp_path)
    hung = [s for s in io.read(folder / "samples.jsonl") if s.index == 7]
    assert [(s.score, s.failure) for s in hung] == [(None, "grader: timeout")] * 2


@pytest.mark.parametrize("dies_after", range(0, 11, 2))
def test_an_engine_that_goes_away_loses_nothing(tmp_path, dies_after):
    whole, expected = run(tmp_path / "whole")
    first, second = Counting(dies_after), Counting()
    with pytest.raises(Stopped, match="no answer from the engine\nWhat it had answered is kept; the same command"):
        run(tmp_path / "torn", first)
    folder, result = run(tmp_path / "torn", second)
    assert sorted(first.made + second.made) == list(range(11))
    assert (folder / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert without_times(result) == without_times(expected)


def test_a_torn_line_costs_that_question_only(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, Counting(6))
    [part] = tmp_path.glob("*/generated-0.jsonl")
    part.write_bytes(part.read_bytes()[:-9])
    again = Counting()
    _, result = run(tmp_path, again)
    assert len(again.made) == 11 - 6 + 1
    assert result["samples"] == 22


def test_what_is_over_is_not_repeated_and_another_plan_has_another_folder(tmp_path):
    folder, _ = run(tmp_path)
    again = Counting()
    assert run(tmp_path, again)[0] == folder
    assert again.made == []
    others = {
        run(tmp_path, budget=Sampling(n=2, max_tokens=5))[0],
        run(tmp_path, what=task(version=4))[0],
        run(tmp_path, limit=3)[0],
        evaluate(
            task(), engine(Counting()), SingleProcess(), root=tmp_path, data=tmp_path, model=MODEL | {"sha256": "1"}
        )[0],
    }
    assert len(others | {folder}) == 5


def test_where_the_model_lies_does_not_matter(tmp_path):
    folder, _ = run(tmp_path)
    moved = evaluate(
        task(), engine(Counting()), SingleProcess(), root=tmp_path, data=tmp_path, model=MODEL | {"name": "moved"}
    )
    assert moved[0] == folder


def test_a_prompt_without_room_is_a_failed_sample(tmp_path):
    rows = [*ROWS[:3], Problem(3, "9+" * 300 + "9", "2709")]
    folder, result = run(tmp_path, what=task(rows=lambda data: rows))
    assert result["failed"] == {"engine": 2, "grader": 0}
    bad = [s for s in io.read(folder / "samples.jsonl") if s.index == 3]
    assert [s.score for s in bad] == [None, None]
    assert bad[0].failure.startswith("engine: prompt 3 has 601 tokens and leaves no room within 512")
    assert result["metrics"][0]["n"] == 3


def test_failed_questions_can_be_asked_again(tmp_path):
    rows = [*ROWS[:3], Problem(3, "9+" * 300 + "9", "2709")]
    folder, _ = run(tmp_path, what=task(rows=lambda data: rows))
    before = (folder / "samples.jsonl").read_bytes()
    roomy = Counting()
    roomy.max_positions = roomy.inner.max_positions = 4096
    _, result = run(tmp_path, roomy, what=task(rows=lambda data: rows), again="failed")
    assert roomy.made == [3]
    assert result["failed"] == {"engine": 0, "grader": 0}
    after = (folder / "samples.jsonl").read_bytes()
    assert after.splitlines()[:6] == before.splitlines()[:6]


def test_log_likelihoods_are_those_of_the_model_up_to_its_last_position():
    lm = tools.gpt2(positions=12)  # absolute positions: one too many is an error
    generator = HfGenerator(lm, tiny.tokenizer(), HfConfig(decoder="module"))
    scorer = GeneratorEngine(generator, tiny.tokenizer(), batch=8, facts={}, lm=lambda: lm)
    pairs = [((3, 4, 5), (6, 7)), ((8,), (9,)), (tuple(range(3, 15)), (15,))]
    for (context, after), (total, greedy) in zip(pairs, scorer.loglikelihood(pairs), strict=True):
        logits = lm(torch.tensor([[*context, *after][:-1]])).logits[0].log_softmax(-1)[-len(after) :]
        assert total == pytest.approx(float(logits[range(len(after)), list(after)].sum()), abs=1e-5)
        assert greedy == (logits.argmax(-1).tolist() == list(after))


def test_a_chat_goes_through_the_template(tmp_path):
    generator = Counting()
    answering = engine(generator)
    answering.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    what = task(request=lambda p: [Message("system", "Add."), Message("user", p.text)])
    folder, _ = evaluate(what, answering, SingleProcess(), root=tmp_path, data=tmp_path, model=MODEL)
    first = io.read(folder / "samples.jsonl")[0]
    assert first.prompt == "system: Add.\nuser: 0+0"
    assert first.failure is None


FILE = """
from stepstack.harness.task import Task
from stepstack.records import Problem, Score
from stepstack.generation.types import Sampling

TASK = Task(
    name="mine",
    version=1,
    about="a task that the harness has never heard of",
    rows=lambda data: [Problem(0, "1+1", "2")],
    request=lambda problem: problem.text,
    score=lambda rollouts: [Score(1.0) for _ in rollouts],
    budget=Sampling(max_tokens=3),
)
"""


def test_a_task_is_one_file_anywhere(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    options = SuiteOptions(samples=4, data=tmp_path)
    found = evaluate_all(
        [str(tmp_path / "mine.py")],
        engine(Counting()),
        SingleProcess(),
        recipe_tasks=[],
        root=tmp_path,
        model=MODEL,
        options=options,
    )
    [(_, result)] = found
    assert {m["name"]: m["value"] for m in result["metrics"]} == {"avg@4": 1, "pass@2": 1, "pass@4": 1, "maj@4": 0}


def test_a_folder_of_tasks_is_a_menu(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    assert load("mine", folder=tmp_path).name == "mine"
    with pytest.raises(ConfigError, match=r"no task 'yours': .*yours.py does not exist. There are: sums, mine,"):
        load("yours", recipe_tasks=[task()], folder=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("X = 1", "defines no TASK"), (FILE.replace('"mine"', '"other"'), "its task is named 'other'; the file's stem")],
)
def test_a_file_that_is_no_task(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load("mine", folder=tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "task sums: no rows"),
        ([*ROWS, Problem(50, "1+1", " ")], r"task sums: rows \[50\] have no gold answer"),
        ([*ROWS, Problem(3, "1+1", "2")], "two rows have the same index"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_asked(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, what=task(rows=lambda data: rows))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "holds no model"),
        ("model.safetensors", "holds no weights"),
        ("tokenizer.json", "holds no tokenizer"),
    ],
)
def test_a_model_folder_that_lacks_something(tmp_path, missing, message):
    tokenizer = tiny.tokenizer()
    tools.qwen2(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert folder_of(str(tmp_path)) == tmp_path
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        folder_of(str(tmp_path))


def test_the_hash_of_a_model_is_that_of_its_weights_and_tokenizer(tmp_path):
    tokenizer = tiny.tokenizer()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tools.qwen2(len(tokenizer), seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "b" / "optimizer.pt").write_bytes(b"training state")
    a, b, c = (record(tmp_path / name)["sha256"] for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps({}))
    assert record(tmp_path / "b")["sha256"] != a


class Shared:
    """One of two processes, as threads: everyone waits for everyone in ``gather``."""

    processes = 2
    barrier = threading.Barrier(2)
    given: ClassVar[dict[int, list]] = {}

    def __init__(self, rank: int):
        self.rank = rank

    def gather(self, items):
        self.given[self.rank] = items
        self.barrier.wait()
        everything = [item for rank in range(2) for item in self.given[rank]]
        self.barrier.wait()
        return everything


def test_a_slow_process_takes_nothing_that_a_fast_one_has_just_done(tmp_path, monkeypatch):
    """What had been generated before is looked at by all before the first writes."""
    whole, _ = run(tmp_path / "whole")
    look = Store.generated

    def late(self, problems):
        if threading.current_thread().name == "slow" and not self.folder.joinpath("looked").exists():
            time.sleep(0.5)
            self.folder.joinpath("looked").touch()
        return look(self, problems)

    monkeypatch.setattr(Store, "generated", late)
    generators = [Counting(), Counting()]
    places = [tmp_path / "two"] * 2

    def one(rank: int):
        return evaluate(task(), engine(generators[rank]), Shared(rank), root=places[rank], data=tmp_path, model=MODEL)

    slow = threading.Thread(target=one, args=(1,), name="slow")
    slow.start()
    folder, _ = one(0)
    slow.join()
    assert sorted(generators[0].made + generators[1].made) == list(range(11))
    assert (folder / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
