"""Helpers that the other files share: messages to the user and atomic file
writes. verify.py uses them too, so nothing here imports PyTorch."""
import math
import os
import sys
from contextlib import contextmanager
from pathlib import Path


def printable(text):
    """Returns the text with control characters escaped.

    Otherwise a model's response or a file could send commands to the
    terminal that shows it."""
    return "".join(
        char if char.isprintable()
        else char.encode("unicode_escape").decode()
        for char in text)


def one_line(error):
    """Returns the first 300 characters of an error's message as one line."""
    text = str(error)
    if not text or isinstance(error, KeyError):  # the message would be a bare key
        text = repr(error)
    return printable(" ".join(text.split())[:300])


def error_line(message):
    """Returns a one-line message for the user that names the program."""
    name = Path(sys.argv[0]).name
    if not name.endswith(".py") or name == "__main__.py":
        name = "simko.py"  # called from Python rather than as a program
    return f"{name}: error: {printable(message)}"


def fail(message):
    """Ends the program with a one-line message for the user."""
    raise SystemExit(error_line(message))


def escape_unencodable():
    """Makes print escape a character that the terminal's encoding lacks,
    instead of raising. A notebook's stdout lacks none, and a closed one is None."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def fail_as(what, advice=None):
    """Turns any error of a library, such as that of a damaged file, into
    one line: what is wrong, the error, and the advice."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        cause = one_line(error)
        fail(f"{what} ({cause}): {advice}" if advice else f"{what}: {cause}")


def number_as_text(answer):
    """Converts an answer that is a finite number to text. Returns any other
    answer unchanged, including truth values and nan, with which no response
    could be compared."""
    if isinstance(answer, bool):
        return answer
    if isinstance(answer, int) or isinstance(answer, float) and math.isfinite(answer):
        return str(answer)
    return answer


def flag(name):
    return f"--{name.replace('_', '-')}"


def print_once(text):
    """Prints a line on rank 0 only. Works before there is a process group, too."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def write_whole(path, text):
    """Replaces a file's content atomically: if anything goes wrong, the file
    keeps its old content. The new content goes through a file beside it with
    the suffix .tmp, which is overwritten if it exists."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
