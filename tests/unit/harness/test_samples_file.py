"""samples.jsonl as it was written, or an error that names the line."""

import json

import pytest

from stepstack.harness import answers
from stepstack.harness.answers import Sample
from stepstack.report.jsonl import JsonError


@pytest.fixture
def file(tmp_path):
    samples = [
        Sample(
            index=index,
            sample=sample,
            problem="2+2",
            gold="4",
            prompt="2+2=",
            text="4",
            media=[],
            ids=None,
            tokens=1,
            finish="stop",
            answer="4",
            score=1.0,
        )
        for index in range(3)
        for sample in range(2)
    ]
    answers.write(tmp_path / "samples.jsonl", samples)
    assert answers.read(tmp_path / "samples.jsonl", 6) == samples
    return tmp_path / "samples.jsonl"


def test_a_torn_line_is_named(file):
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(JsonError, match=r"samples\.jsonl:6: the file ends in the middle of a line"):
        answers.read(file)


def test_a_line_that_stands_twice_is_named(file):
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines, lines[3]]))
    with pytest.raises(JsonError, match=r"samples\.jsonl:7: sample 1 of problem 1 stands in line 4 already"):
        answers.read(file)


def test_a_line_that_was_lost_is_missed(file):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(JsonError, match=r"holds 5 samples, its result speaks of 6"):
        answers.read(file, 6)


@pytest.mark.parametrize("change", [{"more": 1}, {"text": ...}])
def test_a_line_with_other_keys_is_named(file, change):
    first, *rest = file.read_text().splitlines(keepends=True)
    row = {k: v for k, v in (json.loads(first) | change).items() if v is not ...}
    file.write_text("".join([json.dumps(row) + "\n", *rest]))
    with pytest.raises(JsonError, match=r"samples\.jsonl:1: no sample \(.*(more|text)"):
        answers.read(file)
