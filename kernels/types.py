"""Arrays and records that all engines share.

Kernels are batched on the last axis, the layout in which small problems vectorize: an image is `[ky, kx, b]`,
rows of taps (y, down) before columns (x, to the right), as everywhere in dogfit; a search point is `[p, b]`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

# A number per kernel.
Batch = Float[Array, " b"]
# Taps per kernel.
Image = Float[Array, "ky kx b"]


class Box(NamedTuple):
    """Bounds of the search, `[p, b]`, or `[p, 1]` where all kernels share them."""

    lower: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]
    upper: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]


class Budget(NamedTuple):
    """Effort that a caller wants to spend; `tuning` makes an `Effort` of it for each engine and model.

    Attributes:
      level: multiple of the usual effort.
      steps: most evaluations of a start.
    """

    level: float = 1.0
    steps: int = 40


class Effort(NamedTuple):
    """Effort that one engine spends on one model; static. The tuned values are in `tuning`.

    Attributes:
      starts: most seeds that are refined, per kernel.
      steps: most evaluations of a start.
      min_relative_energy: share of the best energy found below which a seed is not refined.
      abandon_factor: a start is given up where so many times the predicted gain of its next step is less
        than it lacks.
      min_separation: widths within which a seed stands for those of neighboring widths.
      tolerance: predicted gain (energy, of 1) of a further step below which a start has converged.
      edge_restarts: most starts from the best point moved across edges of taps
        (`dogfit.kernels.starts.edge_restarts`).
      edge_restart_log_sigma: logarithm of the width, in taps, below which there are such starts.
      min_seed_energy: share of the best seed's energy below which a seed is no start.
    """

    starts: int
    steps: int
    min_relative_energy: float
    abandon_factor: float
    min_separation: float
    tolerance: float
    edge_restarts: int = 0
    edge_restart_log_sigma: float = 0.0
    min_seed_energy: float = 0.0


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
