"""Golds that an algebraic grader can match by their exact spelling at most, found before anybody trains on them."""

from __future__ import annotations

import re

from stepstack.scoring.maths.boxed import unbox
from stepstack.scoring.maths.notation import unit
from stepstack.scoring.maths.spelling import as_tex

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_ESCAPED = re.compile(r"\\[\\{}]")
_ABSENT = re.compile(
    r"(?:none|null|nan|n\s*/\s*a|not (?:available|applicable|given)|no answer|unknown|proof|tbd|\W*)\.?", re.I
)
_COMMAND = re.compile(r"\\(?:begin|end)\s*\{\w*\*?\}|\\(?:text\w*|mathrm|mathbf|mbox)\s*(?=\{)|\\[A-Za-z]+")
_PROSE = re.compile(r"(?:[A-Za-z]{2,}[,;:.]?\s+){2}[A-Za-z]{2,}")  # three words in a row


def why_unreadable(gold: str) -> str | None:
    """Reason why no algebra can compare a gold, as a phrase; None where it is mathematics, or a word or two.

    Such golds are two boxes (the last alone would count), unbalanced braces, a sentence, and words for no answer.
    """
    if len(_BOX.findall(gold)) > 1 and _outside_boxes(gold):
        return "two boxes, of which the last alone counts"
    bare = as_tex(unbox(gold))
    if not _balanced(bare):
        return "unbalanced braces"
    words = re.sub(r"[{}]", "", _COMMAND.sub(" ", bare)).strip()
    if _ABSENT.fullmatch(bare) and not re.search(r"\\[A-Za-z]", bare):
        return "no answer"
    return "a sentence" if _PROSE.search(words) and unit(bare) is None else None


def _outside_boxes(gold: str) -> bool:
    r"""Whether boxes stand beside each other; ``\boxed{\boxed{3}}`` is one answer."""
    return not re.fullmatch(r"\s*(?:\\(?:boxed|fbox)\s*\{\s*)+[^{}]*[}\s]*", gold)


def _balanced(text: str) -> bool:
    depth = 0
    for brace in re.findall(r"[{}]", _ESCAPED.sub("", text)):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
