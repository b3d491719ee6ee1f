"""The folder a run writes to: results appear together, and stages are kept for the next run.

Everything a run computes lives in the hidden folder `.dogfit` inside the output folder: completed stages,
each under a key of exactly what it depends on, and the results being gathered. Publishing only renames, so
that it can fail neither half-way through a file nor for want of space; `run.json` comes last and marks a
finished run.

Stages stay after publishing: another run on the same inputs computes again only those whose key has changed.
There is one file for each stage, replaced when its key changes, and together they need about as much space as
the results. The folder `.dogfit` of a finished run can be deleted; the next run then computes all stages.
"""

import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from dogfit.atomic_write import Content, make_folders, remove_folders, sync_folder, write_atomically
from dogfit.errors import OutputError

RUN_FILE = "run.json"
RESULTS = (
    "kernels.parquet",
    "layers.parquet",
    "fits.safetensors",
    "autoencoder",
    "figures",
    "report.html",
    "summary.json",
    RUN_FILE,
)
"""Names of the results, in the order in which they are published."""

EXTRAS = ("replaced.safetensors", "replaced")
"""Results that are written on request, after the others; another run's results remove them."""

_HIDDEN = ".dogfit"
_KEY_DIGITS = 24


def checkpoints_folder(out: Path) -> Path:
    """Return the folder of all checkpoints of a run with this output folder."""
    return out / _HIDDEN / "checkpoints"


class Workspace:
    """Stages and results of one run in one output folder.

    Use as a context manager. When the body fails, completed stages stay for the next run, except when the
    disk failed: then everything unpublished is removed, which also gives the space back.

    Args:
      out: the output folder; made if absent.
      inputs: key of the inputs and of the settings that make it another run; see `dogfit.runtime.keys`.
      fingerprint: key of everything that the results depend on.
      overwrite: replace what another run left there, and compute every stage again.

    Attributes:
      finished: True if the folder holds the results of this very run.
      stages: names of the stages and results so far, each "made" or, if an earlier run made it, "kept".

    Raises:
      OutputError: on entering, if `out` is a file, holds results or stages of a run with other inputs, or if
        another run is writing to it.
    """

    def __init__(self, out: Path, inputs: str, fingerprint: str, *, overwrite: bool = False) -> None:
        self.out = out
        self.hidden = out / _HIDDEN
        self.finished = False
        self.stages: dict[str, Literal["made", "kept"]] = {}
        self._inputs, self._fingerprint = inputs, fingerprint
        self._overwrite = overwrite
        self._published: Mapping[str, str] = {}
        self._results: dict[str, str] = {}
        self._gathered = self.hidden / "results"
        self._made: list[Path] = []
        self._held = ExitStack()

    def __enter__(self) -> "Workspace":
        if self.out.exists() and not self.out.is_dir():
            raise OutputError(f"--out {self.out} is a file; give a folder, new or empty")
        self._made = make_folders([self.out])
        with ExitStack() as held:
            held.enter_context(_lock(self.out))
            self._open()
            if not self.finished:
                try:
                    self._clean()
                    self._write_state(published=bool(self._published))
                except OSError:
                    self._abandon()
                    raise
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._held:
            if error is not None and (disk_trouble(error) or not self._resumable):
                self._abandon()

    def _open(self) -> None:
        """Refuse the folder, or find what an earlier run with these inputs left there."""
        advice = "give another --out, or --overwrite to replace it"
        run, state = _read_record(self.out / RUN_FILE), _read_record(self.hidden / "state.json")
        ours = run is not None and run.get("inputs") == self._inputs
        begun = state is not None and state.get("inputs") == self._inputs
        if self._overwrite:
            # An interrupted run resumes; a published one starts again.
            if state is None or not begun or state.get("published"):
                shutil.rmtree(self.hidden, ignore_errors=True)
            return
        if run is not None and not ours:
            raise OutputError(f"{self.out} holds a run with other inputs or settings; {advice}")
        if state is not None and not begun:
            raise OutputError(f"{self.out} holds an unfinished run with other inputs or settings; {advice}")
        taken = [name for name in (*RESULTS, *EXTRAS) if (self.out / name).exists()]
        if taken and run is None and state is None:
            raise OutputError(f"{self.out} holds a {taken[0]} that no run of dogfit finished; {advice}")
        if run is not None:
            keys = run.get("results", {})
            self._published = {name: key for name, key in keys.items() if (self.out / name).exists()}
            self.finished = run.get("fingerprint") == self._fingerprint and self._published == keys

    def _clean(self) -> None:
        """Remove what a run that was killed left half-written."""
        shutil.rmtree(self._gathered, ignore_errors=True)
        for part in self.hidden.glob("**/.*.part"):
            part.unlink(missing_ok=True)

    def _write_state(self, *, published: bool) -> None:
        state = {"inputs": self._inputs, "published": published}
        write_atomically(self.hidden / "state.json", json.dumps(state).encode())

    @property
    def _resumable(self) -> bool:
        """True if a completed stage, or a checkpoint of one, waits for another run."""
        names = [path.name for path in self.hidden.iterdir()] if self.hidden.is_dir() else []
        return any(name not in ("state.json", "results") for name in names)

    def stage(self, name: str, key: str, content: Content) -> Path:
        """Find the file of a stage, or make it.

        Args:
          name: without a dot; the one file of this name is replaced when the key changes.
          key: of everything that the content depends on.
          content: the function that writes the file at the path it is given, or bytes.

        Returns:
          The file.
        """
        folder = self.hidden / "stages"
        path = folder / f"{name}.{key[:_KEY_DIGITS]}"
        kept = path.exists()
        if not kept:
            write_atomically(path, content)
            _remove_others(path)
        self.stages.setdefault(name, "kept" if kept else "made")
        return path

    def json_stage(self, name: str, key: str, make: Callable[[], Any]) -> Any:
        """Find what a stage made, or make it, for stages that make plain data.

        Args:
          name: as for `stage`.
          key: as for `stage`.
          make: returns data for JSON.

        Returns:
          The data, as JSON gives it back.
        """
        path = self.stage(name, key, lambda path: path.write_bytes(json.dumps(make()).encode()))
        return json.loads(path.read_bytes())

    def checkpoint_folder(self, name: str, key: str) -> Path:
        """Give a stage a folder for checkpoints of its own, kept until the results are published.

        Args:
          name: without a dot.
          key: of what the checkpoints depend on; those under other keys are removed.

        Returns:
          The folder, which may not exist yet.
        """
        path = checkpoints_folder(self.out) / f"{name}.{key[:_KEY_DIGITS]}"
        _remove_others(path)
        return path

    def result(self, name: str, key: str, content: Content) -> None:
        """Gather a result file, unless the published one has the same key; `publish` shows it.

        Args:
          name: one of `RESULTS`.
          key: of everything that the content depends on.
          content: as for `stage`.
        """
        if self._needed(name, key):
            write_atomically(self._gathered / name, content)

    def result_folder(self, name: str, key: str, fill: Callable[[Path], object]) -> None:
        """Gather a result that is a folder, unless the published one has the same key.

        Args:
          name: one of `RESULTS`.
          key: of everything that the folder depends on.
          fill: writes files into the folder it is given.
        """
        if self._needed(name, key):
            (self._gathered / name).mkdir(parents=True, exist_ok=True)
            fill(self._gathered / name)

    def _needed(self, name: str, key: str) -> bool:
        self._results[name] = key
        needed = self._published.get(name) != key
        self.stages[name] = "made" if needed else "kept"
        return needed

    def publish(self, about: Mapping[str, Any]) -> None:
        """Put the gathered results in place of older ones, `run.json` last.

        Args:
          about: what `run.json` says of the run besides its keys, its results and its stages.
        """
        keys = {"inputs": self._inputs, "fingerprint": self._fingerprint, "results": self._results}
        record = {**keys, "stages": self.stages, **about}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self._gathered / RUN_FILE, f"{text}\n".encode())
        old = self.hidden / "older"
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        kept = [name for name, state in self.stages.items() if name in RESULTS and state == "kept"]
        # The first to go and the last to come, so that no other state of the folder looks finished.
        for name in (*reversed(RESULTS), *(() if self._published else EXTRAS)):
            if (self.out / name).exists() and name not in kept:
                (self.out / name).rename(old / name)
        for name in RESULTS:
            if (self._gathered / name).exists():
                (self._gathered / name).rename(self.out / name)
        sync_folder(self.out)
        self._write_state(published=True)
        for folder in (old, self._gathered, checkpoints_folder(self.out)):
            shutil.rmtree(folder, ignore_errors=True)
        self.finished = True

    def _abandon(self) -> None:
        """Remove everything unpublished, and the folders this run made for it."""
        trained = checkpoints_folder(self.out).is_dir()
        shutil.rmtree(self.hidden, ignore_errors=True)
        if trained:
            # Orbax's threads go on writing for a moment after their error has been raised.
            for _ in range(15):
                time.sleep(0.1)
                shutil.rmtree(self.hidden, ignore_errors=True)
        remove_folders(self._made)


def _remove_others(path: Path) -> None:
    """Remove the files and folders of a stage under other keys."""
    for other in path.parent.glob(f"{glob.escape(path.stem)}.*"):
        if other != path:
            with suppress(OSError):
                shutil.rmtree(other) if other.is_dir() else other.unlink()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
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
    """Say what the disk refused, if that is the cause of an error, also where a library wrapped it.

    Args:
      error: what was raised.

    Returns:
      The system's words, or None if the disk was not the cause.
    """
    full = os.strerror(errno.ENOSPC)
    while error is not None:
        # A lost connection is no reason to throw away what has been computed.
        if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
            return error.strerror or str(error)
        if full in str(error):
            return full
        error = error.__cause__ or error.__context__
    return None


def _read_record(path: Path) -> dict[str, Any] | None:
    """Read a state or run file; empty for a damaged file, None where there is none."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
