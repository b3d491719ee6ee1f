"""Copies of files with some bytes exchanged; all of them appear, or none."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dogfit.atomic_write import write_all_atomically
from dogfit.errors import DogfitError


@dataclass(frozen=True)
class Copy:
    """A file to copy, and bytes to write over the copy."""

    source: Path
    """File to read."""
    target: Path
    """File to write."""
    patches: Mapping[int, bytes]
    """Position in the file -> bytes to put there."""


def write_copies(copies: Sequence[Copy]) -> None:
    """Write every copy next to its place, then rename them all, in the order given.

    Files are copied by the system, so memory holds the patches alone.

    Args:
      copies: at least one.

    Raises:
      DogfitError: if a file cannot be written; nothing of any copy is left then.
    """
    try:
        write_all_atomically({copy.target: partial(_write_copy, copy) for copy in copies})
    except OSError as error:
        raise DogfitError(
            f"could not write to {copies[0].target.parent}: {error.strerror or error}"
        ) from error


def _write_copy(copy: Copy, path: Path) -> None:
    shutil.copyfile(copy.source, path)
    with path.open("r+b") as file:
        for position, content in sorted(copy.patches.items()):
            file.seek(position)
            file.write(content)
