"""The search for one block of kernels, from seeds to result, as the inside of a kernel.

Every lane runs its own search: it takes up starts in the order of their seeds' energy, ascends from each by
Newton steps, and moves on as soon as a start has converged or cannot win any more. There is one loop and in
it one evaluation of the model, so that no lane waits for another between starts; the block ends when its
last lane does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dogfit.kernels import tuning
from dogfit.kernels.linalg import Symmetric, descent_solve, sum_arrays
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.newton import FIRST_DAMPING, LEAST_PIVOT, newton_step, next_damping
from dogfit.kernels.pallas.lanes import Lanes, projected_derivatives

# Any object that is indexed like an array and read or written there: a Pallas reference.
Ref = Any
# A tile of nodes times the block's taps: [nodes, taps] -> [nodes, *lanes].
Project = Callable[[Float[Array, "nodes taps"]], Float[Array, "nodes ..."]]

# Search parameters that no point is near to: before the first start there is no best one.
_FAR_AWAY = 1e3


class Plan(NamedTuple):
    """Static numbers of a search.

    Attributes:
      size: taps along a side.
      slots: seeds per kernel.
      bits: bits of a packed energy that hold the node's number.
      starts: most seeds that are refined.
      steps: most evaluations from one start.
      tolerance: predicted gain (energy, of 1) of a further step below which a start has converged.
    """

    size: int
    slots: int
    bits: int
    starts: int
    steps: int
    tolerance: float

    @property
    def seeds(self) -> int:
        """Seeds that are kept, in slots and in order."""
        return self.slots + self.starts


class Tables(NamedTuple):
    """References to what all blocks share; see `dictionary.Dictionary`."""

    lower: Ref
    upper: Ref
    columns: Ref
    first: Ref
    row: Ref
    slot: Ref
    start: Ref
    length: Ref
    numbers: Ref


class SearchState(NamedTuple):
    """State of each lane: the ascent it is on, and the best one it has finished."""

    point: tuple[Lanes, ...]
    trial: tuple[Lanes, ...]
    energy: Lanes
    predicted: Lanes
    predicted_gain: Lanes
    damping: Lanes
    derivatives: tuple[Lanes, ...]
    left: Int[Array, "..."]
    seed: Lanes
    best_point: tuple[Lanes, ...]
    best_energy: Lanes
    best_predicted_gain: Lanes
    n_agreeing: Int[Array, "..."]
    starts: Int[Array, "..."]
    steps: Int[Array, "..."]


def search_block(
    taps: Ref,
    tables: Tables,
    found: Ref,
    counts: Ref,
    seeds: Ref,
    project: Project,
    model: GaussianModel,
    plan: Plan,
) -> None:
    """Search for the optimum of every kernel of a block.

    Args:
      taps: `[taps, *lanes]` centred kernels of unit energy, rows first.
      tables: dictionary and bounds.
      found: `[p + 1, *lanes]` float, written: the best point, and what a further step is predicted to gain.
      counts: `[2, *lanes]` int32, written: evaluations, and starts that agree with the best.
      seeds: `[plan.seeds * (p + 1), *lanes]`, work space: per slot the energy of its best node, and its
        point; then the starts in order.
      project: see `Project`.
      model: round, of integrated profiles.
      plan: static numbers.
    """
    n = len(model.names)
    zero = 0.0 * taps[0]
    _find_seeds(tables, seeds, project, zero, n, plan)
    _order_seeds(seeds, zero, n, plan)
    bounds = [(tables.lower[a], tables.upper[a]) for a in range(n)]

    def image(y: int, x: Any) -> Lanes:
        return taps[y * plan.size + x]

    def unfinished(carry: tuple[Bool[Array, ""], SearchState]) -> Bool[Array, ""]:
        return carry[0]

    def advance(carry: tuple[Bool[Array, ""], SearchState]) -> tuple[Bool[Array, ""], SearchState]:
        state = advance_lanes(image, seeds, carry[1], bounds, model, plan)
        return jnp.max(_searching(state, plan).astype(jnp.int32)) > 0, state

    state = initial_state(zero, n)
    _, state = lax.while_loop(unfinished, advance, (jnp.bool_(True), state))
    for a in range(n):
        found[a] = state.best_point[a]
    found[n] = state.best_predicted_gain
    counts[0] = state.steps
    counts[1] = state.n_agreeing


def _find_seeds(tables: Tables, seeds: Ref, project: Project, zero: Lanes, n: int, plan: Plan) -> None:
    """Best node of every slot. Energies order like their bits, so a node's number rides in the low ones."""
    low_bits = (1 << plan.bits) - 1
    rows = n + 1

    def clear(slot: Int[Array, ""], carry: int) -> int:
        seeds[slot * rows] = zero - 1.0
        return carry

    lax.fori_loop(0, plan.slots, clear, 0)

    def grid(g: Int[Array, ""], carry: int) -> int:
        first = tables.first[g]

        def tile(t: Int[Array, ""], best: Int[Array, "..."]) -> Int[Array, "..."]:
            energies = sum_arrays(project(tables.columns[t, q]) ** 2 for q in range(tables.columns.shape[1]))
            node = lax.broadcasted_iota(jnp.int32, energies.shape, 0) + (t - first) * energies.shape[0]
            packed = (lax.bitcast_convert_type(energies, jnp.int32) & ~low_bits) | node
            return jnp.maximum(best, jnp.max(packed, axis=0))

        best = lax.fori_loop(first, tables.first[g + 1], tile, zero.astype(jnp.int32))
        energy = lax.bitcast_convert_type(best & ~low_bits, jnp.float32)
        node = (best & low_bits).astype(jnp.float32)
        start, length = tables.start[g], tables.length[g]
        width = length.astype(jnp.float32)
        row = jnp.floor((node + 0.5) / width)
        column, row = node - row * width, row + tables.row[g].astype(jnp.float32)

        def decode(i: Int[Array, ""], centre: tuple[Lanes, Lanes]) -> tuple[Lanes, Lanes]:
            here, value = i.astype(jnp.float32), tables.numbers[start + (n - 2) + i]
            return jnp.where(row == here, value, centre[0]), jnp.where(column == here, value, centre[1])

        centre = lax.fori_loop(0, length, decode, (zero, zero))
        point = [*centre, *(zero + tables.numbers[start + a] for a in range(n - 2))]
        at = tables.slot[g] * rows
        better = energy > seeds[at]
        for a, value in enumerate([energy, *point]):
            seeds[at + a] = jnp.where(better, value, seeds[at + a])
        return carry

    lax.fori_loop(0, tables.slot.shape[0], grid, 0)


def _order_seeds(seeds: Ref, zero: Lanes, n: int, plan: Plan) -> None:
    """The best seeds in order, so that a lane looks at few of them."""
    rows = n + 1

    def rank(place: Int[Array, ""], last: Lanes) -> Lanes:
        def consider(slot: Int[Array, ""], best: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
            values = tuple(seeds[slot * rows + a] for a in range(rows))
            return _choose((values[0] < last) & (values[0] > best[0]), values, best)

        best = lax.fori_loop(0, plan.slots, consider, (zero - 1.0, *([zero] * n)))
        for a, value in enumerate(best):
            seeds[(plan.slots + place) * rows + a] = value
        return best[0]

    lax.fori_loop(0, plan.starts, rank, zero + 2.0)


def initial_state(zero: Lanes, n: int) -> SearchState:
    """Lanes that have not begun, for `n` search parameters."""
    point = tuple(zero for _ in range(n))
    none, far = zero.astype(jnp.int32), zero + 2.0
    return SearchState(
        point=point,
        trial=point,
        energy=-far,
        predicted=far,
        predicted_gain=far,
        damping=zero,
        derivatives=(zero,) * (n + n * (n + 1) // 2),
        left=none,
        seed=far,
        best_point=tuple(value + _FAR_AWAY for value in point),
        best_energy=-far,
        best_predicted_gain=far,
        n_agreeing=none,
        starts=none,
        steps=none,
    )


def _searching(state: SearchState, plan: Plan) -> Bool[Array, "..."]:
    """Lanes on an ascent, or with a seed left that may win."""
    return (state.left > 0) | (
        (state.starts < plan.starts) & (state.seed + tuning.FUSED_MAX_GAIN > state.best_energy)
    )


def advance_lanes(
    image: Callable[[int, Any], Lanes],
    seeds: Ref,
    state: SearchState,
    bounds: list[tuple[Any, Any]],
    model: GaussianModel,
    plan: Plan,
) -> SearchState:
    """Give lanes between ascents a start, and evaluate the model and step in all that ascend."""
    return _ascend(image, _next_start(seeds, state, bounds, plan), bounds, model, plan)


def _next_start(seeds: Ref, state: SearchState, bounds: list[tuple[Any, Any]], plan: Plan) -> SearchState:
    """Give lanes between ascents their next start, if it may win."""
    n = len(bounds)
    rows = n + 1

    def consider(rank: Int[Array, ""], start: tuple[Lanes, ...]) -> tuple[Lanes, ...]:
        values = tuple(seeds[(plan.slots + rank) * rows + a] for a in range(rows))
        return _choose(state.starts == rank, values, start)

    nothing = 0.0 * state.energy
    seed, *point = lax.fori_loop(0, plan.starts, consider, (nothing - 1.0, *([nothing] * n)))
    point = [jnp.clip(x, low, high) for x, (low, high) in zip(point, bounds, strict=True)]
    free = (state.left <= 0) & _searching(state, plan)
    takes = free & (seed >= 0) & (seed + tuning.FUSED_MAX_GAIN > state.best_energy)
    return state._replace(
        point=_choose(takes, point, state.point),
        trial=_choose(takes, point, state.trial),
        energy=jnp.where(takes, -2.0, state.energy),
        damping=jnp.where(takes, FIRST_DAMPING, state.damping),
        predicted_gain=jnp.where(takes, 2.0, state.predicted_gain),
        left=jnp.where(takes, plan.steps, state.left),
        seed=jnp.where(free, seed, state.seed),
        starts=state.starts + takes.astype(jnp.int32),
    )


def _ascend(
    image: Callable[[int, Any], Lanes],
    state: SearchState,
    bounds: list[tuple[Any, Any]],
    model: GaussianModel,
    plan: Plan,
) -> SearchState:
    """Evaluate the model in every lane that is on an ascent, and propose its next step."""
    here = projected_derivatives(image, list(state.trial), model, plan.size)
    active = state.left > 0
    gain = here.energy - state.energy
    accepted = active & (gain >= 0)  # False for a non-finite trial
    # Where rounding hides what is left to gain, the ascent is at its end.
    stuck = active & ~accepted & (state.predicted_gain < tuning.FUSED_ROUNDING)
    damping = next_damping(state.damping, gain, state.predicted, accepted)
    energy = jnp.where(accepted, here.energy, state.energy)
    point = _choose(accepted, state.trial, state.point)
    pairs = [(a, b) for a in range(len(bounds)) for b in range(a + 1)]
    fresh = (*here.gradient, *(here.hessian[pair] for pair in pairs))
    derivatives = _choose(accepted, fresh, state.derivatives)
    gradient, entries = derivatives[: len(bounds)], derivatives[len(bounds) :]
    hessian = dict(zip(pairs, entries, strict=True))
    step = newton_step(point, gradient, hessian, damping, bounds, model, _solve_twice)

    predicted_gain = jnp.where(stuck, jnp.minimum(step.predicted_gain, plan.tolerance), step.predicted_gain)
    hopeless = energy + tuning.FUSED_ABANDON_FACTOR * predicted_gain + tuning.AGREEMENT < state.best_energy
    joins = (_distance(point, state.best_point, model) < tuning.SAME_OPTIMUM_DISTANCE) & (
        state.best_predicted_gain < tuning.FUSED_ROUNDING
    )
    ends = active & ((predicted_gain <= plan.tolerance) | hopeless | joins | (state.left == 1))
    lead = energy - state.best_energy
    wins = ends & (lead > 0)
    agrees = ends & ((jnp.abs(lead) <= tuning.AGREEMENT) | joins)
    return state._replace(
        point=point,
        trial=tuple(step.trial),
        energy=energy,
        predicted=step.predicted,
        predicted_gain=predicted_gain,
        damping=damping,
        derivatives=derivatives,
        left=jnp.where(ends, 0, state.left - active.astype(jnp.int32)),
        best_point=_choose(wins, point, state.best_point),
        best_energy=jnp.where(wins, energy, state.best_energy),
        best_predicted_gain=jnp.where(wins, predicted_gain, state.best_predicted_gain),
        n_agreeing=jnp.where(
            ends & (lead > tuning.AGREEMENT) & ~joins, 1, state.n_agreeing + agrees.astype(jnp.int32)
        ),
        steps=state.steps + active.astype(jnp.int32),
    )


def _distance(one: Sequence[Lanes], other: Sequence[Lanes], model: GaussianModel) -> Lanes:
    """Largest difference of two search points, in units of the parameters."""
    out = jnp.zeros_like(one[0])
    for a, b, unit in zip(one, other, model.scale(list(one)), strict=True):
        out = jnp.maximum(out, jnp.abs(a - b) / unit)
    return out


def _choose(which: Bool[Array, "..."], new: Sequence[Lanes], old: Sequence[Lanes]) -> tuple[Lanes, ...]:
    return tuple(jnp.where(which, a, b) for a, b in zip(new, old, strict=True))


def _solve_twice(matrix: Symmetric, right: list[Lanes], shift: Lanes) -> tuple[list[Lanes], list[Lanes]]:
    """Solve with the shift and without; nothing is stacked inside a kernel."""
    solved = (descent_solve(matrix, right, amount, LEAST_PIVOT) for amount in (shift, 0.0 * shift))
    damped, undamped = solved
    return damped, undamped
