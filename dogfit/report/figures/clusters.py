"""Figures about the clusters: shares with intervals, over training, universal filters, and the evidence."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dogfit.analysis.results import SizeResult, Universal
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELS_SHOWN = 12
STAGES_SHOWN = 8
FILTERS_SHOWN = 12
_BAND = 0.15


def stage_intervals(sections: Mapping[str, Any], size: int) -> "Figure | None":
    """Share of the commonest labels in each stage, with intervals; the null's share as a cross."""
    if not sections["by_model"] or not sections["labels"]:
        return None
    parts = [(f"stage {p['stage']}", p) for p in sections["by_stage"]]
    if len(sections["by_model"]) > 1 or not 2 <= len(parts) <= STAGES_SHOWN:
        parts = [(style.plain(p["model"], 22), p) for p in sections["by_model"]][:STAGES_SHOWN]
    mean = {label: np.mean([p["shares"][label]["share"] for _, p in parts]) for label in sections["labels"]}
    shown = sorted(sections["labels"], key=lambda label: -mean[label])[:LABELS_SHOWN]
    fig = style.figure(7.2, 3.2)
    ax = fig.subplots()
    width = 0.8 / len(parts)
    for place, (name, part) in enumerate(parts):
        colour = style.MODEL_COLOURS[place % len(style.MODEL_COLOURS)]
        x = np.arange(len(shown)) - 0.4 + (place + 0.5) * width
        values = np.array(
            [[part["shares"][label][key] for key in ("share", "low", "high")] for label in shown]
        )
        share, low, high = 100 * values.T
        ax.bar(x, share, width * 0.9, color=colour, alpha=0.75, label=name)
        reach = [np.maximum(share - low, 0), np.maximum(high - share, 0)]
        ax.errorbar(x, share, reach, fmt="none", ecolor="black", elinewidth=0.8)
        null = [100 * (list(part["shares"][label].values())[-1] or 0) for label in shown]
        ax.plot(x, null, "x", color=style.NULL_COLOURS[-1], markersize=3.5)
    null_name = list(parts[0][1]["shares"][shown[0]])[-1]
    ax.set_xticks(range(len(shown)), shown, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(
        ylabel="kernels (%)",
        title=f"Labels of {size}×{size} kernels, {100 * sections['level']:g} % intervals",
        ylim=(0, None), xlim=(-0.6, len(shown) - 0.4),
    )  # fmt: skip
    bars, names = ax.get_legend_handles_labels()
    (cross,) = ax.plot([], [], "x", color=style.NULL_COLOURS[-1])
    legend = [*bars, cross], [*names, f"{null_name} null"]
    fig.legend(*legend, loc="outside lower center", ncols=5, fontsize=7)
    return fig


def training_shares(sections: Mapping[str, Any], size: int, labels: Sequence[str]) -> "Figure | None":
    """Shares of one run's checkpoints over training, with intervals; a row for each run."""
    runs = sections["training"]
    if not runs:
        return None
    fig = style.figure(7.2, 0.5 + 2.7 * len(runs))
    axes = fig.subplots(len(runs), 2, squeeze=False)
    colours = style.label_colours(labels)
    for (left, right), run in zip(axes, runs, strict=True):
        for row, colour in zip(run["shares"], (style.KERNELS, style.NULL_COLOURS[1]), strict=False):
            short = "R²" if row["measure"] == "r2" else "cosine"
            _with_band(left, run["times"], row["network"], colour, f"{short} > {row['threshold']:.2g}")
            null = [np.nan if value is None else 100 * value for value in list(row.values())[-1]]
            left.plot(run["times"], null, color=colour, linestyle=(0, (2, 2)), linewidth=1)
        left.plot([], [], color="#444444", linestyle=(0, (2, 2)), linewidth=1, label="its null")
        last = {label: max(at[0] for at in values) for label, values in run["labels"].items()}
        for label in sorted(last, key=lambda label: -last[label])[:8]:
            _with_band(right, run["times"], run["labels"][label], colours[label], label)
        for ax in (left, right):
            ax.set(xlabel="number in the checkpoint's name", ylabel="kernels (%)", ylim=(0, None))
            ax.legend(fontsize=6.5, loc="upper left", bbox_to_anchor=(1, 1))
        left.set_title(f"{style.plain(run['run'])}, {size}×{size}: above the thresholds")
        right.set_title("Commonest labels")
    return fig


def _with_band(
    ax: "Axes", times: Sequence[int], intervals: Sequence[Sequence[float]], colour: Any, label: str
) -> None:
    share, low, high = 100 * np.array(intervals).T
    ax.fill_between(times, low, high, color=colour, alpha=_BAND, linewidth=0)
    ax.plot(times, share, color=colour, linewidth=1.5, marker="o", markersize=3, label=label)


def universal_filters(found: SizeResult, size: int) -> "Figure | None":
    """Explained energy against the number of filters, with elbows; and the filters themselves."""
    from dogfit.clusters import elbow

    few = found.universal
    if few is None:
        return None
    rows = _filter_rows(few)
    fig = style.figure(7.2, 3.0 + 0.36 * len(rows))
    curves, strip = fig.subplots(2, 1, height_ratios=(3.0, 0.36 * len(rows)))
    for place, search in enumerate(few.found):
        colour = style.MODEL_COLOURS[place % len(style.MODEL_COLOURS)]
        x = np.arange(1, len(search.explained) + 1)
        curves.plot(x, 100 * search.explained, color=colour, linewidth=1.6, label=search.name)
        at = elbow(search.explained)
        curves.plot([at], [100 * search.explained[at - 1]], "o", color=colour, markersize=5)
    for (name, curve), dash in zip(few.controls.items(), ((0, (4, 2)), (0, (1, 1))), strict=False):
        x = np.arange(1, len(curve) + 1)
        curves.plot(x, 100 * curve, color="#777777", linestyle=dash, linewidth=1.2, label=name)
    if few.given is not None and few.given_explained is not None:
        place = (len(few.given), 100 * few.given_explained)
        curves.plot(*place, "*", color="black", markersize=9, label="given filters")
    curves.set(
        xlabel="number of filters", ylabel="explained energy (%)", ylim=(0, 100), xlim=(0, None),
        title=f"Each {size}×{size} kernel as a·x + b; dots mark elbows",
    )  # fmt: skip
    curves.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    limit = style.symmetric_limit(np.concatenate([filters for _, filters in rows]))
    pictures = [list(filters) for _, filters in rows]
    style.show_kernels(strip, pictures, limit, left=0, top=0, columns=FILTERS_SHOWN)
    for row, (name, _) in enumerate(rows):
        strip.text(-0.15, row + 0.5, name, ha="right", va="center", fontsize=7)
    # Room at the left for the names.
    strip.set(xlim=(-4.2, FILTERS_SHOWN), ylim=(len(rows), 0))
    return fig


def _filter_rows(few: Universal) -> list[tuple[str, np.ndarray]]:
    """Filters to be shown, of unit norm: the first of each way, and those given."""
    rows = [(search.name, search.filters[:FILTERS_SHOWN]) for search in few.found]
    if few.given is not None:
        given = few.given - few.given.mean(axis=(1, 2), keepdims=True)
        norm = np.sqrt(np.sum(given**2, axis=(1, 2), keepdims=True))
        rows.append(("given", (given / np.where(norm > 0, norm, 1))[:FILTERS_SHOWN]))
    return rows


def evidence_curves(evidence: Mapping[str, Any] | None, size: int) -> "Figure | None":
    """Scores against the number of clusters, for the network and the nulls: a column for each space."""
    if evidence is None:
        return None
    sets = evidence["sets"]
    spaces = list(dict.fromkeys(curve["space"] for part in sets.values() for curve in part["curves"]))
    if not spaces:
        return None
    measures = {"silhouette": "silhouette", "bootstrap_ari": "stability (ARI)", "bic": "BIC per kernel"}
    fig = style.figure(7.2, 5.6)
    axes = fig.subplots(len(measures), len(spaces), squeeze=False, sharex=True)
    colours = (style.KERNELS, style.NULL_COLOURS[0], style.NULL_COLOURS[-1])
    for part, colour in zip(sets.values(), colours, strict=False):
        for curve in part["curves"]:
            column = spaces.index(curve["space"])
            for ax, measure in zip(axes[:, column], measures, strict=True):
                values = np.array([np.nan if v is None else v for v in curve[measure]], float)
                ax.plot(curve["counts"], values, color=colour, linewidth=1.4, marker="o", markersize=2.5)
    for column, space in enumerate(spaces):
        axes[0, column].set_title(f"{space}, {size}×{size}")
        axes[-1, column].set_xlabel("number of clusters")
    for ax, name in zip(axes[:, 0], measures.values(), strict=True):
        ax.set_ylabel(name)
    for ax in axes.flat:
        ax.axvline(evidence["clusters"], color="#444444", linewidth=0.6, linestyle=":")
    for ax in axes[1]:
        ax.set_ylim(0, 1.05)
    for title, colour in zip(sets, colours, strict=False):
        axes[0, 0].plot([], [], color=colour, label=title)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7.5)
    return fig
