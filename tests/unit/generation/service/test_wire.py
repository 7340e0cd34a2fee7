"""Messages come back as they were sent, and what is none is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.generation.service.wire import MAGIC, WireError, WireMessage, frames, group_arrays, group_of, message
from stepstack.generation.types import Group
from tests import tools

PROMPT = tools.prompt(3, [5, 6])
GROUP = Group(PROMPT, tuple(tools.rollout(PROMPT, sample, ids) for sample, ids in enumerate(([1, 2], [], [7]))))


def test_a_group_comes_back_bit_for_bit():
    facts, arrays = group_arrays(GROUP)
    got = message(frames(WireMessage("group", {"step": 1, **facts}, arrays)))
    assert (got.kind, got.facts["step"]) == ("group", 1)
    assert group_of(PROMPT, got.facts, got.arrays) == GROUP


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(width=64, allow_nan=False)), st.text(), st.integers(-(2**60), 2**60))
def test_numbers_and_texts_of_every_kind(numbers, text, whole):
    sent = WireMessage("x", {"text": text, "whole": whole}, {"numbers": np.array(numbers, np.float64)})
    got = message(frames(sent))
    assert (got.facts, got.arrays["numbers"].tolist()) == (sent.facts, numbers)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 4), st.integers(0, 2000), st.integers(1, 255))
def test_a_torn_or_changed_message_is_refused_or_another_message(part, place, change):
    facts, arrays = group_arrays(GROUP)
    sent = frames(WireMessage("group", facts, arrays))
    content = bytearray(sent[part])
    if content:
        content[place % len(content)] ^= change
        sent[part] = bytes(content)
    try:
        got = message(sent)
        group_of(PROMPT, got.facts, got.arrays)
    except WireError:
        pass


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"GET / HTTP/1.1"], "no message of stepstack"),
        ([b"x", b"y"], "no message of stepstack"),
        ([MAGIC + b"\x09", b"{}"], "of protocol 9, this is 1: start both ends"),
        ([MAGIC + b"\x01", b"{"], "torn"),
        ([MAGIC + b"\x01", b"[]"], "torn"),
        ([MAGIC + b"\x01", json.dumps({"kind": "x", "facts": {}, "arrays": []}).encode(), b"1"], "0 arrays, 1 came"),
        (
            [MAGIC + b"\x01", json.dumps({"kind": "x", "facts": {}, "arrays": [["a", "O", [1]]]}).encode(), b"1" * 8],
            "of type O",
        ),
    ],
)
def test_foreign_messages_are_refused(parts, why):
    with pytest.raises(WireError, match=why):
        message(parts)


def test_a_group_whose_parts_do_not_fit():
    facts, arrays = group_arrays(GROUP)
    with pytest.raises(WireError, match="problem 3 has 2 tokens for 3"):
        group_of(PROMPT, facts, arrays | {"ids": arrays["ids"][:2]})
    with pytest.raises(WireError, match="problem 3 is torn"):
        group_of(PROMPT, facts | {"text": ["a"]}, arrays)
