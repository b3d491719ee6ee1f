"""The numbers of a run as one plain dictionary: `summary.json`, and all that the page and the terminal say.

A share of kernels never stands alone: wherever one is given, the nulls' shares are beside it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import dogfit
from dogfit.analysis.layer_metrics import layer_quality
from dogfit.analysis.results import RunResult, Scores, SizeResult
from dogfit.analysis.shares import patterns, share_sections, threshold_curves, universal
from dogfit.clusters import paper_dissimilarity, paper_r2, share_above
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.kernelset.kernelset import KernelSet
from dogfit.nulls import threshold_at_rate

HIGH_R2 = 0.8


Part = Callable[[str, Callable[[], Any]], Any]
"""Gives a part of the summary, by its name and the function that computes it."""


def compute(name: str, make: Callable[[], Any]) -> Any:  # noqa: ARG001
    """Compute a part of the summary, which no earlier run has computed."""
    return make()


def summarize(result: RunResult, part: Part = compute) -> dict[str, Any]:
    """Sum up a run for its readers.

    Args:
      result: the findings.
      part: gives the parts that take time and depend on kernels, fits and codes alone: those of an earlier
        run, or computed.

    Returns:
      Everything a reader is told, ready for JSON; the same for the same inputs, seed and device.
    """
    kernelset = result.kernelset
    return {
        "dogfit": dogfit.__version__,
        "settings": dict(result.settings),
        "models": [_model(kernelset, name) for name in kernelset.models],
        "left_out": [*kernelset.notes, *result.skipped_sizes.values(), *result.notes],
        "skipped_sizes": {str(size): reason for size, reason in result.skipped_sizes.items()},
        "sizes": {str(size): _size(kernelset, size, found, part) for size, found in result.sizes.items()},
    }


def _model(kernelset: KernelSet, name: str) -> dict[str, Any]:
    layers = [layer for layer in kernelset.layers if layer.model == name]
    kernels = {
        size: sum(layer.channels for layer in layers if layer.size == size) for size in kernelset.sizes
    }
    return {
        "name": name,
        "layers": len(layers),
        "kernels": {str(size): count for size, count in kernels.items() if count},
    }


def _size(kernelset: KernelSet, size: int, found: SizeResult, part: Part) -> dict[str, Any]:
    group = kernelset.groups[size]
    quality = part(f"layer-quality-{size}", lambda: _layer_quality(group))
    own = found.usable
    everyone = (own, *found.nulls)
    models = {
        name: [i for i, layer in enumerate(kernelset.layers) if layer.model == name]
        for name in kernelset.models
    }
    return {
        "kernels": len(found.good),
        "flagged": {flag.name.lower(): int(np.sum(group.flag == flag)) for flag in Flag if flag != Flag.OK},
        "fitted": int(np.sum(np.isfinite(own.r2))),
        "null_kernels": {null.name: len(null.r2) for null in found.nulls},
        "hardest_null": found.hardest_null.name,
        "families": _counts(found.fits["family"].to_list(), found.families),
        "omitted_families": dict(found.unidentifiable),
        "r2": {scores.name: scores.r2_quantiles for scores in everyone},
        "shares": _shares(everyone, size, null_thresholds(found), null_thresholds(found, "cosine")),
        "curves": threshold_curves(everyone),
        "labels": _labels(everyone),
        "autoencoder": _autoencoder(found),
        "kmeans": {"clusters": len(found.kmeans.names)} if found.kmeans else None,
        "agreement": {pair: dict(values) for pair, values in found.agreement.items()},
        "silhouette": dict(found.silhouette),
        "patterns": patterns(found, size),
        "label_shares": part(f"label-shares-{size}", lambda: share_sections(kernelset, size, found)),
        "universal": universal(found),
        "evidence": found.evidence,
        "by_model": [
            {"model": name, **_part(everyone, size, layers)}
            for name, layers in models.items()
            if np.isin(group.layer, layers).any()
        ],
        "by_layer": [
            {**_layer(kernelset, index), "quality": quality[str(index)], **_part(everyone, size, [index])}
            for index in np.unique(group.layer).tolist()
        ],
    }


def null_thresholds(found: SizeResult, measure: str = "r2") -> dict[str, float]:
    """Threshold of each null at the rate asked for, by the null's name; empty if nothing was measured."""
    values = {null.name: getattr(null, measure) for null in found.nulls}
    return {
        name: threshold_at_rate(of, found.null_rate)
        for name, of in values.items()
        if of is not None and np.isfinite(of).any()
    }


def _shares(
    everyone: Sequence[Scores],
    size: int,
    r2_rates: Mapping[str, float],
    cosine_rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Share of kernels and of every null above each threshold; our definition first, then the paper's.

    The `kind` of a threshold is "paper", "close" (`HIGH_R2`) or "null_rate", with the name of its `null`.
    """
    similarity = 1 - paper_dissimilarity(size)
    asked = [
        ("r2", paper_r2(size), "paper", None, "the paper's threshold"),
        ("r2", HIGH_R2, "close", None, "a close fit"),
        *(("r2", at, "null_rate", name, f"null rate of {name}") for name, at in r2_rates.items()),
        ("cosine", similarity, "paper", None, "the paper's criterion"),
        *(("cosine", at, "null_rate", name, f"null rate of {name}") for name, at in cosine_rates.items()),
    ]
    return [
        {
            "measure": measure,
            "threshold": threshold,
            "kind": kind,
            "null": null,
            "meaning": meaning,
            "shares": {scores.name: share_above(getattr(scores, measure), threshold) for scores in everyone},
        }
        for measure, threshold, kind, null, meaning in asked
        if getattr(everyone[0], measure) is not None
    ]


def _part(everyone: Sequence[Scores], size: int, layers: Sequence[int]) -> dict[str, Any]:
    """The shares of some layers, beside the nulls drawn for them and those that stand for no layer."""
    part = [scores.of_layers(layers) for scores in everyone]
    return {
        "kernels": len(part[0].r2),
        "median_r2": {scores.name: scores.r2_quantiles["50 %"] for scores in part},
        "shares": _shares(part, size, {}, {}),
        "labels": _labels(part),
    }


def _layer(kernelset: KernelSet, index: int) -> dict[str, Any]:
    layer = kernelset.layers[index]
    return {name: getattr(layer, name) for name in ("model", "name", "position", "stage", "block")}


def _layer_quality(group: KernelGroup) -> dict[str, dict[str, float | None]]:
    """Measure every layer, by its index as text."""
    layers, starts = np.unique(group.layer, return_index=True)
    parts = np.split(group.kernels, starts[1:])
    return {str(layer): layer_quality(part) for layer, part in zip(layers.tolist(), parts, strict=True)}


def _labels(everyone: Sequence[Scores]) -> dict[str, dict[str, int]]:
    """Count the kernels of the network and of each null by label, in display order, without unused ones."""
    from dogfit.labels import LABELS

    counts = {scores.name: scores.label_counts for scores in everyone}
    used = [label for label in LABELS if any(count[label] for count in counts.values())]
    return {label: {name: count[label] for name, count in counts.items()} for label in used}


def _autoencoder(found: SizeResult) -> dict[str, Any]:
    if found.code_clusters is None or found.latent_segments is None:
        return {"left_out": found.no_autoencoder}
    counts = [
        int(np.sum(found.code_clusters.index == index)) for index in range(len(found.code_clusters.names))
    ]
    return {
        "left_out": None,
        "notes": list(found.autoencoder_notes),
        "heldout_dissimilarity": found.heldout_loss,
        "clusters": dict(zip(found.code_clusters.names, counts, strict=True)),
        "segments": [
            {"name": name, "start": float(start), "stop": float(stop)}
            for start, stop, name in found.latent_segments.segments
        ],
    }


def _counts(values: Sequence[str | None], order: Sequence[str]) -> dict[str, int]:
    count = Counter(values)
    return {name: count[name] for name in order}
