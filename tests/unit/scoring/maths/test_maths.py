r"""The graders' published edge tables, and every MATH500 answer against itself and a changed one."""

import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepstack.scoring.maths.boxed import MAX_BLOCK, last_number
from stepstack.scoring.maths.grade import extract_orz, grade
from stepstack.scoring.maths.latex import Unreadable, read
from stepstack.scoring.maths.orz_legacy import repetition

SHARED = Path(os.environ.get("STEPSTACK_SHARED", Path(__file__).parents[2].parent / "shared"))
MATH500 = SHARED / "data" / "orz" / "math500.json"


def verdict(grader: str, gold: str, answer: str) -> bool:
    return grade(grader, gold, answer).correct


# Open-Reasoner-Zero's own grader on these bodies, run with sympy's parse_latex and antlr 4.11.
ORZ_RESPONSES = [
    ("73", r"thinking </think> <answer>\boxed{73}</answer>", True),
    ("73", r"</think> <answer>\boxed{073}</answer>", True),
    ("73", r"</think> <answer>\boxed{73.0}</answer>", True),
    ("73", "</think> <answer>73</answer>", False),
    ("73", r"</think> <answer> \boxed{73}", False),
    ("73", r"</think> \boxed{73} </answer>", False),
    ("3", r"</think> <answer>\boxed{3</answer>", False),
    ("73", r"<answer>a</answer> .. <answer>\boxed{73}</answer>", True),
    ("73", r"<answer>\boxed{73}</answer> <answer>no box</answer>", True),
    ("73", r"<answer>\boxed{72} or \boxed{73}</answer>", True),
    ("73", r"<answer>\boxed{73} or \boxed{72}</answer>", False),
    ("3", r"<answer>\boxed{\boxed{3}}</answer>", True),
    ("5", "no answer at all", False),
]


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("gold", "response", "expected"), ORZ_RESPONSES)
def test_responses_as_orz_reads_them(gold, response, expected, parity):
    assert grade("orz_legacy", gold, extract_orz(response, parity=parity)).correct is expected


ORZ_ANSWERS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", "1/2", True),
    (r"\frac{1}{2}", r"\dfrac12", True),
    (r"\frac{1}{3}", "0.333333", False),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", True),
    (r"\left(3,\frac{\pi}{2}\right)", r"(3,\pi/2)", False),
    ("p - q", "-q+p", True),
    ("1000", "1,000", True),
    ("1{,}000", "1000", True),
    ("5", "x=5", True),
    (r"50\%", "50", True),
    (r"\$50", "50", True),
    ("10", r"10\text{ cm}", True),
    ("D", "D", True),
    ("D", r"\text{D}", True),
    ("D", "(D)", True),
    ("D", "d", False),
    (r"\{1,2\}", r"\{2,1\}", False),
    ("2,-2", "-2,2", False),
    ("(x+1)^2", "x^2+2x+1", False),
    (r"2\sqrt{3}", r"\sqrt{12}", True),
    (r"\frac{3}{56}", r"\frac{6}{112}", True),
    ("1000000007", "10^9+7", True),
    ("1e3", "1000", True),
    ("3", r"\boxed{\boxed{3}}", True),
    # Read from ORZ's code beyond the published table: constants are symbols, functions and factorials are known.
    (r"\pi", "3.14159265358979", False),
    ("3!", "6", True),
    (r"\sqrt[3]{8}", "2", True),
    (r"\log_2 8", "3", True),
    ("|-3|", "3", True),
    (r"\binom{5}{2}", "10", True),
    ("2k+2", "2(k+1)", True),
    ("6 - 5i", "-5i+6", True),
    (r"\frac{x}{2}", "0.5x", True),
    ("y = 2x + 3", "y=3+2x", True),
    (r"-\infty", r"\infty", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), ORZ_ANSWERS)
def test_orz_legacy_table(gold, answer, expected):
    assert verdict("orz_legacy", gold, answer) is expected


# ORZ says "correct" to each of these; paying for a wrong answer is not parity worth having.
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3, 5, 7", "3"),
        ("204_5", "204_6"),
        ("52_8", "528"),
        (r"1\frac45", r"\frac45"),
        ("12", "1,2"),
        ("9999999999999999", "9999999999999998"),
    ],
)
def test_orz_false_positives_left_out(gold, answer):
    assert not verdict("orz_legacy", gold, answer)


MATH_VERIFY = [
    (r"\frac12", "0.5", True),
    (r"\frac12", r"\dfrac12", True),
    (r"\frac12", "1/2", True),
    (r"(3,\frac{\pi}{2})", r"(3,\pi/2)", True),
    ("p-q", "-q+p", True),
    ("73", "073", True),
    ("1000", "1,000", True),
    ("10000", "10{,}000", True),
    ("5", "x=5", True),
    (r"50\%", "0.5", True),
    ("50", r"50\%", True),  # lenient, as released
    (r"\{1,2,3\}", r"\{3,2,1\}", True),
    ("(1,2)", "1<x<2", False),
    ("1<x<2", "(1,2)", True),  # gold first: the comparison is asymmetric
    ("10", r"10\text{ cm}", True),
    ("D", "D", True),
    ("D", r"\text{D}", True),
    ("D", r"\text{(D)}", True),
    ("D", "d", True),  # why letters have a grader of their own
    (r"\sqrt3", "1.7320508", True),
    ("0.333", r"\frac13", False),
    (r"\frac13", "0.333333", True),
    ("3", r"\boxed{2} then \boxed{3}", True),  # unboxed before math-verify, which would make a set of both
    ("3", r"\boxed{\boxed{3}}", True),
    ("3", r"\boxed{}", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
    (r"90^\circ", "90", True),
    ("(x+1)^2", "x^2+2x+1", True),
    (r"\pm2", "2,-2", True),
    ("6,-5", "-5,6", True),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"-\infty", r"\infty", False),
    (r"11\frac12", "11.5", True),
    ("9999999999999999", "9999999999999998", False),
]


@pytest.mark.parametrize(("gold", "answer", "expected"), MATH_VERIFY)
def test_math_verify_table(gold, answer, expected):
    assert verdict("math_verify", gold, answer) is expected


@pytest.mark.parametrize("response", ["<answer>3</answer>", r"<answer>\boxed{3</answer>", r"<answer>\boxed{}</answer>"])
def test_math_verify_never_sees_an_unboxed_answer(response):
    assert not grade("math_verify", "3", extract_orz(response)).correct


EXTRACTION = [
    (r"<answer>\boxed{1} \boxed{2}</answer>", "2"),  # R1
    (r"<answer>\boxed{2} then \boxed{3</answer>", "2"),  # R1: the last balanced one
    (r"<answer>\boxed{\boxed{3}}</answer>", "3"),  # R2
    (r"<answer>\boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),  # R3
    (r"<answer>\boxed{\left\{1\right.}</answer>", r"\left\{1\right."),  # R3: an escaped brace is no brace
    (r"<answer>\boxed 3</answer>", None),  # R4
    (r"<answer>\boxed {3}</answer>", "3"),  # R4
    (r"<answer>\fbox{3}</answer>", "3"),  # R5
    ("<answer>3</answer>", None),  # R6
    (r"<answer>\boxed{3</answer>", None),  # R7
    (r"I think \boxed{3} </think> <answer>3</answer>", None),  # R10
    (r"the <answer> tag: \boxed{3} </think> <answer>4</answer>", None),  # R10
    (r"<answer>\boxed{3}</answer> <answer>4</answer>", "3"),  # R11
    (r"<answer>a</answer> \boxed{3} <answer>4</answer>", None),  # R11: between the blocks
    (r"<answer>\boxed{ 3 }</answer>", "3"),
    (r"<answer>\boxed{}</answer>", ""),
    ("", None),
]


@pytest.mark.parametrize(("response", "expected"), EXTRACTION)
def test_extraction(response, expected):
    assert extract_orz(response) == expected


PIECES = [
    "<answer>",
    "</answer>",
    "<think>",
    "</think>",
    r"\boxed{",
    r"\boxed ",
    r"\fbox{",
    "{",
    "}",
    r"\{",
    "3",
    " ",
    "\n",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_parity_extraction_is_orz_regular_expression(response):
    spans = re.findall(r"<answer>.*?(\\boxed{.*}).*?</answer>", response, re.DOTALL)
    result = extract_orz(response, parity=True)
    if not spans:
        assert result is None
    elif result is not None:
        start = spans[-1].rindex(r"\boxed")
        assert spans[-1].startswith(rf"\boxed{{{result}}}", start)
        assert result.count("{") == result.count("}")
    assert extract_orz(response) is None or "</answer>" in response


def test_very_long_responses_take_linear_time():  # R12
    begin = time.perf_counter()
    for response in (
        "<answer>" * 50_000 + "</answer>" * 50_000,
        "<answer>" + r"\boxed{" * 100_000 + "</answer>",
        "<answer>" + "{" * 100_000 + r"\boxed{3}" + "</answer>",
        "\\" * 400_000,
    ):
        extract_orz(response)
        extract_orz(response, parity=True)
    assert extract_orz("<answer>" + "x" * (2 * MAX_BLOCK) + r"\boxed{3}</answer>") == "3"
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy"])
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("73", "\uff17\uff13"),  # R14: full-width digits
        ("10080", r"10,\!080"),
        ("1000", r"1\,000"),
        ("30", r"30^\circ"),
        ("30", r"30^{\circ}"),
        ("18.9", r"\$18.90"),
        (r"\text{even}", "even"),
        ("5", "5."),
    ],
)
def test_spellings_of_one_answer(grader, gold, answer):
    assert verdict(grader, gold, answer)


@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy", "exact", "choice"])
@pytest.mark.parametrize("gold", ["", "  ", r"\boxed{}"])
def test_an_empty_gold_raises(grader, gold):  # R9
    with pytest.raises(ValueError, match="empty gold"):
        grade(grader, gold, "")


@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy", "exact", "choice"])
@pytest.mark.parametrize("answer", [None, "", " ", r"\boxed{}"])
def test_no_answer_is_wrong(grader, answer):
    verdict = grade(grader, "D", answer)
    assert (verdict.correct, verdict.extracted, verdict.reason) == (False, None, "no answer")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("D", True),
        ("(D)", True),
        (r"\text{D}", True),
        (r"\text{(D)}", True),
        (r"(\text{D})", True),
        (r"\mathrm{D}", True),
        ("D.", True),
        ("$D$", True),
        (r"\boxed{D}", True),
        ("d", False),  # R15
        ("C", False),
        ("D or C", False),
        ("AD", False),
        ("4", False),
    ],
)
def test_choice(answer, expected):
    assert verdict("choice", "D", answer) is expected


def test_a_choice_needs_a_letter_as_gold():
    with pytest.raises(ValueError, match="not one letter A-J"):
        grade("choice", "42", "42")


def test_exact_compares_spelling_only():
    assert verdict("exact", r"\dfrac{1}{2}", r" \frac12 ")
    assert not verdict("exact", r"\frac{1}{2}", r"\frac{2}{4}")
    assert verdict("exact", "10080", r"10,\!080")
    for gold, answer in [("D", "d"), ("x=5", "y=5"), ("(1,200)", "(1200)"), ("10", r"10\text{ cm}"), ("1,2", "12")]:
        assert not verdict("exact", gold, answer)


@pytest.mark.parametrize(("gold", "answer"), [("x=5", "y=5"), ("(1,200)", "(1200)"), ("(1, 200)", "1200")])
def test_equal_spelling_never_overrules_math_verify(gold, answer):
    assert not verdict("math_verify", gold, answer)


def test_where_the_graders_disagree():  # R16
    pairs = [
        (r"\frac13", "0.333333"),
        (r"(3,\frac{\pi}{2})", r"(3,\pi/2)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("(x+1)^2", "x^2+2x+1"),
    ]
    for gold, answer in pairs:
        assert verdict("math_verify", gold, answer)
        assert not verdict("orz_legacy", gold, answer)


def test_a_repetitive_answer_is_not_given_to_algebra():
    loop = "+".join(["1"] * 100)
    assert repetition(loop) > 0.2
    assert repetition("The quick brown fox jumps over the lazy dog") < 0.05
    assert not verdict("orz_legacy", "100", loop)
    assert verdict("orz_legacy", "30", "+".join(["1"] * 30))


@pytest.mark.parametrize(
    "text",
    ["3,5", r"1\frac45", "204_5", r"1\pm2", "3 4", "", "(", r"\{1\}", "10^{10^{10}}", "1/0", "1./0.", "((" * 300],
)
def test_the_reader_refuses_whole_texts(text):
    with pytest.raises(Unreadable):
        read(text)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789xyi+-*/^_{}()[]|!=<>,. \\" + "frac", max_size=30) | st.text(max_size=30))
def test_the_reader_reads_or_refuses(text):
    with contextlib.suppress(Unreadable):
        assert read(text).equals(read(text))


def changed(gold: str) -> str:
    """Another answer: the first number plus one, else the last plain letter moved on, else the negative."""
    if re.search(r"\d", gold):
        return re.sub(r"\d+", lambda m: str(int(m[0]) + 1), gold, count=1)
    words = list(re.finditer(r"(?<![\\A-Za-z])[A-Za-z]+(?=\W*$)", gold))
    if words:
        end = words[-1].end()
        return gold[: end - 1] + chr(ord(gold[end - 1]) + 1) + gold[end:]
    return f"-{gold}"


@pytest.mark.skipif(
    not MATH500.is_file(), reason=f"needs {MATH500} (set STEPSTACK_SHARED): ORZ's eval data is not copied"
)
@pytest.mark.parametrize("grader", ["math_verify", "orz_legacy"])
def test_every_math500_answer_equals_itself_and_not_a_changed_one(grader):
    golds = [row["final_answer"] for row in json.loads(MATH500.read_text())]
    assert len(golds) == 500
    assert [gold for gold in golds if not verdict(grader, gold, gold)] == []
    assert [(gold, changed(gold)) for gold in dict.fromkeys(golds) if verdict(grader, gold, changed(gold))] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("5 - 3 = 2, so $1,234.50", "1234.50"),
        ("from 3-4 it is -7", "-7"),
        ("3-4", "4"),
        ("none", None),
        ("", None),
        ("9" * 100_000, "9" * 100_000),
    ],
)
def test_the_last_number(text, number):
    assert last_number(text) == number
