"""What a run found, in about ten lines for a terminal."""

from pathlib import Path
from typing import Any

LABELS_SHOWN = 6
MODELS_SHOWN = 6


def percent(share: float | None) -> str:
    """A share as a person reads it."""
    return "–" if share is None else f"{100 * share:.1f} %"


def printable(name: str) -> str:
    """A name from a checkpoint, without what could steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)


def criterion(row: dict[str, Any]) -> str:
    """What a row of shares counts, in words."""
    measure = "R²" if row["measure"] == "r2" else "reconstruction cosine"
    return f"{measure} > {row['threshold']:.2f} ({row['meaning']})"


def summary_lines(summary: dict[str, Any], out: Path) -> list[str]:
    """The contrast with the nulls first, then labels, the best and worst layers, and where the report is."""
    sizes = summary["sizes"]
    lines = [
        f"{printable(model['name'])}: {model['layers']} layers, {_kernels(model)}"
        for model in summary["models"]
    ]
    lines += _shares(sizes)
    if len(summary["models"]) > 1:
        for size, found in sizes.items():
            for part in found["by_model"][:MODELS_SHOWN]:
                row = part["shares"][1]
                own, null = row["shares"]["network"], list(row["shares"].values())[-1]
                title = f"{printable(part['model'])} {size}×{size} R² > {row['threshold']:.2f}"
                lines.append(f"{title}: {percent(own)} (its null {percent(null)})")
    for size, found in sizes.items():
        counts = sorted(((count["network"], label) for label, count in found["labels"].items()), reverse=True)
        common = ", ".join(f"{count:,} {label}" for count, label in counts[:LABELS_SHOWN] if count)
        lines.append(f"{size}×{size} labels: {common}{', ...' if len(counts) > LABELS_SHOWN else ''}")
        if reason := found["autoencoder"]["left_out"]:
            lines.append(f"{size}×{size} autoencoder left out: {reason}")
    if len(sizes) == len(summary["models"]) == 1:
        lines += _extremes(next(iter(sizes.values()))["by_layer"])
    return [*lines, f"report: {out / 'report.html'}"]


def _kernels(model: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} kernels {size}×{size}" for size, count in model["kernels"].items())


def _shares(sizes: dict[str, Any]) -> list[str]:
    several = len(sizes) > 1
    rows = [
        (f"{size}×{size} {criterion(row)}" if several else criterion(row), row["shares"])
        for size, found in sizes.items()
        for row in (found["shares"][:2] if several else _telling(found["shares"]))
    ]
    names = list(rows[0][1])
    width = max(len(title) for title, _ in rows)
    cells = [[percent(shares[name]).rjust(max(len(name), 8)) for name in names] for _, shares in rows]
    header = [name.rjust(8) for name in names]
    lines = ["  ".join(["share of kernels with".ljust(width), *header])]
    return lines + [
        "  ".join([title.ljust(width), *row]) for (title, _), row in zip(rows, cells, strict=True)
    ]


def _telling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row but the thresholds of the easier nulls."""
    easier = []
    for measure in ("r2", "cosine"):
        rates = [r for r in rows if r["measure"] == measure and r["meaning"].startswith("null rate")]
        easier += rates[:-1]
    return [row for row in rows if row not in easier]


def _extremes(layers: list[dict[str, Any]]) -> list[str]:
    ranked = sorted(layers, key=lambda part: -(part["median_r2"]["network"] or 0))
    if len(ranked) < 4:
        return []
    return [
        f"{title} layers by median R² (null): " + ", ".join(_median(part) for part in parts)
        for title, parts in (("best", ranked[:2]), ("worst", ranked[-2:]))
    ]


def _median(part: dict[str, Any]) -> str:
    medians = part["median_r2"]
    own, null = medians["network"], list(medians.values())[-1]
    own, null = ("–" if value is None else f"{value:.2f}" for value in (own, null))
    return f"{printable(part['name'])} {own} ({null})"
