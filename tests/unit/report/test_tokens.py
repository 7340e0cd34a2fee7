"""Rows of tokens in a terminal: what is learned is marked, with colours and without."""

from __future__ import annotations

import io

from rich.console import Console

from stepstack.report.tokens import ShownRow, print_rows, readable
from tests import tools

ROW = ShownRow("line [1]", (("user: ", False), ("hi", True), ("<end>", True), ("[x]", False)))


def printed(**options) -> str:
    out = io.StringIO()
    assert print_rows([ROW], Console(file=out, width=80, **options)) == 1
    return out.getvalue()


def test_without_colours_what_is_learned_stands_in_quotes():
    assert printed(color_system=None).splitlines() == ["line [1]: 4 tokens, 2 learned", "user: ‹hi<end>›[x]"]


def test_with_colours_each_token_is_seen():
    text = printed(force_terminal=True, color_system="standard")
    assert "\x1b[1;7;32mhi" in text
    assert "\x1b[1;32m<end>" in text


def test_a_character_of_several_tokens_is_one_text():
    tokenizer = tools.bpe_tokenizer()
    ids = tokenizer("a🙂b")["input_ids"]
    assert len(ids) > 3
    shown = list(readable(tokenizer.decode, ids, [False, *[True] * (len(ids) - 1)]))
    assert shown == [("a", False), ("🙂", True), ("b", True)]
