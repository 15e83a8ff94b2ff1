r"""Is a response's final answer right?  The reward of training and the metric of evaluation.

    is_correct(response, answer, task)    one verdict; TASKS lists the tasks
    with Verifier() as verifier:          many: verifier.score(responses, answers, task) -> [1.0, 0.0, ...]
    python verify.py rows.jsonl           a table of verdicts
    python verify.py --explain RESPONSE ANSWER

What a verifier accepts wrongly, a policy learns. So an answer is right only if
one of these rungs shows it, in this order; what cannot be read is wrong.

1. Extraction   The last \boxed{...} is the answer (runtime/latex.py).
2. Text         Both sides are rewritten to one spelling, and are then the same.
3. Units        They are the same but for a unit that one side leaves out.
4. Structure    Lists, tuples, intervals, matrices, equations and inequalities are
                taken apart, and their parts are compared from rung 2 on.
5. Value        Formulas are computed, as fractions or to 500 digits, at several
                random values of their letters (runtime/formula.py).

Conventions, where graders differ:
- The last box counts, and of boxes in each other the outermost. No box is wrong.
- A rounded value is wrong: 0.33 is not 1/3, and 3.14 is not π.
- 28% is 28, and not 0.28. Degrees are a unit: 90° is 90, and not π/2.
- A number in a base is compared as text: the base may be left out only where
  the gold answer leaves it out.
- A unit may be left out, but not be another one. Only known units and the gold
  answer's own words are units: "5 tenths" is not 5.
- log is the natural logarithm. Letters are real numbers, but for e, i and π.
- Order counts in tuples, and not in lists and sets; a list is the same as a set.

Nothing that a model wrote is executed. Workers compare (runtime/scoring.py).
"""
import argparse
import functools
import json
import re
import sys
from typing import NamedTuple

from runtime import formula, puzzles, realsets, scoring
from runtime.latex import (  # MAX_ANSWER is for those who import it from here
    MAX_ANSWER, NAME, clean, enclosed, extract_answer, own_words, split, split_unit)

MAX_FORMULA = 400  # characters of what is compared other than as text
__all__ = ["MAX_ANSWER", "TASKS", "Verifier", "explain", "extract_answer", "is_correct", "judge"]


class Verdict(NamedTuple):
    right: bool
    rule: str  # the rung that decided and what it saw


def right(rule):
    return Verdict(True, rule)


def wrong(rule):
    return Verdict(False, rule)


@functools.lru_cache(1 << 14)
def judge(gold, pred):
    """The verdict on two answers in LaTeX."""
    try:
        return compare(clean(gold), clean(pred))
    except RecursionError:
        return wrong("value: nested too deeply")
    except (formula.Unreadable, ArithmeticError) as error:
        return wrong(f"value: {error}")


def compare(gold, pred):
    """The verdict on two cleaned answers."""
    if letters(gold) == letters(pred):
        return right("text: the same")
    if not gold or not pred:
        return wrong("text: one side is empty")
    if max(len(gold), len(pred)) > MAX_FORMULA:
        return wrong("text: different, and too long for a formula")
    verdict = by_structure_or_grouping(gold, pred)
    if not verdict.right:
        return by_unit(gold, pred) or verdict
    return verdict


# ---- 2. text ----------------------------------------------------------------
LONG_NAME = r"(?<![\\A-Za-z_{])(?:[A-Za-z]{4,}|[A-Z]{2,})"
WORDS = re.compile(rf"\\text|{LONG_NAME}")  # prose, or names such as ABC
FOLDED = re.compile(r"(?<![\\A-Za-z_{])[A-Za-z]{3,}|[A-Z]{2,}")


def letters(text):
    """For comparing as text: spaces left out, except between digits, and words
    in lower case."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text).rstrip(".")
    if text.isalpha() and text[1:].islower():
        return text.lower()
    return FOLDED.sub(lambda match: match[0].lower(), text)


# ---- 3. units ---------------------------------------------------------------
def by_unit(gold, pred):
    """The verdict on the values before the units; None if there are no units."""
    own = own_words(gold)
    gold_value, gold_units = split_unit(gold, own)
    pred_value, pred_units = split_unit(pred, own)
    if not gold_units and not pred_units:
        return None
    if gold_units and pred_units and not gold_units & pred_units:
        return wrong("units: different")
    if letters(gold_value) == letters(pred_value):
        return right("units: the same but for a unit")
    return by_structure_or_grouping(gold_value, pred_value)


# ---- 4. structure -----------------------------------------------------------
GROUPED = re.compile("(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")


def without_grouping(text):
    if re.search(r"[(\[⦃]", text):
        return text
    return GROUPED.sub(lambda match: match[0].replace(",", ""), text)


def by_structure_or_grouping(gold, pred):
    """1,234 is a number, and not a list; 101,234 may be either."""
    numbers = without_grouping(gold), without_grouping(pred)
    verdict = by_structure(*numbers)
    gold_may_be_list = (numbers[0] == gold
                        or re.search("(?<![0-9])[0-9]{3},", gold))
    if verdict.right or not gold_may_be_list or numbers == (gold, pred):
        return verdict
    return by_structure(gold, pred)


def by_structure(gold, pred):
    if is_relation(gold) or is_relation(pred):
        return by_relation(gold, pred)
    if is_equation(gold) or is_equation(pred):
        return by_equation(gold, pred)
    (kind, golds), (pred_kind, preds) = parts(gold), parts(pred)
    if kind != pred_kind:
        return wrong(f"structure: {KINDS[kind]} against {KINDS[pred_kind]}")
    if not kind:
        return by_value(*golds, *preds)
    match = any_order if kind in (",", "∪") else same_order
    return match(KINDS[kind], golds, preds)


KINDS = {"": "one thing", ",": "a list or set", "∪": "a union", "()": "a tuple",
         "[]": "a closed interval", "(]": "an interval", "[)": "an interval",
         "¶": "a matrix", "&": "a row of a matrix"}


def parts(text):
    """(kind, parts) with a kind of KINDS; a set of one thing is that thing."""
    inner = text[1:-1].strip()
    is_group = enclosed(text, "{}") and len(split(inner, ",;∨")) > 1
    if is_group or enclosed(text, "⦃⦄"):  # {1,2} is meant as a set
        return parts(inner)
    listed = [value for part in split(text, ",;∨") for value in both_signs(part)]
    if len(listed) > 1:
        return ",", listed
    for sign in "∪&":
        if len(pieces := split(text, sign)) > 1:
            return sign, pieces
    if enclosed(text, "⟦⟧"):
        return "¶", split(inner, "¶")
    if scaled := re.fullmatch(r"(.*[^\s*])[\s*]*⟦([^⟦⟧]*)⟧", text):
        factor, rows = scaled[1], split(scaled[2], "¶")
        return "¶", [" & ".join(f"({factor})*({cell})" for cell in split(row, "&"))
                     for row in rows]
    for brackets in ("()", "[]", "(]", "[)"):
        if enclosed(text, brackets):
            kind, pieces = parts(inner)
            if kind == ",":
                return brackets, pieces
            if kind or brackets == "()":  # (5) is 5, and [5] is not
                return kind, pieces
    return "", [text]


def both_signs(text):
    """1 ± 2 ∓ 3 as 1 + 2 - 3 and 1 - 2 + 3."""
    if not re.search("[±∓]", text):
        return [text]
    return [text.replace("±", one).replace("∓", other)
            for one, other in ("+-", "-+")]


def same_order(name, golds, preds):
    if len(golds) != len(preds):
        return wrong(f"structure: {name}, {len(golds)} parts and {len(preds)}")
    for number, pair in enumerate(zip(golds, preds), 1):
        verdict = compare(*pair)
        if not verdict.right:
            return wrong(f"structure: {name}, part {number}; {verdict.rule}")
    return right(f"structure: {name} with equal parts")


def any_order(name, golds, preds, same=compare):
    if len(golds) != len(preds):
        return wrong(f"structure: {name}, {len(golds)} parts and {len(preds)}")
    preds = list(preds)
    for gold in golds:
        match = next((pred for pred in preds if same(gold, pred).right), None)
        if match is None:
            return wrong(f"structure: {name}, no part equals {gold}")
        preds.remove(match)
    return right(f"structure: {name} with equal parts, in any order")


# ---- 4a. equations ----------------------------------------------------------
DERIVATIVE = re.compile("/d|/\\\\partial|'")


def sides(text):
    """The sides of an equation; a list of equations is none."""
    return [text] if len(split(text, ",;∨")) > 1 else split(text, "=")


def is_equation(text):
    return len(sides(text)) > 1


def by_equation(gold, pred):
    """x = 5 names its answer and 2 + 3 = 5 derives it: what a side claims other
    than by a name must be the gold answer. Two equations in the same letters
    must have the same solutions."""
    golds, preds = sides(gold), sides(pred)
    gold_named = len(golds) == 1 or NAME.fullmatch(golds[0])
    if len(golds) > 1 and len(preds) > 1:
        preds = with_letter_of(golds[0], preds)
        if not gold_named or not same_name(golds[0], preds[0]):
            return by_solutions(golds, preds)
    if not gold_named:
        return wrong("structure: an equation against one thing")
    claims = [side for side in preds if not NAME.fullmatch(side)] or preds[-1:]
    for claim in claims:
        verdict = compare(golds[-1], claim)
        if not verdict.right:
            return wrong(f"structure: an equation says {claim}; {verdict.rule}")
    return right("structure: what the equation says of its name")


def same_name(gold, pred):
    """y is the same name as y(x)."""
    bare = [re.sub(r"\([a-z]\)$", "", letters(name)) for name in (gold, pred)]
    exact = letters(gold) == letters(pred)
    return exact or bare[0] == bare[1] and bare[0] in (letters(gold), letters(pred))


def with_letter_of(head, preds):
    """The equation f(z) = 2z as f(x) = 2x where the gold's head is f(x)."""
    function = r"([A-Za-z])\s*\(\s*([a-z])\s*\)"
    gold, pred = re.fullmatch(function, head), re.fullmatch(function, preds[0])
    if not gold or not pred or gold[1] != pred[1] or gold[2] == pred[2]:
        return preds
    letter = r"(?<![\\A-Za-z])%s(?![A-Za-z])"
    if any(re.search(letter % gold[2], side) for side in preds[1:]):
        return preds
    return [re.sub(letter % pred[2], gold[2], side) for side in preds]


def by_solutions(golds, preds):
    if len(golds) != 2 or len(preds) != 2:
        return wrong("structure: different chains of equations")
    if list(map(letters, golds)) == list(map(letters, preds[::-1])):
        return right("structure: the same equation turned round")
    golds, preds = with_primes(golds, preds), with_primes(preds, golds)
    gold, pred = (formula.difference(*map(tree, pair)) for pair in (golds, preds))
    if formula.proportional(gold, pred):
        return right("value: left minus right of both in one constant ratio")
    for name in formula.symbols(gold) & formula.symbols(pred):
        if DERIVATIVE.search(name) and formula.same_solution(gold, pred, name):
            return right(f"value: both say the same of {name}")
    return wrong("value: equations with other solutions")


def with_primes(equation, other):
    """dx/dt as x' where the other equation writes x'."""
    leibniz = r"\\frac\{\s*d\s*([A-Za-z])\s*\}\{\s*d\s*([A-Za-z])\s*\}"
    variables = {found[1] for found in re.findall(leibniz, "".join(equation))}
    if len(variables) != 1 or "'" not in "".join(other):
        return equation
    return [re.sub(leibniz, r"\1'", side) for side in equation]


# ---- 4b. inequalities and sets of real numbers ------------------------------
def is_relation(text):
    has_relation = re.search(r"[<≤>≥≠∖]|\\mathbb", text)
    return bool(has_relation or realsets.condition_of(text))


def by_relation(gold, pred):
    """The same chain, the same set of real numbers, or one inequality scaled."""
    chains = realsets.chain(gold), realsets.chain(pred)
    if all(chains) and same_chain(*chains):
        return right("structure: the same chain of relations")
    sets = realsets.real_set(gold), realsets.real_set(pred)
    if all(sets) and all(intervals for _, intervals in sets):
        return same_set(*sets)
    if all(chains) and chains[0][1] == chains[1][1] and len(chains[0][1]) == 1:
        trees = [formula.difference(*map(tree, terms)) for terms, _ in chains]
        if formula.proportional(*trees, positive=chains[0][1] != ["≠"]):
            return right("value: the same relation, scaled")
        return wrong("value: different relations")
    builders = realsets.set_builder(gold), realsets.set_builder(pred)
    if all(builders):
        (head, *rest), (pred_head, *pred_rest) = builders
        if compare(head, pred_head).right:
            return any_order("conditions of a set", rest, pred_rest)
        return wrong("structure: sets of different things")
    (kind, golds), (pred_kind, preds) = parts(gold), parts(pred)
    if kind == pred_kind == ",":
        return any_order("a list of relations", golds, preds)
    if any(chains) or any(builders) or kind or pred_kind:
        return wrong("structure: a relation against something else")
    return by_equation(gold, pred) if is_equation(gold + pred) else by_value(gold, pred)


def same_chain(one, other):
    (terms, signs), (other_terms, other_signs) = one, other
    if signs != other_signs:
        return False
    orders = [other_terms, other_terms[::-1]] if signs == ["≠"] else [other_terms]
    return any(same_order("a chain", terms, order).right for order in orders)


def same_set(one, other):
    (name, intervals), (other_name, other_intervals) = one, other
    if name and other_name and letters(name) != letters(other_name):
        return wrong("structure: relations of different letters")
    return any_order("a set of intervals", intervals, other_intervals, same_interval)


def same_interval(one, other):
    if (one[0], one[3]) != (other[0], other[3]):
        return wrong("structure: open against closed")
    return same_order("an interval", one[1:3], other[1:3])


# ---- 5. value ---------------------------------------------------------------
def tree(text):
    """A formula to compute with; raises Unreadable."""
    if re.search("[0-9]_|:", text):
        raise formula.Unreadable("bases, ratios and times are compared as text")
    if WORDS.search(text):
        raise formula.Unreadable("words are compared as text")
    return formula.parse(text)


def by_value(gold, pred):
    if letters(gold) == letters(pred):
        return right("text: the same")
    try:
        trees = tree(gold), tree(pred)
    except formula.Unreadable as error:
        return wrong(f"value: {error}")
    if formula.equal(*trees):
        return right("value: equal")
    return wrong("value: different")


# ---- tasks ------------------------------------------------------------------
def math(response, answer, phrase):
    """A verdict, or the pair that a worker compares."""
    pred = extract_answer(response, phrase)
    if pred is None or pred == answer:
        return pred is not None
    return answer, pred


# A task is a function of (response, answer, phrase); to add one, name it here.
TASKS = {
    "math": math,
    "countdown": puzzles.countdown,
    "choice": puzzles.choice,
    "text": puzzles.text,
    "synlogic": puzzles.synlogic,
    "game24": puzzles.game24,
    "number_wall": puzzles.number_wall,
}


class Verifier(scoring.WorkerPool):
    """Scores batches of responses; see WorkerPool."""
    program, tasks = __file__, TASKS


SHARED = Verifier(workers=1)


def is_correct(response, answer, task="math", phrase=False):
    """Whether the response's final answer is right; Verifier.score is for many."""
    if not answer.strip():
        return False
    return SHARED.score([response], [answer], task, phrase=phrase) == [1.0]


# ---- command line -----------------------------------------------------------
def explain(response, answer):
    """What was extracted, how both sides were cleaned, and what decided."""
    pred = extract_answer(response)
    if pred is None:
        return "extracted  nothing: there is no closed box\nverdict    wrong"
    verdict = judge(answer, pred)
    rung, _, rule = verdict.rule.partition(": ")
    return (f"extracted  {pred}\ncleaned    {clean(pred)}\ngold       {clean(answer)}\n"
            f"rung       {rung}\nrule       {rule}\n"
            f"verdict    {'right' if verdict.right else 'wrong'}")


def read_rows(path):
    """[(task, response, answer)] of a file of JSON lines; exits on a bad one."""
    rows, number = [], 0
    try:
        for number, line in enumerate(open(path, "rb"), 1):
            if not line.strip():
                continue
            row = {"task": "math"} | json.loads(line)
            if (row["task"] not in TASKS or not isinstance(row["response"], str)
                    or not row["answer"].strip()):
                raise ValueError(f"texts are needed, and a task of {', '.join(TASKS)}")
            rows.append((row["task"], row["response"], row["answer"]))
    except OSError as error:
        # !r, because a name must not command the terminal
        sys.exit(f"{path!r} cannot be read: {error.strerror}")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        sys.exit(f"{path!r}, line {number}: not a row with response and answer ({error!r})")
    if not rows:
        sys.exit(f"{path!r} has no rows")
    return rows


def print_table(rows):
    tasks, responses, answers = zip(*rows)
    with Verifier() as verifier:
        scores = verifier.score(responses, answers, tasks)
    print("| task | rows | correct | wrong | share correct |\n|---|---|---|---|---|")
    for task in dict.fromkeys(tasks):
        own = [int(score) for name, score in zip(tasks, scores) if name == task]
        share = sum(own) / len(own)
        print(f"| {task} | {len(own)} | {sum(own)} | {len(own) - sum(own)} | {share:.3f} |")


def main():
    parser = argparse.ArgumentParser(description="Says whether answers are right.")
    parser.add_argument("rows", nargs="?", help='JSON lines: {"response": ..., "answer": ..., "task": "math"}')
    parser.add_argument("--explain", nargs=2, metavar=("RESPONSE", "ANSWER"),
                        help="show how one response's box is compared with the answer")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        timeout_s, memory_mb = options.worker
        scoring.work(lambda *pair: judge(*pair).right, float(timeout_s), int(memory_mb))
    elif options.explain:
        print(explain(*options.explain))
    elif options.rows:
        print_table(read_rows(options.rows))
    else:
        parser.error("a file of rows or --explain is needed")


if __name__ == "__main__":
    main()
