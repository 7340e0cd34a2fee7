"""Recipe chat: both stages on drawn dialogues, and a user's own rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.errors import DataError
from recipes.chat.data import problems
from recipes.chat.model import load_encoder
from recipes.chat.reward import exact
from recipes.chat.tasks import tasks
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.config import ConfigError
from stepstack.generation.types import Answer
from tests import chats, tools
from tests.cards import check_card

# Stages of seconds, which learn the form and little else.
SMALL = ["model.hidden=48", "model.layers=2", "model.intermediate=96", "data.train=400", "data.pairs=64"]
SMALL += ["data.select=16", "data.test=24", "sft.steps=40", "dpo.steps=6", "eval_every=20", "trackers=[]"]


def train(*overrides: str) -> None:
    assert cli.main(["train", "chat-tiny", *overrides]) == 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    """A run of both stages."""
    folder = tmp_path_factory.mktemp("runs")
    train(*SMALL, f"dir={folder}", "name=both")
    return folder / "both"


def test_sft_learns_and_dpo_begins_at_ln_2_with_winners_and_losers_apart(both):
    first, second = metrics(both / "sft"), metrics(both)
    assert first[-1]["eval/loss"] < 0.5 * first[0]["eval/loss"]
    assert math.isfinite(second[0]["eval/loss"])
    at_start = json.loads((both / "reference.json").read_text())
    assert len(at_start["pairs"]) == 64 + 16
    assert {"policy/chosen_logp", "policy/rejected_logp", "policy/chosen_reward", "policy/margin"} <= second[-1].keys()
    assert second[1]["policy/margin"] == pytest.approx(0, abs=1e-4)
    assert second[-1]["policy/margin"] > 0


def test_the_report_has_both_stages_on_one_time_line(both):
    data = tools.page_data(both / "report.html")
    assert [stage["name"] for stage in data["sets"][0]["stages"]] == ["SFT", "DPO"]
    loss = [line for line in data["charts"]["Loss"]["lines"] if line["label"] == "loss"]
    assert [len(line["y"]) for line in loss] == [40, 6]
    text = (both / "report.html").read_text()
    assert 'data-state="finished"' in text
    assert "learns by SFT, then DPO on drawn dialogues" in text
    assert f"stepstack launch chat-tiny {SMALL[0]}" in text
    assert json.loads((both / "status.json").read_text())["state"] == "finished"
    assert (both.parent / "index.html").is_file()
    assert tools.unexplained(both) == []


def test_the_model_is_a_folder_with_a_card_that_answers_in_its_chat_template(both):
    assert check_card(both).data.pipeline_tag == "text-generation"
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(both / "model"), AutoTokenizer.from_pretrained(both / "model")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in lm.generation_config.eos_token_id
    ids = tokenizer.apply_chat_template(chats.turns("1+2"), add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    answer = lm.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert int(answer[-1]) == end


def test_held_out_dialogues_are_answered_before_and_after(both):
    for when in ("before", "after"):
        result = json.loads(next((both / "evals" / when).glob("*/result.json")).read_text())
        names = [metric["name"] for metric in result["metrics"]]
        assert names == ["greedy", "sums right", "reckons again", "firm at a wrong claim", "agrees to a right one"]
        assert result["samples"] == 24
    assert cli.main(["eval", "chat-tiny", *SMALL, f"dir={both.parent}", "name=both", "--limit", "4"]) == 0


def test_the_same_command_goes_on_from_a_finished_stage(both, capsys):
    """Killed between the stages: sft is not done again, and the pairs' reference is read."""
    kept = (both / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    train(*SMALL, f"dir={both.parent}", "name=both")
    assert (both / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == kept


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with a user's model, conversations and pairs."""
    folder = tmp_path_factory.mktemp("own")
    tokenizer = chats.tokenizer("qwen2_5")
    # One more: read beside a Qwen2 config, the tokenizer gains <|endoftext|>.
    tools.qwen2(len(tokenizer) + 1, scale=0.02).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = [{"messages": chats.turns(f"say {n}", f"{n}", "again", f"{n}!", system="s")} for n in range(12)]
    pairs = [{"prompt": chats.turns(f"say {n}"), "chosen": f"{n}", "rejected": f"{n + 1}"} for n in range(12)]
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(own: Path, stage: str, *more: str, end: str = "<|im_end|>") -> list[str]:
    words = [f"data={{type: rows, sft: [{own}/rows.jsonl], dpo: [{own}/pairs.jsonl], select: 3, test: 3}}"]
    words += [f"model={{type: pretrained, path: {own}/model}}", f"chat={{max_tokens: 200, end: {end}}}"]
    other = {"sft": "dpo", "dpo": "sft"}[stage]
    words += [f"{other}=null", f"{stage}.steps=2", f"{stage}.batch=4", "layout.max_tokens=800", "trackers=[]"]
    return [*words, "answers.max_tokens=4", f"dir={own}", *more]


@pytest.mark.parametrize("pack", ["true", "false"])
def test_own_conversations(own, pack):
    name = f"sft-{pack}"
    train(*settings(own, "sft", f"name={name}", f"layout.pack={pack}"))
    result = json.loads(next((own / name / "evals" / "after").glob("*/result.json")).read_text())
    assert [metric["name"] for metric in result["metrics"]] == ["greedy", "similarity"]
    assert AutoTokenizer.from_pretrained(own / name / "model").eos_token == "<|im_end|>"


def test_packed_rows_learn_what_padded_ones_do(own):
    losses = [metrics(own / f"sft-{pack}")[-1]["loss"] for pack in ("true", "false")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("lora", ["null", "{r: 2}"])
def test_own_pairs_against_a_cached_reference_and_one_beside(own, lora):
    last = []
    for reference in ("cached", "model"):
        name = f"dpo-{reference}-{lora.strip('{}').replace(': ', '')}"
        train(*settings(own, "dpo", f"name={name}", f"dpo.policy.lora={lora}", f"dpo.reference={reference}"))
        last.append(metrics(own / name)[-1])
    for key in ("loss", "policy/chosen_logp", "policy/rejected_reward", "eval/loss"):
        assert last[0][key] == pytest.approx(last[1][key], abs=1e-5)


def test_held_out_rows_are_not_trained_on(own):
    cfg = load_config("chat-tiny", settings(own, "sft"))
    texts = {split: {problem.text for problem in problems(cfg, split)} for split in ("train", "select", "test")}
    assert [len(texts[split]) for split in ("train", "select", "test")] == [6, 3, 3]
    assert not texts["train"] & (texts["select"] | texts["test"])
    [problem, *_] = tasks(cfg)[2].rows(Path())
    number = problem.text.split("say ")[1].split()[0]
    assert problem.gold == f"{number}!"
    ids, _ = load_encoder(cfg).open(problem.meta["asked"])
    assert load_encoder(cfg).tokenizer.decode(ids).endswith("again<|im_end|>\n<|im_start|>assistant\n")


def test_an_end_token_that_the_model_does_not_stop_at_stops_before_training(own, capsys):
    assert cli.main(["train", "chat-tiny", *settings(own, "sft", "name=stop", end="null")]) == 2
    assert "set chat.end to the template's end token" in capsys.readouterr().err
    assert not (own / "stop" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["sft=null", "dpo=null"], "nothing to train: give a stage"),
        (["data={type: rows, sft: [a.jsonl]}"], "stage dpo has no rows: name their files in data.dpo"),
        (["layout.max_tokens=200"], "a pair may have 256 tokens"),
        (["sft.epochs=1"], "give one of the two"),
    ],
)
def test_a_config_that_cannot_train_is_refused(overrides, why):
    with pytest.raises(ConfigError, match=why):
        load_config("chat-tiny", overrides)


def test_bad_rows_are_named_before_training(own):
    (own / "bad.jsonl").write_text(json.dumps({"messages": chats.turns("a", "")}) + "\n")
    cfg = load_config("chat-tiny", [*settings(own, "sft"), f"data.sft=[{own}/bad.jsonl, {own}/rows.jsonl]"])
    from recipes.chat.data import load_rows

    with pytest.raises(DataError, match=r"bad.jsonl line 1: message 2, an assistant turn, is empty"):
        load_rows(cfg, load_encoder(cfg))


def test_the_first_rows_are_shown_token_by_token(own, capsys):
    assert cli.main(["data", "chat-tiny", *settings(own, "sft"), "--show", "1"]) == 0
    shown = capsys.readouterr().out
    assert "rows.jsonl line" in shown
    assert shown.count("‹") == 2
    assert "!<|im_end|>›" in shown
    assert cli.main(["data", "chat-tiny", *settings(own, "dpo"), "--show", "1"]) == 0
    assert "chosen: " in capsys.readouterr().out
    assert cli.main(["data", "orz-tiny", "--show", "1"]) == 0
    assert "nothing to show" in capsys.readouterr().out


def test_an_answer_is_right_by_the_words_of_the_data():
    cfg = load_config("chat-tiny", SMALL)
    [problem, *_] = problems(cfg, "test")
    said = [
        Answer(problem=problem, sample=0, finish=finish, text=text)
        for finish, text in (("stop", f" {problem.gold} "), ("length", str(problem.gold)), ("stop", "dunno"))
    ]
    assert [score.value for score in exact(said)] == [1, 0, 0]
    assert [score.parts["similarity"] for score in exact(said)] == [1, 1, 0]
