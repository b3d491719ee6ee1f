"""How a job in a child process ended, and what is said of it."""

import os
import signal

import pytest

from dogfit.runtime.supervisor import LOST, LOST_CODE, run_watched


@pytest.mark.parametrize(
    ("job", "argument", "code", "said"),
    [
        (os._exit, 0, 0, ""),
        (os._exit, 3, 3, ""),
        (os._exit, LOST_CODE, 1, f"dogfit: {LOST}\n"),
        # What JAX does to a process that has lost another.
        (signal.raise_signal, signal.SIGABRT, 1, f"dogfit: {LOST}\n"),
        (signal.raise_signal, signal.SIGKILL, 1, "dogfit: ended by signal 9; the same command goes on\n"),
    ],
)
def test_the_parent_says_how_the_child_ended(job, argument, code, said, capsys):
    assert run_watched(job, argument) == code
    assert capsys.readouterr().err == said
