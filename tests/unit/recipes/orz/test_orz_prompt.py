"""ORZ's prompt, token by token, and the reward on its responses."""

import hashlib

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from recipes.orz.config import Overlong
from recipes.orz.prompt import STOP, encode, render
from recipes.orz.reward import MathReward
from stepstack.generation.types import Answer, Finish
from stepstack.records import Problem
from stepstack.scoring.maths.pool import GraderPool


def tokenizer(bos: bool, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE that can hold any text; with ``adds_bos`` it prepends <s> itself, as Llama's does."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    model.train_from_iterator([render("Find the value of x.")], trainer)
    if adds_bos:
        model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="</s>", **names)


def ids_of(problem: Problem, tokens: PreTrainedTokenizerFast, max_tokens: int, overlong: Overlong = "error"):
    prompt = encode(problem, render(problem.text), tokens, max_tokens, overlong)
    assert prompt is not None
    return prompt.ids


QWEN_LIKE, GPT_LIKE, LLAMA_LIKE = tokenizer(False), tokenizer(True), tokenizer(True, adds_bos=True)
PROBLEM = Problem(7, "Find the value of $x$.", "3")


def test_the_published_wording():
    """Digest of the text that ORZ's released template renders for this problem (jinja drops the newline after it)."""
    text = render("P {x}\n")
    assert text.startswith("A conversation between User and Assistant. The User asks a question, and the Assistant ")
    assert text.endswith("\nThis is the problem:\nP {x}\n\nAssistant: <think>")
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "51767b28aac6eae2679ca7bd17ab8dc79be4d7a6a367856447d8a459fb2f8aa6"
    )
    assert STOP == ("User:", "Human:", "Assistant:", "</answer>")


@pytest.mark.parametrize(("tokens", "count"), [(QWEN_LIKE, 0), (GPT_LIKE, 1), (LLAMA_LIKE, 1)])
def test_exactly_one_bos(tokens, count):
    ids = ids_of(PROBLEM, tokens, 2048)
    assert ids.count(0) == count
    assert ids[:count] == (0,) * count
    assert tokens.decode(ids[count:]) == render(PROBLEM.text)


@pytest.mark.parametrize("tokens", [QWEN_LIKE, GPT_LIKE, LLAMA_LIKE])
def test_special_tokens_inside_a_problem_are_plain_text(tokens):
    problem = Problem(0, "What does <s> or </s> mean?", "1")
    ids = ids_of(problem, tokens, 2048)
    assert ids.count(0) == (tokens.bos_token_id is not None)
    assert tokens.eos_token_id not in ids
    assert problem.text in tokens.decode(ids)


@pytest.mark.parametrize("tokens", [QWEN_LIKE, LLAMA_LIKE])
def test_a_long_prompt_never_loses_its_end(tokens):
    whole = ids_of(PROBLEM, tokens, 2048)
    room = len(whole)
    assert ids_of(PROBLEM, tokens, room) == whole
    with pytest.raises(ValueError, match=f"problem 7: its prompt has {room} tokens, more than max_tokens={room - 1}"):
        encode(PROBLEM, render(PROBLEM.text), tokens, room - 1)
    assert encode(PROBLEM, render(PROBLEM.text), tokens, room - 1, "drop") is None
    cut = ids_of(PROBLEM, tokens, room - 5, "left")
    bos = int(tokens.bos_token_id is not None)
    assert len(cut) == room - 5
    assert cut == whole[:bos] + whole[bos + 5 :]
    assert tokens.decode(cut).endswith("Assistant: <think>")
    with pytest.raises(ValueError, match="does not hold even"):
        encode(PROBLEM, render(PROBLEM.text), tokens, 3, "left")
    with pytest.raises(ValueError, match="is not one of"):
        encode(PROBLEM, render(PROBLEM.text), tokens, 3, "right")  # type: ignore[arg-type]


def rollout(text: str, finish: Finish = "stop", gold: str = "73", **meta) -> Answer:
    return Answer(problem=Problem(0, "p", gold, meta), sample=0, ids=(1,), text=text, finish=finish)


RIGHT = r"six, wait, however, wait, </think> <answer>\boxed{73}</answer>"


@pytest.fixture(scope="module")
def pool():
    with GraderPool(1, timeout=2.0) as pool:
        yield pool


def test_reward_is_one_only_for_a_correct_finished_answer(pool):
    reward = MathReward(pool)
    rollouts = [rollout(RIGHT), rollout(RIGHT, "length"), rollout("73"), rollout(RIGHT, gold="74"), rollout("")]
    scores = reward(rollouts)
    assert [s.value for s in scores] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [s.parts["correct"] for s in scores] == [1, 1, 0, 0, 0]
    assert [s.parts["finished"] for s in scores] == [1, 0, 1, 1, 1]
    assert [s.parts["boxed"] for s in scores] == [1, 1, 0, 1, 0]
    assert [s.parts["reflections"] for s in scores] == [3, 3, 0, 3, 0]


def test_a_hanging_answer_is_a_part_of_the_score(pool):
    scores = MathReward(pool)([rollout(r"<answer>\boxed{10^{10^{10}}}</answer>"), rollout(RIGHT)])
    assert [s.value for s in scores] == [0.0, 1.0]
    assert scores[0].parts["timeout"] + scores[0].parts["grader_error"] <= 1


def test_choices_go_to_the_letter_grader(pool):
    text = r"<answer>\boxed{\text{(D)}}</answer>"
    lower = r"<answer>\boxed{d}</answer>"
    choices = {"A": "one", "D": "four"}
    rollouts = [rollout(text, gold="D", choices=choices), rollout(lower, gold="D", choices=choices)]
    assert [s.value for s in MathReward(pool)(rollouts)] == [1.0, 0.0]
    assert MathReward(pool).grader(rollouts[0]) == "choice"


def test_parity_grades_as_orz_does(pool):
    third = rollout(r"<answer>\boxed{0.333333}</answer>", gold=r"\frac13")
    parity = MathReward(pool, grader="orz_legacy")
    assert [MathReward(pool)([third])[0].value, parity([third])[0].value] == [1.0, 0.0]
    assert [MathReward(pool).grader(third), parity.grader(third)] == ["math_verify", "orz_legacy"]
    framed = rollout(r"<answer>\fbox{73}</answer>")
    assert [MathReward(pool)([framed])[0].value, parity([framed])[0].value] == [1.0, 0.0]


def test_a_problem_without_gold_is_refused(pool):
    with pytest.raises(ValueError, match="empty gold"):
        MathReward(pool)([rollout("", gold="")])
