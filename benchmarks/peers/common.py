"""Problem that every fitter in the race is given, and how its answers are judged.

A point is (x0, y0, log sigma[, log ratio]): centre in taps from the middle, x to the right. Every family is
a sum of terms `T_i(x) T_j(y)` at one or two widths with free weights and a free offset, as in
`dogfit.fitting.families`; `T_n` is `sigma**n` times the n-th derivative of a Gaussian integrated over each
tap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

SIZE = 7
LOWEST_SIGMA, RATIOS = 0.3, (1.1, 8.0)
# A sampled Gaussian narrower than this is a single tap.
LOWEST_SAMPLED_SIGMA = 0.6


@dataclass(frozen=True)
class Family:
    """A family: orders along y and x of each basis image, and which width it has."""

    name: str
    orders: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]

    @property
    def two_widths(self) -> bool:
        """Whether a point has a log ratio."""
        return max(self.widths) > 0

    @property
    def order(self) -> int:
        """Total order of differentiation."""
        return max(i + j for i, j in self.orders)


FAMILIES = (
    Family("gaussian", ((0, 0),), (0,)),
    Family("dog", ((0, 0), (0, 0)), (0, 1)),
    Family("d1", ((0, 1), (1, 0)), (0, 0)),
    Family("d2", ((0, 2), (1, 1), (2, 0)), (0, 0, 0)),
)


class Fitter(Protocol):
    """One contestant; made, and run, in a process of its own."""

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Final points by family `[s, n, p]`, from kernels `[n, 7, 7]` and starts `[s, n, p]`."""
        ...


def bounds(family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of a point."""
    low, high = [-SIZE / 2, -SIZE / 2, np.log(LOWEST_SIGMA)], [SIZE / 2, SIZE / 2, np.log(SIZE)]
    if family.two_widths:
        low, high = [*low, np.log(RATIOS[0])], [*high, np.log(RATIOS[1])]
    return np.array(low), np.array(high)


def to_free(family: Family, points: np.ndarray) -> np.ndarray:
    """Points `[..., p]` in the unbounded variables u of `point = middle + half * sin(u)` (MINUIT's).

    Starts on a bound are moved inwards by one percent: the sine has no slope there.
    """
    low, high = bounds(family)
    return np.arcsin(np.clip((2 * points - low - high) / (high - low), -0.98, 0.98))


def from_free(family: Family, free: np.ndarray) -> np.ndarray:
    """The inverse of `to_free`."""
    low, high = bounds(family)
    return (low + high) / 2 + (high - low) / 2 * np.sin(free)


def normalised(kernels: np.ndarray) -> np.ndarray:
    """Centred kernels of unit norm, float64 `[n, 7, 7]`."""
    kernels = kernels.astype(np.float64)
    kernels = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    return kernels / np.linalg.norm(kernels, axis=(1, 2), keepdims=True)


def profiles(points: np.ndarray, axis: int, width: int, highest: int) -> list[np.ndarray]:
    """`T_0` to `T_highest` along an axis (0: x, 1: y) at points `[..., p]`, each `[..., 7]`."""
    from scipy.special import ndtr

    sigma = np.exp(points[..., 2] + (points[..., 3] if width else 0.0))[..., None]
    z = (np.arange(SIZE + 1) - SIZE / 2 - points[..., axis, None]) / sigma
    edges = [ndtr(z), np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)]
    for n in range(1, highest):
        edges.append(-z * edges[n] - (n - 1) * edges[n - 1])
    return [np.diff(edge) for edge in edges[: highest + 1]]


def basis(family: Family, points: np.ndarray) -> np.ndarray:
    """Basis images at points `[..., p]`: `[..., q, 49]`."""
    lines = [[profiles(points, axis, w, 2) for axis in (0, 1)] for w in range(max(family.widths) + 1)]
    images = [
        lines[w][1][i][..., :, None] * lines[w][0][j][..., None, :]
        for (i, j), w in zip(family.orders, family.widths, strict=True)
    ]
    return np.stack(images, axis=-3).reshape(*points.shape[:-1], len(images), SIZE * SIZE)


def sampled_basis(points: np.ndarray) -> np.ndarray:
    """The Gaussian `exp(-r2 / 2 sigma2)` at the taps' centres, at points `[..., 3]`: `[..., 1, 49]`."""
    taps = np.arange(SIZE) - (SIZE - 1) / 2
    sigma = np.exp(points[..., 2, None])
    x, y = (np.exp(-0.5 * ((taps - points[..., a, None]) / sigma) ** 2) for a in (0, 1))
    return (y[..., :, None] * x[..., None, :]).reshape(*points.shape[:-1], 1, SIZE * SIZE)


def cost(unit: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Residual energy (of 1) of unit kernels `[..., n, 7, 7]` on basis images `[..., n, q, 49]`, float64."""
    target = unit.reshape(*unit.shape[:-2], SIZE * SIZE)
    centred = images - images.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    q = np.linalg.qr((centred / np.where(norm > 0, norm, 1.0)).swapaxes(-1, -2)).Q
    # An image whose support left the kernel is all rounding: it explains nothing.
    q = np.where(norm.swapaxes(-1, -2) > 1e-30, q, 0.0)
    explained = np.einsum("...tq,...t->...q", q, np.broadcast_to(target, (*q.shape[:-2], SIZE * SIZE)))
    return 1.0 - (explained**2).sum(axis=-1)
