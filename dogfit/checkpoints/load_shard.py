"""Part of the kernels that `load_each` finds, for one of several processes."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dogfit.checkpoints.detect import Depthwise
from dogfit.checkpoints.open import Checkpoint, open_checkpoint
from dogfit.checkpoints.read import Contents, read_contents, read_kernels, source_record
from dogfit.errors import InputError
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer


def load_shard(
    sources: Sequence[str | Path],
    layers: Sequence[Sequence[str]],
    rows: Callable[[int], slice],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
) -> KernelSet:
    """Read some rows of each kernel size; of tensors that hold none of them, nothing is read.

    Args:
      sources: files, folders or repositories, as `load_kernels` takes them.
      layers: names of the layers of each source, in the order of the sets of `load_each`.
      rows: maps the number of kernels of one size to the rows of them to read.
      include: as in `load_kernels`.
      exclude: as in `load_kernels`.
      offline: as in `load_kernels`.

    Returns:
      KernelSet whose groups hold these rows, with a group for every size even if it is empty; its layers
      count these rows alone, and `sources` the bytes that were read.

    Raises:
      InputError: if a source is missing or damaged, or has no such layer.
      HubError: if the hub cannot be reached or refuses.
    """
    opened: list[tuple[Checkpoint, Contents, list[Depthwise]]] = []
    for source, names in zip(sources, layers, strict=True):
        checkpoint = open_checkpoint(source, offline=offline)
        contents = read_contents(checkpoint, include, exclude)
        opened.append((checkpoint, contents, _layers_by_name(checkpoint, contents, names)))
    total = Counter()
    for _, _, found in opened:
        for layer in found:
            total[layer.size] += layer.channels
    wanted = {size: rows(n) for size, n in total.items()}
    # An empty layer of each size first, so that every size has a group.
    pairs = [(_empty_layer(size), np.zeros((0, size, size), np.float32)) for size in total]
    first_row = Counter()
    for checkpoint, contents, found in opened:
        cuts: dict[str, slice] = {}
        for layer in found:
            start, size = first_row[layer.size], layer.size
            cut = slice(max(wanted[size].start - start, 0), min(wanted[size].stop - start, layer.channels))
            if cut.start < cut.stop:
                cuts[layer.tensor.name] = cut
            first_row[size] += layer.channels
        needed = [layer for layer in found if layer.tensor.name in cuts]
        kernels = read_kernels(checkpoint, contents, needed)
        for layer in needed:
            name = layer.tensor.name
            taps = kernels.pop(name)[cuts[name]].copy()
            dtype = layer.tensor.stored_dtype
            part = Layer(name, checkpoint.model, 0, None, None, layer.size, len(taps), dtype)
            pairs.append((part, taps))
    return KernelSet.from_layers(pairs, sources=[source_record(one, contents) for one, contents, _ in opened])


def _layers_by_name(checkpoint: Checkpoint, contents: Contents, names: Sequence[str]) -> list[Depthwise]:
    by_name = {layer.tensor.name: layer for layer in contents.findings.layers}
    if absent := [name for name in names if name not in by_name]:
        raise InputError(
            f"{checkpoint.model}: no depthwise layer {absent[0]!r}, which another process has read; "
            "give all processes the same files"
        )
    return [by_name[name] for name in names]


def _empty_layer(size: int) -> Layer:
    return Layer("", "", 0, None, None, size, 0, "F32")
