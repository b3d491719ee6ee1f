"""Figures of kernels: by cluster, along the decoder's code, and beside their fits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogfit.analysis.results import SizeResult
from dogfit.analysis.selection import cluster_examples, decoded_examples, fit_examples
from dogfit.kernelset.groups import KernelGroup
from dogfit.report.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEMBERS_SHOWN = 15
CLUSTERS_SHOWN = 24
DECODED_SHOWN = 26
# A segment of the code has its name in the figure if it is at least this long.
NAMED_LENGTH = 0.018
GALLERY_COLUMNS = 8
# Kernels that set the scale of colors, evenly taken.
SCALED_BY = 20_000


def draw_clusters(found: SizeResult, size: int) -> "Figure | None":
    """Draw a row for each cluster: its center, then members from the most to the least similar.

    Args:
      found: findings about the kernels of one size.
      size: taps per side.

    Returns:
      The figure; None without clusters.
    """
    rows = cluster_examples(found, MEMBERS_SHOWN, CLUSTERS_SHOWN)
    if not rows or found.clusters is None:
        return None
    fig = style.figure(7.2, 0.5 + 0.385 * len(rows))
    ax = fig.subplots()
    limit = style.symmetric_limit(found.own.kernels[:: -(-len(found.own.kernels) // SCALED_BY)])
    for row, cluster in enumerate(rows):
        ax.text(-0.15, row + 0.5, cluster.name, ha="right", va="center", fontsize=7.5)
        ax.text(MEMBERS_SHOWN + 1.5, row + 0.5, f"{cluster.count:,}", ha="left", va="center", fontsize=7.5)
    members = [list(cluster.members) for cluster in rows]
    style.show_kernels(ax, [[cluster.center] for cluster in rows], limit, left=0, top=0)
    style.show_kernels(ax, members, limit, left=1.35, top=0, columns=MEMBERS_SHOWN)
    headings = ((0.5, "center"), (1.85, "closest"), (MEMBERS_SHOWN + 0.85, "farthest"))
    for x, text in headings:
        ax.text(x, -0.12, text, ha="center", va="bottom", fontsize=7)
    ax.text(MEMBERS_SHOWN + 1.5, -0.12, "kernels", ha="left", va="bottom", fontsize=7)
    ax.set(xlim=(0, MEMBERS_SHOWN + 1.35), ylim=(len(rows), 0))
    kind = "name along the autoencoder's code" if found.code_clusters else "k-means cluster"
    more = f" (the {len(rows)} largest)" if len(found.clusters.names) > CLUSTERS_SHOWN else ""
    fig.suptitle(f"{size}×{size} kernels by {kind}{more}", fontsize=9, fontweight="bold", x=0.01, ha="left")
    return fig


def draw_decoder(found: SizeResult, size: int, labels: Sequence[str]) -> "Figure | None":
    """Draw the decoder along its code, the named segments, their fits, and how many kernels lie where.

    Args:
      found: findings about the kernels of one size.
      size: taps per side.
      labels: all labels, in the order of display.

    Returns:
      The figure; None without an autoencoder.
    """
    segments, code = found.latent_segments, found.code
    if segments is None or code is None:
        return None
    fig = style.figure(7.2, 3.7)
    strip, band, fit, count = fig.subplots(4, 1, sharex=True, height_ratios=(0.31, 0.8, 1.0, 1.1))
    decoded = list(decoded_examples(segments, DECODED_SHOWN))
    limit = style.symmetric_limit(segments.kernels)
    style.show_kernels(strip, [decoded], limit, left=0, top=0, width=1 / DECODED_SHOWN)
    strip.set(ylim=(1, 0), aspect="auto", title=f"Decoder of the {size}×{size} autoencoder along its code")
    _show_segments(band, segments.segments, labels)
    fit.plot(segments.code, segments.r2, color=style.KERNELS, linewidth=1.4)
    fit.set(ylim=(0, 1.04), ylabel="R² of the\ndecoded kernel")
    count.hist(code[np.isfinite(code)], np.linspace(0, 1, 101), color=style.KERNELS, alpha=0.85)
    count.set(xlim=(0, 1), xlabel="code", ylabel="kernels per\n0.01 of code")
    fig.align_ylabels((fit, count))
    return fig


def _show_segments(ax: "Axes", segments: Sequence[tuple[float, float, str]], labels: Sequence[str]) -> None:
    """Draw segments of the code in the colors of their names."""
    colors = style.label_colors(labels)
    unnamed = (0.88, 0.88, 0.88)
    for start, stop, name in segments:
        color = colors.get(name, unnamed)
        ax.axvspan(start, stop, facecolor=color, edgecolor="white", linewidth=0.6)
        if stop - start >= NAMED_LENGTH:
            ink = "white" if np.dot(color, (0.3, 0.6, 0.1)) < 0.55 else "black"
            middle = ((start + stop) / 2, 0.5)
            ax.text(*middle, name, rotation=90, ha="center", va="center", fontsize=6, color=ink, clip_on=True)
    ax.axis("off")


def draw_gallery(found: SizeResult, group: KernelGroup, size: int) -> "Figure | None":
    """Draw kernel, fit and residual of the best, median and worst kernels, on one scale.

    Args:
      found: findings about the kernels of one size.
      group: the same kernels in the checkpoint's units.
      size: taps per side.

    Returns:
      The figure; None if no kernel was fitted.
    """
    blocks = fit_examples(found, group, GALLERY_COLUMNS)
    if not blocks:
        return None
    limit = style.symmetric_limit(np.concatenate([block.kernels for block in blocks]))
    fig = style.figure(7.2, 8.6)
    ax = fig.subplots()
    top = 0.0
    for block in blocks:
        ax.text(-0.75, top, block.name, va="bottom", fontsize=9, fontweight="bold")
        top += 0.55
        for column, (label, r2) in enumerate(zip(block.labels, block.r2, strict=True)):
            text = f"{label}\nR² {r2:.3f}"
            ax.text(column + 0.5, top - 0.06, text, ha="center", va="bottom", fontsize=6.5)
        pictures = [list(block.kernels), list(block.fits), list(block.kernels - block.fits)]
        style.show_kernels(ax, pictures, limit, left=0, top=top)
        for line, text in enumerate(("kernel", "fit", "residual")):
            ax.text(-0.1, top + line + 0.5, text, rotation=90, ha="right", va="center", fontsize=7.5)
        top += 3.5
    ax.set(xlim=(-0.75, len(blocks[0].kernels)), ylim=(top - 0.4, -0.3))
    bar = fig.colorbar(style.color_scale(limit), ax=ax, shrink=0.35, aspect=28, pad=0.02)
    bar.set_label("tap (kernel centered, unit norm)")
    bar.outline.set_visible(False)
    fitted = int(np.isfinite(found.own.r2).sum())
    title = f"Fits to {fitted:,} kernels of {size}×{size}"
    fig.suptitle(title, fontsize=9, fontweight="bold", x=0.01, ha="left")
    return fig
