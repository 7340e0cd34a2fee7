"""Drawn dialogues: right answers, held-out dialogues, as much label noise as asked."""

from __future__ import annotations

import pytest

from data.drawn.dialogues import KINDS, Dialogue, Dialogues, demonstrations, dialogues, preferences
from data.drawn.splits import split_of
from stepstack.config import ConfigError

CFG = Dialogues(train=300, pairs=200, select=60, test=60)


def total_of(dialogue: Dialogue) -> int:
    """The sum of all terms that the user names."""
    asked = [text for text in dialogue.texts[::2] if not text.startswith(("So", "Sure"))]
    return sum(eval(text) for text in asked)  # texts of this test alone


@pytest.mark.parametrize("split", ["train", "select", "test"])
def test_right_answers(split):
    found = dialogues(CFG, split)
    assert {dialogue.kind for dialogue in found} == set(KINDS)
    assert len({dialogue.show() for dialogue in found}) == len(found)
    for dialogue in found:
        said, _, verdict = dialogue.right.partition(", ")
        assert int(said) == total_of(dialogue)
        assert split_of("|".join(dialogue.texts[::2])) == split
        assert dialogue.wrong.partition(", ")[0] != said
        if dialogue.kind in ("firm", "agree"):
            claimed = dialogue.texts[-1].removeprefix("So ").removesuffix("?")
            assert verdict == ("yes" if claimed == said else "no")
            assert (claimed == said) == (dialogue.kind == "agree")


def test_label_noise_is_about_wrong_claims_alone():
    found = dialogues(CFG, "train")
    shown = [messages[-1]["content"] for messages in demonstrations(CFG)]
    wrong = [dialogue.kind for dialogue, answer in zip(found, shown, strict=True) if answer != dialogue.right]
    assert set(wrong) == {"firm"}
    firm = sum(dialogue.kind == "firm" for dialogue in found)
    assert 0.55 < len(wrong) / firm < 0.85
    assert demonstrations(CFG) == demonstrations(CFG)


def test_messages_alternate_and_end_with_the_answer():
    dialogue = dialogues(CFG, "test")[0]
    messages = dialogue.messages("x")
    assert [message["role"] for message in messages[:2]] == ["user", "assistant"]
    assert messages[-1] == {"role": "assistant", "content": "x"}
    assert dialogue.messages() == messages[:-1]


def test_preferences_put_the_right_answer_first():
    pairs = preferences(CFG, "train")
    assert len(pairs) == 200
    assert all(better == dialogue.right and worse == dialogue.wrong for dialogue, better, worse in pairs)
    assert len(preferences(CFG, "select")) == 60


def test_more_than_there_are_is_refused():
    with pytest.raises(ConfigError, match="ask for fewer"):
        dialogues(Dialogues(turns=(1, 1), largest_term=1, largest_sum=5, test=5000), "test")
