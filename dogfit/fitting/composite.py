"""Sums of two fits, for kernels that one family does not exhaust."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import Family
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.result import FitResult
from dogfit.host_arrays import unmasked_array
from dogfit.kernels.tuning import resolution_of

# Improvement of R² below which a kernel is not swept again.
_SETTLED = 1e-5


@dataclass(frozen=True)
class Composite:
    """Fits of `n` kernels by one family each, and by the sum of two."""

    single: FitResult
    """The kernels fitted by one family."""
    first: FitResult
    """First part of the sum: fits of what the second leaves of the kernels."""
    second: FitResult
    """Second part: fits of what the first leaves. The offset of the sum is the sum of both."""
    r2: Float[np.ndarray, " n"]
    """Share of the kernel's energy about its mean that the sum explains."""
    bic: Float[np.ndarray, "n 2"]
    """Bayesian information criterion of the single fit and of the sum, whose offset counts once."""
    sweeps: Int[np.ndarray, " n"]
    """Times both parts were refitted."""

    @property
    def pays(self) -> Bool[np.ndarray, " n"]:
        """True where the sum's criterion is the lesser."""
        return self.bic[:, 1] < self.bic[:, 0]

    def templates(self) -> Float[np.ndarray, "n h w"]:
        """The sum where it pays, the single fit elsewhere; NaN where a kernel was not fitted."""
        both = self.first.templates() + self.second.templates()
        return np.where(self.pays[:, None, None], both, self.single.templates())


def fit_composites(
    kernels: Float[np.ndarray, "n h w"],
    families: Sequence[str | Family] = FAMILIES,
    *,
    sweeps: int = 8,
    config: FitConfig = DEFAULT,
) -> Composite:
    """Fit kernels by the sum of two families, each chosen, and say where that pays.

    Backfitting: each part in turn is fitted, globally, to what the other leaves of the kernel, so that the
    residual never grows; the parts may have different centres. Each kernel keeps the best pair it met.

    Args:
      kernels: taps `[n, h, w]` in correlation order.
      families: see `fit_kernel`.
      sweeps: most times that both parts are refitted; kernels that have settled are left out.
      config: profile, criterion within each part, and search effort.

    Returns:
      Fits by one family and by the sum of two, with the criterion that says where the second part pays for
      its parameters.

    Raises:
      ValueError: as `fit_kernels`; for fewer than 1 sweep.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-3:4, -3:4]
      >>> spots = [np.exp(-((x - at) ** 2 + (y - at) ** 2) / 0.7) for at in (-2, 2)]
      >>> found = dogfit.fit_composites(sum(spots)[None], ["gaussian"], sweeps=2)
      >>> bool(found.single.r2[0] < 0.7), bool(found.r2[0] > 0.99), bool(found.pays[0])
      (True, True, True)
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    kernels = unmasked_array(kernels, "kernels")
    single = fit_kernels(kernels, families, config=config)
    kernels = np.asarray(kernels, np.asarray(single.rmse).dtype)
    first = single
    second = fit_kernels(kernels - first.templates(), families, config=config)
    centered = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    energy = np.einsum("nhw,nhw->n", centered, centered, dtype=np.float64)
    best = _explained(kernels, first, second, energy)
    swept = np.zeros(len(kernels), np.int32)
    moving = np.flatnonzero(np.isfinite(best))
    for _ in range(sweeps):
        if not moving.size:
            break
        mine = kernels[moving]
        new_first = fit_kernels(mine - _rows(second, moving).templates(), families, config=config)
        new_second = fit_kernels(mine - new_first.templates(), families, config=config)
        found = _explained(mine, new_first, new_second, energy[moving])
        swept[moving] += 1
        gained = found - best[moving]
        better = np.flatnonzero(gained > 0)
        first = _replaced(first, new_first, moving[better], better)
        second = _replaced(second, new_second, moving[better], better)
        best[moving[better]] = found[better]
        moving = moving[gained > _SETTLED]
    return Composite(single, first, second, best, _criteria(kernels, single, first, second, best), swept)


def _explained(kernels: np.ndarray, first: FitResult, second: FitResult, energy: np.ndarray) -> np.ndarray:
    """R² of the sum; a first part that leaves nothing, to rounding, is all of it."""
    rest = second.templates()
    exhausted = np.asarray(second.family) < 0
    residual = kernels - first.templates() - np.where(exhausted[:, None, None], 0.0, rest)
    left = np.einsum("nhw,nhw->n", residual, residual, dtype=np.float64)
    fitted = np.asarray(first.family) >= 0
    return np.where(fitted, 1.0 - left / np.where(fitted, energy, 1.0), np.nan)


def _criteria(
    kernels: np.ndarray, single: FitResult, first: FitResult, second: FitResult, r2: np.ndarray
) -> np.ndarray:
    taps = math.prod(kernels.shape[1:])
    floor = resolution_of(np.asarray(single.r2).dtype)
    free = np.array([len(family.parameters) for family in single.families])

    def bic(explained: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        return taps * np.log(np.maximum(1.0 - explained, floor) / taps) + parameters * math.log(taps)

    alone = bic(np.asarray(single.r2, np.float64), free[np.asarray(single.family)])
    # A second part that found nothing left to fit has no parameters to pay for, and gains nothing.
    absent = np.asarray(second.family) < 0
    summed = free[np.asarray(first.family)] + free[np.asarray(second.family)] - 1
    return np.stack([alone, np.where(absent, np.inf, bic(r2, summed))], axis=1)


def _rows(result: FitResult, rows: np.ndarray) -> FitResult:
    return jax.tree.map(lambda leaf: leaf[rows], result)


def _replaced(old: FitResult, new: FitResult, rows: np.ndarray, source: np.ndarray) -> FitResult:
    """The result with some rows out of another."""

    def put(leaf: np.ndarray, other: np.ndarray) -> np.ndarray:
        leaf = leaf.copy()
        leaf[rows] = other[source]
        return leaf

    return jax.tree.map(put, old, new)
