"""Say what each depthwise kernel of a trained ConvNet is."""

from typing import TYPE_CHECKING, Any

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit import initializers, uncertainty
    from dogfit.analysis.layer_metrics import layer_quality
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
    from dogfit.checkpoints.load import load_kernels
    from dogfit.errors import (
        DogfitError,
        HubError,
        InputError,
        LostProcessError,
        OutputError,
        TooFewKernels,
    )
    from dogfit.export.replace import Replaced, replace_kernels
    from dogfit.fitting.api import fit_kernel, fit_kernels, fit_stream
    from dogfit.fitting.composite import Composite, fit_composites
    from dogfit.fitting.config import THOROUGH, FitConfig
    from dogfit.fitting.families import Family, custom_family
    from dogfit.fitting.family_names import FAMILIES
    from dogfit.fitting.parquet import fit_parquet
    from dogfit.fitting.penalty import dog_penalty
    from dogfit.fitting.result import FitResult, Status
    from dogfit.kernels.model.custom import SearchRange
    from dogfit.kernelset.kernelset import KernelSet
    from dogfit.labels import LABELS, label_fits

    __version__: str

# Public names and the modules that define them.
_HOMES = {
    "FAMILIES": "dogfit.fitting.family_names",
    "LABELS": "dogfit.labels",
    "THOROUGH": "dogfit.fitting.config",
    "Autoencoder": "dogfit.autoencoder",
    "AutoencoderConfig": "dogfit.autoencoder",
    "Composite": "dogfit.fitting.composite",
    "DogfitError": "dogfit.errors",
    "Family": "dogfit.fitting.families",
    "FitConfig": "dogfit.fitting.config",
    "FitResult": "dogfit.fitting.result",
    "HubError": "dogfit.errors",
    "InputError": "dogfit.errors",
    "KernelSet": "dogfit.kernelset.kernelset",
    "LostProcessError": "dogfit.errors",
    "OutputError": "dogfit.errors",
    "Replaced": "dogfit.export.replace",
    "SearchRange": "dogfit.kernels.model.custom",
    "Status": "dogfit.fitting.result",
    "TooFewKernels": "dogfit.errors",
    "custom_family": "dogfit.fitting.families",
    "dog_penalty": "dogfit.fitting.penalty",
    "fit_composites": "dogfit.fitting.composite",
    "fit_kernel": "dogfit.fitting.api",
    "fit_kernels": "dogfit.fitting.api",
    "fit_parquet": "dogfit.fitting.parquet",
    "fit_stream": "dogfit.fitting.api",
    "initializers": "dogfit.initializers",
    "label_fits": "dogfit.labels",
    "layer_quality": "dogfit.analysis.layer_metrics",
    "load_kernels": "dogfit.checkpoints.load",
    "replace_kernels": "dogfit.export.replace",
    "train_autoencoder": "dogfit.autoencoder",
    "uncertainty": "dogfit.uncertainty",
}
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
    "LostProcessError",
    "OutputError",
    "Replaced",
    "SearchRange",
    "Status",
    "TooFewKernels",
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

_load, __dir__ = lazy_names(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return _version() if name == "__version__" else _load(name)


def _version() -> str:
    """Version in the metadata of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("dogfit")
    except PackageNotFoundError:  # a checkout on the path that was never installed
        return "0+unknown"
