"""Fits of more kernels than memory holds, written to a folder of Parquet files as they come."""

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from dogfit import __version__
from dogfit.atomic_write import write_atomically
from dogfit.errors import OutputError
from dogfit.fitting.api import fit_stream
from dogfit.fitting.bounds import Bounds
from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import Family, resolve_families
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.result import FitResult, concatenate
from dogfit.host_arrays import host_array
from dogfit.kernels.model.custom import CustomModel

if TYPE_CHECKING:
    import polars

# Kernels handed to the fitter at once: enough to keep it busy, few enough to be nothing in memory.
_BLOCK_ROWS = 4096
_SETTINGS, _SUMMARY = "settings.json", "summary.json"


@dataclass(frozen=True)
class ParquetFits:
    """Account of what a folder of fits holds."""

    folder: Path
    kernels: int
    """Rows."""
    files: int
    families: dict[str, int]
    """Kernels that chose each family; unfitted ones are counted in `statuses` alone."""
    statuses: dict[str, int]
    continued_from: int
    """Rows that an earlier, interrupted run had written."""
    seconds: float
    """Of this run."""

    def scan(self) -> "polars.LazyFrame":
        """The rows, in order, read when they are needed."""
        import polars

        return polars.scan_parquet(self.folder / "*.parquet")


def fit_parquet(
    kernels: Float[np.ndarray, "n h w"] | Iterable[Float[ArrayLike, "n h w"]],
    folder: str | Path,
    families: Sequence[str | Family] = FAMILIES,
    *,
    weights: Float[ArrayLike, "h w"] | None = None,
    bounds: Bounds | None = None,
    config: FitConfig = DEFAULT,
    rows_per_file: int = 131_072,
    progress: Callable[[int, int | None], None] | None = None,
) -> ParquetFits:
    """Fit kernels in bounded memory and write `FitResult.table()` with the row number as Parquet files.

    Files appear whole and in order, named by their rows; `polars.read_parquet("folder/*.parquet")` or DuckDB
    read them as one. An interrupted run goes on behind its last whole file when it is started again with the
    same input and settings; a finished one returns at once.

    Args:
      kernels: an array (a memory-mapped one is read as it goes), or blocks of any length as they come. To
        continue, blocks must come again from the first kernel: those that are done are passed over.
      folder: new, empty, or one of the same run.
      families: as for `fit_stream`.
      weights: as for `fit_stream`.
      bounds: as for `fit_stream`.
      config: as for `fit_stream`.
      rows_per_file: kernels in each file but the last; one file's fits are in memory at a time.
      progress: called after each file with the kernels done so far and their number (None for blocks).

    Returns:
      What the folder holds when all is done.

    Raises:
      OutputError: if the folder holds something else, or fits of other kernels or with other settings.
      ValueError: as `fit_stream`; if no block comes; for `rows_per_file` below 1.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-(x**2 + y**2) / 2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = dogfit.fit_parquet(np.stack([blob, x * blob]), f"{folder}/fits", ["gaussian", "d1"])
      ...     done.scan().select("row", "family").collect().rows()
      [(0, 'gaussian'), (1, 'd1')]
    """
    if rows_per_file < 1:
        raise ValueError(f"rows_per_file must be at least 1, got {rows_per_file}")
    start = time.perf_counter()
    out = Path(folder)
    families = resolve_families(families)
    if not isinstance(kernels, Iterator) and hasattr(kernels, "shape"):
        kernels = host_array(kernels, "kernels")
    total = len(kernels) if isinstance(kernels, np.ndarray) else None
    blocks = _blocks(kernels)
    first = next(blocks, None)
    if first is None:
        raise ValueError(
            "no block of kernels came, so their size is unknown; give one without rows [0, h, w]"
        )
    while not len(first) and (block := next(blocks, None)) is not None:
        first = block
    settings: dict[str, Any] = {
        "version": __version__,
        "families": [_description(family) for family in families],
        "weights": None if weights is None else host_array(weights, "weights").tolist(),
        "bounds": repr(bounds),
        "config": asdict(config),
        "rows_per_file": rows_per_file,
        "kernels": total,
        "dtype": str(first.dtype),
        "shape": first.shape[1:],
        "first kernel": hashlib.sha256(first[:1].tobytes()).hexdigest(),
    }
    _refuse_others(out, settings)
    done = _rows_done(out)
    continued = done
    if not (out / _SUMMARY).exists():
        rest = (
            _blocks(kernels[done:])
            if isinstance(kernels, np.ndarray)
            else _without(chain([first], blocks), done)
        )
        results = fit_stream(rest, families, weights=weights, bounds=bounds, config=config)
        for part in _gather(results, rows_per_file):
            # A file of no rows keeps the schema where there is no other.
            if done and not len(part):
                continue
            if not done:
                write_atomically(out / _SETTINGS, json.dumps(settings, indent=1).encode())
            write_atomically(out / f"rows-{done:012d}-{done + len(part):012d}.parquet", _encoded(part, done))
            done += len(part)
            if progress is not None:
                progress(done, total)
    summary = _summarize(out, done, continued, time.perf_counter() - start)
    counted = {"kernels": done, "families": summary.families, "statuses": summary.statuses}
    write_atomically(out / _SUMMARY, json.dumps(counted, indent=1).encode())
    return summary


def _blocks(kernels: np.ndarray | Iterable[ArrayLike]) -> Iterator[np.ndarray]:
    """Cut kernels into pieces of a size that suits the fitter, each copied when its turn comes."""
    for block in [kernels] if isinstance(kernels, np.ndarray) else kernels:
        host = host_array(block, "kernels")
        for start in range(0, max(len(host), 1), _BLOCK_ROWS):
            yield host[start : start + _BLOCK_ROWS].copy()


def _without(blocks: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Drop the first rows of blocks."""
    for block in blocks:
        if rows < len(block) or not rows:
            yield block[rows:]
        rows = max(rows - len(block), 0)


def _gather(results: Iterator[FitResult], rows: int) -> Iterator[FitResult]:
    """Regroup results into ones of exactly so many rows, but the last."""
    waiting: list[FitResult] = []
    for result in results:
        waiting.append(result)
        while sum(map(len, waiting)) >= rows:
            whole = concatenate(waiting)
            yield jax.tree.map(lambda leaf: leaf[:rows], whole)
            waiting = [jax.tree.map(lambda leaf: leaf[rows:], whole)] if len(whole) > rows else []
    if waiting:
        yield concatenate(waiting)


def _encoded(part: FitResult, first_row: int) -> bytes:
    import polars

    table = part.table()
    # Parameters have the precision of the fit, and all files one schema, nulls or not.
    number = polars.Float64 if part.rmse.dtype == np.float64 else polars.Float32
    table = table.with_columns(
        polars.col(polars.Float64).cast(number), polars.col("family").cast(polars.String)
    ).with_row_index("row", first_row)
    buffer = io.BytesIO()
    table.with_columns(polars.col("row").cast(polars.Int64)).write_parquet(buffer)
    return buffer.getvalue()


def _description(family: Family) -> str:
    if not isinstance(family.model, CustomModel):
        return family.name
    basis = family.model.basis
    name = f"{basis.__module__}.{basis.__qualname__}"
    return f"{family.name}: {name}{family.model.ranges} {family.names}"


def _refuse_others(out: Path, settings: dict[str, Any]) -> None:
    """Raise if the folder holds anything but the same run."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder, new or empty")
    path = out / _SETTINGS
    found = json.loads(path.read_text()) if path.exists() else None
    if found is None and out.exists() and (taken := sorted(path.name for path in out.iterdir())):
        raise OutputError(f"{out} holds {taken[0]}; give a folder, new or empty")
    wanted = json.loads(json.dumps(settings))
    if found is not None and (other := [name for name in wanted if found.get(name) != wanted[name]]):
        raise OutputError(f"{out} holds fits of another run: it differs in {', '.join(other)}")


def _rows_done(out: Path) -> int:
    done = 0
    for path in sorted(out.glob("rows-*.parquet")):
        first, last = (int(number) for number in path.stem.split("-")[1:])
        if first != done:
            raise OutputError(f"{out} lacks the file of rows {done:,} to {first:,}; start in a new folder")
        done = last
    return done


def _summarize(out: Path, rows: int, continued: int, seconds: float) -> ParquetFits:
    import polars

    table = polars.scan_parquet(out / "*.parquet")

    def count(column: str) -> dict[str, int]:
        counts = table.drop_nulls(column).group_by(column).agg(polars.len()).sort("len", descending=True)
        return dict(counts.collect().iter_rows())

    files = len(list(out.glob("rows-*.parquet")))
    return ParquetFits(out, rows, files, count("family"), count("status"), continued, seconds)
