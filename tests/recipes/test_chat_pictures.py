"""Recipe chat on conversations that show pictures: a user's rows, a Qwen2.5-VL, both stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from recipes.chat.data import load_pairs, load_rows
from recipes.chat.model import load_encoder
from recipes.protocol import load_config
from stepstack.cli import main as cli
from stepstack.models.lm import tiny
from tests import chats

COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with a user's model, pictures, conversations and pairs."""
    folder = tmp_path_factory.mktemp("own")
    tokenizer = tiny.tokenizer(special=(*tiny.CHAT, *tiny.VISION))
    tokenizer.chat_template = chats.template("qwen2_5_vl")
    lm = tiny.qwen2_5_vl(tokenizer, hidden=48, layers=2, intermediate=64, tower=32, seed=0, theta=1e4, max_length=2048)
    for part in (lm, tokenizer, tiny.image_processor()):
        part.save_pretrained(folder / "model")
    rows, pairs = [], []
    for number in range(12):
        colour = COLOURS[number % 4]
        Image.new("RGB", (56, 28 * (1 + number % 2)), colour).save(folder / f"{number}.png")
        asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"colour {number}?"}]}
        right, wrong = ([{"role": "assistant", "content": text}] for text in (colour, "grey"))
        rows.append({"messages": [asked, *right], "images": [f"{number}.png"]})
        pairs.append({"prompt": [asked], "chosen": right, "rejected": wrong, "images": [f"{number}.png"]})
    rows.append({"messages": chats.turns("say it", "it")})  # without a picture
    for name, lines in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def settings(own: Path, stage: str, *more: str) -> list[str]:
    words = [f"data={{type: rows, sft: [{own}/rows.jsonl], dpo: [{own}/pairs.jsonl], select: 3, test: 2}}"]
    words += [f"model={{type: vision, path: {own}/model}}", "chat={max_tokens: 300}", "evals=[test]"]
    other = {"sft": "dpo", "dpo": "sft"}[stage]
    words += [f"{other}=null", f"{stage}.steps=3", f"{stage}.batch=4", "layout.max_tokens=1200", "trackers=[]"]
    return [*words, "answers.max_tokens=4", f"dir={own}", *more]


def train(*overrides: str) -> None:
    assert cli.main(["train", "chat-tiny", *overrides]) == 0


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_picture_has_its_tokens_and_they_do_not_learn(own):
    cfg = load_config("chat-tiny", settings(own, "sft"))
    encoder = load_encoder(cfg)
    pad = encoder.processor.image_token
    for data in (load_rows(cfg, encoder).train, load_pairs(cfg, encoder).train):
        for one in data.rows:
            for row in (one.chosen, one.rejected) if hasattr(one, "chosen") else (one,):
                wide = sum(encoder.processor.patcher.tokens(picture.image().size) for picture in row.pictures)
                assert row.prompt_ids.count(pad) == wide
                assert pad not in row.ids


def test_both_stages_train_and_what_is_exported_has_eyes(own):
    train(*settings(own, "sft", "name=sft"))
    assert metrics(own / "sft")[-1]["eval/loss"] < metrics(own / "sft")[0]["eval/loss"]
    model = f"model={{type: vision, path: {own}/sft/model, freeze: tower}}"
    rows = []
    for name, layout in (("padded", "pack=false"), ("packed", "pack=true"), ("shared", "share_prompts=true")):
        train(*settings(own, "dpo", f"name={name}", model, f"layout.{layout}", "evals=[]"))
        rows.append(metrics(own / name)[1:])
        assert abs(rows[-1][0]["policy/margin"]) < 1e-5
    for other in rows[1:]:
        for a, b in zip(rows[0], other, strict=True):
            for key in ("loss", "policy/grad_norm", "policy/chosen_logp"):
                assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-4)
    before, after = (AutoModelForImageTextToText.from_pretrained(own / n / "model") for n in ("sft", "shared"))
    moved = {name for name, p in after.named_parameters() if not p.equal(before.get_parameter(name))}
    assert moved
    assert not any("visual" in name for name in moved)
    assert (own / "shared" / "model" / "preprocessor_config.json").is_file()


def test_a_picture_too_few_is_named_by_file_and_line(own, tmp_path, capsys):
    lines = (own / "rows.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    row["images"] = []
    (tmp_path / "bad.jsonl").write_text("\n".join([lines[0], json.dumps(row)]))
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes((own / f"{number}.png").read_bytes())
    code = cli.main(["train", "chat-tiny", *settings(own, "sft", f"data.sft=[{tmp_path}/bad.jsonl]", "name=bad")])
    assert code == 2
    assert "bad.jsonl line 2: 1 placeholders, but 0 pictures" in capsys.readouterr().err
