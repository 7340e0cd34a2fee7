"""One reader of text files: any text that JSON can hold comes back, and what cannot be read is named by its place."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.media import texts

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def content(rows: list, suffix: str, *, ascii_only: bool, bom: bool, ending: str) -> bytes:
    if suffix == ".json":
        text = json.dumps(rows, ensure_ascii=ascii_only)
    else:
        text = "".join(json.dumps(row, ensure_ascii=ascii_only) + ending for row in rows)
    return codecs.BOM_UTF8 * bom + text.encode()


@given(
    st.lists(VALUES, max_size=4),
    st.sampled_from([".json", ".jsonl"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
@settings(deadline=None)
def test_rows_come_back_whatever_they_hold(rows, suffix, ascii_only, bom, ending):
    written = content(rows, suffix, ascii_only=ascii_only, bom=bom, ending=ending)
    read = texts.json_rows(Path(f"a{suffix}"), written)
    assert [row for _, row in read] == rows
    step = 2 if ending == "\n\n" else 1
    named = [f"a.jsonl line {1 + step * k}" if suffix == ".jsonl" else f"a.json row {k + 1}" for k in range(len(rows))]
    assert [place for place, _ in read] == named


DIGITS = sys.get_int_max_str_digits() + 700
FAULTS = {
    "half of a pair": (r'{"x": "a\ud83d"}', r"holds '\\ud83d' alone, half of a character"),
    "half in a key": (r'{"\udc00": 1}', r"holds '\\udc00' alone"),
    "pair in the wrong order": (r'["\ude00\ud83d"]', "half of a character"),
    "many digits": (f'{{"x": {"9" * DIGITS}}}', "holds a whole number with too many digits: write it as text"),
    "deep": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "no JSON": ('{"x": ]', "column 7: not JSON"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_row_that_cannot_be_used_is_named(fault, suffix):
    text, message = FAULTS[fault]
    whole = f"[\n1,\n{text}]" if suffix == ".json" else f"1\n{text}\n"
    with pytest.raises(DataError, match=message) as caught:
        texts.json_rows(Path(f"a{suffix}"), whole.encode())
    place = str(caught.value)
    if suffix == ".jsonl":
        assert place.startswith("a.jsonl line 2")
    else:
        assert place.startswith("a.json line 3" if fault == "no JSON" else "a.json row 2")
    assert "\n" not in place


def test_a_whole_pair_is_no_half():
    assert texts.json_rows(Path("a.jsonl"), rb'"\ud83d\ude00"') == [("a.jsonl line 1", "\U0001f600")]
    assert texts.json_rows(Path("a.jsonl"), rb'"\\ud83d"') == [("a.jsonl line 1", "\\ud83d")]


@given(TEXT.filter(lambda text: any(ord(letter) > 127 for letter in text)), st.sampled_from(["utf-16", "latin-1"]))
def test_another_encoding_is_named(text, encoding):
    try:
        written = json.dumps([text], ensure_ascii=False).encode(encoding)
        written.decode("utf-8-sig")
    except UnicodeEncodeError:
        return  # the encoding has no such letters
    except UnicodeDecodeError:
        with pytest.raises(DataError, match=r"a\.json: not UTF-8 at byte \d+; convert it"):
            texts.json_rows(Path("a.json"), written)


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("train.parquet", b"PAR1\x15\xff", r"train\.parquet is a table, not JSON: give its folder, hf:data/sub$"),
        ("train.CSV", b"a,b\n1,2\n", r"train\.CSV is a table, not JSON: give its folder, hf:data/sub$"),
        ("train.json", b"\x1f\x8b\x08", "is packed by gzip: unpack it"),
        ("train.jsonl", b"PK\x03\x04", "is packed by zip: unpack it"),
        ("train.json", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_what_is_no_json_says_what_to_give(name, written, message):
    with pytest.raises(DataError, match=message):
        texts.json_rows(Path("data/sub") / name, written)


def test_lines_are_those_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + "one\r\n\r\n  \ntwo\u2028half\nlast".encode())
    assert list(texts.numbered_lines(tmp_path / "a.txt")) == [(1, "one"), (4, "two\u2028half"), (5, "last")]
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        texts.read_text(tmp_path / "none.txt")
