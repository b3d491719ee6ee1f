"""The decoder's curve over its code, cut into stretches that are named by our own fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Shaped

from dogfit.autoencoder import Autoencoder

UNNAMED = "unnamed"


class Stretch(NamedTuple):
    """An interval `[start, stop)` of the code and the name of the kernels decoded from it."""

    start: float
    stop: float
    name: str


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The decoder's curve, sampled evenly over the code and cut into named stretches.

    A name may hold several stretches; together they are one cluster.

    Attributes:
      code: `[m]`, sampled codes.
      kernels: `[m, k, k]`, decoded there; centred, unit norm.
      label: `[m]`, the name each sample's own fit gave it, before stretches were formed.
      r2: `[m]`, how well that fit describes it.
      stretches: in the order of the code; they cover [0, 1].
    """

    code: Float[np.ndarray, "m"]
    kernels: Float[np.ndarray, "m k k"]
    label: Shaped[np.ndarray, "m"]
    r2: Float[np.ndarray, "m"]
    stretches: tuple[Stretch, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clusters, in order of first appearance along the code."""
        return tuple(dict.fromkeys(stretch.name for stretch in self.stretches))

    def assign(self, code: ArrayLike) -> Int[np.ndarray, "n"]:
        """Cluster of each code, as an index into `names`; -1 where the code is NaN."""
        codes = np.asarray(code, float)
        starts = np.array([stretch.start for stretch in self.stretches])
        cluster = np.array([self.names.index(stretch.name) for stretch in self.stretches])
        place = np.clip(np.searchsorted(starts, codes, side="right") - 1, 0, None)
        return np.where(np.isnan(codes), -1, cluster[place]).astype(np.int32)


def name_spectrum(
    autoencoder: Autoencoder,
    fit: Callable[[np.ndarray], Any],
    label: Callable[[Any], np.ndarray],
    *,
    samples: int = 256,
    min_r2: float = 0.7,
    min_samples: int = 4,
) -> Spectrum:
    """Decode evenly spaced codes, fit each decoded kernel, and join equal names into stretches.

    Args:
      autoencoder: one with a single-number code.
      fit: kernels `[m, k, k]` to a result with `r2` `[m]`, as `dogfit.fit_kernels` does.
      label: that result to names `[m]`, as `dogfit.labels.label_fits` does.
      samples: number of codes.
      min_r2: a sample whose fit explains less is called "unnamed".
      min_samples: a stretch of fewer samples joins its longer neighbour.

    Raises:
      ValueError: the code has several numbers, so that there is no order to cut.
    """
    if autoencoder.config.code_dim != 1:
        raise ValueError(f"a spectrum needs a code of one number, this one has {autoencoder.config.code_dim}")
    code = (np.arange(samples, dtype=np.float32) + 0.5) / samples
    kernels = autoencoder.decode(code)
    result = fit(kernels)
    r2 = np.asarray(result.r2)
    names = np.asarray(label(result)).astype(str)
    good = np.nan_to_num(r2, nan=-np.inf) >= min_r2
    runs = join_short(np.where(good, names, UNNAMED).tolist(), min_samples)
    edges = np.cumsum([0, *(length for _, length in runs)]) / samples
    stretches = tuple(
        Stretch(float(a), float(b), name) for (name, _), a, b in zip(runs, edges[:-1], edges[1:], strict=True)
    )
    return Spectrum(code, kernels, names, r2, stretches)


def join_short(names: Sequence[str], shortest: int) -> list[tuple[str, int]]:
    """Run-length encode `names`; runs below `shortest` join their longer neighbour, shortest runs first."""
    runs: list[tuple[str, int]] = []
    for name in names:
        _append(runs, name, 1)
    while len(runs) > 1:
        at = min(range(len(runs)), key=lambda i: runs[i][1])
        if runs[at][1] >= shortest:
            break
        neighbours = [i for i in (at - 1, at + 1) if 0 <= i < len(runs)]
        runs[at] = (runs[max(neighbours, key=lambda i: runs[i][1])][0], runs[at][1])
        joined: list[tuple[str, int]] = []
        for name, length in runs:
            _append(joined, name, length)
        runs = joined
    return runs


def _append(runs: list[tuple[str, int]], name: str, length: int) -> None:
    if runs and runs[-1][0] == name:
        length += runs.pop()[1]
    runs.append((name, length))
