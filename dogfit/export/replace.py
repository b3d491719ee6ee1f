"""Export: the same checkpoint with its depthwise kernels replaced by what describes them.

How much accuracy a network keeps when its kernels are exchanged for their descriptions says how much of what
they do is described. The accuracy is measured elsewhere, with the network's own evaluation; here the
checkpoint for it is written. Only the kernels' own bytes differ from the original's.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Float32

from dogfit.checkpoints.detect import Depthwise
from dogfit.checkpoints.load import Checkpoint, Located, fetch, locate, open_checkpoint, tied_names
from dogfit.checkpoints.patch import Copy, write_copies
from dogfit.errors import InputError, OutputError
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder

METHODS = ("fits", "universal", "autoencoder")
# As in the paper on universal filters (Babaiee et al., NeurIPS 2025).
CANDIDATES, FILTERS = 50, 8
_ROWS = 16_384
SUFFIX = ".safetensors"

Kernels = Float[np.ndarray, "n k k"]
Method = Callable[[Kernels], Kernels]
Replacement = Literal["fits", "universal", "autoencoder"] | Method | ArrayLike | Mapping[Any, Any]


@dataclass(frozen=True)
class Replaced:
    """A checkpoint that was written, and what became of each of its kernels."""

    path: Path
    """The file; of a sharded checkpoint, its index."""
    r2: Mapping[str, Float32[np.ndarray, "c"]]
    """By tensor name, R² of each kernel's replacement about the kernel's mean; NaN where there was none."""
    replaced: Mapping[str, Bool[np.ndarray, "c"]]
    """By tensor name, which kernels were replaced; the others are bit for bit the original's."""
    notes: tuple[str, ...]
    """What was left alone, in words."""

    @property
    def count(self) -> int:
        """Kernels replaced."""
        return sum(int(rows.sum()) for rows in self.replaced.values())

    @property
    def kernels(self) -> int:
        """Kernels of all layers that were looked at."""
        return sum(rows.size for rows in self.replaced.values())


def replace_kernels(
    checkpoint: str | Path,
    out: str | Path,
    with_: Replacement = "fits",
    *,
    min_r2: float = 0.0,
    match: bool = True,
    sizes: Sequence[int] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    overwrite: bool = False,
) -> Replaced:
    """Write a copy of a checkpoint in which depthwise kernels are replaced; every other byte is the same.

    The copy has the header, names, types, layout and order of the original, so it loads wherever that does.
    A checkpoint of any length is copied by the system and patched in place; memory holds the kernels alone.
    Kernels that are constant, zero or not finite stay, as do those without a replacement. Tensors tied to a
    replaced one (the same values under another name) are replaced with it.

    Args:
      checkpoint: file, folder or repository, see `dogfit.load_kernels`.
      out: the file to write, `*.safetensors`, or a folder to write it to under its own name. A sharded
        checkpoint needs a folder, and its index is written with it.
      with_: what takes the kernels' place:
        - "fits": the best of dogfit's model families;
        - "universal": the nearest of the 8 filters that explain most, found for each kernel size as
          `dogfit.clusters.backward_elimination` does among 50 decoded from an autoencoder;
        - "autoencoder": the reconstruction of an autoencoder trained on them;
        - a function of kernels `[n, k, k]` to as many, such as `nearest_filter(filters)`,
          `reconstruction(autoencoder)` or one of your own; NaN keeps a kernel;
        - an array `[n, k, k]`, a kernel for each of the checkpoint's, in the order of
          `load_kernels(checkpoint).groups[k].kernels`;
        - a mapping of layer names to kernels, `[c, k, k]` or in the file's layout, such as the contents of a
          run's `fits.safetensors`; or of kernel sizes to any of the above.
      min_r2: kernels whose replacement explains less of them than this are kept.
      match: put each kernel's own gain and mean back: of a replacement x, the nearest a x + b is taken.
        Otherwise x is taken as it is, and R² is that of x.
      sizes: kernel sizes to replace; all by default.
      include: as in `load_kernels`.
      exclude: as in `load_kernels`.
      offline: as in `load_kernels`.
      overwrite: replace files that exist.

    Returns:
      What was replaced, and how well. Nothing is written if an error is raised.

    Raises:
      InputError: if the checkpoint cannot be read, or holds no depthwise kernels of these sizes.
      OutputError: if `out` exists, is the checkpoint itself, or is a file where a folder is needed.
      ValueError: if the replacement does not fit the kernels.
      DogfitError: if the copy cannot be written.
    """
    opened = open_checkpoint(checkpoint, offline)
    targets = _targets(opened, Path(out), overwrite)
    located = locate(opened, include, exclude)
    layers = [layer for layer in located.findings.layers if sizes is None or layer.size in sizes]
    if not layers:
        wanted = f" of sizes {tuple(sizes)}" if sizes is not None else ""
        raise InputError(f"{opened.model}: no depthwise kernels{wanted} to replace")
    readers = {name: opened.files[file] for name, file in located.file_of.items()}
    taps = fetch(layers, readers, opened.model, None)
    tied = tied_names(taps)
    pairs = [(_record(layer, opened.model), taps[layer.tensor.name]) for layer in layers]
    kernelset = KernelSet.from_layers([pair for pair in pairs if pair[0].name not in tied])
    found, notes = _replacements(kernelset, with_, match)
    for name, kept in tied.items():
        if kept in found:
            found[name] = found[kept]
    return _write(opened, located, targets, found, min_r2, [*notes, *_left_alone(located)])


def nearest_filter(filters: Float[ArrayLike, "m k k"]) -> Method:
    """Kernels `[n, k, k]` to the filter nearest to each, up to gain, sign and mean."""
    from dogfit.autoencoder.autoencoder import normalize_rows

    shapes = np.asarray(filters)
    units, good = normalize_rows(shapes)
    if not good.any():
        raise ValueError(f"none of the {len(shapes)} filters has a shape")

    def nearest(kernels: Kernels) -> Kernels:
        rows, _ = normalize_rows(kernels, shapes.shape[1])
        return units[good][np.argmax(np.abs(rows @ units[good].T), axis=1)].reshape(kernels.shape)

    return nearest


def reconstruction(autoencoder: "Autoencoder") -> Method:
    """Kernels `[n, k, k]` to what an autoencoder makes of them."""

    def reconstruct(kernels: Kernels) -> Kernels:
        code = autoencoder.encode(kernels)
        known = np.isfinite(code.reshape(len(kernels), -1)).all(axis=1)
        made = np.full(kernels.shape, np.nan, np.float32)
        made[known] = autoencoder.decode(code[known])
        return made

    return reconstruct


def matched(
    kernels: Float[ArrayLike, "n k k"], shapes: Float[ArrayLike, "n k k"], match: bool = True
) -> tuple[Float32[np.ndarray, "n k k"], Float32[np.ndarray, "n"]]:
    """The nearest a x + b of each shape x to its kernel, or x itself, and its R² about the kernel's mean.

    R² is NaN where the kernel is constant or the shape not finite; a constant shape matches as the kernel's
    mean, with R² 0.
    """
    kernels, shapes = np.asarray(kernels), np.asarray(shapes)
    made, r2 = np.empty(kernels.shape, np.float32), np.empty(len(kernels), np.float32)
    for start in range(0, len(kernels), _ROWS):
        here = slice(start, start + _ROWS)
        made[here], r2[here] = _match(kernels[here], shapes[here], match)
    return made, r2


def _match(kernels: np.ndarray, shapes: np.ndarray, match: bool) -> tuple[np.ndarray, np.ndarray]:
    kernel, shape = kernels.astype(np.float64), shapes.astype(np.float64)
    mean = kernel.mean((1, 2), keepdims=True)
    energy = np.sum((kernel - mean) ** 2, (1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        if match:
            shape = shape - shape.mean((1, 2), keepdims=True)
            norm = np.sum(shape**2, (1, 2))
            gain = np.sum(shape * kernel, (1, 2)) / np.where(norm > 0, norm, 1)
            shape = mean + gain[:, None, None] * shape
        r2 = 1 - np.sum((kernel - shape) ** 2, (1, 2)) / energy
    return shape.astype(np.float32), np.where(np.isfinite(r2), r2, np.nan).astype(np.float32)


Found = dict[str, tuple[Float32[np.ndarray, "c k k"], Float32[np.ndarray, "c"]]]


def _replacements(kernelset: KernelSet, with_: Replacement, match: bool) -> tuple[Found, list[str]]:
    """By layer name, the kernels to put in and their R² (NaN: keep); and what was left alone."""
    found: Found = {}
    notes = []
    for size, group in kernelset.groups.items():
        layers = [kernelset.layers[index] for index in np.unique(group.layer)]
        good = group.flag == Flag.OK
        shapes = _shapes(with_, size, group, good, layers)
        if isinstance(shapes, str):
            notes.append(f"{len(group.kernels):,} {size}×{size} kernels kept: {shapes}")
            continue
        made, r2 = matched(group.kernels, shapes, match)
        r2[~good] = np.nan
        for start, layer in zip(np.searchsorted(group.layer, np.unique(group.layer)), layers, strict=True):
            rows = slice(start, start + layer.channels)
            found[layer.name] = made[rows], r2[rows]
    return found, notes


def _shapes(
    with_: Replacement, size: int, group: KernelGroup, good: np.ndarray, layers: Sequence[Layer]
) -> np.ndarray | str:
    """A shape for each kernel of one size, NaN for those to keep; or why there is none."""
    if isinstance(with_, Mapping):
        if size in with_:
            return _shapes(with_[size], size, group, good, layers)
        return _by_name(with_, layers)
    if isinstance(with_, str):
        if with_ not in METHODS:
            raise ValueError(f"no replacement is called {with_!r}; choose from {', '.join(METHODS)}")
        if not good.any():
            return "none of them has a shape"
        method = _method(with_, group.kernels[good], size)
        if isinstance(method, str):
            return method
        with_ = method
    shapes = np.full(group.kernels.shape, np.nan, np.float32)
    if callable(with_):
        made, expected = np.asarray(with_(group.kernels[good])), group.kernels[good].shape
        if made.shape == expected:
            shapes[good] = made
    else:
        made, expected = np.asarray(with_), group.kernels.shape
        if made.shape == expected:
            shapes[:] = made
    if made.shape != expected:
        raise ValueError(
            f"replacements of {size}×{size} kernels must have shape {expected}, got {made.shape}"
        )
    return shapes


def _by_name(named: Mapping[Any, Any], layers: Sequence[Layer]) -> np.ndarray | str:
    if not any(layer.name in named for layer in layers):
        return "the mapping names neither this size nor one of their layers"
    empty = {
        layer.name: np.full((layer.channels, layer.size, layer.size), np.nan, np.float32) for layer in layers
    }
    given = {layer.name: np.asarray(named[layer.name]) for layer in layers if layer.name in named}
    return np.concatenate(
        [
            layer.from_stored(given[layer.name]) if layer.name in given else empty[layer.name]
            for layer in layers
        ]
    )


def _method(name: str, kernels: Kernels, size: int) -> Method | str:
    """The method of a name for kernels of one size, or why it cannot be had."""
    from dogfit.fitting.api import MAX_SIZE, MIN_SIZE, fit_kernels

    if name == "fits":
        if not MIN_SIZE <= size <= MAX_SIZE:
            return f"sizes {MIN_SIZE} to {MAX_SIZE} can be fitted"
        return lambda these: fit_kernels(these).templates()
    from dogfit.autoencoder import MIN_KERNELS, train_autoencoder

    if len(kernels) < MIN_KERNELS:
        return f"an autoencoder takes {MIN_KERNELS} kernels"
    autoencoder = train_autoencoder(kernels)
    return reconstruction(autoencoder) if name == "autoencoder" else universal(autoencoder, kernels)


def universal(autoencoder: "Autoencoder", kernels: Kernels, filters: int = FILTERS) -> Method:
    """The `nearest_filter` among those of 50 decoded candidates that explain most of the kernels."""
    from dogfit.clusters import backward_elimination

    candidates = autoencoder.decode((np.arange(CANDIDATES) + 0.5) / CANDIDATES)
    return nearest_filter(backward_elimination(candidates, kernels).filters[:filters])


def _record(layer: Depthwise, model: str) -> Layer:
    tensor = layer.tensor
    return Layer(
        tensor.name, model, 0, None, None, layer.size, layer.channels, tensor.dtype, shape=tensor.shape
    )


def _left_alone(located: Located) -> list[str]:
    return [
        f"{count} tensors left alone: {reason}"
        for reason, count in Counter(reason for _, reason in located.findings.skipped).items()
    ]


def _targets(opened: Checkpoint, out: Path, overwrite: bool) -> dict[str, Path]:
    """Where each file of the checkpoint goes, its index last."""
    names = [*opened.files, *([opened.index[0]] if opened.index else [])]
    as_file = out.suffix == SUFFIX and not out.is_dir()
    if opened.index is not None and (as_file or out.is_file()):
        raise OutputError(f"{out}: {opened.model} has {len(opened.files)} files; give a folder")
    if as_file:
        targets = {names[0]: out}
    elif out.is_file():
        raise OutputError(f"{out} is a file; give a folder, or a file that ends in {SUFFIX}")
    else:
        targets = {name: out / name for name in names}
    sources = {**opened.files, **(dict([opened.index]) if opened.index else {})}
    for name, target in targets.items():
        if not target.exists():
            continue
        if target.samefile(sources[name].local()):
            raise OutputError(f"{target} is the checkpoint itself; give another place")
        if not overwrite:
            raise OutputError(f"{target} exists; give another place, or overwrite=True to replace it")
    return targets


def _write(
    opened: Checkpoint,
    located: Located,
    targets: Mapping[str, Path],
    found: Found,
    min_r2: float,
    notes: Sequence[str],
) -> Replaced:
    patches: dict[str, dict[int, bytes]] = {name: {} for name in targets}
    replaced, scores = {}, {}
    for layer in located.findings.layers:
        tensor, file = layer.tensor, located.file_of[layer.tensor.name]
        if tensor.name not in found:
            continue
        kernels, r2 = found[tensor.name]
        with np.errstate(invalid="ignore"):
            rows = np.isfinite(r2) & (r2 >= min_r2)
        (content,) = opened.files[file].read([(tensor.start, tensor.stop)])
        patches[file][tensor.start], rows = layer.with_kernels(content, rows, kernels)
        replaced[tensor.name], scores[tensor.name] = rows, r2
    sources = {**opened.files, **(dict([opened.index]) if opened.index else {})}
    write_copies([Copy(sources[name].local(), target, patches[name]) for name, target in targets.items()])
    return Replaced(list(targets.values())[-1], scores, replaced, tuple(notes))
