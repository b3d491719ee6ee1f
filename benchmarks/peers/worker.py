"""A process per fitter, so that its memory is its own; it fits when told to, and idles otherwise."""

import importlib
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np


class FitterError(RuntimeError):
    """Failure in a fitter's process."""


@dataclass(frozen=True)
class Run:
    """One call of a fitter: final points by family `[s, n, p]`, and what it took."""

    points: dict[str, np.ndarray]
    seconds: float
    cpu_seconds: float


def peak_mb() -> float:
    """Most memory resident since this program started.

    Not `ru_maxrss`: across fork and exec that begins with the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _serve(connection: Connection, module: str, name: str, options: Mapping[str, Any]) -> None:
    """Make a fitter, then answer requests: kernels and starts, or None for the memory used."""
    warnings.simplefilter("ignore")
    try:
        fitter = getattr(importlib.import_module(module), name)(**options)
        loaded = peak_mb()
        connection.send(loaded)
        while (request := connection.recv()) != "stop":
            if request == "memory":
                connection.send(peak_mb() - loaded)
                continue
            start, cpu = time.perf_counter(), time.process_time()
            points = fitter.fit(*request)
            connection.send(Run(points, time.perf_counter() - start, time.process_time() - cpu))
    except Exception as error:
        # Told, not raised: the race goes on without this fitter.
        connection.send(FitterError(f"{type(error).__name__}: {error}"))


class Worker:
    """The near end of a fitter's process."""

    def __init__(self, module: str, name: str, options: Mapping[str, Any]) -> None:
        context = get_context("spawn")
        self._connection, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, module, name, options), daemon=True)
        self._process.start()
        far.close()
        self.loaded_mb: float = self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise FitterError("its process ended") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> Run:
        """One call of the fitter."""
        self._connection.send((kernels, starts))
        return self._answer()

    def fitting_mb(self) -> float:
        """Most memory so far, beyond the libraries loaded."""
        self._connection.send("memory")
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._connection.send("stop")
            self._process.join(10)
        self._process.kill()
