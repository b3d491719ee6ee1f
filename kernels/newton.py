"""Box-constrained damped Newton ascent on the explained energy, many kernels at once."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dogfit.kernels.derivatives import Model, projected_derivatives
from dogfit.kernels.linalg import Batch, Symmetric, descent_solve, total
from dogfit.kernels.products import Image

# Smallest curvature trusted, for kernels of unit energy.
_LEAST_PIVOT = 1e-5


class Optimum(NamedTuple):
    """State of the ascent.

    Attributes:
      point: search parameters of the model.
      energy: explained energy there.
      promise: energy that a further Newton step promises: zero at an optimum.
      steps: evaluations made while the row had not converged.
    """

    point: Float[Array, "p b"]
    energy: Float[Array, " b"]
    promise: Float[Array, " b"]
    steps: Int[Array, " b"]


class Box(NamedTuple):
    """Bounds of the search, `[p, b]`, or `[p, 1]` where all kernels share them."""

    lower: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]
    upper: Float[Array, "p #b"] | Float[np.ndarray, "p #b"]


class _State(NamedTuple):
    optimum: Optimum
    trial: Float[Array, "p b"]
    predicted: Batch
    damping: Batch
    iteration: Int[Array, ""]


def _ascent_step(
    point: list[Batch],
    gradient: list[Batch],
    hessian: Symmetric,
    damping: Batch,
    box: Box,
    model: Model,
) -> tuple[list[Batch], Batch, Batch]:
    """Next point inside the box, the gain the quadratic model predicts there, and the gain it promises.

    The promise is that of the undamped step: a row is not at an optimum because it is held back.
    """
    n = len(point)
    scale = model.scale(point)
    lower, upper = box

    # Active set: what sits on a bound and pushes outwards is held, the rest moves freely.
    held = [
        ((point[a] <= lower[a]) & (gradient[a] < 0))
        | ((point[a] >= upper[a]) & (gradient[a] > 0))
        | (not model.movable[a])
        for a in range(n)
    ]
    slope = [jnp.where(h, 0.0, g) for h, g in zip(held, gradient, strict=True)]
    matrix = {
        (a, b): jnp.where(held[a] | held[b], float(a == b), -value) for (a, b), value in hessian.items()
    }
    step = descent_solve(matrix, slope, damping, _LEAST_PIVOT)
    excess = jnp.ones_like(damping)
    for a in range(n):
        excess = jnp.maximum(excess, jnp.abs(step[a]) / model.longest[a])
    steps = [x / excess * unit for x, unit in zip(step, scale, strict=True)]
    trial = [jnp.clip(point[a] + steps[a], lower[a], upper[a]) for a in range(n)]
    moved = [(trial[a] - point[a]) / scale[a] for a in range(n)]
    predicted = jnp.zeros_like(damping)
    for a in range(n):
        predicted = predicted + 2 * slope[a] * moved[a]
        for b in range(a + 1):
            predicted = predicted + (2.0 - (a == b)) * hessian[a, b] * moved[a] * moved[b]
    undamped = descent_solve(matrix, slope, jnp.zeros_like(damping), _LEAST_PIVOT)
    return trial, predicted, total(s * x for s, x in zip(slope, undamped, strict=True))


def maximise_energy(
    kernels: Image,
    start: Float[Array, "p b"],
    box: Box,
    model: Model,
    max_steps: Int[Array, ""] | int,
    tolerance: float,
    weights: Image | None = None,
) -> Optimum:
    """Climb from `start` to a local maximum of the explained energy inside a box.

    Exact Newton steps where the curvature allows, damped by a multiple of the identity that follows
    the ratio of gained to promised energy. Parameters on a bound are held while the gradient pushes
    outwards. A non-finite trial is refused, so that a row never gets worse than its start.

    Args:
      kernels: centred kernels of unit energy, x on the first axis, batch last; with weights, whitened.
      start: search point per kernel; clipped to the box.
      box: bounds.
      model: static.
      max_steps: most evaluations; may be traced.
      tolerance: promised energy below which a row has converged; the loop ends early when all have.
      weights: of each tap; all alike if None.

    Returns:
      The best point met per kernel, its energy and how it was reached.
    """
    # Made from the data, so that under shard_map it varies over the mesh as the results do.
    zero = 0.0 * kernels[0, 0]
    start = jnp.clip(start, box.lower, box.upper) + zero[None, :]
    n = start.shape[0]
    pairs = [(a, b) for a in range(n) for b in range(a + 1)]

    def unfinished(carry: tuple[_State, tuple[Batch, ...]]) -> Bool[Array, ""]:
        state, _ = carry
        return (state.iteration < max_steps) & jnp.any(state.optimum.promise > tolerance)

    def advance(carry: tuple[_State, tuple[Batch, ...]]) -> tuple[_State, tuple[Batch, ...]]:
        state, slopes = carry
        best = state.optimum
        at_trial = projected_derivatives(kernels, list(state.trial), model, weights)
        gain = at_trial.energy - best.energy
        # A row that has converged stays put, so that it does not depend on its neighbours in the batch.
        active = best.promise > tolerance
        accepted = active & (gain >= 0)  # False for a non-finite trial
        agreement = gain / jnp.maximum(state.predicted, jnp.finfo(gain.dtype).tiny)
        damping = jnp.where(
            accepted,
            state.damping * jnp.where(agreement > 0.75, 0.2, jnp.where(agreement > 0.25, 1.0, 2.0)),
            jnp.where(active, 4.0 * jnp.maximum(state.damping, 1e-2), state.damping),
        )
        point = jnp.where(accepted[None, :], state.trial, best.point)
        energy = jnp.where(accepted, at_trial.energy, best.energy)
        fresh = [*at_trial.gradient, *(at_trial.hessian[p] for p in pairs)]
        slopes = tuple(jnp.where(accepted, new, old) for new, old in zip(fresh, slopes, strict=True))
        hessian = dict(zip(pairs, slopes[n:], strict=True))
        trial, predicted, promise = _ascent_step(list(point), list(slopes[:n]), hessian, damping, box, model)
        steps = best.steps + active
        optimum = Optimum(point, energy, promise, steps)
        return _State(optimum, jnp.stack(trial), predicted, damping, state.iteration + 1), slopes

    # The first evaluation is the first turn of the loop, so that the model is compiled only once.
    optimum = Optimum(start, zero - jnp.inf, zero + jnp.inf, zero.astype(jnp.int32))
    slopes = (zero,) * (n + len(pairs))
    first = _State(optimum, start, zero + jnp.inf, zero + 1e-3, jnp.zeros((), jnp.int32))
    state, _ = lax.while_loop(unfinished, advance, (first, slopes))
    return state.optimum
