"""Saved form of a kernel set: one safetensors file, with what is known of the layers in its metadata."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dogfit.atomic_write import write_atomically
from dogfit.errors import DogfitError, InputError
from dogfit.kernelset.layers import Layer, Skipped, Source

FORMAT = "dogfit-kernelset-1"

LayerKernels = tuple[Layer, Float32[np.ndarray, "c k k"]]


@dataclass(frozen=True)
class Record:
    """Content of a saved kernel set."""

    layers: Sequence[Layer]
    """Layers in the order of the set."""
    kernels: Mapping[int, Float32[np.ndarray, "n k k"]]
    """Kernel size -> taps of all layers of that size, in their order."""
    sources: Sequence[Source]
    """Checkpoints that were read."""
    skipped: Sequence[Skipped]
    """Tensors that were left out."""
    notes: Sequence[str]
    """Choices made while reading."""

    def pairs(self) -> list[LayerKernels]:
        """List every layer with its taps `[channels, size, size]`.

        Raises:
          ValueError: if the layers do not account for every kernel.
        """
        start = dict.fromkeys(self.kernels, 0)
        pairs = []
        for layer in self.layers:
            first = start[layer.size]
            start[layer.size] = first + layer.channels
            pairs.append((layer, self.kernels[layer.size][first : first + layer.channels]))
        if any(start[size] != len(rows) for size, rows in self.kernels.items()):
            raise ValueError("the layers do not account for every kernel")
        return pairs


def write_record(path: Path, record: Record) -> None:
    """Write a kernel set; the file appears whole or not at all.

    Args:
      path: the file.
      record: the content.

    Raises:
      DogfitError: if the file cannot be written.
    """
    from safetensors.numpy import save

    about = {
        "layers": [asdict(layer) for layer in record.layers],
        "sources": [asdict(source) for source in record.sources],
        "skipped": [asdict(item) for item in record.skipped],
        "notes": list(record.notes),
    }
    tensors = {f"kernels.{size}": taps for size, taps in record.kernels.items()}
    content = save(tensors, {"format": FORMAT, "record": json.dumps(about)})
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DogfitError(f"{path}: could not write the kernels: {error.strerror or error}") from error


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Args:
      path: the file.

    Returns:
      The content; its layers account for every kernel.

    Raises:
      InputError: if the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a set written by KernelSet.save")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(
                    f"{path}: not a saved kernel set (no {FORMAT!r} in its metadata); "
                    "read a checkpoint with dogfit.load_kernels"
                )
            kernels = {int(name.removeprefix("kernels.")): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["record"])
        record = Record(
            [Layer(**layer) for layer in about["layers"]],
            kernels,
            [Source(**source) for source in about["sources"]],
            [Skipped(**{**item, "shape": tuple(item["shape"])}) for item in about["skipped"]],
            about["notes"],
        )
        record.pairs()
        return record
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged kernel set: {error}") from error
