"""The few filters that stand for all: each kernel y replaced by its best a·x + b over a small set of x.

For a centred x of unit norm the best a·x + b explains the squared centred cosine of y and x, as a share of
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

from dogfit.autoencoder.autoencoder import normalize_rows
from dogfit.errors import InputError


@dataclass(frozen=True, eq=False)
class UniversalFilters:
    """Filters in the order of their worth.

    Attributes:
      filters: `[m, k, k]`, centred, unit norm; the last to be dropped, or the first to be taken, first.
      explained: `[m]`, mean share of a kernel's energy about its mean that the best of the first 1, 2, ... m
        filters explains.
    """

    filters: Float[np.ndarray, "m k k"]
    explained: Float[np.ndarray, "m"]


def backward_elimination(
    candidates: ArrayLike, kernels: ArrayLike, *, sample: int = 20_000, seed: int = 0
) -> UniversalFilters:
    """Greedy backward elimination: candidates are dropped one by one, the cheapest first.

    After Babaiee et al. (NeurIPS 2025), who judge by accuracy where this judges by explained energy.

    Args:
      candidates: `[m, k, k]`, for example 50 evenly spaced codes, decoded.
      kernels: `[n, k, k]`; at most `sample` of them, drawn at random, are used.

    Raises:
      ValueError: no candidate, or no kernel, has a shape.
    """
    tried, rows = _usable(candidates, kernels, sample, seed)
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
    """Greedy forward selection among the kernels themselves: each time the one that adds most energy.

    A filter's gain can only fall as others are taken, so gains are kept as bounds and the best is recomputed
    until it stays on top (lazy greedy; Minoux, 1978). The result is that of plain greedy.

    Args:
      kernels: `[n, k, k]`; at most `sample` of them, drawn at random, are to be explained.
      count: filters to take; fewer when no further one adds anything.
      candidates: `[m, k, k]` to choose from; by default at most `pool` of the kernels, drawn at random.

    Raises:
      ValueError: no candidate, or no kernel, has a shape.
    """
    if candidates is None:
        candidates = _usable(kernels, kernels, pool, seed)[1].reshape(-1, *np.asarray(kernels).shape[1:])
    tried, rows = _usable(candidates, kernels, sample, seed)
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
    """Share of each kernel's energy about its mean that its best a·x + b explains, x out of the filters.

    Args:
      filters: `[m, k, k]`, any scale; constant ones explain nothing.
      kernels: `[n, k, k]`. Kernels without a shape get NaN.
    """
    tried, _ = normalize_rows(filters)
    rows, good = normalize_rows(kernels, np.asarray(filters).shape[1])
    return np.where(good, ((rows @ tried.T) ** 2).max(axis=1, initial=0.0), np.nan)


def elbow(explained: ArrayLike) -> int:
    """Number of filters at the elbow of a rising curve `[m]`: where it lies farthest above its own chord.

    The chord joins the first and the last point, so the answer depends on where the curve ends; curves are
    comparable at one length only. 1 for a curve of at most two points.
    """
    curve = np.asarray(explained, np.float64)
    if curve.size < 3:
        return 1
    return int(np.argmax(curve - np.linspace(curve[0], curve[-1], curve.size))) + 1


class Matches(NamedTuple):
    """For each reference filter, the nearest of some filters, up to sign: its index and |cosine|."""

    index: Int[np.ndarray, "r"]
    cosine: Float[np.ndarray, "r"]


def match_filters(filters: ArrayLike, references: ArrayLike) -> Matches:
    """Nearest of the filters `[m, k, k]` to each of the references `[r, k, k]`; filters may serve twice.

    Raises:
      ValueError: the two differ in kernel size.
    """
    tried, _ = normalize_rows(filters)
    wanted, _ = normalize_rows(references, np.asarray(filters).shape[1])
    cosine = np.abs(wanted @ tried.T)
    return Matches(cosine.argmax(axis=1), cosine.max(axis=1))


def read_filters(path: str | Path) -> Float[np.ndarray, "m k k"]:
    """Filters from a file: JSON (an array `[m, k, k]`, or an object that holds one as "filters"), or `.npy`.

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


def _usable(candidates: ArrayLike, kernels: ArrayLike, sample: int, seed: int) -> tuple[np.ndarray, ...]:
    """Unit rows of the candidates that have a shape, and of a sample of such kernels."""
    tried, usable = normalize_rows(candidates)
    array = np.asarray(kernels)
    # Some to spare for kernels without a shape, and no copy of millions.
    drawn = np.random.default_rng(seed).permutation(len(array))[: 2 * sample]
    rows, good = normalize_rows(array[drawn], np.asarray(candidates).shape[1])
    if not usable.any() or not good.any():
        raise ValueError("universal filters need at least one candidate and one kernel that are not constant")
    return tried[usable], rows[good][:sample]
