"""One-dimensional code for kernels of one size: model, sharded training, saved form."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.autoencoder.autoencoder import Autoencoder, load_autoencoders
    from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig
    from dogfit.autoencoder.train import train_autoencoder
    from dogfit.errors import TooFewKernels

_HOMES = {
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

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
