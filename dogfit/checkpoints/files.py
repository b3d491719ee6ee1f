"""Checkpoint files on disk: which ones a path means, and ranges of bytes from them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

from dogfit.checkpoints.header import Header, conversion, header_length, parse_header
from dogfit.errors import InputError

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
Report = Callable[[int], None]
INDEX_SUFFIX = ".index.json"
MAX_INDEX = 100_000_000


class Reader(Protocol):
    """A file of which single byte ranges can be read, local or not."""

    @property
    def where(self) -> str:
        """The file as messages name it."""
        ...

    @property
    def bytes_read(self) -> int:
        """How much of it was read so far."""
        ...

    def size(self) -> int: ...

    def read(self, ranges: Sequence[tuple[int, int]], report: Report | None = None) -> list[bytes]:
        """The bytes of each half-open range `(start, stop)`; `report` hears of every piece's length."""
        ...

    def local(self) -> Path:
        """The whole file on this machine; fetched first if it is elsewhere."""
        ...


@dataclass(eq=False)
class LocalFile:
    """A file on this machine."""

    path: Path
    bytes_read: int = 0

    @property
    def where(self) -> str:
        return str(self.path)

    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, ranges: Sequence[tuple[int, int]], report: Report | None = None) -> list[bytes]:
        contents = []
        try:
            with self.path.open("rb") as file:
                for start, stop in ranges:
                    contents.append(self._range(file, start, stop))
                    if report:
                        report(stop - start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return contents

    def local(self) -> Path:
        return self.path

    def _range(self, file: BinaryIO, start: int, stop: int) -> bytes:
        file.seek(start)
        content = file.read(stop - start)
        if len(content) != stop - start:
            raise InputError(f"{self.path}: ended at byte {start + len(content)} while being read")
        self.bytes_read += len(content)
        return content


def read_header(reader: Reader) -> Header:
    """The checked header of a safetensors file."""
    size = reader.size()
    (prefix,) = reader.read([(0, min(8, size))])
    length = header_length(prefix, size, reader.where)
    (text,) = reader.read([(8, 8 + length)])
    return parse_header(text, size, reader.where)


def choose_file(names: Sequence[str], where: str) -> str:
    """Which file of a folder holds the weights: `model.safetensors`, an index, or the only safetensors file.

    Args:
      names: file names at the top of the folder or repository.
      where: the folder as messages should name it.

    Raises:
      InputError: if there is none, or several and no way to tell which.
    """
    if "model.safetensors" in names:
        return "model.safetensors"
    names = [name for name in names if not name.startswith(".")]
    for suffix in (".safetensors" + INDEX_SUFFIX, INDEX_SUFFIX, ".safetensors"):
        found = sorted(n for n in names if n.endswith(suffix) and not n.endswith(".bin" + INDEX_SUFFIX))
        if len(found) == 1:
            return found[0]
        if found:
            raise InputError(
                f"{where}: holds {len(found)} candidates and no model.safetensors: {_some(found)}; "
                "pass the path of the one you mean"
            )
    pickles = sorted(name for name in names if PurePosixPath(name).suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{where}: no safetensors file, only pickles ({_some(pickles)}). {conversion(pickles[0])}"
        )
    other = sorted(name for name in names if PurePosixPath(name).suffix in OTHER_FORMATS)
    if other:
        raise InputError(
            f"{where}: no safetensors file; {_some(other)} is of a format dogfit does not read. "
            "Save the weights as safetensors"
        )
    raise InputError(f"{where}: no safetensors file; found {_some(sorted(names)) or 'nothing'}")


def read_index(index: Reader, exists: Callable[[str], bool]) -> dict[str, str]:
    """The `weight_map` of a sharded checkpoint: tensor name -> shard file, all inside the folder and there.

    Raises:
      InputError: if the index is damaged, or names a file that is elsewhere, missing or no safetensors file.
    """
    where, size = index.where, index.size()
    if size > MAX_INDEX:
        raise InputError(f"{where}: {size} bytes is too long for an index")
    (content,) = index.read([(0, size)])
    try:
        weight_map = json.loads(content)["weight_map"]
        entries = list(weight_map.items())
        if not all(isinstance(shard, str) for _, shard in entries):
            raise TypeError("weight_map must map strings to strings")
        "".join(text for entry in entries for text in entry).encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}: damaged index, no usable weight_map: {error}") from error
    for shard in sorted(set(weight_map.values())):
        path, windows = PurePosixPath(shard), PureWindowsPath(shard)
        if path.is_absolute() or windows.drive or windows.root or "\\" in shard or ".." in path.parts:
            raise InputError(f"{where}: refused: shard {shard!r} lies outside the checkpoint's folder")
        if path.suffix in PICKLES:
            raise InputError(f"{where}: shard {shard!r} is a pickle. {conversion(shard)}")
        if path.suffix != ".safetensors":
            raise InputError(f"{where}: shard {shard!r} is not a safetensors file")
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not exists(shard)]
    if missing or not shards:
        raise InputError(f"{where}: {len(missing)} of {len(shards)} shards are missing: {_some(missing)}")
    return weight_map


def find_local(path: Path) -> Path:
    """The file that a local path means.

    Raises:
      InputError: if there is none that can be read.
    """
    try:
        if path.is_dir():
            if (path / "saved_model.pb").exists():
                raise InputError(f"{path}: a TensorFlow SavedModel; save its weights as safetensors")
            path = path / choose_file([p.name for p in path.iterdir() if not p.is_dir()], str(path))
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if not path.is_file():
            raise InputError(f"{path}: not a regular file")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    _refuse_format(path)
    return path


def _refuse_format(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise InputError(f"{path}: {suffix} files hold Python pickles. {conversion(str(path))}")
    if suffix in OTHER_FORMATS:
        raise InputError(
            f"{path}: {OTHER_FORMATS[suffix]}, which dogfit does not read; save the weights as safetensors"
        )


def _some(names: Sequence[str], limit: int = 6) -> str:
    # Quoted: names come from files and may hold control characters.
    shown = ", ".join(map(repr, names[:limit]))
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
