"""Pairs of spoken answers for votes: what is paired, what a listener is asked, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.media import audio
from data.sets import spoken_pairs
from stepstack.harness import answers
from stepstack.harness.answers import Sample


def sample(index: int, file: Path, **changes) -> Sample:
    tag = "(fast1)" if index % 2 else ""
    row = Sample(
        index=index,
        sample=0,
        problem=f"open box {index}",
        gold=f"utt-{index}",
        prompt=" ".join(filter(None, ("heart", tag, f"open box {index}"))),
        text="",
        media=[str(file)],
        ids=None,
        tokens=5,
        finish="stop",
        answer="open box",
        score=1.0,
    )
    return replace(row, **changes)


def evaluation(folder: Path, rate: int = 16000, count: int = 3, **changes) -> Path:
    rows = []
    for index in range(count):
        file = folder / f"{index}.wav"
        audio.write_wav(file, np.full(rate // 10, 0.1, np.float32), rate)
        rows.append(sample(index, file, **changes))
    answers.write(folder / "samples.jsonl", rows)
    return folder


def test_pairs_of_one_task(tmp_path):
    a, b = (evaluation(tmp_path / name) for name in "ab")
    found = spoken_pairs.pairs(a, b)
    assert [(p.name, p.group, p.prompt, p.given) for p in found] == [
        ("0", "no tag", "open box 0", None),
        ("1", "(fast1)", "(fast1) open box 1", None),
        ("2", "no tag", "open box 2", None),
    ]
    assert (found[1].a, found[1].b) == (a / "1.wav", b / "1.wav")
    assert list(spoken_pairs.questions(found)) == ["naturalness", "words", "instruction"]
    assert list(spoken_pairs.questions(found[:1])) == ["naturalness", "words"]


def test_voices_are_heard_beside_them(tmp_path):
    a, b = (evaluation(tmp_path / name) for name in "ab")
    audio.write_wav(tmp_path / "voice.wav", np.full(1600, 0.1, np.float32), 16000)
    meta = tmp_path / "meta.lst"
    meta.write_text("".join(f"utt-{k}|hello|voice.wav|open box {k}\n" for k in range(3)))
    found = spoken_pairs.pairs(a, b, meta)
    assert {pair.given for pair in found} == {tmp_path / "voice.wav"}
    assert "voice" in spoken_pairs.questions(found)
    meta.write_text("utt-0|hello|voice.wav|open box 0\n")
    with pytest.raises(DataError, match="has no utterance utt-1"):
        spoken_pairs.pairs(a, b, meta)


def test_what_is_refused(tmp_path):
    a, short = evaluation(tmp_path / "a"), evaluation(tmp_path / "short", count=2)
    with pytest.raises(DataError, match=r"lacks rows \[2\]"):
        spoken_pairs.pairs(a, short)
    assert len(spoken_pairs.pairs(a, short, common=True)) == 2
    with pytest.raises(DataError, match="were asked other texts in rows"):
        spoken_pairs.pairs(a, evaluation(tmp_path / "other", prompt="another"))
    with pytest.raises(DataError, match=r"\[8000, 16000\] samples a second"):
        spoken_pairs.pairs(a, evaluation(tmp_path / "slow", rate=8000))
    with pytest.raises(DataError, match="has no sounds"):
        spoken_pairs.pairs(a, evaluation(tmp_path / "silent", media=[]))
    with pytest.raises(DataError, match="give the folder of an evaluation"):
        spoken_pairs.pairs(a, tmp_path / "none")
    (short / "1.wav").unlink()
    with pytest.raises(DataError, match="1 sounds are gone"):
        spoken_pairs.pairs(a, short, common=True)
