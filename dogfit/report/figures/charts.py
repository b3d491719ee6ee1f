"""Figures of numbers: R² against the nulls, labels through the network, models side by side."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dogfit.analysis.results import NETWORK, SizeResult
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

MAX_TICKS = 48
DASHED = (0, (2, 2))
MEASURES = {"r2": ("R²", "R² of the best fit"), "cosine": ("cosine", "cosine to the reconstruction")}
"""Short and long name of each measure."""

Color = tuple[float, float, float]


def draw_distribution(
    found: SizeResult, summary: Mapping[str, Any], size: int, measure: str, null_rate: float
) -> "Figure | None":
    """Draw how one measure is distributed, and the share above each threshold, beside every null's.

    Args:
      found: findings about the kernels of one size.
      summary: the same as numbers.
      size: taps per side.
      measure: "r2", our definition, or "cosine", the paper's.
      null_rate: share of each null that its threshold lets pass.

    Returns:
      The figure; None if the measure was not taken.
    """
    if measure not in summary["curves"]:
        return None
    short, long = MEASURES[measure]
    hardest = summary["hardest_null"]
    nulls = [null for null in found.nulls if len(null.r2)]
    colors = {NETWORK: style.KERNELS, **dict(zip((n.name for n in nulls), style.NULL_COLORS, strict=False))}
    dashes = {NETWORK: "-", **dict(zip((n.name for n in nulls), style.NULL_DASHES, strict=False))}
    fig = style.figure(7.2, 3.1)
    left, right = fig.subplots(1, 2, width_ratios=(1, 1.25))
    for scores in (found.usable, *nulls):
        name = scores.name
        look: dict[str, Any] = {"color": colors[name], "linestyle": dashes[name]}
        look["linewidth"] = 2.2 if name == NETWORK else 1.3
        values = np.clip(np.nan_to_num(getattr(scores, measure).astype(np.float64)), 0, 1)
        weights = np.full(values.size, 100 / max(values.size, 1))
        left.hist(values, np.linspace(0, 1, 51), weights=weights, histtype="step", **look)
        share = 100 * np.array(summary["curves"][measure][name])
        right.plot(summary["curves"]["thresholds"], share, label=name, **look)
    left.set(xlim=(0, 1), xlabel=long, ylabel=f"kernels per 0.02 of {short} (%)")
    left.set_title("Distribution", pad=14)
    right.set(xlim=(0, 1), ylim=(0, 104), xlabel=long, ylabel=f"kernels above that {short} (%)")
    right.set_title(f"Share of {size}×{size} kernels above a threshold", pad=14)
    for row in summary["shares"]:
        if row["measure"] != measure:
            continue
        if row["kind"] != "null_rate":
            _mark_threshold(right, row, {name: colors[name] for name in (NETWORK, hardest)})
        elif row["null"] == hardest:
            _mark_null_rate(left, row, f"{short} {row['threshold']:.2f}", null_rate)
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return fig


def _mark_null_rate(ax: "Axes", row: Mapping[str, Any], threshold: str, null_rate: float) -> None:
    """Draw a line at the threshold that few kernels of a null exceed."""
    text = f"{100 * null_rate:g} % of the\n{row['null']}\nnull lies above\n{threshold}"
    ax.axvline(row["threshold"], color=style.MARKS, linewidth=0.7, linestyle=":")
    ax.annotate(
        text, (row["threshold"], 1), (-4, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top", ha="right", fontsize=6.5, color=style.MARKS,
    )  # fmt: skip


def _mark_threshold(ax: "Axes", row: Mapping[str, Any], colors: Mapping[str, Any]) -> None:
    """Draw a line at a threshold, and the share of some sets of kernels above it."""
    level, name = row["threshold"], {"paper": "paper", "close": "close fit"}[row["kind"]]
    ax.axvline(level, color=style.MARKS, linewidth=0.7, linestyle=":")
    ax.annotate(
        f"{name} {level:g}", (level, 104), (0, 1), textcoords="offset points", ha="center", va="bottom",
        fontsize=6.5, color=style.MARKS, annotation_clip=False,
    )  # fmt: skip
    for which, color in colors.items():
        value = 100 * (row["shares"][which] or 0.0)
        above = which == NETWORK
        ax.plot([level], [value], "o", color=color, markersize=3.5)
        ax.annotate(
            f"{value:.0f} %", (level, value), (4, 2) if above else (-4, -2), textcoords="offset points",
            ha="left" if above else "right", va="bottom" if above else "top", color=color, fontsize=7.5,
            fontweight="bold",
        )  # fmt: skip


def draw_labels_by_layer(
    summary: Mapping[str, Any], models: Sequence[str], labels: Sequence[str]
) -> "Figure":
    """Draw the share of labels in each layer, in network order, a row for each model; its nulls at the right.

    Args:
      summary: numbers about the kernels of one size.
      models: to be drawn.
      labels: all labels, in the order of display.
    """
    fig = style.figure(7.2, 0.7 + 2.3 * len(models))
    axes = fig.subplots(len(models), 2, squeeze=False, sharey=True, width_ratios=(3.3, 1.7))
    colors = style.label_colors(labels)
    used = [label for label in colors if label in summary["labels"]]
    by_model = {part["model"]: part for part in summary["by_model"]}
    for (ax, side), model in zip(axes, models, strict=True):
        layers = [part for part in summary["by_layer"] if part["model"] == model and part["kernels"]]
        _stack(ax, [_counts(part["labels"], NETWORK) for part in layers], used, colors)
        _name_layers(ax, layers)
        ax.set(ylabel="kernels (%)", title=style.plain(model))
        nulls = [name for name, count in summary["null_kernels"].items() if count][::-1]
        parts = [_counts(by_model[model]["labels"], name) for name in (NETWORK, *nulls)]
        _stack(side, parts, used, colors)
        names = [re.sub("[ -]", "\n", name) for name in ("all layers", *nulls)]
        side.set_xticks(range(len(names)), names, fontsize=6)
        side.set_title("beside its nulls")
    _label_legend(fig, used, colors)
    return fig


def _name_layers(ax: "Axes", layers: Sequence[Mapping[str, Any]]) -> None:
    """Name layers along the axis, by stage and block where they are known, and part the stages by lines."""
    known = [part["stage"] is not None and part["block"] is not None for part in layers]
    names = [
        f"{part['stage']}.{part['block']}" if staged else str(part["position"])
        for part, staged in zip(layers, known, strict=True)
    ]
    step = -(-len(names) // MAX_TICKS)
    ax.set_xticks(range(0, len(names), step), names[::step], rotation=90 if len(names) > 16 else 0)
    for place in range(1, len(layers)):
        if layers[place]["stage"] != layers[place - 1]["stage"]:
            ax.axvline(place - 0.5, color="black", linewidth=0.8)
    ax.set_xlabel(f"layer in network order ({'stage.block' if all(known) else 'position'})")


def draw_models(
    summary: Mapping[str, Any], curves: Mapping[str, Mapping[str, Any]], size: int, labels: Sequence[str]
) -> "Figure":
    """Draw the share of kernels above each R², and of labels, for each model beside its hardest null.

    Args:
      summary: numbers about the kernels of one size.
      curves: `analysis.selection.model_curves` of the models to be drawn.
      size: taps per side.
      labels: all labels, in the order of display.
    """
    hardest = summary["hardest_null"]
    fig = style.figure(7.2, 4.3)
    left, right = fig.subplots(1, 2, width_ratios=(1.2, 1))
    for place, (model, curve) in enumerate(curves.items()):
        color = style.MODEL_COLORS[place % len(style.MODEL_COLORS)]
        for name, share in curve["r2"].items():
            own = name == NETWORK
            left.plot(
                curve["thresholds"], 100 * np.array(share), color=color, linestyle="-" if own else DASHED,
                linewidth=1.8 if own else 1.0, label=style.plain(model, 30) if own else None,
            )  # fmt: skip
    for row in summary["shares"]:
        if row["measure"] == "r2" and row["kind"] != "null_rate":
            left.axvline(row["threshold"], color=style.MARKS, linewidth=0.7, linestyle=":")
    left.plot([], [], color=style.MARKS, linestyle=DASHED, linewidth=1.0, label=f"its {hardest} null")
    left.set(
        xlim=(0, 1), ylim=(0, 102), xlabel=MEASURES["r2"][1], ylabel="kernels above that R² (%)",
        title=f"{size}×{size} kernels above a threshold",
    )  # fmt: skip
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize=7)
    colors = style.label_colors(labels)
    by_model = {part["model"]: part for part in summary["by_model"]}
    bars = [_counts(by_model[model]["labels"], name) for model in curves for name in (NETWORK, hardest)]
    used = [label for label in colors if any(bar.get(label) for bar in bars)]
    _stack(right, bars, used, colors)
    names = [name for model in curves for name in (style.plain(model, 18), "null")]
    right.set_xticks(range(len(bars)), names, rotation=40, ha="right", rotation_mode="anchor")
    for place in range(2, len(bars), 2):
        right.axvline(place - 0.5, color="white", linewidth=4)
    right.set(ylabel="kernels (%)", title="Labels")
    _label_legend(fig, used, colors)
    return fig


def _counts(labels: Mapping[str, Mapping[str, int]], name: str) -> dict[str, int]:
    """Kernels of one set by label."""
    return {label: counts[name] for label, counts in labels.items()}


def _stack(
    ax: "Axes", bars: Sequence[Mapping[str, int]], labels: Sequence[str], colors: Mapping[str, Color]
) -> None:
    """Draw a bar of 100 % for each of some counts by label."""
    from matplotlib.collections import PolyCollection

    totals = np.array([max(sum(bar.values()), 1) for bar in bars])
    base = np.zeros(len(bars))
    left = np.arange(len(bars)) - 0.44
    right = left + 0.88
    for label in labels:
        share = 100 * np.array([bar.get(label, 0) for bar in bars]) / totals
        corners = np.array([[left, base], [right, base], [right, base + share], [left, base + share]])
        # One artist for a label: as many as there are layers take minutes.
        stack = PolyCollection(
            list(corners.transpose(2, 0, 1)), facecolors=colors[label], edgecolors="white", linewidths=0.3
        )
        ax.add_collection(stack, autolim=False)
        base += share
    ax.set(xlim=(-0.6, len(bars) - 0.4), ylim=(0, 100))


def _label_legend(fig: "Figure", labels: Sequence[str], colors: Mapping[str, Color]) -> None:
    handles = [_patch(colors[label], label) for label in labels]
    fig.legend(
        handles=handles, loc="outside lower center", ncols=6, fontsize=7, handlelength=1.2, columnspacing=1.2
    )


def _patch(color: Color, label: str) -> "Patch":
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)
