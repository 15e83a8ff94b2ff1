r"""Is a response's final answer right?  The reward of training and the metric of evaluation; needs no torch.

    extract_answer(response)              what stands in the last \boxed{}, or None
    is_correct(response, answer, task)    one verdict; TASKS lists the tasks
    with Verifier() as verifier:          many: verifier.score(responses, answers, task) -> [1.0, 0.0, ...]
    python verify.py rows.jsonl           a table of verdicts; a row is {"response": ..., "answer": ..., "task": "math"}

What a verifier accepts wrongly, a policy learns. So the first of these that can give a verdict gives it:
1. text: both sides are cleaned alike (spacing, \left, \dfrac, degrees, thousands) and are the same string;
2. structure: lists, sets, tuples, intervals, matrices and equations are taken apart; brackets and order count;
3. arithmetic: numbers, polynomials and their quotients are compared exactly, without a tolerance;
4. math-verify, for roots, functions and the rest, behind limits on size, in a worker that is killed when it overruns.
Nothing a model wrote is ever executed. What cannot be read, or not in time, is wrong.
"""
import argparse
import ast
import faulthandler
import functools
import itertools
import json
import math
import operator
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from multiprocessing.connection import wait
from typing import NamedTuple

MAX_ANSWER, MAX_FORMULA = 4000, 400  # characters: of an answer, and of what is compared other than as text
MAX_BITS = 30_000  # of a number
START_S = 60  # seconds in which a worker must have imported sympy


def extract_answer(response, phrase=False):
    r"""The content of the last \boxed{} or \fbox{} (or \boxed 5); None if there is none, or it is empty or unclosed.
    phrase=True is for evaluating base models: without a box, what follows the last "answer is" on its line."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if start < 0:
        said = [match.end() for match in re.finditer(r"answer is|答案是", response, re.IGNORECASE)] if phrase else []
        line = response[said[-1]:][:MAX_ANSWER].lstrip(" :：").split("\n")[0] if said else ""
        return re.split(r"[.。](?:\s|$)", line)[0].strip(" $*") or None
    body = re.compile(r"\\[a-z]+\s*").match(response, start).end()
    if not response.startswith("{", body):
        bare = re.compile(r"-?[0-9.]+|[A-Za-z]").match(response, body)
        return bare and bare[0]
    depth = 0
    for token in re.compile(r"\\.|[{}]", re.DOTALL).finditer(response, body, body + MAX_ANSWER):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return response[body + 1:token.start()].strip() or None
    return None


# ---- 1. text -------------------------------------------------------------------------------------------------------
COMMANDS = {name: sign for sign, names in {
    "*": "cdot times ast", "/": "div", "≤": "le leq leqslant", "≥": "ge geq geqslant", "<": "lt", ">": "gt", "±": "pm",
    "≠": "ne neq", "∪": "cup bigcup", "∈": "in", "∞": "infty", "≈": "approx", "π": "pi", "°": "circ degree",
    "¶": "\\ cr", "⦃": "{ lbrace", "⦄": "} rbrace", "|": "vert lvert rvert mid", " ": ", ; : > quad qquad space",
    "": "left right big Big bigl bigr Bigl Bigr displaystyle textstyle limits underline ! $ % ( ) [ ]",
    "\\frac": "dfrac tfrac cfrac", "\\emptyset": "varnothing",
    "\\text": "textbf textit textrm textnormal mathrm mathbf mathit mathsf boldsymbol bm mbox hbox operatorname emph",
}.items() for name in names.split()} | dict.fromkeys(" \n", " ")
CHARACTERS = str.maketrans(dict.fromkeys("~$%£€¥\u00a0\r\n", " ") | dict.fromkeys("×·⋅", "*") | {"÷": "/", "−": "-"})
LATEX = str.maketrans({"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∞": r"\infty ",
                       "π": r"\pi ", "*": r"\cdot ", "⦃": r"\{", "⦄": r"\}", "¶": r"\\"})
WORD = re.compile(r"\\text|(?<![\\A-Za-z_{])(?:[A-Za-z]{4,}|[A-Z]{2,})")  # prose, or a name as ABC: equal only as text
NAME = re.compile(r"(?>\\[A-Za-z]+|[A-Za-z]\s*\([0-9.-]+\)|[A-Za-z'(),:|/*{}\s]|_\{[^{}]*\}|\^\{?-?[0-9])++")
UNITS = {alias: names.split()[0] for names in (
    "cm centimeter", "mm millimeter", "km kilometer", "m meter", "inch in inche", "foot ft feet", "mile mi", "yard yd",
    "g gram", "kg kilogram", "pound lb", "liter litre", "second sec", "minute min", "hour hr", "day", "week", "month",
    "year yr", "cent", "dollar usd", "percent", "degree deg", "hz hertz", "khz", "mhz", "newton", "joule", "kj", "ev",
    "kev", "mev", "gev", "watt", "kw", "volt", "kelvin", "pascal", "mol mole", "nm", "erg", "unit",
    "square sq", "cubic", "per",
) for alias in names.split()}
SILENT = {"unit", "square", "cubic", "per", None}  # two units must share a word other than these
HEDGE = re.compile(  # what makes another number, or none, of the value before it
    r"(?i)\b(?:or|and|not?|but|is|isn't|if|than|more|less|at|to|except|plus|minus|times|over|mod|base|choose|remainder"
    r"|negative|squared|cubed|factorial|hal(?:f|ves)|dozens?|hundreds?|thousands?|[mbtr]+illions?|wrong|incorrect)\b")


def unwrap(match):
    r"""\text{and} joins a list, \mathbf{25} and \text{(C)} are mathematics, 5 \text{ m} has a unit."""
    words, before = match[1].strip(" ,"), match.string[:match.start()].rstrip()
    if words in ("and", "or"):
        return ","
    unit = re.match("[mgshLJNVWKCFT](?:$|[/^*])", words) and re.search("[0-9)}/*]$", before)
    return match[0] if unit or re.search("[A-Za-z]{2}", words) else match[1]


SPELLINGS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(\\(?:sin|cos|tan|sec|csc|cot)\s*\(?)([0-9.]+)\s*\^?\s*\{?°\}?", r"\1{\2*π/180}"),
    (r"\\color\s*\{[a-z]+\}|\^\s*\{?°\}?|°", " "), (r"\\text\s*\{([^{}]*)\}", unwrap),
    (r"(\\text\{[^{}]*\})|(?<![A-Za-z{\\])(?:and|or)(?![A-Za-z}])", lambda match: match[1] or ","),
    (r",(?:\s*,)+", ","), (r"_\s*([0-9]+|[A-Za-z])", r"_{\1}"), (r"⦃\s*⦄", r"\\emptyset "),
    (r"(?<![\\A-Za-z])(sqrt|frac|sin|cos|tan|sec|csc|cot|arcsin|arccos|arctan|ln|log|exp)(?![A-Za-z])", r"\\\1"),
    (r"(?<![0-9.])([0-9]{1,9})\s+([0-9]{1,9})/([0-9]+)", r"\1\\frac{\2}{\3}"),  # 2 3/4
    (r"\\frac\s*([0-9])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),  # \frac12
    (r"√\s*([0-9]+|[A-Za-z])|\\sqrt\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1\2}"))]


@functools.lru_cache(4096)
def clean(text):
    """One spelling for what LaTeX can spell in many ways; signs and escaped braces become single characters."""
    text = re.sub(r"(?<=[0-9])(?:\{,\}|,\\!|\\,|\\!)\s*(?=[0-9]{3}(?![0-9]))", "", text)  # 1{,}000 and 1,\!000
    text = re.sub(r"\\([A-Za-z]+|.)", lambda m: COMMANDS.get(m[1], m[0]), text, flags=re.DOTALL).translate(CHARACTERS)
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    for sign in "≈∈":  # "x ≈ 3.1" says 3.1 but "1/3 ≈ 0.33" says 1/3; "x ∈ (0,1)" says (0,1)
        head, _, tail = text.partition(sign)
        text = (tail if not head.strip() or NAME.fullmatch(head) else head if sign == "≈" else text) if tail else text
    return text.strip(" =").rstrip(".,;: ")


def flat(text):
    """For equality as text: unwrapped, without spaces except between digits, words without case."""
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    return text.casefold() if WORD.search(text) or text.isalpha() and text[1:].islower() else text


def split_unit(text):
    """(value, known units): text after a value is its unit and may be left out, unless it hedges ("5 or more")."""
    def units(words):
        return {UNITS.get(word) or UNITS.get(word.rstrip("s")) for word in re.findall("[a-z]+", words.lower())}
    bare = re.fullmatch(r"(.*[0-9)}π])\s*([A-Za-z]{2,}(?:[\s/]+[A-Za-z]{2,}){0,2})\s*(?:\^\{?[23]\}?)?", text)
    if bare and None not in units(bare[2]):
        return bare[1], units(bare[2]) - SILENT
    head, mark, tail = text.partition("\\text{")
    if head.endswith("\\frac{"):
        head, mark = head[:-6], "\\frac{" + mark
    written = r"(?:\\frac\{|\\text\{[^{}0-9]*(?:\^?[23])?\}|\^\s*(?:-?[1-9]|\{-?[1-9]\})|[\s/*{}])+"
    if re.search(r"[\w)}⦄\]!]\s*$", head) and re.fullmatch(written, mark + tail) and not HEDGE.search(tail):
        return head.strip(), units(tail) - SILENT
    return text, set()


# ---- 2. structure --------------------------------------------------------------------------------------------------
def depths(text):
    """The number of open brackets after each character."""
    return itertools.accumulate((char in "([{⦃") - (char in ")]}⦄") for char in text)


def split(text, separators):
    """Split at the separators that are outside all brackets."""
    cuts = [at for at, depth in enumerate(depths(text)) if depth == 0 and text[at] in separators]
    return [text[a:b].strip() for a, b in zip([0] + [cut + 1 for cut in cuts], cuts + [len(text)])]


def plus_minus(text):
    """What a ± b stands for: a + b and a - b (three ± at most)."""
    pieces = text.split("±")
    signs = itertools.product("+-", repeat=len(pieces) - 1) if len(pieces) < 5 else []
    return ["".join(itertools.chain(*zip(pieces, (*sign, "")))) for sign in signs] or [text]


def shape(text):
    """(kind, parts): "list" for lists and sets, the brackets for tuples and intervals, "atom" for one thing."""
    matrix = re.fullmatch(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text)
    if matrix:
        rows = [split(row, "&") for row in matrix[2].strip(" ¶").split("¶")]
        return f"matrix of rows with {[len(row) for row in rows]}", [entry for row in rows for entry in row]
    if len(parts := split(text, ",;")) > 1:
        return "list", [value for part in parts for value in plus_minus(part)]
    if len(parts := split(text, "∪")) > 1:
        return "∪", parts
    ends, inner = text[:1] + text[-1:], text[1:-1]
    if ends in ("()", "(]", "[)", "[]", "⦃⦄") and min(depths(inner), default=0) >= 0 and not re.search("[|:]", inner):
        kind, parts = shape(inner.strip())
        if kind == "list":
            return "list" if ends == "⦃⦄" else ends, parts
        if ends in ("()", "⦃⦄") or kind.startswith("matrix"):
            return kind, parts
    values = plus_minus(text)
    return "list" if len(values) > 1 else "atom", values


def same(gold, pred, judge):
    """Whether two cleaned answers agree; judge(gold, pred) decides what text, structure and numbers cannot."""
    def readings(text):  # 1,234 may be a number or a list of two
        grouped = r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])"
        return {text, text if re.search(r"[(\[⦃]", text) else re.sub(grouped, lambda m: m[0].replace(",", ""), text)}
    if flat(gold) == flat(pred):
        return True
    if not gold or not pred or max(len(gold), len(pred)) > MAX_FORMULA:
        return False
    (gold, gold_unit), (pred, pred_unit) = split_unit(gold), split_unit(pred)
    if gold_unit and pred_unit and not gold_unit & pred_unit:
        return False
    return any(same_parts(*pair, judge) for pair in sorted(itertools.product(readings(gold), readings(pred))))


def same_parts(gold, pred, judge):
    gold_sides, pred_sides = ([text] if len(split(text, ",;")) > 1 else split(text, "=") for text in (gold, pred))
    if len(gold_sides) > 1 and len(pred_sides) > 1:
        named_alike = flat(gold_sides[0]) == flat(pred_sides[0])
        return same(gold_sides[-1], pred_sides[-1], judge) if named_alike else judge(gold, pred)
    if len(pred_sides) > 1:  # "x = 5" names its answer, "2 + 3 = 5" derives it: all that it claims must be the gold
        claims = [side for side in pred_sides if not NAME.fullmatch(side)] or pred_sides[-1:]
        return all(same(gold, claim, judge) for claim in claims)
    if len(gold_sides) > 1:
        return bool(NAME.fullmatch(gold_sides[0])) and same(gold_sides[-1], pred, judge)
    (kind, golds), (pred_kind, preds) = shape(gold), shape(pred)
    if kind != pred_kind:
        return bool(re.search(r"[<>≤≥≠|]|\\mathbb|\\setminus|\\emptyset", gold + pred)) and judge(gold, pred)
    if kind == "atom":
        return same_atom(*golds, *preds, judge)
    if len(golds) != len(preds):
        return False
    if kind not in ("list", "∪"):
        return all(same(g, p, judge) for g, p in zip(golds, preds))
    for part in golds:
        match = next((at for at, other in enumerate(preds) if same(part, other, judge)), None)
        if match is None:
            return False
        del preds[match]
    return True


def same_atom(gold, pred, judge):
    if flat(gold) == flat(pred):
        return True
    if re.search("[0-9]_|:", gold + pred):  # 204_5 is not 204_6, nor 54; 12:00 is not 24:00
        return False
    pair = values(gold), values(pred)
    return pair[0] == pair[1] if None not in pair else judge(gold, pred)


# ---- 3. arithmetic -------------------------------------------------------------------------------------------------
NUMERAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?"
TOKEN = re.compile(NUMERAL + r"|[A-Za-z](?:_\{\w+\})?|\S")
APPLIED = re.compile(r"[A-Za-z]\(\w+\)|(?<![A-Za-z])[fghFGP]\(")  # f(x) is not f times x
MIXED = re.compile(r"(?<![0-9.}^_*/])([0-9]+)\\frac\{([0-9]+)\}\{([0-9]+)\}")
INSIDE_OUT = [(re.compile(r"\\frac\{([^{}\\]*)\}\{([^{}\\]*)\}"), r"((\1)/(\2))"),
              (re.compile(r"\^\{([^{}\\]*)\}"), r"^(\1)")]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


@functools.lru_cache(4096)
def values(text):
    """What -2\\frac{1}{3}, 7.5*10^{7} or (x - 4)/2π is, exactly, for three choices of what its letters stand for (π is
    one, i is not); nan where it has no value or a huge one; None for roots, functions and all else."""
    if WORD.search(text) or APPLIED.search(text := flat(text)):
        return None
    text, before = MIXED.sub(lambda m: f"({m[1]}{'+' if int(m[2]) < int(m[3]) else '*'}{m[2]}/{m[3]})", text), None
    while text != before:
        before = text
        for latex, form in INSIDE_OUT:
            text = latex.sub(form, text)
    python, ended = "", False
    for token in TOKEN.findall(text):
        digits, letter = re.match(r"\.?[0-9]", token), re.match("[A-Za-hj-zπ]", token)
        if not (digits or letter or token in "+-*/^()") or digits and ended:
            return None
        python += "*" if ended and (letter or token == "(") else ""  # 2x, x(y + 1)
        python += f"'{token}'" if digits else re.sub("[{}]", "", token).replace("^", "**")
        ended = digits or letter or token == ")"
    try:  # the syntax tree is walked and never run
        return None if "//" in python else [exact(ast.parse(python, mode="eval").body, k) for k in range(3)]
    except ArithmeticError:
        return math.nan
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def exact(node, k):
    """The Fraction that a tree of numerals (strings), letters and + - * / ** stands for."""
    match node:
        case ast.Constant(value=str(numeral)):
            return Fraction(numeral)
        case ast.Name(id=name):
            return Fraction(random.Random(f"{name} {k}").randrange(10**9), 7)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            return exact(operand, k) * (-1 if isinstance(op, ast.USub) else 1)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = exact(left, k), exact(right, k)
            power = isinstance(op, ast.Pow)
            if power and b.denominator > 1:
                raise ValueError("a root, or a letter in an exponent")
            if (abs(b) if power else 1) * max(x.bit_length() for x in a.as_integer_ratio()) > MAX_BITS:
                raise OverflowError
            return a ** int(b) if power else OPERATORS[type(op)](a, b)
    raise ValueError("not arithmetic")


# ---- 4. math-verify, in a worker -----------------------------------------------------------------------------------
HARMFUL = re.compile(r"'|[0-9]{41}|\^\s*\{?-?[0-9]{5}|[0-9]\^\s*\{?[0-9]+\^\s*\{?[0-9]|!\s*\)+\s*!|[0-9]{4}[\s)}]*!"
                     r"|\\(?:sum|prod|int|lim|binom).*(?:[0-9]{5}|10\^)|[^\x20-\x7e≤≥≠∪∈∞π⦃⦄¶]")


class Undecided(Exception):
    """Only math-verify can tell."""


def worth_asking(gold, pred):
    """Not prose, and nothing in it that takes sympy long: towers of powers, long sums, deep nesting."""
    return not any(WORD.search(x) or HARMFUL.search(x) or max(depths(x), default=0) > 12 for x in (gold, pred))


def postpone(gold, pred):
    if worth_asking(gold, pred):
        raise Undecided
    return False


def ask_sympy(gold, pred):
    """The judge in a worker. Without floats, math-verify's tolerance is for nothing but 60-digit numerics."""
    from math_verify import verify
    if not worth_asking(gold, pred):
        return False
    try:
        gold, pred = sympy_object(gold), sympy_object(pred)
    except Exception:  # noqa: BLE001  the parser raises all kinds; what it cannot read is not the answer
        return False
    return verify(gold, pred, numeric_precision=60, timeout_seconds=None, allow_set_relation_comp=True)


@functools.lru_cache(512)
def sympy_object(text):
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    def fraction(match):  # a float would be compared with a tolerance
        return "(\\frac{{{0.numerator}}}{{{0.denominator}}})".format(Fraction(match[0]))
    text = re.sub(r"[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?|[0-9]+\.?[eE][+-]?[0-9]{1,3}", fraction, text)
    text = re.sub(r"\\[A-Za-z]+|_\{\w+\}|(i)", lambda m: r"\sqrt{-1}" if m[1] else m[0], text)
    return latex2sympy(text.translate(LATEX), is_real=True, normalization_config=None,
                       conversion_config=ConversionConfig(lowercase_symbols=False))


@functools.lru_cache(1 << 14)
def equal(gold, pred):
    """Whether two answers in LaTeX are equal; None where only math-verify can tell."""
    try:
        return same(clean(gold), clean(pred), postpone)
    except Undecided:
        return None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):  # no response may stop a run
        return False


# ---- tasks ---------------------------------------------------------------------------------------------------------
class Question(NamedTuple):
    """What a task returns in place of a verdict where a worker must give it."""
    gold: str
    pred: str


def math_answer(response, answer, phrase):
    pred = extract_answer(response, phrase)
    verdict = pred is not None and equal(answer, pred)
    return Question(answer, pred) if verdict is None else verdict


def countdown(response, answer, phrase):
    """answer "44 = 3 7 12" is the target and the numbers; "3 * 12 = 36 36 + ..." uses each number and result once.
    Between the equations may stand words."""
    target, numbers = answer.split("=")
    pool, words = numbers.split(), [word for word in response.split() if not (word.isalpha() or word in ".,:")]
    steps = list(zip(*[iter(words)] * 5))
    if len(words) != 5 * (len(pool) - 1):
        return False
    for a, op, b, equals, c in steps:
        if op not in "+-*/" or equals != "=" or not all(re.fullmatch("-?[0-9]{1,15}", x, re.ASCII) for x in (a, b, c)):
            return False
        if Counter([a, b]) - Counter(pool) or values(f"({a}){op}({b})") != values(c):
            return False
        pool.remove(a)
        pool.remove(b)
        pool.append(c)
    return pool == [target.strip()]


def formatted(response, phrase):
    """The answer in the last <answer> tag if any: there in the last code block, the last box or bare."""
    _, opened, tail = response.rpartition("<answer>")
    inner, closed, _ = tail.partition("</answer>")
    tagged = bool(opened and closed)
    fences = (inner if tagged else response).split("```")
    found = re.sub("^[a-z]*\n", "", fences[-2]) if len(fences) > 2 else extract_answer(fences[0], phrase)
    return (found or (inner if tagged else "")).strip()[:MAX_ANSWER]


def choice(response, answer, phrase):
    """answer "(C)"; right are C, (C), C. and (C) with some text."""
    found = formatted(response, phrase)
    pred = re.sub(r"\\text\w*|[\s{}*$\\]", "", found)
    letter = re.match(r"\(?([A-Za-z])(?:[).:]|$)", pred)
    named = set(re.findall(r"(?<![A-Za-z])\(?([A-Z])\)", found))  # "(C) or (D)" is no choice
    return bool(letter) and len(named) < 2 and letter[1].upper() == answer.strip("() .").upper()


def text(response, answer, phrase):
    """A word, number, list, sentence, grid or row of brackets: as text, without regard to markup, case and spacing."""
    def plain(text):
        text = re.sub(r"\\text\w*\s*\{([^{}]*)\}|\\(?=[{}\s])|[*$\"'`]", r"\1", re.sub("[，、]", ",", text))
        return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split())).rstrip(".").casefold()
    pred, gold = plain(formatted(response, phrase)), plain(answer)
    if not re.search(r"\w", gold):  # a row of brackets, where the box's braces need not match
        box = re.fullmatch(r"\\boxed\s*\{(.*)\}[^}]*", response[max(response.rfind("\\boxed"), 0):][:MAX_ANSWER])
        return gold in (pred, plain(box[1]) if box else pred)
    numbers = all(re.fullmatch(r"-?[0-9]{1,40}(\.[0-9]{1,40})?", side) for side in (gold, pred))
    return gold in (pred, pred.replace(",", " ")) or numbers and Fraction(gold) == Fraction(pred)


def synlogic(response, answer, phrase):
    """SynLogic's tasks with a single right answer, which some of its prompts want as a last line, bare or behind "The
    answer is"."""
    last = response.rstrip().rpartition("\n")[2]
    return text(response if formatted(response, phrase=True) else f"<answer>{last}</answer>", answer, phrase=True)


def game24(response, answer, phrase):
    """answer "24 = 1 3 7 8": an expression with each number once."""
    target, numbers = answer.split("=")
    expression = re.sub(r"\s", "", formatted(response, phrase=True))
    if not re.fullmatch("[-+*/()0-9]{1,200}", expression) or "**" in expression or re.search(r"[0-9)]\(", expression):
        return False
    once = Counter(re.findall("[0-9]+", expression)) == Counter(numbers.split())
    return once and values(expression) == values(target)


def number_wall(response, answer, phrase):
    """answer: the grid as JSON, "X" where open. Walls are "A", no 2x2 of them; an island has one number, its size."""
    def cells_of(text):
        return {(y, x): str(cell) for y, row in enumerate(json.loads(text)) for x, cell in enumerate(row)}
    clues = cells_of(answer)
    try:
        cells = cells_of(formatted(response, phrase=True).replace("'", '"'))
    except (ValueError, TypeError, RecursionError):
        return False
    allowed = {at: ("X", "A") if clue == "X" else (clue,) for at, clue in clues.items()}
    if cells.keys() != clues.keys() or any(cells[at] not in allowed[at] for at in cells):
        return False
    walls = {at for at in cells if cells[at] == "A"}
    land = cells.keys() - walls
    while land:
        island = [land.pop()]
        for y, x in island:  # grows as it is read
            shore = land & {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)}
            land -= shore
            island += shore
        if [cells[at] for at in island if cells[at] != "X"] != [str(len(island))]:
            return False
    return not any({(y, x + 1), (y + 1, x), (y + 1, x + 1)} <= walls for y, x in walls)


# A task is a function of (response, answer, phrase); to add one, write it and name it here.
TASKS = {"math": math_answer, "countdown": countdown, "choice": choice, "text": text, "synlogic": synlogic,
         "game24": game24, "number_wall": number_wall}


# ---- many at once --------------------------------------------------------------------------------------------------
class Verifier:
    """Scores batches. Workers (processes with timeout_s seconds an answer and memory_mb of memory) start when the first
    answer needs one, stay, and are replaced when they overrun; an answer that overruns is wrong."""

    def __init__(self, workers=None, timeout_s=2.5, memory_mb=2048):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's ranks share the machine's cores
        self.workers = workers or max(1, min(8, cores // ranks))
        self.timeout_s, self.memory_mb = timeout_s, memory_mb
        self.idle, self.known, self.lock, self.pid = [], {}, threading.Lock(), os.getpid()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        while self.idle:
            stop(self.idle.pop())

    def score(self, responses, answers, task, progress=None, phrase=False):
        """1.0 for each correct response, else 0.0, in order; progress(done, total) is called as verdicts come in.
        task: one name for all, or a list of them."""
        tasks = [task] * len(responses) if isinstance(task, str) else task
        if (unknown := next((name for name in [task, *tasks] if isinstance(name, str) and name not in TASKS), None)):
            raise ValueError(f"task {unknown!r} is unknown; use one of {', '.join(TASKS)}")
        if (empty := next((row for row, answer in enumerate(answers) if not answer.strip()), None)) is not None:
            raise ValueError(f"row {empty}: the gold answer is empty; give the row an answer or remove it")
        verdicts = [TASKS[name](response, answer, phrase)
                    for name, response, answer in zip(tasks, responses, answers, strict=True)]
        rows = {}
        for row, verdict in enumerate(verdicts):
            if isinstance(verdict, Question):
                rows.setdefault(verdict, []).append(row)
        done = len(verdicts) - sum(map(len, rows.values()))
        with self.lock, ThreadPoolExecutor(self.workers) as pool:  # a thread a worker: it waits for one answer
            if self.pid != os.getpid():  # after a fork, the idle workers are the parent's
                self.idle, self.pid = [], os.getpid()
            if len(self.known) > 1 << 16:
                self.known.clear()
            new = [question for question in rows if question not in self.known]
            for question, verdict in itertools.chain(
                    [(question, self.known[question]) for question in rows if question in self.known],
                    zip(new, pool.map(self.ask, new))):
                self.known[question] = verdict
                for row in rows[question]:
                    verdicts[row] = verdict
                done += len(rows[question])
                if progress:
                    progress(done, len(verdicts))
        return list(map(float, verdicts))

    def ask(self, question):
        """Whether a worker says that they are equal; False if it is not heard from in time."""
        try:
            worker = self.idle.pop()
        except IndexError:
            worker = self.start()
        if worker.poll() is not None:  # it was killed meanwhile
            stop(worker)
            worker = self.start()
        reply = b""
        try:
            worker.stdin.write(json.dumps(question).encode() + b"\n")
            if wait([worker.stdout], self.timeout_s + 0.5):
                reply = worker.stdout.read(1)
        except BrokenPipeError:
            pass  # as if it had not answered
        if reply:
            self.idle.append(worker)
        else:
            stop(worker)
        return reply == b"1"

    def start(self):
        command = [sys.executable, os.path.abspath(__file__), "--worker", str(self.timeout_s), str(self.memory_mb)]
        environment, pipe = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}, subprocess.PIPE
        worker = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=environment,
                                  start_new_session=True)  # Ctrl-C is for the parent, which stops its workers
        if not wait([worker.stdout], START_S) or worker.stdout.read(1) != b"+":
            worker.kill()
            raise RuntimeError(f"a worker did not start: {worker.communicate()[1].decode()[-500:]}")
        return worker


def stop(worker):
    worker.kill()
    with worker:  # closes the pipes and waits
        pass


def work(timeout_s, memory_mb):
    """A worker: reads a JSON pair [gold, answer] a line, writes 1 or 0 for each."""
    if sys.platform == "linux":  # macOS refuses the limit
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    import math_verify  # noqa: F401  now, and not on the first answer's time
    replies = os.dup(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    class Overrun(BaseException):
        """Not an Exception, which sympy would swallow."""

    def overrun(*_):
        raise Overrun
    signal.signal(signal.SIGALRM, overrun)
    os.write(replies, b"+")
    for line in sys.stdin:
        faulthandler.dump_traceback_later(timeout_s + 1, exit=True)  # where Python cannot be interrupted
        verdict = False
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            verdict = same(*map(clean, json.loads(line)), ask_sympy)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (Exception, Overrun):  # noqa: BLE001  whatever sympy trips over is not the answer
            signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        os.write(replies, b"1" if verdict else b"0")


@functools.lru_cache
def shared_verifier():
    return Verifier(workers=1)


def is_correct(response, answer, task="math", phrase=False):
    """Whether the response's final answer is the gold answer; for many, Verifier.score is faster."""
    return bool(answer.strip()) and shared_verifier().score([response], [answer], task, phrase=phrase) == [1.0]


def main():
    parser = argparse.ArgumentParser(description="Score a JSONL file of responses and print a table of verdicts.")
    parser.add_argument("file", help='one {"response": ..., "answer": ..., "task": "math"} a line; task is optional')
    parser.add_argument("--phrase", action="store_true", help='without a box, read "the answer is ..." (base models)')
    options, tasks = parser.parse_args(), {}
    try:
        for line_number, line in enumerate(open(options.file, encoding="utf-8"), 1):
            if line.strip():
                row = json.loads(line)
                task, response, answer = row.get("task", "math"), row["response"], row["answer"]
                if task not in TASKS or not (isinstance(response, str) and isinstance(answer, str) and answer.strip()):
                    raise ValueError(f"texts are needed, and a task of {', '.join(TASKS)}")
                tasks.setdefault(task, []).append((response, answer))
    except OSError as error:
        sys.exit(f"{options.file} cannot be read: {error.strerror}")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        sys.exit(f"{options.file}, line {line_number}: not a row with response and answer ({error!r})")
    print("| task | rows | correct | wrong | share correct |\n|---|---|---|---|---|")
    with Verifier() as verifier:
        for task, pairs in tasks.items():
            correct = int(sum(verifier.score(*zip(*pairs), task, phrase=options.phrase)))
            print(f"| {task} | {len(pairs)} | {correct} | {len(pairs) - correct} | {correct / len(pairs):.3f} |")


if __name__ == "__main__":
    work(float(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["--worker"] else main()
