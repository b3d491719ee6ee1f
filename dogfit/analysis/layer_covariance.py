"""Covariance of a layer's taps, and the Gaussian process nearest to it in closed form."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import ArrayLike, Float

# Lengths and envelopes tried on each grid, and how often the grid closes in on the best node.
_NODES, _ZOOMS = 16, 3


def rescaled_rows(kernels: ArrayLike) -> Float[np.ndarray, "m taps"]:
    """Finite kernels of `[n, k, k]` as rows, scaled so that the largest tap is 1, in float64.

    Raises:
      ValueError: if the shape is not `[n, k, k]`.
    """
    array = np.asarray(kernels, np.float64)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"kernels must be [n, k, k], got shape {array.shape}")
    rows = array.reshape(len(array), array.shape[1] ** 2)
    rows = rows[np.isfinite(rows).all(axis=1)]
    largest = np.abs(rows).max(initial=0)
    return rows / largest if largest > 0 else rows


def covariance(kernels: ArrayLike) -> Float[np.ndarray, "taps taps"]:
    """Unbiased covariance of the taps of a layer `[n, k, k]`, in the units of the layer's largest tap.

    Raises:
      ValueError: for fewer than two finite kernels.
    """
    rows = rescaled_rows(kernels)
    if len(rows) < 2:
        raise ValueError(f"a covariance needs two finite kernels, got {len(rows)}")
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / (len(rows) - 1)


@dataclass(frozen=True)
class GaussianProcess:
    """A closed form of a layer's covariance: smooth within an envelope, and white noise.

    For taps at p and q from the kernel's middle (in taps),

        cov(p, q) = smooth exp(-(|p|² + |q|²) / 4w²) exp(-|p - q|² / 2l²) + noise [p = q]

    This is dogfit's own form: a squared-exponential Gaussian process under a Gaussian envelope. Trockman,
    Willmott and Kolter build theirs from shifted Gaussians, which it resembles and does not copy.
    """

    length_px: float
    """l: how far neighbouring taps go together."""
    envelope_px: float
    """w: standard deviation over the kernel of the smooth part's variance."""
    smooth: float
    """Variance of the smooth part in the middle."""
    noise: float
    """Variance of the white part."""
    distance: float
    """Frobenius norm of what the form misses, as a share of the covariance's: 0 exact, 1 nothing alike."""

    def matrix(self, k: int) -> Float[np.ndarray, "taps taps"]:
        """The covariance of k x k kernels, taps in row-major order."""
        line = _line(k, np.array([self.length_px]), np.array([self.envelope_px]))[:, 0].reshape(k, k)
        return self.smooth * np.kron(line, line) + self.noise * np.eye(k * k)

    def chance_distance(self, n: int, k: int) -> float:
        """Distance to expect when n kernels are drawn from this very process.

        The root of the mean squared error of a Gaussian sample covariance, `(|S|² + tr² S) / (n - 1)`, as a
        share of its mean squared norm.
        """
        if n < 2:
            return math.nan
        matrix = self.matrix(k)
        energy = float(np.sum(matrix**2))
        error = (energy + float(np.trace(matrix)) ** 2) / (n - 1)
        return math.sqrt(error / (energy + error)) if error > 0 else math.nan


def fit_gaussian_process(matrix: Float[ArrayLike, "taps taps"]) -> GaussianProcess:
    """The closed form nearest to a covariance in the Frobenius norm.

    Length and envelope are searched on a logarithmic grid that closes in on the best node; the two variances
    follow from non-negative least squares at each node. The form is separable, so a node costs no more than a
    product with one rearranged matrix (Van Loan and Pitsianis, 1993).

    Args:
      matrix: `[k², k²]`, taps in row-major order.

    Raises:
      ValueError: if the shape is not that of a covariance of square kernels.
    """
    matrix = np.asarray(matrix, np.float64)
    k = math.isqrt(len(matrix))
    if matrix.shape != (k * k, k * k):
        raise ValueError(f"a covariance of k x k kernels must be [k², k²], got shape {matrix.shape}")
    energy = float(np.sum(matrix**2))
    if not energy > 0:
        return GaussianProcess(math.nan, math.nan, 0.0, 0.0, math.nan)
    # <C, A ⊗ A> = vec(A)' R vec(A): rows (y, y'), columns (x, x').
    folded = matrix.reshape(k, k, k, k).transpose(0, 2, 1, 3).reshape(k * k, k * k)
    trace = float(np.trace(matrix))
    lengths, envelopes, nodes = *_coarse(k), _coarse_lines(k)
    for zoom in range(_ZOOMS + 1):
        smooth, noise, explained = _variances(folded, trace, nodes, k)
        best = int(np.argmax(explained))
        if zoom == _ZOOMS:
            break
        # One step of the grid just searched, to either side.
        step = [float(np.max(v) / np.min(v)) ** (1 / (_NODES - 1)) for v in (lengths, envelopes)]
        around = [
            np.geomspace(v[best] / s, v[best] * s, _NODES)
            for v, s in zip((lengths, envelopes), step, strict=True)
        ]
        lengths, envelopes = (v.ravel() for v in np.meshgrid(*around))
        nodes = _line(k, lengths, envelopes)
    missed = max(energy - float(explained[best]), 0.0)
    length, envelope, variance, white = (float(v[best]) for v in (lengths, envelopes, smooth, noise))
    return GaussianProcess(length, envelope, variance, white, math.sqrt(missed / energy))


def _coarse(k: int) -> tuple[np.ndarray, np.ndarray]:
    grids = np.geomspace(0.3, 2 * k, _NODES), np.geomspace(0.3, 4 * k, _NODES)
    length, envelope = np.meshgrid(*grids)
    return length.ravel(), envelope.ravel()


@lru_cache(maxsize=16)
def _coarse_lines(k: int) -> Float[np.ndarray, "kk nodes"]:
    return _line(k, *_coarse(k))


def _line(
    k: int, length: Float[np.ndarray, "nodes"], envelope: Float[np.ndarray, "nodes"]
) -> Float[np.ndarray, "kk nodes"]:
    """The form's smooth part along one axis, tap pairs flattened."""
    u = np.arange(k) - (k - 1) / 2
    far, apart = (u[:, None] ** 2 + u**2).ravel()[:, None], ((u[:, None] - u) ** 2).ravel()[:, None]
    return np.exp(-far / (4 * envelope**2) - apart / (2 * length**2))


def _variances(
    folded: Float[np.ndarray, "kk kk"], trace: float, lines: Float[np.ndarray, "kk nodes"], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of both parts at every node, none negative, and the squared norm they explain."""
    with_smooth = np.sum(lines * (folded @ lines), axis=0)
    of_smooth = np.sum(lines**2, axis=0) ** 2
    between = np.sum(lines.reshape(k, k, -1)[np.arange(k), np.arange(k)], axis=0) ** 2
    of_noise = float(k * k)
    determinant = of_smooth * of_noise - between**2
    safe = np.where(determinant > 1e-12 * of_smooth * of_noise, determinant, np.inf)
    smooth = (of_noise * with_smooth - between * trace) / safe
    noise = (of_smooth * trace - between * with_smooth) / safe
    both = (smooth >= 0) & (noise >= 0) & np.isfinite(safe)
    alone = np.maximum(with_smooth, 0) / of_smooth
    smooth_better = alone * with_smooth >= trace**2 / of_noise
    smooth = np.where(both, smooth, np.where(smooth_better, alone, 0))
    noise = np.where(both, noise, np.where(smooth_better, 0, trace / of_noise))
    explained = 2 * (smooth * with_smooth + noise * trace)
    explained -= smooth**2 * of_smooth + 2 * smooth * noise * between + noise**2 * of_noise
    return smooth, noise, explained
