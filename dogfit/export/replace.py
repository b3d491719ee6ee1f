"""Copy of a checkpoint in which depthwise kernels are replaced by what describes them.

How much accuracy a network keeps when its kernels are exchanged for their descriptions says how much of what
they do is described. The accuracy is measured elsewhere, with the network's own evaluation; here the
checkpoint for it is written. Only the kernels' own bytes differ from the original's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float32

from dogfit.checkpoints.detect import Depthwise
from dogfit.checkpoints.distinct import DistinctLayers, distinct_layers
from dogfit.checkpoints.files import SUFFIX
from dogfit.checkpoints.hub_config import HubConfig
from dogfit.checkpoints.open import Checkpoint, open_checkpoint
from dogfit.checkpoints.patch import Copy, write_copies
from dogfit.checkpoints.read import Contents, read_contents, read_kernels, read_parts
from dogfit.errors import InputError, OutputError
from dogfit.export.match import match_gain_and_mean
from dogfit.export.methods import Method, NotReplaceableError, method_by_name
from dogfit.export.store import store_kernels
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer

if TYPE_CHECKING:
    from dogfit.autoencoder import AutoencoderConfig

Replacement = Literal["fits", "universal", "autoencoder"] | Method | ArrayLike | Mapping[Any, Any]


@dataclass(frozen=True)
class Replaced:
    """A checkpoint that was written, and what became of each of its kernels."""

    path: Path
    """The file; of a sharded checkpoint, its index."""
    r2: Mapping[str, Float32[np.ndarray, "c"]]
    """Tensor name -> R² of each kernel's replacement about the kernel's mean; NaN where there was none."""
    replaced: Mapping[str, Bool[np.ndarray, "c"]]
    """Tensor name -> which kernels were replaced; the others are bit for bit the original's."""
    notes: tuple[str, ...]
    """Kernels that were left alone, in words."""

    @property
    def n_replaced(self) -> int:
        """Number of kernels replaced."""
        return sum(int(rows.sum()) for rows in self.replaced.values())

    @property
    def n_kernels(self) -> int:
        """Number of kernels of all layers that a replacement was made for."""
        return sum(rows.size for rows in self.replaced.values())


class _LayerReplacement(NamedTuple):
    kernels: Float32[np.ndarray, "c k k"]
    r2: Float32[np.ndarray, "c"]
    """R² about the kernel's mean; NaN keeps the kernel."""


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
    autoencoder: "AutoencoderConfig | None" = None,
    offline: bool = False,
    hub: HubConfig | None = None,
    overwrite: bool = False,
) -> Replaced:
    """Write a copy of a checkpoint in which depthwise kernels are replaced; every other byte is the same.

    The copy has the header, names, types, layout and order of the original, so it loads wherever that does.
    A checkpoint of any length is copied by the system and patched in place; memory holds the kernels alone.
    Kernels that are constant, zero or not finite stay, as do those without a replacement. Tensors tied to a
    replaced one (the same values under another name) are replaced with it. Kernels that the network computes,
    as under weight norm, are replaced where they can be written one by one.

    Args:
      checkpoint: file, folder or repository, see `dogfit.load_kernels`.
      out: the file to write, `*.safetensors`, or a folder to write it to under its own name. A sharded
        checkpoint needs a folder, and its index is written with it.
      with_: what takes the kernels' place:
        - "fits": the best of dogfit's families;
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
      sizes: kernel sizes to replace, in taps; all by default.
      include: as in `load_kernels`.
      exclude: as in `load_kernels`.
      autoencoder: how the autoencoders of "universal" and "autoencoder" are trained.
      offline: as in `load_kernels`.
      hub: as in `load_kernels`.
      overwrite: replace files that exist.

    Returns:
      What was replaced, and how well. Nothing is written if an error is raised.

    Raises:
      InputError: if the checkpoint cannot be read, or holds no depthwise kernels of these sizes that can be
        written.
      HubError: if the hub cannot be reached or refuses.
      OutputError: if `out` exists, is the checkpoint itself, or is a file where a folder is needed.
      ValueError: if the replacement does not fit the kernels.
      DogfitError: if the copy cannot be written.

    Example:
      >>> import dogfit
      >>> from dogfit.embedded import PATH
      >>> def mirrored(kernels):
      ...     return kernels[:, :, ::-1]
      >>> done = dogfit.replace_kernels(PATH, "mirrored.safetensors", mirrored, min_r2=0.9)
      >>> done.path.name, done.n_kernels
      ('mirrored.safetensors', 1024)
      >>> 0 < done.n_replaced < done.n_kernels
      True
    """
    opened = open_checkpoint(checkpoint, offline=offline, hub=hub)
    targets = _target_paths(opened, Path(out), overwrite)
    contents = read_contents(opened, include, exclude)
    layers = [layer for layer in contents.findings.layers if sizes is None or layer.size in sizes]
    if not layers:
        wanted = f" of sizes {tuple(sizes)}" if sizes is not None else ""
        raise InputError(f"{opened.model}: no depthwise kernels{wanted} to replace")
    taps = read_kernels(opened, contents, layers)
    distinct = distinct_layers(taps, contents.included)
    pairs = [(_layer_record(layer, opened.model), taps[layer.tensor.name]) for layer in layers]
    counted = [
        pair for pair in pairs if pair[0].name not in (distinct.tied.keys() | distinct.left_out.keys())
    ]
    found, notes = _find_replacements(KernelSet.from_layers(counted), with_, match, autoencoder)
    for name, kept in distinct.tied.items():
        if kept in found:
            found[name] = found[kept]
    return _write(opened, contents, targets, found, min_r2, [*notes, *_left_alone(contents, distinct)])


def _find_replacements(
    kernelset: KernelSet, with_: Replacement, match: bool, autoencoder: "AutoencoderConfig | None"
) -> tuple[dict[str, _LayerReplacement], list[str]]:
    """Make the replacements of each layer, by name; and say what was left alone."""
    found: dict[str, _LayerReplacement] = {}
    notes = []
    for size, group in kernelset.groups.items():
        first_rows = np.unique(group.layer, return_index=True)
        layers = [kernelset.layers[index] for index in first_rows[0]]
        try:
            shapes = _shapes(with_, size, group, layers, autoencoder)
        except NotReplaceableError as error:
            notes.append(f"{len(group.kernels):,} {size}×{size} kernels kept: {error}")
            continue
        kernels, r2 = match_gain_and_mean(group.kernels, shapes, match)
        r2[group.flag != Flag.OK] = np.nan
        for start, layer in zip(first_rows[1], layers, strict=True):
            rows = slice(start, start + layer.channels)
            found[layer.name] = _LayerReplacement(kernels[rows], r2[rows])
    return found, notes


def _shapes(
    with_: Replacement,
    size: int,
    group: KernelGroup,
    layers: Sequence[Layer],
    autoencoder: "AutoencoderConfig | None",
) -> np.ndarray:
    """Shapes `[n, k, k]` for all kernels of one size, NaN for those to keep.

    Raises:
      NotReplaceableError: if there are none for this size.
      ValueError: if they have another shape.
    """
    if isinstance(with_, Mapping):
        if size in with_:
            return _shapes(with_[size], size, group, layers, autoencoder)
        return _shapes_by_name(with_, layers)
    good = group.flag == Flag.OK
    if isinstance(with_, str):
        with_ = method_by_name(with_, group.kernels[good], autoencoder)
    rows = good if callable(with_) else np.ones_like(good)
    given = np.asarray(with_(group.kernels[good]) if callable(with_) else with_)
    expected = group.kernels[rows].shape
    if given.shape != expected:
        raise ValueError(
            f"replacements of {size}×{size} kernels must have shape {expected}, got {given.shape}"
        )
    shapes = np.full(group.kernels.shape, np.nan, np.float32)
    shapes[rows] = given
    return shapes


def _shapes_by_name(named: Mapping[Any, Any], layers: Sequence[Layer]) -> np.ndarray:
    """Shapes of layers that a mapping names, NaN for the others."""
    if not any(layer.name in named for layer in layers):
        raise NotReplaceableError("the mapping names neither this size nor one of their layers")
    return np.concatenate(
        [
            layer.from_stored(np.asarray(named[layer.name]))
            if layer.name in named
            else np.full((layer.channels, layer.size, layer.size), np.nan, np.float32)
            for layer in layers
        ]
    )


def _layer_record(layer: Depthwise, model: str) -> Layer:
    tensor = layer.tensor
    return Layer(
        tensor.name, model, 0, None, None, layer.size, layer.channels, tensor.stored_dtype, shape=tensor.shape
    )


def _left_alone(contents: Contents, distinct: DistinctLayers) -> list[str]:
    reasons = Counter([*(item.reason for item in contents.findings.left_out), *distinct.left_out.values()])
    return [f"{count} tensors left alone: {reason}" for reason, count in reasons.items()]


def _target_paths(opened: Checkpoint, out: Path, overwrite: bool) -> dict[str, Path]:
    """Decide where each file of the checkpoint goes, its index last; raise if something is in the way."""
    names = list(opened.all_files)
    as_file = out.suffix == SUFFIX and not out.is_dir()
    if opened.index is not None and (as_file or out.is_file()):
        raise OutputError(f"{out}: {opened.model} has {len(opened.files)} files; give a folder")
    if as_file:
        targets = {names[0]: out}
    elif out.is_file():
        raise OutputError(f"{out} is a file; give a folder, or a file that ends in {SUFFIX}")
    else:
        targets = {name: out / name for name in names}
    for name, target in targets.items():
        if not target.exists():
            continue
        if target.samefile(opened.all_files[name].local()):
            raise OutputError(f"{target} is the checkpoint itself; give another place")
        if not overwrite:
            raise OutputError(f"{target} exists; give another place, or overwrite=True to replace it")
    return targets


def _write(
    opened: Checkpoint,
    contents: Contents,
    targets: Mapping[str, Path],
    found: Mapping[str, _LayerReplacement],
    min_r2: float,
    notes: Sequence[str],
) -> Replaced:
    """Write the copies; only the bytes of replaced kernels differ."""
    patches: dict[str, dict[int, bytes]] = {name: {} for name in targets}
    replaced, scores, kept = {}, {}, {}
    for layer in contents.findings.layers:
        name, parts = layer.tensor.name, layer.tensor.parts
        if name not in found:
            continue
        bytes_of = read_parts(opened, contents, [layer.tensor])
        try:
            done = store_kernels(layer, [bytes_of[part.name] for part in parts], *found[name], min_r2)
        except NotReplaceableError as error:
            kept[name] = str(error)
            continue
        for part, content in zip(parts, done.contents, strict=True):
            patches[contents.file_of[part.name]][part.start] = content
        replaced[name], scores[name] = done.rows, done.r2
    if kept and not replaced:
        raise InputError(f"{opened.model}: nothing can be replaced: {'; '.join(sorted(set(kept.values())))}")
    notes = [*notes, *(f"{n} layers kept: {reason}" for reason, n in Counter(kept.values()).items())]
    sources = opened.all_files
    write_copies([Copy(sources[name].local(), target, patches[name]) for name, target in targets.items()])
    # An index stands for the whole checkpoint.
    path = targets[opened.index.name] if opened.index else next(iter(targets.values()))
    return Replaced(path, scores, replaced, tuple(notes))
