"""Servers that are almost OpenAI's, over real HTTP: their model, what they refuse, how they end, their rate."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepstack.config import ConfigError
from stepstack.core.types import SingleProcess
from stepstack.generation import http
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import Message
from stepstack.generation.types import EngineError, Sampling
from stepstack.harness.config import ServedJudge, server_url
from stepstack.harness.engine import Question
from stepstack.harness.engines.openai_api import Dialect
from stepstack.harness.engines.server import ServerConfig, ServerEngine
from stepstack.harness.evaluate import Stopped, evaluate
from stepstack.harness.judging import identity, open_judge
from stepstack.harness.store import plan
from stepstack.harness.summary import label_of
from stepstack.harness.task import Task
from stepstack.models.lm import tiny
from stepstack.records import Problem, Score
from stepstack.report import jsonl
from tests import tools
from tests.servers import ModelServer

GREEDY = Sampling(temperature=0, max_tokens=6)
PROBLEMS = [Problem(index, f"User: {index} plus {index}?", "W") for index in range(8)]
QUESTIONS = [Question(problem, problem.text) for problem in PROBLEMS]


@pytest.fixture(scope="module")
def model() -> HfGenerator:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    return tools.generator(tools.qwen2(len(tokenizer)), tokenizer)


@pytest.fixture
def server(model):
    with ModelServer(model) as served:
        yield served


def engine(server: ModelServer, **changes) -> ServerEngine:
    return ServerEngine(ServerConfig(url=server.url, **{"concurrency": 4, "patience": 5.0, **changes}))


def answers(of: ServerEngine, sampling=GREEDY, questions=QUESTIONS):
    return {question.problem.index: one for question, [one] in of.complete(questions, sampling)}


TASK = Task(
    name="sums",
    version=1,
    about="sums",
    rows=lambda data: PROBLEMS,
    request=lambda problem: problem.text,
    score=lambda rollouts: [Score(float("W" in rollout.text)) for rollout in rollouts],
    budget=GREEDY,
)


def run(of: ServerEngine, root: Path, **changes):
    record = of.model_record()
    root = root / label_of(record)
    return evaluate(TASK, of, SingleProcess(), root=root, data=root, model=record, **changes)


def test_the_same_model_on_another_port_goes_on_and_another_on_the_same_port_is_asked(model, tmp_path):
    with ModelServer(model) as first:
        folder, _ = run(engine(first), tmp_path)
    with ModelServer(model) as moved:
        assert run(engine(moved), tmp_path)[0] == folder
        assert moved.asked == []
    with ModelServer(model, port=first.port) as other:
        other.listed = {"root": "tests/another"}
        assert run(engine(other), tmp_path)[0] != folder
        assert len(other.asked) == len(PROBLEMS)
        assert run(engine(other, model_id="step 200"), tmp_path)[0].parent != folder.parent
        assert len(other.asked) == 2 * len(PROBLEMS)
    assert first.url not in "".join(file.read_text() for file in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("listed", "identity"),
    [
        ({"created": 1700000000}, {"created": 1700000000}),
        ({"created": "clock", "root": "out/step-100"}, {"root": "out/step-100"}),
        ({"created": int(time.time()) - 60}, "as it was given"),
        ({"digest": "sha256:1f"}, {"digest": "sha256:1f"}),
        ({"created": "clock"}, None),
        ({"root": "tiny"}, None),
        ({}, None),
    ],
)
def test_the_identity_is_what_the_list_tells_but_no_clock(server, listed, identity):
    server.listed = listed
    if identity is None:
        with pytest.raises(
            ConfigError, match="does not tell which weights it serves as 'tiny': name them with --model"
        ):
            engine(server).model_record()
    else:
        expected = listed if identity == "as it was given" else identity
        assert engine(server).model_record()["identity"] == expected
    assert engine(server, model_id="mine").model_record()["identity"] == {"id": "mine"}


def test_the_first_request_is_alone_and_what_it_names_is_left_out_and_recorded(server, tmp_path, caplog):
    server.unsupported = ("max_tokens", "stream_options", "seed")
    folder, result = run(engine(server), tmp_path)
    assert result["failed"] == {"engine": 0, "grader": 0}
    assert result["left_out"] == ["max_tokens (sent as max_completion_tokens)", "seed", "stream_options"]
    assert len(server.asked) == len(PROBLEMS) + 3
    assert {body["max_completion_tokens"] for body in server.asked[3:]} == {6}
    assert len(caplog.records) == 3
    server.unsupported = ()
    assert run(engine(server), tmp_path, again="failed")[1]["left_out"] == result["left_out"]
    assert "left_out" not in run(engine(server), tmp_path, again="all")[1]
    assert jsonl.read_json(folder / "plan.json")["engine"] == {"engine": "server"}


def test_a_server_without_streams_and_without_top_k(server):
    plain = answers(engine(server))
    server.unsupported = ("stream", "top_k")
    found = answers(engine(server), GREEDY.replace(top_k=1))
    assert {i: (a.text, a.finish, a.tokens) for i, a in found.items()} == {
        i: (a.text, a.finish, a.tokens) for i, a in plain.items()
    }
    assert found[0].left_out == ("stream", "top_k")


@pytest.mark.parametrize("chat", [False, True])
def test_json_in_place_of_a_stream(server, chat):
    questions = [Question(p, [Message("user", p.text)]) for p in PROBLEMS] if chat else QUESTIONS
    streamed = answers(engine(server), questions=questions)
    server.form = "json"
    assert answers(engine(server), questions=questions) == streamed


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((reason, "stop") for reason in ("eos", "eos_token", "end_turn", "stop_sequence")),
        ("max_tokens", "length"),
        (None, "length"),
        ("content_filter", "error"),
    ],
)
def test_other_words_for_an_end(server, reason, finish):
    server.finishes = {"stop": reason, "length": reason}
    found = answers(engine(server))
    assert {answer.finish for answer in found.values()} == {finish}


@pytest.mark.parametrize(
    ("form", "said"), [("html", "a page of HTML in place of JSON"), ("odd", "not of OpenAI's form")]
)
def test_what_is_no_answer_is_an_error_at_once(server, form, said):
    server.form = form
    began = time.monotonic()
    with pytest.raises(EngineError, match=said):
        answers(engine(server, patience=60))
    assert (time.monotonic() - began < 30, len(server.asked)) == (True, 1)


def test_a_rate_limit_longer_than_patience_is_kept_to(server):
    """Each request alone would be out of patience; the server answers somebody all the time."""
    server.per_second, server.retry_after = 4.0, 0.3
    of = engine(server, patience=0.8, concurrency=8)
    assert {answer.finish for answer in answers(of).values()} <= {"stop", "length"}
    assert 0 < server.refused < len(PROBLEMS) * 3


def test_a_wait_beyond_patience_is_said_at_once(server):
    server.statuses, server.retry_after = [429] * 9, 3600
    with pytest.raises(EngineError, match=r"wants to be asked again in 3600 s, and patience is 5 s"):
        answers(engine(server))
    assert len(server.asked) == 1


def test_slots_halve_once_a_burst_and_grow_by_one_a_round():
    slots = http.Slots(32)
    sent = time.monotonic()
    for _ in range(10):
        slots.refused(sent, 0.0)
    assert slots.places == 16
    slots.refused(time.monotonic(), 0.0)
    assert slots.places == 8
    for _ in range(8):
        slots.answered()
    assert 8.5 < slots.places < 9
    for _ in range(10000):
        slots.answered()
    assert slots.places == 32
    for _ in range(99):
        slots.refused(time.monotonic() + 1, 0.0)
    assert slots.places == 1


@given(st.text())
def test_any_retry_after_is_seconds(text):
    assert 0 <= http.seconds_of(text) < float("inf")


def test_retry_after_may_be_a_date():
    assert http.seconds_of("Fri, 31 Dec 2100 23:59:59 GMT") > 1e9
    assert http.seconds_of("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert http.seconds_of("2.5") == 2.5


def test_everything_failed_leaves_no_result_and_the_same_command_asks_again(server, tmp_path):
    server.refuse = "User"
    with pytest.raises(
        Stopped, match=r"all 8 samples of sums failed, most of them with engine: .*this prompt is refused"
    ):
        run(engine(server), tmp_path)
    assert not list(tmp_path.rglob("result.json"))
    server.refuse = None
    assert run(engine(server), tmp_path)[1]["failed"] == {"engine": 0, "grader": 0}
    assert len(server.asked) == 2 * len(PROBLEMS)


def test_again_asks_everything_anew(server, tmp_path):
    run(engine(server), tmp_path)
    run(engine(server), tmp_path, again="all")
    assert len(server.asked) == 2 * len(PROBLEMS)


@pytest.mark.parametrize(
    ("status", "message", "left"),
    [
        (400, "Unrecognized request argument supplied: seed", ["seed"]),
        (422, '{"detail":[{"loc":["body","top_k"],"msg":"Extra inputs are not permitted"}]}', ["top_k"]),
        (400, "'max_tokens' or 'max_completion_tokens' is too large: 6. The model's maximum is 4", []),
        (400, "Unsupported value: 'temperature' does not support 0 with this model", []),
        (400, "Unsupported value: 'top_p' does not support 1 with this model", ["top_p"]),
        (400, "this prompt is refused", []),
        (500, "unsupported: seed", []),
    ],
)
def test_only_what_is_named_as_unsupported_is_left_out(status, message, left):
    dialect = Dialect()
    sent = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 6, "seed": 1, "top_k": 5, "stream": True}
    assert dialect.learn(sent, http.Refused("url", status, message)) == bool(left)
    assert list(dialect.unsupported) == left


@given(st.text(max_size=8), st.sampled_from("@?#"), st.text(max_size=8))
def test_no_secret_of_a_url_is_repeated(before, mark, after):
    url = f"http://{before}SECRET{mark}host{after}"
    with pytest.raises(ConfigError, match="the server's url holds a user name") as told:
        server_url(url)
    assert "SECRET" not in str(told.value)


@given(st.text(min_size=1), st.integers(0, 9))
def test_no_name_of_a_model_leaves_its_folder(name, number):
    label = label_of({"name": name, "sha256": None, "identity": {"id": number}})
    place = Path("evals/others") / label
    assert place.name == label
    assert (Path("/x") / place).resolve().parent == Path("/x/evals/others")
    assert len(label.encode()) < 200
    assert label not in ("before", "after", "checkpoints", "others")


@pytest.mark.parametrize("name", ["a/..", "..", "/", ".", "a/b\\..\\c", "x\0y", "before"])
def test_odd_names_of_models(name):
    assert Path(label_of({"name": name, "sha256": None, "identity": {"id": 1}})).parts[1:] == ()


def test_the_plan_of_a_local_model_is_what_it_was():
    made = plan("sums", 1, PROBLEMS, GREEDY, {"name": "x", "sha256": "ab"}, {"engine": "hf"})
    assert (made["model"], made["engine"]) == ("ab", {"engine": "hf"})


@pytest.mark.parametrize("change", [{"concurrency": 0}, {"concurrency": 5000}, {"patience": 0.0}, {"timeout": 1e9}])
def test_numbers_have_bounds(server, change):
    with pytest.raises(ConfigError, match=f"server.{next(iter(change))} is"):
        engine(server, **change)


def judged(score, cfg, root, base):
    """A local engine's evaluation, scored by a served model."""
    own = replace(TASK, score=score, judge=lambda: identity(cfg))
    with ModelServer(base) as model:
        of = engine(model, model_id="the one that is judged")
        return evaluate(own, of, SingleProcess(), root=root, data=root, model=of.model_record())


def test_verdicts_of_another_judge_are_another_result(model, tmp_path):
    def score(answers):
        asked.append(len(answers))
        return [Score(1.0)] * len(answers)

    asked: list[int] = []
    with ModelServer(model) as judge:
        first, _ = judged(score, ServedJudge(url=judge.url, model_id="a"), tmp_path, model)
        again, result = judged(score, ServedJudge(url=judge.url, model_id="a"), tmp_path, model)
        other, _ = judged(score, ServedJudge(url=judge.url, model_id="b"), tmp_path, model)
        assert first == again != other
        assert sum(asked) == 2 * len(PROBLEMS)
        assert result["plan"]["judge"] == {"served": {"name": "tiny", "id": "a"}}
        judge.listed = {"created": "clock"}
        with pytest.raises(ConfigError, match=r"the judge: .* name them with judge\.model_id"):
            identity(ServedJudge(url=judge.url))


def test_a_judge_has_the_same_settings(server):
    judge = open_judge(ServedJudge(url=server.url, concurrency=3, patience=2.0, timeout=9.0))
    assert isinstance(judge, ServerEngine)
    assert (judge.cfg.concurrency, judge.cfg.patience, judge.cfg.timeout) == (3, 2.0, 9.0)
