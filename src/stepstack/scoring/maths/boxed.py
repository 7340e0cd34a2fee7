r"""Extraction of the answer of a response from ``<answer>`` blocks and ``\boxed{...}``. All work is linear in the text.

There are two rules, both of Open-Reasoner-Zero (its prompt asks for an answer "inside <answer> </answer> tags" and in a
"\boxed{} tag"):

* the default one takes the last ``<answer>...</answer>`` block that has a balanced box, and in it the last one;
* ``parity=True`` takes the match of ORZ's own regular expression. The two differ only on malformed text: ORZ lets a
  block begin at the first ``<answer>``, joins all blocks into one span, knows no ``\fbox``, no space before the brace,
  counts escaped braces, and gives up when the last box is unbalanced although an earlier one is not.

``\boxed 3`` (no braces) is no box under either rule: it is legal TeX, but it boxes only the digit of ``\boxed 37``.
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<answer>", "</answer>"
MAX_BLOCK = 1 << 16  # characters before </answer> that are searched for a box

# A box's opening brace, a TeX line break before a brace, an escaped brace (not structure), a brace.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\\\(?=[{}])|\\[{}]|(?P<brace>[{}])")

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d+(?:,\d{3})*(?:\.\d+)?")


def last_box(text: str) -> str | None:
    r"""Content of the balanced ``\boxed{}`` or ``\fbox{}`` that opens last, stripped; None when there is none.

    The last one to open counts, so ``\boxed{\boxed{3}}`` is ``3``.
    """
    stack: list[re.Match[str] | None] = []
    best: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        if match["box"]:
            stack.append(match)
        elif match["brace"] == "{":
            stack.append(None)
        elif match["brace"] == "}" and stack:
            opener = stack.pop()
            if opener is not None and (best is None or opener.end() > best[0]):
                best = opener.end(), match.start()
    return None if best is None else text[best[0] : best[1]].strip()


def unbox(text: str) -> str:
    """Content of the last box where there is one, otherwise the text itself; stripped."""
    box = last_box(text)
    return text.strip() if box is None else box


def last_number(text: str) -> str | None:
    """The last number of a text, without commas between its digits; None when there is none."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def extract_orz(response: str, *, parity: bool = False) -> str | None:
    r"""Answer of a response that begins right after the prompt's ``<think>``; None when there is none.

    No box, an unbalanced box, a missing tag and a box that is only outside answer blocks are all None. An empty
    ``\boxed{}`` is the empty string, which every grader calls wrong.
    """
    if parity:
        return _orz_span(response)
    end = response.rfind(CLOSE)
    while end >= 0:
        previous = response.rfind(CLOSE, 0, end)
        start = response.rfind(OPEN, max(previous, 0), end)
        if start >= 0:
            box = last_box(response[max(start + len(OPEN), end - MAX_BLOCK) : end])
            if box is not None:
                return box
        end = previous
    return None


def _orz_span(response: str) -> str | None:
    """Answer by ORZ's rule: one greedy span over all blocks, then its last box by plain brace counting."""
    box = "\\boxed{"
    start = response.find(OPEN)
    end = response.rfind(CLOSE)
    first = response.find(box, start + len(OPEN), end) if start >= 0 and end >= 0 else -1
    last = response.rfind("}", first + len(box), end) if first >= 0 else -1
    if last < 0:
        return None
    span = response[first : last + 1]
    span = span[span.rfind("\\boxed") :]
    depth = 0
    for match in re.finditer(r"[{}]", span):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return span[len(box) : match.start()] if span.startswith(box) else None
    return None
