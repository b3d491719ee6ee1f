"""One-dimensional code for kernels of one size: model, sharded training, saved form."""

from dogfit.autoencoder.autoencoder import Autoencoder, load_autoencoders
from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig
from dogfit.autoencoder.train import train_autoencoder
from dogfit.errors import TooFewKernels

__all__ = [
    "MIN_KERNELS",
    "Autoencoder",
    "AutoencoderConfig",
    "TooFewKernels",
    "load_autoencoders",
    "train_autoencoder",
]
