"""Figures of kernels: by cluster, along the decoder's code, and beside their fits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogfit.analysis.results import SizeResult
from dogfit.kernelset.groups import KernelGroup
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 15
CLUSTERS_SHOWN = 24
DECODED_SHOWN = 26
NAMED_WIDTH = 0.018
GALLERY_COLUMNS = 8
# Kernels that set the scale of colours, evenly taken.
SCALED_BY = 20_000


def kernels_by_cluster(found: SizeResult, size: int) -> "Figure | None":
    """A row for each cluster: its centre, then members from the most to the least alike.

    Alike to their own reconstruction, as the segments of one name hold different kernels; with k-means,
    to the centre.
    """
    clusters = found.clusters
    if clusters is None:
        return None
    members = [np.flatnonzero(clusters.index == index) for index in range(len(clusters.names))]
    shown = [index for index, rows in enumerate(members) if rows.size]
    if len(shown) > CLUSTERS_SHOWN:
        largest = sorted(shown, key=lambda index: -members[index].size)[:CLUSTERS_SHOWN]
        shown = [index for index in shown if index in largest]
    fig = style.figure(7.2, 0.5 + 0.385 * len(shown))
    ax = fig.subplots()
    limit = style.symmetric_limit(found.own.kernels[:: -(-len(found.own.kernels) // SCALED_BY)])
    rows = []
    for row, index in enumerate(shown):
        kernels = found.own.kernels[members[index]]
        similarity = np.einsum("nij,ij->n", kernels, clusters.centres[index])
        if found.code_clusters and found.own.cosine is not None:
            similarity = found.own.cosine[members[index]]
        ranked = members[index][np.argsort(-similarity, kind="stable")]
        places = np.unique(np.linspace(0, len(ranked) - 1, EXAMPLES).round().astype(int))
        rows.append(list(found.own.kernels[ranked[places]]))
        ax.text(-0.15, row + 0.5, clusters.names[index], ha="right", va="center", fontsize=7.5)
        ax.text(EXAMPLES + 1.5, row + 0.5, f"{len(ranked):,}", ha="left", va="center", fontsize=7.5)
    centres = [[clusters.centres[index]] for index in shown]
    style.show_kernels(ax, centres, limit, left=0, top=0)
    style.show_kernels(ax, rows, limit, left=1.35, top=0, columns=EXAMPLES)
    for place, text in ((0.5, "centre"), (1.85, "closest"), (EXAMPLES + 0.85, "loosest")):
        ax.text(place, -0.12, text, ha="center", va="bottom", fontsize=7)
    ax.text(EXAMPLES + 1.5, -0.12, "kernels", ha="left", va="bottom", fontsize=7)
    ax.set(xlim=(0, EXAMPLES + 1.35), ylim=(len(shown), 0))
    kind = "name along the autoencoder's code" if found.code_clusters else "k-means cluster"
    more = f" (the {len(shown)} largest clusters)" if len(shown) == CLUSTERS_SHOWN else ""
    fig.suptitle(f"{size}×{size} kernels by {kind}{more}", fontsize=9, fontweight="bold", x=0.01, ha="left")
    return fig


def decoder_along_code(found: SizeResult, size: int, labels: Sequence[str]) -> "Figure | None":
    """The decoder swept over its code, cut into named segments, with how many kernels lie where."""
    segments, code = found.latent_segments, found.code
    if segments is None or code is None:
        return None
    fig = style.figure(7.2, 3.7)
    strip, band, fit, count = fig.subplots(4, 1, sharex=True, height_ratios=(0.31, 0.8, 1.0, 1.1))
    middles = (np.arange(DECODED_SHOWN) + 0.5) / DECODED_SHOWN
    nearest = [int(np.argmin(np.abs(segments.code - middle))) for middle in middles]
    limit = style.symmetric_limit(segments.kernels)
    style.show_kernels(
        strip, [list(segments.kernels[nearest])], limit, left=0, top=0, width=1 / DECODED_SHOWN
    )
    strip.set(ylim=(1, 0), aspect="auto", title=f"Decoder of the {size}×{size} autoencoder along its code")
    colours = style.label_colours(labels)
    unnamed = (0.88, 0.88, 0.88)
    for start, stop, name in segments.segments:
        colour = colours.get(name, unnamed)
        band.axvspan(start, stop, facecolor=colour, edgecolor="white", linewidth=0.6)
        if stop - start >= NAMED_WIDTH:
            ink = "white" if np.dot(colour, (0.3, 0.6, 0.1)) < 0.55 else "black"
            place = ((start + stop) / 2, 0.5)
            band.text(
                *place, name, rotation=90, ha="center", va="center", fontsize=6, color=ink, clip_on=True
            )
    band.axis("off")
    fit.plot(segments.code, segments.r2, color=style.KERNELS, linewidth=1.4)
    fit.set(ylim=(0, 1.04), ylabel="R² of the\ndecoded kernel")
    count.hist(code[np.isfinite(code)], np.linspace(0, 1, 101), color=style.KERNELS, alpha=0.85)
    count.set(xlim=(0, 1), xlabel="code", ylabel="kernels per\n0.01 of code")
    fig.align_ylabels((fit, count))
    return fig


def fit_gallery(found: SizeResult, group: KernelGroup, size: int) -> "Figure | None":
    """Kernel, fit and residual of the best, median and worst kernels, on one scale."""
    r2 = found.own.r2
    ranked = np.argsort(-np.nan_to_num(r2, nan=-1), kind="stable")[: int(np.isfinite(r2).sum())]
    if not ranked.size:
        return None
    columns = min(GALLERY_COLUMNS, ranked.size)
    middle = (ranked.size - columns) // 2
    blocks = {
        "best": ranked[:columns],
        "median": ranked[middle : middle + columns],
        "worst": ranked[-columns:],
    }
    kernels = found.own.kernels

    def fits(rows: np.ndarray) -> np.ndarray:
        """In the checkpoint's units; shown on the scale of the centred, unit-norm kernels."""
        scale = np.where(group.norm[rows] > 0, group.norm[rows], 1)[:, None, None]
        return (found.templates[rows] - group.mean[rows, None, None]) / scale

    limit = style.symmetric_limit(kernels[np.concatenate(list(blocks.values()))])
    fig = style.figure(7.2, 8.6)
    ax = fig.subplots()
    top = 0.0
    for name, rows in blocks.items():
        ax.text(-0.75, top, name, va="bottom", fontsize=9, fontweight="bold")
        top += 0.55
        for column, row in enumerate(rows):
            text = f"{found.own.label[row]}\nR² {r2[row]:.3f}"
            ax.text(column + 0.5, top - 0.06, text, ha="center", va="bottom", fontsize=6.5)
        pictures = [list(kernels[rows]), list(fits(rows)), list(kernels[rows] - fits(rows))]
        image = style.show_kernels(ax, pictures, limit, left=0, top=top)
        for line, text in enumerate(("kernel", "fit", "residual")):
            ax.text(-0.1, top + line + 0.5, text, rotation=90, ha="right", va="center", fontsize=7.5)
        top += 3.5
    ax.set(xlim=(-0.75, columns), ylim=(top - 0.4, -0.3))
    bar = fig.colorbar(image, ax=ax, shrink=0.35, aspect=28, pad=0.02)
    bar.set_label("tap (kernel centred, unit norm)")
    bar.outline.set_visible(False)
    fig.suptitle(
        f"Fits to {ranked.size:,} kernels of {size}×{size}", fontsize=9, fontweight="bold", x=0.01, ha="left"
    )
    return fig
