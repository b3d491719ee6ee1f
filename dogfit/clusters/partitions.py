"""Partitions of kernels by k-means and Gaussian mixtures, and scores of partitions.

Kernels are centered and scaled to unit norm here, so that Euclidean distance ranks as cosine does. Each
estimator (scikit-learn's) can run on the kernels, on their principal components and on an autoencoder's code.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from dogfit.normalize import normalize_rows

Method = Literal["k-means", "mixture"]
METHODS: tuple[Method, ...] = ("k-means", "mixture")
# Principal components kept: as many as hold this share of the variance, within the most.
PCA_VARIANCE, PCA_MOST = 0.9, 10
# Above this many dimensions a mixture has diagonal covariances: full ones would outnumber the kernels.
FULL_COVARIANCE = 10
# Added to variances of a mixture: unit vectors have variances of about 1 / taps.
MIXTURE_FLOOR = 1e-5


@dataclass(frozen=True, eq=False)
class KMeans:
    """Partition by k-means.

    Attributes:
      labels: cluster of each kernel, -1 for constant and non-finite ones `[n]`.
      centroids: `[k, taps]`.
      inertia: summed squared distance to the centroids.
    """

    labels: Int[np.ndarray, "n"]
    centroids: Float[np.ndarray, "k taps"]
    inertia: float


def kmeans(kernels: ArrayLike, k: int, seed: int = 0) -> KMeans:
    """Cluster kernels into `k` groups by k-means; the best of four starts is kept.

    Args:
      kernels: `[n, s, s]`; centered and scaled to unit norm here.
      k: number of groups.
      seed: of the starts.

    Returns:
      The partition.

    Raises:
      ValueError: `k` is below 1 or above the number of kernels that are finite and not constant.

    Example:
      >>> import numpy as np
      >>> from dogfit.clusters import kmeans
      >>> bar = np.outer([0, 1, 0], [1, 1, 1])
      >>> kernels = np.stack([bar, 3 * bar, bar.T, bar.T + 1])  # gain and offset do not matter
      >>> labels = kmeans(kernels, 2).labels
      >>> bool(labels[0] == labels[1] != labels[2] == labels[3])
      True
    """
    rows, good = _rows_for(kernels, k)
    model = _estimator("k-means", k, rows.shape[1], seed, starts=4)
    with _single_threaded():
        model.fit(rows[good])
    labels = np.full(len(rows), -1, np.int32)
    labels[good] = model.labels_
    return KMeans(labels, model.cluster_centers_, float(model.inertia_))


@dataclass(frozen=True, eq=False)
class Mixture:
    """Partition by a Gaussian mixture.

    Attributes:
      labels: component of each kernel, -1 for constant and non-finite ones `[n]`.
      means: `[k, taps]`.
      bic: Bayesian information criterion; lower is better.
    """

    labels: Int[np.ndarray, "n"]
    means: Float[np.ndarray, "k taps"]
    bic: float


def mixture(kernels: ArrayLike, k: int, seed: int = 0) -> Mixture:
    """Cluster kernels by a Gaussian mixture; covariances are full for up to ten taps and diagonal beyond.

    Args:
      kernels: `[n, s, s]`; centered and scaled to unit norm here.
      k: number of components.
      seed: of the starts.

    Returns:
      The partition.

    Raises:
      ValueError: `k` is below 1 or above the number of kernels that are finite and not constant.
    """
    rows, good = _rows_for(kernels, k)
    model = _estimator("mixture", k, rows.shape[1], seed, starts=2)
    usable = rows[good].astype(np.float64)
    labels = np.full(len(rows), -1, np.int32)
    with _single_threaded():
        labels[good] = model.fit_predict(usable)
    return Mixture(labels, model.means_, float(model.bic(usable)))


def _rows_for(kernels: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalized rows and the mask of usable ones; refuses fewer of them than clusters."""
    rows, good = normalize_rows(kernels)
    if not 1 <= k <= good.sum():
        raise ValueError(f"k must lie between 1 and the {good.sum()} usable kernels, got {k}")
    return rows, good


def representations(
    kernels: ArrayLike, code: ArrayLike | None = None
) -> dict[str, Float[np.ndarray, "n dims"]]:
    """Represent kernels in each space that can be clustered.

    Args:
      kernels: `[n, s, s]`, none constant; centered and scaled to unit norm here.
      code: `[n]` or `[n, dims]`, left out if None.

    Returns:
      Rows `[n, dims]` by name: "kernels" has the kernels themselves, "PCA" the principal components that hold
      90 % of the variance, at most ten, and "code" the code.
    """
    from sklearn.decomposition import PCA

    rows = normalize_rows(kernels)[0].astype(np.float64)
    most = min(PCA_MOST, *rows.shape)
    found = PCA(most, svd_solver="full").fit(rows)
    held = np.cumsum(found.explained_variance_ratio_)
    kept = min(int(np.searchsorted(held, PCA_VARIANCE)) + 1, most)
    spaces = {"kernels": rows, "PCA": found.transform(rows)[:, :kept]}
    if code is not None:
        spaces["code"] = np.asarray(code, np.float64).reshape(len(rows), -1)
    return spaces


def _estimator(method: Method, k: int, dims: int, seed: int, *, starts: int = 1) -> Any:
    """Make one of scikit-learn's estimators, not yet fitted."""
    if method == "k-means":
        from sklearn.cluster import KMeans as Estimator

        return Estimator(k, n_init=starts, random_state=seed)  # type: ignore[arg-type]
    from sklearn.mixture import GaussianMixture

    shape = "full" if dims <= FULL_COVARIANCE else "diag"
    return GaussianMixture(
        k, covariance_type=shape, n_init=starts, reg_covar=MIXTURE_FLOOR, random_state=seed, max_iter=60
    )


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Use one thread, and ignore warnings of duplicates and step limits: scores say how good a partition is.

    On a few thousand kernels more threads cost more than they give: when other work runs beside them, their
    busy waiting takes ten times the CPU time.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def partition_rows(
    rows: Float[np.ndarray, "n dims"], k: int, method: Method, seed: int = 0, *, starts: int = 1
) -> tuple[Int[np.ndarray, "n"], Any]:
    """Partition rows.

    Args:
      rows: `[n, dims]`.
      k: number of clusters.
      method: "k-means" or "mixture".
      seed: of the starts.
      starts: random starts, of which the best is kept.

    Returns:
      Cluster of each row `[n]`, and the fitted estimator of scikit-learn.
    """
    model = _estimator(method, k, rows.shape[1], seed, starts=starts)
    with _single_threaded():
        return model.fit(rows).predict(rows), model


def stability(
    rows: Float[np.ndarray, "n dims"],
    k: int,
    method: Method = "k-means",
    *,
    resample: bool,
    repeats: int = 5,
    seed: int = 0,
) -> float:
    """Mean ARI between repeated partitions of the same rows: 1 when all are the same.

    Args:
      rows: `[n, dims]`.
      k: number of clusters.
      method: "k-means" or "mixture".
      resample: fit each on a bootstrap sample and assign all rows, instead of on all rows from another
        random start.
      repeats: partitions.
      seed: of samples and starts.

    Returns:
      A number up to 1; NaN for fewer than two partitions.
    """
    rng = np.random.default_rng([seed, k, resample])
    found = []
    with _single_threaded():
        for repeat in range(repeats):
            model = _estimator(method, k, rows.shape[1], seed + 1 + repeat)
            drawn = rows[rng.integers(len(rows), size=len(rows))] if resample else rows
            found.append(model.fit(drawn).predict(rows))
    pairs = [agreement(a, b).ari for i, a in enumerate(found) for b in found[i + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")


def silhouette(kernels: ArrayLike, labels: ArrayLike, *, sample: int = 2000, seed: int = 0) -> float:
    """Mean silhouette of a partition of kernels, on a random sample.

    Args:
      kernels: `[n, s, s]`; centered and scaled to unit norm here. Constant and non-finite ones are left out.
      labels: cluster of each kernel `[n]`; kernels with labels below 0 are left out.
      sample: kernels, at most.
      seed: of the sample.

    Returns:
      A number in [-1, 1]; NaN when the sample has fewer than two clusters, or a cluster for every kernel.
    """
    rows, good = normalize_rows(kernels)
    partition = np.asarray(labels)
    chosen = np.flatnonzero(good & (partition >= 0))
    chosen = np.random.default_rng(seed).permutation(chosen)[:sample]
    return silhouette_rows(rows[chosen], partition[chosen])


def silhouette_rows(rows: Float[np.ndarray, "n dims"], labels: ArrayLike) -> float:
    """Mean silhouette of a partition of rows in their own space.

    Args:
      rows: `[n, dims]`.
      labels: cluster of each row `[n]`, integers or names.

    Returns:
      A number in [-1, 1]; NaN for fewer than two clusters, or a cluster for every row.
    """
    from sklearn.metrics import silhouette_score

    partition = np.unique(np.asarray(labels), return_inverse=True)[1]
    if not 2 <= len(np.unique(partition)) < len(partition):
        return float("nan")
    with _single_threaded():
        return float(silhouette_score(rows, partition))


class Agreement(NamedTuple):
    """Agreement of two partitions.

    Attributes:
      ari: adjusted Rand index, 1 when equal, about 0 when unrelated.
      nmi: normalized mutual information, 1 when equal; when unrelated it grows with the number of clusters.
    """

    ari: float
    nmi: float


def agreement(a: ArrayLike, b: ArrayLike) -> Agreement:
    """Compare two partitions of the same kernels.

    Args:
      a, b: cluster of each kernel `[n]`, integers or names.

    Returns:
      Adjusted Rand index and normalized mutual information.

    Raises:
      ValueError: the partitions differ in length.

    Example:
      >>> from dogfit.clusters import agreement
      >>> agreement([0, 0, 1, 1], ["bar", "bar", "blob", "blob"])
      Agreement(ari=1.0, nmi=1.0)
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        raise ValueError(f"partitions must have one length, got {first.shape} and {second.shape}")
    return Agreement(
        float(adjusted_rand_score(first, second)), float(normalized_mutual_info_score(first, second))
    )
