"""Bad input gets one clear error and loses nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from stepstack.cli import main as cli
from stepstack.config import CONFIGS
from stepstack.core import checkpoint
from stepstack.report import jsonl
from tests.system import hooks
from tests.system.processes import Ended, differences, ok, rows, samples, train, trajectory

GOOD = [{"from": "human", "value": "1+1"}, {"from": "assistant", "ground_truth": {"value": "2"}}]


def refused(ended: Ended) -> str:
    """One error: exit code 2, no traceback; the text."""
    assert ended.code == 2, f"exit code {ended.code}\n{ended.out}\n{ended.err}"
    assert "Traceback" not in ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("stepstack ")]
    assert len(errors) == 1
    return ended.err[ended.err.index(errors[0]) :]


def command(*words: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "stepstack", *words], capture_output=True, text=True, timeout=120, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def refuse(tmp_path, capsys):
    """The error of a command line of this process: what does not get as far as training needs no process of its own."""

    def ask(*words: str) -> str:
        code = cli.main(words)
        out, err = capsys.readouterr()
        return refused(Ended(code, out, err))

    return ask


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("actor: {optim: {lerning_rate: 1.0}}", "unknown key 'actor.optim.lerning_rate'"),
        ("stesp: 3", "unknown key 'stesp'; did you mean 'steps'?"),
        ("steps: many", "steps = 'many'"),
        ("advantage: {type: gea}", "advantage = "),
        ("steps: [", "not YAML"),
    ],
)
def test_a_config_file_with_an_error(tmp_path, refuse, line, said):
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: {CONFIGS / 'orz-tiny.yaml'}\n{line}\n")
    error = refuse("train", str(file), f"dir={tmp_path}")
    assert error.startswith(f"stepstack train: {file}")
    assert said in error
    assert [p.name for p in tmp_path.iterdir()] == ["mine.yaml"]


def test_an_unknown_key_by_the_true_command_line():
    error = refused(command("train", "orz-tiny", "policy_loss.clip_hi=0.3"))
    assert error.strip() == (
        "stepstack train: command line policy_loss.clip_hi=0.3: unknown key 'policy_loss.clip_hi'; "
        "did you mean 'policy_loss.clip_high'?"
    )


def test_a_malformed_data_row(tmp_path, refuse):
    source = tmp_path / "train.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in (GOOD, [GOOD[0], {"from": "assistant"}], GOOD)) + "\n")
    words = ("data={type: prepared}", f"data.folder={tmp_path / 'out'}", f"data.source=[{source}]")
    error = refuse("data", "orz-tiny", *words)
    assert f"{source} line 2: key [1].ground_truth is missing" in error
    assert "nothing written" in error
    assert not (tmp_path / "out").exists()
    source.write_text(json.dumps(GOOD) + '\n{"torn')
    assert f"{source} line 2 column 2: not JSON" in refuse("data", "orz-tiny", *words)


def test_an_empty_training_set(tmp_path, refuse):
    """Found when the data is prepared."""
    source, exam = tmp_path / "train.jsonl", tmp_path / "exam.jsonl"
    problem = {"prompt": [{"from": "user", "value": "1+1"}], "final_answer": "2"}
    source.write_text(json.dumps(GOOD) + "\n")
    exam.write_text(json.dumps(problem) + "\n")
    folder = f"data.folder={tmp_path / 'out'}"
    words = ["data={type: prepared, select: [exam], test: [exam]}", folder, "prompt.style=short"]
    said = refuse("data", "orz-tiny", *words, f"data.source=[{source}]", f"data.evals=[{exam}]")
    assert "no train row is left ({'read': 1, " in said
    assert "'contaminated': 1" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prompt.max_tokens=5", "prompt.overlong=error"), "its prompt has 9 tokens, more than max_tokens=5"),
        (("prompt.max_tokens=5",), "no training prompts"),
        (("rollout.sampling.max_length=6",), "tokens and leaves no room within 6"),
        (("data.test=500",), "data.test=500: only 9 such chains were found"),
        (("data.select=0",), "nothing to evaluate"),
    ],
)
def test_prompts_that_do_not_fit_and_sets_that_do_not_exist(new_run, words, said):
    assert said in refused(train(new_run(), *words))


def test_a_dropped_prompt_is_said(new_run):
    """Chains of two terms fit into 7 tokens, those of three do not."""
    ended = ok(train(new_run(), "prompt.max_tokens=7", "steps=1"))
    dropped = [line for line in ended.err.splitlines() if "longer than prompt.max_tokens=7" in line]
    assert len(dropped) == 3
    assert "of 40 train prompts" in dropped[0]


@pytest.mark.parametrize(("name", "part"), [("hang", "timeout"), ("die", "grader_error"), ("fail", "grader_error")])
def test_a_bad_grader_costs_its_answers_and_no_more(new_run, name, part):
    """In a real training step: the reward is 0, the metric counts it, and the run goes on."""
    run, timeout = new_run(), 0.5
    ok(
        train(
            run,
            "data.test=2",
            "steps=2",
            "eval_every=0",
            hooks=[(hooks.grader, f"tests.system.graders:{name}", timeout)],
        )
    )
    steps = jsonl.read(run / "metrics.jsonl")[1:]
    assert len(steps) == 2
    assert sum(row[f"reward/{part}"] for row in steps) > 0
    assert any(row["reward"] > 0 for row in steps)
    assert all(row["reward"] + row[f"reward/{part}"] <= 1 for row in steps)
    assert all(s["score"] == 0 for s in samples(run, "after") if s["gold"] == "1")


def test_a_hanging_grader_costs_two_tries(tmp_path):
    """Two workers and two distinct answers that hang: two timeouts of wall time and the replacement of the workers."""
    import time

    from stepstack.scoring.maths.pool import GraderPool

    with GraderPool(2, 0.5) as pool:
        grader = "tests.system.graders:hang"
        assert pool.grade(grader, "2", "2").correct  # workers are up
        started = time.perf_counter()
        grades = pool.map([(grader, "1", str(i)) for i in range(2)] + [(grader, "2", "3")])
        assert time.perf_counter() - started < 2 * 0.5 + 15
        assert [g.reason for g in grades] == ["timeout", "timeout", "different"]
        assert pool.map([(grader, "1", "0")])[0].reason == "timeout"
        assert pool.timeouts == 2


def test_a_grader_pool_that_cannot_start(new_run):
    ended = train(new_run(), hooks=[(hooks.grader, "tests.system.graders:fail", 0.5), (hooks.no_grader_processes,)])
    assert ended.code != 0
    assert "the process of stepstack.scoring.maths.worker ended at its start with exit code" in ended.err


def test_a_nan_loss_is_skipped_and_counted(new_run, whole):
    run = new_run()
    ok(train(run, hooks=[(hooks.nan_loss, 1, 1)]))
    read = rows(run)
    assert [row["actor/skipped"] for row in read] == [0, 0, 2, 2, 2]
    assert [row["actor/updates"] for row in read] == [0, 2, 2, 4, 6]
    assert [math.isnan(row.get("actor/loss", 0.0)) for row in read] == [False, False, True, False, False]
    assert differences(read[1], {k: v for k, v in rows(whole)[1].items() if not k.startswith("random_")}) == []
    assert all(t.isfinite().all() for t in trajectory(run, 4)["model"].values())


def test_too_many_nan_losses_stop_the_run(new_run):
    run = new_run()
    error = refused(train(run, "max_skipped=2", "steps=8", hooks=[(hooks.nan_loss, 2, 99)]))
    assert "actor: 2 updates in a row had a non-finite gradient (a NaN loss)" in error
    assert str(run / "checkpoints") in error
    kept = list(checkpoint.newest_first(run / "checkpoints"))
    assert [step for step, _ in kept] == [2]
    assert checkpoint.problem(kept[0][1]) is None
    resumed = ok(train(run, "max_skipped=2", "steps=8"))  # the poison is gone: it goes on from there
    assert "resumed from" in resumed.err
    assert [row["step"] for row in rows(run)] == list(range(9))
    assert rows(run)[-1]["actor/skipped"] == 0
