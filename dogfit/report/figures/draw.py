"""Every figure of a run."""

from collections.abc import Mapping
from typing import Any

from dogfit.analysis.results import RunResult
from dogfit.analysis.shares import share_sections
from dogfit.report.figures import style
from dogfit.report.figures.charts import distribution, labels_by_layer, models_side_by_side
from dogfit.report.figures.clusters import (
    evidence_curves,
    stage_intervals,
    training_shares,
    universal_filters,
)
from dogfit.report.figures.kernels import decoder_along_code, fit_gallery, kernels_by_cluster


def draw_figures(result: RunResult, summary: Mapping[str, Any] | None = None) -> dict[tuple[str, str], bytes]:
    """PNG files by kernel size and name; figures that do not apply are left out."""
    import matplotlib as mpl

    from dogfit.labels import LABELS

    kernelset = result.kernelset
    drawn = {}
    with mpl.rc_context():
        # The same look whatever the user's own matplotlibrc says.
        mpl.rcdefaults()
        mpl.rcParams.update(style.RC)
        for size, found in result.sizes.items():
            if summary is None:
                sections = share_sections(kernelset, size, found)
            else:
                sections = summary["sizes"][str(size)]["label_shares"]
            figures = {
                "r2": distribution(found, size, "r2"),
                "cosine": distribution(found, size, "cosine"),
                "gallery": fit_gallery(found, kernelset.groups[size], size),
                "labels": labels_by_layer(found, kernelset, LABELS),
                "latent_segments": decoder_along_code(found, size, LABELS),
                "clusters": kernels_by_cluster(found, size),
                "intervals": stage_intervals(sections, size),
                "training": training_shares(sections, size, LABELS),
                "universal": universal_filters(found, size),
                "evidence": evidence_curves(found.evidence, size),
                "models": models_side_by_side(found, kernelset, size, LABELS)
                if len(kernelset.models) > 1
                else None,
            }
            drawn |= {(str(size), name): style.png(fig) for name, fig in figures.items() if fig is not None}
    return drawn
