"""The folder a run writes to: files appear whole or not at all, and an interrupted run can continue.

Until the run is done everything lives in the hidden folder `.dogfit` inside the output folder: finished
stages, and the results being gathered. Publishing only renames, so that it can fail neither half-way through
a file nor for want of space; `run.json` comes last and marks a finished run.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dogfit.atomic_write import write_atomically
from dogfit.errors import OutputError

RESULTS = (
    "kernels.parquet",
    "layers.parquet",
    "fits.safetensors",
    "autoencoder",
    "figures",
    "report.html",
    "summary.json",
    "run.json",
)


# Beside the results, where asked for; whole by themselves, and made anew when the results are.
EXTRAS = ("replaced.safetensors", "replaced")


class Workspace:
    """Stages and results of one run in one output folder.

    Use as a context manager. When the body fails, finished stages stay for the next run, except when the disk
    was the trouble: then everything unpublished is removed, which also gives the space back.

    Args:
      out: the output folder; made if absent.
      fingerprint: of the inputs and the settings that decide the numbers.
      overwrite: replace what another run left there.

    Raises:
      OutputError: on entering, if `out` is a file, holds results or stages of a run with another
        fingerprint, or another run is writing to it.
    """

    def __init__(self, out: Path, fingerprint: str, *, overwrite: bool = False) -> None:
        self.out = out
        self.hidden = out / ".dogfit"
        self.results = self.hidden / "results"
        self.finished = False
        self.fingerprint = fingerprint
        self._overwrite = overwrite
        self._made: list[Path] = []
        self._held = ExitStack()

    def __enter__(self) -> "Workspace":
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"--out {self.out} is a file; give a folder, new or empty")
        self._made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError:
            self.abandon()
            raise
        with ExitStack() as held:
            held.enter_context(_alone_in(self.out))
            self._check(self.fingerprint, self._overwrite)
            if not self.finished:
                try:
                    state = json.dumps({"fingerprint": self.fingerprint}).encode()
                    write_atomically(self.hidden / "state.json", state)
                except OSError:
                    self.abandon()
                    raise
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._held:
            if error is not None and (disk_trouble(error) or not self.resumable):
                self.abandon()

    def _check(self, fingerprint: str, overwrite: bool) -> None:
        advice = "give another --out, or --overwrite to replace it"
        published = _fingerprint(self.out / "run.json")
        begun = _fingerprint(self.hidden / "state.json")
        if not overwrite:
            if published not in (None, fingerprint):
                raise OutputError(f"{self.out} holds a run with other inputs or settings; {advice}")
            if begun not in (None, fingerprint):
                raise OutputError(
                    f"{self.out} holds an unfinished run with other inputs or settings; {advice}"
                )
            taken = [name for name in (*RESULTS, *EXTRAS) if (self.out / name).exists()]
            if taken and published is None and begun is None:
                raise OutputError(f"{self.out} holds a {taken[0]} that no run of dogfit finished; {advice}")
            complete = all((self.out / name).exists() for name in RESULTS if name != "autoencoder")
            self.finished = published == fingerprint and complete
        if begun != fingerprint:
            shutil.rmtree(self.hidden, ignore_errors=True)

    @property
    def resumable(self) -> bool:
        """Whether a finished stage is waiting for another run."""
        kept = self.hidden.iterdir() if self.hidden.is_dir() else iter(())
        return any(path.name not in ("state.json", "results") for path in kept)

    def stage(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The bytes of a stage: read where an earlier run finished it, otherwise made and kept."""
        path = self.hidden / name
        if not path.exists():
            write_atomically(path, make())
        return path.read_bytes()

    def stage_file(self, name: str, write: Callable[[Path], object]) -> Path:
        """The file of a stage: there already where an earlier run finished it, otherwise written and kept."""
        path = self.hidden / name
        if not path.exists():
            write_atomically(path, write)
        return path

    @contextmanager
    def stage_folder(self, name: str) -> Iterator[tuple[Path, bool]]:
        """A folder to fill, and whether an earlier run finished it; without an error it is then finished."""
        done = self.hidden / f"{name}.done"
        finished = done.exists()
        yield self.hidden / name, finished
        if not finished:
            write_atomically(done, b"")

    def write(self, name: str, data: bytes) -> None:
        """Gather one result file; `publish` shows it."""
        write_atomically(self.results / name, data)

    def write_file(self, name: str, write: Callable[[Path], object]) -> None:
        """Gather one result file that is too large to hold twice."""
        write_atomically(self.results / name, write)

    def publish(self) -> None:
        """Put the gathered results in place of any older ones, then forget the stages."""
        old = self.hidden / "older"
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        # run.json marks a finished run: the first to go, the last to come.
        for name in (*EXTRAS, *reversed(RESULTS)):
            if (self.out / name).exists():
                (self.out / name).rename(old / name)
        for name in RESULTS:
            if (self.results / name).exists():
                (self.results / name).rename(self.out / name)
        shutil.rmtree(self.hidden)
        self.finished = True

    def abandon(self) -> None:
        """Remove everything unpublished, and the folders this run made for it."""
        trained = any(self.hidden.glob("training-*"))
        shutil.rmtree(self.hidden, ignore_errors=True)
        if trained:
            # Orbax's threads go on writing for a moment after their error has been raised.
            for _ in range(15):
                time.sleep(0.1)
                shutil.rmtree(self.hidden, ignore_errors=True)
        for path in self._made:
            with suppress(OSError):
                path.rmdir()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs. The system lets go when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            f"another run is writing to {folder}; wait until it has ended, or give another --out"
        ) from None
    except OSError:
        pass  # Some network file systems lock no folders.
    try:
        yield
    finally:
        os.close(descriptor)


def disk_trouble(error: BaseException | None) -> str | None:
    """What the disk refused, if that is behind an error, also where a library wrapped it; otherwise None."""
    full = os.strerror(errno.ENOSPC)
    while error is not None:
        # A lost connection is no reason to throw away what has been computed.
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            return error.strerror or str(error)
        if full in str(error):
            return full
        error = error.__cause__ or error.__context__
    return None


def _fingerprint(path: Path) -> str | None:
    """Fingerprint noted in a state or run file; empty for a damaged file, None where there is none."""
    try:
        return str(json.loads(path.read_bytes())["fingerprint"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return ""
