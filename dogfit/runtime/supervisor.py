"""A job among several processes runs in a child process, so that somebody is left to say how it ended.

When one process is lost, JAX aborts the others from a thread of its own, amid whatever they do.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

from dogfit.job.config import RunConfig

FAILED = 1
# By which the child says so to its parent, that speaks for it: JAX may abort the child amid a sentence.
LOST_CODE = 99
LOST = (
    "another process of this job did not come, was lost or has failed, and the work cannot go on without it; "
    "start all again with the same command: finished stages are kept, training goes on from a checkpoint"
)


def run_watched(job: Callable[[RunConfig], int], config: RunConfig) -> int:
    """Run a job in a child process. Returns its exit code: 1, with a sentence, when it was ended by force."""
    child = multiprocessing.get_context("spawn").Process(target=_child, args=(job, config))
    child.start()
    # A terminal sends Ctrl-C to both, and the child knows how to stop.
    with _without_interrupts():
        child.join()
    code = child.exitcode or 0
    if code >= 0 and code != LOST_CODE:
        return code
    lost = code in (LOST_CODE, -signal.SIGABRT)
    reason = LOST if lost else f"ended by signal {-code}; the same command goes on"
    print(f"dogfit: {reason}", file=sys.stderr)
    return FAILED


class _without_interrupts:  # noqa: N801 - reads as what it does
    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._before: Any = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def _child(job: Callable[[RunConfig], int], config: RunConfig) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # XLA's collectives for CPUs announce themselves on standard output, which is for results.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding=sys.stdout.encoding)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = results
    code = FAILED
    try:
        code = job(config)
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
