"""`stepstack eval` as real processes: killed at any point it goes on, and two processes give the file of one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from stepstack.harness.store import Store
from stepstack.report import jsonl
from tests import tools
from tests.servers import ModelServer
from tests.system.processes import Ended, ok, stepstack, train_ranks

# Pieces of 4 samples = 2 of the 9 questions, so that there are moments in between.
WORDS = ("data.test=9", "rollout.generator.batch=4", "--samples", "2", "--max-tokens", "24")


def note_and_kill(file: Path, after: int | None) -> None:
    """Append the questions that an engine answers to ``file``; kill -9 right after so many have been written down."""
    append = Store.append
    written = Counter()

    def noted(self, rank, done, seconds):
        append(self, rank, done, seconds)
        for index, _ in done:
            jsonl.append(file, {"index": index})
        written["questions"] += len(done)
        if after is not None and written["questions"] >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.append = noted


def kill_before_result() -> None:
    """kill -9 between samples.jsonl and result.json."""

    def finish(self, result):
        assert (self.folder / "samples.jsonl").is_file()
        os.kill(os.getpid(), signal.SIGKILL)

    Store.finish = finish


def evaluate(run: Path, model: Path, *words: str, hooks=()) -> Ended:
    given = () if "--server" in words else ("--model", str(model))
    return stepstack(run, *given, *WORDS, *words, verb="eval", hooks=hooks).wait()


def outcome(run: Path) -> tuple[bytes, dict]:
    """samples.jsonl, and result.json without what depends on the clock."""
    [file] = run.glob("evals/others/model-*/*/result.json")
    result = json.loads(file.read_text())
    assert {p.name for p in file.parent.iterdir()} == {"plan.json", "samples.jsonl", "result.json"}
    del result["timing"], result["provenance"]["time"]
    return (file.parent / "samples.jsonl").read_bytes(), result


@pytest.fixture(scope="module")
def model(whole) -> Path:
    return whole / "model"


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory) -> tuple[bytes, dict]:
    run = tmp_path_factory.mktemp("eval") / "q"
    said = ok(evaluate(run, model))
    samples, result = outcome(run)
    assert "avg@2" in said.out
    assert len({json.loads(line)["text"] for line in samples.splitlines()}) > 4  # worth comparing with
    [page] = run.glob("evals/others/*/samples.html")
    assert page.parent.name in said.out
    assert not list(run.glob("evals/*/*/result.json"))  # where the run's own would lie
    return samples, result


@pytest.mark.parametrize("after", [2, 6, 9])
def test_killed_it_goes_on_and_asks_nothing_twice(reference, model, tmp_path, after):
    run, notes = tmp_path / "q", tmp_path / "notes.jsonl"
    assert evaluate(run, model, hooks=[(note_and_kill, notes, after)]).code == -signal.SIGKILL
    assert len(jsonl.read(notes)) == after
    ok(evaluate(run, model, hooks=[(note_and_kill, notes, None)]))
    assert sorted(row["index"] for row in jsonl.read(notes)) == list(range(9))
    assert outcome(run) == reference


def test_killed_before_the_result(reference, model, tmp_path):
    run, notes = tmp_path / "q", tmp_path / "notes.jsonl"
    assert evaluate(run, model, hooks=[(kill_before_result,)]).code == -signal.SIGKILL
    ok(evaluate(run, model, hooks=[(note_and_kill, notes, None)]))
    assert not notes.exists()
    assert outcome(run) == reference


def test_two_processes_give_the_file_of_one(reference, model, tmp_path):
    run = tmp_path / "q"
    for ended in train_ranks(run, 2, "--model", str(model), *WORDS, verb="eval"):
        ok(ended)
    assert outcome(run) == reference


def test_one_process_goes_on_with_what_two_began(reference, model, tmp_path):
    run, notes = tmp_path / "q", tmp_path / "notes.jsonl"
    two = train_ranks(run, 2, "--model", str(model), *WORDS, verb="eval", hooks=[(note_and_kill, notes, 4)])
    assert [ended.code for ended in two] == [-signal.SIGKILL] * 2
    assert len(list(run.glob("evals/others/*/*/generated-*.jsonl"))) == 2
    ok(evaluate(run, model, hooks=[(note_and_kill, notes, None)]))
    assert sorted(row["index"] for row in jsonl.read(notes)) == list(range(9))
    assert outcome(run) == reference


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tasks", "tset"), "no task 'tset'"),
        (("--tasks", "aime24", "--data", "/nowhere"), "aime2024.json"),
        (("--model", "nowhere/at/all"), "nowhere/at/all holds no model (no config.json): train first (make train)"),
        (("--server", "http://127.0.0.1:9/v1", "--patience", "1"), "127.0.0.1:9"),
    ],
)
def test_bad_input_is_one_error(model, tmp_path, words, said):
    ended = evaluate(tmp_path / "q", model, *words)
    assert ended.code == 2
    assert ended.err.startswith("stepstack eval: ")
    assert said in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture
def server(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    with ModelServer(tools.generator(AutoModelForCausalLM.from_pretrained(model), tokenizer)) as served:
        yield served


def test_a_server_answers_and_an_old_result_says_its_date(server, tmp_path):
    run, words = tmp_path / "q", ("--server", server.url + "/v1", "--concurrency", "2", "--patience", "5")
    first = ok(evaluate(run, run, *words))
    assert "not asked again" not in first.out
    asked = len(server.asked)
    time.sleep(1.1)  # results are dated by the second
    again = ok(evaluate(run, run, *words))
    assert re.search(r"test v\d+ is from \d\d \w+ \d{4} \d\d:\d\d, not asked again; --again asks anew", again.out)
    assert len(server.asked) == asked
    ok(evaluate(run, run, *words, "--again"))
    assert len(server.asked) == 2 * asked
    [result] = run.glob("evals/others/tiny-*/*/result.json")
    assert server.url not in result.read_text()


def test_a_server_that_refuses_everything_is_an_error_and_some_refusals_stand_under_the_table(server, tmp_path):
    run, words = tmp_path / "q", ("--server", server.url)
    server.refuse = '"prompt"'
    ended = evaluate(run, run, *words)
    assert (ended.code, list(run.rglob("result.json"))) == (2, [])
    assert "all 18 samples of test failed, most of them with engine: " in ended.err
    assert "this prompt is refused" in ended.err
    server.refuse = json.dumps(server.asked[0]["prompt"])
    ended = ok(evaluate(run, run, *words))
    assert re.search(r"\d+ of 18 samples failed, most of them with engine: .*this prompt is refused", ended.out)


@pytest.mark.parametrize("url", ["http://user:PLANTED@127.0.0.1:9/v1", "http://127.0.0.1:9/v1?api_key=PLANTED"])
@pytest.mark.parametrize("place", ["--server", "judge"])
def test_a_secret_in_a_url_is_repeated_nowhere(tmp_path, url, place):
    run = tmp_path / "q"
    if place == "--server":
        ended = evaluate(run, run, "--server", url)
    else:
        ended = stepstack(run, f"score.judge={{url: '{url}'}}", config="mdocsum-tiny").wait()
    assert ended.code == 2
    assert "into a file" in ended.err
    files = [file for file in run.rglob("*") if file.is_file()] if run.is_dir() else []
    assert not [text for text in (ended.out, ended.err, *(f.read_text() for f in files)) if "PLANTED" in text]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--patience", "3"), "--patience without --server"),
        (("--server", "http://x", "--model", "y"), "--server and --model"),
        (("--server", "http://x", "--concurrency", "0"), "server.concurrency is 0"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, words, said):
    ended = stepstack(tmp_path / "q", *words, verb="eval").wait()
    assert ended.code == 2
    assert said in ended.err
