"""Sentences: disjoint splits, a pure function of the config, errors of lines, the grammar's form."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.drawn import sentences
from data.drawn.sentences import Line, Sentences, Speaker
from data.drawn.splits import split_of
from recipes.protocol import load_config
from stepstack.config import ConfigError

CFG = Sentences(train=300, engine=100, select=20, test=50)


def test_splits_are_disjoint_and_repeatable():
    splits = {name: sentences.lines(CFG, name) for name in ("train", "select", "test")}
    assert {name: len(lines) for name, lines in splits.items()} == {"train": 400, "select": 20, "test": 50}
    texts = [line.text for lines in splits.values() for line in lines]
    assert len(set(texts)) == len(texts)
    assert sentences.lines(CFG, "test") == splits["test"]
    assert {line.speaker for line in splits["train"]} == set(CFG.names) == {"heart", "deep"}
    assert {line.tag for line in splits["train"]} == set(sentences.SPEEDS)
    for line in splits["train"]:
        sentences.check_line(line, CFG)


def test_there_are_only_so_many():
    count = math.prod(len(slot) for slot in sentences.SLOTS)
    with pytest.raises(ConfigError, match="ask for fewer"):
        sentences.lines(Sentences(select=count), "select")


def test_swapped_changes_all_but_the_text():
    line = sentences.lines(CFG, "test")[0]
    other = sentences.swapped(line, CFG)
    assert other.text == line.text
    assert other.speaker != line.speaker
    assert other.tag != line.tag
    sentences.check_line(other, CFG)


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
        sentences.check_line(line, CFG)


@given(names=st.lists(st.from_regex(r"[a-z]\w{0,7}", fullmatch=True), min_size=1, max_size=5, unique=True))
@settings(max_examples=20, deadline=None)
def test_any_speakers_read_the_same_texts_and_each_is_drawn(names):
    """Who reads decides nothing of what is held out, and a swapped line is read by another one where there is one."""
    cfg = replace(CFG, speakers=tuple(Speaker(name=name) for name in names))
    found = sentences.lines(cfg, "train")
    assert {line.speaker for line in found} == set(names)
    assert all(split_of(line.text) == "train" for line in found)
    for line in found[:20]:
        sentences.check_line(line, cfg)
        assert (sentences.swapped(line, cfg).speaker != line.speaker) == (len(names) > 1)
    assert sentences.lines(cfg, "train") == found


@pytest.mark.parametrize(
    ("speakers", "words"),
    [
        ("[]", r"data.speakers is empty"),
        ("[{name: ann}, {name: bob}, {name: ann}]", r"two have one name \(of ann, bob, ann\)"),
        ("[{name: ann lee}]", r"'ann lee' is no single word"),
        ("[{name: 'ann|bob'}]", r"is no single word"),
        (
            "[{name: ken, voice: 'kokoro:ken'}]",
            r"speakers.0.voice = 'kokoro:ken'.*'hibari', 'kokoro:alpha'.*'flite:slt'",
        ),
        ("[{name: ken, voice: espeak}]", r"speakers.0.voice = 'espeak'.*'hibari', 'kokoro:alpha'.*'flite:slt'"),
        ("[{name: ken, factor: 2.0}]", r"factor = 2.0: .*less than or equal to 1.3"),
        ("[{voice: hibari}]", r"'data.speakers.0.name' is missing"),
    ],
)
def test_speakers_that_there_are_not(speakers, words):
    """Each is one line, with what there is instead."""
    with pytest.raises(ConfigError, match=words) as error:
        load_config("stepaudio-tiny", [f"data.speakers={speakers}"])
    assert "\n" not in str(error.value)


def test_grammar():
    assert sentences.jsgf().count("(") == len(sentences.SLOTS)
    assert "near the | under the" in sentences.jsgf()
