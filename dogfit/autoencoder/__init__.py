"""One-dimensional code for kernels of one size: model, sharded training, saved form."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogfit.autoencoder.autoencoder import Autoencoder, load_autoencoders
    from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig
    from dogfit.autoencoder.train import train_autoencoder
    from dogfit.errors import TooFewKernels

# Public names and where they live; loaded on first use.
_HOME = {
    "Autoencoder": "dogfit.autoencoder.autoencoder",
    "load_autoencoders": "dogfit.autoencoder.autoencoder",
    "MIN_KERNELS": "dogfit.autoencoder.config",
    "AutoencoderConfig": "dogfit.autoencoder.config",
    "train_autoencoder": "dogfit.autoencoder.train",
    "TooFewKernels": "dogfit.errors",
}
__all__ = [
    "MIN_KERNELS",
    "Autoencoder",
    "AutoencoderConfig",
    "TooFewKernels",
    "load_autoencoders",
    "train_autoencoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
