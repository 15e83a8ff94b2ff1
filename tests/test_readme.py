"""The README's table from the paper to the code."""
import re

import simko
import verify
from runtime import baselines, chunked
from tests.workers import ROOT


def lookup(name):
    """What a name like `Trainer.update` stands for in one of the files that a reader reads, or
    None."""
    for thing in (simko, verify, chunked, baselines):
        for part in name.split("."):
            thing = getattr(thing, part, None)
        if thing is not None:
            return thing
    return None


def test_the_readmes_table_from_paper_to_code_names_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Paper to code\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    code = [row.strip().strip("|").split("|")[-1] for row in table]
    assert len(code) >= 5 and all("`" in cell for cell in code)
    for cell in code:
        for name in re.findall("`([^`]+)`", cell):
            assert lookup(name) is not None, f"README.md names {name}, which is nowhere"
