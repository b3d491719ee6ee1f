"""A job among several processes runs in a child process, so that its parent can say how it ended.

When one process is lost, JAX aborts the others from a thread of its own, in the middle of their work.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

FAILED = 1
LOST_CODE = 99
"""Exit code by which the child says that another process is lost: JAX may abort it in mid-sentence."""
LOST = (
    "another process of this job never started, was lost or failed, and the job cannot go on without it; "
    "run the same command again in every process: completed stages are kept, and training resumes from its "
    "last checkpoint"
)
Settings = TypeVar("Settings")


def run_supervised(job: Callable[[Settings], int], settings: Settings) -> int:
    """Run a job in a child process, and say so if it was ended by force.

    Args:
      job: a function that can be pickled; returns its exit code.
      settings: its argument.

    Returns:
      The child's exit code, or 1 if it was ended by force or another process was lost.
    """
    child = multiprocessing.get_context("spawn").Process(target=_run_child, args=(job, settings))
    child.start()
    # A terminal sends Ctrl-C to both, and the child knows how to stop.
    with _interrupts_ignored():
        child.join()
    code = child.exitcode or 0
    if code >= 0 and code != LOST_CODE:
        return code
    lost = code in (LOST_CODE, -signal.SIGABRT)
    reason = LOST if lost else f"ended by signal {-code}; run the same command again to resume"
    print(f"dogfit: {reason}", file=sys.stderr)
    return FAILED


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone.
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that was not set from Python
            signal.signal(signal.SIGINT, before)


def _run_child(job: Callable[[Settings], int], settings: Settings) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # XLA's collectives for CPUs announce themselves on standard output, which is for results.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = results
    code = FAILED
    try:
        code = job(settings)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # At a normal exit JAX would wait for processes that may be gone.
        os._exit(code)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(FAILED)
