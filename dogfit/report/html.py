"""The HTML page: one file that opens from disk and loads nothing."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogfit.report.text import criterion, percent

CAPTIONS = {
    "r2": "Left, how R² is spread among the network's kernels and the nulls. Right, the share of kernels "
    "whose best fit exceeds each R²: read the network's line against the nulls' at the same threshold.",
    "cosine": "The paper's definition: left, how the cosine between kernel and reconstruction is spread; "
    "right, the share above each cosine. The autoencoder was trained on the network's kernels alone.",
    "intervals": "Shares of the commonest labels with bootstrap intervals over kernels; crosses: the same "
    "share among the covariance-matched null of the same layers.",
    "training": "Shares along the checkpoints of one run, with bootstrap intervals; dashed: the null "
    "matched to each checkpoint's covariance.",
    "universal": "Above, mean explained energy of kernels that are replaced by the best of a few filters. "
    "Below, the first filters of each way, in the order of their worth.",
    "evidence": "Scores of k-means (silhouette, stability under the bootstrap) and of Gaussian mixtures "
    "(BIC, lower is better) against the number of clusters. Dotted: the number of names along the code.",
    "gallery": "Kernel, fit and residual of the best, the median and the worst kernels, centred and scaled "
    "to unit norm, all on one scale: red above zero, blue below, white at zero.",
    "labels": "Share of labels in each layer, in network order; black lines part the stages. At the right "
    "all layers together and the nulls. Of many models, those with most layers.",
    "models": "Left, the share of kernels above each R² for each model (solid) and its covariance-matched "
    "null (dashed). Right, label shares of each model and its null.",
    "latent_segments": "What the decoder draws along its code, the segments named by fitting these kernels, "
    "how well they were fitted, and how many kernels lie where.",
    "clusters": "Kernels by cluster: the centre (decoded amid the longest segment of that name, or the "
    "mean of a k-means cluster), then members evenly spaced by rank, from the one closest to its own "
    "reconstruction (with k-means: to the centre) to the one farthest from it.",
}

# Numbers of universal filters in the page's table, and labels in its table of intervals.
COUNTS_SHOWN = (1, 2, 4, 8, 10, 16, 25, 50)
LABELS_SHOWN = 8


def report_page(summary: Mapping[str, Any], pictures: Mapping[tuple[str, str], bytes]) -> str:
    """The report of a run.

    Args:
      summary: as `summarize` makes it.
      pictures: PNG files by kernel size (as the summary spells it) and name, one of `CAPTIONS`.
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
        "short_criterion": lambda row: criterion(row).partition(" (")[0].removeprefix("reconstruction "),
        "of_measure": lambda rows, measure: [row for row in rows if row["measure"] == measure],
        "number": lambda value: "–" if value is None else f"{value:.2f}",
        "thousands": lambda value: f"{value:,}",
        "commonest": _commonest,
        "commonest_labels": _commonest_labels,
        "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
    }
    totals = {
        size: {name: sum(counts[name] for counts in found["labels"].values()) for name in found["r2"]}
        for size, found in summary["sizes"].items()
    }
    return environment.get_template("page.html").render(
        summary=summary,
        totals=totals,
        captions=CAPTIONS,
        counts_shown=COUNTS_SHOWN,
        largest_count=_largest_count,
        pictures={key: base64.b64encode(data).decode() for key, data in pictures.items()},
    )


def _commonest(labels: Mapping[str, Mapping[str, int]]) -> str:
    counts = sorted(((count["network"], label) for label, count in labels.items()), reverse=True)
    return ", ".join(f"{label} {count:,}" for count, label in counts[:3] if count)


def _commonest_labels(sections: Mapping[str, Any]) -> list[str]:
    """Labels with the largest share in any model, in the order of display."""
    most = {
        label: max(part["shares"][label]["share"] for part in sections["by_model"])
        for label in sections["labels"]
    }
    chosen = sorted(most, key=lambda label: -most[label])[:LABELS_SHOWN]
    return [label for label in sections["labels"] if label in chosen]


def _largest_count(found: Mapping[str, Any]) -> int:
    sets = found["evidence"]["sets"].values()
    return max((max(curve["counts"]) for part in sets for curve in part["curves"]), default=0)
