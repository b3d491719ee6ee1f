"""The job of the command: read, analyze every size, write the results."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from dogfit.analysis.config import AnalysisConfig
from dogfit.analysis.fits import check_fittable
from dogfit.analysis.results import RunResult
from dogfit.analysis.size import analyze_size
from dogfit.distributed import broadcast_task, process_count, process_index, rows_of
from dogfit.errors import InputError
from dogfit.job.config import RunConfig
from dogfit.job.manifest import describe_run, fingerprint, inputs_key
from dogfit.job.replace import write_replaced
from dogfit.job.worker import run_worker
from dogfit.job.write import write_results
from dogfit.kernels.dispatch import check_fastest
from dogfit.kernelset.groups import Flag
from dogfit.kernelset.kernelset import KernelSet
from dogfit.report.text import printable
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import broadcast_failure, shard_digest
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder


def run_job(config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Do the whole job.

    A finished run with the same inputs and settings in `config.out` is read. With other settings of the
    summary, or after an interruption, stages that are complete are read and the others computed. Of several
    processes the first does this with the help of the others.

    Args:
      config: options of the command.
      progress: shown.

    Returns:
      The summary, as written to `summary.json`; empty in processes other than the first.

    Raises:
      DogfitError: by kind, see `dogfit.errors`; its `exit_code` is the command's.
      OSError: the results cannot be written.
    """
    if process_index() > 0:
        run_worker(config)
        return {}
    started = datetime.now(UTC)
    with ExitStack() as held:
        with broadcast_failure():
            kernelset, layers = _read_kernels(config, progress)
            given = _given_autoencoders(config)
            skipped = _skipped_sizes(kernelset, config, given)
            analysis = config.analysis_config()
            inputs = inputs_key(kernelset, config, given)
            everything = fingerprint(inputs, config)
            work = held.enter_context(Workspace(config.out, inputs, everything, overwrite=config.overwrite))
        if work.finished:
            progress.say(f"{config.out} already holds this run, finished; --overwrite computes it again")
        else:
            _say_what_is_missing(progress)
            _begin(kernelset, config, layers)
            result, autoencoders = _analyze(kernelset, config, analysis, skipped, given, work, progress)
            with progress.stage("write tables, figures and report", "files"):
                keys = {"inputs": inputs, "everything": everything}
                write_results(work, result, autoencoders, **keys, figures=not config.no_figures)
            work.publish(describe_run(config, kernelset, started, progress.seconds))
        if config.replace is not None:
            write_replaced(config, kernelset, progress)
        broadcast_task("end")
    return json.loads((config.out / "summary.json").read_bytes())


def _analyze(
    kernelset: KernelSet,
    config: RunConfig,
    analysis: AnalysisConfig,
    skipped: Mapping[int, str],
    given: Mapping[int, "Autoencoder"],
    work: Workspace,
    progress: Progress,
) -> tuple[RunResult, dict[int, "Autoencoder"]]:
    """Analyze every size that is not skipped; also the autoencoders that were trained or given."""
    sizes, autoencoders, notes = {}, {}, []
    for size, group in kernelset.groups.items():
        if size in skipped:
            continue
        sizes[size], autoencoder = analyze_size(group, analysis, work, progress, given.get(size))
        if autoencoder is not None:
            autoencoders[size] = autoencoder
            if given and size not in given:
                notes.append(
                    f"no autoencoder for {_sizes([size])} kernels at --autoencoder: trained on this input"
                )
    return RunResult(kernelset, sizes, config.result_settings(), skipped, tuple(notes)), autoencoders


def _skipped_sizes(
    kernelset: KernelSet, config: RunConfig, given: Mapping[int, "Autoencoder"]
) -> dict[int, str]:
    """Find the sizes that cannot be fitted, with the reason.

    Raises:
      InputError: no size is left, or none of the given autoencoders is of use.
    """
    skipped = {}
    for size in kernelset.groups:
        try:
            check_fittable(size, config.families)
        except InputError as reason:
            skipped[size] = str(reason)
    if len(skipped) == len(kernelset.groups):
        raise InputError("; ".join(skipped.values()))
    if given and not given.keys() & kernelset.groups.keys():
        raise InputError(
            f"{config.autoencoder} has autoencoders for {_sizes(given)} kernels, the input has "
            f"{_sizes(kernelset.groups)} ones; leave out --autoencoder to train them"
        )
    return skipped


def _say_what_is_missing(progress: Progress) -> None:
    """Say once if the fastest search cannot be used here, and what that costs."""
    try:
        check_fastest()
    except NotImplementedError as missing:
        progress.say(str(missing))


def _begin(kernelset: KernelSet, config: RunConfig, layers: list[list[str]]) -> None:
    """Tell the other processes what to read, and what it must be."""
    others = [partial(rows_of, index) for index in range(1, process_count())]
    shards = ["", *(shard_digest(kernelset.groups, rows) for rows in others)]
    broadcast_task("begin", settings=config.result_settings(), layers=layers, shards=shards)


def _read_kernels(config: RunConfig, progress: Progress) -> tuple[KernelSet, list[list[str]]]:
    """Read the kernels; also the names of each source's layers as they come in them."""
    from dogfit.checkpoints.load import load_each

    with progress.stage("read depthwise kernels", "bytes") as update:
        sets = load_each(
            config.source_paths(),
            sizes=config.sizes or None,
            include=config.include,
            exclude=config.exclude,
            offline=config.offline,
            progress=update,
        )
        layers = [[layer.name for layer in one.layers] for one in sets]
        kernelset = KernelSet.concatenate(sets)
    if not any((group.flag == Flag.OK).any() for group in kernelset.groups.values()):
        reason = (
            f"none of the {kernelset.n:,} depthwise kernels can be fitted: all are zero, constant or not "
            "finite; give a checkpoint of a trained network"
        )
        # Others that were left out may be what was meant.
        raise InputError(". ".join([reason, *kernelset.notes]))
    for source in kernelset.sources:
        percent = 100 * source.bytes_read / max(source.bytes_total, 1)
        amount = f"{source.bytes_read:,} of {source.bytes_total:,} bytes ({percent:.1f} %)"
        progress.say(f"{printable(source.name)}: read {amount}")
    return kernelset, layers


def _given_autoencoders(config: RunConfig) -> dict[int, "Autoencoder"]:
    """Read the autoencoders of `--autoencoder`, by kernel size."""
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
