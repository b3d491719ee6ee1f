"""Headers of an opened checkpoint, and the taps of the depthwise layers that they list."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Float32

from dogfit.checkpoints.detect import Depthwise, Findings, find_depthwise
from dogfit.checkpoints.files import ReadCallback, read_header
from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.open import Checkpoint
from dogfit.errors import InputError
from dogfit.kernelset.layers import Source


@dataclass(frozen=True)
class Contents:
    """Tensors of a checkpoint, and which of them are depthwise kernels."""

    tensors: Mapping[str, Tensor]
    """Tensor name -> its entry in a header."""
    file_of: Mapping[str, str]
    """Tensor name -> name of its file."""
    metadata: Mapping[str, str]
    """Metadata of all files."""
    findings: Findings
    """Depthwise layers."""


def read_contents(
    checkpoint: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Contents:
    """Read the headers of a checkpoint and find its depthwise kernels.

    Args:
      checkpoint: the opened checkpoint.
      include: patterns of tensors to take, see `load_kernels`.
      exclude: patterns of tensors to leave out, see `load_kernels`.

    Returns:
      All tensors, and which of them are depthwise.

    Raises:
      InputError: if a header is damaged, or a shard lacks a tensor that the index promises.
      HubError: if the hub cannot be reached or refuses.
    """
    tensors: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    metadata: dict[str, str] = {}
    promised = checkpoint.index.weight_map if checkpoint.index else None
    for name, reader in checkpoint.files.items():
        header = read_header(reader)
        metadata |= header.metadata
        for tensor in header.tensors.values():
            if promised is None or promised.get(tensor.name) == name:
                tensors[tensor.name], file_of[tensor.name] = tensor, name
    if absent := sorted(set(promised or ()) - set(tensors)):
        raise InputError(
            f"{checkpoint.model}: the index promises {len(absent)} tensors its shards do not hold, "
            f"such as {absent[0]!r}; fetch the checkpoint again"
        )
    findings = find_depthwise(
        tensors,
        order=_stated_order(metadata),
        channels_first_3d=_states_channels_first(metadata),
        include=include,
        exclude=exclude,
    )
    return Contents(tensors, file_of, metadata, findings)


def read_kernels(
    checkpoint: Checkpoint,
    contents: Contents,
    layers: Sequence[Depthwise],
    on_read: ReadCallback | None = None,
) -> dict[str, Float32[np.ndarray, "c k k"]]:
    """Read the taps of layers, and nothing else of their files.

    Args:
      checkpoint: the opened checkpoint.
      contents: its contents.
      layers: some of its depthwise layers.
      on_read: called with the number of bytes of every piece that was read.

    Returns:
      Tensor name -> taps `[channels, size, size]`.

    Raises:
      InputError: if a file cannot be read.
      HubError: if the hub cannot be reached or refuses.
    """
    kernels = {}
    for name, reader in checkpoint.files.items():
        here = [layer for layer in layers if contents.file_of[layer.tensor.name] == name]
        if not here:
            continue
        parts = reader.read([(layer.tensor.start, layer.tensor.stop) for layer in here], on_read)
        for layer, part in zip(here, parts, strict=True):
            kernels[layer.tensor.name] = layer.kernels(part)
    return kernels


def source_record(checkpoint: Checkpoint, contents: Contents) -> Source:
    """Make the record of a checkpoint and of the bytes that were read of it so far.

    Args:
      checkpoint: the opened checkpoint.
      contents: its contents.
    """
    return Source(
        checkpoint.model,
        checkpoint.revision,
        sum(reader.bytes_read for reader in checkpoint.files.values()),
        sum(reader.size() for reader in checkpoint.files.values()),
        checkpoint.license or contents.metadata.get("license"),
    )


def tied_names(kernels: Mapping[str, Float32[np.ndarray, "c k k"]]) -> dict[str, str]:
    """Find layers whose kernels are repeated: a layer used at several places is saved under each name.

    Args:
      kernels: tensor name -> taps `[channels, size, size]`.

    Returns:
      Name that repeats -> name that is kept, the deepest one, since it tells the place best.
    """
    same: dict[bytes, list[str]] = {}
    for name, taps in kernels.items():
        # Layers may be equal without being tied while they are untouched: all zero, or all ones.
        if np.ptp(taps) > 0:
            same.setdefault(sha256(str(taps.shape).encode() + taps.tobytes()).digest(), []).append(name)
    tied = {}
    for names in same.values():
        kept = max(names, key=lambda name: len(re.split(r"[./]", name)))
        tied |= {name: kept for name in names if name != kept}
    return tied


def _stated_order(metadata: Mapping[str, str]) -> dict[str, int] | None:
    """Place of each name by the metadata's `layer_order`, a JSON list of names; None without one."""
    try:
        names = json.loads(metadata.get("layer_order", ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return {name: place for place, name in enumerate(names)}


def _states_channels_first(metadata: Mapping[str, str]) -> bool:
    """True if the metadata says that tensors are (channels, height, width)."""
    return metadata.get("shape_convention", "").replace(" ", "").startswith("(channels,height,width)")
