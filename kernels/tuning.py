"""Tuned constants of the searches: how hard to search for each kind of model, and how to cut the work.

Two commands measure them:

    python benchmarks/accuracy.py    share of kernels at the optimum that dense multi-start SciPy finds
    python benchmarks/fit.py         kernels a second, with that share beside them

They were chosen with the real 7x7 kernels of `accuracy.py` in sight. The columns below are shares, in per
cent, on kernels they were not chosen on: 180 of 7x7 drawn from each family with noise of 0, 10 and 30 %, and
60 of 5x5 and of 9x9 each (from `benchmarks/accuracy.md`, integrated profiles; elliptic families, of which 30
of 7x7 were drawn; sampled and discrete ones, 60 of each size; the fused search, 180).

| family | native | xla | sampled | discrete | fused (pallas) |
|---|---|---|---|---|---|
| gaussian | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |
| dog | 100.0 | 100.0 | 100.0 | 100.0 | 99.4 |
| d1, d2 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |
| dog_d1, dog_d2 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 |
| elliptic ones | 100.0 | 100.0 | not measured | there are none | there are none |
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.starts.edge_restarts import N_EDGE_RESTARTS
from dogfit.kernels.types import Budget, Effort

# A start that comes so near the best one, in widths and units of the other parameters, and to within so much
# of its energy (of 1), is about to arrive there too: it ends. Nearer, and steps are spent on what is known;
# farther, and optima of their own are passed over. Measured by accuracy.py.
SAME_OPTIMUM_DISTANCE, SAME_OPTIMUM_ENERGY = 0.15, 3e-3
# Energy (of 1) within which two starts ended alike; decides what `Found.n_agreeing` counts, and nothing else.
AGREEMENT = 1e-3
# Times the steps of a start that the best one gets more of where it has not converged. Measured by fit.py:
# few kernels need them.
FINISHING_FACTOR = 4
# Most starts per kernel in C++: found there, where it doubles for models of shared amplitude, and given to
# it.
NATIVE_MAX_STARTS, NATIVE_MAX_GIVEN_STARTS = 24, 128
# Energy (of 1) that ascents in the fused search may add to a seed for it to be worth a start, how many times
# its predicted gain a start may still gain, and the gain that rounding may hide. Measured by accuracy.py
# --engines pallas.
FUSED_MAX_GAIN, FUSED_ABANDON_FACTOR, FUSED_ROUNDING = 0.15, 5.0, 1e-5


class _Row(NamedTuple):
    """Tuned effort at the usual level, without what the caller says.

    Attributes:
      starts, min_relative_energy, abandon_factor, min_separation, edge_restarts: see `Effort`.
      all_steps: whether a start gets all the steps allowed; else half of them, since what has not arrived by
        then is in a narrow valley, and the best start of a kernel gets to its end all the same.
    """

    starts: int
    min_relative_energy: float
    abandon_factor: float = 8.0
    min_separation: float = 0.3
    all_steps: bool = False
    edge_restarts: int = 0


# The plain search in XLA. The more a family's shape varies from node to node, the more an ascent adds, and
# the lower the seeds that may still win. Shared amplitudes, ellipses and values at single points make more
# optima; discrete profiles keep the centres of their seeds, so that every centre is a start, and an edge has
# many.
_XLA = {
    "integrated": {
        "gaussian": _Row(12, 0.85),
        "dog": _Row(12, 0.65),
        "d1": _Row(12, 0.75),
        "d2": _Row(12, 0.65),
        "dog_d1": _Row(24, 0.6),
        "dog_d2": _Row(30, 0.6, all_steps=True, edge_restarts=N_EDGE_RESTARTS),
        "gaussian_elliptic": _Row(24, 0.85),
        "dog_elliptic": _Row(64, 0.5525, 32.0, 0.2, all_steps=True),
        "d1_elliptic": _Row(64, 0.6375, 32.0, 0.2, all_steps=True),
        "d2_elliptic": _Row(64, 0.5525, 32.0, 0.2, all_steps=True),
        "dog_d1_elliptic": _Row(96, 0.51, 32.0, 0.3, all_steps=True, edge_restarts=N_EDGE_RESTARTS),
        "dog_d2_elliptic": _Row(96, 0.51, 32.0, 0.3, all_steps=True, edge_restarts=N_EDGE_RESTARTS),
    },
    "sampled": {
        "gaussian": _Row(12, 0.85),
        "dog": _Row(12, 0.65),
        "d1": _Row(24, 0.75),
        "d2": _Row(24, 0.65),
        "dog_d1": _Row(24, 0.6),
        "dog_d2": _Row(30, 0.6, all_steps=True),
        "gaussian_elliptic": _Row(24, 0.85),
        "dog_elliptic": _Row(64, 0.5525, 32.0, 0.2, all_steps=True),
        "d1_elliptic": _Row(96, 0.6375, 32.0, 0.2, all_steps=True),
        "d2_elliptic": _Row(96, 0.5525, 32.0, 0.2, all_steps=True),
        "dog_d1_elliptic": _Row(96, 0.51, 32.0, 0.3, all_steps=True),
        "dog_d2_elliptic": _Row(96, 0.51, 32.0, 0.3, all_steps=True),
    },
    "discrete": {
        "gaussian": _Row(24, 0.85),
        "dog": _Row(24, 0.65),
        "d1": _Row(60, 0.75),
        "d2": _Row(24, 0.65),
        "dog_d1": _Row(24, 0.6),
        "dog_d2": _Row(30, 0.6, all_steps=True),
    },
}
_CUSTOM = _Row(12, 0.5)

# Starts across edges of taps are for what is narrower than this, in logarithms of taps: 0.8 and 0.35 taps.
# The second is for pairs of nearly one width, whose Laplacian turns round at edges, in C++ alone.
_NARROW, _NARROW_PAIR = -0.22, -1.05
_PAIR_RESTARTS, _ALL_RESTARTS = 3, N_EDGE_RESTARTS

# The C++ search: ascents cost it least, so that all seeds above one share of the best energy are refined; how
# much of what is left a family's seeds may lack depends on how its shape varies from node to node.
_NATIVE_MIN_RELATIVE_ENERGY, _NATIVE_ABANDON_FACTOR, _NATIVE_MIN_SEPARATION = 0.66, 12.0, 0.3
_NATIVE_SEED_ALLOWANCE = {"gaussian": 0.3, "dog": 0.7, "d1": 0.5, "d2": 0.7, "dog_d1": 1.0, "dog_d2": 1.0}
# Of ellipses it refines the plain search's seeds, for longer, since steps are cheap.
_NATIVE_ELLIPTIC_PATIENCE = 4.0


class Device(NamedTuple):
    """Numbers by which work is cut for a kind of device.

    Attributes:
      engines: what `engine="auto"` tries, in order.
      block: kernels that step together: as a CPU's cache holds, or as an accelerator needs to be full.
      image_block: the same where the image of every function is made in full.
      blocks_per_call: blocks in a call of the compiled program, so many that few lanes idle at its end.
      seed_rows: most kernels whose seeds are found together.
      image_seed_rows: the same where images of the nodes are made while the program runs.
      steps_per_refill: steps between two looks at which lanes are done.
    """

    engines: tuple[str, ...]
    block: int
    image_block: int
    blocks_per_call: int
    seed_rows: int
    image_seed_rows: int
    steps_per_refill: int = 2


# Measured by fit.py, with --engine xla and --families dog_elliptic. The accelerator's numbers are of no
# measurement: they fill one, and no more is known.
_CPU = Device(("native", "xla"), 128, 64, 16, 64, 2048)
_ACCELERATOR = Device(("xla",), 8192, 8192, 8, 8192, 8192)


def device() -> Device:
    """Tuned numbers of JAX's default kind of device."""
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


def rows_per_call() -> int:
    """Number of kernels per call of the compiled program on one device."""
    return device().block * device().blocks_per_call


def tolerance_of(dtype: Any) -> float:
    """Energy (of 1) below which a further step is not worth taking, for a floating-point type."""
    return 1e-7 if dtype == jnp.float32 else 1e-14


def resolution_of(dtype: Any) -> float:
    """Energy (of 1) that a search for a floating-point type can tell from none.

    Ten times the tolerance: rows stop one step after that is met, or when rounding stops the ascent.
    """
    return 10 * tolerance_of(dtype)


def kind_of(model: Model) -> str:
    """Name of the kind of a model, which the tables of this module list."""
    if isinstance(model, CustomModel):
        return "custom"
    plain = "dog" if model.two_widths else ("gaussian", "d1", "d2")[model.order]
    derivative = f"_d{model.order}" if model.two_widths and model.order else ""
    return plain + derivative + "_elliptic" * model.elliptic


def xla_effort(model: Model, budget: Budget, dtype: Any) -> Effort:
    """Effort of the plain search.

    Args:
      model: static.
      budget: how hard the caller wants to search.
      dtype: of the kernels.
    """
    row = _CUSTOM if isinstance(model, CustomModel) else _XLA[model.profile][kind_of(model)]
    level = budget.level
    return Effort(
        starts=max(round(level * row.starts), 1),
        steps=budget.steps if row.all_steps else (budget.steps + 1) // 2,
        min_relative_energy=row.min_relative_energy**level,
        abandon_factor=row.abandon_factor * level,
        min_separation=row.min_separation / level**0.5,
        tolerance=tolerance_of(dtype),
        edge_restarts=row.edge_restarts,
        edge_restart_log_sigma=_NARROW,
    )


def native_effort(model: Model, budget: Budget) -> Effort:
    """Effort of the search in C++, for models that it has."""
    kind, level = kind_of(model), budget.level
    if kind.endswith("_elliptic"):
        effort = xla_effort(model, budget, jnp.float32)
        turns = kind.startswith(("d2", "dog_d"))
        return effort._replace(
            starts=min(effort.starts, NATIVE_MAX_GIVEN_STARTS),
            abandon_factor=_NATIVE_ELLIPTIC_PATIENCE * effort.abandon_factor,
            edge_restarts=_ALL_RESTARTS if turns else 0,
        )
    least = _NATIVE_MIN_RELATIVE_ENERGY**level
    starts = min(round(20 * level) + 4, NATIVE_MAX_STARTS)
    return Effort(
        starts=2 * starts if kind.startswith("dog_d") else starts,
        steps=budget.steps,
        min_relative_energy=least,
        abandon_factor=_NATIVE_ABANDON_FACTOR * level,
        min_separation=_NATIVE_MIN_SEPARATION / level**0.5,
        tolerance=tolerance_of(jnp.float32),
        edge_restarts={"dog": _PAIR_RESTARTS, "d2": _ALL_RESTARTS, "dog_d2": _ALL_RESTARTS}.get(kind, 0),
        edge_restart_log_sigma=_NARROW_PAIR if kind == "dog" else _NARROW,
        min_seed_energy=1 - _NATIVE_SEED_ALLOWANCE[kind] * (1 - least),
    )


def fused_effort(model: Model, budget: Budget) -> Effort:
    """Effort of the fused search: its starts are taken up one by one while they may win."""
    effort = xla_effort(model, budget, jnp.float32)
    if kind_of(model).startswith("dog_d"):
        return effort._replace(starts=math.floor(25 * budget.level), steps=budget.steps)
    return effort._replace(starts=math.floor(12.5 * budget.level), steps=(budget.steps + 6) // 2)
