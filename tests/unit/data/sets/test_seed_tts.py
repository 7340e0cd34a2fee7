"""The meta file of seed-tts-eval: its rows, and every bad row by its place."""

from __future__ import annotations

import pytest

from data.errors import DataError
from data.sets import seed_tts


@pytest.fixture
def folder(tmp_path):
    for name in ("prompt.wav", "true.wav"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_rows(folder):
    meta = folder / "meta.lst"
    meta.write_text("a|he said|prompt.wav|open the box|true.wav\n\nb|he said|prompt.wav|close it\n")
    first, second = seed_tts.problems(meta)
    assert (first.text, first.gold, first.meta["prompt_text"]) == ("open the box", "a", "he said")
    assert (first.index, second.index, first.meta["source"]) == (0, 1, str(folder / "prompt.wav"))
    [recorded] = seed_tts.problems(meta, recorded=True)
    assert (recorded.gold, recorded.meta["source"]) == ("a", str(folder / "true.wav"))
    assert recorded.meta["sha256"] != first.meta["sha256"]


def test_bad_rows_are_all_named(folder):
    meta = folder / "meta.lst"
    rows = ["a|x|prompt.wav|y", "a|x|prompt.wav|y", "b|x|none.wav|y", "c|x|prompt.wav|", "d|x|prompt.wav"]
    meta.write_text("\n".join(rows))
    with pytest.raises(DataError) as raised:
        seed_tts.read(meta)
    said = str(raised.value).splitlines()[1:]
    assert [line.split("meta.lst:")[1][:1] for line in said] == ["2", "3", "4"]
    assert "stands there twice" in said[0]
    assert "none.wav does not exist" in said[1]
    assert said[2].endswith("meta.lst:5)")


def test_nothing_to_read(folder):
    with pytest.raises(DataError, match=r"get github\.com/BytedanceSpeech/seed-tts-eval"):
        seed_tts.read(folder / "none.lst")
    (folder / "meta.lst").write_text("\n")
    with pytest.raises(DataError, match="has no lines"):
        seed_tts.read(folder / "meta.lst")
    (folder / "meta.lst").write_text("a|x|prompt.wav|y\n")
    with pytest.raises(DataError, match="nothing to resynthesise"):
        seed_tts.problems(folder / "meta.lst", recorded=True)
