"""Measurements, printed as a markdown table row.

    python tools/bench.py verifier --rows 2048 --workers 2
"""
import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

PROSE = ("We set up the equation and simplify both sides.", "Let $x$ be the number in question; then $2x + 3 = 7$.",
         "Substituting back, the terms cancel.", "By symmetry it is enough to look at one case.",
         "Hence $\\frac{a}{b} = \\frac{c}{d}$, which we now use.", "Collecting terms gives the result.")


def answer(rng):
    """(gold, the same written another way, a wrong one): kinds and shares as in the answers of MATH."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 12), rng.choice((2, 3, 5, 7, 11))
    kinds = {
        "integer": (60, f"{a}", rng.choice((f"{a}", f"x = {a}", f"{a}.0", rf"{a} \text{{ cm}}")), f"{a + b}"),
        "fraction": (14, rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{2 * a}}}{{{2 * b}}}", rf"\frac{{{b}}}{{{a + b}}}"),
        "root": (7, rf"{b}\sqrt{{{c}}}", rng.choice((rf"{b} \sqrt {c}", rf"\sqrt{{{b * b * c}}}")),
                 rf"{b + 1}\sqrt{{{c}}}"),
        "polynomial": (6, f"x^2+{b}x+{a}", f"{a} + {b}x + x^2", f"x^2-{b}x+{a}"),
        "tuple": (5, f"({a},{b})", rf"\left({a}, {b}\right)", f"({b},{a + b})"),
        "pi": (3, rf"{a}\pi", rf"{a} \pi", f"{a}"),
        "interval": (2, rf"[{b},\infty)", rf"\left[{b}, \infty\right)", rf"({b},\infty)"),
        "list": (3, f"{a},{-b}", f"{-b}, {a}", f"{a},{b}"),
    }
    return kinds[rng.choices(list(kinds), [kind[0] for kind in kinds.values()])[0]][1:]


def verifier(options):
    """Responses a second of Verifier.score, cold and again, against math-verify called on each response in turn."""
    import math_verify

    from verify import Verifier
    rng = random.Random(0)
    responses, golds = [], []
    for row in range(options.rows):
        gold, right, wrong = answer(rng)
        prose = " ".join(rng.choice(PROSE) for _ in range(rng.randint(5, 30)))
        responses.append(f"{prose} The answer is $\\boxed{{{wrong if row % 2 else right}}}$.")
        golds.append(gold)
    start = time.perf_counter()
    naive = [float(math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(response)))
             for response, gold in zip(responses, golds)]
    naive_rate = options.rows / (time.perf_counter() - start)
    rates = []
    with Verifier(workers=options.workers) as scorer:
        for _ in range(2):
            start = time.perf_counter()
            scores = scorer.score(responses, golds, "math")
            rates.append(options.rows / (time.perf_counter() - start))
    wrong = [sum(score != float(row % 2 == 0) for row, score in enumerate(verdicts)) for verdicts in (naive, scores)]
    print("| responses | workers | math-verify /s (wrong verdicts) | verify.py /s (wrong) | times | again /s |")
    print("|---|---|---|---|---|---|")
    print(f"| {options.rows} | {options.workers} | {naive_rate:.0f} ({wrong[0]}) | {rates[0]:.0f} ({wrong[1]}) "
          f"| {rates[0] / naive_rate:.1f} | {rates[1]:.0f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("verifier", help=verifier.__doc__)
    command.add_argument("--rows", type=int, default=2048)
    command.add_argument("--workers", type=int, default=2)
    command.set_defaults(run=verifier)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
