"""Null kernels, which carry none of the structure that a description claims.

Every null is drawn with NumPy from the seed alone, so it is the same on every device.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from dogfit.kernelset.groups import Flag, KernelGroup


def white_noise(n: int, k: int, seed: int) -> Float[np.ndarray, "n k k"]:
    """Draw independent standard normal taps.

    Args:
      n: number of kernels.
      k: taps per side.
      seed: of the draw; each null and size has a stream of its own.

    Returns:
      float32 `[n, k, k]`.

    Example:
      >>> white_noise(3, 7, seed=0).shape
      (3, 7, 7)
    """
    return _generator(seed, "white noise", k).standard_normal((n, k, k), dtype=np.float32)


def untrained(n: int, k: int, seed: int, *, init: str = "trunc_normal") -> Float[np.ndarray, "n k k"]:
    """Draw depthwise kernels as a network has them before training.

    Args:
      n: number of kernels.
      k: taps per side.
      seed: of the draw; each null and size has a stream of its own.
      init: "trunc_normal" is timm's and the original ConvNeXt's `trunc_normal_(std=0.02)`. Its cut lies at
        an absolute value of 2, a hundred standard deviations out, so that the taps are plainly normal and,
        after scaling to unit norm, the same in distribution as white noise. "uniform" is what PyTorch gives a
        `Conv2d` by itself, `kaiming_uniform_(a=sqrt(5))`: uniform within 1/k for one input channel per group.

    Returns:
      float32 `[n, k, k]`.

    Raises:
      ValueError: for another name of an initialization.
    """
    generator = _generator(seed, f"untrained {init}", k)
    if init == "trunc_normal":
        return np.float32(0.02) * generator.standard_normal((n, k, k), dtype=np.float32)
    if init == "uniform":
        return generator.uniform(-1 / k, 1 / k, (n, k, k)).astype(np.float32)
    raise ValueError(f"init must be 'trunc_normal' or 'uniform', got {init!r}")


def covariance_matched(
    group: KernelGroup, seed: int, n: int | None = None
) -> tuple[Float[np.ndarray, "n k k"], Int[np.ndarray, " n"]]:
    """Draw Gaussian kernels with the mean and covariance of the raw taps of the layer they stand for.

    The hardest of the nulls: it keeps each layer's average kernel, its smoothness and its usual orientations,
    and drops only what goes beyond second order. A layer with fewer kernels than taps has a singular
    covariance; its null then lies in the span of its own kernels, which makes it harder still.

    Args:
      group: kernels of one size. Flagged rows are left out of the statistics; layers with fewer than two good
        kernels have no covariance and are left out altogether.
      seed: of the draw; each kernel size has a stream of its own.
      n: kernels to draw, shared among the layers in proportion to their kernels. By default one for each.

    Returns:
      The kernels, float32 `[n, k, k]`, and the index of each one's layer, int32 `[n]`; both empty if no layer
      has two good kernels.
    """
    k = group.kernels.shape[-1]
    good = group.flag == Flag.OK
    layers, counts = np.unique(group.layer[good], return_counts=True)
    layer = np.repeat(layers[counts > 1], counts[counts > 1])
    if n is not None and layer.size:
        layer = layer[np.arange(n) * layer.size // n]
    layer = layer.astype(np.int32)
    kernels = np.empty((layer.size, k, k), np.float32)
    generator = _generator(seed, "covariance matched", k)
    members = np.argsort(group.layer, kind="stable")
    sorted_layers = group.layer[members]
    # `layer` ascends, so each layer's nulls lie together.
    drawn = np.unique(layer)
    for index, start, stop in zip(
        drawn, np.searchsorted(layer, drawn), np.searchsorted(layer, drawn, side="right"), strict=True
    ):
        here = members[slice(*np.searchsorted(sorted_layers, (index, index + 1)))]
        taps = group.kernels[here[good[here]]].reshape(-1, k * k).astype(np.float64)
        rows = slice(start, stop)
        # eigh, not Cholesky: the covariance is singular when the layer has fewer kernels than taps.
        variance, axes = np.linalg.eigh(np.cov(taps, rowvar=False))
        scores = generator.standard_normal((stop - start, k * k)) * np.sqrt(np.maximum(variance, 0))
        kernels[rows] = (taps.mean(0) + scores @ axes.T).reshape(-1, k, k)
    return kernels, layer


def threshold_at_rate(null_r2: ArrayLike, rate: float) -> float:
    """Find the smallest threshold that at most a given share of a null exceeds.

    Args:
      null_r2: R² of null kernels `[n]`; NaN (kernels without a fit) never passes and is not counted.
      rate: share of the null that may pass, at least 0 and below 1. To pass is to lie strictly above.

    Returns:
      The threshold, one of the R² given.

    Raises:
      ValueError: if the rate is outside [0, 1) or no null has an R².

    Example:
      >>> threshold_at_rate([0.1, 0.2, 0.3, 0.4], rate=0.25)
      0.3
    """
    scores = np.asarray(null_r2, np.float64)
    scores = np.sort(scores[~np.isnan(scores)])[::-1]
    if not 0 <= rate < 1:
        raise ValueError(f"the null rate must be at least 0 and below 1, got {rate}")
    if not scores.size:
        raise ValueError("no null kernel has an R²; a threshold needs at least one fitted null")
    allowed = int(rate * scores.size)
    # rate * n can round across an integer; the promise is about the share itself.
    while allowed / scores.size > rate:
        allowed -= 1
    while (allowed + 1) / scores.size <= rate:
        allowed += 1
    return float(scores[allowed])


def _generator(seed: int, name: str, k: int) -> np.random.Generator:
    """A stream of its own for every null and kernel size."""
    return np.random.default_rng([seed, k, *name.encode()])
