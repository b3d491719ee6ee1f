"""One step of damped Newton ascent inside a box, as the engines in Python take it (C++ has `newton.h`).

The energy has maxima, saddles and valleys that bend. Exact curvature makes the last steps quadratic; a
multiple of the identity added to it, which follows the ratio of gained to predicted energy, shortens the
first ones; and parameters on a bound stay there while the gradient pushes outwards.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dogfit.kernels.linalg import Symmetric, sum_arrays
from dogfit.kernels.model.kinds import Model

# Smallest curvature trusted, for kernels of unit energy.
LEAST_PIVOT = 1e-5
# Damping of a first step, and the least after one that was refused.
FIRST_DAMPING, _REFUSED_DAMPING = 1e-3, 1e-2

# A number per kernel; in a fused kernel, a block of any shape.
Lanes = Float[Array, "..."]
# From a matrix, a right-hand side and a shift of the diagonal to the solutions with the shift and without.
Solve = Callable[[Symmetric, list[Lanes], Lanes], tuple[Sequence[Lanes], Sequence[Lanes]]]


class Step(NamedTuple):
    """A step that is proposed.

    Attributes:
      trial: next point, inside the box.
      predicted: energy that the quadratic model gains there.
      predicted_gain: energy that it gains by the undamped step: a row is not at an optimum because its step
      is
        damped.
    """

    trial: list[Lanes]
    predicted: Lanes
    predicted_gain: Lanes


def newton_step(
    point: Sequence[Lanes],
    gradient: Sequence[Lanes],
    hessian: Symmetric,
    damping: Lanes,
    bounds: Sequence[tuple[Any, Any]],
    model: Model,
    solve: Solve,
    keep: Callable[[Any], Any] = lambda values: values,
) -> Step:
    """Propose the next point of an ascent.

    Args:
      point: search parameters.
      gradient: half the derivatives of the energy, in the model's units.
      hessian: half the second derivatives.
      damping: multiple of the identity added to the curvature.
      bounds: lower and upper, of each parameter.
      model: static.
      solve: solver of the damped and the undamped equations (`dogfit.kernels.linalg.descent_solve`).
      keep: applied to what is to be computed once and not repeated by fusion.
    """
    n = len(point)
    at_bound = keep(
        [_is_held(*given) for given in zip(point, gradient, bounds, model.is_searched, strict=True)]
    )
    slope = [jnp.where(h, 0.0, g) for h, g in zip(at_bound, gradient, strict=True)]
    matrix = {
        (a, b): jnp.where(at_bound[a] | at_bound[b], float(a == b), -value)
        for (a, b), value in hessian.items()
    }
    matrix, slope = keep((matrix, slope))
    damped, undamped = solve(matrix, slope, damping)
    # No parameter moves further than the quadratic model can be trusted.
    excess = jnp.full_like(damping, 1.0)
    for step, longest in zip(damped, model.max_step, strict=True):
        excess = jnp.maximum(excess, jnp.abs(step) * (1.0 / longest))
    shrink = 1.0 / excess
    scales = model.scale(list(point))
    trial = [
        jnp.clip(point[a] + damped[a] * shrink * scales[a], bounds[a][0], bounds[a][1]) for a in range(n)
    ]
    moved = [(trial[a] - point[a]) / scales[a] for a in range(n)]
    predicted = sum_arrays(2.0 * s * m for s, m in zip(slope, moved, strict=True)) + sum_arrays(
        (1.0 if a == b else 2.0) * value * moved[a] * moved[b] for (a, b), value in hessian.items()
    )
    return Step(trial, predicted, sum_arrays(s * x for s, x in zip(slope, undamped, strict=True)))


def _is_held(value: Lanes, slope: Lanes, bounds: tuple[Any, Any], is_searched: bool) -> Bool[Array, "..."]:
    """Tell whether a parameter is on a bound and pushes outwards, or is not searched at all."""
    lower, upper = bounds
    held = ((value <= lower) & (slope < 0)) | ((value >= upper) & (slope > 0))
    return held if is_searched else jnp.ones_like(held)


def next_damping(damping: Lanes, gain: Lanes, predicted: Lanes, accepted: Bool[Array, "..."]) -> Lanes:
    """Damping after a trial: less where it gained what was predicted, more where it was refused.

    Args:
      damping: of the step to the trial.
      gain: energy gained there.
      predicted: energy that was predicted to be gained.
      accepted: whether the trial was taken.
    """
    agreement = gain / jnp.maximum(predicted, jnp.finfo(gain.dtype).tiny)
    taken = damping * jnp.where(agreement > 0.75, 0.2, jnp.where(agreement > 0.25, 1.0, 2.0))
    return jnp.where(accepted, taken, 4.0 * jnp.maximum(damping, _REFUSED_DAMPING))
