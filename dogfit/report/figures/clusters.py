"""Figures about the clusters: shares with intervals, over training, universal filters, and the evidence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dogfit.analysis.results import NETWORK, SizeResult
from dogfit.analysis.selection import commonest_labels, filter_examples
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS_SHOWN = 12
LABELS_OVER_TRAINING = 8
STAGES_SHOWN = 8
FILTERS_SHOWN = 12
DASHED = (0, (2, 2))


def draw_intervals(sections: Mapping[str, Any], size: int, hardest_null: str) -> "Figure | None":
    """Draw the share of the commonest labels in each stage or model, with intervals; the null's as a cross.

    Args:
      sections: the summary's `label_shares`.
      size: taps per side.
      hardest_null: name of the null whose shares are drawn.

    Returns:
      The figure; None without kernels.
    """
    if not sections["by_model"] or not sections["labels"]:
        return None
    parts = [(f"stage {part['stage']}", part) for part in sections["by_stage"]]
    if len(sections["by_model"]) > 1 or not 2 <= len(parts) <= STAGES_SHOWN:
        parts = [(style.plain(part["model"], 22), part) for part in sections["by_model"][:STAGES_SHOWN]]
    shown = commonest_labels([part for _, part in parts], sections["labels"], LABELS_SHOWN)
    fig = style.figure(7.2, 3.2)
    ax = fig.subplots()
    width = 0.8 / len(parts)
    for place, (name, part) in enumerate(parts):
        color = style.MODEL_COLORS[place % len(style.MODEL_COLORS)]
        x = np.arange(len(shown)) - 0.4 + (place + 0.5) * width
        shares = [part["shares"][label] for label in shown]
        share, low, high = (100 * np.array([at[key] for at in shares]) for key in ("share", "low", "high"))
        ax.bar(x, share, width * 0.9, color=color, alpha=0.75, label=name)
        reach = [np.maximum(share - low, 0), np.maximum(high - share, 0)]
        ax.errorbar(x, share, reach, fmt="none", ecolor="black", elinewidth=0.8)
        null = [100 * (at[hardest_null] or 0) for at in shares]
        ax.plot(x, null, "x", color=style.NULL_COLORS[-1], markersize=3.5)
    ax.set_xticks(range(len(shown)), shown, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(
        ylabel="kernels (%)",
        title=f"Labels of {size}×{size} kernels, {100 * sections['level']:g} % intervals",
        ylim=(0, None), xlim=(-0.6, len(shown) - 0.4),
    )  # fmt: skip
    bars, names = ax.get_legend_handles_labels()
    (cross,) = ax.plot([], [], "x", color=style.NULL_COLORS[-1])
    legend = [*bars, cross], [*names, f"{hardest_null} null"]
    fig.legend(*legend, loc="outside lower center", ncols=6, fontsize=7)
    return fig


def draw_training(
    sections: Mapping[str, Any], size: int, hardest_null: str, labels: Sequence[str]
) -> "Figure | None":
    """Draw the shares of one run's checkpoints over training, with intervals; a row for each run.

    Args:
      sections: the summary's `label_shares`.
      size: taps per side.
      hardest_null: name of the null whose shares are drawn.
      labels: all labels, in the order of display.

    Returns:
      The figure; None where no models are checkpoints of one run.
    """
    runs = sections["training"]
    if not runs:
        return None
    fig = style.figure(7.2, 0.5 + 2.7 * len(runs))
    axes = fig.subplots(len(runs), 2, squeeze=False)
    colors = style.label_colors(labels)
    by_model = {part["model"]: part for part in sections["by_model"]}
    for (left, right), run in zip(axes, runs, strict=True):
        for row, color in zip(run["shares"], (style.KERNELS, style.NULL_COLORS[1]), strict=False):
            short = "R²" if row["measure"] == "r2" else "cosine"
            _plot_with_band(left, run["times"], row[NETWORK], color, f"{short} > {row['threshold']:.2g}")
            null = [np.nan if value is None else 100 * value for value in row[hardest_null]]
            left.plot(run["times"], null, color=color, linestyle=DASHED, linewidth=1)
        left.plot([], [], color=style.MARKS, linestyle=DASHED, linewidth=1, label="its null")
        parts = [by_model[model] for model in run["models"]]
        for label in commonest_labels(parts, sections["labels"], LABELS_OVER_TRAINING):
            _plot_with_band(right, run["times"], run["labels"][label], colors[label], label)
        for ax in (left, right):
            ax.set(xlabel="number in the checkpoint's name", ylabel="kernels (%)", ylim=(0, None))
            ax.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1, 1))
        left.set_title(f"{style.plain(run['run'])}, {size}×{size}: above the thresholds")
        right.set_title("Commonest labels")
    return fig


def _plot_with_band(
    ax: "Axes", times: Sequence[int], intervals: Sequence[Sequence[float]], color: Any, label: str
) -> None:
    share, low, high = 100 * np.array(intervals).T
    ax.fill_between(times, low, high, color=color, alpha=0.15, linewidth=0)
    ax.plot(times, share, color=color, linewidth=1.5, marker="o", markersize=3, label=label)


def draw_universal_filters(found: SizeResult, summary: Mapping[str, Any], size: int) -> "Figure | None":
    """Draw explained energy against the number of filters, with elbows; and the filters themselves.

    Args:
      found: findings about the kernels of one size.
      summary: the same as numbers.
      size: taps per side.

    Returns:
      The figure; None where no filters were searched for.
    """
    numbers = summary["universal"]
    if numbers is None:
        return None
    rows = filter_examples(found, FILTERS_SHOWN)
    fig = style.figure(7.2, 3.0 + 0.36 * len(rows))
    curves, strip = fig.subplots(2, 1, height_ratios=(3.0, 0.36 * len(rows)))
    for place, (name, search) in enumerate(numbers["found"].items()):
        color = style.MODEL_COLORS[place % len(style.MODEL_COLORS)]
        explained = 100 * np.array(search["explained"])
        curves.plot(np.arange(1, len(explained) + 1), explained, color=color, linewidth=1.6, label=name)
        curves.plot([search["elbow"]], [explained[search["elbow"] - 1]], "o", color=color, markersize=5)
    for (name, curve), dash in zip(numbers["controls"].items(), ((0, (4, 2)), (0, (1, 1))), strict=False):
        explained = 100 * np.array(curve)
        x = np.arange(1, len(curve) + 1)
        curves.plot(x, explained, color="#777777", linestyle=dash, linewidth=1.2, label=name)
    given = numbers["given"]
    if given is not None and given["explained"] is not None:
        place = (given["filters"], 100 * given["explained"])
        curves.plot(*place, "*", color="black", markersize=9, label="given filters")
    curves.set(
        xlabel="number of filters", ylabel="explained energy (%)", ylim=(0, 100), xlim=(0, None),
        title=f"Each {size}×{size} kernel as a·x + b; dots mark elbows",
    )  # fmt: skip
    curves.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    _show_filters(strip, rows)
    return fig


def _show_filters(ax: "Axes", rows: Mapping[str, Float[np.ndarray, "m k k"]]) -> None:
    """Show filters, a row for each name."""
    limit = style.symmetric_limit(np.concatenate(list(rows.values())))
    style.show_kernels(
        ax, [list(filters) for filters in rows.values()], limit, left=0, top=0, columns=FILTERS_SHOWN
    )
    for row, name in enumerate(rows):
        ax.text(-0.15, row + 0.5, name, ha="right", va="center", fontsize=7)
    # Room at the left for the names.
    ax.set(xlim=(-4.2, FILTERS_SHOWN), ylim=(len(rows), 0))


def draw_evidence(evidence: Mapping[str, Any] | None, size: int) -> "Figure | None":
    """Draw scores against the number of clusters, for the network and nulls: a column for each space.

    Args:
      evidence: of the summary.
      size: taps per side.

    Returns:
      The figure; None where no evidence was asked for, or there are too few kernels for curves.
    """
    if evidence is None:
        return None
    sets = evidence["sets"]
    spaces = list(dict.fromkeys(curve["space"] for part in sets.values() for curve in part["curves"]))
    if not spaces:
        return None
    measures = {"silhouette": "silhouette", "bootstrap_ari": "stability (ARI)", "bic": "BIC per kernel"}
    fig = style.figure(7.2, 5.6)
    axes = fig.subplots(len(measures), len(spaces), squeeze=False, sharex=True)
    colors = (style.KERNELS, style.NULL_COLORS[0], style.NULL_COLORS[-1])
    for part, color in zip(sets.values(), colors, strict=False):
        for curve in part["curves"]:
            column = spaces.index(curve["space"])
            for ax, measure in zip(axes[:, column], measures, strict=True):
                values = np.array([np.nan if v is None else v for v in curve[measure]], float)
                ax.plot(curve["counts"], values, color=color, linewidth=1.4, marker="o", markersize=2.5)
    for column, space in enumerate(spaces):
        axes[0, column].set_title(f"{space}, {size}×{size}")
        axes[-1, column].set_xlabel("number of clusters")
    for ax, name in zip(axes[:, 0], measures.values(), strict=True):
        ax.set_ylabel(name)
    for ax in axes.flat:
        ax.axvline(evidence["clusters"], color=style.MARKS, linewidth=0.6, linestyle=":")
    for ax in axes[1]:
        ax.set_ylim(0, 1.05)
    for title, color in zip(sets, colors, strict=False):
        axes[0, 0].plot([], [], color=color, label=title)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return fig
