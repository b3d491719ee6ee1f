"""The one way a file is written: whole, or not at all, also when the machine loses power."""

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

Content = bytes | Callable[[Path], object]
"""Content of a file: its bytes, or a function that writes the file at the path it is given."""

# How file systems say that a folder cannot be synchronized.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def write_atomically(path: Path, content: Content) -> None:
    """Write one file; readers see the old file or the new one, never a part of it.

    Missing folders are made. A file that is replaced keeps its mode; a new one gets the mode of any new file,
    whatever the function that writes it does.

    Args:
      path: the file.
      content: its bytes, or a function that writes a file at the path it is given, next to `path`.

    Raises:
      OSError: if the file cannot be written; nothing of it is left then, and an older file is untouched.
    """
    write_all_atomically({path: content})


def write_all_atomically(contents: Mapping[Path, Content]) -> None:
    """Write several files next to their places, then rename all of them, in the order given.

    Args:
      contents: what each file shall hold, as for `write_atomically`.

    Raises:
      OSError: if a file cannot be written; none has been renamed then, and folders made for them are gone.
    """
    unique = f"{os.getpid()}-{threading.get_ident()}"
    parts = {path: path.with_name(f".{path.name}.{unique}.part") for path in contents}
    made: list[Path] = []
    try:
        made = make_folders(path.parent for path in contents)
        for path, content in contents.items():
            _write_part(parts[path], content, path)
        for path, part in parts.items():
            part.replace(path)
    except BaseException:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
        remove_folders(made)
        raise
    for folder in {path.parent for path in contents}:
        sync_folder(folder)


def _write_part(part: Path, content: Content, path: Path) -> None:
    part.touch()
    # Some libraries put a file of their own in place of this one, that only its owner may read.
    mode = (path if path.exists() else part).stat().st_mode
    if isinstance(content, bytes):
        part.write_bytes(content)
    else:
        content(part)
    part.chmod(mode)
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders.
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def make_folders(folders: Iterable[Path]) -> list[Path]:
    """Make the folders that are missing.

    Returns:
      Those that were made, outermost first, for `remove_folders`.
    """
    made: list[Path] = []
    try:
        for folder in folders:
            for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
                path.mkdir(exist_ok=True)
                made.append(path)
    except OSError:
        remove_folders(made)
        raise
    return made


def remove_folders(made: list[Path]) -> None:
    """Remove folders that `make_folders` made, innermost first, unless something lies in them."""
    for path in reversed(made):
        with suppress(OSError):
            path.rmdir()
