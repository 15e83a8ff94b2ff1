r"""Parses formulas in cleaned LaTeX, and evaluates them in two ways.

    parse(text)                a tree of tuples; raises Unreadable
    equal(one, other)          whether they agree at several random points
    proportional(one, other)   whether their ratio is the same at all points

A point assigns a random value to each letter. If all trees are arithmetic, the
values are exact fractions. Otherwise they are numbers of 500 digits. An answer
has fewer characters than that, so no decimal can pass for a root. No text is
ever executed, and a computation that would take long raises ArithmeticError.
"""
import functools
import random
import re
from fractions import Fraction
from math import ceil, comb, factorial, floor

import mpmath

from runtime.latex import SHORT_WORDS

MAX_BITS = 30_000  # of an exact number; of any other, the largest binary exponent
POINTS, FAR = 6, 100  # from point FAR on, values reach 10; from 2 FAR on, 10²; and so on
TINY, TOLERANCE = mpmath.mpf("1e-450"), mpmath.mpf("1e-420")
mp = mpmath.MPContext()  # a private context: no other code changes its precision
mp.dps = 500


class Unreadable(ValueError):
    """The text is not a formula that this module can evaluate."""


class NotExact(Exception):
    """The formula has no exact fraction as its value, because of a root, a
    function or a letter in an exponent."""


class NotReal(Exception):
    """The formula has no real value at this point."""


# ---- reading ----------------------------------------------------------------
NUMERAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?"
TOKEN = re.compile(NUMERAL + r"|\\[A-Za-z]+|\S")
GREEK = {rf"\{name}" for name in (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi "
    "rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi "
    "Sigma Upsilon Phi Psi Omega hbar ell imath jmath wp Re Im aleph").split()}
ACCENTS = {rf"\{name}" for name in (
    "vec hat bar dot ddot tilde underline mathbb mathcal mathfrak mathscr").split()}
PREFIXES = {r"\Delta", r"\partial", r"\nabla"}  # \Delta x is one symbol
FUNCTIONS = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan,
    "sec": mp.sec, "csc": mp.csc, "cot": mp.cot,
    "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan,
    "arcsec": mp.asec, "arccsc": mp.acsc, "arccot": mp.acot,
    "sinh": mp.sinh, "cosh": mp.cosh, "tanh": mp.tanh, "coth": mp.coth,
    "sech": mp.sech, "csch": mp.csch,
    "arcsinh": mp.asinh, "arccosh": mp.acosh, "arctanh": mp.atanh,
    "exp": mp.exp, "ln": mp.log, "log": mp.log, "lg": mp.log10,
    "abs": abs, "floor": mp.floor, "ceil": mp.ceil,
    "factorial": mp.factorial, "binom": mp.binomial,
}
GROWING = {"exp", "sinh", "cosh", "tanh", "coth", "sech", "csch", "factorial", "binom"}
TRIGONOMETRIC = {"sin", "cos", "tan", "sec", "csc", "cot"}
SYMMETRIC = set("max() min() gcd() lcm()".split())
OPAQUE = set("max min gcd lcm det dim ker deg arg sup inf Pr hom".split())
DERIVATIVE = re.compile(
    r"(?:d|\\partial)\S*,"
    r"(?:(?:d|\\partial)(?:[A-Za-z]|\\[a-z]+)(?:_\{\w+\})?(?:\^\{?\d\}?)?)+")
CONSTANTS = {"π", "e", "i"}
WHOLE = "∈ℤ"  # ends the name of a letter that stands for integers
ONE, MINUS_ONE = ("number", Fraction(1)), ("number", Fraction(-1))
INFINITIES = (("symbol", "∞"), ("*", MINUS_ONE, ("symbol", "∞")))
BRACKETS = {  # opening: (closing, the function that the pair denotes)
    "(": (")", None), "[": ("]", None), "{": ("}", None), "|": ("|", "abs"),
    "‖": ("‖", "norm()"),
    r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil"),
}
WORDS = re.compile(  # words, as opposed to products of letters
    r"(?<![\\A-Za-z_{])"
    rf"(?:[A-Za-z]{{4,}}|(?:{'|'.join(sorted(SHORT_WORDS))})\b)")
NAME_OF_POINTS = re.compile(r"[\s{}()]*[A-Z]{2,}[\s{}()]*")  # ABC is not a product


class Reader:
    """A recursive descent parser for one formula."""

    def __init__(self, text):
        self.tokens = TOKEN.findall(text)
        self.at = 0
        self.in_bars = self.in_trig = False

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ""

    def take(self, token=None):
        """Consumes and returns the next token. Raises Unreadable if there is none
        or if it differs from the expected one."""
        found = self.peek()
        if not found or token and found != token:
            raise Unreadable(f"{token or 'something'} is missing before {found or 'the end'}")
        self.at += 1
        return found

    def skip(self, token):
        """Consumes the next token if it is this one, and returns whether it was."""
        found = self.peek() == token
        self.at += found
        return found

    def sum(self):
        """Reads products joined by + or -."""
        total = None
        while total is None or self.peek() in ("+", "-"):
            negative = not self.skip("+") and self.skip("-")
            term = self.product()
            if negative:
                term = ("*", MINUS_ONE, term)
            total = term if total is None else ("+", total, term)
        return total

    def product(self):
        """Reads factors joined by *, by / or by nothing."""
        product = self.mixed_number() or self.factor()
        while True:
            if self.skip("*"):
                product = ("*", product, self.mixed_number() or self.factor())
            elif self.skip("/"):
                product = ("/", product, self.factor())
            elif self.starts_factor(after=product):
                product = ("*", product, self.factor())
            else:
                return product

    def mixed_number(self):
        r"""Reads 2\frac{1}{3} as 2 + 1/3. Returns None for 2\frac{4}{3}, a product."""
        whole, *rest = self.tokens[self.at:self.at + 8] or [""]
        match rest:
            case [r"\frac", "{", top, "}", "{", bottom, "}"]:
                if (all(map(str.isdecimal, (whole, top, bottom)))
                        and int(top) < int(bottom)):
                    self.at += 8
                    part = Fraction(int(top), int(bottom))
                    return ("number", int(whole) + part)
        return None

    def starts_factor(self, after):
        """Returns whether the next token starts another factor of a product."""
        token = self.peek()
        if token in ("|", "‖"):
            return not self.in_bars
        if token[:1].isdecimal():  # 2 3 is not 6
            return after[0] != "number"
        return token[:1].isalpha() or token in ("(", "[", "{", "%") or (
            token[:1] == "\\" and token not in (r"\rfloor", r"\rceil"))

    def factor(self):
        """Reads an atom with its powers, factorials and degree signs."""
        if self.skip("-"):
            return ("*", MINUS_ONE, self.factor())
        value = self.atom()
        while True:
            if self.skip("^"):
                value = ("^", value, self.argument())
                if self.peek() == "^":
                    raise Unreadable("a double superscript")
            elif self.peek() == "!" and self.peek(1) != "!":
                self.take()
                value = ("call", "factorial", value)
            elif self.skip("°"):
                if self.in_trig:
                    turn = ("/", ("symbol", "π"), ("number", Fraction(180)))
                    value = ("*", value, turn)
            else:
                return value

    def argument(self):
        """Reads what follows ^ or a command: a group, or one token."""
        return self.factor() if self.peek() == "-" else self.atom()

    def enclosed(self, closing):
        """Reads a sum up to the closing bracket. Inside bars, the next bar closes."""
        in_bars, self.in_bars = self.in_bars, closing in ("|", "‖")
        value = self.sum()
        self.take(closing)
        self.in_bars = in_bars
        return value

    def atom(self):
        """Reads a number, a letter, a group or a command with its arguments."""
        token = self.take()
        if re.fullmatch(NUMERAL, token):
            return ("number", Fraction(token))
        if token in BRACKETS:
            closing, name = BRACKETS[token]
            inside = self.enclosed(closing)
            return ("call", name, inside) if name else inside
        if token == r"\sqrt":
            degree = ("number", Fraction(2))
            if self.skip("["):
                degree = self.enclosed("]")
            return ("^", self.argument(), ("/", ONE, degree))
        if token == r"\binom":
            return ("call", "binom", self.argument(), self.argument())
        if token == r"\frac":
            return self.fraction()
        if token[1:] in FUNCTIONS or token[1:] in OPAQUE:
            return self.function(token[1:])
        if token in ("π", "∞", "%"):
            return ("symbol", token)
        if re.fullmatch("[A-Za-z]", token) or token in GREEK | PREFIXES | ACCENTS:
            return self.symbol(token)
        raise Unreadable(f"{token} has no value")

    def fraction(self):
        r"""Reads a fraction. \frac{dy}{dx} becomes one symbol: its d must not cancel."""
        start = self.at
        top = self.raw_group()
        bottom = self.raw_group()
        if DERIVATIVE.fullmatch(f"{top},{bottom}"):
            return ("symbol", f"{top}/{bottom}")
        self.at = start
        return ("/", self.argument(), self.argument())

    def raw_group(self):
        """Returns the text of a group in braces, or a single token."""
        depth, start = 0, self.at
        while True:
            token = self.take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                group = self.tokens[start:self.at]
                return "".join(group[1:-1] if len(group) > 1 else group)

    def symbol(self, token):
        """Reads a letter with its accent, subscript, primes and arguments."""
        name = token
        if token in ACCENTS:
            name += f"{{{self.raw_group()}}}"
        elif token in PREFIXES and (
                self.peek() in GREEK or re.fullmatch("[A-Za-z]", self.peek())):
            name += self.take()
        while self.peek() in ("_", "'"):
            mark = self.take()
            name += f"_{{{self.raw_group()}}}" if mark == "_" else mark
        inverse = ["^", "{", "-", "1", "}", "("]
        if name in set("fghFGH") and self.tokens[self.at:self.at + 6] == inverse:
            self.at += 5
            name += "^-1"
        if self.peek() == "(" and self.applies(name):
            self.take()
            return ("call", f"{name}()", *self.arguments())
        if self.peek() == "[" and self.expects(name):
            self.take()
            return ("call", f"{name}()", *self.arguments(closing="]"))
        return ("symbol", name)

    def applies(self, name):
        """Returns whether the bracket after a letter encloses its arguments, as in
        f(x + 1) and x(t), whereas x(y + 1) and e(2) are products."""
        if name.rstrip("'") in set("fgFG") or name.endswith("^-1"):
            return True
        one_token = self.peek(2) == ")" and re.fullmatch(r"\w+", self.peek(1))
        return bool(one_token) and name not in CONSTANTS

    def expects(self, name):
        """Returns whether the bracket after a letter encloses a random variable, as in
        E[X], whereas E[1 + x] is a product."""
        return name == r"\mathbb{E}" or name == "E" and self.peek(1).isupper()

    def arguments(self, closing=")"):
        values = [self.sum()]
        while self.skip(","):
            values.append(self.sum())
        self.take(closing)
        return values

    def function(self, name):
        r"""Reads \sin^{2} x, \log_{2} 8 or \sin 2x\cos x. Without brackets, the
        argument is the product up to the next function, operator or bracket."""
        base = exponent = None
        while self.peek() in ("_", "^"):
            if self.take() == "_":
                base = self.argument()
            else:
                exponent = self.argument()
        if base and name != "log":
            raise Unreadable(rf"\{name} with a subscript")
        if exponent == ("*", MINUS_ONE, ONE) and f"arc{name}" in FUNCTIONS:
            name, exponent = f"arc{name}", None
        in_trig, self.in_trig = self.in_trig, name in TRIGONOMETRIC
        if name in OPAQUE and self.peek() in ("(", "⦃"):
            values = self.arguments(closing=")" if self.take() == "(" else "⦄")
        elif self.peek() in ("(", "{", "["):
            values = [self.atom()]
        else:
            values = [self.factor()]
            while (self.starts_factor(after=values[0])
                    and self.peek() not in ("(", "[")
                    and self.peek()[1:] not in FUNCTIONS):
                values = [("*", values[0], self.factor())]
            if (self.in_trig and "π" in symbols(values[0])
                    and self.skip("/")):  # \cos π/3
                values = [("/", values[0], self.factor())]
        self.in_trig = in_trig
        value = ("call", f"{name}()" if name in OPAQUE else name, *values)
        if base:
            value = ("/", value, ("call", "ln", base))
        return ("^", value, exponent) if exponent else value


@functools.lru_cache(4096)
def parse(text):
    """Returns the tree of a formula: ("number", Fraction), ("symbol", name),
    ("call", name, tree, ...) or (operator, tree, tree). Raises Unreadable, or
    RecursionError if the text is nested too deeply."""
    if re.match(r"\([A-E]\)\s*[0-9]", text):
        raise Unreadable("choices are compared as text")
    if r"\text" in text or WORDS.search(text) or NAME_OF_POINTS.fullmatch(text):
        raise Unreadable("words are compared as text")
    reader = Reader(text)
    tree = reader.sum()
    if reader.peek():
        raise Unreadable(f"{reader.peek()} is unexpected")
    if "∞" in symbols(tree) and tree not in INFINITIES:
        raise Unreadable("infinity is not a number")
    return tree


def symbols(tree):
    """Returns the names of a tree's symbols."""
    if tree[0] == "symbol":
        return {tree[1]}
    return set().union(*(symbols(x) for x in tree if isinstance(x, tuple)))


def derivatives(tree):
    """Returns the symbols of a tree that are derivatives, such as dy/dx or y'."""
    return {name for name in symbols(tree)
            if "'" in name or re.search(r"/(?:d|\\partial)", name)}


def replace(tree, name, value):
    """Returns the tree with another tree, the value, in place of a symbol."""
    if tree == ("symbol", name):
        return value
    return tuple(replace(x, name, value) if isinstance(x, tuple) else x
                 for x in tree)


# ---- computing --------------------------------------------------------------
EXACT_CALLS = {
    "abs": abs, "floor": floor, "ceil": ceil,
    "factorial": lambda n: factorial(natural(n)),
    "binom": lambda n, k: comb(natural(n), natural(k)),
}


def natural(number):
    if number.denominator > 1 or not 0 <= number <= 2000:
        raise NotExact
    return int(number)


def bits(number):
    """Returns the bit length of a fraction: that of the larger of its two parts."""
    return max(x.bit_length() for x in number.as_integer_ratio())


def exact(tree, point):
    """Returns the value at a point as a Fraction. π and e count as letters, with
    random values. Raises NotExact, or ArithmeticError if there is no value."""
    kind, *parts = tree
    if kind == "number":
        return parts[0]
    if kind == "symbol":
        if parts[0] == "i" or parts[0].endswith(WHOLE):
            raise NotExact
        draw = random.Random(f"{parts[0]} at {point}")
        return Fraction(7 * draw.getrandbits(60) + 1, 7)
    if kind == "call":
        name, *parts = parts
        if name not in EXACT_CALLS or symbols(tree):
            raise NotExact
        return Fraction(EXACT_CALLS[name](*(exact(x, point) for x in parts)))
    a, b = (exact(part, point) for part in parts)
    if kind == "^":
        if a == b == 0:
            raise ZeroDivisionError("0^0 has no value")
        if b.denominator > 1:
            raise NotExact
        if bits(a) * abs(b) > MAX_BITS:
            raise OverflowError("too large")
        return a ** int(b)
    if kind == "/" and b == 0:
        raise ZeroDivisionError("division by zero")
    if kind == "+":
        result = a + b
    else:
        result = a * b if kind == "*" else a / b
    if bits(result) > MAX_BITS:
        raise OverflowError("too large")
    return result


def numeric(tree, point, real):
    """Returns the value at a point to 500 digits. If real is true, all
    intermediate values must be real, and odd roots of negative numbers are
    negative. Raises NotReal, or ArithmeticError if there is no value."""
    kind, *parts = tree
    if kind == "number":
        return mp.mpf(parts[0].numerator) / parts[0].denominator
    if kind == "symbol":
        return letter(parts[0], point)
    if kind == "call":
        name, *parts = parts
        result = call(name, [numeric(x, point, real) for x in parts], real)
    else:
        a, b = (numeric(part, point, real) for part in parts)
        if kind == "+":
            return add(a, b)
        if kind == "^":
            result = power(a, b, parts[1], real)
        else:
            result = a * b if kind == "*" else a / b
    if mp.isnan(result) or mp.isinf(result):
        raise ZeroDivisionError("no value")
    if abs(mp.mag(result)) > MAX_BITS and result:
        raise OverflowError("too large")
    if isinstance(result, mp.mpc):
        if abs(result.imag) <= TINY * abs(result.real):
            return result.real
        if real:
            raise NotReal
    return result


def letter(name, point):
    """Returns a letter's value at a point. At the first two points it is positive, so
    that roots and logarithms have real values, and at the third it is negative."""
    if name == "i":
        return mp.mpc(0, 1)
    if name in ("e", "π"):
        return +mp.e if name == "e" else +mp.pi
    draw = random.Random(f"{name} at {point}")
    size = mp.mpf(draw.getrandbits(200) + 1) / 2 ** 200
    if point == 0:
        return size
    if point < FAR:
        size = 2 * size + mp.mpf(1) / 4
    else:
        size = 10 ** (point // FAR) * size
    size = mp.ceil(size) if name.endswith(WHOLE) else size
    signs = {0: 1, 1: 1, 2: -1}
    return (signs.get(point % FAR) or draw.choice((-1, 1))) * size


def add(a, b):
    """Returns a + b, or zero if the summands cancel to 450 digits."""
    total = a + b
    large, small = max(abs(a), abs(b)), min(abs(a), abs(b))
    if abs(total) <= TINY * large:
        return mp.zero
    if 0 < small <= TOLERANCE * large:
        raise OverflowError("summands too different in size to compare")
    return total


def power(base, exponent, tree, real):
    """Returns base ** exponent. tree is the tree of the exponent and tells whether
    it is a fraction, for the roots of negative numbers."""
    if base == 0:
        if mp.re(exponent) <= 0:
            raise ZeroDivisionError("zero to this power")
        return mp.zero
    if abs(exponent) * abs(mp.log(base)) > MAX_BITS:
        raise OverflowError("too large")
    fraction = fraction_of(tree)
    if fraction and fraction.denominator % 2 and real and base < 0:
        return (-1) ** fraction.numerator * (-base) ** exponent
    return base ** exponent


def fraction_of(tree):
    """Returns the value of a tree without letters as a Fraction, else None."""
    try:
        return None if symbols(tree) else exact(tree, 0)
    except (NotExact, ArithmeticError):
        return None


def call(name, values, real):
    """Returns the value of a function. Raises ArithmeticError at a pole."""
    if name.endswith("()"):  # an unknown function f(x) is a new letter for each x
        texts = [mp.nstr(value, 300) for value in values]
        seed = ", ".join(sorted(texts) if name in SYMMETRIC else texts)
        return letter(f"{name} of {seed}", 3)  # from point 3 on, it may have either sign
    if name in GROWING and max(map(abs, values)) > MAX_BITS:
        raise OverflowError("too large")
    if name in ("floor", "ceil"):
        if not real:
            raise Unreadable(f"{name} of a complex number")
        near = mp.nint(values[0])  # \log_2 8 may come out below 3
        values = [near if abs(values[0] - near) < TINY else values[0]]
    try:
        result = FUNCTIONS[name](*values)
    except ValueError as error:
        raise ZeroDivisionError(f"{name} has a pole") from error
    if abs(result) * TINY > 1 and name in TRIGONOMETRIC:
        raise ZeroDivisionError(f"{name} has a pole")
    return mp.zero if abs(result) < TINY else result


def samples(*trees, until=None):
    """Returns [[value of each tree] at each point], with None for missing values.
    Letters that must be integers in the first tree are integers in all trees.

    The values are fractions if all trees have exact values. Otherwise they are
    real numbers, or complex numbers if fewer than two points give real values.
    Once two points have values, no further point is tried after one at which
    until(values) is true."""
    for name in integers(trees[0]):
        trees = [replace(tree, name, ("symbol", name + WHOLE)) for tree in trees]
    letters = set().union(*map(symbols, trees))
    one_point = letters <= CONSTANTS
    points = range(1 if one_point else 3)
    try:
        return [[exact(tree, at) for tree in trees] for at in points]
    except (NotExact, OverflowError):
        pass
    points = range(1) if one_point else numeric_points(trees, letters)
    attempts = (False,) if "i" in letters else (True, False)
    for real in attempts:
        rows, valued = [], []
        for at in points:
            rows.append([value_or_none(tree, at, real) for tree in trees])
            if any(value is not None for value in rows[-1]):
                valued.append(rows[-1])
            if until and len(valued) >= 2 and until(rows[-1]):
                break
        if len(valued) >= min(2, len(points)):
            return valued
    return rows


def numeric_points(trees, letters):
    """Returns the points at which to evaluate trees with letters but without exact
    values."""
    if any(name.endswith(WHOLE) for name in letters) or any(
            has_call(tree, "floor", "ceil") for tree in trees):
        # Nearby values may all round alike, and of those up to 100 few are squares.
        # Only from about 10^7 on is n / 2023 always rounded otherwise than n / 2024.
        near = [FAR * scale + at for scale in (1, 2) for at in range(5 * POINTS)]
        return near + [FAR * 8 + at for at in range(POINTS)]
    if any(has_call(tree, "abs") for tree in trees):
        # Somewhere x + 5 and (x - 1)(x - 2) are negative and x - 2023 is positive.
        return [FAR * scale + at for scale in (0, 1, 2, 4) for at in range(12)]
    return range(POINTS)


def integers(tree):
    """Returns the letters in exponents of negative numbers, as in (-1)^{n}, and the
    letters from k to n that are rounded, as in ⌈n/2⌉."""
    if tree[0] == "^" and symbols(tree[2]) and (fraction_of(tree[1]) or 0) < 0:
        return symbols(tree[2]) - CONSTANTS
    if tree[0] == "call" and tree[1] in ("floor", "ceil"):
        return symbols(tree) & set("klmn")
    return set().union(*(integers(x) for x in tree if isinstance(x, tuple)))


def has_call(tree, *names):
    """Returns whether a tree contains one of these functions."""
    return tree[0] == "call" and tree[1] in names or any(
        has_call(part, *names) for part in tree if isinstance(part, tuple))


def value_or_none(tree, point, real):
    try:
        return numeric(tree, point, real)
    except (NotReal, ArithmeticError):
        return None


def close(a, b):
    """Returns whether two values are the same number. None equals nothing."""
    if a is None or b is None:
        return False
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


# ---- comparing --------------------------------------------------------------
def equal(one, other):
    """Returns whether two formulas have the same value wherever both have one. If the
    first contains |...|, the other must have a value wherever the first has one."""
    may_lack = not has_call(one, "abs")

    def differ(row):
        a, b = row
        return a is not None and not (b is None and may_lack) and not close(a, b)

    rows = samples(one, other, until=differ)
    letters = (symbols(one) | symbols(other)) - CONSTANTS
    both = [row for row in rows if None not in row]
    if len(both) < (2 if letters else 1) or any(map(differ, rows)):
        return False
    if not letters or not any(has_call(tree, "floor", "ceil") for tree in (one, other)):
        return True
    for name in letters:  # between whole numbers, x is always rounded to two neighbours
        one, other = (replace(tree, name, ("symbol", name + WHOLE)) for tree in (one, other))
    try:
        return not any(map(differ, samples(one, other, until=differ)))
    except Unreadable:  # neither has a real value at whole numbers, as 1 / (x - ⌊x⌋)
        return True


def difference(left, right):
    """Returns the tree of left - right; both are texts."""
    return ("+", parse(left), ("*", MINUS_ONE, parse(right)))


def proportional(one, other, positive=False):
    """Returns whether one formula is a nonzero constant times the other. If
    positive is true, the constant must be positive."""
    rows = samples(one, other)
    if len(rows) < 2 or not all(all(row) for row in rows):
        return False
    ratio = rows[0][0] / rows[0][1]
    if positive and not ratio.real > 0:
        return False
    return all(close(a, ratio * b) for a, b in rows)


def same_solution(one, other, name):
    """Returns whether the equations one = 0 and other = 0 are linear in the symbol
    `name` and have the same solution for it."""
    trees = [replace(tree, name, ("number", Fraction(number)))
             for tree in (one, other) for number in (0, 1, 2)]
    for row in samples(*trees):
        if None in row:
            return False
        (a, b, c), (d, e, f) = row[:3], row[3:]
        linear = close(b - a, c - b) and close(e - d, f - e)
        if not linear or a == b or d == e:
            return False
        if not close(a / (b - a), d / (e - d)):
            return False
    return True


def order(texts):
    """Sorts texts of real numbers in ascending order. Raises Unreadable for other
    texts."""
    values = dict(zip(texts, samples(*map(parse, texts))[0]))
    if any(symbols(parse(text)) - CONSTANTS or value is None
           or isinstance(value, mp.mpc) for text, value in values.items()):
        raise Unreadable("only real numbers can be sorted")
    return sorted(texts, key=values.get)
