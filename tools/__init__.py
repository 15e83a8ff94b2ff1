"""What the programs of this folder share."""
import signal
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from runtime.common import escape_unencodable

ROOT = Path(__file__).resolve().parents[1]


def command_line(file, about):
    """Returns the parser of a program. file, about: its __file__ and __doc__."""
    escape_unencodable()
    return ArgumentParser(
        prog=f"python -m tools.{Path(file).stem}", description=about,
        formatter_class=RawDescriptionHelpFormatter)


def allow_head():
    """Lets `... | head`, which closes the pipe, end a program without an error."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
