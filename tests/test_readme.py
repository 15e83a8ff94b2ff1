"""The README's table from the paper to the code."""
import re
from functools import partial, reduce

import simko
import verify
from tests.workers import ROOT


def test_the_readmes_table_from_paper_to_code_names_what_exists():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Paper to code\n")[2].partition("\n## ")[0]
    rows = [line.strip().strip("|").split("|")[-1] for line in section.splitlines() if line.startswith("|")][2:]
    names = [name for row in rows for name in re.findall("`([^`]+)`", row)]
    assert len(rows) >= 5 and all("`" in row for row in rows)
    for name in names:
        lookup = partial(reduce, lambda thing, part: getattr(thing, part, None), name.split("."))
        assert lookup(simko) or lookup(verify), f"README.md names {name}, which is nowhere"
