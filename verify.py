r"""Decides whether a response's final answer is right. These verdicts are the
reward in training and the score in evaluation.

    is_correct(response, answer, task)       one verdict; TASKS lists the tasks
    with Verifier() as verifier:             many verdicts, as 1.0 and 0.0
        verifier.score(responses, answers, task)
    python verify.py rows.jsonl              prints a table of verdicts
    python verify.py --explain RESPONSE ANSWER

A policy learns to exploit whatever its verifier wrongly accepts. An answer is
therefore right only if one of these checks, or rungs, tried in order, proves it. An
answer that differs from the gold answer as text is wrong if it cannot be parsed
or takes too long to compare.

1. Extraction  The last \boxed{} is the answer (runtime/latex.py).
2. Text        Both answers are the same text once their spelling is normalized.
3. Structure   Lists, tuples, intervals, matrices, equations and inequalities
               are taken apart (runtime/structure.py), and their parts are
               compared from rung 2 on.
4. Value       Formulas are evaluated, as fractions or to 500 digits, at several
               random values of their letters (runtime/formula.py).
5. Units       The values without their units are compared from rung 2 on
               (runtime/units.py).

Graders differ on some conventions. These are ours:
- Of nested boxes, the outermost counts. A response without a box is wrong. The last
  box counts wherever it stands, even in a thought (<think>) that was cut off.
- A rounded value is wrong: 0.33 is not 1/3, and 3.14 is not π.
- Any formula with the right value is right, even one copied from the question.
- x = 5, x² = 5 and m + n = 5 all count as 5. (-1,6) is a point or an interval, so
  x = -1, y = 6 and -1 < x < 6 both match it.
- A choice may come with its text: for C, (C) 5 and C. none of these are right.
- Numbers in a base are compared as text: 204_5 matches neither 204 nor 54.
- A response may leave out or add all or part of the unit, but a different unit is
  wrong: m/s matches m, but not s, 1/s, km/s or m²/s. Units are percent (28% is not
  0.28), degrees (90° is not π/2), currencies, the words of a fixed list and those of
  the gold answer. "5 cups of flour" is 5, "5 tenths" is not, and 2xy is not 2.
- log is the natural logarithm. Letters except e, i, π stand for real numbers, and n in a
  gold answer's (-1)^n or ⌈n⌉ for an integer. \ln|x| is right for \ln x, but not vice versa.
- Order matters in tuples, but not in lists and sets. {1,2} is the same as 1,2, a column
  vector the same as a tuple, and 3:4 the same as 3/4, unless it may be a time.

Text that a model wrote is never executed. Answers are compared in worker
processes, which are stopped when they take too long (runtime/scoring.py).
"""
import argparse
import functools
import sys
from collections import Counter
from typing import NamedTuple

from runtime import formula, puzzles, scoring, structure
from runtime.common import escape_unencodable
from runtime.latex import NAME, SUM_OF_NAMES, VARIABLE, clean, extract_answer, same_text
from runtime.units import own_words, same_units, split_unit

MAX_FORMULA = 400  # characters; longer answers are compared only as text


class Verdict(NamedTuple):
    right: bool
    reason: str  # "rung: what it found", of the rung that decided


right = functools.partial(Verdict, True)
wrong = functools.partial(Verdict, False)


def judge(gold, pred):
    r"""Returns the verdict on two answers in LaTeX.
    >>> judge(r"\frac{1}{2}", "0.5")
    Verdict(right=True, reason='value: equal')"""
    try:
        return compare(clean(gold), clean(pred))
    except RecursionError:
        return wrong("value: nested too deeply")


def compare(gold, pred):
    """Returns the verdict on two cleaned answers, or on parts of them."""
    if same_text(gold, pred):
        return right("text: the same")
    if not gold or not pred:
        return wrong("text: one answer is empty")
    if max(len(gold), len(pred)) > MAX_FORMULA:
        return wrong("text: different, and too long for a formula")
    verdict = by_structure(gold, pred)
    if verdict.right:
        return verdict
    return by_unit(gold, pred) or verdict


# ---- 3. structure -----------------------------------------------------------
# Each by_... returns a Verdict, or None if it does not apply. A Verdict is a tuple
# and so counts as true, even a wrong one: `or` takes the first that is not None.
def by_structure(gold, pred):
    for reading in structure.readings(gold, pred):  # 1,234 may have two
        try:
            verdict = (by_relation(*reading) or by_equation(*reading)
                       or by_parts(*reading))
        except (formula.Unreadable, ArithmeticError) as error:
            verdict = wrong(f"value: {error}")
        if verdict.right:
            break
    return verdict


def by_parts(gold, pred):
    kind, golds = structure.parts(gold)
    pred_kind, preds = structure.parts(pred)
    name, pred_name = structure.KINDS[kind], structure.KINDS[pred_kind]
    alternatives = kind == "," and "∨" in gold and "=" not in gold  # 1/2 or 0.5
    if alternatives and all(compare(part, pred).right for part in golds):
        return right("structure: equal to each of the alternatives")
    if kind != pred_kind:
        return wrong(f"structure: {pred_name} instead of {name}")
    if not kind:
        return by_value(*golds, *preds)
    match = any_order if kind in (",", "∪") else same_order
    return match(name, golds, preds)


def same_order(name, golds, preds):
    if len(golds) != len(preds):
        return wrong(f"structure: {name}, with {len(preds)} instead of {len(golds)} parts")
    for number, pair in enumerate(zip(golds, preds), 1):
        verdict = compare(*pair)
        if not verdict.right:
            return wrong(f"structure: {name}, part {number}; {verdict.reason}")
    return right(f"structure: {name} with equal parts")


def any_order(name, golds, preds, same=compare):
    if len(golds) != len(preds):
        return wrong(f"structure: {name}, with {len(preds)} instead of {len(golds)} parts")
    left = list(preds)
    for gold in golds:
        match = next((pred for pred in left if same(gold, pred).right), None)
        if match is None:
            part = gold if isinstance(gold, str) else "{}{}, {}{}".format(*gold)
            return wrong(f"structure: {name}, no part of the response equals {part}")
        left.remove(match)
    return right(f"structure: {name} with equal parts in any order")


# ---- 3a. equations ----------------------------------------------------------
def by_equation(gold, pred):
    """Returns the verdict if either answer is an equation, else None.

    An equation may name an answer (x = 5, m + n = 5) or derive it (2 + 3 = 5). Each side
    of the prediction must equal the gold answer. Names are skipped, and so are sums of
    names if another side has a value. If all sides are names, the last one must equal it.
    Two equations that do not name the same thing must provably have the same solutions."""
    golds, preds = structure.sides(gold), structure.sides(pred)
    if len(golds) == len(preds) == 1:
        return None
    named = len(golds) == 1 or NAME.fullmatch(golds[0])
    if len(golds) > 1 and len(preds) > 1:
        preds = structure.with_letter_of(golds[0], preds)
        if not named or not structure.same_name(golds[0], preds[0]):
            return by_solutions(golds, preds)
    if not named and not VARIABLE.fullmatch(golds[-1]):
        return wrong("structure: a single expression instead of an equation")
    gold = golds[-1] if named else golds[0]  # x = 2 or 2 = x
    claims = [side for side in preds if not NAME.fullmatch(side)]
    values = [side for side in claims if not SUM_OF_NAMES.fullmatch(side)]
    for claim in values or claims or preds[-1:]:
        verdict = compare(gold, claim)
        if not verdict.right:
            return wrong(f"structure: an equation claims {claim}; {verdict.reason}")
    return right("structure: the equation claims the gold answer")


def by_solutions(golds, preds):
    if len(golds) != 2 or len(preds) != 2:
        return wrong("structure: different chains of equations")
    if all(map(same_text, golds, preds[::-1])):
        return right("structure: the same equation with its sides swapped")
    gold = formula.difference(*structure.with_primes(golds, preds))
    pred = formula.difference(*structure.with_primes(preds, golds))
    if formula.proportional(gold, pred):
        return right("value: left minus right has a constant ratio between the equations")
    for name in formula.derivatives(gold) & formula.derivatives(pred):
        if formula.same_solution(gold, pred, name):
            return right(f"value: both equations have the same solution for {name}")
    return wrong("value: the equations were not shown to have the same solutions")


# ---- 3b. inequalities and sets of real numbers ------------------------------
def by_relation(gold, pred):
    """Returns the verdict if either answer is a relation, else None.

    Relations are equal if they are the same chain, the same set of real numbers,
    one inequality scaled by a constant, or sets with the same conditions."""
    if not structure.is_relation(gold) and not structure.is_relation(pred):
        return None
    chains = [structure.chain(text) for text in (gold, pred)]
    builders = [structure.set_builder(text) for text in (gold, pred)]
    if all(chains) and same_chain(*chains):
        return right("structure: the same chain of relations")
    sets = [structure.real_set(text) for text in (gold, pred)]
    if all(sets):
        return same_set(*sets)
    if all(chains) and chains[0][1] == chains[1][1] and len(chains[0][1]) == 1:
        return scaled(*chains)
    if all(builders):
        return same_builder(*builders)
    if any(chains) or any(builders):
        return wrong("structure: different relations, or a relation in only one answer")
    return None


def same_builder(one, other):
    (expression, *conditions), (other_expression, *other_conditions) = one, other
    if not compare(expression, other_expression).right:
        return wrong("structure: sets of different elements")
    return any_order("the conditions of a set", conditions, other_conditions)


def same_chain(one, other):
    (terms, signs), (other_terms, other_signs) = one, other
    if signs != other_signs:
        return False
    orders = [other_terms]
    if signs == ["≠"]:
        orders.append(other_terms[::-1])
    return any(same_order("", terms, order).right for order in orders)


def scaled(one, other):
    """Compares 2x > 10 with x > 5, for example."""
    (terms, signs), (other_terms, _) = one, other
    pair = formula.difference(*terms), formula.difference(*other_terms)
    if formula.proportional(*pair, positive=signs != ["≠"]):
        return right("value: the same relation, scaled")
    return wrong("value: different relations")


def same_set(one, other):
    (name, intervals), (other_name, other_intervals) = one, other
    if name and other_name and not same_text(name, other_name):
        return wrong("structure: relations of different letters")
    return any_order("a set of intervals", intervals, other_intervals, same_interval)


def same_interval(one, other):
    if (one[0], one[3]) != (other[0], other[3]):
        return wrong("structure: different brackets")
    return same_order("an interval", one[1:3], other[1:3])


# ---- 4. value ---------------------------------------------------------------
def by_value(gold, pred):
    if same_text(gold, pred):
        return right("text: the same")
    if formula.equal(formula.parse(gold), formula.parse(pred)):
        return right("value: equal")
    return wrong("value: different")


# ---- 5. units ---------------------------------------------------------------
def by_unit(gold, pred):
    """Returns the verdict on the values without their units, or None without units."""
    own = own_words(gold)
    gold_value, gold_units = split_unit(gold, own, gold=True)
    pred_value, pred_units = split_unit(pred, own)
    if not gold_units and not pred_units:
        return None
    if gold_units and pred_units and not same_units(gold_units, pred_units):
        return wrong("units: different")
    if same_text(gold_value, pred_value):
        return right("units: the same apart from a unit")
    return by_structure(gold_value, pred_value)


# ---- tasks ------------------------------------------------------------------
def mathematics(response, answer):
    """Returns True or False, or the pair (answer, extracted) for a worker to compare."""
    pred = extract_answer(response)
    if pred is None:
        return False
    if pred == answer:
        return True
    return answer, pred


# A task is a function of (response, answer); to add one, name it here.
TASKS = {
    "math": mathematics,
    "countdown": puzzles.countdown,
    "choice": puzzles.choice,
    "text": puzzles.text,
    "synlogic": puzzles.synlogic,
    "game24": puzzles.game24,
    "number_wall": puzzles.number_wall,
}


class Verifier(scoring.WorkerPool):
    """Scores batches of responses to the tasks in TASKS; see WorkerPool."""
    program, tasks = __file__, TASKS


SHARED = Verifier(workers=1)  # used by is_correct


def is_correct(response, answer, task="math"):
    r"""Returns whether the response's final answer is right; an empty gold answer never
    matches. Raises ValueError for an unknown task, RuntimeError if no worker starts.
    >>> is_correct(r"So it is \boxed{0.5}.", r"\frac{1}{2}")
    True"""
    return bool(answer.strip()) and SHARED.score([response], [answer], task) == [1.0]


# ---- command line -----------------------------------------------------------
def explain(response, answer):
    """Returns what was extracted and cleaned and which rung decided, one line for each."""
    pred = extract_answer(response)
    if pred is None:
        return "extracted  nothing: no closed box with an answer in it\nverdict    wrong"
    verdict = judge(answer, pred)
    rung, _, finding = verdict.reason.partition(": ")
    lines = {"extracted": pred, "cleaned": clean(pred), "gold": clean(answer), "rung": rung,
             "finding": finding, "verdict": "right" if verdict.right else "wrong"}
    return "\n".join(f"{name:10} {text}" for name, text in lines.items())


def print_table(rows):
    tasks, responses, answers = zip(*rows)
    with Verifier() as verifier:
        scores = verifier.score(responses, answers, tasks)
    print("| task | rows | correct | wrong | share correct |\n|---|---|---|---|---|")
    for task, n in Counter(tasks).items():
        correct = sum(int(score) for name, score in zip(tasks, scores) if name == task)
        print(f"| {task} | {n} | {correct} | {n - correct} | {correct / n:.3f} |")


def main():
    parser = argparse.ArgumentParser(description="Decides which answers are right.")
    parser.add_argument("rows", nargs="?", help="a file of JSON lines with the keys response, "
                        f"answer and task; tasks are {', '.join(TASKS)} (default: math)")
    parser.add_argument("--explain", nargs=2, metavar=("RESPONSE", "ANSWER"),
                        help="show what was extracted and which rung decided, for the task math")
    parser.add_argument("--worker", nargs=2, type=float, help=argparse.SUPPRESS)
    words = sys.argv[1:]
    if words[:1] == ["--explain"]:  # argparse would take -\frac12 for an option
        words[1:] = [f" {text}" for text in words[1:]]
    options = parser.parse_args(words)
    escape_unencodable()
    if options.worker:
        scoring.work(lambda *pair: judge(*pair).right, *options.worker)
    elif options.explain:
        print(explain(*options.explain))
    elif options.rows:
        print_table(scoring.read_rows(options.rows, TASKS))
    else:
        parser.error("give a file of rows, or --explain")


if __name__ == "__main__":
    main()
