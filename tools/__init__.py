"""What the programs of this folder share."""
import signal
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from runtime.common import escape_unencodable

ROOT = Path(__file__).resolve().parents[1]


def command_line(file, about):
    """Returns the parser of a program. file, about: its __file__ and __doc__."""
    escape_unencodable()
    return ArgumentParser(
        prog=f"python -m tools.{Path(file).stem}", description=about,
        formatter_class=RawDescriptionHelpFormatter)


def in_parallel(task, items, jobs):
    """Yields task(item) for each item as the calls end, `jobs` of them at a time. After
    an error, calls that have started finish, no other starts, and the error is raised."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def allow_head():
    """Lets `... | head`, which closes the pipe, end a program without an error."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
