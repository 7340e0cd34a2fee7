"""Sentences: disjoint splits, a pure function of the config, errors of lines, the grammar's form."""

import math

import pytest

from data.drawn import sentences
from data.drawn.sentences import Line, Sentences
from stepstack.config import ConfigError

CFG = Sentences(train=300, engine=100, select=20, test=50)


def test_splits_are_disjoint_and_repeatable():
    splits = {name: sentences.lines(CFG, name) for name in ("train", "select", "test")}
    assert {name: len(lines) for name, lines in splits.items()} == {"train": 400, "select": 20, "test": 50}
    texts = [line.text for lines in splits.values() for line in lines]
    assert len(set(texts)) == len(texts)
    assert sentences.lines(CFG, "test") == splits["test"]
    assert {line.speaker for line in splits["train"]} == set(sentences.SPEAKERS)
    assert {line.tag for line in splits["train"]} == set(sentences.SPEEDS)
    for line in splits["train"]:
        sentences.check_line(line)


def test_there_are_only_so_many():
    count = math.prod(len(slot) for slot in sentences.SLOTS)
    with pytest.raises(ConfigError, match="ask for fewer"):
        sentences.lines(Sentences(select=count), "select")


def test_swapped_changes_all_but_the_text():
    line = sentences.lines(CFG, "test")[0]
    other = sentences.swapped(line)
    assert other.text == line.text
    assert other.speaker != line.speaker
    assert other.tag != line.tag
    sentences.check_line(other)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (Line(" ", "heart", ""), "empty"),
        (Line("open the pod bay", "heart", ""), "no word 'pod'"),
        (Line("open the box", "hal", ""), "no speaker 'hal'"),
        (Line("open the box", "heart", "(loud1)"), r"no tag '\(loud1\)'"),
    ],
)
def test_bad_lines(line, words):
    with pytest.raises(ConfigError, match=words):
        sentences.check_line(line)


def test_grammar():
    assert sentences.jsgf().count("(") == len(sentences.SLOTS)
    assert "near the | under the" in sentences.jsgf()
