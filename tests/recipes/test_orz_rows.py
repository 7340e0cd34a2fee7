"""A question-answer file of any columns trains by one command, with a prompt of one's own or the model's chat
template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import DataError
from recipes.orz.data import load_prompts, problems
from recipes.orz.prompt import request_of
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ROOT, ConfigError
from stepstack.generation.prompts import Message
from stepstack.records import Problem
from tests import chats

MINI = str(ROOT / "tests" / "system" / "mini.yaml")
COLUMNS = "columns: {question: q, answer: a}"
HELD_OUT = "select: 4, test: 6"


def gsm8k(folder: Path, *more: dict) -> Path:
    rows = [
        {"q": f"Ann has {a} and gets {b}. How many?", "a": f"{a}+{b}\n#### {a + b}"} for a in range(5) for b in range(5)
    ]
    path = folder / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *more)))
    return path


def data(path: Path) -> str:
    return f'data={{type: rows, path: {path}, {COLUMNS}, gold_after: "####", {HELD_OUT}}}'


def chat_model(folder: Path) -> Path:
    from tests import tools

    tokenizer = chats.tokenizer("qwen2_5")
    tools.qwen2(len(tokenizer) + 1).save_pretrained(folder)  # read beside it, the tokenizer gains <|endoftext|>
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "prompt",
    ["{type: template, text: 'Q: {question} A:', max_tokens: 64}", "{type: chat, system: Be brief., max_tokens: 99}"],
)
def test_a_file_trains_by_one_command(prompt, tmp_path, capsys):
    """Two updates of a tiny model, whose reward is the last number of a response."""
    words = [
        "train",
        MINI,
        data(gsm8k(tmp_path)),
        f"prompt={prompt}",
        "reward.extract=number",
        "steps=2",
        "eval_every=0",
    ]
    model = f"model={{type: pretrained, path: {chat_model(tmp_path / 'model')}}}"
    words += [model, "rollout.sampling.max_tokens=8", f"dir={tmp_path}", "name=rows"]
    assert cli.main(words) == 0
    result = json.loads(next((tmp_path / "rows" / "evals" / "after").glob("*/result.json")).read_text())
    assert result["samples"] == 6
    rows = [json.loads(line) for line in (tmp_path / "rows" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]


def test_the_rows_of_each_split(tmp_path):
    cfg = load_config(MINI, [data(gsm8k(tmp_path))])
    splits = problems(cfg.data)
    assert [len(splits[name]) for name in ("train", "select", "test")] == [15, 4, 6]
    for rows in splits.values():
        for problem in rows:
            a, b = (int(word.strip("and.")) for word in problem.text.split() if word[0].isdigit())
            assert problem.gold == str(a + b)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "1+1?", "answer": "2"}, r"line 26: has no column 'q', only question, answer: set data.columns"),
        ({"q": "1+1?", "a": "2"}, "line 26: no gold behind '####'"),
        ({"q": " ", "a": "#### 2"}, "line 26: column 'q' is ' '"),
        ({"q": "1+1?", "a": None}, "line 26: column 'a' is None"),
    ],
)
def test_a_bad_row_is_named(row, why, tmp_path):
    with pytest.raises(DataError, match=why):
        problems(load_config(MINI, [data(gsm8k(tmp_path, row))]).data)


def test_prompts():
    problem = Problem(0, "1+{1}?", "2")
    template = load_config(MINI, ["prompt={type: template, text: 'Q: {question} A:', max_tokens: 64}"])
    assert request_of(problem, template.prompt) == "Q: 1+{1}? A:"
    chat = load_config(MINI, ["prompt={type: chat, text: '{question} Think.', system: Hi, max_tokens: 64}"])
    assert request_of(problem, chat.prompt) == [Message("system", "Hi"), Message("user", "1+{1}? Think.")]
    with pytest.raises(ConfigError, match=r"text must hold \{question\}"):
        load_config(MINI, ["prompt={type: template, text: 'Q:', max_tokens: 64}"])


def test_a_chat_prompt_is_what_the_model_is_asked_by_its_template(tmp_path):
    tokenizer = chats.tokenizer("qwen2_5")
    cfg = load_config(MINI, [data(gsm8k(tmp_path)), "prompt={type: chat, max_tokens: 400}", "layout.max_tokens=1024"])
    prompt = load_prompts(cfg, tokenizer).train[0]
    asked = [{"role": "user", "content": prompt.problem.text}]
    assert tokenizer.decode(prompt.ids) == tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=False
    )
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="has no chat template"):
        load_prompts(cfg, tokenizer)
