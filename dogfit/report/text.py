"""The findings of a run in about ten lines for a terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogfit.analysis.results import NETWORK
from dogfit.analysis.selection import commonest_counts, extreme_layers

LABELS_SHOWN = 6
MODELS_SHOWN = 6
LAYERS_SHOWN = 2

PROFILES = {
    "integrated": "integrated over each tap",
    "sampled": "sampled at the middle of each tap",
    "discrete": "made of discrete Gaussians",
}
CRITERIA = {"bic": "the lowest BIC", "aicc": "the lowest AICc", "cv": "the lowest cross-validated error"}
"""Description of each criterion, by the name of the setting."""


def percent(share: float | None) -> str:
    """Write a share as a percentage, or a dash for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def printable(name: str) -> str:
    """Replace what could steer a terminal in a name from a checkpoint by question marks."""
    return "".join(c if c.isprintable() else "?" for c in name)


def criterion(row: Mapping[str, Any]) -> str:
    """Describe what a row of shares counts."""
    measure = "R²" if row["measure"] == "r2" else "reconstruction cosine"
    return f"{measure} > {row['threshold']:.2f} ({row['meaning']})"


def fitted_how(settings: Mapping[str, Any]) -> str:
    """Describe the functions that were fitted and what chose among them.

    Args:
      settings: of the summary: `families`, `profile` and `criterion`.
    """
    families = ", ".join(settings["families"])
    return f"{families}, {PROFILES[settings['profile']]}; best family by {CRITERIA[settings['criterion']]}"


def summary_lines(summary: Mapping[str, Any], out: Path) -> list[str]:
    """Write the contrast with the nulls, then labels, the best and worst layers, and where the report is.

    Args:
      summary: as in `summary.json`.
      out: folder of the results.

    Returns:
      Lines for a terminal.
    """
    sizes = summary["sizes"]
    lines = [
        f"{printable(model['name'])}: {model['layers']} layers, {_kernels(model)}"
        for model in summary["models"]
    ]
    lines.append(f"fitted: {fitted_how(summary['settings'])}")
    lines += _shares(sizes)
    if len(summary["models"]) > 1:
        lines += [line for size, found in sizes.items() for line in _models(size, found)]
    for size, found in sizes.items():
        common = ", ".join(
            f"{count:,} {label}" for label, count in commonest_counts(found["labels"], LABELS_SHOWN)
        )
        lines.append(
            f"{size}×{size} labels: {common}{', ...' if len(found['labels']) > LABELS_SHOWN else ''}"
        )
        if reason := found["autoencoder"]["left_out"]:
            lines.append(f"{size}×{size} autoencoder left out: {reason}")
    if len(sizes) == len(summary["models"]) == 1:
        lines += _extremes(next(iter(sizes.values())))
    return [*lines, f"report: {out / 'report.html'}"]


def _kernels(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} kernels {size}×{size}" for size, count in model["kernels"].items())


def _models(size: str, found: Mapping[str, Any]) -> list[str]:
    """Share of close fits of each model, beside its null's."""
    lines = []
    for part in found["by_model"][:MODELS_SHOWN]:
        (row,) = (row for row in part["shares"] if (row["measure"], row["kind"]) == ("r2", "close"))
        own, null = row["shares"][NETWORK], row["shares"][found["hardest_null"]]
        title = f"{printable(part['model'])} {size}×{size} R² > {row['threshold']:.2f}"
        lines.append(f"{title}: {percent(own)} (its null {percent(null)})")
    return lines


def _shares(sizes: Mapping[str, Any]) -> list[str]:
    """Table of shares; of several sizes only the stated thresholds of R²."""
    several = len(sizes) > 1
    rows = [
        (f"{size}×{size} {criterion(row)}" if several else criterion(row), row["shares"])
        for size, found in sizes.items()
        for row in found["shares"]
        if (_is_stated(row) if several else row["null"] in (None, found["hardest_null"]))
    ]
    names = list(rows[0][1])
    width = max(len(title) for title, _ in rows)
    cells = [[percent(shares[name]).rjust(max(len(name), 8)) for name in names] for _, shares in rows]
    header = [name.rjust(8) for name in names]
    lines = ["  ".join(["share of kernels with".ljust(width), *header])]
    return lines + [
        "  ".join([title.ljust(width), *row]) for (title, _), row in zip(rows, cells, strict=True)
    ]


def _is_stated(row: Mapping[str, Any]) -> bool:
    """Tell whether the threshold is one of R² that does not depend on a null."""
    return row["measure"] == "r2" and row["kind"] != "null_rate"


def _extremes(found: Mapping[str, Any]) -> list[str]:
    def median(part: Mapping[str, Any]) -> str:
        own, null = (part["median_r2"][name] for name in (NETWORK, found["hardest_null"]))
        own, null = ("–" if value is None else f"{value:.2f}" for value in (own, null))
        return f"{printable(part['name'])} {own} ({null})"

    extremes = extreme_layers(found["by_layer"], LAYERS_SHOWN)
    return [
        f"{title} layers by median R² (null): " + ", ".join(map(median, parts))
        for title, parts in extremes.items()
    ]
