"""Copies of files with some bytes exchanged; all of them appear, or none."""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dogfit.errors import DogfitError


@dataclass(frozen=True)
class Copy:
    """A file to copy, and what to write over the copy: position -> bytes."""

    source: Path
    target: Path
    patches: Mapping[int, bytes]


def write_copies(copies: Sequence[Copy]) -> None:
    """Write every copy beside its place, then rename them all, in the order given.

    Files are copied by the system, so memory holds the patches alone.

    Raises:
      DogfitError: if a file cannot be written; nothing of any copy is left then.
    """
    beside = [copy.target.with_name(f".{copy.target.name}.{os.getpid()}.part") for copy in copies]
    made = _make_folders(copy.target.parent for copy in copies)
    try:
        for copy, part in zip(copies, beside, strict=True):
            shutil.copyfile(copy.source, part)
            with part.open("r+b") as file:
                for position, content in sorted(copy.patches.items()):
                    file.seek(position)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for copy, part in zip(copies, beside, strict=True):
            part.replace(copy.target)
    except BaseException as error:
        for part in beside:
            part.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise DogfitError(
                f"could not write to {copies[0].target.parent}: {error.strerror or error}"
            ) from error
        raise


def _make_folders(folders: Iterable[Path]) -> list[Path]:
    """Make what is missing; return it, outermost first."""
    made = []
    for folder in folders:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            made.append(path)
    return made
