"""pass@K tables from evaluations.

    python tools/tables.py [LABEL=]FOLDER ...       each the folder of an evaluation, or of a run (its last evaluation)

A row a folder and set; +- is the standard error over problems, from 1000 bootstrap draws of the problems.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simko import pass_at_k  # noqa: E402


def load(arguments):
    """[(label, eval.json's content)] of [LABEL=]FOLDER arguments; exits with one line if there is none."""
    found = []
    for argument in arguments:
        label, _, folder = argument.rpartition("=")
        paths = [*sorted(Path(folder).glob("eval_*/eval.json")), *Path(folder).glob("eval.json")]
        if not paths:
            sys.exit(f"{folder} holds no eval.json: is it the folder of a finished evaluation or run?")
        found.append((label or Path(folder).name, json.loads(paths[-1].read_text())))
    return found


def pass_rates(report, set_name):
    """{K: (mean, standard error)} over the problems of one set."""
    n, correct = report["settings"]["eval_n"], torch.tensor(list(report["sets"][set_name]["correct"].values()))
    draws = np.random.default_rng(0).integers(len(correct), size=(1000, len(correct)))
    rates = {}
    for k in map(int, report["sets"][set_name]["pass"]):
        each = pass_at_k(n, correct, k).numpy()
        rates[k] = each.mean(), each[draws].mean(1).std()
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[LABEL=]FOLDER")
    reports = load(parser.parse_args().folders)
    for name in dict.fromkeys(name for _, report in reports for name in report["sets"]):
        rows = [(label, report) for label, report in reports if name in report["sets"]]
        settings = rows[0][1]["settings"]
        ks = [k for k in pass_rates(rows[0][1], name)]
        print(f"\n{name}: pass@K in %, {rows[0][1]['sets'][name]['problems']} problems, n = {settings['eval_n']}, "
              f"T = {settings['eval_temperature']}, top-p = {settings['eval_top_p']}\n")
        print("| | " + " | ".join(f"K={k}" for k in ks) + " |\n|" + "---|" * (len(ks) + 1))
        for label, report in rows:
            rates = pass_rates(report, name)
            print(f"| {label} | " + " | ".join(f"{100 * rates[k][0]:.1f} ± {100 * rates[k][1]:.1f}" for k in ks) + " |")


if __name__ == "__main__":
    main()
