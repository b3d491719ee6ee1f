"""The main job: read, analyse every size, write the results."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import dogfit
from dogfit.analysis.results import RunResult
from dogfit.analysis.size import analyze_size, why_not_fitted
from dogfit.analysis.summary import summarize
from dogfit.distributed import announce, process_count, process_index, rows_of
from dogfit.errors import InputError
from dogfit.job.config import RunConfig
from dogfit.job.worker import follow
from dogfit.kernels.dispatch import check_fastest
from dogfit.kernelset.groups import Flag
from dogfit.kernelset.kernelset import KernelSet
from dogfit.report.text import printable
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import failing_together, inputs, share_digest
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "safetensors",
    "polars",
    "scikit-learn",
)


def run_job(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Do the whole job and return the summary, as written to `summary.json`.

    A finished run with the same inputs and settings in `config.out` is read; an interrupted one goes on.
    Of several processes the first does this with the help of the others, which return an empty summary.

    Raises:
      DogfitError: by kind, see `dogfit.errors`; its `exit_code` is the command's.
      OSError: if the results cannot be written.
    """
    if process_index() > 0:
        follow(config)
        return {}
    started = datetime.now(UTC)
    with ExitStack() as held:
        with failing_together():
            kernelset, layers = _load(config, progress)
            given = _given(config)
            left_out = _left_out(kernelset, config, given)
            fingerprint = _fingerprint(kernelset, config, given)
            work = held.enter_context(Workspace(config.out, fingerprint, overwrite=config.overwrite))
        if work.finished:
            progress.say(f"{config.out} holds this run already, finished; --overwrite makes it anew")
        else:
            _say_what_is_missing(progress)
            _begin(kernelset, config, layers)
            sizes = {
                size: analyze_size(group, config, work, progress, given.get(size))
                for size, group in kernelset.groups.items()
                if left_out[size] is None
            }
            reasons = tuple(reason for reason in left_out.values() if reason is not None)
            reasons += tuple(
                f"no autoencoder for {_sizes([size])} kernels at --autoencoder: trained on this input"
                for size, found in sizes.items()
                if given and size not in given and found.latent_segments is not None
            )
            result = RunResult(kernelset, sizes, config.deciding(), (*kernelset.notes, *reasons))
            with progress.stage("write tables, figures and report", "files"):
                _write(work, result)
            about = _about(config, kernelset, started, progress.seconds)
            work.write("run.json", _json({"fingerprint": work.fingerprint, **about}))
            work.publish()
        if config.replace is not None:
            _replace(config, kernelset, progress)
        announce(do="end")
    return json.loads((config.out / "summary.json").read_bytes())


def _left_out(
    kernelset: KernelSet, config: RunConfig, given: Mapping[int, "Autoencoder"]
) -> dict[int, str | None]:
    """Why a size is left out, or None; refuses where nothing is left, or nothing given is of use."""
    left_out = {size: why_not_fitted(size, config.families) for size in kernelset.groups}
    if None not in left_out.values():
        raise InputError("; ".join(str(reason) for reason in left_out.values()))
    if given and not given.keys() & kernelset.groups.keys():
        raise InputError(
            f"{config.autoencoder} has autoencoders for {_sizes(given)} kernels, the input has "
            f"{_sizes(kernelset.groups)} ones; leave out --autoencoder to train them"
        )
    return left_out


def _say_what_is_missing(progress: Progress) -> None:
    """Say once if the fastest search cannot be used here, and what that costs."""
    try:
        check_fastest()
    except NotImplementedError as missing:
        progress.say(str(missing))


def _begin(kernelset: KernelSet, config: RunConfig, layers: list[list[str]]) -> None:
    """Tell the other processes what to read, and what it must be."""
    others = [partial(rows_of, index) for index in range(1, process_count())]
    shares = [share_digest(kernelset.groups, rows) for rows in others]
    announce(do="begin", settings=config.deciding(), layers=layers, shares=["", *shares])


def _load(config: RunConfig, progress: Progress) -> tuple[KernelSet, list[list[str]]]:
    """The kernels, and the names of each source's layers as they come in them."""
    from dogfit.checkpoints.load import load_each

    with progress.stage("read depthwise kernels", "bytes") as update:
        sets = load_each(
            inputs(config),
            sizes=config.sizes or None,
            include=config.include,
            exclude=config.exclude,
            offline=config.offline,
            progress=update,
        )
        layers = [[layer.name for layer in one.layers] for one in sets]
        kernelset = KernelSet.concatenate(sets)
    if not any((group.flag == Flag.OK).any() for group in kernelset.groups.values()):
        raise InputError(
            f"none of the {kernelset.n:,} depthwise kernels can be fitted: all are zero, constant or not "
            "finite; give a checkpoint of a trained network"
        )
    for source in kernelset.sources:
        share = 100 * source.bytes_read / max(source.bytes_total, 1)
        amount = f"{source.bytes_read:,} of {source.bytes_total:,} bytes ({share:.1f} %)"
        progress.say(f"{printable(source.name)}: read {amount}")
    return kernelset, layers


def _given(config: RunConfig) -> dict[int, "Autoencoder"]:
    """The autoencoders of `--autoencoder`, by kernel size."""
    if config.autoencoder is None:
        return {}
    from dogfit.autoencoder import load_autoencoders

    found = load_autoencoders(config.autoencoder)
    for size, autoencoder in found.items():
        if autoencoder.config.code_dim != 1 or autoencoder.config.tie_sign:
            raise InputError(
                f"the autoencoder for {_sizes([size])} kernels in {config.autoencoder} has "
                f"code_dim={autoencoder.config.code_dim}, tie_sign={autoencoder.config.tie_sign}; the job "
                "names segments of codes of one number that tell a kernel from its negative"
            )
    return found


def _sizes(sizes: Iterable[int]) -> str:
    return ", ".join(f"{size}×{size}" for size in sorted(sizes))


def _fingerprint(kernelset: KernelSet, config: RunConfig, given: Mapping[int, "Autoencoder"]) -> str:
    """Of the extracted kernels, where they come from, what decides the numbers, and given autoencoders."""
    settings = config.deciding()
    about = [dogfit.__version__, settings, [asdict(layer) for layer in kernelset.layers], kernelset.notes]
    digest = hashlib.sha256(json.dumps(about).encode())
    for group in kernelset.groups.values():
        digest.update(np.ascontiguousarray(group.kernels).data)
    for autoencoder in given.values():
        digest.update(autoencoder.to_bytes())
    return digest.hexdigest()


def _write(work: Workspace, result: RunResult) -> None:
    """Gather every result but `run.json`."""
    from safetensors.numpy import save_file

    from dogfit.analysis.tables import fitted_tensors, kernel_table, layer_table, parquet
    from dogfit.report.figures.draw import draw_figures
    from dogfit.report.html import report_page

    shutil.rmtree(work.results, ignore_errors=True)
    text = _json(summarize(result))
    summary = json.loads(text)
    work.write("summary.json", text)
    work.write_file("kernels.parquet", lambda path: kernel_table(result).write_parquet(path))
    work.write("layers.parquet", parquet(layer_table(summary)))
    work.write_file("fits.safetensors", lambda path: save_file(fitted_tensors(result), path))
    pictures = draw_figures(result, summary)
    for (size, name), png in pictures.items():
        work.write(f"figures/{name}_{size}x{size}.png", png)
    work.write("report.html", report_page(summary, pictures).encode())
    for size in result.sizes:
        trained = work.hidden / f"autoencoder-{size}"
        if trained.is_dir():
            shutil.copytree(trained, work.results / "autoencoder" / f"{size}x{size}")


def _replace(config: RunConfig, kernelset: KernelSet, progress: Progress) -> None:
    """Write the checkpoints with their kernels replaced, into the published results.

    One file: `replaced.safetensors`; a sharded checkpoint: the folder `replaced`; several models: that folder
    with a file or folder for each, numbered from 1 in the order of the summary.
    """
    from dogfit.checkpoints.files import SUFFIX
    from dogfit.checkpoints.open import open_checkpoint
    from dogfit.export.replace import replace_kernels

    sources, models = inputs(config), [source.name for source in kernelset.sources]
    if len(models) != len(sources):
        raise InputError(
            f"{len(sources)} sources make {len(models)} models; replace the kernels of one at a time"
        )
    with_ = _replacements(config, kernelset)
    with progress.stage("write replaced kernels", "models") as update:
        for number, (source, model) in enumerate(zip(sources, models, strict=True), 1):
            place = config.out / "replaced" / (str(number) if len(sources) > 1 else "")
            if open_checkpoint(source, offline=config.offline).index is None:
                place = place.with_name(place.name + SUFFIX)
            done = replace_kernels(
                source,
                place,
                with_(model),
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
    """What takes the place of a model's kernels, by the model's name, out of a run's results."""
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


def _about(
    config: RunConfig, kernelset: KernelSet, started: datetime, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What decides nothing, or cannot be the same twice: versions, devices, times, bytes."""
    import jax

    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()
    }
    return {
        "config": settings,
        "sources": [asdict(source) for source in kernelset.sources],
        "versions": {"dogfit": dogfit.__version__, "python": platform.python_version(), **_versions()},
        "platform": platform.platform(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "processes": process_count(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": {
            "total": round((datetime.now(UTC) - started).total_seconds(), 3),
            **{title: round(value, 3) for title, value in seconds.items()},
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
