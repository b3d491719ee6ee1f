"""Output into a pipe that its reader has closed, as in `dogfit --help | head`: it goes nowhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class _Guarded:
    """A stream whose output goes nowhere once its reader has closed the pipe."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def _discard(self) -> None:
        """Let what is still buffered, and all that follows, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def tolerate_closed_pipe() -> Iterator[None]:
    """Let a command run to its end though nobody reads its output any more.

    Use it once, around all that a command does.
    """
    with ExitStack() as guards:
        for stream, redirect in ((sys.stdout, redirect_stdout), (sys.stderr, redirect_stderr)):
            if stream is not None:
                guarded: Any = _Guarded(stream)
                guards.enter_context(redirect(guarded))
                guards.callback(guarded.flush)
        yield
