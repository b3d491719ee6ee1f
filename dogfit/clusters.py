"""From a code to named clusters, the k-means baseline beside it, and the few filters that stand for all.

Three partitions can be compared: the named stretches of the decoder's curve, k-means on the kernels, and
the labels of the single fits. Kernels are unit vectors here, so Euclidean distance ranks as cosine does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Shaped

from dogfit.autoencoder import Autoencoder
from dogfit.autoencoder.trained import unit_rows

UNNAMED = "unnamed"
# Cosine dissimilarity below which a kernel counts as classified, as reported for Babaiee et al. (ICLR 2024);
# no value is known for other sizes.
PAPER_DISSIMILARITY = {5: 0.2, 7: 0.3}


class Stretch(NamedTuple):
    """An interval `[start, stop)` of the code and the name of the kernels decoded from it."""

    start: float
    stop: float
    name: str


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The decoder's curve, sampled evenly over the code and cut into named stretches.

    A name may hold several stretches; together they are one cluster.

    Attributes:
      code: `[m]`, sampled codes.
      kernels: `[m, k, k]`, decoded there; centred, unit norm.
      label: `[m]`, the name each sample's own fit gave it, before stretches were formed.
      r2: `[m]`, how well that fit describes it.
      stretches: in the order of the code; they cover [0, 1].
    """

    code: Float[np.ndarray, "m"]
    kernels: Float[np.ndarray, "m k k"]
    label: Shaped[np.ndarray, "m"]
    r2: Float[np.ndarray, "m"]
    stretches: tuple[Stretch, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clusters, in order of first appearance along the code."""
        return tuple(dict.fromkeys(stretch.name for stretch in self.stretches))

    def assign(self, code: ArrayLike) -> Int[np.ndarray, "n"]:
        """Cluster of each code, as an index into `names`; -1 where the code is NaN."""
        codes = np.asarray(code, float)
        starts = np.array([stretch.start for stretch in self.stretches])
        cluster = np.array([self.names.index(stretch.name) for stretch in self.stretches])
        place = np.clip(np.searchsorted(starts, codes, side="right") - 1, 0, None)
        return np.where(np.isnan(codes), -1, cluster[place]).astype(np.int32)


def name_spectrum(
    autoencoder: Autoencoder,
    fit: Callable[[np.ndarray], Any],
    label: Callable[[Any], np.ndarray],
    *,
    samples: int = 256,
    min_r2: float = 0.7,
    min_samples: int = 4,
) -> Spectrum:
    """Decode evenly spaced codes, fit each decoded kernel, and join equal names into stretches.

    Args:
      autoencoder: one with a single-number code.
      fit: kernels `[m, k, k]` to a result with `r2` `[m]`, as `dogfit.fit_kernels` does.
      label: that result to names `[m]`, as `dogfit.labels.label_fits` does.
      samples: number of codes.
      min_r2: a sample whose fit explains less is called "unnamed".
      min_samples: a stretch of fewer samples joins its longer neighbour.

    Raises:
      ValueError: the code has several numbers, so that there is no order to cut.
    """
    if autoencoder.config.code_dim != 1:
        raise ValueError(f"a spectrum needs a code of one number, this one has {autoencoder.config.code_dim}")
    code = (np.arange(samples, dtype=np.float32) + 0.5) / samples
    kernels = autoencoder.decode(code)
    result = fit(kernels)
    r2 = np.asarray(result.r2)
    names = np.asarray(label(result)).astype(str)
    good = np.nan_to_num(r2, nan=-np.inf) >= min_r2
    runs = join_short(np.where(good, names, UNNAMED).tolist(), min_samples)
    edges = np.cumsum([0, *(length for _, length in runs)]) / samples
    stretches = tuple(
        Stretch(float(a), float(b), name) for (name, _), a, b in zip(runs, edges[:-1], edges[1:], strict=True)
    )
    return Spectrum(code, kernels, names, r2, stretches)


def join_short(names: Sequence[str], shortest: int) -> list[tuple[str, int]]:
    """Run-length encode `names`; runs below `shortest` join their longer neighbour, shortest runs first."""
    runs: list[tuple[str, int]] = []
    for name in names:
        _append(runs, name, 1)
    while len(runs) > 1:
        at = min(range(len(runs)), key=lambda i: runs[i][1])
        if runs[at][1] >= shortest:
            break
        neighbours = [i for i in (at - 1, at + 1) if 0 <= i < len(runs)]
        runs[at] = (runs[max(neighbours, key=lambda i: runs[i][1])][0], runs[at][1])
        joined: list[tuple[str, int]] = []
        for name, length in runs:
            _append(joined, name, length)
        runs = joined
    return runs


def _append(runs: list[tuple[str, int]], name: str, length: int) -> None:
    if runs and runs[-1][0] == name:
        length += runs.pop()[1]
    runs.append((name, length))


def paper_share(cosine: ArrayLike, size: int) -> float | None:
    """Share of kernels whose reconstruction passes the paper's threshold for this size.

    Args:
      cosine: `[n]`, reconstruction cosine; NaN (no shape) counts as not passing.
      size: taps per side.

    Returns:
      A number in [0, 1], or None where the paper gives no threshold or there are no kernels.
    """
    values = np.asarray(cosine)
    if size not in PAPER_DISSIMILARITY or values.size == 0:
        return None
    return float(np.mean(1 - values < PAPER_DISSIMILARITY[size]))


@dataclass(frozen=True, eq=False)
class KMeans:
    """labels `[n]` (-1 where there is no shape), centroids `[k, taps]`, inertia (summed squared distance)."""

    labels: Int[np.ndarray, "n"]
    centroids: Float[np.ndarray, "k taps"]
    inertia: float


def kmeans(kernels: ArrayLike, k: int, seed: int = 0) -> KMeans:
    """Cluster kernels `[n, s, s]`, centred and scaled to unit norm, into `k` groups; best of four starts.

    Raises:
      ValueError: `k` is below 1 or above the number of kernels that have a shape.
    """
    from sklearn.cluster import KMeans as Estimator

    rows, good = unit_rows(kernels)
    if not 1 <= k <= good.sum():
        raise ValueError(f"k must lie between 1 and the {good.sum()} usable kernels, got {k}")
    options: Any = {"n_init": 4, "random_state": seed}
    model: Any = Estimator(k, **options).fit(rows[good])
    labels = np.full(len(rows), -1, np.int32)
    labels[good] = model.labels_
    return KMeans(labels, model.cluster_centers_, float(model.inertia_))


def silhouette(kernels: ArrayLike, labels: ArrayLike, *, sample: int = 2000, seed: int = 0) -> float:
    """Mean silhouette of a partition of kernels `[n, s, s]`, on a random sample.

    Kernels without a shape and those labelled below 0 are left out. NaN when the sample has fewer than two
    clusters, or a cluster for every kernel.
    """
    from sklearn.metrics import silhouette_score

    rows, good = unit_rows(kernels)
    partition = np.asarray(labels)
    chosen = np.flatnonzero(good & (partition >= 0))
    chosen = np.random.default_rng(seed).permutation(chosen)[:sample]
    if not 2 <= len(np.unique(partition[chosen])) < len(chosen):
        return float("nan")
    return float(silhouette_score(rows[chosen], partition[chosen]))


class Agreement(NamedTuple):
    """Adjusted Rand index and normalised mutual information: 1 when equal, about 0 when unrelated."""

    ari: float
    nmi: float


def agreement(a: ArrayLike, b: ArrayLike) -> Agreement:
    """Compare two partitions of the same kernels, each `[n]` of integers or names.

    Raises:
      ValueError: the partitions differ in length.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        raise ValueError(f"partitions must have one length, got {first.shape} and {second.shape}")
    return Agreement(
        float(adjusted_rand_score(first, second)), float(normalized_mutual_info_score(first, second))
    )


@dataclass(frozen=True, eq=False)
class UniversalFilters:
    """Candidates in the order of their worth.

    Attributes:
      filters: `[m, k, k]`, centred, unit norm, the last to be dropped first.
      explained: `[m]`, mean share of a kernel's energy about its mean that the best of the first 1, 2, ... m
        filters explains.
    """

    filters: Float[np.ndarray, "m k k"]
    explained: Float[np.ndarray, "m"]


def universal_filters(
    candidates: ArrayLike, kernels: ArrayLike, *, sample: int = 20_000, seed: int = 0
) -> UniversalFilters:
    """Replace each kernel by its best a·x + b, dropping candidates x one by one, the cheapest first.

    The gain a may be negative, so a filter stands for its negative as well. After Babaiee et al. (NeurIPS
    2025), who judge by accuracy where this judges by explained energy.

    Args:
      candidates: `[m, k, k]`, for example 50 evenly spaced codes, decoded.
      kernels: `[n, k, k]`; at most `sample` of them, drawn at random, are used.

    Raises:
      ValueError: no candidate, or no kernel, has a shape.
    """
    tried, usable = unit_rows(candidates)
    rows, good = unit_rows(kernels, np.asarray(candidates).shape[1])
    if not usable.any() or not good.any():
        raise ValueError("universal filters need at least one candidate and one kernel that are not constant")
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(good))[:sample]
    # The best a·x + b explains the squared centred cosine of a kernel's energy.
    energy = (rows[chosen] @ tried[usable].T) ** 2
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
    return UniversalFilters(tried[usable][dropped[::-1]].reshape(-1, k, k), np.array(explained[::-1]))
