"""Are the clusters there, or does the method make them? The table that reviewers of the paper asked for.

Runs the main job with `--evidence` on three trained networks and prints one table: each model's own kernels
beside white noise and its covariance-matched null, which get autoencoders of their own.

    python benchmarks/clusters.py [MODEL:SIZE ...] [--data FOLDER] [--filters FILE] [--keep FOLDER]

Models are files of FOLDER, ../shared/data/kernels by default. With `--keep` finished stages stay there and a
later call goes on from them.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import jax
import sklearn

from dogfit.job.config import RunConfig
from dogfit.job.main import run_job
from dogfit.runtime.progress import progress_for

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MODELS = ("convnextpose-xs:7", "litepose-crowdpose:7", "mediapipe-palm-detection-full:5")
FILTERS = 8


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def passed(found: dict[str, Any], measure: str, names: list[str]) -> list[str]:
    row = next(row for row in found["shares"] if row["measure"] == measure and row["kind"] == "paper")
    return [percent(row["shares"][name]) for name in names]


def lines(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Title and cells of each line of one model: network, white noise, covariance-matched."""
    evidence = found["evidence"]
    parts = evidence["sets"]
    names = list(parts)
    nothing = [""] * (len(names) - 1)
    trained = [part["autoencoder"] for part in parts.values()]
    yield "R² above the paper's threshold, by fit", passed(found, "r2", names)
    yield "cosine above the paper's threshold, the network's autoencoder", passed(found, "cosine", names)
    yield "the same, an autoencoder of their own", [percent(own["classified"]) for own in trained]
    yield (
        "held-out dissimilarity of their own autoencoder",
        [f"{own['heldout_dissimilarity']:.3f}" for own in trained],
    )
    yield "names / segments along its code", [f"{own['names']} / {own['segments']}" for own in trained]
    yield "kernels in named segments", [percent(own["named"]) for own in trained]
    again = trained[0]["retrained"]
    yield (
        "names from two trainings, ARI (NMI)",
        [f"{number(again['ari'])} ({number(again['nmi'])})", *nothing],
    )
    scores = {
        (row["space"], row["method"]): [
            next(s for s in part["scores"] if (s["space"], s["method"]) == (row["space"], row["method"]))
            for part in parts.values()
        ]
        for row in parts[names[0]]["scores"]
    }
    clusters = evidence["clusters"]
    for (space, method), rows in scores.items():
        if method == "given":
            yield (
                f"{space}: silhouette among kernels",
                [number(row["silhouette_kernels"]) for row in rows],
            )
            continue
        title = f"{method} of {space}, {clusters} clusters"
        yield (
            f"{title}: silhouette (among kernels)",
            [f"{number(row['silhouette'])} ({number(row['silhouette_kernels'])})" for row in rows],
        )
        yield (
            f"{title}: stability over starts / bootstrap, ARI",
            [f"{number(row['restarts_ari'])} / {number(row['bootstrap_ari'])}" for row in rows],
        )
        for other in ("name along the code", "label of the fit"):
            pairs = [row["agreement"][other] for row in rows]
            yield (
                f"{title}: NMI (ARI) with {other}",
                [f"{number(pair['nmi'])} ({number(pair['ari'])})" for pair in pairs],
            )
    for place, curve in enumerate(parts[names[0]]["curves"]):
        supported = [part["curves"][place]["supported"] for part in parts.values()]
        yield (
            f"clusters preferred in {curve['space']}: silhouette / stability / BIC",
            [f"{s['silhouette']} / {s['bootstrap_ari']} / {s['bic']}" for s in supported],
        )
    gap = dict(zip(evidence["gap"]["counts"], evidence["gap"]["gap"], strict=True))
    shown = ", ".join(f"{gap[k]:.3f} at {k}" for k in (2, 10, 32) if k in gap)
    yield f"clusters by the gap statistic ({shown})", [str(evidence["gap"]["supported"]), *nothing]
    universal = found["universal"]
    for name, row in universal["found"].items():
        at = min(FILTERS, len(row["explained"]))
        cell = f"{percent(row['explained'][at - 1])}, elbow {row['elbow']}"
        cells = ["", "", cell] if row["candidates"] == "null" else [cell, *nothing]
        yield f"energy explained by {at} filters, {name}", cells
    for name, curve in universal["controls"].items():
        yield f"energy explained by {FILTERS} filters, {name}", [percent(curve[FILTERS - 1]), *nothing]
    if universal["given"]:
        yield (
            f"energy explained by {universal['given']['filters']} published filters",
            [percent(universal["given"]["explained"]), *nothing],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL:SIZE")
    parser.add_argument("--data", type=Path, default=SHARED / "kernels")
    parser.add_argument("--filters", type=Path, default=SHARED / "master_key_filters.json")
    parser.add_argument("--keep", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for model in options.models:
            name, _, size = model.partition(":")
            config = RunConfig(
                sources=(str(options.data / f"{name}.safetensors"),),
                out=(options.keep or Path(temporary)) / name,
                sizes=(int(size or 7),),
                evidence=True,
                filters=options.filters if options.filters.is_file() else None,
            )
            found = run_job(config, progress_for(False))["sizes"][size or "7"]
            sets = found["evidence"]["sets"]
            used = next(iter(sets.values()))["kernels"]
            print(f"\n### {name}, {found['fitted']:,} kernels of {size}×{size} ({used:,} for scores)\n")
            print(f"| | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
            for title, cells in lines(found):
                print(f"| {title} | {' | '.join(cells)} |")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()}"
    versions = (
        f"Python {platform.python_version()}, jax {jax.__version__}, scikit-learn {sklearn.__version__}"
    )
    print(f"\n{machine}; {versions}; {date.today():%d %B %Y}")


if __name__ == "__main__":
    main()
