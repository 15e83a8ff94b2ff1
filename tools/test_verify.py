"""Tests of verify.py: tables written from principle, hostile responses, properties, and the processes it runs."""
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import verify
from verify import Verifier, extract_answer, is_correct


def box(text):
    return f"So the answer is $\\boxed{{{text}}}$."


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=2) as one:
        yield one


@pytest.mark.parametrize("response, answer", [
    (r"\boxed{17}", "17"), (r"\boxed {17}", "17"), (r"\boxed 5", "5"), (r"\boxed5.", "5."), (r"\fbox{17}", "17"),
    (r"\boxed{1} then \boxed{2}", "2"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{\boxed{3}}", "3"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"), (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."), ("\\boxed{\n7\n}", "7"),
    (r"\boxed{17", None), (r"\boxed{1} and \boxed{17", None), (r"\boxed{}", None), (r"\boxed", None),
    (r"\boxed}", None),
    ("The answer is 17.", None), ("17", None), ("", None), (r"\boxed{" + "1" * 5000 + "}", None),
])
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response, answer", [
    ("The answer is 17.", "17"), ("The final answer is: $\\frac{1}{2}$. I hope so.", "\\frac{1}{2}"), ("17", None),
    ("the answer is 3\nNo, the answer is (C).", "(C)"), (r"The answer is 4 or \boxed{5}", "5"),
    ("answer is 2.5.", "2.5"),
])
def test_extraction_of_phrases(response, answer):
    assert extract_answer(response, phrase=True) == answer


RIGHT = """
5 ¦ x = 5 ¦ 5 \\text{ cm} ¦ \\$5 ¦ 5\\% ¦ 5.0 ¦ 05 ¦ 5. ¦ {5} ¦ \\text{5} ¦ 5 cm ¦ \\mathbf{5} ¦ f(2) = 5
5 ¦ 2 + 3 = 5 ¦ 5^\\circ ¦ \\sqrt{25}
5 ¦ 5 \\text{ cm}^2 ¦ 5~\\mathrm{m/s} ¦ 5 \\text{ square units} ¦ 5 dollars ¦ \\frac{10}{2} ¦ (5) ¦ \\{5\\} ¦ 10/2
5 ¦ 5 \\text{ m} ¦ 5 = x
1000 ¦ 1,000 ¦ 1{,}000 ¦ 1,\\!000 ¦ 1\\,000 ¦ 10^3 ¦ 1e3 ¦ 1 \\times 10^{3} ¦ \\$1,000.00 ¦ x = 1,000
1000 ¦ 1{,}000 \\text{ km}
\\frac{1}{2} ¦ \\dfrac{1}{2} ¦ \\tfrac12 ¦ \\frac12 ¦ \\frac 1 2 ¦ 0.5 ¦ .5 ¦ 1/2 ¦ \\frac{-1}{-2}
\\frac{1}{2} ¦ \\left(\\frac{1}{2}\\right) ¦ \\frac12 \\approx 0.5
-\\frac{7}{2} ¦ -3.5 ¦ -3\\frac{1}{2} ¦ -3 1/2 ¦ \\frac{-7}{2} ¦ \\frac{7}{-2} ¦ −\\frac72
7.5e7 ¦ 7.5 \\times 10^{7} ¦ 7.5 \\cdot 10^7 \\text{ kg} ¦ 75000000 ¦ 75{,}000{,}000
44\\% ¦ 44 ¦ 44\\text{ percent} ¦ 44% ¦ 44 percent
2\\sqrt{3} ¦ \\sqrt{12} ¦ 2 \\sqrt 3 ¦ \\frac{6}{\\sqrt{3}} ¦ 2 \\cdot 3^{1/2} ¦ \\sqrt{3} + \\sqrt{3}
2\\sqrt{3} ¦ 2\\sqrt3 \\text{ m}
(x+1)^2 ¦ x^2 + 2x + 1 ¦ (1+x)(x+1) ¦ x(x+2)+1
4nm + 2 ¦ 2 + 4mn
5 \\text{ cm}, 6 \\text{ cm} ¦ 6 cm, 5 cm ¦ 5, 6
ab^2 ¦ b^2 a ¦ a \\cdot b \\cdot b
2 - 3i ¦ -3i + 2 ¦ 2 + 3i^3
e^{2x} ¦ (e^x)^2 ¦ \\exp(2x)
\\ln 2 ¦ \\ln(2) ¦ \\log_e 2 ¦ \\frac{\\ln 4}{2}
\\sin 2x ¦ 2 \\sin x \\cos x
n! ¦ n \\cdot (n-1)!
y = 2x + 3 ¦ 2x + 3 ¦ 3 + 2x = y ¦ 2x - y + 3 = 0 ¦ y = 3 + 2x
x > 3 ¦ 3 < x ¦ (3, \\infty) ¦ x \\in (3, \\infty)
(2, 5] ¦ \\left( 2, 5 \\right] ¦ x \\in (2,5] ¦ (\\frac42, 5]
[1,2) \\cup (3,4) ¦ (3,4) \\cup [1,2)
(1, -2) ¦ \\left(1, -2\\right) ¦ (1,\\,-2) ¦ (x, y) = (1, -2) ¦ (\\frac22, -2.0)
1, 2 ¦ 2, 1 ¦ \\{1, 2\\} ¦ 1 \\text{ and } 2 ¦ x = 1 \\text{ or } x = 2 ¦ x = 1, 2 ¦ 1; 2 ¦ 1, \\text{ and } 2
3 \\pm \\sqrt{2} ¦ 3 + \\sqrt2, 3 - \\sqrt2 ¦ \\{3-\\sqrt2, 3+\\sqrt2\\} ¦ 3 \\pm 2^{1/2}
\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} ¦ \\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}
\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} ¦ \\left[\\begin{array}{cc}1&2\\\\3&\\frac82\\end{array}\\right]
1323_4 ¦ 1323_{4} ¦ 1323_{\\text{4}}
\\text{Friday} ¦ Friday ¦ \\textbf{Friday} ¦ friday ¦ \\mathrm{Friday}
\\text{(C)} ¦ C ¦ (C) ¦ \\textbf{(C)}
12:00 ¦ 12:00
7 \\text{ hours} ¦ 7 ¦ 7 \\text{ hr} ¦ 7\\text{ hours}.
101,111 ¦ 111, 101 ¦ 101111 ¦ 101, 111
1.2 ¦ \\approx 1.2 ¦ \\approx 1.2\\text{ cm} ¦ =1.2
7e37 ¦ 7 \\times 10^{37}\\,\\mathrm{erg}/\\mathrm{s} ¦ 7 \\times 10^{37} \\text{ erg}
3e8 ¦ 3 \\times 10^8 \\, \\mathrm{m}/\\mathrm{s}
6 ¦ 6\\text{ in} ¦ 6 \\text{ in}^2 ¦ 6\\text{ ways}
\\frac12 ¦ \\sin 30^\\circ ¦ \\cos(60^{\\circ})
\\emptyset ¦ \\{\\} ¦ \\varnothing
5 ¦ 5\\,\\mathrm{m\\,s^{-1}} ¦ 5 \\text{ m/s}^{2} ¦ 5\\,\\mathrm{kg}\\cdot\\mathrm{m}
5 ¦ 5\\,\\frac{\\mathrm{m}}{\\mathrm{s}}
\\frac{1}{3} ¦ 0.\\overline{3} ¦ .\\overline{33} ¦ 0.3\\overline{3}
-\\frac{7}{6} ¦ -1.1\\overline{6}
1,234 ¦ 1234 ¦ 1{,}234 ¦ 1,234.0
221, 8 ¦ 8,221 ¦ 8, 221 ¦ \\{8, 221\\}
\\pm 3 ¦ (\\pm 3) ¦ 3, -3 ¦ \\{\\pm 3\\}
(\\pm 5, 0) ¦ (5, 0), (-5, 0) ¦ (-5, 0), (5, 0)
"""
WRONG = """
45 ¦ 4500 ¦ 0.45 ¦ 46 ¦ -45 ¦ 45.0001 ¦ 450 ¦ 45x ¦ 45\\pi ¦ 45 + 10^{-30} ¦ 45, 46 ¦ 45 \\text{ or } 46
45 ¦ 45 \\text{ or more} ¦ \\text{not } 45
45 ¦ 45 = 46 ¦ 44 = 45 ¦ 45 \\text{ minus 2} ¦ x ¦ 4 5 ¦ 45_6 ¦ 45! ¦ 54 ¦ \\text{forty} ¦ x \\ge 45
45 ¦ 45^2 ¦ 45 \\text{ is wrong}
45 ¦ \\frac{45}{0} ¦ x - 45 = 0 ¦ 44.999999999999999999999
12345 ¦ 12346 ¦ 12345.5
1e-20 ¦ 1e-21 ¦ 0 ¦ 2e-20
10^{100} ¦ 10^{100}+1 ¦ 10^{101} ¦ 10^{99}
\\frac{1}{3} ¦ 0.3333333333333333 ¦ 13 ¦ 3 ¦ 1.3
\\pi ¦ 3.14159265358979323846 ¦ \\frac{22}{7} ¦ 2\\pi
\\sqrt{2} ¦ 1.41421356237309504880 ¦ \\sqrt[3]{2} ¦ -\\sqrt2 ¦ \\sqrt{2} + 10^{-40}
10^{-20}\\ln 2 ¦ 10^{-20}\\ln 3 ¦ 10^{-21}\\ln 2
x > 10^{-20} ¦ x > 10^{-21} ¦ x \\ge 10^{-20} ¦ x < 10^{-20}
6m ¦ 6 ¦ 6n ¦ m
5 \\text{ cm} ¦ 5 \\text{ km} ¦ 5 \\text{ hours} ¦ 6 \\text{ cm}
(1, 2) ¦ \\{1, 2\\} ¦ (2, 1) ¦ [1, 2] ¦ 1, 2 ¦ (1, 2, 3) ¦ 1 ¦ (1, 3)
1, 2 ¦ 1 ¦ 1, 2, 3 ¦ 1, 3 ¦ 1, 1 ¦ 1, 2, 2 ¦ (1, 2)
2, 2 ¦ 2
[3, \\infty) ¦ (3, \\infty) ¦ [4, \\infty) ¦ x > 3
(-\\infty, 3) ¦ (-\\infty, 4) ¦ (-\\infty, 3] ¦ x < 4 ¦ (3, \\infty)
3 \\pm \\sqrt{2} ¦ 3 + \\sqrt2 ¦ 2 \\pm \\sqrt3 ¦ 3 \\pm 2
\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} ¦ \\begin{pmatrix} 1 & 3 \\\\ 2 & 4 \\end{pmatrix}
\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} ¦ \\begin{pmatrix} 1 & 2 & 3 & 4 \\end{pmatrix}
\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix} ¦ \\begin{pmatrix} 1 \\\\ 3 \\end{pmatrix} ¦ (1,2,3,4)
204_5 ¦ 204_6 ¦ 205_5 ¦ 54 ¦ 204
ABC ¦ CBA ¦ ACB ¦ A
MR = SRMC ¦ SRM = CMR
x ¦ X ¦ y ¦ x^2
x^2 ¦ x^{-2} ¦ x^3
\\sqrt{x^2} ¦ x ¦ -x
x - y ¦ y - x
I(0) ¦ 0 ¦ I
f(x) = x + 1 ¦ f(x) = x - 1 ¦ x
y = 2x + 3 ¦ y = 3x + 2 ¦ x = 2y + 3 ¦ 2x - 3
2x + y = 0 ¦ 0
k = 3 ¦ n = 3 ¦ k = 4
1 \\frac{1}{2} ¦ \\frac{11}{2} ¦ \\frac12
1, 234 ¦ 1{,}234
1,234 ¦ 234,1 ¦ 1,235 ¦ 1,2340 ¦ 1 ¦ 234
\\frac{1}{3} ¦ 0.3 ¦ 0.\\overline{4} ¦ 0.0\\overline{3} ¦ 3.\\overline{3}
5 ¦ 5\\,\\mathrm{m}\\cdot x ¦ 5\\text{ apples}, \\text{ six pears} ¦ 5\\text{ cm}+x
\\text{Friday} ¦ \\text{Friday}\\text{ cm}
x = 45 ¦ x = 46 = 45
12:00 ¦ 1:00 ¦ 12:30 ¦ 24:00
\\text{Friday} ¦ Fri ¦ \\text{Thursday} ¦ 5
\\text{(C)} ¦ D ¦ (D) ¦ c^2
\\infty ¦ 99999999999999999999 ¦ -\\infty
5 ¦ 5\\text{ ft }6\\text{ in} ¦ 5\\text{ C }2 ¦ 5\\text{ choose }2 ¦ 5\\text{ to the power }3
5 ¦ 5\\text{ or six} ¦ 5\\text{ million}
5 ¦ 5\\text{ hmm, no, } 6 ¦ 5\\text{ halves} ¦ 5\\text{ squared} ¦ 5\\text{ dozen} ¦ 5\\text{ but }6
2\\text{ hours }15\\text{ minutes} ¦ 2\\text{ hours }45\\text{ minutes} ¦ 2
3 ¦ 3\\text{ in }5 ¦ 3\\text{ remainder }2 ¦ 3\\text{ to }5
8 ¦ 8\\text{ apples}-3\\text{ apples} ¦ 8\\text{ m}/2\\text{ s} ¦ 8\\text{ m}*3\\text{ m} ¦ 8\\text{ cm}^{345}
\\sin 1 ¦ \\sin 1^\\circ
x ¦ x'
2 \\text{ Hz} ¦ 2\\text{ kHz}
17 ¦ nan ¦ inf ¦ True ¦ 1\u200b7 ¦ ²17 ¦ 17^{17^{17^{17}}} ¦ 1e999999999 ¦ 17 - 1e-99
5 ¦ \\text{the correct answer} ¦ \\text{gold} ¦ answer ¦ x \\text{ where } x \\text{ is correct} ¦ 1,2,3,4,5,6,7,8,9
"""


def table(text):
    return [(row.split(" ¦ ")[0], pred) for row in text.strip().split("\n") for pred in row.split(" ¦ ")[1:]]


@pytest.mark.parametrize("cases, expected", [(RIGHT, 1.0), (WRONG, 0.0)], ids=["right", "wrong"])
def test_tables(verifier, cases, expected):
    golds, preds = zip(*table(cases))
    scores = verifier.score([box(pred) for pred in preds], golds, "math")
    assert [pair for *pair, score in zip(golds, preds, scores) if score != expected] == []


@pytest.mark.parametrize("response, answer, expected", [
    ("3 * 12 = 36 36 + 7 = 43", "43 = 3 7 12", True), ("7 - 3 = 4 4 * 12 = 48", "48 = 3 7 12", True),
    ("12 / 3 = 4 7 - 4 = 3", "3 = 3 7 12", True), ("3 - 7 = -4 12 - -4 = 16", "16 = 3 7 12", True),
    ("3 - 3 = 0 7 + 0 = 7", "7 = 3 3 7", True), ("7 * 1 = 7", "7 = 7 1", True), ("3 + 7 = 10", "10 = 3 7", True),
    ("3 * 12 = 36 36 + 7 = 43", "44 = 3 7 12", False), ("3 * 12 = 37 37 + 7 = 44", "44 = 3 7 12", False),
    ("3 * 12 = 36", "36 = 3 7 12", False), ("3 * 3 = 9 9 + 7 = 16", "16 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 43 43 + 0 = 43", "43 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 43 1", "43 = 3 7 12", False),
    ("3 * 12 = 36 7 + 36 = 43 .", "43 = 3 7 12", True), ("3 * 12 = 36 7 + 36 = 43 x", "43 = 3 7 12", True),
    ("first 7 * 4 = 28 , then 28 + 20 = 48 .", "48 = 4 7 20", True), ("So: 3 + 7 = 10. ", "10 = 3 7", False),
    ("first 7 * 4 = 28 , then 28 + 20 = 49 .", "48 = 4 7 20", False), ("So: 3 + 7 = 10", "10 = 3 7", True),
    ("3 plus + 7 = 10", "10 = 3 7", True), ("3 + 7 = 10 !", "10 = 3 7", False), ("x2 3 + 7 = 10", "10 = 3 7", False),
    ("try 3 * 7 = 21 , no 3 + 7 = 10", "10 = 3 7", False), ("3 +- 7 = -4", "-4 = 3 7", False),
    ("3 + + 7 = 10", "10 = 3 7", False), ("= 3 + 7 = 10", "10 = 3 7", False), ("é 3 + 7 = 10", "10 = 3 7", False),
    ("3 +\n7 = 10", "10 = 3 7", True), ("the numbers are . : ,", "10 = 3 7", False),
    ("7 / 3 = 2 2 + 12 = 14", "14 = 3 7 12", False),
    ("7 / 0 = 0 3 + 0 = 3", "3 = 7 0 3", False), ("0 / 7 = 0 3 + 0 = 3", "3 = 7 0 3", True), ("", "3 = 1 2", False),
    ("3 ** 12 = 36 36 + 7 = 43", "43 = 3 7 12", False), ("3 *12 = 36 36 + 7 = 43", "43 = 3 7 12", False),
    ("3 * 12 = 36 36 + 7 = 4٣", "43 = 3 7 12", False), ("12 + 12 = 24 24 + 7 = 31", "31 = 7 12 12", True),
    ("12 + 12 = 24 24 + 7 = 31", "31 = 7 12 3", False), ("1 + 2 = 3 3 + 3 = 6", "6 = 1 2 3", True),
])
def test_countdown(response, answer, expected):
    assert is_correct(response, answer, "countdown") == expected


WALL = json.dumps([[3, "X", 1, "X"], ["X"] * 4, ["X", "X", 3, "X"], ["X"] * 4])
SOLVED = '[[3,"A",1,"A"],["X","A","A","A"],["X","A",3,"X"],["A","A","X","A"]]'


@pytest.mark.parametrize("task, response, answer, expected", [
    ("choice", box("(C)"), "(C)", True), ("choice", box("C"), "(C)", True), ("choice", box(r"\text{(C)}"), "(C)", True),
    ("choice", box("(C) 12/25/1937"), "(C)", True), ("choice", box("c"), "(C)", True), ("choice", box("(B)"),
    "(C)", False),
    ("choice", box("(C) or (D)"), "(C)", False), ("choice", box("A) x or B) y"), "(A)", False),
    ("choice", box("A cat"), "(A)", False), ("choice", box("ABC"), "(A)", False), ("choice", "(C)", "(C)", False),
    ("choice", "<answer>(C)</answer>", "(C)", True), ("choice", "So the answer is (C).", "(C)", False),
    ("text", box("True"), "True", True), ("text", box(r"\text{yes}"), "Yes", True), ("text", box("False"),
    "True", False),
    ("text", box("valid"), "invalid", False), ("text", box("8"), "8", True), ("text", box("8.0"), "8", True),
    ("text", box("-35"), "-35", True), ("text", box("35"), "-35", False), ("text", box("5 + 3"), "8", False),
    ("text", box("apple bee cat"), "apple bee cat", True), ("text", box("apple, bee, cat"), "apple bee cat", True),
    ("text", box("bee apple cat"), "apple bee cat", False), ("text", box("> ) }"), "> ) }", True),
    ("text", box(r"\} ] >"), "} ] >", True), ("text", box("> )"), "> ) }", False),
    ("synlogic", "<think>(E)</think><answer>C, D,E</answer>", "C,D,E", True), ("synlogic", box("C,D,E"), "C,D,E", True),
    ("synlogic", "<answer>E,D,C</answer>", "C,D,E", False), ("synlogic", "<think>C,D,E</think>", "C,D,E", False),
    ("synlogic", "<answer>X</answer> <answer>```python\n[[1, 2],\n [3, 4]]\n```</answer>", "[[1,2],[3,4]]", True),
    ("synlogic", "答案是 **是,否,是**。", "是, 否, 是", True),
    ("synlogic", "答案是 **否,是,是**。", "是, 否, 是", False),
    ("synlogic", "The answer is 9484 - 6622 = 2862.", "9484 - 6622 = 2862", True),
    ("synlogic", "答案是 **是，否、是**。", "是, 否, 是", True),
    ("synlogic", "So it is:\n[35, 1]", "[35, 1]", True), ("synlogic", "[35, 1]\nor so", "[35, 1]", False),
    ("synlogic", "[35, 2]", "[35, 1]", False),
    ("game24", "```python\n(7 - 3) * 8 - 8\n```", "24 = 3 7 8 8", True),
    ("game24", "```\n8/(3-8/3)\n```", "24 = 3 3 8 8", True),
    ("game24", "```\n8*3\n```", "24 = 3 8 1 1", False), ("game24", "```\n8*3*1**1\n```", "24 = 3 8 1 1", False),
    ("game24", "```\n24\n```", "24 = 2 4 1 1", False), ("game24", "```\n8/(3-3)+8\n```", "24 = 3 3 8 8", False),
    ("game24", "```\n(8)(3)+(1-1)\n```", "24 = 3 8 1 1", False), ("game24", "```\n(8*3\n```", "24 = 3 8", False),
    ("game24", "```\n__import__('os').getpid()\n```", "24 = 3 8", False), ("game24", "", "24 = 3 8", False),
    ("number_wall", f"```python\n{SOLVED}\n```", WALL, True),
    ("number_wall", f"```\n{SOLVED.replace('A', 'X')}\n```", WALL, False),
    ("number_wall", f"```python\n{SOLVED.replace(chr(34), chr(39))}\n```", WALL, True),
    ("number_wall", "```\n" + SOLVED.replace('["A","A","X","A"]', '["A","X","A","A"]') + "\n```", WALL, False),
    ("number_wall", "```\n" + SOLVED.replace("3", "4") + "\n```", WALL, False),
    ("number_wall", "```\n[1]\n```", WALL, False),
    ("number_wall", '```\n[[1,"A","A"],["A","A","A"]]\n```', '[[1,"X","X"],["X","X","X"]]', False),
    ("number_wall", "```\n" + "[" * 3000 + "\n```", WALL, False), ("number_wall", "```\n[[1,2],[3]]\n```", WALL, False),
])
def test_other_tasks(task, response, answer, expected):
    assert is_correct(response, answer, task) == expected


HOSTILE = {
    "tower": box("9^{9^{9^{9}}}"), "tower of brackets": box("(9^9)^{(9^9)^{9^9}}"), "e tower": box("e^{e^{e^{e^{e}}}}"),
    "big power": box("3^{1000000007}"), "nested factorial": box("((((9!)!)!)!)!"),
    "factorials": box(r"\frac{100000!}{99999!}"),
    "binomial": box(r"\binom{10^9}{5 \cdot 10^8}"), "sum": box(r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}"),
    "integral": box(r"\int_0^1 \frac{\sin(\tan(x^x))}{\ln(1+x^{\cos x})} dx"),
    "limit": box(r"\lim_{x\to0} \frac{\sin\tan x-\tan\sin x}{x^7}"),
    "many digits": box("7" * 3990),
    "megabyte of digits": "1" * 10 ** 6, "boxes": r"\boxed{" * 5000, "closed": r"\boxed{7}" * 20000,
    "braces": box("{" * 1900 + "7" + "}" * 1900), "parentheses": box("(" * 190 + "7" + ")" * 190),
    "roots": box(r"\sqrt{2+" * 40 + "2" + "}" * 40),
    "minus": box("-" * 390 + "7"), "names": box(r"\alpha" * 70 + "1 = 5"),
    "powers in names": box("a^{2}" * 75 + "+ = 5"),
    "letters": box("1 " + "a" * 390 + "!"), "spaces": box("^" + " " * 3900), "commas": box(", " * 1900),
    "plus-minus": box(r"1 \pm 2" * 50),
    "set": box(r"\{" + ",".join(map(str, range(130))) + r"\}"), "words": box(r"\text{cm}" * 450),
    "exec": box("exec('import os')"),
    "exit": box("exit()"), "dunder": box("__import__('os').system('touch CANARY')"), "null": box("1\x007"),
    "surrogate": box("\ud800"),
    "infinity": box("1e400"), "division": box(r"\frac{1}{0}"), "sqrt": box(r"\sqrt{" + "3" * 390 + "}"),
    "equals": box("=" * 390),
    "product": box(r"(1+x)^{99}" * 30), "matrix": box(r"\begin{pmatrix}" + "1&" * 180 + r"\end{pmatrix}"),
    "answers": "answer is " * 50000,
    "fences": "```" * 100000, "tags": "<answer>" * 50000, "semicolons": box("((" + "1," * 150 + "))"),
    "mixed": box("1 " * 190 + "1/2"),
}


@pytest.mark.parametrize("gold", ["18", r"\sqrt{2}", "x + 1", r"\ln 2", "1, 2, 3", r"\frac{1}{2}"])
def test_hostile(gold, tmp_path, monkeypatch):
    """None is right, raises, or takes 4 s; the caller does not grow by 200 MB; nothing is run."""
    monkeypatch.chdir(tmp_path)
    assert is_correct(box(r"\sqrt{8}"), r"2\sqrt{2}")  # a worker has started
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, response in HOSTILE.items():
        for task in ("math", "text", "synlogic", "choice"):
            start = time.monotonic()
            assert not is_correct(response, gold, task), name
            assert time.monotonic() - start < 4, name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    assert not list(tmp_path.iterdir())


def spellings(q):
    """Ways to write a rational number."""
    n, d = q.numerator, q.denominator
    sign, n = "-" if n < 0 else "", abs(n)
    fraction = f"{sign}\\frac{{{n}}}{{{d}}}"
    yield from (fraction, f"{sign}\\dfrac{{{3 * n}}}{{{3 * d}}}", f"{sign}{n}/{d}", f"x = {fraction}",
                f"{fraction} \\text{{ cm}}", f"\\left({fraction}\\right)")
    if d == 1:
        yield from (f"{sign}{n}", f"{sign}{n}.0", f"{sign}{n:,}", f"\\${sign}{n}", f"{sign}0{n}")
    elif n > d:
        yield f"{sign}{n // d}\\frac{{{n % d}}}{{{d}}}"


rationals = st.builds(Fraction, st.integers(-10 ** 6, 10 ** 6), st.sampled_from([1, 1, 2, 3, 7, 12, 125]))


@settings(deadline=None, max_examples=100)
@given(rationals, rationals)
def test_a_number_equals_all_its_spellings_and_no_other_number(q, other):
    golds, preds, others = list(spellings(q)), list(spellings(q)), list(spellings(other))
    assert all(is_correct(box(pred), gold) for gold in golds for pred in preds)
    assert q == other or not any(is_correct(box(pred), gold) for gold in golds for pred in others)


@settings(deadline=None, max_examples=100)
@given(rationals, st.sampled_from([100, Fraction(1, 100), 10, -1, 1 + Fraction(1, 10 ** 6), 1 + Fraction(1, 10 ** 12)]))
def test_no_tolerance(q, factor):
    assert q == 0 or not any(is_correct(box(pred), gold) for gold in spellings(q) for pred in spellings(q * factor))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_order_counts_in_tuples_but_not_in_lists(numbers, rng):
    other = rng.sample(numbers, len(numbers))
    gold, pred = ", ".join(map(str, numbers)), ", ".join(map(str, other))
    assert is_correct(box(pred), gold) and is_correct(box(rf"\{{{pred}\}}"), gold)
    assert is_correct(box(f"({pred})"), f"({gold})") == (numbers == other)
    assert not is_correct(box(f"{pred}, 100"), gold)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=r"0123456789+-*/^_!=<>.,;:()[]{}\ abxifesqrtcodnp|$%&", max_size=60))
def test_no_text_raises(text):
    assert isinstance(verify.equal("17", text), bool | None)
    assert is_correct(box("17") + text.replace("\\", ""), "17")
    assert verify.equal(text, text) is True or not text.strip()


@settings(deadline=None, max_examples=10)
@given(st.permutations(table(RIGHT)[::5] + table(WRONG)[::9]), st.integers(1, 3))
def test_verdicts_do_not_depend_on_order_or_workers(cases, workers):
    with Verifier(workers=workers) as one:
        scores = one.score([box(pred) for _, pred in cases], [gold for gold, _ in cases], "math")
    assert all(score == (case in table(RIGHT)) for case, score in zip(cases, scores))


def test_bad_calls_name_the_row_or_the_task(verifier):
    with pytest.raises(ValueError, match="row 1: the gold answer is empty"):
        verifier.score(["a", "b"], ["1", " "], "math")
    with pytest.raises(ValueError, match="task 'maths' is unknown; use one of math, countdown"):
        verifier.score(["a"], ["1"], "maths")
    with pytest.raises(ValueError):
        verifier.score(["a", "b"], ["1"], "math")
    assert verifier.score([], [], "math") == [] and not is_correct(box("1"), "")


def test_progress_duplicates_and_cache(verifier):
    seen = []
    responses = [box(r"\log_e 7"), box(r"\ln 8")] * 50
    scores = verifier.score(responses, [r"\ln 7"] * 100, "math", progress=lambda *counts: seen.append(counts))
    assert scores == [1.0, 0.0] * 50 and seen[-1] == (100, 100) and len(seen) == 2
    start = time.monotonic()
    assert verifier.score(responses, [r"\ln 7"] * 100, "math") == scores and time.monotonic() - start < 0.2


def slow(monkeypatch):
    """Lets a formula that takes minutes through to the worker."""
    monkeypatch.setattr(verify, "worth_asking", lambda *pair: True)
    return box(r"\int_0^1 \frac{\sin(\tan(x^x))}{\ln(1+x^{\cos x})} dx")


def test_an_overrun_is_wrong_and_the_next_answer_is_judged(monkeypatch):
    response = slow(monkeypatch)
    with Verifier(workers=1, timeout_s=1) as one:
        assert one.score([box(r"\log_e 5")], [r"\ln 5"], "math") == [1.0]
        start = time.monotonic()
        assert one.score([response, box(r"\log_e 7")], [r"\ln 7"] * 2, "math") == [0.0, 1.0]
        assert time.monotonic() - start < 5


def test_a_killed_worker_is_replaced():
    with Verifier(workers=1) as one:
        assert one.score([box(r"\log_e 5")], [r"\ln 5"], "math") == [1.0]
        os.kill(one.idle[0].pid, signal.SIGKILL)
        one.idle[0].wait()
        assert one.score([box(r"\log_e 7")], [r"\ln 7"], "math") == [1.0]


def test_memory_limit_and_a_worker_that_cannot_start():
    with Verifier(workers=1, memory_mb=30) as one, pytest.raises(RuntimeError, match="did not start"):
        one.score([box(r"\log_e 5")], [r"\ln 5"], "math")


def test_countdown_and_exact_verdicts_start_no_worker():
    with Verifier() as one:
        assert one.score([box("0.5")], [r"\frac12"], "math") == [1.0]
        assert one.score(["1 + 2 = 3"], ["3 = 1 2"], "countdown") == [1.0]
        assert one.idle == []


def test_from_threads(verifier):
    answers = [rf"\ln {n}" for n in range(2, 10)]
    scores = {}

    def score(n):
        scores[n] = verifier.score([box(rf"\log_e {n}")] * 8, answers, "math")
    threads = [threading.Thread(target=score, args=[n]) for n in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {n: [float(n == other) for other in range(2, 10)] for n in range(2, 6)}


def run(code, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True,
                            cwd=Path(verify.__file__).parent, **options)


def gone(pid, patience=10):
    """Whether a process has ended, or does so soon."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(sent):
    """Also when the parent is stopped in the middle of a long question."""
    parent = run(r"""
        import threading, verify
        verify.worth_asking = lambda *pair: True
        one = verify.Verifier(workers=1, timeout_s=3)
        one.score([r"\boxed{\log_e 5}"], [r"\ln 5"], "math")
        print(one.idle[0].pid, flush=True)
        one.score([r"\boxed{\int_0^1 \frac{\sin(\tan(x^x))}{\ln(1+x^{\cos x})} dx}"] , [r"\ln 5"], "math")
        """, stderr=subprocess.DEVNULL)
    worker = int(parent.stdout.readline())
    assert not gone(worker, 0.3)
    parent.send_signal(sent)
    parent.wait()
    assert gone(worker)


def test_under_torchrun_the_ranks_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Verifier().workers == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert Verifier().workers == 1 and Verifier(workers=3).workers == 3


def test_in_a_forked_child():
    child = run(r"""
        import os, verify
        one = verify.Verifier(workers=1)
        one.score([r"\boxed{\log_e 5}"], [r"\ln 5"], "math")
        pid = os.fork()
        right = one.score([r"\boxed{\log_e 7}"] * 2, [r"\ln 7", r"\ln 8"], "math") == [1.0, 0.0]
        if pid == 0:
            os._exit(0 if right else 1)
        print(right, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """)
    assert child.communicate()[0].strip() == "True 0"


def test_scores_a_file(tmp_path):
    rows = [{"response": box("1"), "answer": "1"}, {"response": box("2"), "answer": "1"},
            {"response": "1 + 2 = 3", "answer": "3 = 1 2", "task": "countdown"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, verify.__file__, str(tmp_path / "rows.jsonl")]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| math | 2 | 1 | 1 | 0.500 |" in table and "| countdown | 1 | 1 | 0 | 1.000 |" in table
    (tmp_path / "rows.jsonl").write_text('{"response": "a"}')
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "line 1: not a row" in failed.stderr
