"""Ends of a job in a child process, and what its parent says of them."""

import os
import signal

import pytest

from dogfit.runtime.supervisor import LOST, LOST_CODE, run_supervised

KILLED = "dogfit: ended by signal 9; run the same command again to resume\n"


@pytest.mark.parametrize(
    ("job", "argument", "code", "said"),
    [
        (os._exit, 0, 0, ""),
        (os._exit, 3, 3, ""),
        (os._exit, LOST_CODE, 1, f"dogfit: {LOST}\n"),
        # What JAX does to a process that has lost another.
        (signal.raise_signal, signal.SIGABRT, 1, f"dogfit: {LOST}\n"),
        (
            signal.raise_signal,
            signal.SIGKILL,
            1,
            "dogfit: ended by signal 9; run the same command again to resume\n",
        ),
    ],
)
def test_run_supervised_says_how_the_child_ended(job, argument, code, said, capsys):
    assert run_supervised(job, argument) == code
    assert capsys.readouterr().err == said


def broken(_: int) -> int:
    raise RuntimeError("a fault of the job's own: UNAVAILABLE heartbeat barrier")


def test_run_supervised_shows_the_traceback_of_a_fault(capfd):
    assert run_supervised(broken, 0) == 1
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert "a fault of the job's own" in said
    assert LOST not in said
