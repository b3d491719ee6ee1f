"""Box-constrained damped Newton ascent on the explained energy, many kernels at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dogfit.kernels.linalg import Symmetric, descent_solve, materialize
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.objective.derivatives import projected_derivatives
from dogfit.kernels.objective.newton import FIRST_DAMPING, LEAST_PIVOT, newton_step, next_damping
from dogfit.kernels.types import Batch, Box, Image


class Ascent(NamedTuple):
    """State of an ascent.

    Attributes:
      point: best search point met.
      energy: explained energy there.
      predicted_gain: energy that a further Newton step is predicted to gain: zero at an optimum.
      steps: evaluations made while the row had not converged.
      gradient: half the derivatives of the energy at the point.
      hessian: half the second derivatives, lower triangle by rows.
      trial: point to be evaluated next.
      predicted: energy that the quadratic model gains there.
      damping: multiple of the identity added to the curvature.
    """

    point: Float[Array, "p b"]
    energy: Float[Array, " b"]
    predicted_gain: Float[Array, " b"]
    steps: Int[Array, " b"]
    gradient: tuple[Batch, ...]
    hessian: tuple[Batch, ...]
    trial: Float[Array, "p b"]
    predicted: Float[Array, " b"]
    damping: Float[Array, " b"]


def begin_ascent(start: Float[Array, "p b"]) -> Ascent:
    """An ascent of which nothing is known but where to begin."""
    zero = 0.0 * start[0]
    n = len(start)
    return Ascent(
        point=start,
        energy=zero - jnp.inf,
        predicted_gain=zero + jnp.inf,
        steps=zero.astype(jnp.int32),
        gradient=(zero,) * n,
        hessian=(zero,) * (n * (n + 1) // 2),
        trial=start,
        predicted=zero + jnp.inf,
        damping=zero + FIRST_DAMPING,
    )


def advance(
    ascent: Ascent, kernels: Image, box: Box, model: Model, tolerance: float, weights: Image | None = None
) -> Ascent:
    """Evaluate the trial, take it where the energy does not fall, and propose the next inside the box.

    A non-finite trial is refused, so that a row never gets worse than its start. A row that has
    converged stays put, so that it does not depend on its neighbours in the batch.

    Args:
      ascent: after `begin_ascent`, at a point inside the box.
      kernels: centred kernels of unit energy; with weights, whitened.
      box: bounds.
      model: static.
      tolerance: predicted gain below which a row has converged.
      weights: of each tap; all alike if None.
    """
    at_trial = materialize(projected_derivatives(kernels, list(ascent.trial), model, weights))
    gain = at_trial.energy - ascent.energy
    active = ascent.predicted_gain > tolerance
    accepted = active & (gain >= 0)  # False for a non-finite trial
    damping = next_damping(ascent.damping, gain, ascent.predicted, accepted)
    damping = jnp.where(active, damping, ascent.damping)
    n = len(ascent.point)
    pairs = [(a, b) for a in range(n) for b in range(a + 1)]

    def update(new: Batch, old: Batch) -> Batch:
        return jnp.where(accepted, new, old)

    point = jnp.where(accepted[None, :], ascent.trial, ascent.point)
    gradient = tuple(map(update, at_trial.gradient, ascent.gradient))
    hessian = tuple(map(update, [at_trial.hessian[pair] for pair in pairs], ascent.hessian))
    trial, predicted, predicted_gain = newton_step(
        list(point),
        gradient,
        dict(zip(pairs, hessian, strict=True)),
        damping,
        list(zip(*box, strict=True)),
        model,
        _solve_both,
        materialize,
    )
    return Ascent(
        point=point,
        energy=update(at_trial.energy, ascent.energy),
        predicted_gain=predicted_gain,
        steps=ascent.steps + active,
        gradient=gradient,
        hessian=hessian,
        trial=jnp.stack(trial),
        predicted=predicted,
        damping=damping,
    )


def _solve_both(matrix: Symmetric, right: list[Batch], shift: Batch) -> tuple[list[Batch], list[Batch]]:
    """Solve with the shift and without side by side: one set of operations for the compiler."""
    both = jnp.stack([shift, jnp.zeros_like(shift)])
    left, right = jax.tree.map(lambda value: value[None], (matrix, right))
    solved = materialize(descent_solve(left, right, both, LEAST_PIVOT))
    return [x[0] for x in solved], [x[1] for x in solved]
