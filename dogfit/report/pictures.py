"""Figures of kernels: by cluster, along the decoder's code, and beside their fits."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogfit.kernelset import KernelGroup
from dogfit.report import style
from dogfit.report.result import SizeResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXAMPLES = 14
SPECTRUM_CELLS = 28
GALLERY_COLUMNS = 8


def kernels_by_cluster(found: SizeResult, size: int) -> "Figure | None":
    """A row for each cluster: its centre, then members from the nearest to the centre to the farthest."""
    clusters = found.clusters
    if clusters is None:
        return None
    members = [np.flatnonzero(clusters.index == index) for index in range(len(clusters.names))]
    shown = [index for index, rows in enumerate(members) if rows.size]
    fig = style.figure(7.2, 0.55 + 0.42 * len(shown))
    grid = fig.add_gridspec(len(shown), EXAMPLES + 2, width_ratios=[1, 0.35, *[1] * EXAMPLES])
    limit = style.symmetric_limit(found.own.kernels)
    for row, index in enumerate(shown):
        ax = fig.add_subplot(grid[row, 0])
        style.show_kernel(ax, clusters.centres[index], limit)
        count = len(members[index])
        ax.set_ylabel(
            f"{clusters.names[index]}\n{count:,}", rotation=0, ha="right", va="center", fontsize=7, labelpad=4
        )
        if row == 0:
            ax.set_title("centre", fontsize=7, loc="center", fontweight="normal")
        similarity = np.einsum("nij,ij->n", found.own.kernels[members[index]], clusters.centres[index])
        ranked = members[index][np.argsort(-similarity, kind="stable")]
        chosen = ranked[np.unique(np.linspace(0, count - 1, EXAMPLES).round().astype(int))]
        for column, member in enumerate(chosen):
            ax = fig.add_subplot(grid[row, column + 2])
            style.show_kernel(ax, found.own.kernels[member], limit)
            if row == 0 and column in (0, EXAMPLES - 1):
                ax.set_title(
                    "nearest" if column == 0 else "farthest", fontsize=7, loc="center", fontweight="normal"
                )
    kind = "stretch of the autoencoder's code" if found.stretches else "k-means cluster"
    fig.suptitle(
        f"{size}×{size} kernels by {kind}, unit norm", fontsize=9, fontweight="bold", x=0.01, ha="left"
    )
    return fig


def decoder_spectrum(found: SizeResult, size: int, labels: Sequence[str]) -> "Figure | None":
    """The decoder swept over its code, cut into named stretches, with how many kernels lie where."""
    spectrum, stretches, code = found.spectrum, found.stretches, found.code
    if spectrum is None or stretches is None or code is None:
        return None
    fig = style.figure(7.2, 3.9)
    strip, band, fit, count = fig.subplots(4, 1, sharex=True, height_ratios=(0.75, 1.0, 1.0, 1.2))
    limit = style.symmetric_limit(spectrum.kernels)
    cells = np.linspace(0, 1, SPECTRUM_CELLS + 1)
    for start, stop in itertools.pairwise(cells):
        nearest = int(np.argmin(np.abs(spectrum.code - (start + stop) / 2)))
        cell = strip.inset_axes((start + 0.001, 0.0, stop - start - 0.002, 1.0))
        style.show_kernel(cell, spectrum.kernels[nearest], limit)
    strip.set_title(f"Decoder of the {size}×{size} autoencoder along its code")
    strip.axis("off")
    colours = style.label_colours(labels)
    for place, stretch in enumerate(spectrum.stretches):
        colour = colours.get(stretch.name.split(" ")[0], (0.85, 0.85, 0.85))
        band.axvspan(stretch.start, stretch.stop, 0.62, 1.0, color=colour, linewidth=0)
        band.axvline(stretch.stop, 0.62, 1.0, color="white", linewidth=1)
        middle = (stretch.start + stretch.stop) / 2
        band.annotate(stretches.names[place], (middle, 0.58), rotation=45, ha="right", va="top", fontsize=6.5,
                      rotation_mode="anchor", annotation_clip=False)  # fmt: skip
    band.set_ylim(0, 1)
    band.axis("off")
    fit.plot(spectrum.code, spectrum.r2, color=style.KERNELS, linewidth=1.4)
    fit.set(ylim=(0, 1.03), ylabel="R² of the\ndecoded kernel")
    finite = code[np.isfinite(code)]
    count.hist(finite, np.linspace(0, 1, 101), color=style.KERNELS, alpha=0.85)
    count.set(xlim=(0, 1), xlabel="code", ylabel="kernels per\n0.01 of code")
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
    # Fits are in the checkpoint's units; shown on the scale of the centred, unit-norm kernels.
    scale = np.where(group.norm > 0, group.norm, 1)[:, None, None]
    fits = (found.templates - group.mean[:, None, None]) / scale
    limit = style.symmetric_limit(kernels[np.concatenate(list(blocks.values()))])
    fig = style.figure(7.2, 7.6)
    body, side = fig.subfigures(1, 2, width_ratios=(1, 0.09))
    parts = body.subfigures(3, 1, hspace=0.03)
    image = None
    for part, (name, rows) in zip(parts, blocks.items(), strict=True):
        axes = part.subplots(3, columns, squeeze=False)
        for column, row in enumerate(rows):
            shown = (kernels[row], fits[row], kernels[row] - fits[row])
            for ax, title, picture in zip(axes[:, column], ("kernel", "fit", "residual"), shown, strict=True):
                image = style.show_kernel(ax, picture, limit)
                if column == 0:
                    ax.set_ylabel(title, fontsize=7.5)
            axes[0, column].set_title(
                f"{found.own.label[row]}\nR² {r2[row]:.3f}", fontsize=6.5, loc="center", fontweight="normal"
            )
        title = f"{name} of {ranked.size:,} fits to {size}×{size} kernels"
        part.suptitle(title, fontsize=9, fontweight="bold", x=0.01, ha="left")
    if image is not None:
        bar = side.colorbar(image, cax=side.add_axes((0.1, 0.3, 0.2, 0.4)))
        bar.set_label("tap (kernel centred, unit norm)")
    return fig
