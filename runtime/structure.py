r"""Takes cleaned answers apart: lists, equations, inequalities, sets of numbers.

    parts("(1,2)")             ("()", ["1", "2"])
    sides("x=5")               ["x", "5"]
    chain("c>b≥a")             (["a", "b", "c"], ["≤", "<"])
    real_set("|x-1|<2")        ("x", [("(", "1-(2)", "1+(2)", ")")])
    set_builder("⦃3n|n∈Z⦄")    [r"3\aleph", r"\aleph∈Z"]

The parts are texts themselves, and verify.py compares them as it compares answers.
"""
import re

from runtime.formula import Unreadable, equal, order, parse
from runtime.latex import GROUPED, NAME, VARIABLE, as_text, depths, enclosed, split

LETTER = r"(?<![\\A-Za-z])%s(?![A-Za-z])"


# ---- lists, tuples, matrices ------------------------------------------------
KINDS = {
    "": "a single expression", ",": "a list or set", "∪": "a union", "()": "a tuple",
    "[]": "a closed interval", "(]": "an interval", "[)": "an interval",
    "¶": "a matrix", "&": "a row of a matrix", "{}": "a set that contains a set",
}


def parts(text):
    """Returns (kind, parts), where kind is a key of KINDS. A set of one element
    counts as that element, and a matrix of one column as a tuple."""
    inner = text[1:-1].strip()
    is_set = enclosed(text, "⦃⦄") and inner != "∅"
    if is_set and enclosed(inner, "⦃⦄"):
        return "{}", [inner]
    if is_set or enclosed(text, "{}"):
        return parts(inner)
    cases = split(text, ";∨")
    sizes = {len(split(case, ",")) for case in cases}
    if len(cases) > 1 and len(sizes) == 1 and sizes != {1}:
        return ",", cases  # x>1, y=2 or x<0, y=3: these may not exchange their parts
    items = [item for part in split(text, ",;∨") for item in both_signs(part)]
    if len(items) > 1:
        return ",", items
    for sign in "∪&":
        if len(pieces := split(text, sign)) > 1:
            return sign, pieces
    if found := transposed(text):
        return found
    matrix = re.fullmatch(r"([^⟦⟧]*?)[\s*]*⟦([^⟦⟧]*)⟧", text)
    if matrix and not is_sum(matrix[1]):
        rows = matrix_rows(*matrix.groups())
        column = len(rows) > 1 and "&" not in text
        return "()" if column else "¶", rows
    for brackets in ("()", "[]", "(]", "[)"):
        if enclosed(text, brackets):
            kind, pieces = parts(inner)
            if kind == "," and "∨" not in inner:
                return brackets, pieces
            if kind or brackets == "()":  # (5) is 5, but [5] is not
                return kind, pieces
    return "", [text]


def is_sum(text):
    """Returns whether the text is a sum, as 3+2 or 3+ is, whereas -2 and 3*-2 are not."""
    return any(term and term[-1] not in "*/" for term in split(text, "+-")[:-1])


def matrix_rows(factor, inner):
    """Splits a matrix into rows, and multiplies its cells by the factor before it."""
    rows = split(inner, "¶")
    if not factor:
        return rows
    factor += "1" * (factor in ("+", "-"))
    return [" & ".join(f"({factor})*({cell})" for cell in split(row, "&"))
            for row in rows]


def transposed(text):
    """Returns (kind, parts) of ⟦1&2⟧^{T} or of (1,2)^{T}, which counts as the tuple
    (1,2), or None for other texts."""
    match = re.fullmatch(r"(.*[⟧)\]])\s*\^\{T\}", text)
    kind, items = parts(match[1]) if match else ("", [])
    if "⟦" not in text:
        return ("()", items) if kind in ("()", "[]") else None
    rows = [split(row, "&") for row in items]
    if kind not in ("()", "¶") or len({*map(len, rows)}) > 1:
        return None
    columns = [" & ".join(column) for column in zip(*rows)]
    return ("()" if len(items) == 1 else "¶"), columns


def both_signs(text):
    """Splits 1 ± 2 ∓ 3 into 1 + 2 - 3 and 1 - 2 + 3."""
    if not re.search("[±∓]", text):
        return [text]
    return [text.replace("±", upper).replace("∓", lower)
            for upper, lower in ("+-", "-+")]


FOR_INTEGERS = re.compile(  # 2k, k∈\mathbb{Z}
    r"(.*" + LETTER % "([a-z])" + r".*),\s*\2\s*∈\s*\\mathbb\{Z\}")
TIMES_E = re.compile(r"(?<![0-9.])([2-9]|[0-9]{2,})(?=e[-+][0-9])")  # not 1e-3
EQUAL_NUMBERS = re.compile(r"[-+*/.%0-9]+(\s*=\s*[-+*/.%0-9]+)+")  # 0.56 = 56%


def readings(gold, pred):
    """Returns the pairs (gold, pred) to compare. There may be several, because a
    comma is ambiguous: the gold answer 1,234 is a number, but 101,234 may be a number
    or a list. 174,000 is a number, because no part of a list starts with 0. An e is
    ambiguous too: 2e-3 may be 0.002 or 2e - 3. If the gold answer is a chain of equal
    numbers, as in 0.56 = 56%, there is a pair for each."""
    if EQUAL_NUMBERS.fullmatch(gold):
        return [(side, pred) for side in split(gold, "=")]
    gold, pred = in_one_form(gold, pred)
    numbers = without_grouping(gold), without_grouping(pred)
    gold_is_number = numbers[0] != gold and not re.search("(?<![0-9])[0-9]{3},", gold)
    grouped = re.findall(GROUPED, gold) + re.findall(GROUPED, pred)
    leading_zero = any(",0" in number for number in grouped)
    pairs = [numbers]
    if not (gold_is_number or leading_zero or numbers == (gold, pred)):
        pairs.append((gold, pred))
    products = tuple(TIMES_E.sub(r"\1 ", text) for text in numbers)
    if products != numbers:
        pairs.append(products)
    return pairs


def in_one_form(gold, pred):
    """Brings two answers to one form if their forms differ but can mean the same, as
    x=1, y=2 and (1,2) can. Each step changes only such pairs."""
    gold, pred = as_points(gold), as_points(pred)
    pred = without_index(pred, gold)
    gold, pred = as_sum(gold, pred), as_sum(pred, gold)
    gold, pred = with_names_of(gold, pred), with_names_of(pred, gold, of_gold=True)
    gold, pred = without_value(gold, pred), without_value(pred, gold)
    if "∪" in gold:
        pred = pred.replace("∨", "∪")  # x∈(0,1) or x∈(2,3)
    pred = as_fraction(pred, gold)
    if not TIME.fullmatch(gold):
        gold = as_fraction(gold, pred)
    return gold, without_integers(pred, gold)


def without_integers(pred, gold):
    r"""Rewrites 2k, k∈\mathbb{Z} as 2k if the gold answer names no set."""
    match = FOR_INTEGERS.fullmatch(pred)
    if not match or "∈" in gold:
        return pred
    if re.search(f"[{RELATIONS}]", match[1]):
        return pred  # x>0, x∈\mathbb{Z} is not x>0
    return match[1]


INDEXED = re.compile(r"([A-Za-z])_\{[0-9]\}")


def without_index(text, other):
    """Rewrites x_{1}=3, x_{2}=5 as x=3, x=5 if the other answer has no subscripts."""
    equations = [split(part, "=") for part in split(text, ",;∨")]
    matches = [INDEXED.fullmatch(equation[0]) for equation in equations]
    if "=" not in other or "_" in other or len(matches) < 2 or None in matches:
        return text
    if len({match[1] for match in matches}) > 1:
        return text
    return ", ".join("=".join([match[1], *values])
                     for match, (_, *values) in zip(matches, equations))


def as_sum(text, other):
    """Rewrites the vector (1,2) as (1)*i+(2)*j if the other answer is such a sum."""
    kind, items = parts(text)
    total = split(other, "=")[-1]
    if kind != "()" or len(items) not in (2, 3) or parts(total)[0]:
        return text
    if not re.search(LETTER % "j", total):
        return text
    return "+".join(f"({item})*{name}" for item, name in zip(items, "ijk"))


CHOICE = re.compile(r"\(?[A-E]\)?")
VALUE = r"(?:[A-Za-z0-9π]|\\(?:text|frac|sqrt))"  # the beginning of one
CHOICE_WITH_VALUE = re.compile(  # (C) 5, C) x>5 or C. neither, but not (C)!
    rf"(\()?([A-E])(?(1)\)(?=[\s:]*(?:[0-9]|\\frac|\\sqrt)|\s+{VALUE})"
    rf"|\s*[).:](?=\s*(?:[-([{{⦃]|{VALUE})))")
UNDECIDED = re.compile(  # after a choice: "or D", "is wrong", but not "A triangle"
    r"∨|(?i:\b(?:no|not|never|cannot|wrong|incorrect|false|unlikely|excluded|or|but|except"
    r"|instead)\b|n't\b|\([a-e]\))|(?!A [a-z])" + LETTER % "[A-E]")


def without_value(text, other):
    """Rewrites C), (C) 5 and C. 5 as C if the other answer is a choice."""
    if not CHOICE.fullmatch(other):
        return text
    if CHOICE.fullmatch(text):  # C) or (C)
        return text.strip("()")
    choice = CHOICE_WITH_VALUE.match(text)
    if not choice or UNDECIDED.search(text, choice.end()):
        return text
    return choice[2]


RATIO = re.compile(r"^([0-9]+)\s*:\s*([0-9]+)$")
TIME = re.compile("[0-9]{1,2}:[0-5][0-9]")
FRACTION = re.compile(r"\\frac|[0-9]\s*/\s*[0-9]")


def as_fraction(text, other):
    """Rewrites 3:4 as 3/4 if the other answer is a fraction."""
    return RATIO.sub(r"\1/\2", text) if FRACTION.search(other) else text


def with_names_of(text, other, of_gold=False):
    """Rewrites (x,y)=(1,2) or (1,2) as x=1, y=2 if the other answer is a list of
    equations. The letters for (1,2) are those of the list, in alphabetical order. If
    the other is the gold answer and each equation in it names a letter, 1, 2 is
    rewritten as well, with the letters in the order of the list."""
    *left, right = split(text, "=")
    equations = split(other, ",")
    if len(left) > 1 or len(equations) < 2 or "=" not in other:
        return text
    names = [equation.split("=")[0].strip() for equation in equations]
    kind, values = parts(right)
    named = all(map(VARIABLE.fullmatch, names))
    first_letters = {name[:1] for name in names}  # x_1 and x_2 have no order
    if left:
        _, names = parts(left[0])
    elif kind == "()":
        names = sorted(set(names), key=alphabetical)
    elif kind == "," and of_gold and named and len(first_letters) == len(names):
        kind = "()"
    if kind != "()" or len(names) != len(values):
        return text
    return ", ".join(map("=".join, zip(names, values)))


COORDINATES = {"theta": "s", "phi": "t"}  # the order is (ρ,θ,φ) and (r,θ,z)


def alphabetical(name):
    """Returns a name's place in the alphabet, as a sort key."""
    name = name.strip("\\ ")
    return COORDINATES.get(name, name)


def as_points(text):
    """Rewrites x=1, y=2 or x=3, y=4 as (x,y)=(1,2), (x,y)=(3,4): solutions of which
    no part may change places."""
    equations = [split(part, "=") for part in split(text, ",;∨")]
    if not all(len(equation) == 2 and VARIABLE.fullmatch(equation[0])
               for equation in equations):
        return text
    size = len({as_text(name) for name, _ in equations})
    if size == 1 or size == len(equations):
        return text
    points = [sorted(equations[at:at + size], key=lambda pair: alphabetical(pair[0]))
              for at in range(0, len(equations), size)]
    names = {tuple(as_text(name) for name, _ in point) for point in points}
    if len(names) > 1:
        return text
    name = f"({','.join(*names)})"
    return ", ".join(f"{name}=({','.join(value for _, value in point)})" for point in points)


def without_grouping(text):
    """Rewrites 1,234 as 1234, unless the answer has brackets."""
    if re.search(r"[(\[⦃]", text.rpartition("=")[2]):  # f(2)=1,234 is a number
        return text
    return re.sub(GROUPED, lambda match: match[0].replace(",", ""), text)


# ---- equations --------------------------------------------------------------
CONDITIONAL = re.compile(r"\\text\s*\{[^{}]*\b(?:if|for|when|where)\b")


def sides(text):
    """Returns the sides of an equation, or [text] if the text is a list, has a
    condition in words or no equals sign. y=±x is a list of two equations."""
    is_list = len(split(text, ",;∨")) > 1 or re.search("[±∓]", text)
    return [text] if is_list or CONDITIONAL.search(text) else split(text, "=")


def bare(name):
    """Returns y for y, y(x) and y_{max}."""
    return re.sub(r"\s*(\(\s*[a-z]\s*\)|_\{[a-z]{3,}\})$", "", name).replace(" ", "")


def same_name(one, other):
    """Returns whether two names mean the same: y, y(x) and y_{max} do, f(1) and f(2)
    do not."""
    names = as_text(one), as_text(other)
    return names[0] == names[1] or bare(one) == bare(other) and bare(one) in names


def with_letter_of(head, equation):
    """Rewrites the sides f(z), 2z as f(x), 2x if head is f(x)."""
    function = r"([A-Za-z])\s*\(\s*([a-z])\s*\)"
    wanted = re.fullmatch(function, head)
    found = re.fullmatch(function, equation[0])
    if not wanted or not found:
        return equation
    if any(re.search(LETTER % wanted[2], side) for side in equation):
        return equation
    return [re.sub(LETTER % found[2], wanted[2], side) for side in equation]


LEIBNIZ = (r"\\frac\{\s*d%s\s*([A-Za-z]|\\[a-z]+)\s*\}"
           r"\{\s*d\s*([A-Za-z])%s\s*\}")
FIRST, SECOND = LEIBNIZ % ("", ""), LEIBNIZ % (r"\^\{2\}", r"\^\{2\}")


def with_primes(equation, other):
    """Rewrites dx/dt as x' if the other equation uses primes."""
    found = re.findall(f"{FIRST}|{SECOND}", "".join(equation))
    variables = {first or second for _, first, _, second in found}
    if len(variables) != 1 or "'" not in "".join(other):
        return equation
    return [re.sub(SECOND, r" \1''", re.sub(FIRST, r" \1'", side))
            for side in equation]


# ---- inequalities -----------------------------------------------------------
RELATIONS = "<≤>≥≠"
TURNED = {">": "<", "≥": "≤"}


def chain(text):
    """Returns (terms, relations), with > reversed to <, or None if the text is not
    a chain of relations."""
    terms = split(text, RELATIONS)
    if len(terms) == 1 or len(split(text, ",;∨")) > 1:
        return None
    signs = [char for char, depth in zip(text, depths(text))
             if depth == 0 and char in RELATIONS]
    if set(signs) <= set(TURNED):
        return terms[::-1], [TURNED[sign] for sign in signs[::-1]]
    return terms, signs


def is_relation(text):
    return bool(re.search(rf"[{RELATIONS}∖]|\\mathbb", text) or set_builder(text))


def condition(text):
    """Returns (expression, condition) of a set ⦃expression|condition⦄, else None."""
    if not enclosed(text, "⦃⦄"):
        return None
    inner = text[1:-1].strip()
    head = split(inner, "|:")[0]
    rest = inner[len(head):].lstrip()[1:].strip()
    if not rest or not all(split(head, ",")):  # |x|, 2 and 2, |x| are elements
        return None
    return head, rest


BOUND = r"\aleph"  # no answer uses this letter


def set_builder(text):
    """Returns [expression, condition, ...] of a set, with BOUND in place of the letter
    that ∈ binds, or [] if the text is not written as such a set."""
    bare_set = re.fullmatch(r"(.*\S)\s*[,(]\s*([A-Za-z]\s*∈[^()]*)\)?", text)
    if not condition(text) and not bare_set:  # 3n, n∈Z is meant as a set too
        return []
    head, rest = condition(text) or bare_set.groups()
    conditions = split(rest, ",;")
    for part in conditions:
        left, *right = split(part, "=")
        if len(right) == 1 and left.replace(" ", "") == head.replace(" ", ""):
            conditions.remove(part)
            head = right[0]
            break
    bound = re.search(LETTER % "([A-Za-z])" + r"\s*∈", ",".join(conditions))
    if not bound or not re.search(LETTER % bound[1], head):
        return [head, *conditions]
    return [re.sub(LETTER % bound[1], lambda _: BOUND, part) for part in (head, *conditions)]


# ---- sets of real numbers ---------------------------------------------------
BRACKETS = {"<": "()", "≤": "[]"}
DISTANCE = re.compile(r"\|\s*([A-Za-z])\s*([+-][^|]*)?\|")  # |x - 1|


def real_set(text, or_union=True):
    """Returns (variable, intervals) of a set of real numbers, else None.

    The variable is None if the text names none. An interval is a tuple of the
    left bracket, the low end, the high end and the right bracket. If or_union is
    true, the comma in x>5, x<1 means "or", because no number is both."""
    if text == r"\mathbb{R}":
        return None, [("(", "-∞", "∞", ")")]
    if condition(text):
        head, rest = condition(text)
        name, _, whole = rest.partition("∈")  # ⦃x|x∈(0,1)⦄
        if whole and bare(name) == bare(head):
            found = real_set(whole.strip())
            return found if found and not found[0] else None
        found = real_set(rest, or_union=False)
        named = found and bare(found[0] or "") == bare(head)
        return (None, found[1]) if named else None
    if len(pieces := split(text, "∪∨")) > 1:
        return union([point(piece) or real_set(piece) for piece in pieces])
    if len(pieces := split(text, "∖")) > 1:
        whole, points = pieces[0], pieces[-1]
        if len(pieces) > 2 or not enclosed(points, "⦃⦄"):
            return None
        return without(split(points[1:-1], ","), real_set(whole))
    if enclosed(text, "⦃⦄"):
        return None, [("[", x, x, "]") for x in split(text[1:-1], ",")]
    if "≠" in text:
        return with_exceptions(text)
    if len(pieces := split(text, ",")) == 2:
        return intersection(*map(real_set, pieces), or_union)
    if chain(text):
        return inequality(*chain(text))
    ends = [as_text(end).removeprefix("+") for end in split(text[1:-1], ",")]
    if re.fullmatch(r"[(\[].*[)\]]", text) and len(ends) == 2:
        return None, [(text[0], *ends, text[-1])]
    return None


def point(text):
    """Returns the set that x=5 describes, else None."""
    name, *values = split(text, "=")
    if len(values) == 1 and VARIABLE.fullmatch(name) and not parts(values[0])[0]:
        return name, [("[", *values, *values, "]")]
    return None


def union(sets):
    """Joins sets as `real_set` returns them. Returns None if one of them is None or
    their variables differ."""
    if None in sets:
        return None
    names = {bare(name) for name, _ in sets if name}
    if len(names) > 1:
        return None
    intervals = [interval for _, found in sets for interval in found]
    return names.pop() if names else None, intervals


def intersection(one, other, or_union):
    """Returns x>1, x<5 as one interval, or None unless both are half-lines. With
    or_union, x>5, x<1 are returned as two."""
    if not one or not other or not one[0] or bare(one[0]) != bare(other[0] or ""):
        return None
    if len(one[1] + other[1]) != 2:
        return None
    for first, second in ((one, other), (other, one)):
        (left, low, end, _), (_, start, high, right) = first[1][0], second[1][0]
        if end == "∞" and start == "-∞":
            if or_union and not in_order(low, high):
                return one[0], one[1] + other[1]
            return one[0], [(left, low, high, right)]
    return None


def in_order(low, high):
    """Returns whether low may be at most high: True for letters, too."""
    try:
        return order([low, high]) == [low, high]
    except Unreadable:
        return True


def inequality(terms, signs):
    """Returns the set that x<5, 1≤x<5, |x-1|<5 or |x-1|>5 describes, else None."""
    left, *middle, right = terms
    if len(middle) == 1 and VARIABLE.fullmatch(middle[0]) and set(signs) <= set(BRACKETS):
        opening, closing = BRACKETS[signs[0]][0], BRACKETS[signs[1]][1]
        return middle[0], [(opening, left, right, closing)]
    if middle:
        return None
    opening, closing = BRACKETS[signs[0]]
    if near := DISTANCE.fullmatch(left):
        low, high = (f"-({near[2] or 0}){sign}({right})" for sign in "-+")
        return near[1], [(opening, low, high, closing)]
    if far := DISTANCE.fullmatch(right):
        low, high = (f"-({far[2] or 0}){sign}({left})" for sign in "-+")
        return far[1], [("(", "-∞", low, closing), (opening, high, "∞", ")")]
    if VARIABLE.fullmatch(left) and not NAME.fullmatch(right):
        return left, [("(", "-∞", right, closing)]
    if VARIABLE.fullmatch(right) and not NAME.fullmatch(left):
        return right, [(opening, left, "∞", ")")]
    return None


def with_exceptions(text):
    """Returns the set that x≠1, x≠1,2 or x>0, x≠5 describes, else None."""
    conditions, points, named = [], [], None
    for piece in split(text, ","):
        name, excluded, value = piece.partition("≠")
        if excluded:
            if named and bare(name) != bare(named):
                return None
            named = name
            points.append(value)
        elif named and not is_relation(piece):
            points.append(piece)
        else:
            conditions.append(piece)
    if not VARIABLE.fullmatch(named):
        return None
    found = real_set(",".join(conditions) or r"\mathbb{R}")
    if not found or conditions and bare(found[0] or "") != bare(named):
        return None
    return without(points, (named, found[1]))


def without(points, found):
    """Returns a set without these points, or None if their order is unknown."""
    if not found:
        return None
    name, intervals = found
    points = [x for text in points for x in both_signs(text)]  # ±1
    try:
        for x in points:
            intervals = [part for interval in intervals for part in cut(x, *interval)]
    except Unreadable:
        return None
    return name, intervals


def cut(x, left, low, high, right):
    """Returns an interval without the point x, as one or two intervals."""
    if equal(parse(x), parse(low)):
        return [("(", low, high, right)]
    if equal(parse(x), parse(high)):
        return [(left, low, high, ")")]
    inside = [end for end in (low, x, high) if end not in ("-∞", "∞")]
    if order(inside) != inside:  # x lies outside
        return [(left, low, high, right)]
    return [(left, low, x, ")"), ("(", x, high, right)]
