"""Box-constrained damped Newton ascent on the explained energy, many kernels at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dogfit.kernels.linalg import Batch, Symmetric, descent_solve, materialize, sum_arrays
from dogfit.kernels.objective.derivatives import Model, projected_derivatives
from dogfit.kernels.objective.products import Image
from dogfit.kernels.types import Box

# Smallest curvature trusted, for kernels of unit energy.
_LEAST_PIVOT = 1e-5


class Ascent(NamedTuple):
    """Where an ascent stands.

    Attributes:
      point: best search point met.
      energy: explained energy there.
      predicted_gain: energy that a further Newton step promises: zero at an optimum.
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


def _ascent_step(
    point: list[Batch],
    gradient: list[Batch],
    hessian: Symmetric,
    damping: Batch,
    box: Box,
    model: Model,
) -> tuple[list[Batch], Batch, Batch]:
    """Next point inside the box, the gain the quadratic model predicts there, and the gain it promises.

    The promise is that of the undamped step: a row is not at an optimum because its step is damped.
    """
    n = len(point)
    scale = model.scale(point)
    lower, upper = box

    # Active set: what sits on a bound and pushes outwards is held fixed, the rest moves freely.
    at_bound = materialize(
        [
            ((point[a] <= lower[a]) & (gradient[a] < 0))
            | ((point[a] >= upper[a]) & (gradient[a] > 0))
            | (not model.is_searched[a])
            for a in range(n)
        ]
    )
    slope = [jnp.where(h, 0.0, g) for h, g in zip(at_bound, gradient, strict=True)]
    matrix = {
        (a, b): jnp.where(at_bound[a] | at_bound[b], float(a == b), -value)
        for (a, b), value in hessian.items()
    }
    # With the damping and, for the predicted_gain, without.
    both = jnp.stack([damping, jnp.zeros_like(damping)])
    left, right = jax.tree.map(lambda value: value[None], materialize((matrix, slope)))
    solved = materialize(descent_solve(left, right, both, _LEAST_PIVOT))
    step, undamped = ([x[which] for x in solved] for which in (0, 1))
    excess = jnp.ones_like(damping)
    for a in range(n):
        excess = jnp.maximum(excess, jnp.abs(step[a]) / model.max_step[a])
    steps = [x / excess * unit for x, unit in zip(step, scale, strict=True)]
    trial = [jnp.clip(point[a] + steps[a], lower[a], upper[a]) for a in range(n)]
    moved = [(trial[a] - point[a]) / scale[a] for a in range(n)]
    predicted = jnp.zeros_like(damping)
    for a in range(n):
        predicted = predicted + 2 * slope[a] * moved[a]
        for b in range(a + 1):
            predicted = predicted + (2.0 - (a == b)) * hessian[a, b] * moved[a] * moved[b]
    return trial, predicted, sum_arrays(s * x for s, x in zip(slope, undamped, strict=True))


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
        damping=zero + 1e-3,
    )


def advance(
    ascent: Ascent, kernels: Image, box: Box, model: Model, tolerance: float, weights: Image | None = None
) -> Ascent:
    """Evaluate the trial, take it where the energy does not fall, and propose the next inside the box.

    Exact Newton steps where the curvature allows, damped by a multiple of the identity that follows
    the ratio of gained to promised energy. Parameters on a bound are held fixed while the gradient pushes
    outwards. A non-finite trial is refused, so that a row never gets worse than its start. A row that has
    converged stays put, so that it does not depend on its neighbours in the batch.

    Args:
      ascent: after `begin_ascent`, at a point inside the box.
      kernels: centred kernels of unit energy, x on the first axis, batch last; with weights, whitened.
      box: bounds.
      model: static.
      tolerance: promised energy below which a row has converged.
      weights: of each tap; all alike if None.
    """
    at_trial = materialize(projected_derivatives(kernels, list(ascent.trial), model, weights))
    gain = at_trial.energy - ascent.energy
    active = ascent.predicted_gain > tolerance
    accepted = active & (gain >= 0)  # False for a non-finite trial
    agreement = gain / jnp.maximum(ascent.predicted, jnp.finfo(gain.dtype).tiny)
    damping = jnp.where(
        accepted,
        ascent.damping * jnp.where(agreement > 0.75, 0.2, jnp.where(agreement > 0.25, 1.0, 2.0)),
        jnp.where(active, 4.0 * jnp.maximum(ascent.damping, 1e-2), ascent.damping),
    )
    n = len(ascent.point)
    pairs = [(a, b) for a in range(n) for b in range(a + 1)]

    def update(new: Batch, old: Batch) -> Batch:
        return jnp.where(accepted, new, old)

    point = jnp.where(accepted[None, :], ascent.trial, ascent.point)
    gradient = tuple(map(update, at_trial.gradient, ascent.gradient))
    hessian = tuple(map(update, [at_trial.hessian[pair] for pair in pairs], ascent.hessian))
    trial, predicted, predicted_gain = _ascent_step(
        list(point), list(gradient), dict(zip(pairs, hessian, strict=True)), damping, box, model
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
