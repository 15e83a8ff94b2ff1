r"""Is a response's final answer right?  The reward of training and the metric of evaluation; needs no torch.

    extract_answer(response)              what stands in the last \boxed{}, or None
    is_correct(response, answer, task)    one verdict; TASKS lists the tasks
    with Verifier() as verifier:          many: verifier.score(responses, answers, task) -> [1.0, 0.0, ...]
    python verify.py rows.jsonl           a table of verdicts; a row is {"response": ..., "answer": ..., "task": "math"}

What a verifier accepts wrongly, a policy learns. So the first of these that can give a verdict gives it:
1. text: both sides are cleaned alike (spacing, \left, \dfrac, degrees, thousands) and are the same string;
2. structure: lists, sets, tuples, intervals, matrices and equations are taken apart; brackets and order count;
3. numbers: integers, fractions, decimals, scientific and mixed numbers are compared exactly, without a tolerance;
4. sympy and math-verify for the rest, behind limits on size, in a worker process that is killed when it overruns.
Nothing a model wrote is ever executed. What cannot be read, or not in time, is wrong.
"""
import argparse
import ast
import contextlib
import faulthandler
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from fractions import Fraction
from multiprocessing.connection import wait
from operator import add, mul, sub, truediv

MAX_ANSWER, MAX_FORMULA = 4000, 400  # characters: of an answer, of what is compared other than as text


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
COMMANDS = {name: symbol for symbol, names in {
    "*": "cdot times ast", "/": "div", "≤": "le leq leqslant", "≥": "ge geq geqslant", "<": "lt", ">": "gt", "±": "pm",
    "≠": "ne neq", "∪": "cup bigcup", "∈": "in", "∞": "infty", "≈": "approx", "π": "pi", "⦃": "{ lbrace", "⦄": "} rbrace",
    "°": "circ degree", "¶": "\\ cr", "|": "vert lvert rvert mid", " ": ", ; : > quad qquad space thinspace",
    "": "left right big Big bigl bigr Bigl Bigr displaystyle textstyle limits underline ! $ % ( ) [ ]", "\\frac": "dfrac tfrac cfrac", "\\emptyset": "varnothing",
    "\\text": "textbf textit textrm textnormal mathrm mathbf mathit mathsf boldsymbol bm mbox hbox operatorname emph",
}.items() for name in names.split()} | dict.fromkeys(" \n", " ")
UNICODE = str.maketrans({**dict.fromkeys("~$%£€¥\u00a0\r\n", " "), **dict.fromkeys("×·⋅", "*"), "÷": "/", "−": "-", "√": "\\sqrt "})
SYMBOLS = str.maketrans({"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "∞": r"\infty ", "π": r"\pi ",
                         "*": r"\cdot ", "⦃": r"\{", "⦄": r"\}", "¶": r"\\"})
FUNCTIONS = r"(?<![\\A-Za-z])(sqrt|sin|cos|tan|sec|csc|cot|ln|log|exp|arcsin|arccos|arctan|frac)(?![A-Za-z])"
WORD = re.compile(r"\\text|(?<![\\A-Za-z_{])(?:[A-Za-z]{4,}|[A-Z]{2,})")  # prose, or a name such as ABC: only equal as text
NAME = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]\s*\([0-9.-]+\)|[A-Za-z'(),:|/*{}\s]|_\s*(?:\{[^{}]*\}|[0-9])|\^\s*\{?-?[0-9]\}?)+")
HEDGE = re.compile(r"\b(?:or|and|not|is|isn't|if|than|more|less|at|except|wrong|incorrect|false)\b", re.IGNORECASE)
UNITS = {alias: names.split()[0] for names in (
    "cm centimeter", "mm millimeter", "km kilometer", "m meter", "inch in inche", "foot ft feet", "mile mi", "yard yd", "kg kilogram",
    "g gram", "pound lb", "liter litre", "second sec", "minute min", "hour hr", "day", "week", "month", "year yr", "cent",
    "dollar usd", "degree deg", "percent", "unit", "square sq", "cubic", "per") for alias in names.split()}


@functools.lru_cache(4096)
def clean(text):
    """One spelling for what LaTeX can spell in many ways; signs and escaped braces become single characters."""
    text = re.sub(r"(?<=[0-9])(?:\{,\}|,\\!|\\,|\\!)\s*(?=[0-9]{3}(?![0-9]))", "", text)  # 1{,}000 and 1,\!000
    text = re.sub(r"\\([A-Za-z]+|.)", lambda m: COMMANDS.get(m[1], m[0]), text, flags=re.DOTALL).translate(UNICODE)
    text = re.sub(r"\^\s*\{?\s*°\s*\}?|°", " ", text)

    def inside(match):  # \text{and} joins a list, \mathbf{25} and \text{(C)} are mathematics, \text{ cm} stays text
        words, before = match[1].strip(" ,"), match.string[:match.start()].rstrip()
        if words in ("and", "or"):
            return ","
        is_unit = re.match("[mgshLJNVWKCFT](?:$|[/^*])", words) and before[-1:] in tuple("0123456789)}")
        return match[0] if is_unit or re.search("[A-Za-z]{2}", words) else match[1]
    text = re.sub(r"\\text\s*\{([^{}]*)\}", inside, text)
    text = re.sub(r"(?<![A-Za-z{\\])(?:and|or)(?![A-Za-z}])", ",", text)
    text = re.sub(r"_\s*([0-9]+|[A-Za-z])", r"_{\1}", text)
    text = re.sub(r"([0-9]+)\s+([0-9]+)/([0-9]+)", r"\1\\frac{\2}{\3}", re.sub(r",(?:\s*,)+", ",", text))  # 2 3/4
    text = re.sub(r"\\frac\s*([0-9])", r"\\frac{\1}", re.sub(FUNCTIONS, r"\\\1", text))  # \frac12, \sqrt3
    text = re.sub(r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}", re.sub(r"\\sqrt\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text))
    for sign in "≈∈":  # "x ≈ 3.1" says 3.1 but "1/3 ≈ 0.33" says 1/3; "x ∈ (0,1)" says (0,1)
        head, _, tail = text.partition(sign)
        text = (tail if NAME.fullmatch(head) else head if sign == "≈" else text) if tail else text
    return text.strip().rstrip(".,;: ")


def flat(text):
    """For equality as text: unwrapped, without spaces, words without case."""
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    return text.casefold() if WORD.search(text) or text[1:].islower() and text.isalpha() else text


def split_unit(text):
    """(value, names of the units known): text after a value is its unit, unless it hedges as in "5 or more"."""
    bare = re.fullmatch(r"(.*[0-9)}π])\s*((?:[\s/]*[A-Za-z]{2,}){1,3})\s*(?:\^\s*\{?[23]\}?)?", text)
    known = lambda words: {UNITS.get(word.lower()) or UNITS.get(word.lower().rstrip("s")) for word in re.findall("[A-Za-z]+", words)}
    if bare and None not in known(bare[2]):
        return bare[1], known(bare[2]) - {"square", "cubic", "per", "unit"}
    head, mark, tail = text.partition("\\text{")
    if head.endswith("\\frac{"):
        head, mark = head[:-6], "\\frac{" + mark
    if not re.search(r"[\w)}⦄\]!]\s*$", head) or not re.fullmatch(r"(?:\\frac\{|\\text\{[^{}]*\}|[\s/*^0-9{}-])*", mark + tail) or HEDGE.search(tail):
        return text, set()
    return head.strip(), known(tail) - {"square", "cubic", "per", "unit", None}


# ---- 2. structure --------------------------------------------------------------------------------------------------
def depths(text):
    """The number of open brackets after each character."""
    return itertools.accumulate((char in "([{⦃") - (char in ")]}⦄") for char in text)


def split(text, separators):
    """Split at the separators that are outside all brackets."""
    cuts = [at for at, depth in enumerate(depths(text)) if depth == 0 and text[at] in separators]
    return [text[a:b].strip() for a, b in zip([0] + [cut + 1 for cut in cuts], cuts + [len(text)])]


def plus_minus(text):
    """Both values of a, three signs at most: [text] if it has no ±."""
    pieces = text.split("±")
    signs = itertools.product("+-", repeat=len(pieces) - 1) if len(pieces) < 5 else []
    return ["".join(itertools.chain(*zip(pieces, (*sign, "")))) for sign in signs] or [text]


def shape(text):
    """(kind, parts): "list" for lists and sets, in any order; brackets for tuples and intervals; "atom" for one thing."""
    matrix = re.fullmatch(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", text, re.DOTALL)
    if matrix:
        rows = [split(row, "&") for row in matrix[2].strip(" ¶").split("¶")]
        return f"matrix with rows of {[len(row) for row in rows]}", sum(rows, [])
    if len(parts := split(text, ",;")) > 1:
        return "list", [value for part in parts for value in plus_minus(part)]
    if len(parts := split(text, "∪")) > 1:
        return "∪", parts
    ends, inner = text[:1] + text[-1:], text[1:-1]
    if ends in ("()", "(]", "[)", "[]", "⦃⦄") and min(depths(inner), default=0) >= 0 and not re.search("[|:]", inner):
        kind, parts = shape(inner.strip())
        if kind == "list" or ends in ("()", "⦃⦄") or ends == "[]" and kind.startswith("matrix"):
            return (ends if kind == "list" and ends != "⦃⦄" else kind), parts
    values = plus_minus(text)
    return "list" if len(values) > 1 else "atom", values


def same(gold, pred, judge):
    """Whether two cleaned answers agree; judge(gold, pred) decides what text, structure and numbers do not."""
    if flat(gold) == flat(pred):
        return True
    if max(len(gold), len(pred)) > MAX_FORMULA or not gold or not pred:
        return False
    (gold, gold_unit), (pred, pred_unit) = split_unit(gold), split_unit(pred)
    if gold_unit and pred_unit and not gold_unit & pred_unit:
        return False
    return any(same_shape(g, p, judge) for g in readings(gold) for p in readings(pred))


def readings(text):
    """1,234 is a number or a list of two."""
    return dict.fromkeys([re.sub(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])", lambda m: m[0].replace(",", ""), text), text]
                         if not re.search(r"[(\[⦃]", text) else [text])


def same_shape(gold, pred, judge):
    gold_sides, pred_sides = ([text] if len(split(text, ",;")) > 1 else split(text, "=") for text in (gold, pred))
    if len(gold_sides) > 1 and len(pred_sides) > 1:
        if flat(gold_sides[0]) == flat(pred_sides[0]):
            return same(gold_sides[-1], pred_sides[-1], judge)
        return judge(gold, pred)
    if len(pred_sides) > 1:  # "x = 5" names its answer, "2 + 3 = 5" derives it: all that it claims must be the gold
        return all(same(gold, side, judge) for side in pred_sides[bool(NAME.fullmatch(pred_sides[0])):])
    if len(gold_sides) > 1:
        return bool(NAME.fullmatch(gold_sides[0])) and same(gold_sides[-1], pred, judge)
    (kind, gold_parts), (pred_kind, pred_parts) = shape(gold), shape(pred)
    if kind != pred_kind:
        return bool(re.search(r"[<>≤≥≠|]|\\mathbb|\\setminus|\\emptyset", gold + pred)) and judge(gold, pred)
    if kind == "atom":
        return same_atom(gold_parts[0], pred_parts[0], judge)
    if len(gold_parts) != len(pred_parts):
        return False
    if kind not in ("list", "∪"):
        return all(same(g, p, judge) for g, p in zip(gold_parts, pred_parts))
    for part in gold_parts:
        match = next((at for at, other in enumerate(pred_parts) if same(part, other, judge)), None)
        if match is None:
            return False
        del pred_parts[match]
    return True


# ---- 3. numbers ----------------------------------------------------------------------------------------------------
NUMBER = re.compile(r"([-+]?)([0-9]+\.?[0-9]*|\.[0-9]+)?(?:\\frac\{(-?[0-9.]+)\}\{(-?[0-9.]+)\}|/([0-9.]+))?"
                    r"(?:(?:[eE]|\*?10\^)\{?([-+]?[0-9]{1,3})\}?)?")


def number(text):
    """The exact value of an integer, decimal, fraction, mixed number (2\\frac{3}{4}) or a*10^{b}; None for all else."""
    match = NUMBER.fullmatch(flat(text))
    if not match or not text:
        return None
    sign, whole, top, bottom, divisor, exponent = match.groups()
    try:
        value = Fraction(whole or (0 if top else 1)) / Fraction(divisor or 1)
        part = Fraction(top or 0) / Fraction(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return None
    if whole and top and not (whole.isdigit() and 0 < part < 1):
        return None
    return (-1 if sign == "-" else 1) * (value + part) * Fraction(10) ** int(exponent or 0)


def same_atom(gold, pred, judge):
    if flat(gold) == flat(pred):
        return True
    values = number(gold), number(pred)
    if None not in values:
        return values[0] == values[1]
    return not re.search("[0-9]_", gold + pred) and judge(gold, pred)  # 204_5 is not 204_6


# ---- 4. sympy, in a worker -----------------------------------------------------------------------------------------
class Undecided(Exception):
    """Raised with (gold, pred) by tasks that need the slow judge."""


HARMFUL = re.compile(r"[0-9]{41}|\^\s*\{?-?[0-9]{5}|[0-9]\^\s*\{?[0-9]+\^\s*\{?[0-9]|!\s*\)+\s*!|[0-9]{4}[\s)}]*!"
                     r"|\\(?:sum|prod|int|lim|binom).*(?:[0-9]{5}|10\^)|[^\x20-\x7e≤≥≠∪∈∞π⦃⦄¶]")


def worth_asking(gold, pred):
    return not any(WORD.search(text) or HARMFUL.search(text) or max(depths(text), default=0) > 12 for text in (gold, pred))


def postpone(gold, pred):
    if worth_asking(gold, pred):
        raise Undecided
    return False


def ask_sympy(gold, pred):
    """The slow judge: formulas by their values at test points, relations and sets by math-verify."""
    import sympy
    from math_verify import verify
    try:
        gold, pred = sympy_object(gold), sympy_object(pred)
    except Exception:  # the parser raises all kinds, and what it cannot read is not the answer
        return False
    if not all(isinstance(x, sympy.Expr) for x in (gold, pred)) or (gold.atoms() | pred.atoms()) and gold.has(sympy.core.function.AppliedUndef):
        return verify(gold, pred, timeout_seconds=None, allow_set_relation_comp=True)
    difference = (gold - pred).doit()
    if difference.is_Rational:
        return difference == 0
    letters = sorted({str(letter) for letter in gold.free_symbols | pred.free_symbols})
    agreed = 0
    for k in range(4):
        point = {letter: sympy.Rational(2 * at + 3 + 7 * k, 5 + at) * (-1) ** (k // 2) for at, letter in enumerate(letters)} | {"i": sympy.I, "e": sympy.E}
        a, b = (sympy.N(x.subs({s: point[str(s)] for s in x.free_symbols}), 50) for x in (gold, pred))
        if not (a.is_finite and b.is_finite):
            return a in (sympy.oo, -sympy.oo) and a == b
        if abs(a - b) > sympy.Float(10, 50) ** -40 * max(abs(a), abs(b)):
            if a.is_real or not agreed:
                return False
        agreed += 1
    return True


@functools.lru_cache(512)
def sympy_object(text):
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    exact = lambda match: "(\\frac{{{0.numerator}}}{{{0.denominator}}})".format(Fraction(match[0]))
    text = re.sub(r"[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?|[0-9]+\.?[eE][+-]?[0-9]{1,3}", exact, text).translate(SYMBOLS)
    return latex2sympy(text, is_real=True, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False))


# ---- tasks ---------------------------------------------------------------------------------------------------------
@functools.lru_cache(1 << 14)
def equal(gold, pred):
    """True, False, or None if only the slow judge can tell."""
    try:
        return same(clean(gold), clean(pred), postpone)
    except Undecided:
        return None


def math(response, answer, phrase=False):
    pred = extract_answer(response, phrase)
    verdict = pred is not None and equal(answer, pred)
    if verdict is None:
        raise Undecided(answer, pred)
    return verdict


def countdown(response, answer, phrase=False):
    """answer "44 = 3 7 12" is the target and the numbers; the response "3 * 12 = 36 36 + ..." uses each of them once."""
    target, numbers = answer.split("=")
    pool, words = [int(number) for number in numbers.split()], response.split()
    if len(words) != 5 * (len(pool) - 1):
        return False
    for a, op, b, equals, c in zip(*[iter(words)] * 5):
        if op not in "+-*/" or equals != "=" or not all(re.fullmatch(r"-?[0-9]{1,15}", word) for word in (a, b, c)):
            return False
        a, b, c = int(a), int(b), int(c)
        for operand in (a, b):
            if operand not in pool:
                return False
            pool.remove(operand)
        if c != (a + b if op == "+" else a - b if op == "-" else a * b if op == "*" else Fraction(a, b) if b else None):
            return False
        pool.append(c)
    return pool == [int(target)]


def choice(response, answer, phrase=False):
    """answer "(C)": C, (C), c) some text."""
    pred = re.sub(r"\\text\w*\s*|[{}*$\\]", "", extract_answer(response, phrase) or "").strip()
    letter = re.match(r"\(?\s*([A-Za-z])\s*(?:[).:]|$)", pred)
    return bool(letter) and letter[1].upper() == answer.strip("() .").upper()


def plain(text):
    """Text for exact match: no markup, quotes or case, one space between words and none around signs."""
    text = re.sub(r"\\text\w*\s*\{([^{}]*)\}|\\(?=[{}\s])|[*$\"'`]", r"\1", text)
    return re.sub(r"\s*([^\w\s]|(?<=\W)\s)\s*", r"\1", " ".join(text.split())).rstrip(".").casefold()


def text(response, answer, phrase=False):
    """A word, number, list of words or row of brackets, exactly."""
    if not re.search(r"\w", answer):  # brackets: braces do not match
        box = re.search(r"\\boxed\s*\{(.*)\}", response)
        return bool(box) and plain(box[1]) == plain(answer) or plain(extract_answer(response, phrase) or "") == plain(answer)
    pred = extract_answer(response, phrase)
    return pred is not None and (plain(pred) == plain(answer) or plain(pred).replace(",", " ") == plain(answer) or equal(answer, pred) is True)


def formatted(response):
    """The answer as SynLogic asks for it: in the last <answer> tag if any; there a code block, a box or "the answer is"."""
    _, opened, tail = response.rpartition("<answer>")
    inner, closed, _ = tail.partition("</answer>")
    inside = inner if opened and closed else response
    fences = inside.split("```")
    block = re.sub(r"^[a-z]*\n", "", fences[-2]) if len(fences) > 2 else None
    return block or extract_answer(inside, phrase=True) or (inner.strip() if opened and closed else None)


def synlogic(response, answer, phrase=False):
    return plain(formatted(response) or "")[:MAX_ANSWER] == plain(answer)


def game24(response, answer, phrase=False):
    """answer "24 = 1 3 7 8": an expression that uses each number once; its syntax tree is walked, it is never run."""
    target, numbers = answer.split("=")
    expression = formatted(response) or ""
    if not re.fullmatch(r"[0-9+\-*/()\s]{1,200}", expression) or Counter(re.findall("[0-9]+", expression)) != Counter(numbers.split()):
        return False

    def value(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return {ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv}[type(node.op)](value(node.left), value(node.right))
    try:
        return value(ast.parse(expression.strip(), mode="eval").body) == int(target)
    except (SyntaxError, KeyError, AttributeError, ZeroDivisionError):
        return False


def number_wall(response, answer, phrase=False):
    """answer: the grid as JSON, "X" where open. Each island holds one number, its size; no 2x2 block is all wall ("A")."""
    given = json.loads(answer)
    try:
        grid = json.loads((formatted(response) or "").replace("'", '"'))
        if [len(row) for row in grid] != [len(row) for row in given]:
            return False
        cells = {(y, x): grid[y][x] for y, row in enumerate(given) for x, _ in enumerate(row)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    if any(cells[y, x] not in (("X", "A") if known == "X" else (known,)) for y, row in enumerate(given) for x, known in enumerate(row)):
        return False
    walls = {cell for cell, what in cells.items() if what == "A"}
    if any({(y, x + 1), (y + 1, x), (y + 1, x + 1)} <= walls for y, x in walls):
        return False
    land = set(cells) - walls
    while land:
        island = [land.pop()]
        for y, x in island:  # grows as it is read
            near = land & {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)}
            land -= near
            island += near
        if [cells[cell] for cell in island if cells[cell] != "X"] != [len(island)]:
            return False
    return True


# A task is a function (response, answer, phrase) -> bool; adding one is writing it and naming it here.
TASKS = {"math": math, "countdown": countdown, "choice": choice, "text": text, "synlogic": synlogic, "game24": game24,
         "number_wall": number_wall}


# ---- many at once --------------------------------------------------------------------------------------------------
class Verifier:
    """Scores batches. Workers (processes with timeout_s seconds an answer and memory_mb of memory) start when the first
    answer needs one, stay, and are replaced when they overrun; an answer that overruns is wrong."""

    def __init__(self, workers=None, timeout_s=2.5, memory_mb=2048):
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's ranks share the machine
        self.workers = workers or max(1, min(8, len(os.sched_getaffinity(0)) // ranks))
        self.timeout_s, self.memory_mb, self.pid = timeout_s, memory_mb, os.getpid()
        self.idle, self.known, self.lock = [], {}, threading.Lock()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        while self.idle:
            stop(self.idle.pop())

    def score(self, responses, answers, task, progress=None, phrase=False):
        """1.0 for each correct response, else 0.0, in order; progress(done, total) is called as verdicts come in."""
        if task not in TASKS:
            raise ValueError(f"task {task!r} is unknown; use one of {', '.join(TASKS)}")
        empty = next((row for row, answer in enumerate(answers) if not answer.strip()), None)
        if empty is not None:
            raise ValueError(f"row {empty}: the gold answer is empty; give the row an answer or remove it")
        scores, waiting = [], {}
        for row, (response, answer) in enumerate(zip(responses, answers, strict=True)):
            try:
                scores.append(float(TASKS[task](response, answer, phrase)))
            except Undecided as question:
                scores.append(None)
                waiting.setdefault(question.args, []).append(row)
        with self.lock:
            known = [(question, self.known[question]) for question in waiting if question in self.known]
            new = [question for question in waiting if question not in self.known]
            for question, verdict in itertools.chain(known, self.ask(new)):
                self.known[question] = verdict
                for row in waiting[question]:
                    scores[row] = verdict
                if progress:
                    progress(len(scores) - scores.count(None), len(scores))
        return scores

    def ask(self, questions):
        """Yields (question, 1.0 or 0.0) as the workers answer; one question at a time to each."""
        if self.pid != os.getpid():  # after a fork, the idle workers are the parent's
            self.pid, self.idle = os.getpid(), []
        todo, busy = deque(questions), {}
        try:
            while todo or busy:
                while todo and len(busy) < self.workers:
                    worker, ready_by = (self.idle.pop(), 0) if self.idle else (self.start(), 60)
                    busy[worker] = [todo.popleft(), time.monotonic() + (ready_by or self.timeout_s + 0.5)]
                    with contextlib.suppress(BrokenPipeError):  # it has died: its empty reply says so below
                        worker.stdin.write(json.dumps(busy[worker][0]).encode() + b"\n")
                patience = min(deadline for _, deadline in busy.values()) - time.monotonic()
                answered = wait([worker.stdout for worker in busy], max(0, patience))
                for worker, (question, deadline) in list(busy.items()):
                    reply = os.read(worker.stdout.fileno(), 9).decode() if worker.stdout in answered else None
                    if reply == "+":  # imports are done, the clock starts
                        busy[worker][1] = time.monotonic() + self.timeout_s + 0.5
                    elif reply:
                        del busy[worker]
                        self.idle.append(worker)
                        yield question, float(reply[-1])
                    elif reply == "" or time.monotonic() > deadline:
                        del busy[worker]
                        stop(worker)
                        yield question, 0.0
        finally:
            for worker in busy:
                stop(worker)

    def start(self):
        command = [sys.executable, os.path.abspath(__file__), "--worker", str(self.timeout_s), str(self.memory_mb)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
                                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})


def stop(worker):
    with worker:  # closes its pipes and waits
        worker.kill()


def work(timeout_s, memory_mb):
    """A worker: reads a JSON pair (gold, answer) a line, writes 1 or 0. An exception in time, else the hard exit."""
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    import math_verify  # noqa: F401  before the clock starts
    replies, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)

    class Overrun(BaseException):
        """Not an Exception, which sympy would swallow."""

    def overrun(*_):
        raise Overrun
    signal.signal(signal.SIGALRM, overrun)
    os.write(replies, b"+")
    for line in sys.stdin:
        faulthandler.dump_traceback_later(timeout_s + 1, exit=True)  # even where Python cannot be interrupted
        try:
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            gold, pred = (clean(text) for text in json.loads(line))
            verdict = same(gold, pred, lambda *pair: worth_asking(*pair) and ask_sympy(*pair))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (Exception, Overrun):
            verdict = False
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
    parser.add_argument("file", help='one {"response": ..., "answer": ..., "task": ...} a line; task is optional')
    parser.add_argument("--task", default="math", choices=TASKS, help="for rows that name no task (default: math)")
    parser.add_argument("--phrase", action="store_true", help='without a box, read "the answer is ..." (base models)')
    options = parser.parse_args()
    groups = {}
    with open(options.file) as lines:
        for number_, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                groups.setdefault(row.get("task", options.task), []).append((row["response"], row["answer"]))
            except (ValueError, KeyError, AttributeError) as error:
                sys.exit(f"{options.file}, line {number_}: not a row with response and answer ({error!r})")
    print("| task | rows | correct | wrong | share correct |\n|---|---|---|---|---|")
    with Verifier() as verifier:
        for task, pairs in groups.items():
            correct = int(sum(verifier.score(*zip(*pairs), task, phrase=options.phrase)))
            print(f"| {task} | {len(pairs)} | {correct} | {len(pairs) - correct} | {correct / len(pairs):.3f} |")


if __name__ == "__main__":
    work(float(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["--worker"] else main()
