"""Choice of what a report shows: examples of kernels, the commonest labels, the largest models."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dogfit.analysis.results import NETWORK, SizeResult
from dogfit.analysis.shares import threshold_curves
from dogfit.kernelset.groups import KernelGroup
from dogfit.kernelset.kernelset import KernelSet
from dogfit.normalize import normalize_kernels

if TYPE_CHECKING:
    from dogfit.clusters import LatentSegments


@dataclass(frozen=True)
class FitExamples:
    """Some kernels beside their fits, all centered and on the scale of kernels of unit norm.

    Attributes:
      name: what they are examples of: "best", "median" or "worst".
      kernels: `[m, k, k]`.
      fits: `[m, k, k]`; residuals are `kernels - fits`.
      labels: of the fits.
      r2: of the fits `[m]`.
    """

    name: str
    kernels: Float[np.ndarray, "m k k"]
    fits: Float[np.ndarray, "m k k"]
    labels: tuple[str, ...]
    r2: Float[np.ndarray, " m"]


def fit_examples(found: SizeResult, group: KernelGroup, count: int) -> tuple[FitExamples, ...]:
    """Choose the kernels with the best, the median and the worst R².

    Args:
      found: findings about the kernels of one size.
      group: the same kernels in the checkpoint's units.
      count: kernels of each kind, at most.

    Returns:
      Best, median and worst; empty if no kernel was fitted.
    """
    r2 = found.own.r2
    ranked = np.argsort(-np.nan_to_num(r2, nan=-1), kind="stable")[: int(np.isfinite(r2).sum())]
    if not ranked.size:
        return ()
    count = min(count, ranked.size)
    middle = (ranked.size - count) // 2
    chosen = {"best": ranked[:count], "median": ranked[middle : middle + count], "worst": ranked[-count:]}

    def examples(name: str, rows: np.ndarray) -> FitExamples:
        scale = np.where(group.norm[rows] > 0, group.norm[rows], 1)[:, None, None]
        fits = (found.templates[rows] - group.mean[rows, None, None]) / scale
        return FitExamples(name, found.own.kernels[rows], fits, tuple(found.own.label[rows]), r2[rows])

    return tuple(examples(name, rows) for name, rows in chosen.items())


@dataclass(frozen=True)
class ClusterExamples:
    """Some kernels of one cluster.

    Attributes:
      name: of the cluster.
      count: kernels in the cluster.
      center: the kernel that stands for it `[k, k]`.
      members: from the most to the least similar `[m, k, k]`.
    """

    name: str
    count: int
    center: Float[np.ndarray, "k k"]
    members: Float[np.ndarray, "m k k"]


def cluster_examples(found: SizeResult, count: int, most: int) -> tuple[ClusterExamples, ...]:
    """Choose members of each cluster, evenly spaced by rank, from the most to the least similar.

    Similar to their own reconstruction, as the segments of one name hold different kernels; with k-means, to
    the center.

    Args:
      found: findings about the kernels of one size.
      count: members of each cluster, at most.
      most: clusters, at most; the largest are kept, in the order given.

    Returns:
      The examples of each cluster that has members; empty without clusters.
    """
    clusters = found.clusters
    if clusters is None:
        return ()
    members = [np.flatnonzero(clusters.index == index) for index in range(len(clusters.names))]
    largest = sorted(range(len(members)), key=lambda index: -members[index].size)[:most]
    examples = []
    for index in sorted(largest):
        rows = members[index]
        if not rows.size:
            continue
        similarity = np.einsum("nij,ij->n", found.own.kernels[rows], clusters.centers[index])
        if found.code_clusters and found.own.cosine is not None:
            similarity = found.own.cosine[rows]
        ranked = rows[np.argsort(-similarity, kind="stable")]
        chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))]
        examples.append(
            ClusterExamples(
                clusters.names[index], len(ranked), clusters.centers[index], found.own.kernels[chosen]
            )
        )
    return tuple(examples)


def decoded_examples(segments: "LatentSegments", count: int) -> Float[np.ndarray, "count k k"]:
    """Decoded kernels nearest to the middles of `count` equal parts of the code `[count, k, k]`."""
    middles = (np.arange(count) + 0.5) / count
    return segments.kernels[np.abs(segments.code - middles[:, None]).argmin(axis=1)]


def filter_examples(found: SizeResult, count: int) -> dict[str, Float[np.ndarray, "m k k"]]:
    """First universal filters of each search, and those given to compare with, centered and of unit norm.

    Args:
      found: findings about the kernels of one size.
      count: filters of each kind, at most.

    Returns:
      Filters `[m, k, k]` by the name of the search, and "given"; empty if none were searched for.
    """
    if found.universal is None:
        return {}
    examples = {search.name: search.filters[:count] for search in found.universal.found}
    if found.universal.given is not None:
        examples["given"] = normalize_kernels(found.universal.given[:count])
    return examples


def model_curves(found: SizeResult, kernelset: KernelSet, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Share of each model's kernels, and of its hardest null's, above every threshold.

    Args:
      found: findings about the kernels of one size.
      kernelset: the layers of the models.
      models: names of models that have kernels of this size.

    Returns:
      By model, the curves of `shares.threshold_curves`.
    """
    curves = {}
    for model in models:
        layers = [index for index, layer in enumerate(kernelset.layers) if layer.model == model]
        curves[model] = threshold_curves([s.of_layers(layers) for s in (found.usable, found.hardest_null)])
    return curves


def largest_models(by_layer: Sequence[Mapping[str, Any]], most: int) -> list[str]:
    """Names of the models with the most layers that have kernels to analyze, in the order given.

    Args:
      by_layer: the summary's parts.
      most: models, at most.
    """
    layers = Counter(part["model"] for part in by_layer if part["kernels"])
    largest = {model for model, _ in layers.most_common(most)}
    return [model for model in layers if model in largest]


def extreme_layers(by_layer: Sequence[Mapping[str, Any]], count: int) -> dict[str, list[Mapping[str, Any]]]:
    """Layers with the highest and the lowest median R².

    Args:
      by_layer: the summary's parts.
      count: layers of each kind.

    Returns:
      "best" and "worst", from the highest to the lowest; empty where the two would overlap.
    """
    ranked = sorted(by_layer, key=lambda part: -(part["median_r2"][NETWORK] or 0))
    return {"best": ranked[:count], "worst": ranked[-count:]} if len(ranked) >= 2 * count else {}


def commonest_labels(parts: Sequence[Mapping[str, Any]], labels: Sequence[str], most: int) -> list[str]:
    """Labels with the largest share in any part, the commonest first.

    Args:
      parts: of the summary's `label_shares`, such as `by_model`.
      labels: to choose among; every part has a share of each.
      most: labels, at most.
    """
    largest = {label: max(part["shares"][label]["share"] for part in parts) for label in labels}
    return sorted(labels, key=lambda label: -largest[label])[:most]


def commonest_counts(labels: Mapping[str, Mapping[str, int]], most: int) -> list[tuple[str, int]]:
    """Labels of the network's kernels with their counts, the commonest first, unused ones left out.

    Args:
      labels: counts by label and set of kernels, as in the summary.
      most: labels, at most.
    """
    counts = sorted(((count[NETWORK], label) for label, count in labels.items()), reverse=True)
    return [(label, count) for count, label in counts[:most] if count]


def label_fractions(labels: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float | None]]:
    """Fraction of each set of kernels that bears each label; None for a set without kernels.

    Args:
      labels: counts by label and set of kernels, as in the summary.
    """
    totals: Counter[str] = Counter()
    for counts in labels.values():
        totals.update(counts)
    return {
        label: {name: count / totals[name] if totals[name] else None for name, count in counts.items()}
        for label, counts in labels.items()
    }


def largest_cluster_count(evidence: Mapping[str, Any]) -> int:
    """Largest number of clusters that was tried; 0 if none was."""
    curves = [curve for part in evidence["sets"].values() for curve in part["curves"]]
    return max((max(curve["counts"]) for curve in curves), default=0)
