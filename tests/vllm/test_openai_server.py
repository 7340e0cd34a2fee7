"""The evaluation engine for OpenAI-compatible servers against a real ``vllm serve`` on CPU (scripts/test_vllm.sh)."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from stepstack.generation.config import HfConfig
from stepstack.generation.hf import HfGenerator
from stepstack.generation.types import Sampling
from stepstack.harness.engine import Question
from stepstack.harness.engines.generator import GeneratorEngine
from stepstack.harness.engines.server import ServerConfig, ServerEngine
from stepstack.records import Problem
from tests.vllm.test_vllm import LENGTH, Served, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm

QUESTIONS = [Question(Problem(i, "", ""), f"what is {i} and {i + 7} and then?") for i in range(12)]
GREEDY = Sampling(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_model(0).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def local(folder) -> GeneratorEngine:
    """With the tokenizer as the server reads it: its class comes from the model's type."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return GeneratorEngine(HfGenerator(tiny_model(0), tokenizer, HfConfig()), tokenizer, batch=16, facts={})


@pytest.fixture(scope="module")
def engine(folder, tmp_path_factory):
    server = Served(folder, tmp_path_factory.mktemp("logs") / "server.log").wait()
    yield ServerEngine(ServerConfig(url=server.url, patience=180, concurrency=8))
    server.kill()


def answers(of, questions=QUESTIONS, sampling=GREEDY):
    return {question.problem.index: made for question, made in of.complete(questions, sampling)}


def test_greedy_answers_are_those_of_the_model(engine, local):
    want, found = answers(local), answers(engine)
    assert {c.finish for [c] in want.values()} == {"stop", "length"}
    assert {i: (m.text, m.finish, m.length) for i, [m] in found.items()} == {
        i: (visible(m.text), m.finish, m.length) for i, [m] in want.items()
    }


def test_stop_strings_stay(engine, local):
    want = {i: made for i, [made] in answers(local).items()}
    texts = {i: visible(made.text) for i, made in want.items()}
    stop = (texts[0][20:23], texts[10][30:34])  # late ones, so that others reach the bound
    found = answers(engine, sampling=GREEDY.replace(stop=stop))
    for index, text in texts.items():
        ends = [text.index(s) + len(s) for s in stop if s in text]
        [made] = found[index]
        assert (made.text, made.finish) == ((text[: min(ends)], "stop") if ends else (text, want[index].finish))
        assert 0 < made.tokens <= GREEDY.max_tokens
    assert {made.finish for [made] in found.values()} == {"stop", "length"}


def test_seeds_make_samples_repeatable(engine):
    sampling = Sampling(n=4, max_tokens=16, seed=3, top_k=20)
    first = answers(engine, sampling=sampling)
    assert all(len({c.text for c in made}) > 1 for made in first.values())
    assert shape(first) == shape(answers(engine, sampling=sampling))
    assert shape(first) != shape(answers(engine, sampling=sampling.replace(seed=4)))


def test_a_prompt_without_room_is_one_failed_sample(engine):
    questions = [QUESTIONS[0], Question(Problem(99, "", ""), "x" * LENGTH)]
    found = answers(engine, questions)
    assert found[99][0].finish == "error"
    assert f"maximum context length is {LENGTH}" in found[99][0].error
    assert found[0][0].error is None
    assert engine.retries >= 0


def visible(text: str) -> str:
    """As the server shows it: without special tokens."""
    return text.replace("<pad>", "")


def shape(found):
    return {index: [(c.text, c.finish, c.tokens) for c in made] for index, made in found.items()}
