"""`kernels.parquet` and `fits.safetensors`."""

import io
from typing import TYPE_CHECKING

import numpy as np

from dogfit.kernelset import KernelSet, Layer
from dogfit.report.result import RunResult, SizeResult

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


def _size_columns(found: SizeResult) -> "pl.DataFrame":
    import polars as pl

    n = len(found.own.r2)
    nothing = np.full(n, np.nan, np.float32)
    stretches, kmeans = found.stretches, found.kmeans
    names = (
        [None] * n if stretches is None else [stretches.names[i] if i >= 0 else None for i in stretches.index]
    )
    own = pl.DataFrame(
        {
            "code": nothing if found.code is None else found.code,
            "cluster": _index(None if stretches is None else stretches.index, n),
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
        fitted = np.isfinite(found.own.r2)[:, None, None]
        kernels = np.where(fitted, found.templates, group.kernels).astype(np.float32)
        for index in np.unique(group.layer):
            layer = kernelset.layers[index]
            tensors[tensor_name(kernelset, layer)] = layer.as_stored(kernels[group.layer == index])
    return tensors


def tensor_name(kernelset: KernelSet, layer: Layer) -> str:
    """What a layer is called among the tensors of a run."""
    return f"{layer.model}:{layer.name}" if len(kernelset.models) > 1 else layer.name
