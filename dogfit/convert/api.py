"""Conversion of one file to safetensors, whatever its format."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dogfit.atomic_write import write_atomically
from dogfit.checkpoints.files import OTHER_FORMATS, PICKLES, SUFFIX
from dogfit.convert import torch_script
from dogfit.convert.flax_file import read_msgpack
from dogfit.convert.hdf5 import WEIGHTS_IN_ARCHIVE, read_hdf5, read_keras
from dogfit.convert.numpy_file import read_npz
from dogfit.convert.onnx_file import read_onnx
from dogfit.convert.tflite_file import read_tflite
from dogfit.convert.weights import Weights
from dogfit.errors import DogfitError, InputError, OutputError

READERS: Mapping[str, Callable[[Path], Weights]] = {
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".keras": read_keras,
    ".msgpack": read_msgpack,
    ".npz": read_npz,
    ".onnx": read_onnx,
    ".tflite": read_tflite,
}


@dataclass(frozen=True)
class Converted:
    """A file that was converted."""

    path: Path
    """The safetensors file."""
    n_tensors: int
    """Number of tensors written."""
    taken: str
    """Keys of the part that was taken, joined by dots; empty for the whole file."""
    left: Mapping[str, str]
    """Parts that were left out -> why."""


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    average: bool = False,
    python: str | Path | None = None,
) -> Converted:
    """Write the weights in a file of another format as safetensors.

    PyTorch's pickles are loaded with `weights_only=True` in a process of its own, so that only that process
    needs PyTorch. In nested dictionaries the part that holds the weights is taken.

    Args:
      source: PyTorch's `.pth`, `.pt`, `.bin`, `.ckpt` and the like; `.onnx`, `.tflite`, `.h5`, `.keras`,
        `.npz` or `.msgpack`.
      out: file to write; by default beside the source, under its name with another ending.
      average: take a moving average of the weights where the file has one besides the plain weights.
      python: Python, 3.11 or later, that has PyTorch and safetensors, if this one has not.

    Returns:
      What was written, taken and left.

    Raises:
      InputError: if the file is missing, damaged, of an unknown format or without tensors.
      OutputError: if `out` exists.
      DogfitError: if the file cannot be written.
    """
    path = Path(source).expanduser()
    kind = _kind(path)
    target = Path(out).expanduser() if out is not None else _beside(path)
    if target.exists():
        raise OutputError(f"{target} exists; give another place: python -m dogfit.convert FILE OUT")
    found: dict[str, Any] = {}

    def write(part: Path) -> None:
        found.update(
            _run_torch(path, part, average, python or sys.executable)
            if kind in PICKLES
            else _write_weights(path, part, READERS[kind](path))
        )

    try:
        write_atomically(target, write)
    except OSError as error:
        raise DogfitError(f"could not write {target}: {error.strerror or error}") from error
    return Converted(target, found["count"], found["taken"], found["left"])


def _kind(path: Path) -> str:
    """Ending of the format that a file has, by its content, or else by its name.

    Raises:
      InputError: if there is no file, or it is of another format.
    """
    if not path.is_file():
        what = "a folder; give a file in it" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    suffix = path.suffix.lower()
    if start.startswith(b"\x89HDF\r\n"):
        return ".h5"
    if start[4:8] == b"TFL3":
        return ".tflite"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if WEIGHTS_IN_ARCHIVE in names:
            return ".keras"
        if names and all(name.endswith(".npy") for name in names):
            return ".npz"
        return ".pt"
    if start[8:9] == b"{":
        raise InputError(f"{path}: holds safetensors already; name it *{SUFFIX} and read it as it is")
    if suffix in READERS or suffix in PICKLES:
        return suffix
    if start.startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05")):
        return ".pt"
    named = f" ({OTHER_FORMATS[suffix]})" if suffix in OTHER_FORMATS else ""
    raise InputError(
        f"{path}: not of a format that is converted{named}; those are PyTorch's ({', '.join(PICKLES)}) and "
        f"{', '.join(READERS)}"
    )


def _beside(path: Path) -> Path:
    """File beside another one, under its name with the ending of safetensors."""
    stem = path.with_suffix("") if path.suffix.lower() == ".tar" else path
    return stem.with_suffix(SUFFIX)


def _run_torch(path: Path, part: Path, average: bool, python: str | Path) -> dict[str, Any]:
    """Convert a pickle in a process of its own."""
    words = [str(python), "-P", str(torch_script.__file__), str(path.resolve()), str(part.resolve())]
    try:
        done = subprocess.run(
            [*words, *(["--average"] if average else [])], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise InputError(f"cannot run {python}: {error.strerror or error}") from error
    try:
        record = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["it ended without a word"]
        raise InputError(f"{path}: PyTorch could not convert it: {last[0]}") from None
    if "error" in record:
        raise InputError(f"{path}: {record['error']}")
    return record


def _write_weights(path: Path, part: Path, weights: Weights) -> dict[str, Any]:
    """Write tensors that were read here."""
    from safetensors.numpy import save_file

    left = dict(weights.left)
    tensors: dict[str, np.ndarray] = {}
    for name, values in weights.tensors.items():
        dtype = values.dtype
        if dtype.name == "bfloat16" or (dtype.kind in "biuf" and dtype.itemsize <= 8):
            tensors[name] = np.ascontiguousarray(values, dtype.newbyteorder("<"))
        else:
            left[name] = f"of type {dtype}, which is not converted"
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    order = [name for name in weights.order if name in tensors]
    save_file(tensors, part, {"layer_order": json.dumps(order)} if order else None)
    return {"taken": "", "left": left, "count": len(tensors)}
