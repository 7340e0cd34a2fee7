"""A reward model scores what it is told to read, as the same model does row by row; what is none is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from recipes.orz.reward import reward_of
from recipes.protocol import load_config
from stepstack.config import ConfigError
from stepstack.generation.types import Answer
from stepstack.models.lm import tiny
from stepstack.records import Problem
from stepstack.rl.config import ModelReward
from stepstack.rl.reward_model import RewardModel
from tests import tools

TOKENIZER = tiny.tokenizer()
TEXT = "{question}|{response}"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def saved(folder: Path, *, labels: int = 1, tokenizer=TOKENIZER) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"max_position_embeddings": 64}
    config = Qwen2Config(vocab_size=300, num_key_value_heads=2, num_labels=labels, pad_token_id=0, **shape)
    tools.perturbed(Qwen2ForSequenceClassification(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def answers(*pairs: tuple[str, str]) -> list[Answer]:
    return [
        Answer(problem=Problem(at, question, ""), sample=0, finish="stop", text=response)
        for at, (question, response) in enumerate(pairs)
    ]


PAIRS = answers(("1+1", "2"), ("12+30-4", "it is 38"), ("7", "{question}"), ("{response}", "x"))


def alone(folder: Path, text: str) -> float:
    """The published class on one row."""
    lm = Qwen2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return lm(input_ids=torch.tensor([TOKENIZER(text).input_ids])).logits.item()


def model(folder: Path, **changes) -> RewardModel:
    return RewardModel(ModelReward(path=str(folder), **changes), torch.device("cpu"))


@pytest.mark.parametrize(
    ("batch", "dtype", "apart"), [(1, "float32", 1e-5), (3, "float32", 1e-5), (3, "bfloat16", 0.1)]
)
def test_scores_are_those_of_each_row_by_itself(tmp_path, batch, dtype, apart):
    folder = saved(tmp_path / "rm")
    scores = model(folder, text=TEXT, batch=batch, dtype=dtype)(PAIRS)
    expected = [alone(folder, f"{a.problem.text}|{a.text}") for a in PAIRS]
    assert [score.value for score in scores] == pytest.approx(expected, abs=apart)
    assert len(set(expected)) == len(expected)
    assert scores[0].parts == {"reward_model": scores[0].value}
    assert model(folder, text=TEXT)([]) == []


def test_without_a_text_it_reads_its_own_chat_template(tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    folder = saved(tmp_path / "rm", tokenizer=tokenizer)
    [score] = model(folder)(answers(("1+1", "2")))
    assert score.value == pytest.approx(alone(folder, "user: 1+1\nassistant: 2\n"), abs=1e-5)


def test_a_config_names_it_and_training_and_tasks_share_it(tmp_path):
    folder = saved(tmp_path / "rm")
    cfg = load_config("orz-tiny", [f"reward={{type: model, path: {folder}, text: '{TEXT}'}}"])
    assert reward_of(cfg) is reward_of(cfg)
    assert reward_of(cfg)(PAIRS) == model(folder, text=TEXT)(PAIRS)


def test_what_is_no_reward_model_is_refused(tmp_path):
    rm = saved(tmp_path / "rm")
    with pytest.raises(ConfigError, match="has 3 outputs: a reward model has one"):
        model(saved(tmp_path / "three", labels=3), text=TEXT)(PAIRS)
    with pytest.raises(ConfigError, match=r"no chat template: set reward\.text"):
        model(rm)(PAIRS)
    with pytest.raises(
        ConfigError, match=r"problem 0 and its response have 7\d tokens for the reward model, which reads"
    ):
        model(rm, text=TEXT)(answers(("1+1", "9" * 70)))
    lm = tools.qwen2(300)
    lm.save_pretrained(tmp_path / "lm")
    TOKENIZER.save_pretrained(tmp_path / "lm")
    with pytest.raises(ConfigError, match=r"score\.weight"):
        model(tmp_path / "lm", text=TEXT)(PAIRS)
    with pytest.raises(ConfigError, match="pad_token"):
        model(saved(tmp_path / "padless", tokenizer=padless()), text=TEXT)(PAIRS)
    with pytest.raises(ValueError, match=r"reward\.text must hold"):
        replace(ModelReward(path="x"), text="{question}")


def padless():
    tokenizer = tools.bpe_tokenizer()
    tokenizer.pad_token = None
    return tokenizer
