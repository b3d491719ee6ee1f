"""Checkpoints with replaced kernels, out of the published results of a run."""

from collections.abc import Callable, Mapping
from typing import Any

from dogfit.errors import InputError
from dogfit.job.config import RunConfig
from dogfit.kernelset.groups import Flag
from dogfit.kernelset.kernelset import KernelSet
from dogfit.runtime.progress import Progress


def write_replaced(config: RunConfig, kernelset: KernelSet, progress: Progress) -> None:
    """Write the checkpoints with their kernels replaced, next to the published results.

    One file: `replaced.safetensors`; a sharded checkpoint: the folder `replaced`; several models: that folder
    with a file or folder for each, numbered from 1 in the order of the summary.

    Args:
      config: of the run.
      kernelset: the kernels.
      progress: shown.

    Raises:
      InputError: a source holds several models.
    """
    from dogfit.checkpoints.files import SUFFIX
    from dogfit.checkpoints.open import open_checkpoint
    from dogfit.export.replace import replace_kernels

    sources, models = config.source_paths(), [source.name for source in kernelset.sources]
    if len(models) != len(sources):
        raise InputError(
            f"{len(sources)} sources make {len(models)} models; replace the kernels of one at a time"
        )
    replacements = _replacements(config, kernelset)
    with progress.stage("write replaced kernels", "models") as update:
        for number, (source, model) in enumerate(zip(sources, models, strict=True), 1):
            place = config.out / "replaced" / (str(number) if len(sources) > 1 else "")
            if open_checkpoint(source, offline=config.offline).index is None:
                place = place.with_name(place.name + SUFFIX)
            done = replace_kernels(
                source,
                place,
                replacements(model),
                min_r2=config.replace_r2,
                sizes=config.sizes or None,
                include=config.include,
                exclude=config.exclude,
                offline=config.offline,
                overwrite=True,
            )
            progress.say(f"{done.path}: {done.n_replaced:,} of {done.n_kernels:,} kernels replaced")
            update(number, len(sources))


def _replacements(config: RunConfig, kernelset: KernelSet) -> Callable[[str], Mapping[Any, Any]]:
    """Find the replacements of a model's kernels, by the model's name, in the results of a run."""
    if config.replace == "fits":
        from safetensors.numpy import load_file

        from dogfit.analysis.tables import tensor_name

        tensors = load_file(config.out / "fits.safetensors")
        names = {layer: tensor_name(kernelset, layer) for layer in kernelset.layers}
        return lambda model: {
            layer.name: tensors[name]
            for layer, name in names.items()
            if layer.model == model and name in tensors
        }
    from dogfit.autoencoder import Autoencoder
    from dogfit.export.methods import reconstruction, universal

    methods = {}
    for size, group in kernelset.groups.items():
        folder = config.out / "autoencoder" / f"{size}x{size}"
        if folder.is_dir():
            autoencoder = Autoencoder.load(folder)
            if config.replace == "universal":
                methods[size] = universal(autoencoder, group.kernels[group.flag == Flag.OK])
            else:
                methods[size] = reconstruction(autoencoder)
    return lambda _: methods
