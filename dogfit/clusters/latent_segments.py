"""Segments of an autoencoder's code, named by fits to the kernels that are decoded there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, Int, Shaped

from dogfit.autoencoder import Autoencoder

UNNAMED = "unnamed"


def evenly_spaced_codes(count: int) -> Float[np.ndarray, "m"]:
    """Place codes evenly in [0, 1], half a step from either end.

    Args:
      count: number of codes.

    Returns:
      The codes, ascending, float32 `[m]`.
    """
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


class Segment(NamedTuple):
    """An interval `[start, stop)` of the code and the name of the kernels decoded from it."""

    start: float
    stop: float
    name: str


@dataclass(frozen=True, eq=False)
class LatentSegments:
    """A code cut into named segments, with kernels decoded at evenly spaced codes.

    A name may hold several segments; together they are one cluster.

    Attributes:
      code: sampled codes `[m]`.
      kernels: decoded at these codes, centered and of unit norm `[m, k, k]`.
      label: name that the fit to each decoded kernel gave it, before segments were formed `[m]`.
      r2: of these fits `[m]`.
      segments: in the order of the code; they cover [0, 1].
    """

    code: Float[np.ndarray, "m"]
    kernels: Float[np.ndarray, "m k k"]
    label: Shaped[np.ndarray, "m"]
    r2: Float[np.ndarray, "m"]
    segments: tuple[Segment, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the clusters, in order of first appearance along the code."""
        return tuple(dict.fromkeys(segment.name for segment in self.segments))

    def assign(self, code: ArrayLike) -> Int[np.ndarray, "n"]:
        """Find the cluster of each code.

        Args:
          code: codes in [0, 1] `[n]`.

        Returns:
          Indices into `names` `[n]`; -1 where the code is NaN.
        """
        codes = np.asarray(code, float)
        starts = np.array([segment.start for segment in self.segments])
        cluster = np.array([self.names.index(segment.name) for segment in self.segments])
        place = np.clip(np.searchsorted(starts, codes, side="right") - 1, 0, None)
        return np.where(np.isnan(codes), -1, cluster[place]).astype(np.int32)


def segment_code(
    autoencoder: Autoencoder,
    fit: Callable[[np.ndarray], Any],
    label: Callable[[Any], np.ndarray],
    *,
    samples: int = 256,
    min_r2: float = 0.7,
    min_samples: int = 4,
) -> LatentSegments:
    """Decode evenly spaced codes, fit each decoded kernel, and join equal names into segments.

    Args:
      autoencoder: one with a single-number code.
      fit: kernels `[m, k, k]` to a result with `r2` `[m]`, as `dogfit.fit_kernels` does.
      label: that result to names `[m]`, as `dogfit.labels.label_fits` does.
      samples: number of codes.
      min_r2: a sample whose fit explains less is called "unnamed".
      min_samples: a segment of fewer samples joins its longer neighbor.

    Returns:
      The segments and the decoded kernels.

    Raises:
      ValueError: the code has several numbers, so that there is no order to cut.
    """
    if autoencoder.config.code_dim != 1:
        raise ValueError(
            f"only a code of one number can be cut into segments, this one has {autoencoder.config.code_dim}"
        )
    code = evenly_spaced_codes(samples)
    kernels = autoencoder.decode(code)
    result = fit(kernels)
    r2 = np.asarray(result.r2)
    names = np.asarray(label(result)).astype(str)
    good = np.nan_to_num(r2, nan=-np.inf) >= min_r2
    runs = merge_short_runs(np.where(good, names, UNNAMED).tolist(), min_samples)
    edges = np.cumsum([0, *(length for _, length in runs)]) / samples
    segments = tuple(
        Segment(float(a), float(b), name) for (name, _), a, b in zip(runs, edges[:-1], edges[1:], strict=True)
    )
    return LatentSegments(code, kernels, names, r2, segments)


def merge_short_runs(names: Sequence[str], shortest: int) -> list[tuple[str, int]]:
    """Run-length encode names, and let short runs join their longer neighbor, the shortest first.

    Args:
      names: in order.
      shortest: length of a run below which it joins a neighbor.

    Returns:
      Names and lengths of the runs.
    """
    runs: list[tuple[str, int]] = []
    for name in names:
        _append(runs, name, 1)
    while len(runs) > 1:
        at = min(range(len(runs)), key=lambda i: runs[i][1])
        if runs[at][1] >= shortest:
            break
        neighbors = [i for i in (at - 1, at + 1) if 0 <= i < len(runs)]
        runs[at] = (runs[max(neighbors, key=lambda i: runs[i][1])][0], runs[at][1])
        joined: list[tuple[str, int]] = []
        for name, length in runs:
            _append(joined, name, length)
        runs = joined
    return runs


def _append(runs: list[tuple[str, int]], name: str, length: int) -> None:
    if runs and runs[-1][0] == name:
        length += runs.pop()[1]
    runs.append((name, length))
