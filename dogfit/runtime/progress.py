"""Progress on standard error: bars with rates on a terminal, plain lines elsewhere, or nothing."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Update = Callable[[int, int | None], None]
"""Called with what is done and the total, None where that is unknown."""
PLAIN_INTERVAL = 15.0
INTERRUPTED = 130


class Progress:
    """Progress of a job that shows nothing; it times the stages, which come one after another.

    Attributes:
      seconds: wall time of each finished stage, by its title.
      stopping: set to have the next stage, or the next step of this one, raise KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.stopping = False

    def say(self, text: str) -> None:
        """Show one line."""

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Update]:
        """Show and time a stage.

        Args:
          title: shown; unlike those of other stages.
          unit: of what is counted, in the plural.

        Yields:
          A function that the body calls with (done, total).

        Raises:
          KeyboardInterrupt: the job is stopping.
        """
        self._check_stopping()
        start = time.perf_counter()
        with self._shown(title, unit) as update:

            def step(done: int, total: int | None) -> None:
                update(done, total)
                self._check_stopping()

            yield step
        self.seconds[title] = time.perf_counter() - start

    def _check_stopping(self) -> None:
        if self.stopping:
            raise KeyboardInterrupt

    @contextmanager
    def _shown(self, title: str, unit: str) -> Iterator[Update]:  # noqa: ARG002
        yield lambda *_: None


class PlainProgress(Progress):
    """Progress in plain lines: one when a stage ends, and one now and then while it lasts."""

    def __init__(self, file: TextIO) -> None:
        super().__init__()
        self._file = file

    def say(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    @contextmanager
    def _shown(self, title: str, unit: str) -> Iterator[Update]:
        start = said = time.perf_counter()
        last = 0

        def update(done: int, total: int | None) -> None:
            nonlocal said, last
            last = done
            if (now := time.perf_counter()) - said > PLAIN_INTERVAL:
                said = now
                whole = "" if total is None else f" of {total:,}"
                self.say(f"{title}: {done:,}{whole} {unit}, {rate(done, now - start, unit)}")

        yield update
        seconds = time.perf_counter() - start
        done = f"{last:,} {unit} in " if last else ""
        speed = f", {rate(last, seconds, unit)}" if last else ""
        self.say(f"{title}: {done}{seconds:.1f} s{speed}")


class BarProgress(Progress):
    """Progress in bars, which stay when their stage is done."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

        super().__init__()
        self._console = Console(file=file)
        self._columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
        )

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    @contextmanager
    def _shown(self, title: str, unit: str) -> Iterator[Update]:
        from rich.progress import Progress as Bars

        start = time.perf_counter()
        with Bars(*self._columns, console=self._console) as bars:
            task = bars.add_task(title, total=None, rate="")

            def update(done: int, total: int | None) -> None:
                speed = rate(done, time.perf_counter() - start, unit)
                bars.update(task, completed=done, total=total, rate=speed)

            yield update
            done = bars.tasks[0].completed or 1
            bars.update(task, completed=done, total=done)


@contextmanager
def ctrl_c_between_steps(progress: Progress) -> Iterator[None]:
    """Let Ctrl-C stop a job at its next step, where nothing is half done; a second one ends the process.

    Python raises KeyboardInterrupt wherever it happens to be. Inside a callback of the garbage collector, and
    JAX has one, it is printed and lost; during a compilation or a save it has crashed the interpreter.

    Args:
      progress: of the job; its `stopping` is set.
    """

    def on_interrupt(*_: object) -> None:
        # Not print: the handler may run inside a print.
        if progress.stopping:
            # Like a kill, at any moment: nothing half-written is ever read.
            os.write(2, b"\ndogfit: interrupted twice, ended at once; run the same command again to resume\n")
            os._exit(INTERRUPTED)
        progress.stopping = True
        os.write(2, b"\ndogfit: stopping after this step; press Ctrl-C again to end at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield  # Python gives signals to the main thread alone.
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        if before is not None:  # None: a handler that was not set from Python
            signal.signal(signal.SIGINT, before)


@contextmanager
def without_library_logs() -> Iterator[None]:
    """Keep Orbax from logging one failure from each of its threads; what matters is raised anyway."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def rate(done: int, seconds: float, unit: str) -> str:
    """Write units a second as a person reads them."""
    value = done / max(seconds, 1e-9)
    return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.1f} {unit}/s"


def progress_for(quiet: bool, file: TextIO | None = None) -> Progress:
    """Choose how progress is shown.

    Args:
      quiet: show nothing.
      file: where progress goes, standard error by default.

    Returns:
      Bars on a terminal, plain lines elsewhere.
    """
    target = sys.stderr if file is None else file
    if quiet or target is None:
        return Progress()
    return BarProgress(target) if target.isatty() else PlainProgress(target)
