"""Figures of numbers: R² against the nulls, labels through the network, models side by side."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogfit.analysis.results import Scores, SizeResult
from dogfit.analysis.summary import HIGH_R2, null_thresholds
from dogfit.clusters import paper_dissimilarity, paper_r2, share_above, threshold_curve
from dogfit.kernelset.kernelset import KernelSet
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

MAX_TICKS = 48
MODELS_SHOWN = 12


def distribution(found: SizeResult, size: int, measure: str) -> "Figure | None":
    """How one definition's measure is spread, and the share above each threshold, beside every null's.

    Args:
      measure: "r2", our definition, or "cosine", the paper's; None is returned if it was not measured.
    """
    nulls = [null for null in found.nulls if len(null.r2)]
    own = found.usable
    if getattr(own, measure) is None:
        return None
    what = {"r2": "R² of the best fit", "cosine": "cosine to the reconstruction"}[measure]
    fig = style.figure(7.2, 3.1)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.25))
    lines = [(own, "network", style.KERNELS, "-", 2.2)]
    for null, colour, dash in zip(nulls, style.NULL_COLOURS, style.NULL_DASHES, strict=False):
        lines.append((null, null.name, colour, dash, 1.3))
    grid = np.linspace(0, 1, 401)
    for scores, name, colour, dash, width in lines:
        values = np.clip(np.nan_to_num(getattr(scores, measure).astype(np.float64)), 0, 1)
        left.hist(
            values, np.linspace(0, 1, 51), weights=np.full(values.size, 100 / max(values.size, 1)),
            histtype="step", color=colour, linestyle=dash, linewidth=width,
        )  # fmt: skip
        share = 100 * threshold_curve(values, grid)
        right.plot(grid, share, color=colour, linestyle=dash, linewidth=width, label=name)
    short = "R²" if measure == "r2" else "cosine"
    left.set(xlim=(0, 1), xlabel=what, ylabel=f"kernels per 0.02 of {short} (%)", title="Distribution")
    right.set(
        xlim=(0, 1), ylim=(0, 104), xlabel=what, ylabel=f"kernels above that {short} (%)",
        title=f"Share of {size}×{size} kernels above a threshold",
    )  # fmt: skip
    hardest = found.hardest_null
    if measure == "r2":
        thresholds = {paper_r2(size): "paper", HIGH_R2: "close fit"}
    else:
        thresholds = {1 - paper_dissimilarity(size): "paper"}
    if (rate := null_thresholds(found, measure).get(hardest.name)) is not None:
        left.axvline(rate, color="#444444", linewidth=0.7, linestyle=":")
        left.annotate(
            f"{100 * found.null_rate:g} % of the\n{hardest.name}\nnull lies above\n{short} {rate:.2f}",
            (rate, 1), (-4, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
            va="top", ha="right", fontsize=6.5, color="#444444",
        )  # fmt: skip
    for level, name in thresholds.items():
        right.axvline(level, color="#444444", linewidth=0.7, linestyle=":")
        right.annotate(
            f"{name} {level:g}", (level, 104), (0, 1), textcoords="offset points", ha="center", va="bottom",
            fontsize=6.5, color="#444444", annotation_clip=False,
        )  # fmt: skip
        for scores, colour in ((own, style.KERNELS), (hardest, style.NULL_COLOURS[len(nulls) - 1])):
            value = 100 * (share_above(getattr(scores, measure), level) or 0.0)
            right.plot([level], [value], "o", color=colour, markersize=3.5)
            ours = scores is own
            right.annotate(
                f"{value:.0f} %", (level, value), (4, 2) if ours else (-4, -2), textcoords="offset points",
                ha="left" if ours else "right", va="bottom" if ours else "top", color=colour, fontsize=7.5,
                fontweight="bold",
            )  # fmt: skip
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    for ax in (left, right):
        ax.set_title(ax.get_title(loc="left"), pad=14)
    return fig


def labels_by_layer(found: SizeResult, kernelset: KernelSet, labels: Sequence[str]) -> "Figure":
    """Share of labels in each layer, in network order, a row for each model; the nulls at the right."""
    usable = found.usable
    present = np.unique(usable.layer).tolist()
    layers = {m: [i for i in present if kernelset.layers[i].model == m] for m in kernelset.models}
    layers = _largest({model: indices for model, indices in layers.items() if indices})
    rows = len(layers)
    fig = style.figure(7.2, 0.7 + 2.3 * rows)
    axes = fig.subplots(rows, 2, squeeze=False, sharey=True, width_ratios=(3.3, 1.7))
    colours = style.label_colours(labels)
    used = [label for label in colours if any(s.label_counts[label] for s in (usable, *found.nulls))]
    for (ax, side), (model, indices) in zip(axes, layers.items(), strict=True):
        parts = [usable.of_layers([index]) for index in indices]
        _stack(ax, parts, used, colours)
        records = [kernelset.layers[index] for index in indices]
        names = [
            f"{r.stage}.{r.block}" if r.stage is not None and r.block is not None else str(r.position)
            for r in records
        ]
        step = -(-len(names) // MAX_TICKS)
        ax.set_xticks(range(0, len(names), step), names[::step], rotation=90 if len(names) > 16 else 0)
        for place in range(1, len(records)):
            if records[place].stage != records[place - 1].stage:
                ax.axvline(place - 0.5, color="black", linewidth=0.8)
        known = all(r.stage is not None and r.block is not None for r in records)
        ax.set_xlabel(f"layer in network order ({'stage.block' if known else 'position'})")
        ax.set_ylabel("kernels (%)")
        ax.set_title(style.plain(model))
        nulls = [null.of_layers(indices) for null in found.nulls if len(null.r2)]
        _stack(side, [usable.of_layers(indices), *nulls[::-1]], used, colours)
        names = ["all layers", *(null.name for null in nulls[::-1])]
        side.set_xticks(range(len(names)), [re.sub("[ -]", "\n", name) for name in names], fontsize=6)
        side.set_title("beside its nulls")
    handles = [_patch(colours[label], label) for label in used]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=7, handlelength=1.2, columnspacing=1.2
    )
    return fig


def models_side_by_side(
    found: SizeResult, kernelset: KernelSet, size: int, labels: Sequence[str]
) -> "Figure":
    """Share of kernels above each R², and of labels, for each model beside its covariance-matched null."""
    present = np.unique(found.usable.layer).tolist()
    layers = {m: [i for i in present if kernelset.layers[i].model == m] for m in kernelset.models}
    parts: dict[str, tuple[Scores, Scores]] = {
        model: (found.usable.of_layers(indices), found.hardest_null.of_layers(indices))
        for model, indices in _largest({m: indices for m, indices in layers.items() if indices}).items()
    }
    fig = style.figure(7.2, 4.3)
    left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
    grid = np.linspace(0, 1, 401)
    for place, (model, (own, null)) in enumerate(parts.items()):
        colour = style.MODEL_COLOURS[place % len(style.MODEL_COLOURS)]
        for scores, dash, width in ((own, "-", 1.8), (null, (0, (2, 2)), 1.0)):
            share = [100 * (share_above(scores.r2, level) or 0.0) for level in grid]
            name = style.plain(model, 30) if scores is own else None
            left.plot(grid, share, color=colour, linestyle=dash, linewidth=width, label=name)
    for level in (paper_r2(size), HIGH_R2):
        left.axvline(level, color="#444444", linewidth=0.7, linestyle=":")
    left.plot(
        [],
        [],
        color="#444444",
        linestyle=(0, (2, 2)),
        linewidth=1.0,
        label=f"its {found.hardest_null.name} null",
    )
    left.set(
        xlim=(0, 1), ylim=(0, 102), xlabel="R² of the best fit", ylabel="kernels above that R² (%)",
        title=f"{size}×{size} kernels above a threshold",
    )  # fmt: skip
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=7)
    colours = style.label_colours(labels)
    bars = [scores for pair in parts.values() for scores in pair]
    used = [label for label in colours if any(s.label_counts[label] for s in bars)]
    _stack(right, bars, used, colours)
    names = [name for model in parts for name in (style.plain(model, 18), "null")]
    right.set_xticks(range(len(bars)), names, rotation=40, ha="right", rotation_mode="anchor")
    for place in range(2, len(bars), 2):
        right.axvline(place - 0.5, color="white", linewidth=4)
    right.set(ylabel="kernels (%)", title="Labels")
    handles = [_patch(colours[label], label) for label in used]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=7, handlelength=1.2, columnspacing=1.2
    )
    return fig


def _largest(layers: dict[str, list[int]]) -> dict[str, list[int]]:
    """No more models than a figure has room for: those with most layers, in the order given."""
    kept = sorted(layers, key=lambda model: -len(layers[model]))[:MODELS_SHOWN]
    return {model: indices for model, indices in layers.items() if model in kept}


def _stack(ax: "Axes", parts: Sequence[Scores], labels: Sequence[str], colours: Mapping[str, tuple]) -> None:
    from matplotlib.collections import PolyCollection

    base = np.zeros(len(parts))
    left = np.arange(len(parts)) - 0.44
    right = left + 0.88
    for label in labels:
        share = np.array([100 * part.label_counts[label] / max(len(part.label), 1) for part in parts])
        corners = np.array([[left, base], [right, base], [right, base + share], [left, base + share]])
        # One artist for a label: as many as there are layers take minutes.
        bars = PolyCollection(
            list(corners.transpose(2, 0, 1)), facecolors=colours[label], edgecolors="white", linewidths=0.3
        )
        ax.add_collection(bars, autolim=False)
        base += share
    ax.set(xlim=(-0.6, len(parts) - 0.4), ylim=(0, 100))


def _patch(colour: tuple, label: str) -> "Patch":
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)
