"""A part of the kernels that `load_each` finds, without the rest."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dogfit.checkpoints.detect import Depthwise
from dogfit.checkpoints.load import Checkpoint, Located, fetch, locate, open_checkpoint
from dogfit.errors import InputError
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer


def load_shard(
    sources: Sequence[str | Path],
    layers: Sequence[Sequence[str]],
    share: Callable[[int], slice],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
) -> KernelSet:
    """Some rows of each size; of tensors that hold none of them nothing is read.

    Args:
      sources: as `load_kernels` takes them.
      layers: names of the layers of each source, as they come in the sets of `load_each`.
      share: given how many kernels of one size there are in all, which rows of them to read.

    Returns:
      KernelSet whose groups hold these rows, for every size, be it none; its layers count them alone.

    Raises:
      InputError: if a source is missing or damaged, or has no such layer.
      HubError: if the hub cannot be reached or refuses.
    """
    opened = []
    for source, names in zip(sources, layers, strict=True):
        checkpoint = open_checkpoint(source, offline)
        located = locate(checkpoint, include, exclude)
        opened.append((checkpoint, located, _named(checkpoint, located, names)))
    total = Counter()
    for _, _, found in opened:
        for layer in found:
            total[layer.size] += layer.channels
    wanted = {size: share(n) for size, n in total.items()}
    pairs = [(_part(size, 0), np.zeros((0, size, size), np.float32)) for size in total]
    seen = Counter()
    for checkpoint, located, found in opened:
        cuts: dict[str, slice] = {}
        for layer in found:
            rows, start = wanted[layer.size], seen[layer.size]
            cut = slice(max(rows.start - start, 0), min(rows.stop - start, layer.channels))
            if cut.start < cut.stop:
                cuts[layer.tensor.name] = cut
            seen[layer.size] += layer.channels
        reader_of = {name: checkpoint.files[file] for name, file in located.file_of.items()}
        read = [layer for layer in found if layer.tensor.name in cuts]
        kernels = fetch(read, reader_of, checkpoint.model, None)
        for layer in read:
            taps = kernels.pop(layer.tensor.name)[cuts[layer.tensor.name]].copy()
            pairs.append((_part(layer.size, len(taps), layer, checkpoint.model), taps))
    return KernelSet.from_layers(pairs)


def _named(checkpoint: Checkpoint, located: Located, names: Sequence[str]) -> list[Depthwise]:
    by_name = {layer.tensor.name: layer for layer in located.findings.layers}
    if absent := [name for name in names if name not in by_name]:
        raise InputError(
            f"{checkpoint.model}: no depthwise layer {absent[0]!r}, which another process has read"
        )
    return [by_name[name] for name in names]


def _part(size: int, channels: int, layer: Depthwise | None = None, model: str = "") -> Layer:
    name, dtype = (layer.tensor.name, layer.tensor.dtype) if layer else ("", "F32")
    return Layer(name, model, 0, None, None, size, channels, dtype)
