"""From a block of kernels to the global optimum of one family: seeds, a few steps each, then the best."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.newton import Optimum, maximise_energy
from dogfit.kernels.seeds import find_seeds
from dogfit.kernels.separable import Terms


class Found(NamedTuple):
    """Best search point of each kernel.

    Attributes:
      point: x0, y0 (taps from the middle), log sigma[, log ratio].
      promise: energy (of 1) that a further step promised: the distance from convergence.
      steps: evaluations spent, over all starts.
      agreeing: starts that ended within 1e-3 of the best energy.
    """

    point: Float[Array, "p b"]
    promise: Float[Array, " b"]
    steps: Int[Array, " b"]
    agreeing: Int[Array, " b"]


def search_optimum(
    kernels: Float[Array, "kx ky b"],
    lower: Float[Array, " p"],
    upper: Float[Array, " p"],
    terms: Terms,
    starts: int,
    start_steps: int,
    max_steps: int,
    tolerance: float,
) -> Found:
    """Largest explained energy of centred kernels of unit energy inside a box.

    Each of the `starts` best seeds gets `start_steps` evaluations; the best of them goes on until it
    has converged or has had `max_steps` more.
    """
    seeds = find_seeds(kernels, terms, starts)

    def attempt(best: Optimum, task: tuple[Int[Array, ""], Int[Array, ""], Float[Array, "p b"]]):
        index, budget, seed = task
        # The last task continues from the best; one loop for both keeps the program half the size.
        start = jnp.where(index < starts, seed, best.point)
        found = maximise_energy(kernels, start, lower, upper, terms, budget, tolerance)
        better = found.energy >= best.energy
        steps = best.steps + found.steps
        kept = Optimum(*(jnp.where(better, new, old) for new, old in zip(found, best, strict=True)))
        return kept._replace(steps=steps), found.energy

    zero = 0.0 * kernels[0, 0]
    nothing = Optimum(seeds.points[0] + zero[None, :], zero - jnp.inf, zero + jnp.inf, zero.astype(jnp.int32))
    tasks = (
        jnp.arange(starts + 1, dtype=jnp.int32),
        jnp.asarray([start_steps] * starts + [max_steps], jnp.int32),
        jnp.concatenate([seeds.points, seeds.points[:1]]),
    )
    best, energies = lax.scan(attempt, nothing, tasks)
    agreeing = jnp.sum(energies[:starts] >= best.energy[None, :] - 1e-3, axis=0)
    return Found(best.point, best.promise, best.steps, agreeing.astype(jnp.int32))
