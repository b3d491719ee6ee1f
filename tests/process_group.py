"""Start a command in several real processes that talk over the loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Nobody waits this long: it ends a test that hangs.
PATIENCE_S = 300
# 5 s are asked for on the command line; the rest is for a machine that has other things to do.
LOST_WITHIN_S = 5 + 30
JOBS = Path(__file__).with_name("jobs.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_process(
    arguments: Sequence[str], log: Path, cache: Path, devices: int = 1
) -> subprocess.Popen[str]:
    """A Python process with few CPU devices, whose output goes to a file: an unread pipe would stop it."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Programs that one process has compiled need not be compiled in the next.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a process and the child that does its job, as when a host is lost; both at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def process_group(
    commands: Sequence[Sequence[str]], logs: Sequence[Path], cache: Path
) -> Iterator[list[subprocess.Popen[str]]]:
    """One process for each command; none is left when the body ends."""
    group = [start_process(command, log, cache) for command, log in zip(commands, logs, strict=True)]
    try:
        yield group
    finally:
        for process in group:
            if process.poll() is None:
                kill(process)


def wait_until(happened: Callable[[], object], group: Sequence[subprocess.Popen[str]]) -> None:
    """Return as soon as something has happened, while all processes still run."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert all(process.poll() is None for process in group), "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.003)


def all_end_well(group: Sequence[subprocess.Popen[str]], logs: Sequence[Path]) -> None:
    for process, log in zip(group, logs, strict=True):
        assert process.wait(PATIENCE_S) == 0, log.read_text()


def two_of_a_job(name: str, *words: str) -> list[list[str]]:
    """Commands of both processes of a job out of `jobs.py`."""
    port = free_port()
    place = f"--lost-after 5 --coordinator 127.0.0.1:{port} --processes 2 --json --process-id".split()
    return [[str(JOBS), name, *words, *place, str(index)] for index in (0, 1)]
