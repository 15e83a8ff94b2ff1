"""Tests of verify.py and of the parsers that it uses, with small tables, hostile responses and
properties.

A row of a table is a gold answer and a number of predictions, which all get the same verdict. A
row that begins with ¦ has more predictions for the gold answer above it.
"""
import doctest
import json
import os
import re
import resource
import subprocess
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import verify
from runtime import formula, structure
from runtime.latex import COMMANDS, SIGNS, SPELLINGS, clean
from runtime.units import split_unit
from tests.conftest import box
from verify import Verifier, explain, extract_answer, is_correct, judge


# ------------------------------------------------------------------------------------ 1. extraction
@pytest.mark.parametrize("response, answer", [
    (r"\boxed{17}", "17"),
    (r"\boxed {17}", "17"),
    (r"\fbox{17}", "17"),
    ("\\boxed{\n7\n}", "7"),
    (r"\\boxed{7}", "7"),
    (r"a \\\boxed{7}", "7"),
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{1}" + " so" * 3000 + r" \boxed{2}", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\left\{ 1 \right.}", r"\left\{ 1 \right."),
    # a box in a box: the outermost counts, unless it contains nothing but another box
    (r"\boxed{ \boxed{3} }", "3"),
    (r"\boxed{3,4,\boxed{5}}", r"3,4,\boxed{5}"),
    (r"\boxed{x\neq\boxed5}", r"x\neq\boxed5"),
    (r"\boxed{1} \boxed{\text{not }\boxed{5}}", r"\text{not }\boxed{5}"),
    # no braces: up to the next $, space or closing brace
    (r"\boxed 5", "5"),
    (r"\boxed5.", "5."),
    (r"\boxed 5/7$", "5/7"),
    (r"$\boxed 5^2 \]", "5^2"),
    (r"\boxed 5! so", "5!"),
    (r"\boxed\frac{1}{2}\)", r"\frac{1}{2}"),
    # no answer
    (r"\boxed{17", None),
    (r"\boxed{1} and \boxed{17", None),
    (r"\boxed{}", None),
    (r"\boxed", None),
    (r"\boxed}", None),
    ("The answer is 17.", None),
    ("17", None),
    ("", None),
    (r"\boxed{" + "1" * 5000 + "}", None),
])
def test_extraction(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize("response, answer", [
    ("The answer is 17.", "17"),
    ("The final answer is: $\\frac{1}{2}$. I hope so.", "\\frac{1}{2}"),
    ("17", None),
    ("the answer is 3\nNo, the answer is (C).", "(C)"),
    (r"The answer is 4 or \boxed{5}", "5"),
    ("answer is 2.5.", "2.5"),
])
def test_extraction_of_phrases(response, answer):
    assert extract_answer(response, phrase=True) == answer


# ------------------------------------------------------------------------------------------ 2. text
@pytest.mark.parametrize("row", SPELLINGS, ids=lambda row: row.name)
def test_each_row_of_the_spelling_table_does_what_its_example_says(row):
    assert re.sub(row.pattern, row.replacement, row.before, flags=re.DOTALL) == row.after


@pytest.mark.parametrize("row", SPELLINGS, ids=lambda row: row.name)
def test_an_example_and_its_rewriting_are_one_answer(row):
    assert clean(row.before) == clean(row.after)


def test_each_command_of_the_sign_table_becomes_its_sign():
    for sign, names in SIGNS.items():
        for name in names.split():
            assert COMMANDS[name] == sign
            if name.isalpha() and sign:
                assert clean(rf"1\{name} 2") == clean(f"1{sign} 2"), name


@pytest.mark.parametrize("text, value, units", [
    ("5 cm", "5", {"cm"}),
    (r"5 \text{cm}^{2}", "5", {"cm", "^2"}),
    ("5 square feet", "5", {"ft", "^2"}),
    (r"5\frac{\text{km}}{\text{h}}", "5", {"km", "/h"}),
    ("5°", "5", {"°"}),
    ("5 tenths", "5 tenths", set()),
    (r"\sin 1°", r"\sin 1°", set()),
    ("5个", "5", {"个"}),
    (r"\text{Friday} \text{cm}", r"\text{Friday} \text{cm}", set()),
    ("5 cups of wheat flour", "5", {"cup"}),
    ("5 cups of tea per day", "5", {"cup", "/day"}),
    ("5 parts of ten", "5 parts of ten", set()),
    ("5% of AB", "5% of AB", set()),
])
def test_units(text, value, units):
    assert split_unit(text) == (value, units)


# ------------------------------------------------------------------------------------- 3. structure
@pytest.mark.parametrize("text, kind, parts", [
    ("5", "", ["5"]),
    ("(5)", "", ["5"]),
    ("⦃5⦄", "", ["5"]),
    ("[5]", "", ["[5]"]),
    ("1,2", ",", ["1", "2"]),
    ("⦃1,2⦄", ",", ["1", "2"]),
    ("(1,2)", "()", ["1", "2"]),
    ("[1,2)", "[)", ["1", "2"]),
    ("1±2", ",", ["1+2", "1-2"]),
    ("1∓2", ",", ["1-2", "1+2"]),
    ("(1,2)∪(3,4)", "∪", ["(1,2)", "(3,4)"]),
    ("⟦1&2¶3&4⟧", "¶", ["1&2", "3&4"]),
    ("2⟦1¶3⟧", "()", ["(2)*(1)", "(2)*(3)"]),
    ("⟦1&2⟧", "¶", ["1&2"]),
    ("-⟦1⟧", "¶", ["(-1)*(1)"]),
    ("⟦1&2¶3&4⟧⟦1¶2⟧", "", ["⟦1&2¶3&4⟧⟦1¶2⟧"]),
    ("⦃⦃1,2⦄⦄", "{}", ["⦃1,2⦄"]),
    ("{⦃1,2⦄}", ",", ["1", "2"]),
])
def test_parts(text, kind, parts):
    assert structure.parts(text) == (kind, parts)


@pytest.mark.parametrize("text, name, intervals", [
    ("x<5", "x", ["(-∞ 5)"]),
    ("5≤x", "x", ["[5 ∞)"]),
    ("1<x≤5", "x", ["(1 5]"]),
    ("[1,5)", None, ["[1 5)"]),
    ("x>1, x<5", "x", ["(1 5)"]),
    ("x<1 ∨ x>5", "x", ["(-∞ 1)", "(5 ∞)"]),
    ("x<1 ∨ x=5", "x", ["(-∞ 1)", "[5 5]"]),
    ("x≠5", "x", ["(-∞ 5)", "(5 ∞)"]),
    ("|x|<5", "x", ["(-(0)-(5) -(0)+(5))"]),
    (r"\mathbb{R}", None, ["(-∞ ∞)"]),
    ("⦃x|x<5⦄", None, ["(-∞ 5)"]),
    (r"\mathbb{R}∖⦃2,1⦄", None, ["(-∞ 1)", "(1 2)", "(2 ∞)"]),
    ("[0,3]∖⦃1,0,3,4⦄", None, ["(0 1)", "(1 3)"]),
    ("x≥2, x≠5", "x", ["[2 5)", "(5 ∞)"]),
    ("0<x<2, x≠1,3", "x", ["(0 1)", "(1 2)"]),
    ("⦃1,2⦄", None, ["[1 1]", "[2 2]"]),
])
def test_sets_of_real_numbers(text, name, intervals):
    found, ends = structure.real_set(text)
    assert (found, [f"{a}{low} {high}{b}" for a, low, high, b in ends]) == (name, intervals)


# ----------------------------------------------------------------------------------------- 4. value
@pytest.mark.parametrize("text, value", [
    ("2", 2),
    ("1/2/3", Fraction(1, 6)),
    ("2(3+4)", 14),
    ("2[3+4]", 14),
    ("-2^{2}", -4),
    (r"2\frac{1}{3}", Fraction(7, 3)),
    (r"2\frac{4}{3}", Fraction(8, 3)),
    ("1.5e3", 1500),
    ("|2-5|", 3),
    (r"\binom{5}{2}", 10),
    ("3!^{2}", 36),
    (r"\lfloor 7/2\rfloor", 3),
    ("2^{-1}", Fraction(1, 2)),
    ("0^{2}", 0),
])
def test_exact_values(text, value):
    assert formula.exact(formula.parse(text), 0) == value


@pytest.mark.parametrize("text, other", [
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"\sqrt[3]{-8}", "-2"),
    (r"\sin^{2} x+\cos^{2} x", "1"),
    (r"\sin^{-1} x", r"\arcsin x"),
    (r"\log_{2} 8", "3"),
    (r"\sin 2x\cos x", r"\cos x\sin(2x)"),
    ("e^{iπ}", "-1"),
    (r"\ln x^{2}", r"\ln(x^{2})"),
    ("f(x+1)", "f(1+x)"),
    (r"\cos π/3", "1/2"),
    (r"\sin 30°", "1/2"),
    ("x^{2/3}", r"\sqrt[3]{x}^{2}"),
])
def test_equal_values(text, other):
    assert formula.equal(formula.parse(text), formula.parse(other))


@pytest.mark.parametrize("text, other", [
    (r"\frac{dy}{dx}", r"\frac{y}{x}"),
    (r"\Delta x", "x"),
    (r"\gamma", r"\Gamma"),
    ("x'", "x"),
    ("f(2)", "2f"),
    ("f(x+1)", "fx+f"),
    ("f^{-1}(x)", "1/f(x)"),
    (r"\sqrt{x^{2}}", "x"),
    (r"\lceil n/2\rceil", r"\lceil n/5\rceil"),
    (r"\vec{a}", "a"),
    (r"n^{\underline{k}}", "n^{k}"),
    ("e", "2.718281828"),
    ("π", r"\frac{22}{7}"),
    (r"\sqrt{2}", "1.41421356237309504880168872420969807856967187537694"),
])
def test_different_values(text, other):
    assert not formula.equal(formula.parse(text), formula.parse(other))


@pytest.mark.parametrize("text", [
    "", "2 3", "2+", "(2", r"\int x", r"\foo", "x^{2}^{3}", "n!!", "204_{5}", "12:00", "ABC",
    r"5\text{ cm}", "5 for 6", "1=2", "²",
])
def test_texts_that_are_not_formulas_are_refused(text):
    with pytest.raises(formula.Unreadable):
        formula.parse(text)


@pytest.mark.parametrize("text", [
    "9^{9^{9^{9}}}", "3^{1000000007}", "1/0", "0^{0}", r"\frac{0}{0}", r"\ln 0",
])
def test_formulas_without_a_value_or_with_a_huge_one_equal_nothing(text):
    assert not judge(text, f"{text}+0").right


# ----------------------------------------------------------------------------------------- verdicts
RIGHT = r"""
# numbers
5 ¦ x = 5 ¦ 5 \text{ cm} ¦ \$5 ¦ 5\% ¦ 5.0 ¦ 05 ¦ 5. ¦ {5} ¦ \text{5} ¦ 5 cm ¦ \mathbf{5} ¦ f(2) = 5
5 ¦ 2 + 3 = 5 ¦ 5^\circ ¦ \sqrt{25}
5 ¦ 5 \text{ cm}^2 ¦ 5~\mathrm{m/s} ¦ 5 \text{ square units} ¦ 5 dollars ¦ \frac{10}{2} ¦ (5)
 ¦ \{5\} ¦ 10/2
5 ¦ 5 \text{ m} ¦ 5 = x ¦ {5 \text{ m}}
1000 ¦ 1,000 ¦ 1{,}000 ¦ 1,\!000 ¦ 1\,000 ¦ 10^3 ¦ 1e3 ¦ 1 \times 10^{3} ¦ \$1,000.00 ¦ x = 1,000
1000 ¦ 1{,}000 \text{ km} ¦ \text{1,000 dollars}
\frac{1}{2} ¦ \dfrac{1}{2} ¦ \tfrac12 ¦ \frac12 ¦ \frac 1 2 ¦ 0.5 ¦ .5 ¦ 1/2 ¦ \frac{-1}{-2}
\frac{1}{2} ¦ \left(\frac{1}{2}\right) ¦ \frac12 \approx 0.5
-\frac{7}{2} ¦ -3.5 ¦ -3\frac{1}{2} ¦ -3 1/2 ¦ \frac{-7}{2} ¦ \frac{7}{-2} ¦ −\frac72
7.5e7 ¦ 7.5 \times 10^{7} ¦ 7.5 \cdot 10^7 \text{ kg} ¦ 75000000 ¦ 75{,}000{,}000
44\% ¦ 44 ¦ 44\text{ percent} ¦ 44% ¦ 44 percent
2\sqrt{3} ¦ \sqrt{12} ¦ 2 \sqrt 3 ¦ \frac{6}{\sqrt{3}} ¦ 2 \cdot 3^{1/2} ¦ \sqrt{3} + \sqrt{3}
2\sqrt{3} ¦ 2\sqrt3 \text{ m}
(x+1)^2 ¦ x^2 + 2x + 1 ¦ (1+x)(x+1) ¦ x(x+2)+1
4nm + 2 ¦ 2 + 4mn
5 \text{ cm}, 6 \text{ cm} ¦ 6 cm, 5 cm ¦ 5, 6
13.6 eV ¦ 13.6 ¦ 13.6\text{ eV}
361 ¦ 361\,\mu\mathrm{m} ¦ 361\text{ μm} ¦ 361\text{ pm} ¦ 361\text{ MPa} ¦ 361\text{ kpc}
5\,\mu\text{m} ¦ 5\text{ micrometers} ¦ 5\text{ microns}
5 ¦ 5\mathrm{~\mu F}
60 Hz ¦ 60 ¦ 60\text{ Hz}
ab^2 ¦ b^2 a ¦ a \cdot b \cdot b
AB+CD ¦ CD+AB
2 - 3i ¦ -3i + 2 ¦ 2 + 3i^3
e^{2x} ¦ (e^x)^2 ¦ \exp(2x)
(e-1)^2 ¦ e^2-2e+1
0.002 ¦ 2e-3
\ln 2 ¦ \ln(2) ¦ \log_e 2 ¦ \frac{\ln 4}{2}
\sin 2x ¦ 2 \sin x \cos x
n! ¦ n \cdot (n-1)!
y = 2x + 3 ¦ 2x + 3 ¦ 3 + 2x = y ¦ 2x - y + 3 = 0 ¦ y = 3 + 2x
x > 3 ¦ 3 < x ¦ (3, \infty) ¦ x \in (3, \infty)
(2, 5] ¦ \left( 2, 5 \right] ¦ x \in (2,5] ¦ (\frac42, 5] ¦ \in (2,5]
[1,2) \cup (3,4) ¦ (3,4) \cup [1,2)
(1, -2) ¦ \left(1, -2\right) ¦ (1,\,-2) ¦ (x, y) = (1, -2) ¦ (\frac22, -2.0)
1, 2 ¦ 2, 1 ¦ \{1, 2\} ¦ 1 \text{ and } 2 ¦ x = 1 \text{ or } x = 2 ¦ x = 1, 2 ¦ 1; 2
 ¦ 1, \text{ and } 2
3 \pm \sqrt{2} ¦ 3 + \sqrt2, 3 - \sqrt2 ¦ \{3-\sqrt2, 3+\sqrt2\} ¦ 3 \pm 2^{1/2}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{bmatrix}1&2\\3&4\end{bmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
 ¦ \left[\begin{array}{cc}1&2\\3&\frac82\end{array}\right]
\begin{pmatrix} 1 & -1 \\ 1 & \phantom -1 \end{pmatrix} ¦ \begin{pmatrix} 1&-1\\1&1 \end{pmatrix}
 ¦ \begin{pmatrix} \phantom{-}1 & -1 \\ 1 & 1 \end{pmatrix}
1323_4 ¦ 1323_{4} ¦ 1323_{\text{4}}
\text{Friday} ¦ Friday ¦ \textbf{Friday} ¦ friday ¦ \mathrm{Friday}
\text{Point A} ¦ \text{point A} ¦ point A
\text{mode} ¦ mode ¦ \text{Mode}
\text{the x-axis} ¦ \text{The x-axis}
\text{(C)} ¦ C ¦ (C) ¦ \textbf{(C)}
12:00 ¦ 12:00
7 \text{ hours} ¦ 7 ¦ 7 \text{ hr} ¦ 7\text{ hours}.
101,111 ¦ 111, 101 ¦ 101111 ¦ 101, 111
x=101,234 ¦ 101234 ¦ 101, 234
1.2 ¦ \approx 1.2 ¦ \approx 1.2\text{ cm} ¦ =1.2
7e37 ¦ 7 \times 10^{37}\,\mathrm{erg}/\mathrm{s} ¦ 7 \times 10^{37} \text{ erg}
3e8 ¦ 3 \times 10^8 \, \mathrm{m}/\mathrm{s}
6 ¦ 6\text{ in} ¦ 6 \text{ in}^2 ¦ 6\text{ ways}
\frac12 ¦ \sin 30^\circ ¦ \cos(60^{\circ})
\emptyset ¦ \{\} ¦ \varnothing
5 ¦ 5\,\mathrm{m\,s^{-1}} ¦ 5 \text{ m/s}^{2} ¦ 5\,\mathrm{kg}\cdot\mathrm{m}
5 ¦ 5\,\frac{\mathrm{m}}{\mathrm{s}} ¦ \text{5 m} ¦ \mathbf{5\text{ cm}}
10\pi ¦ 10\pi\text{ m} ¦ 10\pi\text{ m}^2
\frac{1}{3} ¦ 0.\overline{3} ¦ .\overline{33} ¦ 0.3\overline{3}
-\frac{7}{6} ¦ -1.1\overline{6}
1,234 ¦ 1234 ¦ 1{,}234 ¦ 1,234.0
2500, 7500 ¦ 2,500, 7,500 ¦ 7,500 \text{ and } 2,500 ¦ x = 2,500, 7,500
2400, 1350, 864 ¦ 2,400, 1,350, \text{ and } 864
221, 8 ¦ 8,221 ¦ 8, 221 ¦ \{8, 221\}
8, 7, 221 ¦ 7, 8,221
\pm 3 ¦ (\pm 3) ¦ 3, -3 ¦ \{\pm 3\}
(\pm 5, 0) ¦ (5, 0), (-5, 0) ¦ (-5, 0), (5, 0)
# derivatives, functions and letters
m\frac{dv}{dt}+bv=f ¦ m \frac{d v}{d t} = f - b v ¦ \frac{dv}{dt}+\frac{b}{m}v=\frac{f}{m}
 ¦ f = bv + m\dot{v}
\frac{dv}{dt}=\frac{f-bv}{m} ¦ m\frac{dv}{dt}+bv=f
\frac{dy}{dx}=ky ¦ y'=ky ¦ dy/dx = ky ¦ \frac{\mathrm{d}y}{\mathrm{d}x} = ky
I\frac{d\omega}{dt}+2B\omega=T ¦ \dot{\omega}=\frac{T-2B\omega}{I}
\frac{d^2y}{dx^2}+4y=0 ¦ y''+4y=0
\frac{d^2y}{dx^2}+2\frac{dy}{dx}+y=0 ¦ y''+2y'+y=0
N'=kN ¦ \frac{ d N }{ d T }=kN
\theta\frac{dx}{dt}=1 ¦ \theta x'=1
\rho\frac{d^2x}{dt^2}=1 ¦ \rho x''=1
\ddot{x}+2\beta\dot{x}=0 ¦ \ddot{x}=-2\beta\dot{x}
\sqrt{\frac{2GM}{R}} ¦ \sqrt{2GM/R}
\ddot{x}+\omega^2x=0 ¦ \ddot x=-\omega^2 x ¦ x''=-\omega^2 x
m_pc^2(\gamma^2-1)\sin^2\theta ¦ m_p c^2\sin^2\theta(\gamma^2-1)
\frac{\sinh(at)}{a} ¦ \frac{e^{at}-e^{-at}}{2a} ¦ \frac{1}{2a}(\exp(at)-\exp(-at))
 ¦ \frac{1}{2a}(\exp{a*t} - \exp{-a*t})
\tanh x ¦ \frac{e^{2x}-1}{e^{2x}+1} ¦ \frac{\sinh x}{\cosh x}
\sin x\cos x ¦ \frac{1}{2}\sin 2x ¦ \cos x \sin x ¦ \cos(x)\sin(x) ¦ \sin(x)\cos x
\log_{10}2 ¦ \lg 2 ¦ \frac{\ln2}{\ln10}
|x| ¦ \sqrt{x^2} ¦ \left|x\right|
|bd| ¦ |b||d| ¦ \sqrt{b^2d^2}
\lfloor x\rfloor ¦ -\lceil-x\rceil
\max(a,b)+\gcd(p,q) ¦ \text{gcd}(q,p)+\max\{b,a\}
1-\tanh^2x ¦ \text{sech}^2x ¦ \operatorname{sech}^2(x)
\|v\| ¦ \lVert v\rVert ¦ \left\|v\right\|
\boldsymbol{\alpha}x ¦ \alpha x
3\mathbf i-4\mathbf j ¦ (3,-4) ¦ \langle3,-4\rangle ¦ 3\hat{i}-4\hat{j}
3\hat{j}+\frac12\hat{k} ¦ \frac{\hat{k}}{2}+3\hat{j}
\frac{E[1+\nu]}{2} ¦ \frac{E(1+\nu)}{2}
lcm(a,b) ¦ \text{lcm}(b,a)
\mu\mathrm{d}x ¦ \mu dx
\pi r^2h ¦ \pi\mathrm{h}r^2
(3,-4,1) ¦ 3\mathbf{i}-4\mathbf{j}+\mathbf{k} ¦ 3\hat\imath-4\hat\jmath+\hat k
4 ¦ f'(2)=4
\frac12 ¦ P(X=2)=\frac12 ¦ E[X]=\frac12
x\to\infty ¦ x\rightarrow\infty
\bar z+\vec v+\hat n+\tilde p ¦ \overline{z}+\overrightarrow{v}+\widehat{n}+\widetilde{p}
x_1^2+y_1' ¦ x^2_1+y'_1
\lceil n/2\rceil+1 ¦ \lfloor(n+3)/2\rfloor ¦ \lfloor\frac{n+1}{2}\rfloor+1
\lfloor\sqrt{n-1}\rfloor ¦ \lceil\sqrt n\rceil-1
\lfloor\log_2n\rfloor+1 ¦ \lceil\log_2(n+1)\rceil
y\sin x ¦ \sin(x)y
\cot x ¦ \operatorname{cot} x ¦ \text{cot}(x) ¦ cot(x)
\csc 10 ¦ csc(10)
\max(a,b)+1 ¦ 1+\max(a,b)
\nabla f+1 ¦ 1+\nabla f
x\theta ¦ x(\theta)
\ln x+C ¦ \ln|x|+C
\ln|x|+C ¦ \frac{\ln x^2}{2}+C
x\sqrt{x} ¦ \sqrt{x^3} ¦ x^{3/2} ¦ x^\frac{3}{2} ¦ x^\frac32 ¦ \frac{1}{x^-\frac32}
\frac{1}{x^2} ¦ x^-{2}
\binom{n}{2} ¦ \frac{n(n-1)}{2}
e^{i\pi/3} ¦ \frac{1}{2}+\frac{\sqrt3}{2}i ¦ \cos \pi/3 + i \sin \pi/3
\frac{\sqrt3}{3} ¦ \cot \pi/3 ¦ \tan \pi/6
2 ¦ \sec \pi/3 ¦ \csc \pi/6
\arcsin(10/13) ¦ np.arcsin(10/13) ¦ \sin^{-1}\frac{10}{13}
6x^2+1 ¦ 6x**2+1 ¦ 6*x^2 + 1
# equations
y=2x+3 ¦ y-3=2x ¦ 4x-2y+6=0
x^2+y^2=25 ¦ x^2+y^2=5^2
MR=SRMC ¦ SRMC=MR
f(x)=x ¦ f(z)=z ¦ x
 ¦ f(x)=x\text{ for all }x ¦ f(x)=x, \forall x\in\mathbb{R} ¦ f(x)=x\text{ for all real numbers }x
f(n)=n ¦ f(n)=n\text{ for all }n\in\mathbb{N} ¦ f(n)=n, \forall n\in\mathbb{Z}_{>0}
 ¦ f(n)=n\text{ for all positive integers $n$} ¦ f(n)=n\text{ for every }n\ge1
 ¦ f(n)=n\text{ for all natural numbers }n ¦ f(n)=n\text{ for all }n>0
f(k)=k ¦ f(k)=k\text{ for all }k\in\mathbb{N}
\lceil k/2\rceil ¦ \lfloor (k+1)/2\rfloor
f(x)=2x ¦ f(x)=x+x=2x ¦ f (z) = 2z ¦ f( z )=2z ¦ f (x) = x+x
f(x)=\sqrt x ¦ f(t)=\sqrt t
P(n)=n^2 ¦ P(k)=k^2
(x,y)=(2,3) ¦ x=2, y=3 ¦ y=3 \text{ and } x=2 ¦ (2,3)
x=2,y=3 ¦ (x,y)=(2,3) ¦ 2,3 ¦ x,y=(2,3) ¦ y=3; x=2
x=1,y=2\text{ or }x=3,y=4 ¦ x=3,y=4\text{ or }y=2,x=1 ¦ (x,y)=(3,4),(1,2)
x=1\text{ or }x=2 ¦ x_1=1, x_2=2
y=\pm\frac34x ¦ 3x\pm4y=0 ¦ y=\frac34x, y=-\frac34x
x=\pm3 ¦ \pm3 ¦ x=3, x=-3 ¦ 3, -3
\pm3 ¦ x=\pm3
a_n=2n-1 ¦ a_n=2n-1\ (n\in\mathbb{N}^*) ¦ a_n=2n-1, n\in\mathbb{N}
x>1,y>2\text{ or }x<0,y<1 ¦ x<0,y<1\text{ or }y>2,x>1
1,2\text{ or }3,4 ¦ 3,4\text{ or }2,1
(1,2) ¦ \begin{cases}x=1\\y=2\end{cases} ¦ \left\{\begin{array}{l}x=1,\\y=2.\end{array}\right.
\begin{cases}x&x>0\\-x&x\le0\end{cases} ¦ \begin{cases}x & x>0 \\ -x & x\leq 0\end{cases}
2=x ¦ 2 ¦ x=2 ¦ 1+1
(3,\frac\pi2) ¦ r=3,\theta=\frac\pi2 ¦ \theta=\frac\pi2, r=3
(1,2,3) ¦ \rho=1,\theta=2,\phi=3
y(x)=x^2 ¦ y=x^2
y=C_1e^{x}+C_2 ¦ y(x)=C_2+C_1e^x ¦ y ( x )=C_2+C_1e^x
# sets of real numbers
[-2,1) ¦ \{x|-2\le x<1\} ¦ -2\le x<1 ¦ 1>x\ge-2 ¦ \{x\in\mathbb{R}: -2\le x<1\}
 ¦ x \ge -2 \text{ and } x<1 ¦ \{x \mid -2\le x<1\} ¦ f(x)\ge-2, f(x)<1
 ¦ \{ f(x) : -2\le f(x)<1 \} ¦ x<1, x\ge-2
(-\infty,1)\cup(3,\infty) ¦ x<1\text{ or }x>3 ¦ |x-2|>1 ¦ \{x:x<1\}\cup\{x:x>3\} ¦ x < 1 ∪ x > 3
 ¦ x<1, \text{ or } x>3
 ¦ x \in (-\infty,1) \text{ or } x \in (3,\infty) ¦ (3,\infty) \text{ or } (-\infty,1)
 ¦ (-\infty,1) U (3,\infty) ¦ (-\infty,1) \text{ U } (3,\infty)
(-2,2) ¦ |x|<2 ¦ \{x: |x|<2\} ¦ |X|<2
[-3,1] ¦ | x + 1 | \le 2 ¦ 2\ge|x+1|
(-\infty,-2)\cup(2,\infty) ¦ |x|>2
(-\infty,-2]\cup[2,\infty) ¦ |x|\ge2
x<0\text{ or }x=1\text{ or }x=-1 ¦ x<0\text{ or }x=\pm1
x<-1\text{ or }x>3 ¦ |x-1|>2
x\ne5\text{ cm} ¦ 5\text{ cm}\ne x
x\neq3 ¦ x!=3 ¦ x \not= 3 ¦ \mathbb{R}\setminus\{3\} ¦ x\in\mathbb{R}, x\neq 3
a<b<c ¦ c>b>a
\gcd(a,b)>1 ¦ 1<\gcd(a,b)
P(X>2)<\frac12 ¦ \frac12>P(X>2)
P(X>1)<1 ¦ 1>P(X>1)
|x|\ne5 ¦ 2|x|\ne10
x\ge5 ¦ x>=5 ¦ 5<=x ¦ 2x \ge 10
x>1, y<2 ¦ y<2, x>1 ¦ y<2; x>1
x<1\text{ or }y^2>3 ¦ y^2>3\text{ or }x<1
x^2>4, y<2 ¦ y<2, x^2>4
x>1, y<2, z<3 ¦ z<3, y<2, x>1
x^2>4, x\ne5 ¦ x\ne5, x^2>4
\{3k|k\in\mathbb{Z}\} ¦ \{x|x=3k,k\in\mathbb{Z}\} ¦ \{3n: n\in\mathbb{Z}\} ¦ \{3k \mid k \in ℤ\}
 ¦ 3n, n\in\mathbb{Z} ¦ 3n\ (n\in\mathbb{Z}) ¦ \{ x | x = 3n ; n \in \mathbb{Z} \}
\{3k+1|k\in\mathbb{Z}\} ¦ 3N+1, N \in \mathbb{Z}
\{(x,y)|y=2x\} ¦ \{(x,y):2x=y\}
\{(k,2k)|k\in\mathbb{Z}\} ¦ \{(x, y)|(x,y)=(n,2n), n\in\mathbb{Z}\}
\text{all real numbers} ¦ \mathbb{R} ¦ (-\infty,+\infty) ¦ \R ¦ \Bbb R
# braces, spaces and Unicode
\text{odd} ¦ (\text{odd}) ¦ \{\text{odd}\}
\frac{a}{b} ¦ \frac ab ¦ a/b ¦ \frac{a}b ¦ {a \over b}
\frac{\sqrt2}{t^2} ¦ {\sqrt{2} \over t^{2}} ¦ {\sqrt2\over t^2}
10 ¦ \tbinom52 ¦ \binom 5 2 ¦ {5 \choose 2}
x \equiv 3 \pmod 7 ¦ x\equiv3\pmod{7} ¦ x\equiv3\ (\text{mod }7) ¦ x\equiv3\text{ (mod 7)}
 ¦ x\equiv3 (mod 7) ¦ x\equiv3\mod7 ¦ x\equiv3\ (\mathrm{mod}\ 7) ¦ x\equiv3(\bmod7)
x\equiv3\pmod{p^2} ¦ x\equiv3\ (\bmod p^{2})
1,2 ¦ 1\text{, }2 ¦ 1\text{, and }2
\{1,2,3\} ¦ {1,2,3} ¦ 3,2, \text{ and } 1
\{1,2\} ¦ {1,2} ¦ x\in{1,2} ¦ 1或2 ¦ 1和2 ¦ 1、2
x^2 ¦ x² ¦ x^{2}
x_1+x_2 ¦ x₁+x₂
\alpha+\theta ¦ α+θ
\epsilon\theta\phi ¦ \varepsilon\vartheta\varphi ¦ ϵϑϕ ¦ εθφ
\alpha\beta\gamma\delta\zeta\eta\iota\kappa\lambda\mu\nu\xi ¦ αβγδζηικλμνξ
\rho\sigma\tau\upsilon\chi\psi\omega\hbar\ell ¦ ρστυχψωℏℓ
\Gamma\Delta\Theta\Lambda\Xi\Pi\Sigma\Phi\Psi\Omega ¦ ΓΔΘΛΞΠΣΦΨΩ
\mathbb{R}\mathbb{Z}\mathbb{N}\mathbb{Q}\mathbb{C} ¦ ℝℤℕℚℂ
\frac{\partial\nabla f}{\partial x} ¦ \frac{∂∇f}{∂x}
2x ¦ 2×x ¦ 2·x ¦ 2⋅x ¦ 2∙x ¦ 2∗x
\sqrt{\frac{x}{2}} ¦ √{x÷2}
2\sqrt[3]{x+1}+\sqrt[4]{12} ¦ 2∛(x+1)+∜12
\lfloor x\rfloor+\lceil y\rceil ¦ ⌊x⌋ + ⌈y⌉
\sum\prod\int\cap\subset\subseteq\supset\supseteq\notin ¦ ∑∏∫∩⊂⊆⊃⊇∉
\parallel\perp\angle\triangle\to\implies\oplus\otimes\propto\cong ¦ ∥⊥∠△→⇒⊕⊗∝≅
30 ¦ ∠ABC = 30°
|x|\le5 ¦ ∣x∣⩽5 ¦ |x|≦5
x'\ge5 ¦ x′⩾5 ¦ x'≧5
2,3 ¦ 2或3 ¦ 2、3 ¦ x=2或x=3 ¦ x=3, y=2
\text{Monday} ¦ \textsf{Monday} ¦ \texttt{Monday} ¦ \text{Monday.}
12,13 ¦ \text{12 and 13}
\begin{pmatrix}2\\4\end{pmatrix} ¦ \begin{smallmatrix}2\\4\end{smallmatrix}
 ¦ \begin{pmatrix}2\\[1ex]4\end{pmatrix} ¦ 2\begin{pmatrix}1\\2\end{pmatrix}
\begin{pmatrix}1\\2\end{pmatrix} ¦ (1,2)^T ¦ [1,2]^\top ¦ \begin{pmatrix}1&2\end{pmatrix}^{T}
\begin{pmatrix}1&2\\3&4\end{pmatrix} ¦ \begin{pmatrix}1&3\\2&4\end{pmatrix}^{\intercal}
\begin{pmatrix}1&2\end{pmatrix} ¦ \begin{pmatrix}1\\2\end{pmatrix}^T
v^T ¦ v^{\mathsf{T}} ¦ v^\top
3\pm\sqrt2 ¦ 3\mp\sqrt2
\begin{pmatrix}2\\4\end{pmatrix} ¦ (2,4) ¦ x=2, y=4
(2,4) ¦ \begin{pmatrix}2\\4\end{pmatrix}
\frac{36}{49} ¦ 36:49 ¦ 72:98 ¦ 36 : 49
1:4 ¦ \frac14 ¦ 1/4 ¦ 1 / 4
1:58\text{ am} ¦ 1:58 a.m. ¦ 1:58 AM ¦ 1{:}58\text{ AM}
8:34\text{ p.m.} ¦ 08:34 PM ¦ 8:34 PM
\text{ham, egg, tea} ¦ \text{ham, egg, and tea} ¦ \text{tea}, \text{ham}, \text{egg}
1,2,3,\ldots ¦ 1,2,3,.. ¦ 1,2,3,...
# numerals
1,234_8 ¦ 1234_8 ¦ (1234_8)
111, \! 111, \! 111 ¦ 111111111 ¦ 111,111,111 ¦ 111\,111\,111
1000 ¦ 1 000 ¦ 1\;000 ¦ 1~000 ¦ 10³
\frac13 ¦ 0.\dot3 ¦ 0.\bar3 ¦ 0.\overline3
\frac{1}{7} ¦ 0.\dot{1}4285\dot{7}
54 ¦ 54_{10} ¦ 54_{\text{10}}
204_5 ¦ (204)_5 ¦ 204_{5}
 ¦ 204_{(5)}
3.5 ¦ 3½ ¦ 3 1/2
# units
5 ¦ 5 apples ¦ 5 km/h ¦ 5 m/s ¦ 5 sq. ft. ¦ 5米 ¦ 5 \text{个} ¦ 5 pct ¦ 5^\circ\text{C}
 ¦ 5\text{ gallons per minute} ¦ 5\ 
5 ¦ 5\text{ cups of flour} ¦ 5\text{ loaves of bread.} ¦ 5\text{ percent of the class}
5 ¦ 5\text{ jellybeans} ¦ 5\text{ new yellow dishes} ¦ 5\text{ two-digit numbers}
 ¦ 5\text{ whole numbers} ¦ 5\text{ perfect squares} ¦ \vphantom{1}5
5\text{ gallons per hour} ¦ 5\text{ gallons of water per hour} ¦ 5\text{ gallons of water}
12\text{ widgets} ¦ 12 ¦ 12 widgets
12\text{ gadgets} ¦ 12 ¦ 12.0\text{ gadgets}
5cm ¦ 5 ¦ 5\text{ cm}
10 hrs ¦ 10 ¦ 10\text{ hours}
\frac{1}{3}mL^2 ¦ \frac{mL^2}{3} ¦ \frac13 L^2 m
10\text{ km/h} ¦ 10\,\mathrm{km}/\mathrm{h} ¦ 10
30 ¦ 5\text{ times }6 ¦ 30\text{ times a week}
# roundings
\frac13,\frac23 ¦ \frac13\approx 0.333, \frac23\approx 0.667 ¦ \frac13\approx0.\overline{3}; \frac23
1\pm\sqrt2 ¦ x=1+\sqrt2\approx2.41, x=1-\sqrt2\approx-0.41
\approx 8.2 ¦ \approx 8.2 \approx 8
(\sqrt2,1) ¦ (\sqrt2\approx1.41, 1)
\frac{2469}{2} ¦ \frac{2469}{2} \approx 1,234.5
# large and unknown exponents
2^{k-n} ¦ \frac{2^k}{2^n} ¦ 2^{-(n-k)} ¦ (1/2)^{n-k} ¦ 2^k\cdot2^{-n}
(-1)^{n-k} ¦ (-1)^{k-n} ¦ (-1)^{n+k} ¦ \frac{(-1)^n}{(-1)^k}
\frac{(-1)^{n+1}}{n} ¦ \frac{(-1)^{n-1}}{n} ¦ -\frac{\cos n\pi}{n}
(-2)^n ¦ (-1)^n2^n ¦ (-\frac12)^{-n}
e^{x-y} ¦ \frac{e^x}{e^y}
x^{2023}+1 ¦ 1+x^{2023} ¦ 1+x\cdot x^{2022}
(x+1)^{2005} ¦ (1+x)^{2005}
# money, percent and units of several words
\$5 ¦ 5 ¦ \$ 5.00 ¦ 5\text{ dollars} ¦ x = \$5 ¦ 5\$ ¦ \$\frac{10}{2} ¦ \text{\$5}
-\$5 ¦ -5 ¦ \$-5
\$5, \$6 ¦ 6, 5 ¦ \$6, \$5 ¦ 6\text{ dollars}, 5\text{ dollars}
\$1.5\text{ million} ¦ 1.5\text{ million} ¦ \$1.5\text{ million}
\$5\text{ per hour} ¦ 5\text{ dollars per hour} ¦ \$5 ¦ 5
5.4\text{ cents} ¦ 5.4 ¦ 5.4\text{ cent}
33\frac13\% ¦ \frac{100}{3} ¦ 33\frac{1}{3}\text{ percent}
\text{25\% decrease} ¦ 25\%\text{ decrease}
(5\%, 10\%) ¦ (5, 10)
60\text{ miles per hour} ¦ 60 ¦ 60\text{ mph} ¦ 60\text{ mi/h} ¦ 60\text{ miles}
 ¦ 60\text{ miles an hour}
5 \text{ m/s} ¦ 5 \text{ m} ¦ 5\frac{\text{m}}{\text{s}} ¦ 5\,\mathrm{m\,s^{-1}}
9.8\text{ m/s}^2 ¦ 9.8\,\mathrm{m\,s^{-2}} ¦ 9.8 ¦ 9.8\text{ m s}^{-2}
 ¦ 9.8\text{ meters per second squared}
5\text{ cm} ¦ 5厘米
5^\circ\text{C} ¦ 5 ¦ 5^\circ ¦ 5\text{ degrees Celsius} ¦ 5℃ ¦ 5\text{ C}
864 \mbox{ inches}^2 ¦ 864\text{ in}^2 ¦ 864\text{ square inches} ¦ 864\text{ in.}^2
5\text{ MeV} ¦ 5 ¦ 5\,\mathrm{MeV}
5\text{ ms} ¦ 5 ¦ 5\text{ milliseconds}
\text{Yes} ¦ yes ¦ \text{YES} ¦ Yes
\text{odd} ¦ ODD ¦ \text{Odd} ¦ odd
\text{May} ¦ May ¦ may ¦ \text{MAY}
\text{Sun} ¦ Sun
# inequalities
(0,1) ¦ x\in(0,1) ¦ x_1\in(0,1) ¦ f(x)\in(0,1)
(1,2),(3,4) ¦ (x,y)\in\{(3,4),(1,2)\}
2,3 ¦ (2\text{ or }3)
x^2>4 ¦ 4<x^2
(4,\infty) ¦ x_1 > 4 ¦ \theta>4 ¦ f(x) > 4 ¦ AB > 4
\$12 ¦ 3\times\$4=\$12 ¦ \$7+\$5
70\% ¦ 100\%-30\%=70\%
CAB ¦ \text{CAB}
# names with words, sums of names and points
3 ¦ x_{\text{max}} = 3 ¦ V_{\text{total}} = 3 ¦ V_\text{total} = 3 ¦ x_{\max}=3
\lambda_{\text {red}} / \sqrt{2} ¦ \frac{\lambda_{\text{red}}}{\sqrt{2}}
m_{\max }=n^{2}-n-1 ¦ m_{\text{max}}=n^2-n-1
25 ¦ m+n=25 ¦ a+b+c=25 ¦ |a-b| = 25 ¦ [ABC]=25 ¦ E[X]=25 ¦ m+n=12+13=25
a+b ¦ a+b=c ¦ c=a+b
1234 ¦ f(2)=1,234 ¦ S(n) = 1,234
1234 ¦ f\left( 2 \right) = 1234
(-\infty,1] ¦ f\left( x \right) \le 1
\{x\mid x>1\} ¦ \left\{x\,\middle|\,x>1\right\}
(2,3) ¦ x=2, y=3 ¦ y=3, x=2 ¦ \langle 2,3\rangle ¦ \lparen 2,3\rparen ¦ ⟨2,3⟩
x=2,y=3 ¦ (2,3)
x=2,y=3,z=4 ¦ (2,3,4)
[-6,6] ¦ \lbrack -6,6\rbrack
\begin{pmatrix}1\\2\end{pmatrix} ¦ -\begin{pmatrix}-1\\-2\end{pmatrix}
 ¦ +\begin{pmatrix}1\\2\end{pmatrix}
 ¦ \frac12 \cdot \begin{pmatrix}2\\4\end{pmatrix}
 ¦ \begin{pmatrix} x \\ y \end{pmatrix} = \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix}2&4\\6&8\end{pmatrix} ¦ 2\begin{pmatrix}1&2\\3&4\end{pmatrix}
 ¦ 2\left[\begin{array}{cc}1&2\\3&4\end{array}\right]
# sets
(-\infty,1)\cup(1,3)\cup(3,\infty) ¦ x\neq 1, x\neq 3 ¦ x\ne1,3 ¦ x\neq 3 \text{ and } x\neq 1
(-\infty,5)\cup(5,\infty) ¦ (-\infty,\infty)\setminus\{5\} ¦ \mathbb{R}\setminus\{5\}
 ¦ \{x|x\in\mathbb{R}\setminus\{5\}\} ¦ \{x : x\in(-\infty,5)\cup(5,\infty)\}
(-\infty,-1)\cup(-1,1)\cup(1,\infty) ¦ x \ne -1 \text{ and } x \ne 1
 ¦ x\ne\pm1 ¦ \mathbb{R}\setminus\{\pm1\}
(-\infty,0)\cup\{1\} ¦ x<0\text{ or }x=1 ¦ x(t)<0\text{ or }x=1 ¦ \{x: x=1 \text{ or } x<0\}
[-1,0)\cup(0,1] ¦ [-1,1]\setminus\{0\} ¦ -1\le x\le1, x\ne0 ¦ x \ne 0 \text{ and } -1\le x\le1
(0,5)\cup(5,\infty) ¦ (0,\infty)\setminus\{5\} ¦ x>0, x\ne5 ¦ f(x)>0, f(x)\ne5
 ¦ (0,+\infty)\setminus\{5\}
(0,3)\cup(3,5) ¦ x>0, x<5, x\ne3
(0,1] ¦ [0,1]\setminus\{0\} ¦ 0\le x\le1, x\ne0
\{\{1,2\}\} ¦ \{\{2,1\}\}
\{n+k|n\in\mathbb{Z}\} ¦ \{m+k|m\in\mathbb{Z}\}
0.56=56\% ¦ 0.56 ¦ 56\% ¦ \frac{14}{25}
-5/2 = -2.5 = -10/4 ¦ -2.5
x=\frac{\pi}{6}+\pi k ¦ x=\frac{\pi}{6}+k\pi, k\in\mathbb{Z}
 ¦ x=k\pi+\frac{\pi}{6}, k \in \mathbb{Z}
# typography
\frac{28}{3} ¦ 4\times 2\frac{1}{3} ¦ 4 \cdot 2 1/3
\infty ¦ +\infty ¦ (\infty)
5 ¦ \textcolor{red}{5} ¦ {\bf 5} ¦ \underline{5} ¦ \large 5
\frac{3\sqrt{3}}{4} ¦ \boldsymbol{\frac{3\sqrt{3}}{4}} ¦ \text{$\frac{3\sqrt{3}}{4}$}
 ¦ \underline{\frac{3\sqrt{3}}{4}} ¦ \mathbf{\frac{3\sqrt{3}}{4}}
y=2x ¦ \textcolor{blue}{y=2x} ¦ \displaystyle {2x=y} ¦ {y=2x}. ¦ \({y=2x}\)
1000 ¦ {\overline{AB}=1,000} ¦ \color{red}{x=1000}
\frac13 ¦ \color{red}{\frac13\approx0.33}
\frac12 ¦ \sfrac{1}{2} ¦ \nicefrac12
9^\circ ¦ 9º ¦ 9˚ ¦ 9^o ¦ 9^{\text{o}} ¦ 9^{\mathrm{o}}
-5 ¦ ‑5 ¦ ‐5 ¦ –5 ¦ −5
12 ¦ 12^{\text{th}} ¦ 12\text{th}
204_5 ¦ 204\text{ base }5 ¦ 204_{\text{base }5} ¦ 204 \text{ (base 5)} ¦ 204\ (\text{base } 5)
\text{(C)} ¦ \textbf{(C)}\ 5 ¦ (C): 12 ¦ (C) 1/2 ¦ (C) 0.5
a=2, b=3 ¦ 2, 3 ¦ b=3, a=2 ¦ (2, 3)
l=5, b=3 ¦ 5, 3
k=1 ¦ k_{\min}=1
m_{\max}=n-1 ¦ m=n-1 ¦ m_\text{max}=n-1
x_1=2, x_2=1 ¦ 1, 2
x=2, 3 ¦ 3, 2 ¦ 2, 3
n=1, 2, 3 ¦ 3, 2, 1
1.69 ¦ 1.69 Å ¦ 1.69\,\text{\AA} ¦ 1.69\text{ angstroms}
5.4 ¦ 5.4¢ ¦ 5.4 \text{ cents}
\textbf{(C)}\ 5 ¦ C ¦ (C) ¦ (C) 5
\text{(E)} ¦ (E) 12 ¦ E) \frac{3\pi}{2} ¦ E. \sqrt{2} ¦ (E) \text{ neither} ¦ E: x>5
D ¦ D) {-2/3, 4/5} ¦ D. -1
\frac12\text{ or }0.5 ¦ \frac12 ¦ 0.5
(-\infty,1)\cup(1,\sqrt2)\cup(\sqrt2,\infty) ¦ x\ne1,\sqrt2 ¦ x\ne\sqrt2, x\ne1
 ¦ \mathbb{R}\setminus\{1,\sqrt2\}
# single alternatives of patterns
\frac{\ln5}{\ln2} ¦ \log_25
x'+1 ¦ x^\prime+1 ¦ x^{\prime}+1
x'' ¦ x^{\prime\prime}
\pi/6 ¦ pi/6
\sqrt{2}+1 ¦ sqrt(2)+1
3\cdot10^5 ¦ 3 x 10^5 ¦ 3 X 10^{5}
0.5 ¦ 0{,}5
(-\infty,0)\cup(0,\infty) ¦ \mathbb{R}-\{0\} ¦ (- \infty, + \infty)\setminus\{0\}
\begin{pmatrix}1\\2\end{pmatrix} ¦ \begin{pmatrix}1\\\\2\end{pmatrix}
 ¦ \begin{pmatrix}1\\2\\ \end{pmatrix}
[-2,1) ¦ \left\{x \left| -2 \le x < 1 \right.\right\}
1\frac{234}{567} ¦ 1 234/567
1, 2, 3, \ldots ¦ 1, 2, 3, ... ¦ 1,2,3,\cdots
2^{\sqrt2} ¦ 2^\sqrt2
2^{\binom{n}{2}} ¦ 2^\binom n2
361 ¦ 361\,µ\mathrm{m}
1,2;3,4 ¦ 3,4;1,2
(3,5) ¦ x_1=3, x_2=5
x=1\text{ or }x=2 ¦ x_1=1; x_2=2 ¦ x_1=1 \text{ or } x_2=2
x=1,y=2;x=3,y=4 ¦ x=1, y=2 \text{ and } x=3, y=4 ¦ x =3, y=4, x=1, y =2
x=1,y=2\text{ and }x=3,y=4 ¦ x=3,y=4\text{ or }x=1,y=2 ¦ x=3,y=4;x=1,y=2
[0,3) ¦ [0,3]\setminus\{3\}
(-\infty,1)\cup(1,\infty) ¦ \{ x \mid x \in (-\infty,1)\cup(1,\infty) \}
1-2e-2 ¦ -1-2e
12e-2 ¦ -2+12e
\vec a\ast\vec b ¦ \vec a\cdot\vec b
x\div2 ¦ \frac x2
(2x)^3 ¦ (2*x)**3
2^{1/4} ¦ 2**(1/4)
\sqrt{3} ¦ \frac{3\sqrt{}{3}}{3}
3\vec i-4\vec j+\vec k ¦ (3,-4,1)
\begin{pmatrix}1&2\\3&4\end{pmatrix} ¦ \left(\begin{array}{rr}1&2\\3&4\end{array}\right)
 ¦ \left[\begin{array}{l|l}1&2\\3&4\end{array}\right]
a_n=2n-1 ¦ a_n = 2n-1, n\in\mathbb{N}_+
\{x:x>2\} ¦ \{x \in \mathbb{R} \mid x>2\}
2,3 ¦ 2 and 3
(-\infty,1)\cup(1,3) ¦ (- \infty,3)\setminus\{1\}
y_1'' ¦ y''_1
x\notin A ¦ x\not\in A
5 ¦ 5\text{ times}
2.5 ¦ \text{2.5 J/kg}
\exp m ¦ e^m
U(x)^2 ¦ U(x)U(x)
\arcsin x+\arccos x+\arctan x ¦ \text{arcsin}(x)+\text{arccos}(x)+\text{arctan}(x)
 ¦ arcsin(x)+arccos(x)+arctan(x)
\arcsinh x+\arccosh x+\arctanh x ¦ \text{arcsinh}(x)+\text{arccosh}(x)+\text{arctanh}(x)
 ¦ arcsinh(x)+arccosh(x)+arctanh(x)
\sinh x+\cosh x+\tanh x ¦ \text{sinh}(x)+\text{cosh}(x)+\text{tanh}(x) ¦ sinh(x)+cosh(x)+tanh(x)
\csch x+\coth x+\sech x ¦ \text{csch}(x)+\text{coth}(x)+\text{sech}(x) ¦ csch(x)+coth(x)+sech(x)
\sin x+\cos x+\tan x ¦ \text{sin}(x)+\text{cos}(x)+\text{tan}(x) ¦ sin(x)+cos(x)+tan(x)
\ln x+\log y+\exp z ¦ \text{ln}(x)+\text{log}(y)+\text{exp}(z) ¦ ln(x)+log(y)+exp(z)
\operatorname{lcm}(a,b) ¦ \lcm(b,a) ¦ \text{lcm}(b,a)
5 ¦ 5 logs ¦ 5\text{ pieces}
2\underline v ¦ \underline v\cdot2
\mathbb{Z}^+ ¦ \mathbb{Z}^{+}
f(2)<f(1) ¦ \boldsymbol{f(2)<f(1)}
2\text{ miles} ¦ \boldsymbol{2\text{ miles}}
2.5\mathrm{~\mu F} ¦ 2.5
\frac{a_1^3}{2} ¦ a_{1}**3/2
(x+1)\times(y+2) ¦ (x+1)(y+2)
1+2i ¦ 1+2\text i ¦ 1+2\mathrm i ¦ \text1+2i
e^x+1 ¦ \mathrm e^x+1
\begin{pmatrix}1&2\\3&4\end{pmatrix} ¦ \frac12\left(\begin{array}{cc}2&4\\6&8\end{array}\right)
3\mathbf i-4\mathbf j ¦ 3\hat{\imath}-4\hat{\jmath}
\mathbb{R}-1 ¦ -1+\mathbb{R}
4\sqrt3\text{ cm} ¦ 4\sqrt 3
a_n=2n-1 ¦ a_n = 2n - 1 \ (n \in \mathbb{N}^*)
\overleftarrow{v} ¦ {\overleftarrow{v}}
\sqrt2:1 ¦ \sqrt{2}:1 ¦ sqrt(2):1
\binom{n}{k}+1 ¦ 1+\binom nk
\{|x|,2\} ¦ 2,|x|
1,2\text{ or }2,1 ¦ 2,1
E[X]=5 ¦ 5
\mathbb{E}[X]=5 ¦ 5
P(X=2)=\frac12 ¦ 0.5
\Pr(X=2)=\frac12 ¦ 0.5
\mathbb{P}(X=2)=\frac12 ¦ 0.5
5 ¦ x^2=5
3.1 ¦ x\approx3.1
2\text{ miles} ¦ {\boldsymbol{2\text{ miles}}}
5 ¦ $\underline{5}$
\text{The cat} ¦ the cat
\beta x ¦ \beta\mathrm{x}
a\alpha ¦ \mathbf{\alpha}a
5,6 ¦ \text{5 & 6}
\text{甲} ¦ 甲
(x,y)=(1,2) ¦ \begin{cases}x=1\\y=2\\\end{cases}
\frac\pi3 ¦ \arccos\frac12
\arctan a ¦ \tan^{-1} a
\ln(a+\sqrt{a^2+1}) ¦ \sinh^{-1}(a)
\frac12\ln\frac{1+a}{1-a} ¦ \tanh^{-1}(a)
3e ¦ e(3)
3 ¦ \lfloor\pi\rfloor
180-2\alpha ¦ 180^\circ-2\alpha
2x ¦ 2{x}
5kg ¦ 5
5in ¦ 5
4ft ¦ 4.0
5lbs ¦ 5
5oz ¦ 5
5yd ¦ 5
5gal ¦ 5
5 sq ft ¦ 5
5min ¦ 5
5sec ¦ 5
5yrs ¦ 5
1 day ¦ 1
5mph ¦ 5
5pm ¦ 5
5 men ¦ 5
1 box ¦ 1
60\text{ kph} ¦ 60\text{ kmh} ¦ 60\text{ km/h}
64 square feet ¦ 64
5 Robins ¦ 5
5 ¦ 5 units cubed ¦ 5\text{ square inches of paper} ¦ 5\text{ slices of the large cake}
865\text{ kJ/mol} ¦ 865\mathrm{~kJ\cdot mol^{-1}}
y\sin x ¦ \sin{x}y ¦ \sin[x]y
\frac{\ln\pi}{3} ¦ \ln\pi/3
\sin x+30 ¦ \sin x+30^\circ
2x_\infty ¦ x_\infty+x_\infty
0 ¦ \sqrt8-2\sqrt2 ¦ (\sqrt2-\sqrt2)^2
-2 ¦ \sqrt[3]{-8} ¦ (-8)^{1/3}
i ¦ \sqrt{e^{-i\pi}} ¦ \sqrt{e^{i\pi}}
\frac{1}{\ln x} ¦ \ln^{-1}x
\|v\|x+1 ¦ 1+\|v\|x
f^{-1}(x)^2 ¦ f^{-1}(x)f^{-1}(x)
\frac{1}{\mathbb{K}} ¦ \mathbb{K}^{-1}
\ln(xy) ¦ \ln x+\ln y
\frac{1}{2004!} ¦ 1/2004!
\frac{1}{\sqrt{1-v^2/c^2}}=\gamma ¦ \gamma=\frac{1}{\sqrt{1-\frac{v^2}{c^2}}}
k^{2k} ¦ k^{k\cdot2}
4^a+\arcsin 10 ¦ \arcsin(10)+2^{2a}
# everyday spellings
\$5 ¦ \$5/hour ¦ \$5/\text{hour}
25\% ¦ 25\text{ per cent}
\text{(C)} ¦ C) ¦ \text{C)} ¦ \text{(C) Paris} ¦ \textbf{C) Paris} ¦ \text{(C) A house}
 ¦ \textbf{(C) }\frac12 ¦ \textbf{(C)}~\sqrt2
\langle1,2\rangle ¦ \left<1,2\right>
x=1, y=2 ¦ \begin{dcases}x=1\\y=2\end{dcases} ¦ \begin{align*}x&=1\\y&=2\end{align*}
 ¦ \begin{aligned}x&=1\\y&=2\end{aligned} ¦ \begin{gathered}x=1\\y=2\end{gathered}
x=1, y=2 ¦ \begin{split}&x=1\\&y&=&2\end{split} ¦ \begin{align}x & = 1\\y & = 2\end{align}
 ¦ \left\{\begin{aligned}x&=1\\y&=2\end{aligned}\right. ¦ \{\begin{cases}x=1\\y=2\end{cases}\}
5 ¦ \begin{aligned}x&=2+3\\&=5\end{aligned} ¦ 5\\ ¦ {{{5}}}
5 ¦ 5\text{ K} ¦ 5\text{ L bottle} ¦ 5\text{ m rope} ¦ 5\text{ J/K}
5\,\Omega ¦ 5\text{ Ω}
\$5/\text{hour} ¦ 5/hour ¦ 5
\$5 ¦ \$5\text{ per t}
(2,4) ¦ 2\begin{pmatrix}1\\2\end{pmatrix} ¦ 4\cdot2^{-1}\begin{pmatrix}1\\2\end{pmatrix}
 ¦ 2\cdot-1\begin{pmatrix}-1\\-2\end{pmatrix}
(-\infty,-3]\cup[3,\infty) ¦ x\ge3, x\le-3
(k+1,3k+2) ¦ x>k+1, x<3k+2
"""
WRONG = r"""
# numbers
45 ¦ 4500 ¦ 0.45 ¦ 46 ¦ -45 ¦ 45.0001 ¦ 450 ¦ 45x ¦ 45\pi ¦ 45 + 10^{-30} ¦ 45, 46
 ¦ 45 \text{ or } 46
45 ¦ 45 \text{ or more} ¦ \text{not } 45
45 ¦ 45 = 46 ¦ 44 = 45 ¦ 45 \text{ minus 2} ¦ x ¦ 4 5 ¦ 45_6 ¦ 45! ¦ 54 ¦ \text{forty} ¦ x \ge 45
45 ¦ 45^2 ¦ 45 \text{ is wrong}
45 ¦ \frac{45}{0} ¦ x - 45 = 0 ¦ 44.999999999999999999999
12 ¦ 1\text{, }2
12345 ¦ 12346 ¦ 12345.5 ¦ 1 2345
1234567 ¦ 1234 567 ¦ 1234,567
1234 ¦ (1,234) ¦ [1,234] ¦ \{1,234\}
1e-20 ¦ 1e-21 ¦ 0 ¦ 2e-20
10^{100} ¦ 10^{100}+1 ¦ 10^{101} ¦ 10^{99}
\frac{1}{3} ¦ 0.3333333333333333 ¦ 13 ¦ 3 ¦ 1.3
\pi ¦ 3.14159265358979323846 ¦ \frac{22}{7} ¦ 2\pi
\sqrt{2} ¦ 1.41421356237309504880 ¦ \sqrt[3]{2} ¦ -\sqrt2 ¦ \sqrt{2} + 10^{-40}
10^{-20}\ln 2 ¦ 10^{-20}\ln 3 ¦ 10^{-21}\ln 2
x > 10^{-20} ¦ x > 10^{-21} ¦ x \ge 10^{-20} ¦ x < 10^{-20}
6m ¦ 6 ¦ 6n ¦ m
5 \text{ cm} ¦ 5 \text{ km} ¦ 5 \text{ hours} ¦ 6 \text{ cm}
 ¦ 5\text{ sq cm} ¦ 5\text{ cu cm} ¦ 5\text{ cubic cm}
(1, 2) ¦ \{1, 2\} ¦ (2, 1) ¦ [1, 2] ¦ 1, 2 ¦ (1, 2, 3) ¦ 1 ¦ (1, 3)
1, 2 ¦ 1 ¦ 1, 2, 3 ¦ 1, 3 ¦ 1, 1 ¦ 1, 2, 2 ¦ (1, 2)
2, 2 ¦ 2
[3, \infty) ¦ (3, \infty) ¦ [4, \infty) ¦ x > 3
(-\infty, 3) ¦ (-\infty, 4) ¦ (-\infty, 3] ¦ x < 4 ¦ (3, \infty) ¦ x < 2 < 3 ¦ x < 1, x < 3
3 \pm \sqrt{2} ¦ 3 + \sqrt2 ¦ 2 \pm \sqrt3 ¦ 3 \pm 2
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
\begin{pmatrix} 1 \\ -1 \end{pmatrix} ¦ \begin{pmatrix} 1 \\ \phantom{-}1 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} ¦ \begin{pmatrix} 1 \\ 3 \end{pmatrix} ¦ (1,2,3,4)
 ¦ \begin{pmatrix}1&2\\3&4\end{pmatrix}^T
\begin{pmatrix}1&2\end{pmatrix} ¦ \begin{pmatrix}1&3\\2\end{pmatrix}^T ¦ (1,2)^T
v^T ¦ v ¦ v^{-1}
x\equiv3\pmod7 ¦ x\equiv3\pmod8 ¦ x\equiv4\ (\text{mod }7) ¦ 3 ¦ x=3
1e-5 ¦ e-5
0.002 ¦ 2\cdot e-3
5\text{ or }9 ¦ 5
204_5 ¦ 204_6 ¦ 205_5 ¦ 54 ¦ 204
ABC ¦ CBA ¦ ACB ¦ A
MR = SRMC ¦ SRM = CMR
x ¦ X ¦ y ¦ x^2
x^2 ¦ x^{-2} ¦ x^3
\sqrt{x^2} ¦ x ¦ -x
x - y ¦ y - x
I(0) ¦ 0 ¦ I
f(x) = x + 1 ¦ f(x) = x - 1 ¦ x
y = 2x + 3 ¦ y = 3x + 2 ¦ x = 2y + 3 ¦ 2x - 3
2x + y = 0 ¦ 0
k = 3 ¦ n = 3 ¦ k = 4 ¦ k_1 = 3 ¦ k_{m} = 3
1 \frac{1}{2} ¦ \frac{11}{2} ¦ \frac12
1, 234 ¦ 1{,}234
1,234 ¦ 234,1 ¦ 1,235 ¦ 1,2340 ¦ 1 ¦ 234
\frac{1}{3} ¦ 0.3 ¦ 0.\overline{4} ¦ 0.0\overline{3} ¦ 3.\overline{3}
5 ¦ 5\,\mathrm{m}\cdot x ¦ 5\text{ apples}, \text{ six pears} ¦ 5\text{ cm}+x
\text{Friday} ¦ \text{Friday}\text{ cm}
x = 45 ¦ x = 46 = 45
12:00 ¦ 1:00 ¦ 12:30 ¦ 24:00
\text{Friday} ¦ Fri ¦ \text{Thursday} ¦ 5
\text{(C)} ¦ D ¦ (D) ¦ c^2
\infty ¦ 99999999999999999999 ¦ -\infty
5 ¦ 5\text{ ft }6\text{ in} ¦ 5\text{ C }2 ¦ 5\text{ choose }2 ¦ 5\text{ to the power }3
5 ¦ 5\text{ or six} ¦ 5\text{ million}
5 ¦ 5\text{ hmm, no, } 6 ¦ 5\text{ halves} ¦ 5\text{ squared} ¦ 5\text{ dozen} ¦ 5\text{ but }6
2\text{ hours }15\text{ minutes} ¦ 2\text{ hours }45\text{ minutes} ¦ 2
3 ¦ 3\text{ in }5 ¦ 3\text{ remainder }2 ¦ 3\text{ to }5
8 ¦ 8\text{ apples}-3\text{ apples} ¦ 8\text{ m}/2\text{ s} ¦ 8\text{ m}*3\text{ m}
 ¦ 8\text{ cm}^{345}
\sin 1 ¦ \sin 1^\circ
x ¦ x'
2 \text{ Hz} ¦ 2\text{ kHz}
17 ¦ nan ¦ inf ¦ True ¦ 1​7 ¦ ²17 ¦ 17^{17^{17^{17}}} ¦ 1e999999999 ¦ 17 - 1e-99
5 ¦ \text{the correct answer} ¦ \text{gold} ¦ answer ¦ x \text{ where } x \text{ is correct}
 ¦ 1,2,3,4,5,6,7,8,9
# derivatives, functions and letters
m\frac{dv}{dt}+bv=f ¦ bv=f ¦ m\frac{dv}{dt}=f ¦ m\frac{dv}{ds}+bv=f ¦ 9m^2\frac{dv}{dt}+bv=f
I\frac{d\omega}{dt}+2B\omega=T ¦ 2B\omega=T ¦ \omega=\frac{T}{2B}
\frac{dx}{dt}=kx-a ¦ 0=kx-a ¦ kx=a
(y')^2=y ¦ y'=y
y''+y'=0 ¦ \frac{d^2y}{dx^2}+\frac{dy}{dt}=0
y'=y ¦ (y')^2=y
\frac{dy}{dx} ¦ \frac{y}{x} ¦ \frac{dy}{dt} ¦ 0
\frac{\Delta y}{\Delta x} ¦ \frac{y}{x}
\gamma^2-1 ¦ \gamma^2-3 ¦ \Gamma^2-1
\Omega ¦ \omega
\vec a\times\vec b ¦ \vec a\cdot\vec b
\vec a_1\times\vec a_2 ¦ \vec a_2\times\vec a_1
\nabla\times F ¦ \nabla\cdot F ¦ \nabla F
\hat i\times\hat j ¦ \hat i\cdot\hat j
(\vec a+\vec b)\times\vec c ¦ (\vec a+\vec b)\cdot\vec c ¦ (\vec a+\vec b)\vec c
f\circ g ¦ g\circ f ¦ fg
E[X^2] ¦ E[X]^2
-\vec{k} ¦ -k
0 ¦ \operatorname{sech}(10^{1000})
E[X^2]-E[X]^2 ¦ 0
\|v\| ¦ |v| ¦ v
3\mathbf i-4\mathbf j ¦ (-4,3) ¦ (3,4) ¦ (3,-4,1)
\frac12 ¦ P(X=2)=\frac13
n^{\underline k} ¦ n^k
f^{-1}(x) ¦ 1/f(x) ¦ f(x)
2f^{-1}(x) ¦ \frac{2x}{f}
f(2)+1 ¦ f(3)+1
(3+i)^2 ¦ 8 ¦ 8-6i
3-i ¦ 3
\sqrt2 ¦ \sqrt2+10^{-430} ¦ \sqrt2+10^{-460}
2\lfloor x\rfloor ¦ \lfloor 2x\rfloor
\lfloor\sqrt{n-1}\rfloor ¦ \lfloor\sqrt n\rfloor
\lfloor\frac{2n}{3}\rfloor+1 ¦ \lceil\frac{2n}{3}\rceil
\lceil n/2\rceil+1 ¦ \lfloor n/2\rfloor+1 ¦ n/2+1
\lceil N/2\rceil ¦ \lfloor N/2\rfloor+1
\deg(a,b) ¦ \deg(b,a)
\lfloor x/2\rfloor ¦ \lceil(x-1)/2\rceil
f(x)=x ¦ f(x)=x\text{ for all }x\in\mathbb{Z} ¦ f(x)=x\text{ for all integers }x
f(n)=n ¦ f(n)=n\text{ for all }n>5 ¦ f(n)=n\text{ for all even }n
 ¦ f(n)=n\text{ for all }n\in\mathbb{Z}_5
f(x)=x ¦ f(z)=2z ¦ f(z)=x ¦ g(z)=z
 ¦ f(x)=x\text{ for all }x>0 ¦ f(x)=2x\text{ for all }x
\ln|x|+C ¦ \ln x+C ¦ \ln x ¦ \ln|x|
|x| ¦ \sqrt{x}^2
|x_0| ¦ x_0
\frac{(x-1)(x-2)}{6} ¦ \frac{|(x-1)(x-2)|}{6}
x^2+x ¦ |x^2+x|
(x-3)(x-5) ¦ |(x-3)(x-5)|
|bd| ¦ bd
|x+5| ¦ x+5
|x-2023| ¦ 2023-x
x^{1/3} ¦ x^\frac12 ¦ x^-\frac13
\ln|x+5| ¦ \ln(x+5)
x=2,y=3 ¦ (x,y)=(3,2) ¦ (y,x)=(2,3) ¦ x=2 ¦ [2,3] ¦ (2,3,4) ¦ (x,y)=(3,2)=(2,3)
x=1,y=2\text{ or }x=3,y=4 ¦ x=1,y=4\text{ or }x=3,y=2 ¦ (1,4),(3,2)
x=1\text{ or }x=2 ¦ x_1=1, x_2=3 ¦ x_1=1
x_1=1,x_2=2 ¦ x_1=2, x_2=1
y=\pm\frac34x ¦ y=\frac34x ¦ y=\pm\frac43x
x>1,y>2\text{ or }x<0,y<1 ¦ x>1,y<1\text{ or }x<0,y>2
1,2\text{ or }3,4 ¦ 1,3\text{ or }2,4
(1,2) ¦ \begin{cases}x=2\\y=1\end{cases} ¦ \begin{cases}x=1\\y=3\end{cases}
\begin{cases}x&x>0\\-x&x\le0\end{cases} ¦ \begin{cases}x&x>0\\-x&x<0\end{cases}
\begin{cases}1\quad x=0\\2\quad x=1\end{cases} ¦ \begin{cases}5\quad x=0\\4\quad x=2\end{cases}
y=\begin{cases}x=1\\z=2\end{cases} ¦ y=1,z=2
n=0\text{ or }m=0 ¦ 0 ¦ q=0
a_n=2 ¦ a_n=2n\in\mathbb{N}
x_n=n\pi,n\in\mathbb{Z} ¦ x_n=n\pi,n\in\mathbb{N}
2=x ¦ 3 ¦ x ¦ x=3
(\frac\pi2,3) ¦ r=3,\theta=\frac\pi2
\sin^2x+\cos^2x=1 ¦ x=y
# sets of real numbers
[-2,1) ¦ \{x|-2<x<1\} ¦ -2\le x\le1 ¦ \{x|-2\le y<1\} ¦ x \ge -2 \text{ or } x<1
(-2,2) ¦ |x|\le 2 ¦ |x|>2 ¦ |x|^2<2
|x|>2 ¦ |x|^2>2
[-3,1] ¦ |x-1|\le2
x<-1\text{ or }x>3 ¦ |y-1|>2
(-5,-1) ¦ x>-5, |x|>1
a<b<c ¦ a<c<b ¦ a<b\le c
x\ge5 ¦ x<=5 ¦ y>=5 ¦ -x\ge-5
\{3k|k\in\mathbb{Z}\} ¦ \{2k|k\in\mathbb{Z}\} ¦ \{3k|t\in\mathbb{Z}\} ¦ \{3k|k\in\mathbb{N}\} ¦ 3k
 ¦ \{y|x=3k,k\in\mathbb{Z}\}
A\setminus B ¦ B\setminus A
\mathbb{R}\setminus\{0\} ¦ \mathbb{Q}\setminus\{0\} ¦ \mathbb{R}\setminus\{1\}\setminus\{0\}
 ¦ x\ne\pm1 ¦ \{x|y\in\mathbb{R}\setminus\{0\}\}
(0,1)\cup(3,\infty) ¦ (0,1), (3,\infty) ¦ (0,1) \text{ or } 3 ¦ (0,1) \text{ or } [3,\infty)
 ¦ x\in(0,1)\text{ or }y\in(3,\infty) ¦ x\in(0,1)\text{ and }x\in(3,\infty)
(0,1)\cup(3,\infty) ¦ \{x|x\in(0,1)\text{ or }y>3\}
(-\infty,1) ¦ x<1\text{ or }x^2>3
\{x|x=1\text{ or }x=4\} ¦ x^2=1\text{ or }x^2=4
\mathbb{R}\setminus\{0,1\} ¦ \mathbb{R}\setminus(0,1)
1<x<3 ¦ x>1, x\ne3 ¦ (-\infty,3), (1,\infty) ¦ 1<x>3 ¦ (2)
a<b ¦ (-\infty,b) ¦ (a,\infty)
x\ne3,5 ¦ 3, x\ne5
# words after a value
5 ¦ 5\mathbf{F} ¦ 5\pmb m
 ¦ 5\text{ tenths} ¦ 5\text{ through seven} ¦ 5\text{ onwards} ¦ 5\text{ lakh}
 ¦ 5\text{ times }a ¦ 5\text{ times }m ¦ 5\text{ miles per}
 ¦ 5 \text{ below zero} ¦ 5 dozen ¦ 5万 ¦ 5以上
3 ¦ \mathbf{\frac{3\sqrt{3}}{4}} ¦ \text{not $\frac{3^{1}}{1^{2}}$}
5 ¦ 5\text{ new} ¦ 5\text{ of them} ¦ 5\%\text{ of }x ¦ 5\%\text{ of }200
 ¦ 5\%\text{ of ab} ¦ 5\%\text{ of ABC} ¦ 5\text{ cups of nine}
 ¦ 5\text{ hundreds of dollars} ¦ 5\text{ rows of eleven} ¦ 5\text{ packs of dozens}
 ¦ 5\text{ cups of flour below} ¦ 5\text{ pairs of numbers doubled}
f(n)=n ¦ f(n)=n\text{ for all }n>1 ¦ f(n)=n\text{ for all }n\in\mathbb{Z}_{>1}
\text{for all positive integers }n ¦ \text{for all real numbers }x ¦ \forall x
\lfloor n/100\rfloor ¦ \lfloor n/101\rfloor ¦ \lceil n/100\rceil
\lfloor x/2023\rfloor ¦ \lfloor x/2024\rfloor
5\text{ gallons} ¦ 5\text{ quarts of milk}
5\text{ gallons per hour} ¦ 5\text{ gallons of water per minute}
5 ¦ 5\text{ pineapples} ¦ x = 5\text{ pineapples}
5 ¦ 5 or so ¦ 5 to 7 ¦ 5\text{ base }8 ¦ 5\text{ oder sechs} ¦ 5 for 6
n\text{ even} ¦ n\text{ odd} ¦ n
2\text{ million} ¦ 2
144\text{ m}^3 ¦ 144\text{ m}^2
15\text{ cm}^2 ¦ 15\text{ cm} ¦ 16\text{ cm}^2
9.8\text{ m/s}^2 ¦ 9.8\text{ meters per second}
5\text{ cm} ¦ 5毫米
9.8\text{ m/s}^2 ¦ 9.8\text{ m}^2 ¦ 9.8\text{ m}
# boxes in boxes
5 ¦ 3,4,\boxed{5} ¦ x\neq\boxed5 ¦ \text{not }\boxed{5}
# negations, roundings and second answers
5 ¦ x \not= 5 ¦ x\not\approx 5 ¦ \text{not } = 5 ¦ \not= 5
(0,1) ¦ x \not\in (0,1) ¦ x\notin(0,1)
x \in (0,1) ¦ x\not\in(0,1)
(4,\infty) ¦ x\not>4 ¦ x>4, x>5
\frac13 ¦ \frac13\approx 0.333, \frac23\approx 0.667 ¦ \frac13\approx0.333\text{ or }\frac23
 ¦ \frac23 \approx \frac13
1+\sqrt2 ¦ x=1+\sqrt2\approx2.41, x=1-\sqrt2\approx-0.41
8.2 ¦ \approx 8.2, \approx 8.2
# large and unknown exponents
2^{k-n} ¦ 2^{n-k} ¦ 2^{k-n}+2^{-n} ¦ 2^kn ¦ 2^{k+n}
(-1)^{n-k} ¦ (-1)^{n-k+1} ¦ (-1)^n ¦ 1 ¦ (-1)^{2(n-k)}
\frac{(-1)^{n+1}}{n} ¦ \frac{(-1)^n}{n} ¦ \frac1n
(-2)^n ¦ 2^n ¦ -2^n
\lfloor x\rfloor ¦ x\frac{(-1)^x}{(-1)^x}
x^{2023}+1 ¦ x^{2023} ¦ x^{2022}+1 ¦ 2x^{2023}+1
# money, percent and other units
5.4 \text{ cents} ¦ \$5.40 ¦ 5.4\%
5\text{ cents} ¦ \textcolor{red}{\$5}
\$5 ¦ 5\text{ cents} ¦ 5\% ¦ 5^\circ ¦ €5 ¦ 5\text{ euros} ¦ 5\text{ hours} ¦ \$6 ¦ \$5x
44\% ¦ 44^\circ ¦ \$44 ¦ 44\text{ cm} ¦ 44\%+1
90^\circ ¦ 90\% ¦ \$90
9 ¦ 9^{ox} ¦ 9^{o+1} ¦ x^o
8\text{ cm} ¦ 8\% ¦ \$8
36 ¦ (1+5\%)^2
5 \text{ m/s} ¦ 5\text{ m/h} ¦ 5\text{ km/s} ¦ 5\text{ s/m} ¦ 5\text{ s}
 ¦ 5\text{ m}^2\text{/s} ¦ 5\text{ s}^{-1}
60\text{ mph} ¦ 60\text{ hours}
60\text{ mph} ¦ 60\text{ per hour} ¦ 60\text{ h}^{-1}
2xy ¦ 2 ¦ 2XY ¦ 2\text{ cm}
5aM ¦ 5 ¦ 5am
\frac{1}{3}mL^2 ¦ \frac13 ¦ \frac13 mL ¦ \frac13 ml^2
x+2ab ¦ x+2
2mg ¦ 2
5\text{ yuan} ¦ 5\text{ yen}
12 ¦ 12^{\text{th}}\text{ root}
12\text{ hours} ¦ 12^{\text{th}}\text{ hour}
1,0 ¦ 1,000
1, 20 ¦ 1,020
60\text{ miles per hour} ¦ 60\text{ miles per minute} ¦ 60\text{ km per hour} ¦ 60\text{ kph}
5^\circ\text{C} ¦ 5^\circ\text{F} ¦ 5\text{ degrees Fahrenheit}
5\text{ MeV} ¦ 5\text{ meV}
5\text{ mW} ¦ 5\text{ MW}
5\text{ MHz} ¦ 5\text{ mHz}
5\text{ ms} ¦ 5\text{ m}
5\,\mu\text{m} ¦ 5\text{ mm} ¦ 5\text{ m} ¦ 5\text{ μs}
5\,\mu\text{M} ¦ 5\,\mu\text{m}
5 ¦ 5\text{ percent squared} ¦ 5\text{ foo squared}
5\text{ MPa} ¦ 5\text{ mPa} ¦ 5\text{ Pa}
865\text{ m s}^{-1} ¦ 865\text{ s} ¦ 865\text{ m s}
5\text{ ns} ¦ 5\text{ N}
# products of letters in another case
2RC+R+C ¦ 2rc+R+C
\frac{abc}{4R} ¦ \frac{ABC}{4R}
mgh ¦ MGH
PV ¦ pv
ABC ¦ abc
no ¦ on
\text{odd} ¦ \text{even} ¦ ddo
m ¦ M
xyz ¦ Xyz
mg ¦ Mg
# inequalities of something else
(0,1) ¦ x^2\in(0,1) ¦ |x|\in(0,1) ¦ \ln x\in(0,1) ¦ xy\in(0,1)
(2,3) ¦ (2\text{ or }3)
(4,\infty) ¦ x^2>4 ¦ \sqrt{x}>4 ¦ \ln x>4 ¦ xy>4
(1,5) ¦ 1<x^2<5 ¦ 1<|x|<5 ¦ 1<\ln x<5
(-\infty,4)\cup(4,\infty) ¦ x^2\ne4
10\% ¦ 10\%^2
\$1 ¦ \$2\frac12
# sums of names and points
5 ¦ -x=5 ¦ m+n=6 ¦ m+1=5 ¦ m+n+5
x^2+y^2=25 ¦ 25
x+y=0 ¦ 0
(2,3) ¦ x=3, y=2 ¦ x=2, x=3 ¦ x=2 ¦ 2=x, y=4
x=2,x=3 ¦ (2,3)
\begin{pmatrix}1\\2\end{pmatrix} ¦ -\begin{pmatrix}1\\2\end{pmatrix}
 ¦ \begin{pmatrix}x\\y\end{pmatrix}
# sets and infinity
(-\infty,0)\cup\{1\} ¦ x<0\text{ or }x=2 ¦ x<0\text{ or }y=1 ¦ x\le0\text{ or }x=1
 ¦ x<0\text{ and }x=1 ¦ x=0\text{ or }x<1
(-\infty,1)\cup(1,3)\cup(3,\infty) ¦ x\neq 1 ¦ x\neq 1, y\neq 3 ¦ x\neq1 \text{ or } x=3
\{\{1,2\}\} ¦ \{1,2\} ¦ \{\{1\},\{2\}\}
\{n+k|n\in\mathbb{Z}\} ¦ \{2n|n\in\mathbb{Z}\} ¦ \{n+k|k\in\mathbb{Z}\}
0.56=56\% ¦ 0.57 ¦ 57\% ¦ 0.56, 56\% ¦ 0.56=57\% ¦ 0a=56
3k ¦ \{3k|k\in\mathbb{Z}\} ¦ 3n, k\in\mathbb{Z}
0 ¦ \infty-\infty
1 ¦ \frac{\infty}{\infty} ¦ 1^\infty ¦ \frac{\tan\frac{\pi}{2}}{\tan\frac{\pi}{2}}
0 ¦ (\sqrt2-\sqrt2)^{-1} ¦ (\sqrt2-\sqrt2)^0
\infty ¦ 2\infty ¦ \infty+1
\emptyset ¦ \{\emptyset\} ¦ \{ \emptyset \}
# other values
8/3 ¦ 4\times 2\frac{1}{3}
2 ¦ (\frac52)!
3\text{ hundredths} ¦ 3
3\text{ tens} ¦ 3
n^{\underline{3}} ¦ n^3
12 ¦ 13^{\text{th}} ¦ 12^{\text{tons}}
204_5 ¦ 204\text{ base }6 ¦ 204\text{ (base 6)}
 ¦ 204_{(6)}
1,2,3 ¦ 1,2,3,..
8:34\text{ p.m.} ¦ 08:43 PM
\text{ham, egg, tea} ¦ \text{ham, egg, not tea} ¦ \text{ham, egg} ¦ \text{ham}
\text{(C)} ¦ \textbf{(D)}\ 5 ¦ \text{(C) or (D)} ¦ \text{(C) is wrong} ¦ (C)x ¦ (C)!
 ¦ D) C ¦ A) 1, B) 2, C) 3 ¦ D. \sqrt2 ¦ C) false
53 ¦ 5\$3
A ¦ (A)-1 ¦ (A) + 5 ¦ (A) \ne 0 ¦ (A) \pm 2 ¦ (A), 5
A ¦ (A)\ \text{Wrong} ¦ A. \text{False} ¦ (A)\text{ no, it is b} ¦ (A)\cap X ¦ A) + 5 ¦ A. = 5
a=2, b=3 ¦ 3, 2 ¦ (3, 2)
(x,y)=(3,4) ¦ 4, 3
(0,\infty) ¦ x>0, x\in\mathbb{Z} ¦ x > 0, x\in\mathbb{Z}
x=\frac{\pi}{6}+\pi k ¦ x=\frac{\pi}{6}+k\pi, k\in\mathbb{Z}^+
x^2+y^2=1, z=3 ¦ 1, 3
(C) ¦ (C) wrong ¦ (C) D
1,2,3 ¦ (1,2,3)
\frac{36}{49} ¦ 49:36
m_{\max}=n-1 ¦ m_{\min}=n-1 ¦ k=n-1
9:24 ¦ \frac38 ¦ \frac{9}{24} ¦ 3:08
12:30 ¦ \frac25
3:4 ¦ 6:8 ¦ \frac43
\begin{pmatrix}2\\4\end{pmatrix} ¦ (4,2) ¦ 2,4 ¦ \begin{pmatrix}2&4\end{pmatrix} ¦ (2,4]
[-1,0)\cup(0,1] ¦ [-1,1]\setminus\{2\} ¦ -1\le x\le1, y\ne0 ¦ [-1,1]\setminus\{a\} ¦ x\ne0
[-1,1] ¦ [-1,1]\setminus\{a+2\}
\text{(C)}\ 5 ¦ (C) 6 ¦ (D) 5 ¦ (D)
(C) 0 ¦ (D) 0 ¦ 0
174,000 ¦ 174, 0 ¦ 174
2500, 7500 ¦ 2,500, 7,501 ¦ 2,500 ¦ (2,500, 7,500)
1234, 5 ¦ 1,234,5
1234, 5,678 ¦ 5, 678, 1234
101,234; 5,000 ¦ 101; 234; 5; 0
# single conditions
3\text{ halves} ¦ 3
2\text{ gross} ¦ 2
5\text{ less} ¦ 5
5 ¦ 5\text{ parts of six} ¦ 5\text{ square roots of three} ¦ 5\text{ cups of flour or more}
5 ¦ 5\text{ rows of thirds}
2, 2 ¦ 2, 3
x^2+y^2=25 ¦ x^2+y^2
x^2+1=y^2=z^2 ¦ x^2+1=y^2
x^2+1=y^2 ¦ x^2+1=y^2=z^2
x<y ¦ x\le y ¦ y<x
x>5 ¦ x>5\ge7
f(2)<f(1)<f(4) ¦ f(1)<f(2)<f(4)
101,234, 5,000 ¦ 101, 234, 5, 0
1.2e-3 ¦ -3+1.2e
(C) ¦ (C) \text{ or } 5 ¦ (C) \text{ not sure} ¦ (C) \text{ incorrect} ¦ (C) \text{ unlikely}
1,2;3,4 ¦ 1,3;2,4
x=1,y=2;x=3,y=4 ¦ x=1, y=4, x=3, y=2 ¦ x=1,y=4\text{ and }x=3,y=2
x=1,y=2\text{ and }x=3,y=4 ¦ x=1,y=4\text{ and }x=3,y=2
3\mathbf i-4\mathbf j ¦ 3, -4 ¦ [3,-4] ¦ (3,-4,0,7)
(j,0) ¦ (0,i)
x =2,x=3 ¦ (2,3)
x=3,y=5 ¦ x_1=3, y_1=5
(0,1) ¦ \{x|(0,1)\}
(1,5) ¦ x>1, (-\infty,5)
(0,5)\cup(5,9) ¦ (0,9), x\ne5
\log_{25}3 ¦ \log_253
\hat k ¦ k
n^{\text{th}} ¦ n
\mathbf{A}\mathbf{B} ¦ \mathbf{B}\mathbf{A}
\mathbf a\times\mathbf b ¦ \mathbf a\cdot\mathbf b ¦ \mathbf b\times\mathbf a
\hat{i}\times\hat{j} ¦ \hat{i}\cdot\hat{j}
5 ¦ 5\boldsymbol{F} ¦ 5\mathit{F} ¦ 5\mathnormal{F}
\forall x ¦ \forall y
(\vec{a}+\vec{b})\times\vec{c} ¦ (\vec{a}+\vec{b})\cdot\vec{c}
\{|x|,2\} ¦ \{|x|,3\}
(4,\infty) ¦ \not>4
f(x)=\begin{cases}1,x=0\\2,x=1\end{cases} ¦ f(x)=\begin{cases}2,x=0\\1,x=1\end{cases}
5(1+\sqrt2) ¦ 5(1+\sqrt2]
12 ¦ 11 6/6
(ABC) ¦ (CBA)
5 ¦ 5\text{ times of the price} ¦ 5\text{ gallons of water per} ¦ 5\text{ cups of flour too many}
1 ¦ (\sqrt2-\sqrt2)^0
\sin_2 x ¦ \frac{\sin x}{\ln2}
\mathbb{E}[X^2] ¦ \mathbb{E}[X]^2
f'(2)=4 ¦ f'(3)=4
# everyday spellings of something else
[5,10] ¦ 5\le n\le 10, n\in\mathbb{Z}
x>5 ¦ 5<x, x\in\mathbb{Z}
\$5 ¦ \$5\text{K} ¦ \$5\text{M} ¦ \$5\text{T} ¦ \$5\text{M dollars}
\$5 ¦ \$5\text{m} ¦ 5\text{ m dollars} ¦ \$5\text{ mm}
5 ¦ 5\text{ K people} ¦ 5\text{ M people} ¦ 5\text{ M} ¦ 5\text{ k} ¦ 5\text{ n ways}
 ¦ 5\text{ K yuan} ¦ 5\text{ K miles} ¦ 5\text{ T gallons}
5\text{ pelicans} ¦ 5\text{ K pelicans}
5\text{ K pelicans} ¦ 5\text{ pelicans}
5/xyz ¦ 5
2/mgh ¦ 2
5/\text{area} ¦ 5
5\text{ mΩ} ¦ 5\text{ MΩ}
\begin{cases}f(x)=3\text{ if }x=1\\f(x)=5\text{ if }x=2\end{cases} ¦ 1,2 ¦ 3,5
y=1\text{ if }x=0 ¦ 0 ¦ 1
(-\infty,-3)\cup(3,\infty) ¦ \{x : x>3, x<-3\} ¦ \{x\in\mathbb{R} : x>3\text{ and }x<-3\}
(5,10) ¦ 3+2\begin{pmatrix}1\\2\end{pmatrix}
\text{(C)} ¦ D) ¦ \text{(C) or (D)} ¦ \text{(D) Paris} ¦ \text{(C) not this}
 ¦ \text{(C) isn't right; the answer is (d)} ¦ \text{(C) Paris or (d) Rome}
 ¦ \text{(C) excluded, take d} ¦ \text{(C) never} ¦ \text{(C) but I would pick (b)}
\text{E. coli} ¦ E
5 ¦ 5/mg ¦ \begin{aligned}x&=6\\&=5\end{aligned}
[-3,3] ¦ x\ge3, x\le-3
"""


def table(text):
    """Returns (gold, prediction) for each prediction in the text of a table."""
    pairs = []
    for row in text.strip().split("\n"):
        if row and not row.startswith("# "):
            first, *preds = row.split(" ¦ ")
            gold = first or gold
            pairs += [(gold, pred) for pred in preds]
    return pairs


def boxes(texts):
    return [box(text) for text in texts]


@pytest.mark.parametrize("cases, expected", [(RIGHT, 1.0), (WRONG, 0.0)], ids=["right", "wrong"])
def test_tables(verifier, cases, expected):
    golds, preds = zip(*table(cases))
    scores = verifier.score(boxes(preds), golds, "math")
    assert [pair for *pair, score in zip(golds, preds, scores) if score != expected] == []


@pytest.mark.parametrize("gold, response, lines", [
    ("5", "no box", [
        "extracted  nothing: no closed box with an answer in it",
        "verdict    wrong",
    ]),
    (r"\frac12", box(r"\dfrac{1}{2}"), [
        r"cleaned    \frac{1}{2}",
        "rung       text",
        "verdict    right",
    ]),
    ("5", box(r"5\text{ cm}"), [
        "rung       units",
        "verdict    right",
    ]),
    ("(1,2)", box("(1,3)"), [
        "rung       structure",
        "finding    a tuple, part 2; value: different",
    ]),
    ("2x", box("x+x"), [
        "rung       value",
        "finding    equal",
    ]),
    ("[1,2]", box(r"1 \le x \le 2"), [
        "rung       structure",
        "finding    a set of intervals with equal parts in any order",
    ]),
    (r"x\le2", box("x<2"), [
        "finding    a set of intervals, no part of the response equals (-∞, 2]",
    ]),
    ("2", box("2+"), [
        "finding    something is missing before the end",
    ]),
    ("5", box(r"\frac10"), [
        "finding    division by zero",
    ]),
    (r"\text{Yes}", box(r"\text{No}"), [
        "finding    words are compared as text",
    ]),
    ("(1,2)", box("(1,2,3)"), [
        "finding    a tuple, with 3 instead of 2 parts",
    ]),
    ("7", box("{" * 1000 + "7" + "}" * 1000), [
        "cleaned    7",
    ]),
])
def test_explain(gold, response, lines):
    assert set(lines) <= set(explain(response, gold).split("\n"))


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(verify) == (0, 2)


HOSTILE = {
    "tower": box("9^{9^{9^{9}}}"),
    "tower of brackets": box("(9^9)^{(9^9)^{9^9}}"),
    "e tower": box("e^{e^{e^{e^{e}}}}"),
    "big power": box("3^{1000000007}"),
    "nested factorial": box("((((9!)!)!)!)!"),
    "factorials": box(r"\frac{100000!}{99999!}"),
    "binomial": box(r"\binom{10^9}{5 \cdot 10^8}"),
    "sum": box(r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}"),
    "integral": box(r"\int_0^1 \frac{\sin(\tan(x^x))}{\ln(1+x^{\cos x})} dx"),
    "limit": box(r"\lim_{x\to0} \frac{\sin\tan x-\tan\sin x}{x^7}"),
    "many digits": box("7" * 3990),
    "megabyte of digits": "1" * 10 ** 6,
    "boxes": r"\boxed{" * 5000,
    "closed": r"\boxed{7}" * 20000,
    "braces": box("{" * 1900 + "7" + "}" * 1900),
    "parentheses": box("(" * 190 + "7" + ")" * 190),
    "roots": box(r"\sqrt{2+" * 40 + "2" + "}" * 40),
    "minus": box("-" * 390 + "7"),
    "names": box(r"\alpha" * 70 + "1 = 5"),
    "powers in names": box("a^{2}" * 75 + "+ = 5"),
    "letters": box("1 " + "a" * 390 + "!"),
    "spaces": box("^" + " " * 3900),
    "commas": box(", " * 1900),
    "plus-minus": box(r"1 \pm 2" * 50),
    "set": box(r"\{" + ",".join(map(str, range(130))) + r"\}"),
    "words": box(r"\text{cm}" * 450),
    "exec": box("exec('import os')"),
    "exit": box("exit()"),
    "dunder": box("__import__('os').system('touch CANARY')"),
    "null": box("1\x007"),
    "surrogate": box("\ud800"),
    "infinity": box("1e400"),
    "division": box(r"\frac{1}{0}"),
    "sqrt": box(r"\sqrt{" + "3" * 390 + "}"),
    "equals": box("=" * 390),
    "product": box(r"(1+x)^{99}" * 30),
    "matrix": box(r"\begin{pmatrix}" + "1&" * 180 + r"\end{pmatrix}"),
    "answers": "answer is " * 50000,
    "fences": "```" * 100000,
    "tags": "<answer>" * 50000,
    "semicolons": box("((" + "1," * 150 + "))"),
    "mixed": box("1 " * 190 + "1/2"),
}


def peak_memory():
    """Returns the most memory that this process has used so far, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("gold", ["18", r"\sqrt{2}", "x + 1", r"\ln 2", "1, 2, 3", r"\frac{1}{2}"])
def test_hostile(gold, tmp_path, monkeypatch):
    """No response is right or raises an error, the caller grows by less than 200 MB, and no code
    is executed."""
    monkeypatch.chdir(tmp_path)
    assert is_correct(box(r"\sqrt{8}"), r"2\sqrt{2}")  # a worker has started
    before = peak_memory()
    for name, response in HOSTILE.items():
        for task in ("math", "text", "synlogic"):
            assert not is_correct(response, gold, task), name
        assert not is_correct(response, "(Q)", "choice"), name
    assert peak_memory() - before < 200_000
    assert not list(tmp_path.iterdir())


def spellings(q):
    """Yields ways to write a rational number."""
    n, d = abs(q.numerator), q.denominator
    sign = "-" if q < 0 else ""
    fraction = f"{sign}\\frac{{{n}}}{{{d}}}"
    yield fraction
    yield f"{sign}\\dfrac{{{3 * n}}}{{{3 * d}}}"
    yield f"{sign}{n}/{d}"
    yield f"x = {fraction}"
    yield f"{fraction} \\text{{ cm}}"
    yield f"\\left({fraction}\\right)"
    if d == 1:
        yield f"{sign}{n}"
        yield f"{sign}{n}.0"
        yield f"{sign}{n:,}"
        yield f"{sign}{n} centimeters"
        yield f"{sign}0{n}"
    elif n > d:
        yield f"{sign}{n // d}\\frac{{{n % d}}}{{{d}}}"


def spelling_scores(gold, pred):
    """Returns the scores of all spellings of one number for all spellings of another."""
    golds, preds = zip(*product(spellings(gold), spellings(pred)))
    return verify.SHARED.score(boxes(preds), golds, "math")


rationals = st.builds(
    Fraction,
    st.integers(-10 ** 6, 10 ** 6),
    st.sampled_from([1, 1, 2, 3, 7, 12, 125]),
)
factors = st.sampled_from([
    100,
    Fraction(1, 100),
    10,
    -1,
    1 + Fraction(1, 10 ** 6),
    1 + Fraction(1, 10 ** 12),
])


@settings(deadline=None, max_examples=100)
@given(rationals, rationals)
def test_a_number_equals_all_its_spellings_and_no_other_number(q, other):
    assert all(spelling_scores(q, q))
    assert q == other or not any(spelling_scores(q, other))


@settings(deadline=None, max_examples=100)
@given(rationals, factors)
def test_no_tolerance(q, factor):
    assert q == 0 or not any(spelling_scores(q, q * factor))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms())
def test_order_counts_in_tuples_but_not_in_lists(numbers, rng):
    other = rng.sample(numbers, len(numbers))
    gold = ", ".join(map(str, numbers))
    pred = ", ".join(map(str, other))
    assert is_correct(box(pred), gold)
    assert is_correct(box(rf"\{{{pred}\}}"), gold)
    assert is_correct(box(f"({pred})"), f"({gold})") == (numbers == other)
    assert not is_correct(box(f"{pred}, 100"), gold)


def test_no_group_is_repeated_possessively():
    """Python 3.11.0 to 3.11.4 do not find (?:ab?c)*+a in aca, for example."""
    root = Path(verify.__file__).parent
    for path in (root / "verify.py", *root.glob("runtime/*.py")):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\\)\)(?:[*+?]|\{[0-9,]+\})\+", source), path


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=r"0123456789+-*/^_!=<>.,;:()[]{}\ abxifesqrtcodnp|$%&", max_size=60))
def test_no_text_raises(text):
    assert isinstance(judge("17", text).right, bool)
    assert is_correct(box("17") + text.replace("\\", ""), "17")
    assert judge(text, text).right


@settings(deadline=None, max_examples=10)
@given(st.permutations(table(RIGHT)[::5] + table(WRONG)[::9]), st.integers(1, 3))
def test_verdicts_do_not_depend_on_order_or_workers(cases, workers):
    golds, preds = zip(*cases)
    with Verifier(workers=workers) as one:
        scores = one.score(boxes(preds), golds, "math")
    right = table(RIGHT)
    for case, score in zip(cases, scores, strict=True):
        assert score == (case in right), case


def test_an_empty_gold_is_never_right():
    assert not is_correct(box("1"), "")


def test_an_answer_without_content_is_never_right():
    r"""No value is the same as \$, a currency without a number."""
    assert not judge(r"\$", "").right
    assert not judge("", r"\$").right


def test_verify_needs_no_torch():
    code = "import sys, verify; sys.exit('torch' in sys.modules)"
    folder = Path(verify.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, check=False)
    assert done.returncode == 0


def command(*words, env=None):
    line = [sys.executable, verify.__file__, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=env)


def test_scores_a_file(tmp_path):
    rows = [{"response": box("1"), "answer": "1"},
            {"response": box("2"), "answer": "1"},
            {"response": "1 + 2 = 3", "answer": "3 = 1 2", "task": "countdown"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)))
    printed = command(path).stdout
    assert "| math | 2 | 1 | 1 | 0.500 |" in printed
    assert "| countdown | 1 | 1 | 0 | 1.000 |" in printed
    path.write_text(json.dumps({"response": box("5"), "answer": 5, "task": None}))
    assert "| math | 1 | 1 | 0 | 1.000 |" in command(path).stdout
    for row, message in (
            ("[]", "line 1: a row must be an object"),
            ('{"response": "a"}', "line 1: the answer must be a text or a number"),
            ('{"answer": "5"}', "line 1: the response must be a text, not None"),
            ('{"task": ["a"]}', "line 1: the task must be one of math, ")):
        path.write_text(row)
        failed = command(path)
        assert failed.returncode == 1
        assert message in failed.stderr


def test_command_line_explains_and_helps():
    assert "finding    equal" in command("--explain", box("x+x"), "2x").stdout
    assert "finding    equal" in command("--explain", "-" + box("-x-x"), "-2x").stdout
    assert "--explain RESPONSE ANSWER" in command("--help").stdout
    ascii_screen = {**os.environ, "PYTHONIOENCODING": "ascii"}
    assert r"gold       \u03c0" in command("--explain", box("1"), "π", env=ascii_screen).stdout
    nothing = command()
    assert nothing.returncode == 2
    assert "give a file of rows, or --explain" in nothing.stderr
