"""Kernel sets from checkpoints."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from dogfit.checkpoints.copies import bare_name
from dogfit.checkpoints.detect import Depthwise, LeftOut
from dogfit.checkpoints.distinct import distinct_layers
from dogfit.checkpoints.files import ReadCallback
from dogfit.checkpoints.hub_config import HubConfig
from dogfit.checkpoints.naming import stage_and_block
from dogfit.checkpoints.notes import nothing_found, reading_notes, unmatched_notes
from dogfit.checkpoints.open import Checkpoint, open_checkpoint
from dogfit.checkpoints.read import Contents, read_contents, read_kernels, source_record
from dogfit.errors import InputError
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer, Skipped

Progress = Callable[[int, int], None]
"""Called with the bytes of kernels that were read and those to read, of all sources."""


def load_kernels(
    *sources: str | Path,
    sizes: Sequence[int] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    hub: HubConfig | None = None,
    progress: Progress | None = None,
) -> KernelSet:
    """Read the depthwise kernels of one or several checkpoints, and nothing else of them.

    Args:
      sources: each a `.safetensors` file; a folder with `model.safetensors`, a sharded `*.index.json` or a
        single safetensors file; or a hub repository `owner/name[@revision]`, in any of the spellings of
        `dogfit.checkpoints.hub_address`. What exists on disk wins.
      sizes: kernel sizes to keep, in taps; all by default.
      include: names, or patterns (as of file names), of tensors to take although their shape leaves it open
        whether they are depthwise, tensors of shape (C, k, k) and copies of others among them.
      exclude: patterns of tensors to leave out; overrules `include`.
      offline: use only what an earlier run fetched from the hub. `HF_HUB_OFFLINE` does the same.
      hub: the hub of repositories; by default the one that `HF_ENDPOINT` and its like name, see
        `dogfit.checkpoints.hub_from_environment`.
      progress: called as `progress(done, total)` with the bytes of kernels read and to read.

    Returns:
      KernelSet with layers in network order, `sources` with the bytes read, `skipped` with what resembled a
      kernel and was left out, and `notes` in words. See `dogfit.checkpoints.detect.find_depthwise` for what
      counts as depthwise.

    Raises:
      InputError: if a source is missing, damaged, of another format or without depthwise kernels.
      HubError: if the hub cannot be reached or refuses.

    Example:
      >>> import dogfit
      >>> from dogfit.embedded import PATH
      >>> kernels = dogfit.load_kernels(PATH)  # or "model.safetensors", or "owner/name" on the hub
      >>> kernels.n, kernels.sizes
      (1024, (7,))
      >>> kernels.groups[7].kernels.shape
      (1024, 7, 7)
      >>> kernels.layers[0].name, kernels.layers[0].stage
      ('stages.0.blocks.0.conv_dw.weight', 0)
    """
    return KernelSet.concatenate(
        load_each(
            sources,
            sizes=sizes,
            include=include,
            exclude=exclude,
            offline=offline,
            hub=hub,
            progress=progress,
        )
    )


def load_each(
    sources: Sequence[str | Path],
    *,
    sizes: Sequence[int] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    offline: bool = False,
    hub: HubConfig | None = None,
    progress: Progress | None = None,
) -> list[KernelSet]:
    """Read the depthwise kernels of each checkpoint into a set of its own.

    Args:
      sources: files, folders or repositories.
      sizes: as in `load_kernels`, like the other arguments.
      include: as in `load_kernels`.
      exclude: as in `load_kernels`.
      offline: as in `load_kernels`.
      hub: as in `load_kernels`.
      progress: as in `load_kernels`.

    Returns:
      A set for each source. `load_kernels` joins them.

    Raises:
      InputError: as `load_kernels`.
      HubError: as `load_kernels`.
    """
    if not sources:
        raise InputError("no source given; expected a safetensors file, a folder or a repository owner/name")
    wanted = []
    for source in sources:
        checkpoint = open_checkpoint(source, offline=offline, hub=hub)
        contents = read_contents(checkpoint, include, exclude)
        wanted.append((checkpoint, contents, _select_sizes(checkpoint, contents, sizes)))
    parts = [part for _, _, layers in wanted for layer in layers for part in layer.tensor.parts]
    total = sum(part.stop - part.start for part in parts)
    done, lock = 0, Lock()

    def on_read(count: int) -> None:
        nonlocal done
        # Ranges of a file on the hub arrive in several threads.
        with lock:
            done += count
            if progress is not None:
                progress(done, total)

    unmatched = unmatched_notes(
        [contents for _, contents, _ in wanted], {"--include": include, "--exclude": exclude}
    )
    sets = []
    while wanted:  # a checkpoint that is done gives its memory back
        checkpoint, contents, layers = wanted.pop(0)
        sets.append(_load(checkpoint, contents, layers, on_read))
    sets[0] = replace(sets[0], notes=(*sets[0].notes, *unmatched))
    return sets


def _select_sizes(checkpoint: Checkpoint, contents: Contents, sizes: Sequence[int] | None) -> list[Depthwise]:
    """Layers of the wanted sizes; raises if there are none."""
    layers = contents.findings.layers
    wanted = [layer for layer in layers if sizes is None or layer.size in sizes]
    if wanted:
        return wanted
    if layers:
        found = sorted({layer.size for layer in layers})
        raise InputError(f"{checkpoint.model}: no depthwise kernels of sizes {sizes}; there are {found}")
    raise nothing_found(checkpoint.model, contents, contents.findings.left_out)


def _load(
    checkpoint: Checkpoint, contents: Contents, layers: Sequence[Depthwise], on_read: ReadCallback
) -> KernelSet:
    """Read the kernels of these layers of one checkpoint."""
    findings, model = contents.findings, checkpoint.model
    kernels = read_kernels(checkpoint, contents, layers, on_read)
    distinct = distinct_layers(kernels, contents.included)
    # Counted over all layers, so that it does not depend on the sizes that were asked for.
    position = {layer.tensor.name: number for number, layer in enumerate(findings.layers)}
    pairs = []
    for layer in layers:
        name = layer.tensor.name
        if name not in distinct.tied and name not in distinct.left_out:
            stage, block = stage_and_block(findings.bare_names.get(name) or bare_name(name))
            record = Layer(
                name,
                model,
                position[name],
                stage,
                block,
                layer.size,
                layer.channels,
                layer.tensor.stored_dtype,
                shape=layer.tensor.shape,
            )
            pairs.append((record, kernels[name]))
    left_out = [*findings.left_out]
    left_out += [LeftOut(contents.tensors[name], reason) for name, reason in distinct.left_out.items()]
    if not pairs:
        raise nothing_found(model, contents, left_out)
    tied = [LeftOut(contents.tensors[name], f"tied to {kept}") for name, kept in distinct.tied.items()]
    notes = reading_notes(model, contents, [layer.name for layer, _ in pairs], left_out)
    if tied:
        notes.append(f"{model}: {len(tied)} left out: tied to another layer")
    skipped = [
        Skipped(model, item.tensor.name, item.tensor.shape, item.reason, item.is_ambiguous)
        for item in (*left_out, *tied)
    ]
    source = source_record(checkpoint, contents)
    return KernelSet.from_layers(pairs, sources=[source], skipped=skipped, notes=notes)
