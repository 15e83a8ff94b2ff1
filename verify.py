r"""Is a response's final answer right?  The reward of training and the metric of evaluation; needs no torch.

    extract_answer(response)              what stands in the last \boxed{}, or None
    is_correct(response, answer, task)    one verdict; TASKS lists the tasks
    with Verifier() as verifier:          many: verifier.score(responses, answers, task) -> [1.0, 0.0, ...]
    python verify.py rows.jsonl           a table of verdicts; a row is {"response": ..., "answer": ..., "task": "math"}

What a verifier accepts wrongly, a policy learns. So the first of these that can give a verdict gives it:
1. text: both sides are cleaned alike (spacing, \left, \dfrac, degrees) and are the same string, but for a unit;
2. structure: equations, lists, sets, tuples, intervals and matrices are taken apart; brackets and order count;
3. arithmetic: numbers, polynomials and their quotients are compared exactly, without a tolerance;
4. math-verify, for roots, functions and the rest, behind limits on size, in a worker that is killed when it overruns.
Nothing a model wrote is ever executed. What cannot be read, or not in time, is wrong.
"""
import ast
import contextlib
import functools
import itertools
import json
import math
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

MAX_ANSWER, MAX_FORMULA = 4000, 400  # characters: of an answer, and of what is compared other than as text
MAX_BITS = 30_000  # of a number


def extract_answer(response, phrase=False):
    r"""The content of the last \boxed{} or \fbox{} (or \boxed 5); None if there is none, or it is empty or unclosed.
    phrase=True is for evaluating base models: without a box, what follows the last "answer is" on its line."""
    start = max(response.rfind("\\boxed"), response.rfind("\\fbox"))
    if start < 0:
        _, *said = re.split("(?i)answer is|答案是", response) if phrase else [response]
        line = said[-1][:MAX_ANSWER].lstrip(" :：").split("\n")[0] if said else ""
        return re.split(r"[.。](?:\s|$)", line)[0].strip(" $*") or None
    box = re.sub(r"^\\(?:boxed|fbox)\s*", "", response[start:start + MAX_ANSWER])
    if not box.startswith("{"):
        bare = re.match("-?[0-9.]+|[A-Za-z]", box)
        return bare and bare[0]
    depth = 0
    for token in re.finditer(r"\\.|[{}]", box, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return box[1:token.start()].strip() or None
    return None


# ---- 1. text -------------------------------------------------------------------------------------------------------
SIGNS = {  # one character for what LaTeX writes in many ways; sign -> commands, the first of which math-verify reads
    "*": "cdot times ast", "/": "div", "≤": "le leq leqslant", "≥": "ge geq geqslant", "<": "lt", ">": "gt", "±": "pm",
    "≠": "ne neq", "∪": "cup bigcup", "∈": "in", "∞": "infty", "≈": "approx", "π": "pi", "°": "circ degree",
    "¶": "\\ cr", "⦃": "{ lbrace", "⦄": "} rbrace", "|": "vert lvert rvert mid", " ": ", ; : > quad qquad space",
    "": "left right big Big bigl bigr Bigl Bigr displaystyle textstyle limits underline ! $ % ( ) [ ]",
    "\\frac": "dfrac tfrac cfrac", "\\emptyset": "varnothing",
    "\\text": "textbf textit textrm textnormal mathrm mathbf mathit mathsf boldsymbol bm mbox hbox operatorname emph"}
COMMANDS = {name: sign for sign, names in SIGNS.items() for name in names.split()} | dict.fromkeys(" \n", " ")
CHARACTERS = str.maketrans(dict.fromkeys("~$%£€¥\u00a0\r\n", " ") | dict.fromkeys("×·⋅", "*") | {"÷": "/", "−": "-"})
LATEX = str.maketrans({sign: f"\\{SIGNS[sign].split()[0]} " for sign in "*≤≥≠∪∈∞π⦃⦄¶"}
                      | {"⟦": r"\begin{pmatrix}", "⟧": r"\end{pmatrix}"})
UNITS = {alias: names.split()[0] for names in (
    "cm centimeter,mm millimeter,km kilometer,m meter,inch in inche,foot ft feet,mile mi,yard yd,g gram,kg kilogram,"
    "pound lb,liter litre,second sec s,minute min,hour hr,day,week,month,year yr,cent,dollar usd,percent,degree deg,"
    "hz hertz,khz,mhz,newton,joule,kj,ev,kev,mev,gev,watt,kw,volt,kelvin,pascal,mol mole,nm,erg").split(",")
    for alias in names.split()} | dict.fromkeys("unit square sq cubic per".split())
HEDGE = re.compile(  # what makes another number, or none, of the value before it
    r"(?i)\b(?:or|and|not?|but|is|isn't|if|than|more|less|at|to|except|plus|minus|times|over|mod|base|choose|remainder"
    r"|negative|squared|cubed|factorial|hal(?:f|ves)|dozens?|hundreds?|thousands?|[mbtr]+illions?|wrong|incorrect)\b")
WORD = re.compile(r"\\text|(?<![\\A-Za-z_{])(?:[A-Za-z]{4,}|[A-Z]{2,})")  # prose, or a name as ABC: equal only as text
GROUPED = re.compile("(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
NAME = re.compile(r"(?>\\[A-Za-z]+|[A-Za-z]\s*\([0-9.-]+\)|[A-Za-z'(),:|/*{}\s]|_\{[^{}]*\}|\^\{?-?[0-9])++")


def unwrap(match):
    r"""\text{and} joins a list, \mathbf{25} and \text{(C)} are mathematics, 5 \text{ m} has a unit."""
    words, before = match[match.lastindex].strip(" ,"), match.string[:match.start()].rstrip()
    if words in ("and", "or"):
        return ","
    unit = re.match("[mgshLJNVWKCFT](?:$|[ /^*])", words) and re.search(r"[0-9)}/*]\s*((\\frac\s*)?\{)?$", before)
    return match[0] if unit or re.search("[A-Za-z]{2}", words) else match[1]


SPELLINGS = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"(\\(?:sin|cos|tan|sec|csc|cot)\s*\(?)([0-9.]+)\s*\^?\s*\{?°\}?", r"\1{\2*π/180}"),
    (r"\\color\s*\{[a-z]+\}|\^\s*\{?°\}?|°", " "), (r"_\s*([0-9]+|[A-Za-z])", r"_{\1}"),
    (r"\\text\s*\{((?:[^{}]|\{[^{}]*\})*)\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])", unwrap), (r",(?:\s*,)+", ","),
    (r"(?i)(?<=[0-9)}π])((?:[\s/]*(?:%s)s?(?![A-Za-z]))+)(?=\s*(?:\^\{?[23]\}?\s*)?(?:[,;]|$))"
     % "|".join(unit for unit in UNITS if len(unit) > 1), r"\\text{\1}"),  # 5 cm
    (r"(?<![0-9])([0-9]{0,9})\.([0-9]{0,9})\\overline\{([0-9]{1,9})\}",  # 0.1\overline{6}
     lambda m: rf"({m[1]}.{m[2]}0+\frac{{{m[3]}}}{{{(10 ** len(m[3]) - 1) * 10 ** len(m[2])}}})"),
    (r"⦃\s*⦄", r"\\emptyset "),
    (r"(?<![0-9.])([0-9]{1,9})\s+([0-9]{1,9})/([0-9]+)", r"\1\\frac{\2}{\3}"),  # 2 3/4
    (r"\\frac\s*([0-9])", r"\\frac{\1}"), (r"(\\frac\s*\{[^{}]*\})\s*([0-9A-Za-z])", r"\1{\2}"),  # \frac12
    (r"(?:√|\\sqrt)\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}"),
    (r"\\begin\{(?:[pbB]?matrix|array)\}(?:\{[lcr|]*\})?", "⟦"), (r"[\s¶]*\\end\{(?:[pbB]?matrix|array)\}", "⟧"))]


@functools.lru_cache(4096)
def clean(text):
    """One spelling for what LaTeX can spell in many ways."""
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
    power = r"\^\s*(?:-?[1-9]|\{-?[1-9]\})"
    unit = rf"(?:\\frac\s*\{{|\\text\{{(?:[^{{}}0-9]|{power})*\}}|{power}|[\s/*{{}}])+"
    match = re.fullmatch(rf"((?!\\text).*?[\w)}}⦄\]⟧!])\s*((?=\\text|\\frac\s*\{{\\text){unit})", text)
    if not match or HEDGE.search(match[2]):
        return text, set()
    words = re.findall("[a-z]+", re.sub(r"\\[a-z]+", "", match[2]).lower())
    return match[1], {UNITS.get(word) or UNITS.get(word.rstrip("s")) for word in words} - {None}


# ---- 2. structure --------------------------------------------------------------------------------------------------
def depths(text):
    """The number of open brackets after each character."""
    return itertools.accumulate((char in "([{⦃⟦") - (char in ")]}⦄⟧") for char in text)


def split(text, separators):
    """Split at the separators that are outside all brackets."""
    cuts = [at for at, depth in enumerate(depths(text)) if depth == 0 and text[at] in separators]
    return [text[a:b].strip() for a, b in zip([0] + [cut + 1 for cut in cuts], cuts + [len(text)])]


def shape(text):
    """(kind, parts): "," for lists and sets, the brackets for tuples and intervals, ∪, ¶ and & for unions, rows and
    cells, and "" for one thing."""
    ends, inner, enclosed = text[:1] + text[-1:], text[1:-1].strip(), min(depths(text[:-1]), default=0) > 0
    if enclosed and ends == "⦃⦄":
        return ("", [text]) if re.search("[|:]", inner) else shape(inner)
    values = [part.replace("±", sign) for part in split(text, ",;") for sign in ("+-" if "±" in part else "+")]
    for kind, parts in (",", values), *((sign, split(text, sign)) for sign in "∪¶&"):
        if len(parts) > 1:
            return kind, parts
    kind, parts = shape(inner) if enclosed else ("", [])
    if kind or enclosed and ends in ("()", "⟦⟧"):
        return ends if kind == "," else kind, parts
    return "", [text]


def same(gold, pred):
    """Whether two cleaned answers agree."""
    if flat(gold) == flat(pred):
        return True
    if not gold or not pred or max(len(gold), len(pred)) > MAX_FORMULA:
        return False
    (gold, unit), (pred, pred_unit) = split_unit(gold), split_unit(pred)
    if unit and pred_unit and not unit & pred_unit:
        return False
    numbers = tuple(text if re.search(r"[(\[⦃]", text) else GROUPED.sub(lambda m: m[0].replace(",", ""), text)
                    for text in (gold, pred))
    may_be_list = numbers[0] == gold or re.search("(?<![0-9])[0-9]{3},", gold)  # 101,234 may be, 1,234 is a number
    return any(itertools.starmap(same_parts, sorted({numbers, (gold, pred) if may_be_list else numbers})))


def same_parts(gold, pred):
    golds, preds = ([text] if len(split(text, ",;")) > 1 else split(text, "=") for text in (gold, pred))
    named = len(golds) == 1 or NAME.fullmatch(golds[0])
    if len(golds) > 1 and len(preds) > 1 and not (named and flat(golds[0]) == flat(preds[0])):
        return same_value(gold, pred)  # two equations
    if len(golds) > 1 or len(preds) > 1:
        # "x = 5" names its answer, "2 + 3 = 5" derives it: all that a response claims must be the gold
        claims = [side for side in preds if not NAME.fullmatch(side)] or preds[-1:]
        return bool(named) and all(same(golds[-1], claim) for claim in claims)
    (kind, golds), (pred_kind, preds) = shape(gold), shape(pred)
    if kind != pred_kind:
        return bool(re.search(r"[<>≤≥≠|]|\\mathbb|\\setminus|\\emptyset", gold + pred)) and same_value(gold, pred)
    if not kind:
        return same_value(*golds, *preds)
    if len(golds) != len(preds) or kind not in (",", "∪"):
        return len(golds) == len(preds) and all(map(same, golds, preds))
    for part in golds:  # in any order
        match = next((other for other in preds if same(part, other)), None)
        if match is None:
            return False
        preds.remove(match)
    return True


# ---- 3. arithmetic -------------------------------------------------------------------------------------------------
NUMERAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?"
TOKEN = re.compile(NUMERAL + r"|\\frac(?=\{)|[A-Za-z](?:_\{\w+\})?|\S")
APPLIED = re.compile(r"[A-Za-z]\(\w+\)|(?<![A-Za-z])[fghFGP]\(")  # f(x) is not f times x
MIXED = re.compile(r"(?<![0-9.}^_*/])([0-9]+)(\\frac\{([0-9]+)\}\{([0-9]+)\})")
PYTHON = {"^": "**", "{": "[", "}": "]", "\\frac": "frac"}  # so that \frac{a}{b} is frac[a][b]
OPERATORS = {ast.Add: Fraction.__add__, ast.Sub: Fraction.__sub__, ast.Mult: Fraction.__mul__,
             ast.Div: Fraction.__truediv__}


@functools.lru_cache(4096)
def value(text):
    """What -2\\frac{1}{3}, 7.5*10^{7} or (x - 4)/2π is, exactly, at one random point for its letters (π is one, i is
    not); nan where it has no value or a huge one; None for roots, functions and all else."""
    if WORD.search(text) or APPLIED.search(text := flat(text)):
        return None
    text, python, ended = MIXED.sub(lambda m: f"({m[1]}+{m[2]})" if int(m[3]) < int(m[4]) else m[0], text), "", False
    for token in TOKEN.findall(text):
        digits, letter = re.match(r"\.?[0-9]", token), re.match("[A-Za-hj-zπ]", token)
        if not (digits or letter or token in ("\\frac", *"+-*/^(){}")) or digits and ended:
            return None
        python += "*" if ended and (letter or token in ("\\frac", "(")) else ""  # 2x, x(y + 1)
        python += f"'{token}'" if digits else re.sub("[{}]", "", token) if letter else PYTHON.get(token, token)
        ended = digits or letter or token in (")", "}")
    try:  # the syntax tree is walked and never run
        return exact(ast.parse(python, mode="eval").body)
    except ArithmeticError:
        return math.nan
    except (SyntaxError, ValueError, LookupError, RecursionError, MemoryError):
        return None


def exact(node):
    """The Fraction that a tree of numerals (strings), letters, frac[a][b] and + - * / ** stands for."""
    match node:
        case ast.Constant(value=str(numeral)):
            return Fraction(numeral)
        case ast.Name(id=name) if name != "frac":
            return Fraction(random.Random(name).getrandbits(64), 7)
        case ast.List(elts=[inner]):
            return exact(inner)
        case ast.Subscript(value=ast.Subscript(value=ast.Name(id="frac"), slice=top), slice=bottom):
            return exact(ast.BinOp(top, ast.Div(), bottom))
        case ast.UnaryOp(op=sign, operand=operand):
            return exact(operand) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=left, op=op, right=right):
            a, b, power = exact(left), exact(right), isinstance(op, ast.Pow)
            if power and b.denominator > 1:
                raise ValueError("a root, or a letter in an exponent")
            if (abs(b) if power else 1) * max(x.bit_length() for x in a.as_integer_ratio()) > MAX_BITS:
                raise OverflowError
            return a ** int(b) if power else OPERATORS[type(op)](a, b)
    raise ValueError("not arithmetic")


# ---- 4. math-verify, in a worker -----------------------------------------------------------------------------------
IN_WORKER = __name__ == "__main__" and sys.argv[1:2] == ["--worker"]
HARMFUL = re.compile(r"'|[0-9]{41}|\^\s*\{?-?[0-9]{5}|[0-9]\^\s*\{?[0-9]+\^\s*\{?[0-9]|!\s*\)+\s*!|[0-9]{4}[\s)}]*!"
                     r"|(?:\^\s*\{[^{}^]*){3}\^|\\(?:sum|prod|int|lim|binom).*(?:[0-9]{5}|10\^)|[^\x20-\x7e≤≥≠∪∈∞π⦃⦄¶⟦⟧]")


class Undecided(Exception):
    """Only a worker can tell."""


def worth_asking(*pair):
    """Not prose, and nothing in it that takes sympy long: towers of powers, long sums, deep nesting."""
    return not any(WORD.search(x) or HARMFUL.search(x) or max(depths(x), default=0) > 12 for x in pair)


def same_value(gold, pred):
    """Whether two things without structure are the same: exactly if they are arithmetic, else as math-verify says."""
    if flat(gold) == flat(pred):
        return True
    if re.search("[0-9]_|:", gold + pred):  # 204_5 is not 204_6, nor 54; 12:00 is not 24:00
        return False
    if None not in (pair := [value(gold), value(pred)]):
        return pair[0] == pair[1]
    if not worth_asking(gold, pred):
        return False
    if not IN_WORKER:
        raise Undecided
    from math_verify import verify
    with contextlib.suppress(Exception):  # the parser raises all kinds; what it cannot read is not the answer
        return verify(sympy_object(gold), sympy_object(pred), numeric_precision=60, timeout_seconds=None,
                      allow_set_relation_comp=True)
    return False


@functools.lru_cache(512)
def sympy_object(text):
    """No float is left, so that math-verify's tolerance is for nothing but 60-digit numerics."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    text = re.sub(NUMERAL, lambda m: "(\\frac{%d}{%d})" % Fraction(m[0]).as_integer_ratio()
                  if re.search("[.eE]", m[0]) else m[0], text)
    text = re.sub(r"\\[A-Za-z]+|_\{\w+\}|(i)", lambda m: r"\sqrt{-1}" if m[1] else m[0], text)
    return latex2sympy(text.translate(LATEX), is_real=True, normalization_config=None,
                       conversion_config=ConversionConfig(lowercase_symbols=False))


@functools.lru_cache(1 << 14)
def equal(gold, pred):
    """Whether two answers in LaTeX are equal; None where only a worker can tell."""
    try:
        return same(clean(gold), clean(pred))
    except Undecided:
        return None
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):  # no response may stop a run
        return False


# ---- tasks ---------------------------------------------------------------------------------------------------------
def math_answer(response, answer, phrase):
    """A verdict, or the pair that a worker must compare."""
    pred = extract_answer(response, phrase)
    verdict = pred is not None and equal(answer, pred)
    return (answer, pred) if verdict is None else verdict


def countdown(response, answer, phrase):
    """answer "44 = 3 7 12" is the target and the numbers; "3 * 12 = 36 , then 36 + ..." uses each number and result
    once. Words without digits are passed over."""
    target, numbers = answer.split("=")
    pool, number = Counter(numbers.split()), "-?[0-9]{1,15}"
    words = [word for word in response.split() if not re.fullmatch("[A-Za-z,.:]+", word)]
    steps = re.findall(rf"(?<!\S)({number}) ([-+*/]) ({number}) = ({number})(?!\S)", " ".join(words))
    for a, sign, b, result in steps:
        x, y, z = int(a), int(b), int(result)
        right = {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": y != 0 and x == y * z}
        pool.subtract([a, b])
        if min(pool.values()) < 0 or not right[sign]:
            return False
        pool[result] += 1
    return 5 * len(steps) == len(words) and +pool == Counter([target.strip()])


def formatted(response, phrase):
    """The answer in the last <answer> tag if any: there in the last code block, the last box or bare."""
    _, opened, tail = response.rpartition("<answer>")
    inner, closed, _ = tail.partition("</answer>")
    tagged = bool(opened and closed)
    fences = (inner if tagged else response).split("```")
    found = re.sub("^[a-z]*\n", "", fences[-2]) if len(fences) > 2 else extract_answer(fences[0], phrase)
    return (found or (inner if tagged else "")).strip()[:MAX_ANSWER]


def choice(response, answer, phrase):
    """answer "(C)"; right are C, (C), C. and (C) with some text, but not "(C) or (D)"."""
    found = formatted(response, phrase)
    letter = re.match(r"\(?([A-Za-z])(?:[).:]|$)", re.sub(r"\\text\w*|[\s{}*$\\]", "", found))
    named = set(re.findall(r"(?<![A-Za-z])\(?([A-Z])\)", found))
    return bool(letter) and len(named) < 2 and letter[1].upper() == answer.strip("() .").upper()


def text(response, answer, phrase):
    """A word, number, list, sentence, grid or row of brackets: as text, without regard to markup, case and spacing."""
    def plain(text):
        text = re.sub(r"\\text\w*\s*\{([^{}]*)\}|\\(?=[{}\s])|[*$\"'`]", r"\1", re.sub("[，、]", ",", text))
        return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split())).rstrip(".").casefold()
    pred, gold = plain(formatted(response, phrase)), plain(answer)
    if not re.search(r"\w", gold):  # a row of brackets, where the box's braces need not match
        _, boxed, tail = response.rpartition("\\boxed{")
        return gold in (pred, plain(tail[:MAX_ANSWER].rpartition("}")[0]) if boxed else pred)
    numbers = all(re.fullmatch(r"-?[0-9]{1,40}(\.[0-9]{1,40})?", side) for side in (gold, pred))
    return gold in (pred, pred.replace(",", " ")) or numbers and Fraction(gold) == Fraction(pred)


def synlogic(response, answer, phrase):
    """SynLogic's tasks with a gold answer; some prompts want it as a last line, bare or behind "The answer is"."""
    last = response.rstrip().rpartition("\n")[2]
    return text(response if formatted(response, phrase=True) else f"<answer>{last}</answer>", answer, phrase=True)


def game24(response, answer, phrase):
    """answer "24 = 1 3 7 8": an expression with each number once."""
    target, numbers = answer.split("=")
    expression = re.sub(r"\s", "", formatted(response, phrase=True))
    arithmetic = re.fullmatch("[-+*/()0-9]{1,200}", expression) and not re.search(r"\*\*|[0-9)]\(", expression)
    once = Counter(re.findall("[0-9]+", expression)) == Counter(numbers.split())
    return bool(arithmetic) and once and value(expression) == value(target)


def number_wall(response, answer, phrase):
    """answer: the grid as JSON, "X" where open. Walls are "A", no 2x2 of them; an island has one number, its size."""
    def cells_of(text):
        return {(y, x): str(cell) for y, row in enumerate(json.loads(text)) for x, cell in enumerate(row)}
    clues = cells_of(answer)
    try:
        cells = cells_of(formatted(response, phrase=True).replace("'", '"'))
    except (ValueError, TypeError, RecursionError):
        return False
    if cells.keys() != clues.keys() or any(cells[at] != clue for at, clue in clues.items() if clue != "X"):
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
        self.idle, self.lock, self.pid = [], threading.Lock(), os.getpid()
        self.cached_ask = functools.lru_cache(1 << 16)(self.ask)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        while self.idle:
            with self.idle.pop() as worker:  # closes its pipes and waits for it
                worker.kill()

    def score(self, responses, answers, task, progress=None, phrase=False):
        """1.0 for each correct response, else 0.0, in order; progress(done, total) is called as verdicts come in.
        task: one name for all, or a list of them."""
        tasks = [task] * len(responses) if isinstance(task, str) else task
        for name in {task} if isinstance(task, str) else {*task}:
            if name not in TASKS:
                raise ValueError(f"task {name!r} is unknown; use one of {', '.join(TASKS)}")
        for row, answer in enumerate(answers):
            if not answer.strip():
                raise ValueError(f"row {row}: the gold answer is empty; give the row an answer or remove it")
        verdicts = [TASKS[name](*row, phrase) for name, *row in zip(tasks, responses, answers, strict=True)]
        rows = Counter(verdict for verdict in verdicts if isinstance(verdict, tuple))
        done, said = len(verdicts) - rows.total(), {}
        with self.lock, ThreadPoolExecutor(self.workers) as pool:  # a thread a worker: it waits for one answer
            if self.pid != os.getpid():  # after a fork, the idle workers are the parent's
                self.idle, self.pid = [], os.getpid()
            self.idle += [self.start() for _ in range(min(self.workers, len(rows)) - len(self.idle))]
            for pair, verdict in zip(rows, pool.map(self.cached_ask, rows)):
                said[pair], done = verdict, done + rows[pair]
                if progress:
                    progress(done, len(verdicts))
        return [float(said.get(verdict, verdict)) for verdict in verdicts]

    def ask(self, pair):
        """Whether a worker says that the two are equal; False if it is not heard from in time."""
        worker, reply = self.idle.pop(), b""
        if worker.poll() is not None:  # it was killed meanwhile
            worker = self.start()
        if not wait([worker.stdout], 60) or worker.stdout.read(1) != b"+":
            raise RuntimeError(f"a worker of the verifier did not start; this says why: {' '.join(worker.args)}")
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(pair).encode() + b"\n")
            reply = worker.stdout.read(1) if wait([worker.stdout], self.timeout_s + 1) else b""
        if not reply:
            with worker:
                worker.kill()
            worker = self.start()
        self.idle.append(worker)
        return reply == b"1"

    def start(self):
        command = [sys.executable, os.path.abspath(__file__), "--worker", str(self.timeout_s), str(self.memory_mb)]
        return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C is for the parent alone


def work(timeout_s, memory_mb):
    """A worker: writes + when it is ready, reads a JSON pair [gold, answer], writes 1 or 0, and again."""
    if sys.platform == "linux":  # macOS refuses the limit
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    equal(r"\sqrt{4}", "2")  # imports math-verify now, and not on the first answer's time
    replies = os.dup(1)
    os.dup2(2, 1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # KeyboardInterrupt, which sympy does not swallow
    os.write(replies, b"+")
    for line in sys.stdin:
        verdict = False
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_PROF, timeout_s + 1)  # kills, where Python cannot be interrupted
            signal.setitimer(signal.ITIMER_REAL, timeout_s)
            verdict = equal(*json.loads(line))
            signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, b"1+" if verdict else b"0+")


SHARED = Verifier(workers=1)


def is_correct(response, answer, task="math", phrase=False):
    """Whether the response's final answer is the gold answer; for many, Verifier.score is faster."""
    return bool(answer.strip()) and SHARED.score([response], [answer], task, phrase=phrase) == [1.0]


def main():
    """Scores a file and prints a table of verdicts."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path, rows, number = sys.argv[1], [], 0
    try:
        for number, line in enumerate(open(path, "rb"), 1):
            if line.strip():
                row = {"task": "math"} | json.loads(line)
                if row["task"] not in TASKS or not isinstance(row["response"], str) or not row["answer"].strip():
                    raise ValueError(f"texts are needed, and a task of {', '.join(TASKS)}")
                rows.append((row["task"], row["response"], row["answer"]))
    except OSError as error:
        sys.exit(f"{path!r} cannot be read: {error.strerror}")  # !r: a name must not command the terminal
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        sys.exit(f"{path!r}, line {number}: not a row with response and answer ({error!r})")
    if not rows:
        sys.exit(f"{path!r} has no rows")
    with Verifier() as verifier:
        scores = verifier.score([row[1] for row in rows], [row[2] for row in rows], [row[0] for row in rows])
    print("| task | rows | correct | wrong | share correct |\n|---|---|---|---|---|")
    for task in dict.fromkeys(row[0] for row in rows):
        own = [int(score) for row, score in zip(rows, scores) if row[0] == task]
        print(f"| {task} | {len(own)} | {sum(own)} | {len(own) - sum(own)} | {sum(own) / len(own):.3f} |")


if IN_WORKER:
    work(float(sys.argv[2]), int(sys.argv[3]))
elif __name__ == "__main__":
    main()
