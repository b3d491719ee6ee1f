"""Search for the global optimum of one family: seeds, then ascents in lanes that are refilled.

A lane takes up the starts of one kernel one after the other, best seed first, and then the next kernel of
the queue. All lanes step together, so a straggler holds up nobody but its lane, and what a lane computes
depends on its kernel alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dogfit.kernels import tuning
from dogfit.kernels.linalg import map_chunks, materialize
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.starts.edge_restarts import move_across_edges
from dogfit.kernels.types import Box, Effort, Found, Image
from dogfit.kernels.xla.newton import Ascent, advance, begin_ascent
from dogfit.kernels.xla.seeds import Seeds, find_seeds, uses_images


class _Given(NamedTuple):
    """Data of each kernel; batch last."""

    kernels: Image
    weights: Image | None
    box: Box
    points: Float[Array, "s p b"]
    energies: Float[Array, "s b"]


class _Lanes(NamedTuple):
    """State of each lane."""

    row: Int[Array, " b"]
    start: Int[Array, " b"]
    edge_restarts: Int[Array, " b"]
    """Starts across edges so far; they come last."""
    finishing: Bool[Array, " b"]
    """The best start once more, with more steps."""
    point: Float[Array, "p b"]
    energy: Float[Array, " b"]
    predicted_gain: Float[Array, " b"]
    """Of the best start so far."""
    steps: Int[Array, " b"]
    n_agreeing: Int[Array, " b"]


class _Search(NamedTuple):
    fetched: Float[Array, "r b"]
    """Of the table, what belongs to the kernel of each lane."""
    lanes: _Lanes
    ascent: Ascent
    queue: Int[Array, ""]
    """Rows taken so far."""
    found: Float[Array, "n q"]
    """Point, predicted gain, steps and number of agreeing starts of the rows that are done."""


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
      kernels: centred, of unit energy; with weights, whitened (`products.whiten`).
      box: bounds, shared or of each kernel.
      model: static.
      effort: numbers of starts and steps; static.
      block: kernels that step together.
      weights: of each tap; all alike if None.
      narrowed: whether the box is narrower than the dictionary of starts.
    """
    rows = kernels.shape[-1]
    # Made from the data, so that under shard_map the state varies over the mesh as the results do.
    zero = 0.0 * kernels[0, 0, :1]
    box = Box(*(jnp.asarray(side, kernels.dtype) + zero[None] for side in box))
    points, energies = seed_all(kernels, weights, box if narrowed else None, model, effort)
    table = _Table(_Given(kernels, weights, box, points, energies))
    idle = jnp.full(block, rows, jnp.int32) + zero.astype(jnp.int32)
    nothing = jnp.broadcast_to(zero, block)
    start = jnp.broadcast_to(zero[None], (len(points[0]), block))
    search = _Search(
        fetched=jnp.broadcast_to(zero[None], (table.width, block)),
        lanes=_Lanes(
            row=idle,
            start=jnp.full_like(idle, effort.starts),
            edge_restarts=0 * idle,
            finishing=nothing > 0,
            point=start,
            energy=nothing,
            predicted_gain=nothing,
            steps=0 * idle,
            n_agreeing=0 * idle,
        ),
        ascent=begin_ascent(start)._replace(predicted_gain=nothing),
        queue=0 * idle[0],
        found=jnp.broadcast_to(zero[None], (rows, len(start) + 3)),
    )

    def unfinished(search: _Search) -> Bool[Array, ""]:
        return (search.queue < rows) | jnp.any(search.lanes.row < rows)

    def work(search: _Search) -> _Search:
        search = _refill_lanes(search, table, model, effort)
        given = table.split(search.fetched)

        def step(_: Any, ascent: Ascent) -> Ascent:
            return advance(ascent, given.kernels, given.box, model, effort.tolerance, given.weights)

        return search._replace(ascent=lax.fori_loop(0, tuning.device().steps_per_refill, step, search.ascent))

    found = lax.while_loop(unfinished, work, search).found.T
    predicted_gain, steps, n_agreeing = found[len(start) :]
    return Found(found[: len(start)], predicted_gain, steps.astype(jnp.int32), n_agreeing.astype(jnp.int32))


def _refill_lanes(search: _Search, table: "_Table", model: Model, effort: Effort) -> _Search:
    """Give lanes whose ascent has ended the next start of their kernel, or the next kernel.

    A kernel's starts are its seeds, best first; then its best point moved across edges of taps; and last, if
    the best has not converged, that point once more with more steps.
    """
    given, lanes, ascent = table.split(search.fetched), search.lanes, search.ascent
    rows = search.found.shape[0]
    limit = jnp.where(lanes.finishing, tuning.FINISHING_FACTOR * effort.steps, effort.steps)
    # An ascent ends where it has converged or is out of steps, where it cannot reach the best one any more,
    # or where it is about to arrive at the same optimum.
    settled = (ascent.predicted_gain <= effort.tolerance) | (ascent.steps >= limit)
    abandoned = ascent.energy + effort.abandon_factor * ascent.predicted_gain < lanes.energy
    arrives = _near(model, ascent.point, lanes.point) & (ascent.energy <= lanes.energy)
    arrives = arrives & (ascent.energy > lanes.energy - tuning.SAME_OPTIMUM_ENERGY)
    ended = settled | ((abandoned | arrives) & ~lanes.finishing)

    # Keep the best end of each kernel, and count the seeds that ended as high.
    seeded = ended & ~lanes.finishing & (lanes.edge_restarts == 0)
    better = ended & ((ascent.energy > lanes.energy) | lanes.finishing)
    agrees = seeded & ((ascent.energy >= lanes.energy - tuning.AGREEMENT) | arrives)
    ahead = better & ~lanes.finishing & (ascent.energy > lanes.energy + tuning.AGREEMENT)
    lanes = materialize(
        lanes._replace(
            point=_where(better, ascent.point, lanes.point),
            energy=jnp.where(better, ascent.energy, lanes.energy),
            predicted_gain=jnp.where(better, ascent.predicted_gain, lanes.predicted_gain),
            steps=lanes.steps + jnp.where(ended, ascent.steps, 0),
            n_agreeing=jnp.where(ahead, 1, lanes.n_agreeing + agrees),
            start=lanes.start + seeded,
        )
    )

    # Seeds come best first, and what an ascent can add has its limits.
    seed_energy = _pick(given.energies, lanes.start)
    least = effort.min_relative_energy * jnp.maximum(lanes.energy, given.energies[0])
    onwards = seeded & (seed_energy > least)
    exhausted = ended & ~lanes.finishing & ~onwards
    across = jnp.zeros_like(ended)
    if effort.edge_restarts:
        across = exhausted & (lanes.edge_restarts < effort.edge_restarts)
        across &= lanes.point[2] < effort.edge_restart_log_sigma
    unsettled = exhausted & ~across & (lanes.predicted_gain > effort.tolerance)
    leaving = ended & ~onwards & ~across & ~unsettled
    done = jnp.stack([*lanes.point, lanes.predicted_gain, lanes.steps, lanes.n_agreeing], axis=1)
    found = search.found.at[jnp.where(leaving, lanes.row, rows)].set(done, mode="drop")

    # Lanes that leave their kernel take the next ones of the queue, in the order of the lanes.
    place = search.queue + jnp.cumsum(leaving, dtype=jnp.int32) - 1
    row = jnp.where(leaving, jnp.minimum(place, rows), lanes.row)
    fetched = _where(leaving, table.fetch(row), search.fetched)
    given = table.split(fetched)
    zero = jnp.zeros_like(row)
    lanes = _Lanes(
        row=row,
        start=jnp.where(leaving, zero, lanes.start),
        edge_restarts=jnp.where(leaving, zero, lanes.edge_restarts + across),
        finishing=jnp.where(leaving, False, lanes.finishing | unsettled),
        point=_where(leaving, given.points[0], lanes.point),
        energy=jnp.where(leaving, -jnp.inf, lanes.energy),
        predicted_gain=jnp.where(leaving, jnp.inf, lanes.predicted_gain),
        steps=jnp.where(leaving, zero, lanes.steps),
        n_agreeing=jnp.where(leaving, zero, lanes.n_agreeing),
    )
    begin = _where(unsettled, lanes.point, _pick(given.points, lanes.start))
    if effort.edge_restarts:
        shape = (given.kernels.shape[0], given.kernels.shape[1])
        crossed = move_across_edges(lanes.point, lanes.edge_restarts - 1, shape, given.box.lower[2])
        begin = _where(across, crossed, begin)
    begun = begin_ascent(materialize(jnp.clip(begin, given.box.lower, given.box.upper)))
    # Lanes that the queue has nothing left for are at rest.
    begun = begun._replace(predicted_gain=jnp.where(row < rows, begun.predicted_gain, 0.0))
    ascent = jax.tree.map(lambda new, old: _where(ended, new, old), begun, ascent)
    queue = search.queue + jnp.sum(leaving, dtype=jnp.int32)
    return _Search(fetched, lanes, ascent, queue, found)


def _near(model: Model, one: Float[Array, "p b"], other: Float[Array, "p b"]) -> Bool[Array, " b"]:
    reach = tuning.SAME_OPTIMUM_DISTANCE * jnp.stack(model.scale(list(one)))
    return jnp.all(jnp.abs(one - other) < reach, axis=0)


def _where(lanes: Bool[Array, " b"], new: Array, old: Array | float) -> Array:
    """`jnp.where` along the last axis."""
    return jnp.where(lanes.reshape(*[1] * (new.ndim - 1), -1), new, old)


def _pick(values: Float[Array, "s *p b"], which: Int[Array, " b"]) -> Float[Array, "*p b"]:
    """Entry at a place of the first axis, 0 beyond its end."""
    last = len(values) - 1
    place = jnp.minimum(which, last).reshape(*[1] * (values.ndim - 1), -1)
    return _where(which <= last, jnp.take_along_axis(values, place, axis=0, mode="clip")[0], 0.0)


def seed_all(
    kernels: Image, weights: Image | None, box: Box | None, model: Model, effort: Effort
) -> tuple[Float[Array, "s p n"], Float[Array, "s n"]]:
    """Find the starts of all kernels, block by block.

    Args:
      kernels: as of `search_optimum`, and so are the others.
      weights: of each tap; all alike if None.
      box: bounds narrower than the dictionary's, if any.
      model: static.
      effort: static.

    Returns:
      Search points, best first, and the explained energy at each, 0 where there are no more.
    """
    rows = kernels.shape[-1]
    from_images = uses_images(model, kernels.shape[:2])
    block = min(rows, tuning.device().image_seed_rows if from_images else tuning.device().seed_rows)

    def pad(array: Any) -> Any:
        wide = jnp.broadcast_to(array, (*array.shape[:-1], rows))
        return jnp.pad(wide, [(0, 0)] * (wide.ndim - 1) + [(0, -rows % block)], mode="edge")

    def seed(given: tuple[Image, Image | None, Box | None]) -> Seeds:
        return find_seeds(given[0], model, effort.starts, *given[1:], apart=effort.min_separation)

    # Zeros are padding.
    seeds = map_chunks(seed, jax.tree.map(pad, (kernels, weights, box)), block)
    return seeds.points[..., :rows], seeds.energies[..., :rows]


class _Table:
    """All that belongs to each kernel side by side, so that a lane fetches it at once."""

    def __init__(self, given: _Given) -> None:
        leaves, self._tree = jax.tree.flatten(given)
        rows = given.kernels.shape[-1]
        # Bounds that all kernels share need no fetching.
        self._shared = [leaf if leaf.shape[-1] == 1 != rows else None for leaf in leaves]
        self._shapes = [leaf.shape[:-1] for leaf in leaves]
        own = [
            leaf.reshape(-1, rows) for leaf, same in zip(leaves, self._shared, strict=True) if same is None
        ]
        self._columns = jnp.concatenate(own)
        self.width = len(self._columns)

    def fetch(self, rows: Int[Array, " b"]) -> Float[Array, "r b"]:
        """Data of these rows; for rows beyond the end, to the last."""
        return jnp.take(self._columns, rows, axis=1, mode="clip")

    def split(self, fetched: Float[Array, "r b"]) -> _Given:
        """Fetched data by name; what all kernels share as it is."""
        leaves, at = [], 0
        for shared, shape in zip(self._shared, self._shapes, strict=True):
            if shared is None:
                size = math.prod(shape)
                leaves.append(fetched[at : at + size].reshape(*shape, -1))
                at += size
            else:
                leaves.append(shared)
        return jax.tree.unflatten(self._tree, leaves)
