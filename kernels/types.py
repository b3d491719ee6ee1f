"""What every engine is given and returns."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int


class Box(NamedTuple):
    """Bounds of the search, `[p, b]`, or `[p, 1]` where all kernels share them."""

    lower: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]
    upper: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]


class Effort(NamedTuple):
    """How hard to search; static.

    Attributes:
      starts: most seeds that are refined.
      steps: most evaluations for a start.
      min_relative_energy: share of the best energy known below which a seed is no start.
      abandon_factor: a start is given up where so many times the predicted gain of its next step is less
        than it lacks.
      min_separation: widths within which a seed stands for those of neighbouring widths.
      tolerance: predicted gain (energy, of 1) of a further step below which a row has converged.
      edge_restarts: whether there are starts across the edges of taps (`edge_restarts.py`).
    """

    starts: int
    steps: int
    min_relative_energy: float
    abandon_factor: float
    min_separation: float
    tolerance: float
    edge_restarts: bool = False


class Found(NamedTuple):
    """Best search point of each kernel.

    Attributes:
      point: search parameters of the model.
      predicted_gain: energy (of 1) that a further step was predicted to gain: the distance from convergence.
      steps: evaluations spent, over all starts.
      n_agreeing: starts that ended within 1e-3 of the best energy.
    """

    point: Float[Array, "p n"]
    predicted_gain: Float[Array, " n"]
    steps: Int[Array, " n"]
    n_agreeing: Int[Array, " n"]
