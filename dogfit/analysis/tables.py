"""`kernels.parquet` and `fits.safetensors`."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dogfit.analysis.results import RunResult, SizeResult
from dogfit.kernelset.kernelset import KernelSet
from dogfit.kernelset.layers import Layer

if TYPE_CHECKING:
    import polars as pl


def kernel_table(result: RunResult) -> "pl.DataFrame":
    """One row per kernel, by size, layer and channel.

    Columns: those of `KernelSet.table` (where it came from; mean, norm, flag); code, cluster, cluster_name
    and reconstruction_cosine (null without an autoencoder); kmeans, label; and those of `FitResult.table`.
    A value is null where it does not apply, such as any number of a kernel that could not be fitted.
    """
    import polars as pl

    origin = result.kernelset.table()
    found = pl.concat([_size_columns(size) for size in result.sizes.values()], how="diagonal")
    wanted = origin["size"].is_in(list(result.sizes))
    numbers = [name for name, dtype in found.schema.items() if dtype.is_float()]
    return pl.concat(
        [origin.filter(wanted), found.with_columns(pl.col(numbers).fill_nan(None))], how="horizontal"
    )


def layer_table(summary: Mapping[str, Any]) -> "pl.DataFrame":
    """One row per layer, by size and network order: what `summary.json` says of it, as columns.

    Columns: size, model, layer, position, stage, block, kernels; median_r2 and the share of kernels past each
    threshold for the network and every null; the measures of `analysis.layer_metrics.layer_quality`; and the
    share of each label.
    """
    import polars as pl

    rows = [
        {"size": int(size), **_layer_row(part)}
        for size, found in summary["sizes"].items()
        for part in found["by_layer"]
    ]
    shares = [name for row in rows for name in row if name.startswith("label ")]
    frame = pl.DataFrame(rows, infer_schema_length=None)
    return frame.with_columns(pl.col(list(dict.fromkeys(shares))).fill_null(0.0))


def _layer_row(part: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: part[name] for name in ("model", "name", "position", "stage", "block", "kernels")}
    row["layer"] = row.pop("name")
    row |= {f"median_r2 {name}": value for name, value in part["median_r2"].items()}
    for share in part["shares"]:
        threshold = f"{share['measure']} > {share['threshold']:g}"
        row |= {f"{threshold} {name}": value for name, value in share["shares"].items()}
    row |= part["quality"]
    counts = {label: count["network"] for label, count in part["labels"].items()}
    return row | {f"label {name}": n / max(part["kernels"], 1) for name, n in counts.items() if n}


def _size_columns(found: SizeResult) -> "pl.DataFrame":
    import polars as pl

    n = len(found.own.r2)
    nothing = np.full(n, np.nan, np.float32)
    segments, kmeans = found.code_clusters, found.kmeans
    names = (
        [None] * n if segments is None else [segments.names[i] if i >= 0 else None for i in segments.index]
    )
    own = pl.DataFrame(
        {
            "code": nothing if found.code is None else found.code,
            "cluster": _index(None if segments is None else segments.index, n),
            "cluster_name": pl.Series(names, dtype=pl.String),
            "kmeans": _index(None if kmeans is None else kmeans.index, n),
            "reconstruction_cosine": nothing if found.own.cosine is None else found.own.cosine,
            "label": pl.Series(found.own.label.tolist(), dtype=pl.String),
        }
    )
    return pl.concat([own, found.fits.drop("label", strict=False)], how="horizontal")


def _index(index: np.ndarray | None, n: int) -> "pl.Series":
    import polars as pl

    values = [None] * n if index is None else [int(i) if i >= 0 else None for i in index]
    return pl.Series(values, dtype=pl.Int32)


def parquet(frame: "pl.DataFrame") -> bytes:
    """A frame as Parquet."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def fitted_tensors(result: RunResult) -> dict[str, np.ndarray]:
    """Fitted kernels as the checkpoint holds them: a float32 tensor for each layer, in the file's own layout.

    Each goes by the layer's name; with several models, preceded by the model's name and a colon. A kernel
    without a fit keeps its own taps, so that the tensors can take the place of the network's.
    """
    kernelset = result.kernelset
    tensors = {}
    for size, found in result.sizes.items():
        group = kernelset.groups[size]
        start = 0
        # Groups are ordered by layer.
        for index in np.unique(group.layer):
            layer = kernelset.layers[index]
            rows = slice(start, start + layer.channels)
            start = rows.stop
            fitted = np.isfinite(found.own.r2[rows])[:, None, None]
            kernels = np.where(fitted, found.templates[rows], group.kernels[rows]).astype(np.float32)
            tensors[tensor_name(kernelset, layer)] = layer.to_stored(kernels)
    return tensors


def tensor_name(kernelset: KernelSet, layer: Layer) -> str:
    """Name a layer among the tensors of a run."""
    return f"{layer.model}:{layer.name}" if len(kernelset.models) > 1 else layer.name
