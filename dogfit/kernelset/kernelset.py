"""Depthwise kernels and where each came from."""

import enum
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Float32, Int8, Int32

from dogfit.atomic_write import write_atomically
from dogfit.errors import DogfitError, InputError

if TYPE_CHECKING:
    import polars

FORMAT = "dogfit-kernelset-1"
ZERO_TAP = 1e-12
# A constant kernel stored in float32 keeps a centred norm of about 1e-7 of its norm.
CONSTANT_RATIO = 1e-6
# Kernels at once in float64: of millions of them, memory should hold one copy.
BLOCK = 65_536


class Flag(enum.IntEnum):
    """What makes a kernel unfit for analysis; only OK rows are normalised, fitted or encoded."""

    OK = 0
    ZERO = 1  # every tap below 1e-12 in absolute value
    CONSTANT = 2  # the taps differ by no more than rounding
    NONFINITE = 3  # a NaN or an infinity among the taps, or a norm beyond float32


@dataclass(frozen=True)
class Layer:
    """One depthwise layer of a checkpoint."""

    name: str
    """Tensor name, as in the file."""
    model: str
    """Model the layer belongs to."""
    position: int
    """Order in the network, from 0 within the model."""
    stage: int | None
    """Stage number as the checkpoint counts it; None where names do not say."""
    block: int | None
    """Block number within the stage, as the checkpoint counts it."""
    size: int
    """Kernel size k, in taps."""
    channels: int
    """Number of kernels."""
    dtype: str
    """Type in the file, as safetensors names it: F32, F16, BF16, ..."""
    stride: int | None = None
    dilation: int | None = None
    shape: tuple[int, ...] = ()
    """Shape in the file, which tells the layout too: (C, k, k), (C m, 1, k, k), (k, k, 1, C m) or
    (k, k, C, m). Output channel c m + j is the j-th of input channel c. PyTorch's if not given."""

    def __post_init__(self) -> None:
        shape = tuple(self.shape) or (self.channels, 1, self.size, self.size)
        if math.prod(shape) != self.channels * self.size**2:
            kernels = f"{self.channels} kernels of {self.size}x{self.size}"
            raise ValueError(f"layer {self.name!r}: {kernels} cannot have shape {shape}")
        object.__setattr__(self, "shape", shape)

    def as_stored(self, kernels: Float32[np.ndarray, "c k k"]) -> Float32[np.ndarray, "..."]:
        """Kernels of this layer in the shape and layout of the file."""
        # Channels-last tensors begin (k, k, ...); the others have a 1 in second place, or three axes.
        if len(self.shape) == 4 and self.shape[1] == self.size:
            kernels = np.moveaxis(kernels, 0, 2)
        return np.ascontiguousarray(kernels.reshape(self.shape))

    def from_stored(self, values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "c k k"]:
        """Kernels of this layer from the shape and layout of the file, or from `[c, k, k]`.

        Raises:
          ValueError: for another shape.
        """
        plain = (self.channels, self.size, self.size)
        if values.shape == plain:
            return values
        if values.shape != self.shape:
            raise ValueError(
                f"layer {self.name!r}: expected shape {plain} or {self.shape}, got {values.shape}"
            )
        if self.shape[1] == self.size:
            values = np.moveaxis(values.reshape(self.size, self.size, self.channels), 2, 0)
        return np.ascontiguousarray(values.reshape(plain))


@dataclass(frozen=True)
class Source:
    """Where one model was read from, and how much of it."""

    name: str
    """Model name, equal to `Layer.model`."""
    revision: str | None
    """Commit on the hub; None for local files."""
    bytes_read: int
    bytes_total: int
    licence: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A tensor that resembles a depthwise kernel and was left out."""

    model: str
    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class KernelGroup:
    """All kernels of one size, ordered by layer, then channel."""

    kernels: Float32[np.ndarray, "n k k"]
    """Raw taps in correlation order: rows are y (down), columns x (to the right)."""
    layer: Int32[np.ndarray, "n"]
    """Index into `KernelSet.layers`."""
    channel: Int32[np.ndarray, "n"]
    """Output channel within the layer."""
    mean: Float32[np.ndarray, "n"]
    """Mean of the taps."""
    norm: Float32[np.ndarray, "n"]
    """Frobenius norm of the centred kernel."""
    flag: Int8[np.ndarray, "n"]
    """See `Flag`."""

    def normalised(self) -> Float32[np.ndarray, "n k k"]:
        """Centred kernels of unit norm; rows whose flag is not OK are zero."""
        unit = np.empty_like(self.kernels)
        for start in range(0, len(unit), BLOCK):
            here = slice(start, start + BLOCK)
            ok = (self.flag[here] == Flag.OK)[:, None, None]
            centred = np.where(ok, self.kernels[here], 0).astype(np.float64)
            centred -= centred.mean((1, 2), keepdims=True)
            norm = np.sqrt(np.sum(centred**2, (1, 2), keepdims=True))
            unit[here] = centred / np.where(ok, norm, 1)
        return unit


@dataclass(frozen=True)
class KernelSet:
    """Kernels grouped by size, with the layer and channel of each.

    Build one with `dogfit.load_kernels`, `KernelSet.from_layers` or `KernelSet.load`.
    """

    layers: tuple[Layer, ...]
    groups: Mapping[int, KernelGroup]
    """Kernel size -> its kernels, sizes ascending."""
    sources: tuple[Source, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    """Choices made while reading, in words."""

    @classmethod
    def from_layers(
        cls,
        pairs: Iterable[tuple[Layer, Float32[np.ndarray, "c k k"]]],
        *,
        sources: Sequence[Source] = (),
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
    ) -> Self:
        """Make a set of layers and their kernels `[channels, size, size]`, kept in the order given.

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
        groups = {size: _group(rows[size]) for size in sorted(rows)}
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
        """Raw taps of one layer of this set."""
        group = self.groups[layer.size]
        return group.kernels[group.layer == self.layers.index(layer)]

    def pairs(self) -> list[tuple[Layer, Float32[np.ndarray, "c k k"]]]:
        """Every layer with its raw taps, as `from_layers` takes them."""
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

        Raises:
          InputError: if no layer matches.
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

        A model that holds a layer already present under the same model name is another copy:
        it is renamed `name (2)`, `name (3)`, ...
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
        """One row per kernel in group order (by size, layer, channel).

        Columns: model, layer, position, stage, block, channel, size, mean, norm, flag (its name).
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
        """Write the set as one safetensors file, whole or not at all.

        Raises:
          DogfitError: if the file cannot be written.
        """
        from safetensors.numpy import save

        record = {
            "layers": [asdict(layer) for layer in self.layers],
            "sources": [asdict(source) for source in self.sources],
            "skipped": [asdict(item) for item in self.skipped],
            "notes": self.notes,
        }
        tensors = {f"kernels.{size}": group.kernels for size, group in self.groups.items()}
        content = save(tensors, {"format": FORMAT, "record": json.dumps(record)})
        path = Path(path)
        try:
            write_atomically(path, content)
        except OSError as error:
            raise DogfitError(f"{path}: could not write the kernels: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a set written by `save`.

        Raises:
          InputError: if the file is missing, damaged or of another kind.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
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
            record = json.loads(metadata["record"])
            layers = tuple(Layer(**layer) for layer in record["layers"])
            skipped = [Skipped(**{**item, "shape": tuple(item["shape"])}) for item in record["skipped"]]
            sources = [Source(**source) for source in record["sources"]]
            return cls.from_layers(
                _split(layers, kernels), sources=sources, skipped=skipped, notes=record["notes"]
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged kernel set: {error}") from error


def _group(rows: list[tuple[int, np.ndarray]]) -> KernelGroup:
    kernels = np.concatenate([np.asarray(k, np.float32) for _, k in rows])
    blocks = [_statistics(kernels[start : start + BLOCK]) for start in range(0, max(len(kernels), 1), BLOCK)]
    mean, norm, flag = (np.concatenate(column) for column in zip(*blocks, strict=True))
    counts = [len(k) for _, k in rows]
    layer = np.repeat(np.array([index for index, _ in rows], np.int32), counts)
    channel = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return KernelGroup(kernels, layer, channel, mean, norm, flag)


def _statistics(kernels: Float32[np.ndarray, "n k k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, norm about the mean, and flag of each kernel."""
    with np.errstate(over="ignore", invalid="ignore"):
        taps = kernels.astype(np.float64)
        mean = taps.mean((1, 2))
        norm = np.sqrt(np.sum((taps - mean[:, None, None]) ** 2, (1, 2)))
        energy = np.sqrt(np.sum(taps**2, (1, 2)))
        mean, norm = mean.astype(np.float32), norm.astype(np.float32)
        flag = np.full(len(kernels), Flag.OK, np.int8)
        flag[norm <= CONSTANT_RATIO * energy] = Flag.CONSTANT
        flag[np.abs(kernels).max((1, 2)) < ZERO_TAP] = Flag.ZERO
        flag[~(np.isfinite(norm) & np.isfinite(mean))] = Flag.NONFINITE
    return mean, norm, flag


def _split(layers: tuple[Layer, ...], kernels: dict[int, np.ndarray]) -> list[tuple[Layer, np.ndarray]]:
    start = dict.fromkeys(kernels, 0)
    pairs = []
    for layer in layers:
        first = start[layer.size]
        start[layer.size] = first + layer.channels
        pairs.append((layer, kernels[layer.size][first : first + layer.channels]))
    if any(start[size] != len(rows) for size, rows in kernels.items()):
        raise ValueError("the layers do not account for every kernel")
    return pairs


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
