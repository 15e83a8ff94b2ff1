"""Tests of README.md and docs/: they describe the code correctly, and their links resolve."""
import dataclasses
import inspect
import re
import runpy
import sys

import pytest

import simko
import verify
from runtime import baselines, chunked, cli
from runtime.common import flag
from tests.workers import ROOT


def lookup(name):
    """Returns the object that a name like `Trainer.update` refers to in one of the files that a
    reader reads, or None."""
    for thing in (simko, verify, chunked, baselines):
        for part in name.split("."):
            thing = getattr(thing, part, None)
        if thing is not None:
            return thing
    return None


def test_the_readmes_table_from_paper_to_code_names_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("| Paper | What | Code |\n")[2].partition("\n\n")[0]
    table = section.splitlines()[1:]
    code = [row.strip().strip("|").split("|")[-1] for row in table]
    assert len(code) >= 5
    for cell in code:
        names = re.findall("`([^`]+)`", cell)
        assert names
        for name in names:
            assert lookup(name) is not None, f"README.md names {name}, which does not exist"


def without_comment(line):
    return line.partition("#")[0].strip()


def test_the_readmes_diff_from_grpo_to_simko_is_the_code():
    """The diff adds the lines of simko_ratio, in the same order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    diff = text.partition("```diff\n")[2].partition("```")[0].splitlines()
    added = [without_comment(line[1:]) for line in diff if line[0] == "+"]
    source = inspect.getsource(simko.simko_ratio).partition('bit."""')[2]
    code = [without_comment(line) for line in source.splitlines()]
    first, *code = [line for line in code if line]
    assert first == without_comment(diff[0])
    # In simko_ratio, the last line is the return statement.
    assert added == [*code[:-1], code[-1].replace("return", "gamma =")]


def anchors(path):
    """Returns the anchors that GitHub makes from the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_of_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


COMMAND = re.compile(
    r"(?P<program>"
    r"bash train\.sh"
    r"|python -m tools\.(?P<tool>[a-z]\w*)"
    r"|(?:python|torchrun [^`|\n]*) ?simko\.py"
    r"|python verify\.py"
    r")(?P<words>(?:\\\n|[^`|\n#])*)")


def commands():
    """Yields (page, program, tool or None, words) for every command in README.md and docs/."""
    for page in PAGES:
        for match in COMMAND.finditer(page.read_text(encoding="utf-8")):
            program = match["program"].split()[-1]
            words = match["words"].replace("\\\n", " ").split()
            yield page.name, program, match["tool"], words


def help_of(program, tool, words, monkeypatch, capsys):
    """Returns the output of --help for a command."""
    name, asked = program, []
    if program == "train.sh" or tool == "rounding":  # which pass their flags on
        name, tool, asked = "simko.py", None, ["train"]
    elif program == "simko.py":
        asked = words[:1]
    elif tool in ("bench", "smollm2"):
        asked = [word for word in words[:1] if word[0] != "-"]
    monkeypatch.setattr(sys, "argv", [name, *asked, "--help"])
    with pytest.raises(SystemExit, match="^0$"):
        if tool:
            runpy.run_module(f"tools.{tool}", run_name="__main__")
        elif name == "simko.py":
            cli.parse_config([*asked, "--help"], simko.Config)
        else:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_every_flag_of_a_command_in_the_docs_exists(monkeypatch, capsys):
    known, seen = {}, 0
    for page, program, tool, words in commands():
        if not words or words[0] in ("laptop-study", "test"):
            assert words[1:] == [], page
            continue
        has_subcommands = program == "simko.py" or tool in ("bench", "smollm2")
        key = program, words[0] if has_subcommands else None
        if key not in known:
            shown = help_of(program, tool, words, monkeypatch, capsys)
            known[key] = {*re.findall(r"--[a-z][\w-]*", shown), "--help"}
            if program == "train.sh":
                known[key] |= {"--list", "--force"}
            if words[0] == "step" or tool == "soak":  # both pass other flags on to simko.py
                fields = dataclasses.fields(simko.Config)
                known[key] |= {flag(field.name) for field in fields}
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        missing = flags - known[key]
        assert not missing, f"{page}: {program} has no {missing}"
        seen += 1
    assert seen > 30


def test_every_command_of_the_docs_has_a_row_that_names_its_test():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    starts = []
    for shown, _ in rows:
        starts += [start.split() for start in re.findall("`([^`]+)`", shown)]
    for source in PAGES:
        for match in COMMAND.finditer(source.read_text(encoding="utf-8")):
            # "..." stands for what a reader fills in.
            words = [word for word in match.group().split() if word != "..."]
            found = [start for start in starts if words[:len(start)] == start]
            assert found, f"docs/commands.md has no row for {match.group()!r} of {source.name}"


def test_every_test_that_the_docs_name_exists():
    files = ROOT / "test_simko.py", *(ROOT / "tests").glob("*.py")
    defined = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        # A name may be cut off, as in `test_killed_at_...`.
        for name, rest in re.findall(r"`(test_\w+?)(_\.\.\.)?`", text):
            start = f"def {name}_" if rest else f"def {name}("
            assert start in defined, f"{page.name} names {name}, which is nowhere"
