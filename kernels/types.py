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
      margin: share of the best energy known below which a seed is no start.
      hope: a start is given up where so many times the promise of its next step is less than it lacks.
      apart: widths within which a seed stands for those of neighbouring widths.
      tolerance: energy (of 1) promised by a further step below which a row has converged.
      crossings: whether there are starts across the edges of taps (`crossings.py`).
    """

    starts: int
    steps: int
    margin: float
    hope: float
    apart: float
    tolerance: float
    crossings: bool = False


class Found(NamedTuple):
    """Best search point of each kernel.

    Attributes:
      point: search parameters of the model.
      predicted_gain: energy (of 1) that a further step promised: the distance from convergence.
      steps: evaluations spent, over all starts.
      agreeing: starts that ended within 1e-3 of the best energy.
    """

    point: Float[Array, "p n"]
    predicted_gain: Float[Array, " n"]
    steps: Int[Array, " n"]
    agreeing: Int[Array, " n"]
