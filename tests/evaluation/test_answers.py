"""What answers come to: numbers exactly, expressions by math-verify, letters where they stand as answers."""

import importlib.util
import sys
from fractions import Fraction

import pytest

from layersift.errors import LayersiftError
from layersift.evaluation.generation import final_answer, letter_of

needs_math = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He has 3 + 4 = 7.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 1 000", "1000"),
        ("#### -2.50 dollars", "-5/2"),
        ("#### $-5", "-5"),
        ("so it costs $18", "18"),
        ("so -$5", "-5"),
        ("first 5, then 6.", "6"),
        ("#### 70000 is it, not 3", "70000"),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        *((f"it is {minus}3", "-3") for minus in "\u2212\u2013\u2014\uff0d\ufe63"),
        ("5\u20133 of them", "3"),
        ("-\u20ac5", "-5"),
        ("5 km by GPT2", "5"),
        ("x=5", "5"),
        ("\u00a35", "5"),
        ("\u00bd", "1/2"),
        ("#### 1\u00bd", "3/2"),
        ("1\u20442", "1/2"),
        ("the answer is 3/4.", "3/4"),
        ("3 1/2", "7/2"),
        ("1e-3", "1/1000"),
        ("5 - 3 = 2", "2"),
        ("in 2020, 15.", "15"),
        ("7 7 7 0", "0"),
        ("\\boxed{12 \\text{ cm}}", "12"),
        ("3.14.", "157/50"),
        ("0", "0"),
    ],
)
def test_plain_numbers_are_read_exactly(text, number):
    assert final_answer(text).values == (Fraction(number),)


@pytest.mark.parametrize(
    "text",
    [
        *("none", "####", "#### abc", "", "1/0", "#### 3 4", "1" * 20000, "1+" * 5000 + "1", "\\frac{" * 2000),
        *(
            "at 12:30",
            "#### 3:2",
            "2024-01-05",
            "#### 05/01/2024",
            "#### 5 or 6",
            "GPT2",
            "w1",
            "#### GPT2",
            "#### between 5 and 6",
        ),
    ],
)
def test_what_holds_no_answer_is_not_read(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert final_answer(text) is None


SAME = [
    ("1/2", "0.5"),
    ("50%", "0.5"),
    ("50", "50%"),
    ("3", "3.0"),
    ("#### 3 1/2", "3.5"),
    ("1,000", "so 1000"),
]
SAME_BY_MATHS = [
    ("\\frac{1}{2}", ".5"),
    ("\\boxed{\\frac12}", "1/2"),
    ("$\\sqrt{8}$", "$2\\sqrt{2}$"),
    ("\\boxed{2\\sqrt{3}}", "\\sqrt{12}"),
    ("sqrt(2)", "√2"),
    ("2\\pi", "2π"),
    ("2\\cdot3", "6"),
    ("6 \\div 2", "3"),
    ("1/3 + 1/6", "1/2"),
    ("#### x+1", "\\boxed{1+x}"),
    ("#### (1, 2)", "\\boxed{(1,2)}"),
]
OTHERS = [("1/2", "2"), ("1/2", "1/3"), ("3", "-3"), ("5", ".5"), ("0.5", "5")]
OTHERS_BY_MATHS = [
    ("\\frac{3}{4}", "4"),
    ("2\\pi", "2"),
    ("\\sqrt{2}", "\\sqrt{3}"),
    ("\\sqrt{2}", "2"),
    ("\\frac{1}{3}", "\\frac{2}{3}"),
    ("#### x+1", "\\boxed{x-1}"),
    ("2\\sqrt{3}", "3"),
]


@pytest.mark.parametrize(("reference", "said"), SAME)
def test_the_same_number_written_otherwise_matches(reference, said):
    assert final_answer(reference).equals(final_answer(said))
    assert final_answer(said).equals(final_answer(reference))


@pytest.mark.parametrize(("reference", "said"), OTHERS)
def test_another_number_does_not_match(reference, said):
    assert not final_answer(reference).equals(final_answer(said))


@needs_math
@pytest.mark.parametrize(("reference", "said"), SAME_BY_MATHS)
def test_the_same_expression_written_otherwise_matches(reference, said):
    assert final_answer(reference).equals(final_answer(said))


@needs_math
@pytest.mark.parametrize(("reference", "said"), OTHERS_BY_MATHS)
def test_another_expression_does_not_match(reference, said):
    assert not final_answer(reference).equals(final_answer(said))


def test_without_the_library_expressions_are_refused_and_numbers_are_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert final_answer("3/4").values == (Fraction(3, 4),)
    with pytest.raises(LayersiftError, match="needs math-verify: pip install math-verify"):
        final_answer("\\sqrt{2}")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", None),
        ("(C) w1", "C"),
        ("A. since", "A"),
        ("**B**", "B"),
        ("B because it is", "B"),
        ("C\nbecause", "C"),
        ("I", "I"),
        ("I think it is B", "B"),
        ("I think so", None),
        ("A dog", None),
        ("the answer is A dog", None),
        ("The answer is (D).", "D"),
        ("Answer: C", "C"),
        ("Both A and B", None),
        ("the B", None),
        ("Bad", None),
        ("\\boxed{B}", "B"),
        ("<answer>B</answer>", "B"),
        ('My answer: "B"', "B"),
        ("Answer - C", "C"),
        ("The best choice is C because w1", "C"),
        ("A, B", None),
        ("B and C", None),
        ("(A)/(B)", None),
        ("The answer is A, B and C", None),
        ("The answer is B, not A.", "B"),
        ("B) because A is wrong", "B"),
        ("B. A is wrong", "B"),
        ("", None),
    ],
)
def test_letters_are_read_where_they_stand_as_answers(text, letter):
    assert letter_of(text) == letter
