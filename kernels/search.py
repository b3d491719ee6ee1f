"""From kernels to the global optimum of one family: seeds, rounds of refinement, and a tail re-packed.

Every seed gets a few steps, the more promising ones a few more, the best one is polished. Steps are
taken by a block of kernels together, so a few slow rows would hold up all others: rows that are not
done after polishing are gathered into blocks of their own and finished there.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dogfit.kernels.derivatives import Model
from dogfit.kernels.newton import Box, maximise_energy
from dogfit.kernels.products import Image
from dogfit.kernels.seeds import find_seeds


class Effort(NamedTuple):
    """How hard to search; static.

    Attributes:
      starts: seeds that are refined.
      first_steps: evaluations for each start.
      finalists: starts that get `second_steps` more.
      second_steps: evaluations for each finalist.
      polish_steps: evaluations for the best, together with its block.
      last_steps: evaluations for rows that have not converged then.
      tolerance: energy (of 1) promised by a further step below which a row has converged.
    """

    starts: int
    first_steps: int
    finalists: int
    second_steps: int
    polish_steps: int
    last_steps: int
    tolerance: float


class Found(NamedTuple):
    """Best search point of each kernel.

    Attributes:
      point: search parameters of the model.
      promise: energy (of 1) that a further step promised: the distance from convergence.
      steps: evaluations spent, over all starts.
      agreeing: starts that ended within 1e-3 of the best energy.
    """

    point: Float[Array, "p n"]
    promise: Float[Array, " n"]
    steps: Int[Array, " n"]
    agreeing: Int[Array, " n"]


class _Starts(NamedTuple):
    """State of every start of every kernel."""

    point: Float[Array, "s p n"]
    energy: Float[Array, "s n"]
    promise: Float[Array, "s n"]
    steps: Int[Array, " n"]


class _Search(NamedTuple):
    starts: _Starts
    pending: Bool[Array, " n"]
    job: Int[Array, ""]


def search_optimum(
    kernels: Image,
    box: Box,
    model: Model,
    effort: Effort,
    block: int,
    weights: Image | None = None,
    narrowed: bool = False,
) -> Found:
    """Largest explained energy of centred kernels of unit energy inside a box.

    Args:
      kernels: x on the first axis, batch last; with weights, whitened (`products.whiten`).
      box: bounds, shared or of each kernel.
      model: static.
      effort: numbers of starts and steps; static.
      block: kernels that step together.
      weights: of each tap; all alike if None.
      narrowed: whether the box is narrower than the dictionary of starts.
    """
    given = kernels.shape[-1]

    def pad(array: Any, value: float) -> Any:
        widths = [(0, 0)] * (array.ndim - 1) + [(0, -given % block)]
        return array if array.shape[-1] == 1 != given else jnp.pad(array, widths, constant_values=value)

    # Zero kernels explain nothing and end at once.
    kernels = pad(kernels, 0.0)
    weights = None if weights is None else pad(weights, 1.0)
    box = Box(pad(box.lower, 0.0), pad(box.upper, 0.0))
    count = kernels.shape[-1]
    blocks = count // block
    slot = jnp.arange(effort.starts, dtype=jnp.int32)[:, None]
    # Per round: the start it takes up (by number, or by rank once all have energies), and its budget.
    rounds = [(i, effort.first_steps) for i in range(effort.starts)]
    rounds += [(rank, effort.second_steps) for rank in range(effort.finalists)]
    rounds += [(0, effort.polish_steps), (0, effort.last_steps)]
    which, budgets = (jnp.asarray(column, jnp.int32) for column in zip(*rounds, strict=True))
    last = len(rounds) - 1

    def of_rows(rows: Int[Array, " b"]) -> tuple[Image, Image | None, Box]:
        def take(array: Any) -> Any:
            shared = array.shape[-1] == 1 != count
            return array if shared else jnp.take(array, rows, axis=-1, mode="fill", fill_value=0)

        return (
            take(kernels),
            None if weights is None else take(weights),
            Box(take(box.lower), take(box.upper)),
        )

    def seed(index: Int[Array, ""]) -> _Starts:
        image, weight, bounds = of_rows(index * block + jnp.arange(block, dtype=jnp.int32))
        seeds = find_seeds(image, model, effort.starts, weight, bounds if narrowed else None)
        zero = 0.0 * image[0, 0]
        infinite = jnp.broadcast_to(zero + jnp.inf, seeds.energies.shape)
        return _Starts(seeds.points + zero[None, None, :], -infinite, infinite, zero.astype(jnp.int32))

    def unfinished(search: _Search) -> Bool[Array, ""]:
        return (search.job < blocks) | jnp.any(search.pending)

    def refine_round(
        turn: Int[Array, ""], image: Image, weight: Image | None, bounds: Box, mine: _Starts
    ) -> _Starts:
        rank = jnp.sum(mine.energy[:, None, :] < mine.energy[None, :, :], axis=1)
        earlier = slot[:, None, :] > slot[None, :, :]
        rank += jnp.sum((mine.energy[:, None, :] == mine.energy[None, :, :]) & earlier, axis=1)
        taken = jnp.where(turn < effort.starts, slot, rank) == which[turn]
        start = jnp.sum(jnp.where(taken[:, None, :], mine.point, 0.0), axis=0)
        found = maximise_energy(image, start, bounds, model, budgets[turn], effort.tolerance, weight)
        return _Starts(
            jnp.where(taken[:, None, :], found.point[None], mine.point),
            jnp.where(taken, found.energy[None], mine.energy),
            jnp.where(taken, found.promise[None], mine.promise),
            mine.steps + found.steps,
        )

    def work(search: _Search) -> _Search:
        # A job is a block and all rounds but the last, or, when the blocks are done, the last round for
        # whichever rows still need it.
        regular = search.job < blocks
        in_order = search.job * block + jnp.arange(block, dtype=jnp.int32)
        left_over = jnp.nonzero(search.pending, size=block, fill_value=count)[0].astype(jnp.int32)
        rows = jnp.where(regular, in_order, left_over)
        mine = _Starts(*(jnp.take(leaf, rows, axis=-1, mode="fill", fill_value=0) for leaf in search.starts))
        given_rows = of_rows(rows)

        first, stop = jnp.where(regular, 0, last), jnp.where(regular, last, last + 1)
        mine = lax.fori_loop(first, stop, lambda turn, state: refine_round(turn, *given_rows, state), mine)

        starts = _Starts(
            *(old.at[..., rows].set(new, mode="drop") for old, new in zip(search.starts, mine, strict=True))
        )
        unsettled = regular & (_of_best(mine, mine.promise) > effort.tolerance)
        pending = search.pending.at[rows].set(unsettled, mode="drop")
        return _Search(starts, pending, search.job + 1)

    seeds = lax.map(seed, jnp.arange(blocks, dtype=jnp.int32))
    starts = _Starts(*(jnp.moveaxis(leaf, 0, -2).reshape(*leaf.shape[1:-1], count) for leaf in seeds))
    nobody = jnp.isnan(kernels[0, 0])
    search = lax.while_loop(unfinished, work, _Search(starts, nobody, jnp.zeros((), jnp.int32)))

    starts = _Starts(*(leaf[..., :given] for leaf in search.starts))
    best = jnp.max(starts.energy, axis=0)
    return Found(
        _of_best(starts, starts.point),
        _of_best(starts, starts.promise),
        starts.steps,
        jnp.sum(starts.energy >= best[None, :] - 1e-3, axis=0).astype(jnp.int32),
    )


def _of_best(starts: _Starts, values: Float[Array, "s *p n"]) -> Float[Array, "*p n"]:
    """What belongs to the start of most energy."""
    best = jnp.argmax(starts.energy, axis=0).astype(jnp.int32)
    winner = jnp.arange(len(starts.energy), dtype=jnp.int32)[:, None] == best[None, :]
    if values.ndim == 3:
        winner = winner[:, None, :]
    return jnp.sum(jnp.where(winner, values, 0.0), axis=0)
