r"""Verdicts on mathematical answers: four graders behind one ``grade``.

``math_verify``  symbolic and numeric equality by math-verify, with numbers by ``scoring.maths.symbolic``; the default
                 of our recipes.
``orz_legacy``   Open-Reasoner-Zero's training grader (``scoring.maths.orz_legacy``): stricter, for parity runs.
``exact``        equality of strings that TeX sets alike (spaces, ``\dfrac12``, 1,000, ``½``).
``choice``       one capital letter A-J: ``(D)``, ``\text{D}``, ``D.``; never given to algebra. ``d`` is wrong: the
                 prompt offers capitals, ORZ's grader says so too, and a lower-case letter is more often a variable.

Two texts that differ in a base, a unit, or as a point from a list are different to all (``scoring.maths.notation``).
Not known, and wrong where the spelling differs: units to be converted (1 km and 1000 m), words for numbers, a decimal
comma, ``0.333...``, and ``2e-1`` as 0.2, which is 2e - 1.

A grader sees the extracted answer (``extract_orz``), never a response: math-verify would join two boxes into a set.
The two algebraic graders may hang or exhaust memory on hostile input, so untrusted answers go through
``pool.GraderPool``. A verdict depends on the grader (1/3 and 0.333333 are equal to math_verify only): log its name
with every result.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from stepstack.scoring.maths import orz_legacy, symbolic
from stepstack.scoring.maths.boxed import extract_orz, unbox
from stepstack.scoring.maths.notation import contradict
from stepstack.scoring.maths.spelling import spelling, undecorated

__all__ = ["GRADERS", "MAX_ANSWER", "Grade", "extract_orz", "find", "grade", "grade_without_algebra", "unbox"]

GRADERS = ("math_verify", "orz_legacy", "exact", "choice")
MAX_ANSWER = 1024  # characters of an answer or gold that algebra is tried on

Function = Callable[[str, str], bool]

_CHOICE = re.compile(r"\(?\s*([A-J])\s*\)?\s*\.?")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|boldsymbol)\s*\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Grade:
    """Verdict on one answer. ``extracted`` is the answer in the compared form; ``seconds`` is the grader's own time.

    ``reason``: "equal", "different", "no answer", "too long", "timeout", or "error: ..." with the exception's text.
    """

    correct: bool
    extracted: str | None
    reason: str
    seconds: float = 0.0


def grade(grader: str, gold: str, answer: str | None) -> Grade:
    """Grade one extracted answer in this process, without a time limit.

    ``grader`` is one of GRADERS or ``package.module:function`` with ``function(gold, answer) -> bool``. Both texts may
    still be boxed. Raises ValueError for an unknown grader, an empty gold and a gold that is no choice, and whatever
    the grader raises.
    """
    verdict = grade_without_algebra(grader, gold, answer)
    if verdict is not None or answer is None:
        return verdict or _no_answer()
    start = time.perf_counter()
    correct = bool(find(grader)(unbox(gold), unbox(answer)))
    return Grade(correct, unbox(answer), "equal" if correct else "different", time.perf_counter() - start)


def grade_without_algebra(grader: str, gold: str, answer: str | None) -> Grade | None:
    """Verdict where no algebra is needed, in bounded time; None where the function ``find(grader)`` has to decide."""
    expected = unbox(gold)
    if not expected:
        raise ValueError("empty gold: it would call every empty answer correct; drop the problem when preparing data")
    if grader == "choice" and read_choice(expected) is None:
        raise ValueError(f"gold {gold!r} is not one letter A-J: grade this problem with another grader than 'choice'")
    if grader not in GRADERS and ":" not in grader:
        raise ValueError(f"no grader {grader!r}: there are {', '.join(GRADERS)} and package.module:function")
    bare = None if answer is None else unbox(answer)
    if not bare:
        return _no_answer()
    if grader == "choice":
        return _verdict(read_choice(bare) == read_choice(expected), bare)
    if len(bare) > MAX_ANSWER or len(expected) > MAX_ANSWER:
        return Grade(True, bare, "equal") if bare == expected else Grade(False, bare[:MAX_ANSWER], "too long")
    if ":" in grader:
        return None
    same = _same_spelling(grader, expected, bare)
    return _verdict(same, bare) if same or grader == "exact" or contradict(expected, bare) else None


def find(grader: str) -> Function:
    """Function of a grader that needs algebra, or of a dotted name."""
    if grader == "math_verify":
        return symbolic.equal
    if grader == "orz_legacy":
        return orz_legacy.equal
    module, colon, name = grader.partition(":")
    if not colon:
        raise ValueError(f"grader {grader!r} has no function of its own: call grade()")
    return getattr(importlib.import_module(module), name)


def read_choice(text: str) -> str | None:
    """Capital letter of a multiple-choice answer; None when it is anything else."""
    text = text.strip().strip("$").strip()
    while (inner := _WRAPPER.fullmatch(text)) is not None:
        text = inner[1].strip()
    letter = _CHOICE.fullmatch(_WRAPPER.sub(r"\1", text))
    return None if letter is None else letter[1]


def _same_spelling(grader: str, gold: str, answer: str) -> bool:
    """Whether two texts are spelled alike. ``2,100`` has two readings, and either is right."""
    if grader != "orz_legacy":  # ORZ takes no full stop away
        gold, answer = undecorated(gold), undecorated(answer)
    if spelling(gold) == spelling(answer) != "":
        return True
    return "," in gold and "," in answer and spelling(gold, thousands=False) == spelling(answer, thousands=False)


def _verdict(correct: bool, extracted: str) -> Grade:
    return Grade(correct, extracted, "equal" if correct else "different")


def _no_answer() -> Grade:
    return Grade(False, None, "no answer")
