"""Identity and record of a run: its keys, and what `run.json` says of it."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dogfit
from dogfit.distributed import process_count
from dogfit.job.config import RunConfig
from dogfit.kernelset.kernelset import KernelSet
from dogfit.runtime.keys import make_key

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


def inputs_key(kernelset: KernelSet, config: RunConfig, given: Mapping[int, "Autoencoder"]) -> str:
    """Digest what makes it another run: kernels, where they come from, settings, and given autoencoders.

    Args:
      kernelset: the kernels.
      config: of the run.
      given: autoencoders of `--autoencoder`, by kernel size.

    Returns:
      A key, see `dogfit.runtime.keys`.
    """
    return make_key(
        config.input_settings(),
        [asdict(layer) for layer in kernelset.layers],
        list(kernelset.notes),
        *(group.kernels for group in kernelset.groups.values()),
        *(autoencoder.to_bytes() for autoencoder in given.values()),
    )


def fingerprint(inputs: str, config: RunConfig) -> str:
    """Digest everything that the results depend on.

    Args:
      inputs: see `inputs_key`.
      config: of the run.

    Returns:
      A key, see `dogfit.runtime.keys`.
    """
    return make_key(inputs, config.result_settings(), config.no_figures)


def describe_run(
    config: RunConfig, kernelset: KernelSet, started: datetime, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Collect what decides nothing, or cannot be the same twice: versions, devices, times, bytes.

    Args:
      config: of the run.
      kernelset: the kernels.
      started: when the run began.
      seconds: wall time of each stage, by its title.

    Returns:
      Plain data for `run.json`.
    """
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
