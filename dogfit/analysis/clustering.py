"""Clusters of the kernels of one size beside the named segments: k-means, and universal filters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from dogfit.analysis.results import (
    CODE_NAMES,
    FIT_LABELS,
    K_MEANS,
    NETWORK,
    Candidates,
    Clusters,
    FilterSearch,
    SizeResult,
    Universal,
)
from dogfit.analysis.stage_files import load_arrays, save_arrays
from dogfit.normalize import normalize_kernels, normalize_rows
from dogfit.runtime.keys import make_key
from dogfit.runtime.progress import Progress
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder
    from dogfit.clusters import UniversalFilters

KMEANS_CLUSTERS = 10
"""Clusters of k-means where no code says how many names there are: the paper names about ten patterns."""
KMEANS_SAMPLE, SILHOUETTE_SAMPLE = 200_000, 20_000
"""Most kernels that find the centers of k-means, and that score partitions: a random sample of more."""
_FEWER_CANDIDATES = (25, 10)
_RANDOM_ORDERS = 5
_CONTROL_SAMPLE = 4000


def add_kmeans(result: SizeResult, seed: int, work: Workspace, progress: Progress) -> SizeResult:
    """Add k-means on the kernels as a baseline, and the agreement between the partitions.

    Args:
      result: with fits, and with the clusters of a code if there is one.
      seed: of the starts and samples.
      work: where the partition is kept.
      progress: shown while clustering.

    Returns:
      The result with the baseline; unchanged with fewer than two kernels for each cluster.
    """
    own, code_clusters = result.usable, result.code_clusters
    count = len(code_clusters.names) if code_clusters else KMEANS_CLUSTERS
    if len(own.kernels) < 2 * count:
        return result
    size = own.kernels.shape[-1]
    along_code = {CODE_NAMES: code_clusters.index[result.good]} if code_clusters else {}
    key = make_key("k-means", own.kernels, own.label.tolist(), along_code, count, seed)

    def write(path: Path) -> None:
        with progress.stage(f"k-means of {size}×{size} kernels", "kernels"):
            labels, centers = assign_by_kmeans(own.kernels, count, seed)
            partitions = {**along_code, K_MEANS: labels, FIT_LABELS: own.label}
            scores = _compare(own.kernels, partitions, seed)
        names = [_cluster_name(number, own.label[labels == number]) for number in range(count)]
        save_arrays(
            path, {"labels": labels, "centers": normalize_kernels(centers)}, {"names": names, **scores}
        )

    arrays, about = load_arrays(work.stage(f"kmeans-{size}", key, write))
    index = np.full(len(result.own.r2), -1, np.int32)
    index[result.good] = arrays["labels"]
    return replace(
        result,
        kmeans=Clusters(index, tuple(about["names"]), arrays["centers"]),
        agreement=about["agreement"],
        silhouette=about["silhouette"],
    )


def _cluster_name(number: int, labels: np.ndarray) -> str:
    common = Counter(labels.tolist()).most_common(1)
    return f"{number} {common[0][0]}" if common else str(number)


def _compare(kernels: np.ndarray, partitions: dict[str, np.ndarray], seed: int) -> dict[str, dict]:
    """Score partitions, and every pair of them."""
    from dogfit.clusters import agreement, silhouette

    numbered = {name: np.unique(given, return_inverse=True)[1] for name, given in partitions.items()}
    some = _sample(len(kernels), SILHOUETTE_SAMPLE, seed)
    scores = {name: silhouette(kernels[some], given[some], seed=seed) for name, given in numbered.items()}
    return {
        "agreement": {
            f"{a} / {b}": agreement(numbered[a], numbered[b])._asdict() for a, b in combinations(numbered, 2)
        },
        "silhouette": {name: score for name, score in scores.items() if np.isfinite(score)},
    }


def assign_by_kmeans(
    kernels: Float[np.ndarray, "n k k"], count: int, seed: int, sample: int = KMEANS_SAMPLE
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "m k k"]]:
    """Cluster kernels by k-means.

    Args:
      kernels: centered and of unit norm `[n, k, k]`.
      count: number of clusters.
      seed: of the starts and the sample.
      sample: of more kernels than these a random sample finds the centers.

    Returns:
      Cluster of each kernel `[n]`, and the centers `[count, k, k]`.
    """
    from dogfit.clusters import kmeans

    some = _sample(len(kernels), sample, seed)
    found = kmeans(kernels[some], count, seed)
    centers = found.centroids.astype(np.float32)
    labels = found.labels
    if len(labels) < len(kernels):
        rows, half = kernels.reshape(len(kernels), -1), np.sum(centers**2, axis=1) / 2
        blocks = [rows[i : i + sample] @ centers.T - half for i in range(0, len(rows), sample)]
        labels = np.concatenate([np.argmax(block, axis=1) for block in blocks]).astype(np.int32)
    return labels, centers.reshape(-1, *kernels.shape[1:])


def _sample(n: int, most: int, seed: int) -> np.ndarray | slice:
    """Choose rows of a random sample in order, or all if they are no more than `most`."""
    return slice(None) if n <= most else np.sort(np.random.default_rng(seed).permutation(n)[:most])


def add_universal_filters(
    result: SizeResult,
    autoencoder: "Autoencoder | None",
    given: Float[np.ndarray, "m k k"] | None,
    seed: int,
    work: Workspace,
    progress: Progress,
) -> SizeResult:
    """Add few filters that stand for all kernels, found in three ways, and two controls.

    Args:
      result: with kernels and nulls.
      autoencoder: of these kernels; without one there are no candidates from a code.
      given: filters to compare with; those of another size are left out.
      seed: of the samples and orders.
      work: where filters are kept.
      progress: shown while they are found.

    Returns:
      The result with universal filters; unchanged with fewer than two kernels.
    """
    kernels, null = result.usable.kernels, result.hardest_null
    if len(kernels) < 2:
        return result
    size = kernels.shape[-1]
    code = None if autoencoder is None else autoencoder.to_bytes()
    key = make_key("universal", kernels, null.kernels, null.name, code or "no code", seed)

    def write(path: Path) -> None:
        with progress.stage(f"universal {size}×{size} filters", "kernels"):
            found = _find_filters(result, autoencoder, seed)
            _save_filters(path, found, _controls(kernels, seed))

    universal = _load_filters(work.stage(f"universal-{size}", key, write))
    if given is not None and given.shape[1:] != (size, size):
        k = given.shape[1]
        progress.say(f"filters of {k}×{k} are not compared with kernels of {size}×{size}")
    elif given is not None:
        universal = _with_given(universal, kernels, given, work)
    return replace(result, universal=universal)


def _find_filters(
    result: SizeResult, autoencoder: "Autoencoder | None", seed: int
) -> tuple[FilterSearch, ...]:
    from dogfit.clusters.latent_segments import evenly_spaced_codes
    from dogfit.clusters.universal_filters import N_CANDIDATES, backward_elimination, forward_selection

    kernels, null, most = result.usable.kernels, result.hardest_null, N_CANDIDATES
    found: list[FilterSearch] = []

    def add(name: str, candidates: Candidates, chosen: "UniversalFilters") -> None:
        found.append(FilterSearch(name, candidates, chosen.filters, chosen.explained))

    add(f"forward, {NETWORK}", "network", forward_selection(kernels, most, seed=seed))
    add(f"forward, {null.name}", "null", forward_selection(null.kernels, most, seed=seed))
    if autoencoder is not None and autoencoder.config.code_dim == 1:
        for m in (N_CANDIDATES, *_FEWER_CANDIDATES):
            decoded = autoencoder.decode(evenly_spaced_codes(m))
            if np.ptp(decoded, axis=(1, 2)).any():
                add(f"code, {m}", "code", backward_elimination(decoded, kernels, seed=seed))
    return tuple(found)


def _controls(kernels: Float[np.ndarray, "n k k"], seed: int) -> dict[str, Float[np.ndarray, " m"]]:
    """Energy explained by filters that were not chosen."""
    from dogfit.clusters.universal_filters import N_CANDIDATES

    most, size = N_CANDIDATES, kernels.shape[-1]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(kernels))[:most] for _ in range(_RANDOM_ORDERS)]
    noise = rng.standard_normal((_RANDOM_ORDERS, most, size, size))
    sample = kernels[rng.permutation(len(kernels))[:_CONTROL_SAMPLE]]
    return {
        "random kernels": np.mean([_explained(kernels[order], sample) for order in orders], axis=0),
        "white noise": np.mean([_explained(filters, sample) for filters in noise], axis=0),
    }


def _explained(filters: np.ndarray, kernels: np.ndarray) -> Float[np.ndarray, " m"]:
    """Energy explained by the first 1, 2, ... filters, in the order given."""
    tried, rows = normalize_rows(filters)[0], normalize_rows(kernels)[0]
    return np.maximum.accumulate((rows @ tried.T) ** 2, axis=1).mean(axis=0)


def _save_filters(path: Path, found: Sequence[FilterSearch], controls: dict[str, np.ndarray]) -> None:
    arrays = {f"filters {i}": search.filters for i, search in enumerate(found)}
    arrays |= {f"explained {i}": search.explained for i, search in enumerate(found)}
    arrays |= {f"control {name}": curve for name, curve in controls.items()}
    searches = [{"name": search.name, "candidates": search.candidates} for search in found]
    save_arrays(path, arrays, {"searches": searches, "controls": list(controls)})


def _load_filters(path: Path) -> Universal:
    arrays, about = load_arrays(path)
    found = tuple(
        FilterSearch(**search, filters=arrays[f"filters {i}"], explained=arrays[f"explained {i}"])
        for i, search in enumerate(about["searches"])
    )
    return Universal(found, {name: arrays[f"control {name}"] for name in about["controls"]})


def _with_given(
    universal: Universal, kernels: np.ndarray, given: Float[np.ndarray, "m k k"], work: Workspace
) -> Universal:
    """Compare with filters from elsewhere."""
    from dogfit.clusters import explained_energy

    share = work.json_stage(
        f"given-filters-{kernels.shape[-1]}",
        make_key("given filters", kernels, given),
        lambda: float(np.nanmean(explained_energy(given, kernels))),
    )
    return replace(universal, given=given, given_explained=share)
