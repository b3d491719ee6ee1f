"""The HTML page: one file that opens from disk and loads nothing."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogfit.analysis.results import CODE_NAMES, FIT_LABELS, NETWORK
from dogfit.analysis.selection import (
    commonest_counts,
    commonest_labels,
    label_fractions,
    largest_cluster_count,
)
from dogfit.report.text import CRITERIA, PROFILES, criterion, percent

CAPTIONS = {
    "r2": "Left: the distribution of R² among the network's kernels and the nulls. Right: the share of "
    "kernels whose best fit exceeds each R². Compare the network's line with those of the nulls at the same "
    "threshold.",
    "cosine": "The paper's definition. Left: the distribution of the cosine between kernel and "
    "reconstruction. Right: the share of kernels above each cosine. The autoencoder was trained on the "
    "network's kernels alone.",
    "intervals": "Shares of the most common labels, with bootstrap intervals over kernels. Crosses: the same "
    "share among null kernels that match the covariance of the same layers.",
    "training": "Shares along the checkpoints of one run, with bootstrap intervals. Dashed: the null that "
    "matches the covariance of each checkpoint.",
    "universal": "Above: mean explained energy when each kernel is replaced by the best of a few filters. "
    "Below: the first filters that each search found, most useful first.",
    "evidence": "Scores of k-means (silhouette, and stability under the bootstrap) and of Gaussian mixtures "
    "(BIC, lower is better) against the number of clusters. The dotted line is the number of names along the "
    "code.",
    "gallery": "Kernel, fit and residual for the best, the median and the worst fits. Kernels are centered "
    "and scaled to unit norm, and all share one color scale: red above zero, blue below, white at zero.",
    "labels": "Shares of labels in each layer, in network order; black lines separate the stages. At the "
    "right, all layers together and the nulls. Of many models, those with the most layers are shown.",
    "models": "Left: the share of kernels above each R² for each model (solid) and its covariance-matched "
    "null (dashed). Right: shares of labels in each model and its null.",
    "latent_segments": "Kernels that the decoder draws along its code, the names that fits give them, the R² "
    "of these fits, and the number of the network's kernels at each code.",
    "clusters": "Kernels by cluster. First the center (decoded from the middle of the longest segment with "
    "that name, or the mean of a k-means cluster), then members evenly spaced by rank, from the one most "
    "similar to its own reconstruction (with k-means, to the center) to the least similar.",
}

# Numbers of universal filters in the page's table, labels in its table of intervals, labels in a cell.
COUNTS_SHOWN = (1, 2, 4, 8, 10, 16, 25, 50)
LABELS_SHOWN = 8
LABELS_IN_CELL = 3


def report_page(summary: Mapping[str, Any], pictures: Mapping[tuple[str, str], bytes]) -> str:
    """Write the report of a run.

    Args:
      summary: as in `summary.json`.
      pictures: PNG files by kernel size (as the summary spells it) and name, one of `CAPTIONS`.

    Returns:
      An HTML page that holds its pictures and loads nothing.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        # Layer and model names come from checkpoints: untrusted text.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "criterion": criterion,
        "short_criterion": lambda row: criterion({**row, "meaning": ""}).removesuffix(" ()"),
        "of_measure": lambda rows, measure: [row for row in rows if row["measure"] == measure],
        "number": lambda value: "–" if value is None else f"{value:.2f}",
        "thousands": lambda value: f"{value:,}",
        "commonest": _commonest,
        "commonest_labels": _commonest_labels,
        "label_fractions": label_fractions,
        "largest_cluster_count": largest_cluster_count,
        "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
    }
    settings = summary["settings"]
    return environment.get_template("page.html").render(
        summary=summary,
        captions=CAPTIONS,
        counts_shown=COUNTS_SHOWN,
        profile=PROFILES[settings["profile"]],
        best_by=CRITERIA[settings["criterion"]],
        own=NETWORK,
        partitions=(CODE_NAMES, FIT_LABELS),
        pictures={key: base64.b64encode(data).decode() for key, data in pictures.items()},
    )


def _commonest(labels: Mapping[str, Mapping[str, int]]) -> str:
    return ", ".join(f"{label} {count:,}" for label, count in commonest_counts(labels, LABELS_IN_CELL))


def _commonest_labels(sections: Mapping[str, Any]) -> list[str]:
    """Labels with the largest share in any model, in the order of display."""
    chosen = commonest_labels(sections["by_model"], sections["labels"], LABELS_SHOWN)
    return [label for label in sections["labels"] if label in chosen]
