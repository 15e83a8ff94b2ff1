r"""Inequalities, intervals and sets with a condition, read as parts to compare.

    chain("a<b≤c")            (["a", "b", "c"], ["<", "≤"])
    real_set("|x-1|<2")       ("x", [("(", "1-(2)", "1+(2)", ")")])
    set_builder("⦃3n|n∈Z⦄")   ["3k", "k∈Z"]

The texts are cleaned (runtime/latex.py). End points stay texts, so that they
are compared as any other answer is.
"""
import re

from runtime.formula import Unreadable, order
from runtime.latex import NAME, enclosed, split

RELATIONS = "<≤>≥≠"
TURNED = {">": "<", "≥": "≤"}
BRACKETS = {"<": "()", "≤": "[]"}
ALL_REALS = ("(", "-∞", "∞", ")")
DISTANCE = re.compile(r"\|\s*([A-Za-z])\s*([+-][^|]*)?\|")  # |x - 1|


def chain(text):
    """(terms, relations) with > turned round to <; None without a relation."""
    signs = [text[at] for at in cuts_at(text)]
    if not signs or len(split(text, ",;∨")) > 1:
        return None
    terms = split(text, RELATIONS)
    if all(sign in TURNED for sign in signs):
        return terms[::-1], [TURNED[sign] for sign in signs[::-1]]
    return terms, signs


def cuts_at(text):
    """Where the relations outside all brackets are."""
    at, found = 0, []
    for piece in split(text, RELATIONS)[:-1]:
        at = text.index(piece, at) + len(piece)
        while text[at] not in RELATIONS:
            at += 1
        found.append(at)
        at += 1
    return found


def condition_of(text):
    """(expression, condition) of a set ⦃expression|condition⦄, else None."""
    if not enclosed(text, "⦃⦄"):
        return None
    inner = text[1:-1]
    head = split(inner, "|:")[0]
    condition = inner.partition(head)[2].lstrip()[1:]
    return (head, condition.strip()) if condition else None


def set_builder(text):
    """[expression, condition, ...], where the letter bound by ∈ is k; else []."""
    if not condition_of(text):
        return []
    head, condition = condition_of(text)
    conditions = split(condition, ",;")
    for part in conditions:
        left, *right = split(part, "=")
        if len(right) == 1 and left.replace(" ", "") == head.replace(" ", ""):
            conditions.remove(part)
            head = right[0]
            break
    bound = re.search(r"(?<![\\A-Za-z])([A-Za-z])\s*∈", ",".join(conditions))
    if bound:
        letter = rf"(?<![\\A-Za-z]){bound[1]}(?![A-Za-z])"
        return [re.sub(letter, "k", part) for part in (head, *conditions)]
    return [head, *conditions]


def real_set(text):
    """(variable, intervals), with a variable of None where none is named; None
    for what is no set of real numbers. An interval is (bracket, low, high, bracket)."""
    if text == r"\mathbb{R}":
        return None, [ALL_REALS]
    if builder := condition_of(text):
        found = real_set(builder[1])
        named = found and (found[0] or "").strip() == builder[0].strip()
        return (None, found[1]) if named else None
    pieces = split(text, "∪∨")
    if len(pieces) > 1:
        return union([real_set(piece) for piece in pieces])
    whole, *without = split(text, "∖")
    if without:
        only_points = len(without) == 1 and enclosed(without[0], "⦃⦄")
        if whole != r"\mathbb{R}" or not only_points:
            return None
        return None, all_but(split(without[0][1:-1], ","))
    if enclosed(text, "⦃⦄"):
        return None, [("[", x, x, "]") for x in split(text[1:-1], ",")]
    both = split(text, ",")
    if len(both) == 2:
        return intersection(real_set(both[0]), real_set(both[1]))
    if chain(text):
        return inequality(*chain(text))
    if text[:1] in ("(", "[") and enclosed(text, text[0] + text[-1]):
        ends = [end.removeprefix("+") for end in split(text[1:-1], ",")]
        if len(ends) == 2 and text[-1] in ")]":
            return None, [(text[0], *ends, text[-1])]
    return None


def union(sets):
    if None in sets:
        return None
    names = {name.strip() for name, _ in sets if name}
    if len(names) > 1:
        return None
    intervals = [interval for _, found in sets for interval in found]
    return names.pop() if names else None, intervals


def intersection(one, other):
    """Of x>1, x<5; None for all but a half-line to each side."""
    if not one or not other or not one[0] or one[0].strip() != other[0].strip():
        return None
    for first, second in ((one, other), (other, one)):
        (left, low, end, _), (_, start, high, right) = first[1][0], second[1][0]
        if end == "∞" and start == "-∞" and len(first[1] + second[1]) == 2:
            return one[0], [(left, low, high, right)]
    return None


def inequality(terms, signs):
    """The set that x<5, 1≤x<5, x≠5, |x-1|<5 describes, else None."""
    if len(terms) == 3 and NAME.fullmatch(terms[1]) and set(signs) <= {"<", "≤"}:
        low, name, high = terms
        return name, [(BRACKETS[signs[0]][0], low, high, BRACKETS[signs[1]][1])]
    if len(terms) != 2:
        return None
    (left, right), (sign,) = terms, signs
    if sign == "≠":
        return (left, all_but([right])) if NAME.fullmatch(left) else None
    opening, closing = BRACKETS[sign]
    if near := DISTANCE.fullmatch(left):
        middle = f"-({near[2] or 0})"
        return near[1], [(opening, f"{middle}-({right})", f"{middle}+({right})", closing)]
    if far := DISTANCE.fullmatch(right):
        middle = f"-({far[2] or 0})"
        return far[1], [("(", "-∞", f"{middle}-({left})", closing),
                        (opening, f"{middle}+({left})", "∞", ")")]
    left_named, right_named = NAME.fullmatch(left), NAME.fullmatch(right)
    if left_named and not right_named:
        return left, [("(", "-∞", right, closing)]
    if right_named and not left_named:
        return right, [(opening, left, "∞", ")")]
    return None


def all_but(points):
    """The intervals between points of the real line, None if their order is unknown."""
    try:
        points = order(points)
    except Unreadable:
        return None
    ends = ["-∞", *points, "∞"]
    return [("(", low, high, ")") for low, high in zip(ends, ends[1:])]
