"""Few filters x that stand for all kernels: each kernel y is replaced by the best a·x + b.

For a centered x of unit norm the best a·x + b explains the squared centered cosine of y and x, as a share of
y's energy about its mean; the sign of a is free, so a filter stands for its negative as well. Babaiee et al.
(NeurIPS 2025) decode candidates from the autoencoder's code and drop them one by one, judged by accuracy;
here explained energy judges. The forward search over the raw kernels needs no autoencoder: the objective is
monotone and submodular (facility location), so greedy is within 1 - 1/e of the best set of its size
(Nemhauser, Wolsey and Fisher, 1978).
"""

import heapq
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from dogfit.errors import InputError
from dogfit.normalize import normalize_rows

N_CANDIDATES = 50
"""Candidate filters decoded from evenly spaced codes, as many as in Babaiee et al. (NeurIPS 2025)."""


@dataclass(frozen=True, eq=False)
class UniversalFilters:
    """Filters, the most useful first.

    Attributes:
      filters: centered and of unit norm `[m, k, k]`; the last to be dropped, or the first to be taken, first.
      explained: mean fraction of a kernel's energy about its mean that the best of the first 1, 2, ... m
        filters explains `[m]`.
    """

    filters: Float[np.ndarray, "m k k"]
    explained: Float[np.ndarray, "m"]


def backward_elimination(
    candidates: ArrayLike, kernels: ArrayLike, *, sample: int = 20_000, seed: int = 0
) -> UniversalFilters:
    """Order filters by greedy backward elimination: they are dropped one by one, the cheapest first.

    Babaiee et al. (NeurIPS 2025) judge by accuracy where this judges by explained energy.

    Args:
      candidates: `[m, k, k]`, for example 50 evenly spaced codes, decoded.
      kernels: to be explained `[n, k, k]`.
      sample: kernels used at most, drawn at random.
      seed: of the sample.

    Returns:
      All candidates that are not constant, the last to be dropped first.

    Raises:
      ValueError: no candidate, or no kernel, is finite and not constant.

    Example:
      >>> import numpy as np
      >>> from dogfit.clusters import backward_elimination
      >>> bar = np.outer([0, 1, 0], [1, 1, 1])
      >>> noise = np.random.default_rng(0).normal(size=(3, 3))
      >>> found = backward_elimination(np.stack([noise, bar]), np.stack([2 * bar, 1 - bar]))
      >>> found.explained.round(3).tolist()  # the bar alone explains both kernels
      [1.0, 1.0]
    """
    tried, rows = _draw_rows(candidates, kernels, sample, seed)
    energy = (rows @ tried.T) ** 2
    kept = list(range(energy.shape[1]))
    explained, dropped = [], []
    while kept:
        of_kept = energy[:, kept]
        best = of_kept.argmax(axis=1)
        top = of_kept.max(axis=1)
        explained.append(top.mean())
        of_kept[np.arange(len(best)), best] = -1.0
        cost = np.bincount(best, weights=top - of_kept.max(axis=1), minlength=len(kept))
        dropped.append(kept.pop(int(cost.argmin())))
    k = np.asarray(candidates).shape[1]
    return UniversalFilters(tried[dropped[::-1]].reshape(-1, k, k), np.array(explained[::-1]))


def forward_selection(
    kernels: ArrayLike,
    count: int = 50,
    *,
    candidates: ArrayLike | None = None,
    pool: int = 2_000,
    sample: int = 4_000,
    seed: int = 0,
) -> UniversalFilters:
    """Choose filters by greedy forward selection: each time the candidate that adds most explained energy.

    A filter's gain can only fall as others are taken, so gains are kept as bounds and the best is recomputed
    until it stays on top (lazy greedy; Minoux, 1978). The result is that of plain greedy.

    Args:
      kernels: to be explained `[n, k, k]`.
      count: filters to take; fewer when no further one adds anything.
      candidates: to choose from `[m, k, k]`; by default some of the kernels.
      pool: kernels that are candidates, at most, drawn at random.
      sample: kernels to be explained, at most, drawn at random.
      seed: of both samples.

    Returns:
      The filters in the order in which they were taken.

    Raises:
      ValueError: no candidate, or no kernel, is finite and not constant.
    """
    if candidates is None:
        candidates = _draw_rows(kernels, kernels, pool, seed)[1].reshape(-1, *np.asarray(kernels).shape[1:])
    tried, rows = _draw_rows(candidates, kernels, sample, seed)
    energy = (tried @ rows.T) ** 2
    covered = np.zeros(len(rows))
    bounds = [(-float(gain), index) for index, gain in enumerate(energy.sum(axis=1))]
    heapq.heapify(bounds)
    taken: list[int] = []
    explained = []
    while bounds and len(taken) < count:
        _, index = heapq.heappop(bounds)
        gain = float(np.maximum(energy[index] - covered, 0).sum())
        if bounds and gain < -bounds[0][0]:
            heapq.heappush(bounds, (-gain, index))
            continue
        if taken and gain <= 1e-6 * len(rows):
            break
        taken.append(index)
        covered = np.maximum(covered, energy[index])
        explained.append(covered.mean())
    k = np.asarray(kernels).shape[1]
    return UniversalFilters(tried[taken].reshape(-1, k, k), np.array(explained))


def explained_energy(filters: ArrayLike, kernels: ArrayLike) -> Float[np.ndarray, "n"]:
    """Fraction of each kernel's energy about its mean that its best a·x + b explains, x out of the filters.

    Args:
      filters: `[m, k, k]`, any scale; constant ones explain nothing.
      kernels: `[n, k, k]`.

    Returns:
      Fractions in [0, 1] `[n]`; NaN for constant and non-finite kernels.

    Raises:
      ValueError: the two differ in kernel size.
    """
    tried, _ = normalize_rows(filters)
    rows, good = normalize_rows(kernels, np.asarray(filters).shape[1])
    return np.where(good, ((rows @ tried.T) ** 2).max(axis=1, initial=0.0), np.nan)


def elbow(explained: ArrayLike) -> int:
    """Find the elbow of a rising curve: the point that lies farthest above its chord.

    The chord joins the first and the last point, so the answer depends on where the curve ends: compare
    curves of one length only.

    Args:
      explained: value for 1, 2, ... m filters `[m]`.

    Returns:
      A number of filters; 1 for a curve of at most two points.
    """
    curve = np.asarray(explained, np.float64)
    if curve.size < 3:
        return 1
    return int(np.argmax(curve - np.linspace(curve[0], curve[-1], curve.size))) + 1


class Matches(NamedTuple):
    """Most similar filter to each reference filter.

    Attributes:
      index: of the filter `[r]`.
      cosine: |cosine| of the two, centered, in [0, 1] `[r]`.
    """

    index: Int[np.ndarray, "r"]
    cosine: Float[np.ndarray, "r"]


def match_filters(filters: ArrayLike, references: ArrayLike) -> Matches:
    """Find the most similar of some filters to each reference, up to sign; a filter may serve twice.

    Args:
      filters: `[m, k, k]`, any scale.
      references: `[r, k, k]`, any scale.

    Returns:
      A match for each reference.

    Raises:
      ValueError: the two differ in kernel size.
    """
    tried, _ = normalize_rows(filters)
    wanted, _ = normalize_rows(references, np.asarray(filters).shape[1])
    cosine = np.abs(wanted @ tried.T)
    return Matches(cosine.argmax(axis=1), cosine.max(axis=1))


def read_filters(path: str | Path) -> Float[np.ndarray, "m k k"]:
    """Read filters from a file.

    Args:
      path: JSON (an array `[m, k, k]`, or an object that holds one as "filters"), or `.npy`.

    Returns:
      Filters, float32 `[m, k, k]`.

    Raises:
      InputError: there is no such file, or it holds something else.
    """
    file = Path(path)
    try:
        if file.suffix == ".npy":
            array = np.load(file, allow_pickle=False)
        else:
            content = json.loads(file.read_bytes())
            array = np.asarray(content["filters"] if isinstance(content, dict) else content, np.float32)
        array = np.asarray(array, np.float32)
    except OSError as error:
        raise InputError(f"cannot read filters from {file}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file} holds no filters; expected a JSON array [m, k, k], alone or as "filters", or .npy'
        ) from error
    if array.ndim != 3 or array.shape[1] != array.shape[2] or not array.size:
        raise InputError(f"filters must be [m, k, k], {file} holds an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"{file} holds filters that are not finite")
    return array


def _draw_rows(candidates: ArrayLike, kernels: ArrayLike, sample: int, seed: int) -> tuple[np.ndarray, ...]:
    """Normalize the candidates and a sample of the kernels; constant ones are left out."""
    tried, usable = normalize_rows(candidates)
    array = np.asarray(kernels)
    # Some to spare for constant kernels, and no copy of millions.
    drawn = np.random.default_rng(seed).permutation(len(array))[: 2 * sample]
    rows, good = normalize_rows(array[drawn], np.asarray(candidates).shape[1])
    if not usable.any() or not good.any():
        raise ValueError("universal filters need at least one candidate and one kernel that are not constant")
    return tried[usable], rows[good][:sample]
