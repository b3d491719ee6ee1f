"""From a checkpoint to a KernelSet."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dogfit.checkpoints.detect import Depthwise, Findings, find_depthwise
from dogfit.checkpoints.files import (
    INDEX_SUFFIX,
    OTHER_FORMATS,
    PICKLES,
    LocalFile,
    Reader,
    choose_file,
    find_local,
    read_header,
    read_index,
)
from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.naming import bare_name, stage_and_block
from dogfit.errors import InputError
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer, Skipped, Source

# File names that every checkpoint has; the folder's name tells more.
UNTELLING = ("model", "pytorch_model", "weights", "checkpoint")
Progress = Callable[[str, int, int], None]
# Neither part starts with a dot, so `../x` is never taken for a repository; `..` is in no git reference.
HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>(?!.*[.][.])\w[\w./-]*))?", re.ASCII
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its files, and which tensor lies in which."""

    model: str
    files: Mapping[str, Reader]
    weight_map: Mapping[str, str] | None
    """Tensor name -> file name, as an index gives it; None for a single file."""
    index: tuple[str, Reader] | None = None
    """Name of that index, and the index."""
    revision: str | None = None
    license: str | None = None


@dataclass(frozen=True)
class Located:
    """The tensors of a checkpoint, where each lies, and which are depthwise kernels."""

    tensors: Mapping[str, Tensor]
    file_of: Mapping[str, str]
    """Tensor name -> name of its file."""
    metadata: Mapping[str, str]
    findings: Findings


def load_kernels(
    *sources: str | Path,
    sizes: Sequence[int] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    progress: Progress | None = None,
) -> KernelSet:
    """Read the depthwise kernels of one or several checkpoints, and nothing else of them.

    Args:
      sources: each a `.safetensors` file; a folder with `model.safetensors`, a sharded `*.index.json` or a
        single safetensors file; or a hub repository `owner/name[@revision]`. What exists on disk wins.
      sizes: kernel sizes to keep; all by default.
      include: patterns (as of file names) of tensors to take although their shape leaves it open whether
        they are depthwise, tensors of shape (C, k, k) among them.
      exclude: patterns of tensors to leave out; overrules `include`.
      offline: use only what an earlier run fetched from the hub. `HF_HUB_OFFLINE` does the same.
      progress: called with the model, the bytes read and the bytes to read.

    Returns:
      KernelSet with layers in network order, `sources` with the bytes read, `skipped` with what resembled a
      kernel and was left out, and `notes` in words. See `find_depthwise` for what counts as depthwise.

    Raises:
      InputError: if a source is missing, damaged, of another format or without depthwise kernels.
      HubError: if the hub cannot be reached or refuses.
    """
    return KernelSet.concatenate(
        load_each(sources, sizes=sizes, include=include, exclude=exclude, offline=offline, progress=progress)
    )


def load_each(
    sources: Sequence[str | Path],
    *,
    sizes: Sequence[int] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    progress: Progress | None = None,
) -> list[KernelSet]:
    """The depthwise kernels of each checkpoint by itself; see `load_kernels`, which joins them."""
    if not sources:
        raise InputError("no source given; expected a safetensors file, a folder or a repository owner/name")
    return [_read(open_checkpoint(source, offline), sizes, include, exclude, progress) for source in sources]


def open_checkpoint(source: str | Path, offline: bool = False) -> Checkpoint:
    """Find the files of one source, see `load_kernels`; nothing but an index is read of them.

    Raises:
      InputError: if the source is missing or of another format.
      HubError: if the hub cannot be reached or refuses.
    """
    path = Path(source).expanduser()
    match = HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    if match and not path.exists() and path.suffix not in (".safetensors", *PICKLES, *OTHER_FORMATS):
        return _open_hub(match["repo"], match["revision"], offline)
    return _open_local(path)


def _open_local(path: Path) -> Checkpoint:
    file = find_local(path)
    stem = file.name.split(".")[0] if path.is_dir() or file.name.endswith(INDEX_SUFFIX) else file.stem
    model = file.parent.resolve().name if path.is_dir() or stem in UNTELLING else stem
    return _shards(
        LocalFile(file),
        file.name,
        lambda n: LocalFile(file.parent / n),
        lambda n: (file.parent / n).is_file(),
        model,
    )


def _open_hub(name: str, revision: str | None, offline: bool) -> Checkpoint:
    from dogfit.checkpoints.hub import open_file, open_repository

    repository = open_repository(name, revision, offline)
    if isinstance(repository, Path):
        return replace(_open_local(repository), model=name, revision=repository.name)
    model = str(repository)
    chosen = choose_file([file for file in repository.files if "/" not in file], model)
    checkpoint = _shards(
        open_file(repository, chosen, offline),
        chosen,
        lambda n: open_file(repository, n, offline),
        lambda n: n in repository.files,
        model,
    )
    return replace(checkpoint, revision=repository.commit, license=repository.license)


def _shards(
    file: Reader, name: str, open_file: Callable[[str], Reader], exists: Callable[[str], bool], model: str
) -> Checkpoint:
    if not name.endswith(INDEX_SUFFIX):
        return Checkpoint(model, {name: file}, None)
    weight_map = read_index(file, exists)
    shards = sorted(set(weight_map.values()))
    return Checkpoint(model, {shard: open_file(shard) for shard in shards}, weight_map, (name, file))


def locate(checkpoint: Checkpoint, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Located:
    """Read the headers of a checkpoint and find its depthwise kernels; patterns as in `load_kernels`.

    Raises:
      InputError: if a header is damaged, or a shard lacks a tensor that the index promises.
    """
    tensors: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for name, reader in checkpoint.files.items():
        header = read_header(reader)
        metadata |= header.metadata
        for tensor in header.tensors.values():
            if checkpoint.weight_map is None or checkpoint.weight_map.get(tensor.name) == name:
                tensors[tensor.name], file_of[tensor.name] = tensor, name
    if absent := sorted(set(checkpoint.weight_map or ()) - set(tensors)):
        raise InputError(
            f"{checkpoint.model}: the index promises {len(absent)} tensors its shards do not hold, "
            f"such as {absent[0]!r}; fetch the checkpoint again"
        )
    findings = find_depthwise(
        tensors,
        order=_stated_order(metadata),
        channels_first_3d=_states_ckk(metadata),
        include=include,
        exclude=exclude,
    )
    return Located(tensors, file_of, metadata, findings)


def _read(
    checkpoint: Checkpoint,
    sizes: Sequence[int] | None,
    include: Sequence[str],
    exclude: Sequence[str],
    progress: Progress | None,
) -> KernelSet:
    located = locate(checkpoint, include, exclude)
    findings, tensors = located.findings, located.tensors
    wanted = [layer for layer in findings.layers if sizes is None or layer.size in sizes]
    if not wanted:
        raise InputError(_nothing(checkpoint.model, tensors, findings, sizes))
    reader_of = {name: checkpoint.files[file] for name, file in located.file_of.items()}
    kernels = fetch(wanted, reader_of, checkpoint.model, progress)
    tied = tied_names(kernels)
    # Counted over all layers, so that it does not depend on `sizes`.
    position = {layer.tensor.name: number for number, layer in enumerate(findings.layers)}
    pairs = []
    for layer in wanted:
        name = layer.tensor.name
        if name not in tied:
            stage, block = stage_and_block(findings.bare_names.get(name) or bare_name(name))
            record = Layer(
                name,
                checkpoint.model,
                position[name],
                stage,
                block,
                layer.size,
                layer.channels,
                layer.tensor.dtype,
                shape=layer.tensor.shape,
            )
            pairs.append((record, kernels[name]))
    reasons = [reason for _, reason in findings.skipped] + ["tied to another layer"] * len(tied)
    skipped = [Skipped(checkpoint.model, t.name, t.shape, why) for t, why in findings.skipped]
    skipped += [
        Skipped(checkpoint.model, name, tensors[name].shape, f"tied to {kept}") for name, kept in tied.items()
    ]
    source = Source(
        checkpoint.model,
        checkpoint.revision,
        sum(reader.bytes_read for reader in checkpoint.files.values()),
        sum(reader.size() for reader in checkpoint.files.values()),
        checkpoint.license or located.metadata.get("license"),
    )
    notes = [f"{checkpoint.model}: {n} left out: {reason}" for reason, n in Counter(reasons).items()]
    return KernelSet.from_layers(pairs, sources=[source], skipped=skipped, notes=notes)


def _stated_order(metadata: Mapping[str, str]) -> dict[str, int] | None:
    """Place of each name by the metadata's `layer_order`, a JSON list of names; None without one."""
    try:
        names = json.loads(metadata.get("layer_order", ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return {name: place for place, name in enumerate(names)}


def _states_ckk(metadata: Mapping[str, str]) -> bool:
    """Whether the metadata says that tensors are (channels, height, width)."""
    return metadata.get("shape_convention", "").replace(" ", "").startswith("(channels,height,width)")


def fetch(
    layers: Sequence[Depthwise], reader_of: Mapping[str, Reader], model: str, progress: Progress | None
) -> dict[str, Float32[np.ndarray, "c k k"]]:
    """Taps of layers by tensor name, `[c, k, k]` each."""
    total = sum(layer.tensor.stop - layer.tensor.start for layer in layers)
    done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(model, done, total)

    kernels = {}
    for reader in dict.fromkeys(reader_of[layer.tensor.name] for layer in layers):
        here = [layer for layer in layers if reader_of[layer.tensor.name] is reader]
        contents = reader.read([(layer.tensor.start, layer.tensor.stop) for layer in here], report)
        for layer, content in zip(here, contents, strict=True):
            kernels[layer.tensor.name] = layer.kernels(content)
    return kernels


def tied_names(kernels: Mapping[str, Float32[np.ndarray, "c k k"]]) -> dict[str, str]:
    """Names whose values another tensor repeats: a layer used at several places, saved under each name.

    The deepest name is kept, since it tells the place best.
    """
    same: dict[bytes, list[str]] = {}
    for name, values in kernels.items():
        # Layers may be equal without being tied while they are untouched: all zero, or all ones.
        if np.ptp(values) > 0:
            same.setdefault(sha256(str(values.shape).encode() + values.tobytes()).digest(), []).append(name)
    tied = {}
    for names in same.values():
        kept = max(names, key=lambda name: len(re.split(r"[./]", name)))
        tied |= {name: kept for name in names if name != kept}
    return tied


def _nothing(
    model: str, tensors: Mapping[str, Tensor], findings: Findings, sizes: Sequence[int] | None
) -> InputError:
    if findings.layers:
        found = sorted({layer.size for layer in findings.layers})
        return InputError(f"{model}: no depthwise kernels of sizes {sizes}; there are {found}")
    shapes = Counter(f"{t.dtype} {list(t.shape)}" for t in tensors.values() if len(t.shape) > 2)
    seen = (
        ", ".join(f"{count} of {shape}" for shape, count in shapes.most_common(6)) or "none of 3 or more axes"
    )
    text = f"{model}: no depthwise layer among {len(tensors)} tensors ({seen})"
    if findings.skipped:
        reasons = Counter(reason for _, reason in findings.skipped).most_common(4)
        example = findings.skipped[0][0]
        text += "; left out: " + "; ".join(f"{count} {reason}" for reason, count in reasons)
        text += f" (such as {example.name!r} {list(example.shape)})"
    return InputError(
        text + ". Depthwise kernels have shape (C, 1, k, k), (k, k, 1, C) or (k, k, C, 1), k > 1"
    )
