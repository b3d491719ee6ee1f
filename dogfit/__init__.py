"""Say what each depthwise kernel of a trained ConvNet is."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogfit import initializers, uncertainty
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
    from dogfit.checkpoints import load_kernels
    from dogfit.composite import Composite, fit_composites
    from dogfit.errors import DogfitError, HubError, InputError
    from dogfit.families import FAMILIES, Family, custom_family
    from dogfit.fit import fit_kernel, fit_kernels, fit_stream
    from dogfit.fit_config import THOROUGH, FitConfig
    from dogfit.fit_result import FitResult, Status
    from dogfit.kernels.custom import SearchRange
    from dogfit.kernelset import KernelSet
    from dogfit.labels import LABELS, label_fits
    from dogfit.parquet_fits import fit_parquet
    from dogfit.penalty import dog_penalty
    from dogfit.quality import layer_quality
    from dogfit.replace import Replaced, replace_kernels

__version__ = "0.1.0"

# Public names and where they live; loaded on first use, so that `import dogfit` costs nothing.
_HOME = {
    "FAMILIES": "dogfit.families",
    "LABELS": "dogfit.labels",
    "THOROUGH": "dogfit.fit_config",
    "Autoencoder": "dogfit.autoencoder",
    "AutoencoderConfig": "dogfit.autoencoder",
    "Composite": "dogfit.composite",
    "DogfitError": "dogfit.errors",
    "Family": "dogfit.families",
    "FitConfig": "dogfit.fit_config",
    "FitResult": "dogfit.fit_result",
    "HubError": "dogfit.errors",
    "InputError": "dogfit.errors",
    "KernelSet": "dogfit.kernelset",
    "Replaced": "dogfit.replace",
    "SearchRange": "dogfit.kernels.custom",
    "Status": "dogfit.fit_result",
    "custom_family": "dogfit.families",
    "dog_penalty": "dogfit.penalty",
    "fit_composites": "dogfit.composite",
    "fit_kernel": "dogfit.fit",
    "fit_kernels": "dogfit.fit",
    "fit_parquet": "dogfit.parquet_fits",
    "fit_stream": "dogfit.fit",
    "label_fits": "dogfit.labels",
    "layer_quality": "dogfit.quality",
    "load_kernels": "dogfit.checkpoints",
    "replace_kernels": "dogfit.replace",
    "train_autoencoder": "dogfit.autoencoder",
}
_MODULES = ("initializers", "uncertainty")
__all__ = [
    "FAMILIES",
    "LABELS",
    "THOROUGH",
    "Autoencoder",
    "AutoencoderConfig",
    "Composite",
    "DogfitError",
    "Family",
    "FitConfig",
    "FitResult",
    "HubError",
    "InputError",
    "KernelSet",
    "Replaced",
    "SearchRange",
    "Status",
    "custom_family",
    "dog_penalty",
    "fit_composites",
    "fit_kernel",
    "fit_kernels",
    "fit_parquet",
    "fit_stream",
    "initializers",
    "label_fits",
    "layer_quality",
    "load_kernels",
    "replace_kernels",
    "train_autoencoder",
    "uncertainty",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"dogfit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dogfit' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
