"""Fits of the network's kernels and of nulls, kept between runs."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Float, Int

from dogfit.analysis.results import NETWORK, Scores
from dogfit.analysis.stage_files import load_arrays, save_arrays
from dogfit.analysis.tables import parquet
from dogfit.clusters import paper_r2
from dogfit.errors import InputError
from dogfit.fitting.config import FitConfig
from dogfit.kernelset.groups import KernelGroup
from dogfit.normalize import normalize_kernels
from dogfit.nulls import covariance_matched, untrained, white_noise
from dogfit.runtime.keys import make_key
from dogfit.runtime.progress import Progress
from dogfit.runtime.tasks import Rows, already_sharded, fit_rows
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

    from dogfit.fitting.result import FitResult


@dataclass(frozen=True)
class NullKernels:
    """Kernels of a null.

    Attributes:
      name: of the null.
      difficulty: its rank among the nulls, larger for one that is harder to beat.
      kernels: raw taps `[n, k, k]`.
      layer: index of the layer that each stands for, -1 for none `[n]`.
    """

    name: str
    difficulty: int
    kernels: Float[np.ndarray, "n k k"]
    layer: Int[np.ndarray, " n"]


def draw_nulls(group: KernelGroup, seed: int, limits: tuple[int, int]) -> tuple[NullKernels, ...]:
    """Draw the kernels of every null.

    Args:
      group: the network's kernels of one size.
      seed: of the draws.
      limits: fewest and most kernels of each null; between these, as many as the network has.

    Returns:
      The nulls, the easiest to beat first. The last has no kernels if no layer has a covariance.
    """
    k = group.kernels.shape[-1]
    n = int(np.clip(len(group.kernels), *limits))
    nowhere = np.full(n, -1, np.int32)
    return (
        NullKernels("white noise", 0, white_noise(n, k, seed), nowhere),
        NullKernels("untrained", 1, untrained(n, k, seed), nowhere),
        NullKernels("covariance-matched", 2, *covariance_matched(group, seed, n)),
    )


@dataclass(frozen=True)
class Fits:
    """Part of a `FitResult` that is kept between runs.

    Attributes:
      frame: `FitResult.table` and the labels; of nulls, R² and labels alone.
      templates: fitted kernels `[n, k, k]`, NaN without a fit; of nulls, none.
      families: names of those fitted.
      unidentifiable: families that kernels of this size cannot identify, with the reason.
      key: of the stage.
    """

    frame: "pl.DataFrame"
    templates: Float[np.ndarray, "n k k"]
    families: tuple[str, ...]
    unidentifiable: Mapping[str, str]
    key: str

    def scores(self, name: str, kernels: np.ndarray, layer: np.ndarray) -> Scores:
        """Set out R² and labels beside the kernels.

        Args:
          name: of the set of kernels.
          kernels: those that were fitted, centered and of unit norm `[n, k, k]`.
          layer: of each, see `Scores`.

        Returns:
          The scores, without codes.
        """
        r2 = self.frame["r2"].fill_null(np.nan).to_numpy().astype(np.float32)
        return Scores(name, kernels, layer, r2, np.asarray(self.frame["label"].to_list(), dtype=str))

    def save(self, path: Path) -> None:
        """Write everything but the key to one file."""
        arrays = {"templates": self.templates, "frame": np.frombuffer(parquet(self.frame), np.uint8)}
        about = {"families": self.families, "unidentifiable": dict(self.unidentifiable)}
        save_arrays(path, arrays, about)

    @classmethod
    def load(cls, path: Path, key: str) -> Self:
        """Read what `save` wrote."""
        import polars as pl

        arrays, about = load_arrays(path)
        frame = pl.read_parquet(io.BytesIO(arrays["frame"].tobytes()))
        return cls(frame, arrays["templates"], tuple(about["families"]), about["unidentifiable"], key)


def check_fittable(size: int, families: Sequence[str]) -> None:
    """Check that kernels of a size can be fitted.

    Args:
      size: taps a side.
      families: names of the families to fit.

    Raises:
      InputError: the size is out of range, or none of the families can be identified from so few taps.
    """
    from dogfit.fitting.api import MAX_SIZE, MIN_SIZE
    from dogfit.fitting.families import BUILTIN_FAMILIES, unidentifiable

    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"{size}×{size} kernels left out: sizes {MIN_SIZE} to {MAX_SIZE} can be fitted")
    reasons = unidentifiable([BUILTIN_FAMILIES[name] for name in families], (size, size))
    if len(reasons) == len(set(families)):
        raise InputError("; ".join(reasons.values()))


def fit_network(
    group: KernelGroup, families: Sequence[str], config: FitConfig, work: Workspace, progress: Progress
) -> Fits:
    """Fit the network's kernels of one size, or read the fits of an earlier run.

    Args:
      group: the kernels.
      families: names of the families to fit.
      config: of the fits.
      work: where fits are kept.
      progress: shown while fitting.

    Returns:
      The fits.
    """
    return _fits(NETWORK, already_sharded(group.kernels), families, config, work, progress)


def fit_null(
    null: NullKernels, families: Sequence[str], config: FitConfig, work: Workspace, progress: Progress
) -> Fits:
    """Fit the kernels of a null, or read the fits of an earlier run.

    Args:
      null: its kernels.
      families: as for `fit_network`, like `config`, `work` and `progress`.

    Returns:
      The fits: R² and labels alone.
    """
    return _fits(null.name, Rows(null.kernels), families, config, work, progress)


def null_scores(null: NullKernels, fits: Fits) -> Scores:
    """Set out R² and labels beside the kernels of a null.

    Args:
      null: its kernels.
      fits: see `fit_null`.

    Returns:
      The scores, without codes.
    """
    scores = fits.scores(null.name, normalize_kernels(null.kernels), null.layer)
    return replace(scores, difficulty=null.difficulty)


def _fits(
    name: str, rows: Rows, families: Sequence[str], config: FitConfig, work: Workspace, progress: Progress
) -> Fits:
    size = rows.kernels.shape[-1]
    key = make_key("fit", name, rows.kernels, list(families), config)

    def write(path: Path) -> None:
        with progress.stage(f"fit {size}×{size} {name}", "kernels") as update:
            result = fit_rows(rows, families, config, update)
            _labeled(result, key, whole=name == NETWORK).save(path)

    return Fits.load(work.stage(f"fit-{size}-{name.replace(' ', '-')}", key, write), key)


def _labeled(result: "FitResult", key: str, *, whole: bool) -> Fits:
    """Label fits; `whole` keeps more than R² and labels."""
    import polars as pl

    from dogfit.labels import label_fits

    frame = result.table() if whole else pl.DataFrame({"r2": np.asarray(result.r2)})
    labels = label_fits(result, paper_r2(result.size)).tolist()
    frame = frame.with_columns(pl.Series("label", labels, dtype=pl.String))
    templates = result.templates() if whole else np.empty((0, result.size, result.size), np.float32)
    return Fits(frame, templates, result.family_names, dict(result.unidentifiable), key)
