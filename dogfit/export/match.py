"""Gain and mean of a kernel, given to the shape that replaces it."""

import numpy as np
from jaxtyping import ArrayLike, Float, Float32

# Kernels at once in float64: of millions of them, memory should hold one copy.
BLOCK = 16_384


def match_gain_and_mean(
    kernels: Float[ArrayLike, "n k k"], shapes: Float[ArrayLike, "n k k"], match: bool = True
) -> tuple[Float32[np.ndarray, "n k k"], Float32[np.ndarray, "n"]]:
    """Find the a·x + b that is nearest to each kernel, x being its shape.

    Args:
      kernels: taps `[n, k, k]`.
      shapes: a shape for each kernel, `[n, k, k]`.
      match: False leaves the shapes as they are.

    Returns:
      The matched shapes, and R² of each about its kernel's mean. R² is NaN where the kernel is constant or
      the shape not finite; a constant shape becomes the kernel's mean, with R² 0.
    """
    kernels, shapes = np.asarray(kernels), np.asarray(shapes)
    matched, r2 = np.empty(kernels.shape, np.float32), np.empty(len(kernels), np.float32)
    for start in range(0, len(kernels), BLOCK):
        rows = slice(start, start + BLOCK)
        matched[rows], r2[rows] = _match_block(kernels[rows], shapes[rows], match)
    return matched, r2


def _match_block(kernels: np.ndarray, shapes: np.ndarray, match: bool) -> tuple[np.ndarray, np.ndarray]:
    kernel, shape = kernels.astype(np.float64), shapes.astype(np.float64)
    mean = kernel.mean((1, 2), keepdims=True)
    energy = np.sum((kernel - mean) ** 2, (1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        if match:
            shape = shape - shape.mean((1, 2), keepdims=True)
            norm = np.sum(shape**2, (1, 2))
            gain = np.sum(shape * kernel, (1, 2)) / np.where(norm > 0, norm, 1)
            shape = mean + gain[:, None, None] * shape
        r2 = 1 - np.sum((kernel - shape) ** 2, (1, 2)) / energy
    return shape.astype(np.float32), np.where(np.isfinite(r2), r2, np.nan).astype(np.float32)
