"""Every figure of a run."""

from collections.abc import Mapping
from typing import Any

from dogfit.analysis.results import RunResult
from dogfit.analysis.selection import largest_models, model_curves
from dogfit.report.figures import style
from dogfit.report.figures.charts import draw_distribution, draw_labels_by_layer, draw_models
from dogfit.report.figures.clusters import (
    draw_evidence,
    draw_intervals,
    draw_training,
    draw_universal_filters,
)
from dogfit.report.figures.kernels import draw_clusters, draw_decoder, draw_gallery

MODELS_SHOWN = 12


def draw_figures(
    result: RunResult, summary: Mapping[str, Any], *, dpi: int = style.DPI
) -> dict[tuple[str, str], bytes]:
    """Draw the figures of a run.

    Args:
      result: the run's arrays.
      summary: its numbers, as in `summary.json`.
      dpi: pixels per inch of the figures.

    Returns:
      PNG files by kernel size (as the summary spells it) and name; figures that do not apply are left out.
    """
    import matplotlib as mpl

    from dogfit.labels import LABELS

    kernelset = result.kernelset
    drawn = {}
    with mpl.rc_context():
        # The same look with any matplotlibrc of the user's.
        mpl.rcdefaults()
        mpl.rcParams.update(style.RC)
        for size, found in result.sizes.items():
            numbers = summary["sizes"][str(size)]
            shares, hardest = numbers["label_shares"], numbers["hardest_null"]
            models = largest_models(numbers["by_layer"], MODELS_SHOWN)
            null_rate = found.null_rate
            figures = {
                "r2": draw_distribution(found, numbers, size, "r2", null_rate),
                "cosine": draw_distribution(found, numbers, size, "cosine", null_rate),
                "gallery": draw_gallery(found, kernelset.groups[size], size),
                "labels": draw_labels_by_layer(numbers, models, LABELS),
                "latent_segments": draw_decoder(found, size, LABELS),
                "clusters": draw_clusters(found, size),
                "intervals": draw_intervals(shares, size, hardest),
                "training": draw_training(shares, size, hardest, LABELS),
                "universal": draw_universal_filters(found, numbers, size),
                "evidence": draw_evidence(numbers["evidence"], size),
            }
            if len(kernelset.models) > 1:
                curves = model_curves(found, kernelset, models)
                figures["models"] = draw_models(numbers, curves, size, LABELS)
            for name, figure in figures.items():
                if figure is not None:
                    drawn[str(size), name] = style.png(figure, dpi)
    return drawn
