"""Header of a safetensors file: a strict parser that trusts nothing it reads.

A file is an unsigned little-endian 64-bit length n, n bytes of JSON, then the tensors' bytes. The JSON maps
names to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of the JSON;
`__metadata__` maps strings to strings. The tensors cover the rest of the file without gap or overlap.
"""

import gc
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float32

from dogfit.errors import InputError

# The limit of the safetensors library; a longer header is damage, not a network.
MAX_HEADER_BYTES = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# The dtypes kernels are read from; the last four by way of ml_dtypes.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "bfloat16",
          "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
          "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}  # fmt: skip
# Types of the companions of a weight, and of numbers that mean something with a scale only.
COMPANIONS = FLOATS | {"BOOL": "<u1", "U8": "<u1", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
                       "F8_E8M0": "float8_e8m0fnu", "F4": "float4_e2m1fn"}  # fmt: skip
LOW_BIT = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a header."""

    name: str
    dtype: str
    """Type as safetensors names it, a key of BITS."""
    shape: tuple[int, ...]
    start: int
    """Position of the first byte in the file."""
    stop: int
    """Position after the last byte in the file."""

    @property
    def numpy_dtype(self) -> np.dtype:
        """Type of the stored numbers; `dtype` must be a key of COMPANIONS."""
        name = COMPANIONS[self.dtype]
        if name.startswith("<"):
            return np.dtype(name)
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))

    @property
    def parts(self) -> tuple["Tensor", ...]:
        """Tensors of the file that the values are made of: this one."""
        return (self,)

    @property
    def stored_dtype(self) -> str:
        """Type in the file."""
        return self.dtype

    def decode(self, *contents: bytes) -> Float32[np.ndarray, "..."]:
        """Convert the tensor's bytes to float32.

        Args:
          contents: all bytes of each of `parts`; `dtype` must be a key of COMPANIONS.

        Returns:
          An array of shape `shape`; float64 beyond float32 becomes infinite.
        """
        (content,) = contents
        if self.dtype == "F4":  # two to a byte, the first one in the lower half
            content = np.frombuffer(content, np.uint8)
            content = np.stack([content & 15, content >> 4], axis=-1).tobytes()
        with np.errstate(over="ignore"):
            return np.frombuffer(content, self.numpy_dtype).astype(np.float32).reshape(self.shape)

    def encode(self, contents: Sequence[bytes], values: Float32[np.ndarray, "..."]) -> list[bytes]:
        """Store other values; those that stay the same keep their bytes.

        Args:
          contents: all bytes of each of `parts`; `dtype` must be a key of FLOATS.
          values: an array of shape `shape`.

        Returns:
          New bytes of each part.
        """
        (content,) = contents
        stored = np.frombuffer(content, self.numpy_dtype).copy()
        changed = (values != self.decode(content)).reshape(-1)
        with np.errstate(over="ignore"):
            stored[changed] = values.reshape(-1)[changed].astype(self.numpy_dtype)
        return [stored.tobytes()]


@dataclass(frozen=True)
class Header:
    """Names, types, shapes and places of all tensors of one file."""

    tensors: Mapping[str, Tensor]
    """Tensor name -> its entry, in the order of the file."""
    metadata: Mapping[str, str]
    """Strings of `__metadata__`."""
    file_size: int
    """Bytes of the whole file."""


def header_length(prefix: bytes, file_size: int, where: str) -> int:
    """Compute the length of the JSON from the beginning of the file.

    Args:
      prefix: the first 8 bytes or more, all of them if the file is shorter.
      file_size: bytes of the whole file.
      where: the file as messages should name it.

    Returns:
      Bytes of the JSON, which begins at byte 8.

    Raises:
      InputError: if this cannot be a safetensors file.
    """
    if prefix.startswith(b"version "):
        raise InputError(
            f"{where}: a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
        )
    if len(prefix) < 8:
        raise InputError(f"{where}: not safetensors: {file_size} bytes, too short for a header")
    length = int.from_bytes(prefix[:8], "little")
    if length > min(MAX_HEADER_BYTES, file_size - 8):
        # Tested only here: a sound length may start with the same bytes as a pickle.
        if prefix.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")):
            raise InputError(f"{where}: holds a Python pickle, not safetensors. {conversion_hint(where)}")
        raise InputError(
            f"{where}: not safetensors, or truncated: the header claims {length} bytes "
            f"in a file of {file_size} (at most {MAX_HEADER_BYTES} are allowed); fetch or convert it again"
        )
    return length


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the search for cyclic garbage, which takes as long as reading hundreds of thousands of names."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@collector_paused()
def parse_header(text: bytes, file_size: int, where: str) -> Header:
    """Read the JSON of a header and check every claim it makes.

    Args:
      text: the JSON's bytes, without the 8 bytes of its length.
      file_size: bytes of the whole file.
      where: the file as messages should name it.

    Returns:
      The header; its tensors cover the rest of the file without gap or overlap.

    Raises:
      InputError: if the JSON is invalid, a dtype is unknown, or the tensors do not exactly fill the file.
    """

    def damaged(what: str) -> InputError:
        return InputError(f"{where}: damaged safetensors header: {what}; fetch or convert it again")

    try:
        if not text.startswith(b"{"):
            raise damaged("it does not start with '{'")
        entries = json.loads(text.decode(), object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
        metadata = entries.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if type(metadata) is not dict or not all(type(value) is str for value in metadata.values()):
            raise damaged("__metadata__ must map strings to strings")
        first = 8 + len(text)
        tensors = [_tensor(name, entry, first) for name, entry in entries.items()]
        # A lone surrogate is valid in JSON's escapes and cannot be printed.
        "".join([*entries, *metadata, *metadata.values()]).encode()
    except (ValueError, RecursionError) as error:
        raise damaged(str(error)) from error
    misplaced, expected = _follow_each_other(tensors, first)
    if misplaced is not None:
        kind = "overlaps the tensor before it" if misplaced.start < expected else "leaves a gap before it"
        raise damaged(f"tensor {misplaced.name!r} {kind} (byte {misplaced.start}, expected {expected})")
    if expected != file_size:
        state = "truncated" if expected > file_size else "followed by bytes no tensor owns"
        raise InputError(
            f"{where}: {state}: the header accounts for {expected} bytes, the file has {file_size}; "
            "fetch or convert it again"
        )
    return Header({tensor.name: tensor for tensor in tensors}, metadata, file_size)


def conversion_hint(where: str, download: str = "") -> str:
    """Write the command that turns a file of another format into safetensors.

    Args:
      where: the file.
      download: command that brings the file there first; empty for a file on this machine.

    Returns:
      A sentence that ends with the command, all in one line.
    """
    return (
        "dogfit never loads pickles, which can run any code, and reads nothing but safetensors. To convert a "
        f"file you trust: {download and f'{download}; then: '}python -m dogfit.convert {shlex.quote(where)}"
    )


def _tensor(name: str, entry: Any, first: int) -> Tensor:
    if type(entry) is not dict or not entry.keys() >= _ENTRY_KEYS:
        raise ValueError(f"entry {name!r} must hold dtype, shape and data_offsets")
    dtype, sizes, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or dtype not in BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {str(dtype)[:40]!r}")
    try:
        if type(sizes) is not list or type(offsets) is not list:
            raise TypeError("expected lists")
        shape, count = _shape(*sizes)
        begin, end = offsets
        if not (type(begin) is type(end) is int and 0 <= begin < 2**63 and 0 <= end < 2**63):
            raise ValueError("expected non-negative integers")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"tensor {name!r}: shape and data_offsets must be lists of non-negative integers"
        ) from error
    if (end - begin) * 8 != count * BITS[dtype]:
        raise ValueError(f"tensor {name!r}: {dtype} of shape {sizes} does not take {end - begin} bytes")
    return Tensor(name, dtype, shape, first + begin, first + end)


_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


# Typed, since true and 1.0 equal 1 to Python. Most tensors of a file have one of few shapes.
@lru_cache(maxsize=1 << 12, typed=True)
def _shape(*sizes: Any) -> tuple[tuple[int, ...], int]:
    """Check the sizes of axes; return them with the number of elements."""
    if not all(type(size) is int and 0 <= size < 2**63 for size in sizes):
        raise ValueError("expected non-negative integers")
    return sizes, math.prod(sizes)


def _follow_each_other(tensors: Sequence[Tensor], first: int) -> tuple[Tensor | None, int]:
    """Find the first tensor, by place, that does not begin where the one before it ends.

    Returns:
      That tensor, or None, and where it should begin; or where the last one ends.
    """
    starts, stops = (
        np.array([getattr(tensor, end) - first for tensor in tensors], np.int64) for end in ("start", "stop")
    )
    order = np.lexsort((stops, starts))
    expected = np.concatenate([[0], stops[order]])
    wrong = np.flatnonzero(starts[order] != expected[:-1])
    place = int(wrong[0]) if len(wrong) else len(tensors)
    return tensors[order[place]] if len(wrong) else None, first + int(expected[place])


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name appears twice")
    return entries


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
