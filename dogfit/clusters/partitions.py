"""Partitions of kernels to set beside the named segments: k-means and Gaussian mixtures, and their scores.

Kernels are centred and scaled to unit norm here, so that Euclidean distance ranks as cosine does. Each
estimator (scikit-learn's) can run on the kernels, on their principal components and on an autoencoder's code.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from dogfit.autoencoder.autoencoder import normalize_rows

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
    """labels `[n]` (-1 where there is no shape), centroids `[k, taps]`, inertia (summed squared distance)."""

    labels: Int[np.ndarray, "n"]
    centroids: Float[np.ndarray, "k taps"]
    inertia: float


def kmeans(kernels: ArrayLike, k: int, seed: int = 0) -> KMeans:
    """Cluster kernels `[n, s, s]`, centred and scaled to unit norm, into `k` groups; best of four starts.

    Raises:
      ValueError: `k` is below 1 or above the number of kernels that have a shape.
    """
    rows, good = _enough(kernels, k)
    model = _estimator("k-means", k, rows.shape[1], seed, starts=4)
    with _small_fits():
        model.fit(rows[good])
    labels = np.full(len(rows), -1, np.int32)
    labels[good] = model.labels_
    return KMeans(labels, model.cluster_centers_, float(model.inertia_))


@dataclass(frozen=True, eq=False)
class Mixture:
    """labels `[n]` (-1 where there is no shape), means `[k, taps]`, and the BIC (lower is better)."""

    labels: Int[np.ndarray, "n"]
    means: Float[np.ndarray, "k taps"]
    bic: float


def mixture(kernels: ArrayLike, k: int, seed: int = 0) -> Mixture:
    """Gaussian mixture of `k` components on kernels `[n, s, s]`, centred and scaled to unit norm.

    Covariances are full for up to ten taps and diagonal beyond.

    Raises:
      ValueError: `k` is below 1 or above the number of kernels that have a shape.
    """
    rows, good = _enough(kernels, k)
    model = _estimator("mixture", k, rows.shape[1], seed, starts=2)
    usable = rows[good].astype(np.float64)
    labels = np.full(len(rows), -1, np.int32)
    with _small_fits():
        labels[good] = model.fit_predict(usable)
    return Mixture(labels, model.means_, float(model.bic(usable)))


def _enough(kernels: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows, good = normalize_rows(kernels)
    if not 1 <= k <= good.sum():
        raise ValueError(f"k must lie between 1 and the {good.sum()} usable kernels, got {k}")
    return rows, good


def representations(
    kernels: ArrayLike, code: ArrayLike | None = None
) -> dict[str, Float[np.ndarray, "n dims"]]:
    """What can be clustered: the kernels themselves, their principal components, and a code.

    Args:
      kernels: `[n, s, s]`, none constant; centred and scaled to unit norm here.
      code: `[n]` or `[n, dims]`, left out if None.

    Returns:
      By name ("kernels", "PCA", "code"). The components kept hold 90 % of the variance, at most ten.
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
    """One of scikit-learn's estimators, not yet fitted."""
    if method == "k-means":
        from sklearn.cluster import KMeans as Estimator

        return Estimator(k, n_init=starts, random_state=seed)  # type: ignore[arg-type]
    from sklearn.mixture import GaussianMixture

    shape = "full" if dims <= FULL_COVARIANCE else "diag"
    return GaussianMixture(
        k, covariance_type=shape, n_init=starts, reg_covar=MIXTURE_FLOOR, random_state=seed, max_iter=60
    )


@contextmanager
def _small_fits() -> Iterator[None]:
    """One thread, and silence about duplicates and step limits: the scores say how good a partition is.

    On a few thousand kernels threads cost more than they give: beside other work their busy waiting takes ten
    times the CPU time.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def partition_rows(
    rows: Float[np.ndarray, "n dims"], k: int, method: Method, seed: int = 0, *, starts: int = 1
) -> tuple[Int[np.ndarray, "n"], Any]:
    """Labels of the rows, and the fitted scikit-learn estimator; best of `starts` random starts."""
    model = _estimator(method, k, rows.shape[1], seed, starts=starts)
    with _small_fits():
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
    """Mean ARI between repeated partitions of the same rows: 1 when they always come out alike.

    Args:
      resample: fit each on a bootstrap sample and assign all rows, instead of on all rows from another
        random start.
    """
    rng = np.random.default_rng([seed, k, resample])
    found = []
    with _small_fits():
        for repeat in range(repeats):
            model = _estimator(method, k, rows.shape[1], seed + 1 + repeat)
            drawn = rows[rng.integers(len(rows), size=len(rows))] if resample else rows
            found.append(model.fit(drawn).predict(rows))
    pairs = [agreement(a, b).ari for i, a in enumerate(found) for b in found[i + 1 :]]
    return float(np.mean(pairs)) if pairs else float("nan")


def silhouette(kernels: ArrayLike, labels: ArrayLike, *, sample: int = 2000, seed: int = 0) -> float:
    """Mean silhouette of a partition of kernels `[n, s, s]`, on a random sample.

    Kernels without a shape and those labelled below 0 are left out. NaN when the sample has fewer than two
    clusters, or a cluster for every kernel.
    """
    rows, good = normalize_rows(kernels)
    partition = np.asarray(labels)
    chosen = np.flatnonzero(good & (partition >= 0))
    chosen = np.random.default_rng(seed).permutation(chosen)[:sample]
    return silhouette_rows(rows[chosen], partition[chosen])


def silhouette_rows(rows: Float[np.ndarray, "n dims"], labels: ArrayLike) -> float:
    """Mean silhouette of a partition of rows in their own space; NaN where it is not defined."""
    from sklearn.metrics import silhouette_score

    partition = np.unique(np.asarray(labels), return_inverse=True)[1]
    if not 2 <= len(np.unique(partition)) < len(partition):
        return float("nan")
    with _small_fits():
        return float(silhouette_score(rows, partition))


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
