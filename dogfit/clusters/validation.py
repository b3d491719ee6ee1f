"""Evidence for and against clusters: silhouettes, stability, BIC and the gap statistic.

The same scores are taken of the network's kernels and of null kernels: structure that a method finds in both
comes from the method. Samples are bounded, so that this takes about a minute for any network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import ArrayLike, Float, Shaped

from dogfit.clusters.partitions import (
    METHODS,
    Method,
    agreement,
    partition_rows,
    representations,
    silhouette_rows,
    stability,
)
from dogfit.normalize import normalize_rows

COUNTS = (2, 3, 4, 6, 8, 10, 12, 16, 24, 32)
"""Numbers of clusters that are tried."""
SAMPLE = 1500
"""Kernels used, drawn at random; the cost of silhouettes and bootstraps grows with their square or more."""
_COUNT_REPEATS = 3


@dataclass(frozen=True)
class PartitionScore:
    """Scores of one partition.

    Attributes:
      space: in which it was made: "kernels", "PCA" or "code"; or the name of a given partition.
      method: "k-means", "mixture", or "given".
      clusters: their number.
      silhouette: in the space that was clustered, in [-1, 1]; NaN for a given partition.
      silhouette_kernels: the same partition's silhouette among the kernels themselves.
      restarts_ari: mean ARI between runs from different random starts; NaN for a given partition.
      bootstrap_ari: mean ARI between runs on bootstrap samples, each assigning all kernels.
      agreement: ARI and NMI with each given partition.
    """

    space: str
    method: str
    clusters: int
    silhouette: float
    silhouette_kernels: float
    restarts_ari: float = float("nan")
    bootstrap_ari: float = float("nan")
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CountCurve:
    """Scores against the number of clusters in one space.

    Attributes:
      space: "kernels", "PCA" or "code".
      counts: numbers of clusters, ascending.
      silhouette: of k-means, in the space.
      bootstrap_ari: stability of k-means under the bootstrap.
      bic: of Gaussian mixtures per kernel; lower is better.
    """

    space: str
    counts: tuple[int, ...]
    silhouette: tuple[float, ...]
    bootstrap_ari: tuple[float, ...]
    bic: tuple[float, ...]

    @property
    def supported(self) -> dict[str, int]:
        """Number that each score prefers. One at the end of the range tried is a bound, not an answer."""
        best = {"silhouette": self.silhouette, "bootstrap_ari": self.bootstrap_ari}
        found = {name: self.counts[int(np.nanargmax(values))] for name, values in best.items()}
        return {**found, "bic": self.counts[int(np.nanargmin(self.bic))]}


@dataclass(frozen=True)
class ClusterValidation:
    """Evidence for clusters in one set of kernels.

    Attributes:
      kernels: number of kernels used.
      scores: at one number of clusters.
      curves: over many numbers of clusters, one for each space.
    """

    kernels: int
    scores: tuple[PartitionScore, ...]
    curves: tuple[CountCurve, ...]


def validate_clusters(
    kernels: ArrayLike,
    code: ArrayLike | None = None,
    *,
    clusters: int = 10,
    given: Mapping[str, Shaped[np.ndarray, "n"]] | None = None,
    counts: Sequence[int] = COUNTS,
    sample: int = SAMPLE,
    repeats: int = 5,
    seed: int = 0,
) -> ClusterValidation:
    """Score k-means and Gaussian mixtures on kernels, PCA and code, and partitions that are given.

    Args:
      kernels: `[n, s, s]`; constant and non-finite ones are left out.
      code: of each kernel `[n]`; NaN leaves a kernel out.
      clusters: number of clusters for the scores.
      given: partitions by name `[n]` each, such as names along the code.
      counts: numbers of clusters for the curves; those above a quarter of the kernels are left out.
      sample: kernels used at most.
      repeats: partitions for each measure of stability.
      seed: of samples and starts.

    Returns:
      Scores of every method in every space and of the given partitions, and curves.

    Raises:
      ValueError: fewer than 8 kernels are finite and not constant.
    """
    rows, good = normalize_rows(kernels)
    codes = None if code is None else np.asarray(code, np.float64)
    if codes is not None:
        good = good & np.isfinite(codes)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(good))[:sample]
    if len(chosen) < 8:
        raise ValueError(f"{len(chosen)} kernels are too few to cluster; at least 8 are needed")
    size = np.asarray(kernels).shape[1]
    spaces = representations(rows[chosen].reshape(-1, size, size), None if codes is None else codes[chosen])
    parts = {name: np.asarray(labels)[chosen] for name, labels in (given or {}).items()}
    clusters = min(clusters, len(chosen) // 2)
    scores = [
        _score(spaces, space, method, clusters, parts, repeats, seed)
        for space in spaces
        for method in METHODS
    ]
    for name, labels in parts.items():
        scores.append(
            PartitionScore(
                space=name,
                method="given",
                clusters=len(np.unique(labels)),
                silhouette=float("nan"),
                silhouette_kernels=silhouette_rows(spaces["kernels"], labels),
                agreement={
                    other: agreement(labels, values)._asdict()
                    for other, values in parts.items()
                    if other != name
                },
            )
        )
    tried = [k for k in counts if k <= len(chosen) // 4]
    curves = [_curve(space, spaces[space], tried, seed) for space in spaces] if tried else []
    return ClusterValidation(len(chosen), tuple(scores), tuple(curves))


def _score(
    spaces: Mapping[str, np.ndarray],
    space: str,
    method: Method,
    clusters: int,
    parts: Mapping[str, np.ndarray],
    repeats: int,
    seed: int,
) -> PartitionScore:
    rows = spaces[space]
    labels, _ = partition_rows(rows, clusters, method, seed, starts=3)
    stable = {
        resample: stability(rows, clusters, method, resample=resample, repeats=repeats, seed=seed)
        for resample in (False, True)
    }
    return PartitionScore(
        space=space,
        method=method,
        clusters=clusters,
        silhouette=silhouette_rows(rows, labels),
        silhouette_kernels=silhouette_rows(spaces["kernels"], labels),
        restarts_ari=stable[False],
        bootstrap_ari=stable[True],
        agreement={name: agreement(labels, values)._asdict() for name, values in parts.items()},
    )


def _curve(space: str, rows: np.ndarray, counts: Sequence[int], seed: int) -> CountCurve:
    columns = []
    for k in counts:
        labels, _ = partition_rows(rows, k, "k-means", seed, starts=2)
        _, model = partition_rows(rows, k, "mixture", seed)
        stable = stability(rows, k, resample=True, repeats=_COUNT_REPEATS, seed=seed)
        columns.append((silhouette_rows(rows, labels), stable, float(model.bic(rows)) / len(rows)))
    silhouettes, stabilities, bics = zip(*columns, strict=True)
    return CountCurve(space, tuple(counts), silhouettes, stabilities, bics)


@dataclass(frozen=True, eq=False)
class Gap:
    """Gap statistic against null kernels.

    Attributes:
      counts: numbers of clusters `[k]`.
      gap: mean log within-cluster scatter of the references less that of the kernels `[k]`.
      error: standard deviation over the references, widened for their number `[k]`.
    """

    counts: tuple[int, ...]
    gap: Float[np.ndarray, "k"]
    error: Float[np.ndarray, "k"]

    @property
    def supported(self) -> int:
        """Smallest number whose gap the next does not exceed by more than its error."""
        for place in range(len(self.counts) - 1):
            if self.gap[place] >= self.gap[place + 1] - self.error[place + 1]:
                return self.counts[place]
        return self.counts[-1]


def gap_statistic(
    kernels: ArrayLike,
    references: Sequence[ArrayLike],
    *,
    counts: Sequence[int] = (1, *COUNTS),
    sample: int = SAMPLE,
    seed: int = 0,
) -> Gap:
    """Compute the gap statistic of k-means (Tibshirani, Walther and Hastie, 2001) with null kernels.

    The usual reference is uniform in a box. A covariance-matched null is stricter: it has the kernels' own
    second moments, so that a gap says there is grouping beyond them.

    Args:
      kernels: `[n, s, s]`.
      references: several sets of null kernels `[m, s, s]`; all sets and the kernels are cut to one length.
      counts: numbers of clusters, ascending.
      sample: kernels used at most.
      seed: of samples and starts.

    Returns:
      The gap for each number of clusters.

    Raises:
      ValueError: fewer than two references, or too few kernels for the numbers asked.
    """
    sets = [rows[good] for rows, good in map(normalize_rows, (kernels, *references))]
    rng = np.random.default_rng(seed)
    length = min(sample, *(len(rows) for rows in sets))
    if len(sets) < 3 or length <= max(counts):
        raise ValueError(
            f"a gap statistic needs two references or more and more kernels than clusters, "
            f"got {len(sets) - 1} references and {length} kernels for {max(counts)} clusters"
        )
    scatter = np.array(
        [
            [np.log(partition_rows(rows, k, "k-means", seed, starts=2)[1].inertia_) for k in counts]
            for rows in (found[rng.permutation(len(found))[:length]] for found in sets)
        ]
    )
    gap = scatter[1:].mean(axis=0) - scatter[0]
    error = scatter[1:].std(axis=0) * np.sqrt(1 + 1 / len(references))
    return Gap(tuple(counts), gap, error)
