"""The server engine over real HTTP, against a server whose answers are a real model's (tests/servers.py)."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from stepstack.config import ConfigError
from stepstack.core.types import SingleProcess
from stepstack.generation import http
from stepstack.generation.hf import HfGenerator
from stepstack.generation.prompts import Message
from stepstack.generation.types import Answer, EngineError, Sampling, rollout_seed
from stepstack.harness.answers import read
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.engines.server import ServerConfig, ServerEngine
from stepstack.harness.evaluate import Stopped, evaluate
from stepstack.harness.task import Task
from stepstack.models.lm import tiny
from stepstack.records import Problem, Score
from tests import tools
from tests.servers import ModelServer

GREEDY = Sampling(temperature=0, max_tokens=24)
PROBLEMS = [Problem(index, f"User: {index} plus {index}?", "W") for index in range(3, 11)]
QUESTIONS = [Question(problem, problem.text) for problem in PROBLEMS]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def model() -> HfGenerator:
    """The letter s ends an answer too, so that answers end in every way."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    lm = tools.qwen2(len(tokenizer))
    lm.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("s")]
    return tools.generator(lm, tokenizer)


@pytest.fixture(scope="module")
def local(model) -> GeneratorEngine:
    return GeneratorEngine(model, model.tokenizer, batch=8, facts={"engine": "hf"})


@pytest.fixture
def server(model):
    with ModelServer(model) as made:
        yield made


def engine(server: ModelServer, **changes) -> ServerEngine:
    return ServerEngine(ServerConfig(url=server.url, **{"concurrency": 4, "patience": 0.3, **changes}))


def answers(of, questions=QUESTIONS, sampling=GREEDY) -> dict[int, list[Answer]]:
    return {question.problem.index: made for question, made in of.complete(questions, sampling)}


def shape(found: dict[int, list[Answer]]) -> dict:
    return {index: [(c.text, c.finish, c.length) for c in made] for index, made in found.items()}


def scored(rollouts) -> list[Score]:
    return [Score(float("W" in rollout.text)) for rollout in rollouts]


def task(sampling=GREEDY, problems=PROBLEMS) -> Task:
    text = "a task of this test"
    return Task(
        name="some",
        version=1,
        about=text,
        rows=lambda data: problems,
        request=lambda problem: problem.text,
        score=scored,
        budget=sampling,
    )


def run(of, folder, **changes):
    model = of.model_record() if isinstance(of, ServerEngine) else {"name": "tiny", "sha256": None}
    return evaluate(task(**changes), of, SingleProcess(), root=folder, data=folder, model=model)


def test_greedy_answers_are_those_of_the_model(server, local):
    want = answers(local)
    assert {c.finish for made in want.values() for c in made} == {"stop", "length"}
    assert shape(answers(engine(server))) == shape(want)
    assert len(server.asked) == len(QUESTIONS)


def test_without_usage_the_pieces_are_counted(server, local):
    server.usage = False
    found = answers(engine(server))
    for index, [made] in answers(local).items():
        ended = made.finish == "stop"  # the token that ends an answer has no text
        assert found[index][0].text == made.text
        assert bool(made.text) <= found[index][0].length <= made.length - ended


def test_stop_strings_stay_and_what_follows_is_hung_up(server, local):
    """Tokens of this model are letters, so the longer ones come in several pieces."""
    texts = {index: made.text for index, [made] in answers(local).items()}
    sampling = GREEDY.replace(stop=("3V", 'QQ"', "never", "n"))
    want = answers(local, sampling=sampling)
    assert {made.text[-2:] for [made] in want.values()} >= {"3V", 'Q"', "Vn"}
    assert any(made.text != texts[index] for index, [made] in want.items())
    server.pause = 0.01
    found = answers(engine(server), sampling=sampling)
    assert {i: (m.text, m.finish) for i, [m] in found.items()} == {i: (m.text, m.finish) for i, [m] in want.items()}
    assert not any("stop" in body for body in server.asked)
    wait_for(lambda: server.hung_up >= 1)


def test_every_sample_has_its_own_seed_and_is_the_same_again(server):
    sampling = Sampling(n=3, temperature=1.0, top_p=0.9, top_k=50, max_tokens=8, seed=5)
    found = answers(engine(server), sampling=sampling)
    assert all(len(made) == 3 for made in found.values())
    assert len({tuple(c.text for c in made) for made in found.values()}) > 1
    seeds = {rollout_seed(5, p.index, s) % 2**31 for p in PROBLEMS for s in range(3)}
    assert {body["seed"] for body in server.asked} == seeds
    assert {(b["temperature"], b["top_p"], b["top_k"], b["max_tokens"]) for b in server.asked} == {(1.0, 0.9, 50, 8)}
    assert shape(answers(engine(server), sampling=sampling)) == shape(found)


def test_a_chat_goes_to_the_template_of_the_server(server, local):
    chats = [Question(p, [Message("system", "Add."), Message("user", p.text)]) for p in PROBLEMS]
    found = answers(engine(server), chats)
    assert shape(found) == shape(answers(local, chats))
    assert shape(found) != shape(answers(local))
    assert server.asked[0]["messages"][0] == {"role": "system", "content": "Add."}


def test_a_refused_request_is_one_failed_sample(server, local, tmp_path):
    """Its question has no score; the others have theirs."""
    server.refuse = PROBLEMS[2].text
    folder, result = run(engine(server), tmp_path)
    samples = {sample.index: sample for sample in read(folder / "samples.jsonl")}
    failed = samples.pop(PROBLEMS[2].index)
    assert (failed.finish, failed.score) == ("error", None)
    assert failed.failure == f"engine: {server.url}/v1/completions answered 400: this prompt is refused"
    assert result["failed"] == {"engine": 1, "grader": 0}
    want = {index: float("W" in made.text) for index, [made] in answers(local).items() if index in samples}
    assert {index: sample.score for index, sample in samples.items()} == want
    [metric] = result["metrics"]
    assert (metric["n"], metric["value"]) == (7, pytest.approx(sum(want.values()) / 7))


def test_a_prompt_that_does_not_fit_is_a_failed_sample_too(server):
    [[made]] = answers(engine(server), [Question(PROBLEMS[0], "x" * 600)]).values()
    assert made.finish == "error"
    assert "leaves no room" in made.error


def test_a_busy_server_is_asked_again(server, local):
    server.statuses = [429, 503, 429, 500, 502]
    patient = engine(server, patience=20)
    assert shape(answers(patient)) == shape(answers(local))
    assert patient.retries == 5
    assert len(server.asked) == len(QUESTIONS) + 5


def test_a_broken_stream_is_asked_again(server, local):
    server.torn = ["end", "reset", "end"]
    patient = engine(server, patience=20)
    assert shape(answers(patient)) == shape(answers(local))
    assert patient.retries == 3


def test_a_server_that_only_fails_is_given_up(server):
    broken = engine(server)
    server.statuses = [500] * 100
    with pytest.raises(EngineError, match=rf"{server.url} did not answer /v1/.* for 0.3 s .*made to answer 500"):
        answers(broken)
    assert broken.retries > 0
    wait_for(lambda: not running())


def test_an_error_within_a_stream_is_asked_again(server, local):
    server.torn = ["error", "error"]
    patient = engine(server, patience=20)
    assert shape(answers(patient)) == shape(answers(local))
    assert patient.retries == 2


def test_an_answer_that_takes_too_long_is_an_error(server):
    server.pause = 0.2
    with pytest.raises(EngineError, match=r"longer than timeout: 0.5 s"):
        answers(engine(server, timeout=0.5))


def test_a_server_that_goes_away_stops_the_evaluation_and_nothing_is_asked_twice(server, model, local, tmp_path):
    server.leave_after = 5
    with pytest.raises(Stopped, match=rf"{server.url} did not answer(.|\n)*the same command goes on from there"):
        run(engine(server, concurrency=1), tmp_path)
    [folder] = tmp_path.iterdir()
    assert not (folder / "result.json").exists()
    with ModelServer(model, port=server.port) as again:
        _, result = run(engine(again, concurrency=1), tmp_path)
        assert len(again.asked) == len(PROBLEMS) - 5
        _, same = run(engine(again, concurrency=1), tmp_path)
        assert (same, len(again.asked)) == (result, len(PROBLEMS) - 5)
    asked = Counter(body["prompt"] for body in again.asked + server.asked)
    assert asked == Counter(problem.text for problem in PROBLEMS)
    assert result["metrics"][0]["value"] == run(local, tmp_path)[1]["metrics"][0]["value"]


def test_closing_the_iterator_hangs_up(server):
    server.pause = 0.05
    iterator = engine(server).complete(QUESTIONS, GREEDY)
    next(iterator)  # the first request goes alone
    next(iterator)
    iterator.close()
    wait_for(lambda: not running())
    wait_for(lambda: server.hung_up >= 1)
    asked = len(server.asked)
    time.sleep(0.2)
    assert len(server.asked) == asked < len(QUESTIONS)


def test_the_model_is_the_one_that_is_served(model):
    with ModelServer(model, models=("one", "two")) as server:
        with pytest.raises(
            ConfigError, match=r"serves 2 models: set server.model \(--server-model\) to one of one, two"
        ):
            engine(server)
        named = engine(server, model="two")
        assert named.facts == {"engine": "server"}
        assert named.model_record() == {"name": "two", "sha256": None, "identity": {"root": "tests/tiny"}}
        assert named.batch == 16
        assert len(answers(named, QUESTIONS[:1])) == 1
        with pytest.raises(EngineError, match=r"has no model 'three'.*the model three does not exist"):
            answers(engine(server, model="three"))


def test_the_key_is_sent(model, tmp_path):
    file = tmp_path / "key"
    file.write_text("secret\n")
    with ModelServer(model, key="secret") as server:
        assert len(answers(engine(server, key_file=str(file)), QUESTIONS[:1])) == 1
        assert server.keys == ["Bearer secret"]
        with pytest.raises(EngineError, match=r"does not accept the API key \(no key_file is set\): .*wrong API key"):
            engine(server)
        with pytest.raises(EngineError, match="does not accept the API key"):
            answers(engine(server, model="tiny"))
        file.write_text("sk-another-secret")
        with pytest.raises(EngineError, match=r"wrong API key: Bearer \*\*\*") as told:
            engine(server, key_file=str(file))
        assert "another-secret" not in str(told.value)
        with pytest.raises(ConfigError, match=r"key_file .*away does not exist"):
            engine(server, key_file=str(tmp_path / "away"))


def test_what_a_server_cannot_do_is_said(server):
    with pytest.raises(EngineError, match="gives no log-likelihoods"):
        engine(server).loglikelihood([((1,), (2,))])
    with pytest.raises(EngineError, match=r"set sampling.max_length to null"):
        answers(engine(server), sampling=GREEDY.replace(max_length=100))


def test_nobody_there_is_an_error_that_names_the_url():
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"http://127.0.0.1:9 did not answer /v1/models for 0.3 s"):
        ServerEngine(ServerConfig(url="http://127.0.0.1:9/v1/", patience=0.3))
    assert time.monotonic() - began < 10


def running() -> set:
    """What still runs."""
    return asyncio.all_tasks(http.loop())


def wait_for(what, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
