"""Checkpoint files: the one that a folder or path means, and byte ranges of it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

from dogfit.checkpoints.header import Header, conversion_hint, header_length, parse_header
from dogfit.errors import InputError

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar")
OTHER_FORMATS = {
    ".h5": "HDF5 (Keras)",
    ".hdf5": "HDF5 (Keras)",
    ".keras": "a Keras archive",
    ".msgpack": "Flax msgpack",
    ".onnx": "ONNX",
    ".gguf": "GGUF",
    ".pb": "a TensorFlow graph",
    ".tflite": "TensorFlow Lite",
    ".npz": "NumPy",
}
# What `python -m dogfit.convert` reads besides pickles.
CONVERTIBLE = (".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".tflite", ".npz")
MAX_INDEX_BYTES = 100_000_000
# How far below a folder safetensors files are looked for, to name them in a message.
MAX_DEPTH, MAX_FOLDERS = 3, 200

ReadCallback = Callable[[int], None]
"""Called with the number of bytes that have just been read."""


class Reader(Protocol):
    """A file of which single byte ranges can be read, local or remote."""

    @property
    def where(self) -> str:
        """The file as messages name it."""
        ...

    @property
    def bytes_read(self) -> int:
        """Bytes that were read so far."""
        ...

    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    def read(self, ranges: Sequence[tuple[int, int]], on_read: ReadCallback | None = None) -> list[bytes]:
        """Read half-open byte ranges `(start, stop)`; `on_read` is called after each piece."""
        ...

    def local(self) -> Path:
        """Find the whole file on this machine; it is downloaded first if it is elsewhere."""
        ...


@dataclass(eq=False)
class LocalFile:
    """A file on this machine."""

    path: Path
    bytes_read: int = 0
    """Bytes that were read so far."""

    @property
    def where(self) -> str:
        """The file as messages name it."""
        return str(self.path)

    def size(self) -> int:
        """Bytes of the whole file.

        Raises:
          InputError: if the file cannot be looked up.
        """
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error

    def read(self, ranges: Sequence[tuple[int, int]], on_read: ReadCallback | None = None) -> list[bytes]:
        """Read byte ranges.

        Args:
          ranges: each `(start, stop)`, half open.
          on_read: called with the length of every range once it is read.

        Returns:
          The bytes of each range.

        Raises:
          InputError: if the file cannot be read or is shorter.
        """
        contents = []
        try:
            with self.path.open("rb") as file:
                for start, stop in ranges:
                    contents.append(self._read_range(file, start, stop))
                    if on_read:
                        on_read(stop - start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return contents

    def local(self) -> Path:
        """The file itself."""
        return self.path

    def _read_range(self, file: BinaryIO, start: int, stop: int) -> bytes:
        file.seek(start)
        content = file.read(stop - start)
        if len(content) != stop - start:
            raise InputError(f"{self.path}: ended at byte {start + len(content)} while being read")
        self.bytes_read += len(content)
        return content


def read_header(reader: Reader) -> Header:
    """Read and check the header of a safetensors file.

    Args:
      reader: the file.

    Raises:
      InputError: if it is not a sound safetensors file.
    """
    size = reader.size()
    (prefix,) = reader.read([(0, min(8, size))])
    length = header_length(prefix, size, reader.where)
    (text,) = reader.read([(8, 8 + length)])
    return parse_header(text, size, reader.where)


def choose_file(
    names: Sequence[str],
    where: str,
    subfolders: Callable[[], Sequence[str]],
    hint: Callable[[str], str],
) -> str:
    """Choose the file that holds the weights: `model.safetensors`, an index, or the only safetensors file.

    Args:
      names: file names at the top of the folder or repository.
      where: the folder as messages should name it.
      subfolders: finds the folders below that hold safetensors files; called where there is none here.
      hint: writes the command that converts the file of a name, see `conversion_hint`.

    Returns:
      One of the names.

    Raises:
      InputError: if there is none, or several and no way to tell which.
    """
    if "model.safetensors" in names:
        return "model.safetensors"
    names = [name for name in names if not name.startswith(".")]
    for suffix in (SUFFIX + INDEX_SUFFIX, INDEX_SUFFIX, SUFFIX):
        found = sorted(n for n in names if n.endswith(suffix) and not n.endswith(".bin" + INDEX_SUFFIX))
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{where}: holds {len(found)} candidates and no model.safetensors: {quote_names(found)}; "
                "pass the path of the one you mean"
            )
    if below := subfolders():
        raise InputError(
            f"{where}: no safetensors file here, but in its subfolders {quote_names(sorted(below))}; "
            "give one of them"
        )
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{where}: no safetensors file, only pickles ({quote_names(pickles)}). {hint(pickles[0])}"
        )
    other = sorted(name for name in names if PurePosixPath(name).suffix in OTHER_FORMATS)
    if other:
        raise InputError(
            f"{where}: no safetensors file; {quote_names(other)} is of a format the command does not read. "
            + (
                hint(other[0])
                if PurePosixPath(other[0]).suffix in CONVERTIBLE
                else "Save the weights as safetensors"
            )
        )
    raise InputError(f"{where}: no safetensors file; found {quote_names(sorted(names)) or 'nothing'}")


def read_index(index: Reader, exists: Callable[[str], bool]) -> dict[str, str]:
    """Read the `weight_map` of a checkpoint that is split into several files.

    Args:
      index: the `*.index.json`.
      exists: tells whether the folder holds a file of this name.

    Returns:
      Tensor name -> file name; every file exists and lies inside the folder.

    Raises:
      InputError: if the index is damaged, or names a file that is elsewhere, missing or no safetensors file.
    """
    where, size = index.where, index.size()
    if size > MAX_INDEX_BYTES:
        raise InputError(f"{where}: {size} bytes is too long for an index; fetch the checkpoint again")
    (content,) = index.read([(0, size)])
    try:
        weight_map = json.loads(content)["weight_map"]
        entries = list(weight_map.items())
        if not all(isinstance(file, str) for _, file in entries):
            raise TypeError("weight_map must map strings to strings")
        "".join(text for entry in entries for text in entry).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: damaged index, no usable weight_map: {error}") from error
    files = sorted(set(weight_map.values()))
    for file in files:
        _refuse_shard(file, where)
    missing = [file for file in files if not exists(file)]
    if missing or not files:
        raise InputError(
            f"{where}: {len(missing)} of {len(files)} shards are missing: {quote_names(missing)}; "
            "fetch the checkpoint again"
        )
    return weight_map


def _refuse_shard(file: str, where: str) -> None:
    """Raise unless an index may name this file: index files are untrusted text."""
    path, windows = PurePosixPath(file), PureWindowsPath(file)
    if path.is_absolute() or windows.drive or windows.root or "\\" in file or ".." in path.parts:
        raise InputError(f"{where}: refused: shard {file!r} lies outside the checkpoint's folder")
    if path.suffix in PICKLES:
        raise InputError(f"{where}: shard {file!r} is a pickle. {conversion_hint(file)}")
    if path.suffix != SUFFIX:
        raise InputError(f"{where}: shard {file!r} is not a safetensors file")


def find_local(path: Path) -> Path:
    """Find the file that a local path means.

    Args:
      path: a file, or a folder that holds one.

    Raises:
      InputError: if there is none that can be read.
    """
    try:
        if path.is_dir():
            if (path / "saved_model.pb").exists():
                raise InputError(f"{path}: a TensorFlow SavedModel; save its weights as safetensors")
            names = [p.name for p in path.iterdir() if not p.is_dir()]
            folder = path
            path = folder / choose_file(
                names,
                str(folder),
                lambda: _subfolders(folder),
                lambda name: conversion_hint(str(folder / name)),
            )
        if not path.exists():
            raise _missing(path)
        if not path.is_file():
            raise InputError(f"{path}: not a regular file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    refuse_format(path)
    return path


def _missing(path: Path) -> InputError:
    """Error for a path at which there is no file."""
    if path.is_symlink():
        return InputError(
            f"{path}: a link to a file that is missing; in a cache of the hub an incomplete download: "
            "fetch it again"
        )
    named = len(path.parts) == 1 and not path.suffix
    hint = "; repositories on the hub are named owner/name" if named else ""
    return InputError(f"{path}: no such file or folder{hint}")


def _subfolders(path: Path) -> list[str]:
    """Folders below a folder that hold safetensors files, as far as a short look finds them."""
    found: list[str] = []
    folders = [path]
    for _ in range(MAX_DEPTH):
        below = [entry for folder in folders for entry in _entries(folder) if entry.is_dir()]
        folders = sorted(below)[:MAX_FOLDERS]
        found += [
            folder.relative_to(path).as_posix()
            for folder in folders
            if any(entry.name.endswith(SUFFIX) for entry in _entries(folder))
        ]
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def refuse_format(path: PurePath, hint: str | None = None) -> None:
    """Refuse a file whose name says that it is no safetensors file.

    Args:
      path: the file, as messages should name it.
      hint: the command that converts it, see `conversion_hint`; by default that for a file at this path.

    Raises:
      InputError: if its format is another one; the message says how to convert it.
    """
    suffix, hint = path.suffix.lower(), hint or conversion_hint(str(path))
    if suffix in PICKLES:
        raise InputError(f"{path}: {suffix} files hold Python pickles. {hint}")
    if suffix in OTHER_FORMATS:
        hint = hint if suffix in CONVERTIBLE else "Save the weights as safetensors"
        raise InputError(f"{path}: {OTHER_FORMATS[suffix]}, which the command does not read. {hint}")


def quote_names(names: Sequence[str], limit: int = 6) -> str:
    """List names for a message.

    Args:
      names: the names.
      limit: how many of them to show.
    """
    # Quoted: names come from files and may hold control characters.
    shown = ", ".join(map(repr, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
