"""Kernels of all sizes, grouped by size, with the layer and channel of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float32

from dogfit.errors import InputError
from dogfit.kernelset.groups import Flag, KernelGroup, group_kernels
from dogfit.kernelset.layers import Layer, Skipped, Source
from dogfit.kernelset.storage import LayerKernels, Record, read_record, write_record

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True)
class KernelSet:
    """Kernels grouped by size, with the layer and channel of each.

    Build one with `dogfit.load_kernels`, `KernelSet.from_layers` or `KernelSet.load`.
    """

    layers: tuple[Layer, ...]
    """Layers in the order they were given; `KernelGroup.layer` counts them."""
    groups: Mapping[int, KernelGroup]
    """Kernel size -> its kernels, sizes ascending."""
    sources: tuple[Source, ...] = ()
    """Checkpoints that were read."""
    skipped: tuple[Skipped, ...] = ()
    """Tensors that resemble depthwise kernels and were left out."""
    notes: tuple[str, ...] = ()
    """Choices made while reading, in words."""

    @classmethod
    def from_layers(
        cls,
        pairs: Iterable[LayerKernels],
        *,
        sources: Sequence[Source] = (),
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> Self:
        """Make a set of layers and their kernels.

        Args:
          pairs: each a layer and its taps `[channels, size, size]`; their order is kept.
          sources: checkpoints that the layers come from.
          skipped: tensors that were left out.
          notes: choices made while reading, in words.

        Returns:
          The set; means, norms and flags are computed.

        Raises:
          ValueError: if kernels have another shape than their layer says.
        """
        pairs = list(pairs)
        rows: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, (layer, kernels) in enumerate(pairs):
            expected = (layer.channels, layer.size, layer.size)
            if kernels.shape != expected:
                raise ValueError(f"layer {layer.name!r}: kernels must be {expected}, got {kernels.shape}")
            rows.setdefault(layer.size, []).append((index, kernels))
        groups = {size: group_kernels(rows[size]) for size in sorted(rows)}
        return cls(
            tuple(layer for layer, _ in pairs),
            MappingProxyType(groups),
            tuple(sources),
            tuple(skipped),
            tuple(notes),
        )

    @property
    def n(self) -> int:
        """Number of kernels of all sizes."""
        return sum(layer.channels for layer in self.layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Kernel sizes, ascending."""
        return tuple(self.groups)

    @property
    def models(self) -> tuple[str, ...]:
        """Model names, in order of appearance."""
        return tuple(dict.fromkeys(layer.model for layer in self.layers))

    def kernels_of(self, layer: Layer) -> Float32[np.ndarray, "c k k"]:
        """Find the raw taps of one layer.

        Args:
          layer: one of `layers`.

        Returns:
          Taps `[channels, size, size]`.

        Raises:
          ValueError: if the layer is not in this set.
        """
        group = self.groups[layer.size]
        return group.kernels[group.layer == self.layers.index(layer)]

    def pairs(self) -> list[LayerKernels]:
        """List every layer with its raw taps `[channels, size, size]`, as `from_layers` takes them."""
        start = dict.fromkeys(self.groups, 0)
        pairs = []
        for layer in self.layers:
            first, stop = start[layer.size], start[layer.size] + layer.channels
            pairs.append((layer, self.groups[layer.size].kernels[first:stop]))
            start[layer.size] = stop
        return pairs

    def select(
        self,
        *,
        model: str | None = None,
        layer: str | None = None,
        size: int | None = None,
        stage: int | None = None,
    ) -> Self:
        """Keep the layers that match every condition given.

        Args:
          model: pattern for the model name; `*` and `?` as in file names.
          layer: pattern for the layer name.
          size: kernel size.
          stage: stage number.

        Returns:
          The layers that match, with their kernels, sources and skipped tensors.

        Raises:
          InputError: if no layer matches.

        Example:
          >>> import dogfit
          >>> from dogfit.embedded import PATH
          >>> kernels = dogfit.load_kernels(PATH)
          >>> kernels.select(stage=4).n
          192
          >>> [layer.name for layer in kernels.select(stage=4, layer="*.blocks.0.*").layers]
          ['stages.4.blocks.0.conv_dw.weight']
        """
        pairs = [
            (record, kernels)
            for record, kernels in self.pairs()
            if (model is None or fnmatchcase(record.model, model))
            and (layer is None or fnmatchcase(record.name, layer))
            and (size is None or record.size == size)
            and (stage is None or record.stage == stage)
        ]
        if not pairs:
            raise InputError(
                f"no layer matches model={model!r}, layer={layer!r}, size={size}, stage={stage}; "
                f"there are {len(self.layers)} layers of sizes {self.sizes} in {', '.join(self.models)}"
            )
        kept = {record.model for record, _ in pairs}
        return self.from_layers(
            pairs,
            sources=[source for source in self.sources if source.name in kept],
            skipped=[item for item in self.skipped if item.model in kept],
            notes=self.notes,
        )

    @classmethod
    def concatenate(cls, sets: Sequence[Self]) -> Self:
        """Join several sets in the order given.

        A model that holds a layer already present under the same model name is another copy; it is renamed
        `name (2)`, `name (3)`, ...

        Args:
          sets: the sets to join.

        Returns:
          One set of all their layers.
        """
        pairs, sources, skipped, notes = [], [], [], []
        seen: set[tuple[str, str]] = set()
        known: set[Skipped] = set()
        for part in sets:
            names = _free_names(part, seen)
            pairs += [(replace(layer, model=names[layer.model]), kernels) for layer, kernels in part.pairs()]
            new = [replace(source, name=names.get(source.name, source.name)) for source in part.sources]
            sources += [source for source in new if source not in sources]
            left = [replace(item, model=names.get(item.model, item.model)) for item in part.skipped]
            skipped += [item for item in left if item not in known]
            known.update(left)
            notes += [note for note in part.notes if note not in notes]
            seen |= {(names[layer.model], layer.name) for layer in part.layers}
        return cls.from_layers(pairs, sources=sources, skipped=skipped, notes=notes)

    def table(self) -> "polars.DataFrame":
        """Make a table with a row per kernel, in the order of the groups (by size, layer, channel).

        Returns:
          Columns model, layer, position, stage, block, channel, size, mean, norm, flag (its name).
        """
        import polars

        groups = list(self.groups.values())
        names = np.array([flag.name for flag in Flag], dtype=object)
        flags = [name for group in groups for name in names[group.flag]]

        def column(name: str, dtype: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, dtype), *(getattr(group, name) for group in groups)])

        place = polars.Series(column("layer", np.int32))

        def of_layer(name: str, values: list[Any], dtype: Any) -> polars.Series:
            return polars.Series(name, values, dtype).gather(place)

        text, whole = polars.String, polars.Int32
        return polars.DataFrame(
            [
                of_layer("model", [layer.model for layer in self.layers], text),
                of_layer("layer", [layer.name for layer in self.layers], text),
                of_layer("position", [layer.position for layer in self.layers], whole),
                of_layer("stage", [layer.stage for layer in self.layers], whole),
                of_layer("block", [layer.block for layer in self.layers], whole),
                polars.Series("channel", column("channel", np.int32)),
                of_layer("size", [layer.size for layer in self.layers], whole),
                polars.Series("mean", column("mean", np.float32)),
                polars.Series("norm", column("norm", np.float32)),
                polars.Series("flag", flags, text),
            ]
        )

    def save(self, path: str | Path) -> None:
        """Write the set as one safetensors file, which appears whole or not at all.

        Args:
          path: the file; one that exists is replaced.

        Raises:
          DogfitError: if the file cannot be written.

        Example:
          >>> import dogfit
          >>> from dogfit.embedded import PATH
          >>> dogfit.load_kernels(PATH).save("kernels.safetensors")
          >>> dogfit.KernelSet.load("kernels.safetensors").sizes
          (7,)
        """
        kernels = {size: group.kernels for size, group in self.groups.items()}
        write_record(Path(path), Record(self.layers, kernels, self.sources, self.skipped, self.notes))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a set that `save` wrote.

        Args:
          path: the file.

        Returns:
          The set as it was saved.

        Raises:
          InputError: if the file is missing, damaged or of another kind.

        Example:
          >>> import dogfit
          >>> from dogfit.embedded import PATH
          >>> kernels = dogfit.load_kernels(PATH)
          >>> kernels.save("kernels.safetensors")
          >>> dogfit.KernelSet.load("kernels.safetensors").layers == kernels.layers
          True
        """
        record = read_record(Path(path))
        return cls.from_layers(
            record.pairs(), sources=record.sources, skipped=record.skipped, notes=record.notes
        )


def _free_names(part: KernelSet, seen: set[tuple[str, str]]) -> dict[str, str]:
    """New model names for `part`, so that no (model, layer) pair is in `seen`."""
    names = {}
    for model in part.models:
        layers = [layer.name for layer in part.layers if layer.model == model]
        name, copy = model, 1
        while any((name, layer) in seen for layer in layers):
            copy += 1
            name = f"{model} ({copy})"
        names[model] = name
    return names
