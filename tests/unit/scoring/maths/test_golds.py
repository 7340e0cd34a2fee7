"""Golds that algebra cannot compare are found, and all of MATH500's and AIME's pass."""

import json
import os
from pathlib import Path

import pytest

from stepstack.scoring.maths.golds import why_unreadable

SHARED = Path(os.environ.get("STEPSTACK_SHARED", Path(__file__).parents[4].parent / "shared")) / "data" / "orz"


@pytest.mark.parametrize(
    ("gold", "why"),
    [
        ("9. Anya climbs the stairs", "a sentence"),
        ("See the proof above", "a sentence"),
        (r"\text{it is never an integer}", "a sentence"),
        ("None", "no answer"),
        ("N/A", "no answer"),
        ("...", "no answer"),
        ("?", "no answer"),
        (r"\frac{1}{2", "unbalanced braces"),
        ("3}", "unbalanced braces"),
        (r"\boxed{3} or \boxed{5}", "two boxes"),
        (r"\boxed{3}\boxed{5}", "two boxes"),
    ],
)
def test_what_no_algebra_can_compare(gold, why):
    assert (why_unreadable(gold) or "").startswith(why)


@pytest.mark.parametrize(
    "gold",
    [
        "3",
        r"\boxed{3}",
        r"\boxed{\boxed{3}}",
        r"\{1,2\}",
        r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}",
        r"\text{Evelyn}",
        "even",
        r"5\text{ feet per second}",
        r"\sin x \cos x \tan x",
        "½",
        "√2",
        "10 - 2√5",
        r"\emptyset",
        r"\infty",
        r"x = 1 \text{ or } x = 2",
        r"\left\{1, 2\right.",
        "ab + bc + ca",
    ],
)
def test_mathematics_and_words_pass(gold):
    assert why_unreadable(gold) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs {SHARED} (set STEPSTACK_SHARED)")
@pytest.mark.parametrize("file", ["math500.json", "aime2024.json"])
def test_published_golds_pass(file):
    golds = [row["final_answer"] for row in json.loads((SHARED / file).read_text())]
    assert [(gold, why_unreadable(gold)) for gold in golds if why_unreadable(gold)] == []
