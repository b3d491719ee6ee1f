"""Progress of a job, and Ctrl-C at its steps."""

import gc
import signal
import subprocess
import sys
import threading

import pytest

from dogfit.runtime.progress import INTERRUPTED, Progress, ctrl_c_between_steps


def test_ctrl_c_between_steps_waits_for_the_end_of_a_step():
    progress = Progress()
    before = signal.getsignal(signal.SIGINT)
    passed = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_between_steps(progress), progress.stage("a", "b") as update:
        update(1, 3)
        signal.raise_signal(signal.SIGINT)
        passed.append("the step goes on")
        update(2, 3)
        passed.append("the next step does not")
    assert passed == ["the step goes on"]
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_between_steps_stops_the_next_stage():
    progress = Progress()
    with pytest.raises(KeyboardInterrupt), ctrl_c_between_steps(progress):
        with progress.stage("first", "b"):
            signal.raise_signal(signal.SIGINT)
        with progress.stage("second", "b"):
            pytest.fail("the second stage began")
    assert set(progress.seconds) == {"first"}


def test_ctrl_c_between_steps_is_not_lost_in_the_garbage_collector():
    def interrupt(phase, _):
        if phase == "start":
            signal.raise_signal(signal.SIGINT)

    progress = Progress()
    gc.callbacks.append(interrupt)
    try:
        with ctrl_c_between_steps(progress):
            gc.collect()
            gc.callbacks.remove(interrupt)
            assert progress.stopping
    finally:
        if interrupt in gc.callbacks:
            gc.callbacks.remove(interrupt)


def test_ctrl_c_between_steps_ends_the_process_the_second_time():
    program = (
        "import signal\nfrom dogfit.runtime.progress import Progress, ctrl_c_between_steps\n"
        "with ctrl_c_between_steps(Progress()):\n"
        "    signal.raise_signal(signal.SIGINT); print('once', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT); print('twice', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == INTERRUPTED
    assert done.stdout == "once\n"
    assert "press Ctrl-C again" in done.stderr
    assert done.stderr.endswith("run the same command again to resume\n")


def test_ctrl_c_between_steps_sets_no_handler_in_a_thread():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with ctrl_c_between_steps(Progress()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
