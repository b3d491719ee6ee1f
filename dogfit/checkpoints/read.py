"""Headers of an opened checkpoint, and the taps of the depthwise layers that they list."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from dogfit.checkpoints.detect import Depthwise, Findings, LeftOut, find_depthwise
from dogfit.checkpoints.effective import effective_tensors
from dogfit.checkpoints.files import ReadCallback, read_header
from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.open import Checkpoint
from dogfit.checkpoints.patterns import matching_names
from dogfit.errors import InputError
from dogfit.kernelset.layers import Source


@dataclass(frozen=True)
class Contents:
    """Tensors of a checkpoint, and which of them are depthwise kernels."""

    tensors: Mapping[str, Tensor]
    """Name -> tensor as the network uses it; what the network computes is an `EffectiveTensor`."""
    file_of: Mapping[str, str]
    """Name of each part of a tensor -> name of its file."""
    metadata: Mapping[str, str]
    """Metadata of all files."""
    findings: Findings
    """Depthwise layers."""
    included: Collection[str] = ()
    """Names that an include pattern matches."""
    notes: tuple[str, ...] = ()
    """Remarks on the files, in words."""


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
    omitted: list[str] = []
    promised = checkpoint.index.weight_map if checkpoint.index else None
    for name, reader in checkpoint.files.items():
        header = read_header(reader)
        metadata |= header.metadata
        if promised is None:
            tensors |= header.tensors
            file_of |= dict.fromkeys(header.tensors, name)
            continue
        for tensor in header.tensors.values():
            if promised.get(tensor.name) == name:
                tensors[tensor.name], file_of[tensor.name] = tensor, name
            elif tensor.name not in promised:
                omitted.append(tensor.name)
    if absent := sorted(set(promised or ()) - set(tensors)):
        raise InputError(
            f"{checkpoint.model}: the index promises {len(absent)} tensors its shards do not hold, "
            f"such as {absent[0]!r}; fetch the checkpoint again"
        )
    used, unknown = effective_tensors(tensors)
    included, excluded = meant_tensors(used, include), meant_tensors(used, exclude)
    findings = find_depthwise(
        used,
        order=_stated_order(metadata),
        channels_first_3d=_states_channels_first(metadata),
        include=list(included),
        exclude=list(excluded),
    )
    unknown = [LeftOut(*item) for item in unknown if _may_be_depthwise(item.tensor)]
    findings = replace(findings, left_out=(*findings.left_out, *unknown))
    notes = (*checkpoint.notes, *_omitted_by_index(checkpoint, omitted))
    return Contents(used, file_of, metadata, findings, included, notes)


def meant_tensors(tensors: Mapping[str, Tensor], patterns: Sequence[str]) -> set[str]:
    """Find the tensors that patterns mean, by their own names or those of their parts.

    Args:
      tensors: tensors as the network uses them, by name.
      patterns: names or patterns, as for `matching_names`.

    Returns:
      Names of the tensors.
    """
    if not patterns:
        return set()
    parts = {part.name: name for name, tensor in tensors.items() for part in tensor.parts}
    return {parts.get(name, name) for name in matching_names({**parts, **tensors}, patterns)}


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
    contents_of = read_parts(checkpoint, contents, [layer.tensor for layer in layers], on_read)
    kernels = {}
    for layer in layers:
        parts = [contents_of.pop(part.name) for part in layer.tensor.parts]
        kernels[layer.tensor.name] = layer.kernels(*parts)
    return kernels


def read_parts(
    checkpoint: Checkpoint, contents: Contents, tensors: Sequence[Tensor], on_read: ReadCallback | None = None
) -> dict[str, bytes]:
    """Read the bytes of tensors, and nothing else of their files.

    Args:
      checkpoint: the opened checkpoint.
      contents: its contents.
      tensors: some of its tensors.
      on_read: called with the number of bytes of every piece that was read.

    Returns:
      Name of each part of the tensors -> its bytes.

    Raises:
      InputError: if a file cannot be read.
      HubError: if the hub cannot be reached or refuses.
    """
    wanted = {part.name: part for tensor in tensors for part in tensor.parts}
    found: dict[str, bytes] = {}
    for file, reader in checkpoint.files.items():
        here = [part for name, part in wanted.items() if contents.file_of[name] == file]
        if here:
            spans = [(part.start, part.stop) for part in here]
            found |= zip((part.name for part in here), reader.read(spans, on_read), strict=True)
    return found


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


def _may_be_depthwise(tensor: Tensor) -> bool:
    """True for a tensor with an axis of length 1 beside those of the taps."""
    return len(tensor.shape) in (3, 4) and 1 in tensor.shape and max(tensor.shape[-2:]) > 1


def _omitted_by_index(checkpoint: Checkpoint, omitted: Sequence[str]) -> tuple[str, ...]:
    if not omitted:
        return ()
    return (
        f"{checkpoint.model}: the index omits {len(omitted)} tensors that its files hold, such as "
        f"{omitted[0]!r}; they are not read, and the network may be incomplete",
    )


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
