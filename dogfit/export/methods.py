"""Methods that make what takes the place of kernels: fits, universal filters, reconstructions."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike, Float

from dogfit.errors import TooFewKernels

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig

METHODS = ("fits", "universal", "autoencoder")
# As in the paper on universal filters (Babaiee et al., NeurIPS 2025).
N_FILTERS = 8

Kernels = Float[np.ndarray, "n k k"]
Method = Callable[[Kernels], Kernels]
"""Function of kernels `[n, k, k]` to as many shapes; a shape that is NaN keeps its kernel."""


class NotReplaceableError(ValueError):
    """A method cannot replace kernels of this size or number; they are kept."""


def method_by_name(
    name: str, kernels: Float[np.ndarray, "n k k"], autoencoder: "AutoencoderConfig | None" = None
) -> Method:
    """Make one of METHODS for kernels of one size.

    Args:
      name: "fits", "universal" or "autoencoder".
      kernels: all kernels to replace, `[n, k, k]`, finite and not constant; an autoencoder is trained on
        them.
      autoencoder: how it is trained; by default as `train_autoencoder` does.

    Returns:
      A function of such kernels.

    Raises:
      ValueError: if there is no method of this name.
      NotReplaceableError: if the method cannot do these kernels.
    """
    if name not in METHODS:
        raise ValueError(f"no replacement is called {name!r}; choose from {', '.join(METHODS)}")
    if not len(kernels):
        raise NotReplaceableError("all are constant, zero or not finite")
    if name == "fits":
        return _fits(kernels.shape[1])
    from dogfit.autoencoder import train_autoencoder

    try:
        trained = train_autoencoder(kernels, autoencoder) if autoencoder else train_autoencoder(kernels)
    except TooFewKernels as error:
        raise NotReplaceableError(str(error)) from error
    return reconstruction(trained) if name == "autoencoder" else universal(trained, kernels)


def _fits(size: int) -> Method:
    from dogfit.fitting.api import MAX_SIZE, MIN_SIZE, fit_kernels

    if not MIN_SIZE <= size <= MAX_SIZE:
        raise NotReplaceableError(f"sizes {MIN_SIZE} to {MAX_SIZE} can be fitted")
    return lambda kernels: fit_kernels(kernels).templates()


def nearest_filter(filters: Float[ArrayLike, "m k k"]) -> Method:
    """Make the method that replaces a kernel by the nearest of given filters, up to gain, sign and mean.

    Args:
      filters: taps `[m, k, k]`; constant ones are left out.

    Returns:
      A function of kernels `[n, k, k]`; the filters it returns have unit norm and mean zero.

    Raises:
      ValueError: if all filters are constant or not finite.
    """
    from dogfit.normalize import normalize_rows

    shapes = np.asarray(filters)
    units, good = normalize_rows(shapes)
    if not good.any():
        raise ValueError(f"all of the {len(shapes)} filters are constant or not finite; give others")

    def nearest(kernels: Kernels) -> Kernels:
        rows, _ = normalize_rows(kernels, shapes.shape[1])
        return units[good][np.argmax(np.abs(rows @ units[good].T), axis=1)].reshape(kernels.shape)

    return nearest


def reconstruction(autoencoder: "Autoencoder") -> Method:
    """Make the method that replaces a kernel by its reconstruction.

    Args:
      autoencoder: trained on kernels of the same size.

    Returns:
      A function of kernels `[n, k, k]`; NaN for kernels that have no code.
    """

    def reconstruct(kernels: Kernels) -> Kernels:
        code = autoencoder.encode(kernels)
        known = np.isfinite(code.reshape(len(kernels), -1)).all(axis=1)
        made = np.full(kernels.shape, np.nan, np.float32)
        made[known] = autoencoder.decode(code[known])
        return made

    return reconstruct


def universal(
    autoencoder: "Autoencoder", kernels: Float[ArrayLike, "n k k"], filters: int = N_FILTERS
) -> Method:
    """Make the method that replaces a kernel by the nearest of the few filters that explain all kernels best.

    Args:
      autoencoder: trained on kernels of the same size; its code, swept in 50 steps, gives the candidates.
      kernels: the kernels to explain, `[n, k, k]`.
      filters: how many filters to keep.

    Returns:
      A function of kernels `[n, k, k]`.
    """
    from dogfit.clusters.latent_segments import evenly_spaced_codes
    from dogfit.clusters.universal_filters import N_CANDIDATES, backward_elimination

    candidates = autoencoder.decode(evenly_spaced_codes(N_CANDIDATES))
    return nearest_filter(backward_elimination(candidates, kernels).filters[:filters])
