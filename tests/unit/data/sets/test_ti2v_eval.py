"""Step-Video-TI2V-Eval as rows and as pairs of clips: what is missing or would mislead is named."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.media import frames
from data.sets import ti2v_eval
from data.sets.ti2v_eval import FirstFrameJudge
from stepstack.report import jsonl

NAMES = ("ti2v_eval_real/H/011", "ti2v_eval_real/V/002", "ti2v_eval_ani/S/032")


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "ti2v_eval"
    for i, name in enumerate(NAMES):
        file = place / f"{name}.txt"
        file.parent.mkdir(parents=True)
        file.write_text(f" 提示 {i}\n", encoding="utf-8")
        Image.new("RGB", (32, 32), (50 * i, 80, 120)).save(file.with_suffix(".png"))
    return place


def made(place: Path, shades: dict[str, int], ending: str = ".mp4") -> Path:
    """Clips of one shade each, in the published layout."""
    for name, shade in shades.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        clip = np.full((3, 32, 32, 3), shade, np.uint8)
        frames.write_mp4(place / f"{name}{ending}", clip, fps=6)
    return place


def test_items_have_domain_shape_and_prompt(folder):
    result = ti2v_eval.read(folder)
    assert [(item.name, item.domain, item.shape, item.prompt) for item in result] == [
        (NAMES[0], "real", "H", "提示 0"),
        (NAMES[1], "real", "V", "提示 1"),
        (NAMES[2], "anime", "S", "提示 2"),
    ]
    rows = ti2v_eval.problems(folder, "all")
    assert [(row.index, row.text, row.gold, row.meta["motion"]) for row in rows] == [
        (i, f"提示 {i}", name, 5.0) for i, name in enumerate(NAMES)
    ]
    before = rows[0].meta["sha256"]
    Image.new("RGB", (32, 32), "white").save(folder / f"{NAMES[0]}.png")
    assert ti2v_eval.problems(folder, "all")[0].meta["sha256"] != before  # another picture is another row


def test_missing_pictures_are_listed_or_left_out(folder):
    (folder / f"{NAMES[1]}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 3 prompts have no picture: {NAMES[1]}\.png\. .*ti2v_eval_partial"):
        ti2v_eval.problems(folder, "all")
    assert [(row.index, row.gold) for row in ti2v_eval.problems(folder, "there")] == [(0, NAMES[0]), (2, NAMES[2])]
    for name in NAMES:
        (folder / f"{name}.png").unlink(missing_ok=True)
    with pytest.raises(DataError, match="has prompts and no picture"):
        ti2v_eval.problems(folder, "there")


def test_a_set_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        ti2v_eval.read(tmp_path)
    (tmp_path / "ti2v_eval_real" / "H").mkdir(parents=True)
    (tmp_path / "ti2v_eval_real" / "H" / "1.txt").write_text(" ")
    with pytest.raises(DataError, match="is empty"):
        ti2v_eval.read(tmp_path)


def test_the_published_set_is_read_whole():
    place = Path(os.environ.get("STEPSTACK_SHARED", "none")) / "data" / "ti2v_eval"
    if not place.is_dir():
        pytest.skip("STEPSTACK_SHARED does not lead to data/ti2v_eval")
    counts = Counter((item.domain, item.shape) for item in ti2v_eval.read(place))
    assert counts == {
        ("real", "H"): 95,
        ("real", "S"): 11,
        ("real", "V"): 72,
        ("anime", "H"): 10,
        ("anime", "S"): 20,
        ("anime", "V"): 90,
    }
    assert len(ti2v_eval.problems(place, "there")) == 6
    with pytest.raises(DataError, match=r"292 of 298 prompts have no picture: .* and 272 more"):
        ti2v_eval.problems(place, "all")


def test_pairs_of_an_evaluation_and_of_another_engines_files(folder, tmp_path):
    other = made(tmp_path / "other", dict.fromkeys(NAMES, 90))
    mine = made(tmp_path / "clips", dict.fromkeys(NAMES, 10))
    rows = [
        {
            "index": i,
            "sample": n,
            "problem": "p",
            "gold": name,
            "prompt": "p",
            "text": "",
            "media": [str(mine / f"{name}.mp4")],
            "ids": None,
            "tokens": 0,
            "answer": None,
            "score": 1.0,
            "finish": "stop" if n == 0 else "error",
        }
        for i, name in enumerate(NAMES)
        for n in range(2)
    ]
    jsonl.write_rows_atomic(tmp_path / "evaluation" / "samples.jsonl", rows)
    result = ti2v_eval.pairs(folder, tmp_path / "evaluation", other)
    assert [(pair.name, pair.group) for pair in result] == [(NAMES[0], "real"), (NAMES[1], "real"), (NAMES[2], "anime")]
    assert (result[0].a, result[0].b) == (mine / f"{NAMES[0]}.mp4", other / f"{NAMES[0]}.mp4")
    assert result[2].given == folder / f"{NAMES[2]}.png"
    (mine / f"{NAMES[0]}.mp4").unlink()
    with pytest.raises(DataError, match="1 clips are gone"):
        ti2v_eval.pairs(folder, tmp_path / "evaluation", other)


def test_pairs_that_do_not_match_are_refused(folder, tmp_path):
    a, b = made(tmp_path / "a", dict.fromkeys(NAMES, 10)), made(tmp_path / "b", {NAMES[0]: 10})
    for one, other in ((a, b), (b, a)):
        with pytest.raises(DataError, match=rf"b lacks 2 clips of .*a: {NAMES[2]}, {NAMES[1]}"):
            ti2v_eval.pairs(folder, one, other)
    assert [pair.name for pair in ti2v_eval.pairs(folder, a, b, common=True)] == [NAMES[0]]
    picture = folder / f"{NAMES[0]}.png"
    picture.rename(tmp_path / "away.png")
    with pytest.raises(DataError, match=rf"lacks 1 pictures of clips that are there: {NAMES[0]}\.png"):
        ti2v_eval.pairs(folder, a, b, common=True)
    (tmp_path / "away.png").rename(picture)
    with pytest.raises(DataError, match="have no clip of the same item"):
        ti2v_eval.pairs(folder, b, made(tmp_path / "d", {NAMES[1]: 10}), common=True)
    (b / f"{NAMES[0]}.mp4").rename(b / f"{NAMES[0]}.gif")
    with pytest.raises(DataError, match=r"files of \.gif, \.mp4, which would tell them apart"):
        ti2v_eval.pairs(folder, a, b, common=True)
    with pytest.raises(DataError, match="has no items ti2v_eval_real/H/999"):
        ti2v_eval.pairs(folder, a, made(tmp_path / "e", {"ti2v_eval_real/H/999": 1}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no clips"):
        ti2v_eval.pairs(folder, a, tmp_path / "empty")


def test_the_measured_judge_prefers_the_clip_that_begins_with_its_picture(folder, tmp_path):
    for name in NAMES:
        Image.new("RGB", (32, 32), (100, 100, 100)).save(folder / f"{name}.png")
    a = made(tmp_path / "a", {NAMES[0]: 100, NAMES[1]: 20, NAMES[2]: 90})
    b = made(tmp_path / "b", {NAMES[0]: 20, NAMES[1]: 100, NAMES[2]: 110})
    message = FirstFrameJudge(tie=4.0).verdicts(ti2v_eval.pairs(folder, a, b))
    assert [(v.pair, v.dimension, v.choice) for v in message] == [
        (NAMES[0], "consistency", "a"),
        (NAMES[1], "consistency", "b"),
        (NAMES[2], "consistency", "tie"),
    ]


def test_clips_may_be_gifs(folder, tmp_path):
    for model, shade in (("a", 0), ("b", 255)):
        for name in NAMES:
            (tmp_path / model / name).parent.mkdir(parents=True, exist_ok=True)
            clip = np.full((3, 32, 32, 3), shade, np.uint8)
            (tmp_path / model / f"{name}.gif").write_bytes(frames.gif(clip))
    pairs = ti2v_eval.pairs(folder, tmp_path / "a", tmp_path / "b")
    assert [v.choice for v in FirstFrameJudge(tie=0.1).verdicts(pairs)] == ["a"] * 3  # all pictures are dark
