"""The run that test_faults.py and test_ranks.py disturb, and what they disturb it with at a chosen
place: kills, signals, errors, and losses that are not numbers."""
import math
import os
import signal
from functools import partial
from unittest import mock

import simko
from tests.conftest import short_recipe


def flags(data, output, *more):
    """Returns arguments for a run of 6 steps with 2 updates each. It evaluates every 3 steps and
    saves every 2."""
    steps = "--steps 6 --save-steps 2 --eval-steps 3 --eval-n 4".split()
    return short_recipe(data, output, *steps, "--eval-data", data / "test.jsonl", *more)


def at_call(owner, name, count, action, after=False, when=lambda *_: True):
    """Patches a function so that `action` runs before the function's call number `count`, or after
    it if `after` is true. Only calls for which `when` returns true are counted."""
    function, calls = getattr(owner, name), []

    def call(*arguments, **options):
        calls.extend([1] * when(*arguments))
        now = len(calls) == count and when(*arguments)
        if now and not after:
            action()
        value = function(*arguments, **options)
        if now and after:
            action()
        return value
    return mock.patch.object(owner, name, call)


def rollout(engine, prompts, *_):
    return len(prompts) in (8, 4, 2)  # on one, two or four ranks


def evaluation(engine, prompts, *_):
    return len(prompts) in (64, 6)  # on one rank: a chunk, and the last


def raised(error):
    def action():
        raise error
    return action


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def ask(number=signal.SIGTERM):
    return partial(os.kill, os.getpid(), number)


def broken_losses(*calls):
    """Makes the losses nan in these calls of clipped_loss and in all calls after the last one."""
    function, count = simko.clipped_loss, []

    def losses(*arguments, **options):
        count.append(1)
        loss = function(*arguments, **options)
        return loss * math.nan if len(count) in calls or len(count) > calls[-1] else loss
    return mock.patch.object(simko, "clipped_loss", losses)
