"""Shares with their intervals, both definitions over all thresholds, layers that stand out, and runs.

Everything here is a part of `summary.json`.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dogfit.analysis.results import Scores, SizeResult
from dogfit.clusters import (
    PAPER_PATTERNS,
    TrainingRun,
    label_shares,
    outlying_shares,
    paper_dissimilarity,
    paper_pattern,
    paper_r2,
    share_above,
    share_distance,
    share_intervals,
    threshold_curve,
    training_runs,
)
from dogfit.kernelset.kernelset import KernelSet

LEVEL = 0.95
THRESHOLDS = np.round(np.linspace(0, 1, 101), 2)
# Draws of each bootstrap: limits of a 95 % interval then vary by about a twentieth of its width.
_DRAWS = 1000
OUTLIER_RATE = 0.05
CLOSEST = 3
OUTLIER_RULE = (
    "a share that is improbable given the model's other layers: beta-binomial with their mean and spread, "
    "two-sided, false discovery rate at most 5 % over all its layers and labels (Benjamini and Yekutieli)"
)


def threshold_curves(everyone: Sequence[Scores]) -> dict[str, Any]:
    """Share of the network's kernels and of every null above each threshold, for each definition apart."""
    return {
        "thresholds": THRESHOLDS.tolist(),
        **{
            measure: {
                scores.name: threshold_curve(getattr(scores, measure), THRESHOLDS).tolist()
                for scores in everyone
                if len(scores.r2)
            }
            for measure in ("r2", "cosine")
            if getattr(everyone[0], measure) is not None
        },
    }


def patterns(found: SizeResult, size: int) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of the paper's patterns under each definition, for the network and every null.

    By fit: the label of a kernel whose fit passes the R² threshold. By code: the name of the segment that a
    kernel's code lies in, if its reconstruction passes the paper's threshold. "none" is what is left.
    """
    everyone = [scores for scores in (found.usable, *found.nulls) if len(scores.r2)]
    ways = {"by fit": {scores.name: _by_fit(scores, size) for scores in everyone}}
    if found.latent_segments is not None and found.code is not None:
        ways["by code"] = {scores.name: _by_code(scores, found, size) for scores in everyone}
    shares = {
        way: {
            name: {p: float(np.mean(given == p)) for p in PAPER_PATTERNS} for name, given in by_name.items()
        }
        for way, by_name in ways.items()
    }
    used = [
        p for p in PAPER_PATTERNS if any(part[p] for by_name in shares.values() for part in by_name.values())
    ]
    return {
        way: {p: {name: part[p] for name, part in by_name.items()} for p in used}
        for way, by_name in shares.items()
    }


def _by_fit(scores: Scores, size: int) -> np.ndarray:
    names = np.array([paper_pattern(label) for label in scores.label.tolist()], dtype=object)
    return np.where(scores.r2 > paper_r2(size), names, "none")


def _by_code(scores: Scores, found: SizeResult, size: int) -> np.ndarray:
    if found.latent_segments is None or scores.code is None or scores.cosine is None:
        return np.full(len(scores.r2), "none", dtype=object)
    names = np.array([*map(paper_pattern, found.latent_segments.names), "none"], dtype=object)
    passed = scores.cosine > 1 - paper_dissimilarity(size)
    return np.where(passed, names[found.latent_segments.assign(scores.code)], "none")


def share_sections(kernelset: KernelSet, size: int, found: SizeResult) -> dict[str, Any]:
    """Label shares with intervals for models, stages and layers, and what follows from them."""
    from dogfit.labels import LABELS

    own, null = found.usable, found.hardest_null
    used = [label for label in LABELS if own.label_counts[label]]
    present = np.unique(own.layer).tolist()
    models = {model: [i for i in present if kernelset.layers[i].model == model] for model in kernelset.models}
    models = {model: layers for model, layers in models.items() if layers}
    stages = {
        (model, stage): [i for i in layers if kernelset.layers[i].stage == stage]
        for model, layers in models.items()
        for stage in dict.fromkeys(kernelset.layers[i].stage for i in layers)
        if stage is not None
    }

    def part(layers: Sequence[int], *, absent: bool = True) -> dict[str, Any]:
        mine, beside = own.of_layers(layers), null.of_layers(layers)
        here = [label for label in used if absent or mine.label_counts[label]]
        intervals = label_shares(mine.label, here, draws=_DRAWS, level=LEVEL)
        return {
            "kernels": len(mine.label),
            "shares": {
                label: {**interval._asdict(), null.name: _share(beside, label)}
                for label, interval in intervals.items()
            },
        }

    layers_of = [(model, index) for model, layers in models.items() for index in layers]
    return {
        "level": LEVEL,
        "labels": used,
        "by_model": [{"model": model, **part(layers)} for model, layers in models.items()],
        "by_stage": [
            {"model": model, "stage": stage, **part(layers)} for (model, stage), layers in stages.items()
        ],
        "by_layer": [
            {"model": model, "layer": kernelset.layers[index].name, **part([index], absent=False)}
            for model, index in layers_of
        ],
        "outlying": {"rule": OUTLIER_RULE, **_outlying(kernelset, own, models, used)},
        "distances": _distances(own, models, used),
        "training": _training(kernelset, size, found, models, used),
    }


def _share(scores: Scores, label: str) -> float | None:
    return scores.label_counts[label] / len(scores.label) if len(scores.label) else None


def _table(own: Scores, layers: Sequence[int], used: Sequence[str]) -> np.ndarray:
    """Kernels of each layer and label."""
    counts = [own.of_layers([index]).label_counts for index in layers]
    return np.array([[count[label] for label in used] for count in counts])


def _outlying(
    kernelset: KernelSet, own: Scores, models: Mapping[str, Sequence[int]], used: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Layers that stand out, and those that come closest to it."""
    rows = []
    for model, layers in models.items():
        counts = _table(own, layers, used)
        for outlier in outlying_shares(counts, counts.sum(axis=1), rate=1.0):
            layer = kernelset.layers[layers[outlier.layer]]
            rows.append(
                {
                    "model": model,
                    "layer": layer.name,
                    "position": layer.position,
                    "label": used[outlier.label],
                    "share": outlier.share,
                    "expected_low": outlier.low,
                    "expected_high": outlier.high,
                    "p": outlier.p,
                }
            )
    rows.sort(key=lambda row: row["p"])
    return {
        "layers": [row for row in rows if row["p"] <= OUTLIER_RATE],
        "closest": [row for row in rows if OUTLIER_RATE < row["p"] < 1][:CLOSEST],
    }


def _distances(own: Scores, models: Mapping[str, Sequence[int]], used: Sequence[str]) -> list[dict[str, Any]]:
    tables = {model: _table(own, layers, used) for model, layers in models.items()}
    return [
        {"models": [a, b], **share_distance(tables[a], tables[b], draws=_DRAWS)._asdict()}
        for a, b in combinations(tables, 2)
    ]


def _training(
    kernelset: KernelSet,
    size: int,
    found: SizeResult,
    models: Mapping[str, Sequence[int]],
    used: Sequence[str],
) -> list[dict[str, Any]]:
    same = {
        model: tuple(
            (layer.name, layer.size, layer.channels) for layer in kernelset.layers if layer.model == model
        )
        for model in models
    }
    return [_over_time(run, size, found, models, used) for run in training_runs(same)]


def _over_time(
    run: TrainingRun,
    size: int,
    found: SizeResult,
    models: Mapping[str, Sequence[int]],
    used: Sequence[str],
) -> dict[str, Any]:
    """Shares of one run's checkpoints, in order, each as [share, low, high]; of the null the share alone."""
    null = found.hardest_null
    mine = [found.usable.of_layers(models[model]) for model in run.models]
    beside = [null.of_layers(models[model]) for model in run.models]
    labels = [label_shares(scores.label, used, draws=_DRAWS, level=LEVEL) for scores in mine]
    shares = []
    for measure, threshold in (("r2", paper_r2(size)), ("cosine", 1 - paper_dissimilarity(size))):
        if getattr(found.own, measure) is None:
            continue
        counts = [int(np.sum(getattr(scores, measure) > threshold)) for scores in mine]
        shares.append(
            {
                "measure": measure,
                "threshold": threshold,
                "network": [
                    list(share_intervals([count], len(scores.r2), draws=_DRAWS, level=LEVEL)[0])
                    for count, scores in zip(counts, mine, strict=True)
                ],
                null.name: [share_above(getattr(scores, measure), threshold) for scores in beside],
            }
        )
    return {
        "run": run.name,
        "models": list(run.models),
        "times": list(run.times),
        "kernels": [len(scores.r2) for scores in mine],
        "shares": shares,
        "labels": {label: [list(at[label]) for at in labels] for label in used},
        "null_labels": {label: [_share(scores, label) for scores in beside] for label in used},
    }


def universal(found: SizeResult) -> dict[str, Any] | None:
    """Explained energy against the number of filters, elbows, and the comparison with given filters."""
    from dogfit.clusters import elbow, match_filters

    if found.universal is None:
        return None
    few = found.universal
    summary: dict[str, Any] = {
        "found": {
            search.name: {
                "candidates": search.candidates,
                "explained": search.explained.tolist(),
                "elbow": elbow(search.explained),
            }
            for search in few.found
        },
        "controls": {name: curve.tolist() for name, curve in few.controls.items()},
        "given": None,
    }
    if few.given is not None:
        count = len(few.given)
        matches = {
            search.name: match_filters(search.filters[:count], few.given).cosine.tolist()
            for search in few.found
        }
        summary["given"] = {"filters": count, "explained": few.given_explained, "nearest_cosine": matches}
    return summary
