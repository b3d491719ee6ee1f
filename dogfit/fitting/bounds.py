"""Bounds and fixed parameters of a search, as a caller gives them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dogfit.fitting.families import Family
from dogfit.host_arrays import host_array
from dogfit.kernels.model.bounds import search_bounds
from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.types import Box

Bounds = Mapping[str, Any]
"""Mapping by parameter, or by family and then by parameter: a value (fixed), or a tuple or list of the least
and the greatest; each a number or an array `[n]`, one per kernel."""

# What a caller calls the search parameters of the families built in.
_NAMES = {
    "x0": "x0_px",
    "y0": "y0_px",
    "log_sigma": "sigma_px",
    "log_ratio": "surround_ratio",
    "surround_weight": "surround_weight",
}


def resolve_bounds(
    bounds: Bounds | None, families: Sequence[Family], shape: tuple[int, int]
) -> dict[str, Box]:
    """Boxes `[p, 1]` or `[p, n]` of the families that have bounds of their own, by family name.

    Of NumPy arrays, but where the caller's values are traced.

    Raises:
      ValueError: for a parameter that no family has, or bounds that are not inside the family's own.
    """
    if bounds is not None and not isinstance(bounds, Mapping):
        raise TypeError(
            "bounds must be a dictionary of parameters, such as {'sigma_px': (0.5, 2.0)}, "
            f"got {type(bounds).__name__}"
        )
    if not bounds:
        return {}
    own = {family.name: _parameter_names(family) for family in families}
    known = {name for names in own.values() for name in names if name}
    for key, value in bounds.items():
        nested = isinstance(value, Mapping)
        if key not in (own if nested else known):
            options = ", ".join(sorted(own if nested else known))
            kind = "family" if nested else "parameter with bounds"
            raise ValueError(f"bounds: {key!r} is no {kind} of this fit; it has {options}")
        if nested and (unknown := [name for name in value if name not in own[key]]):
            options = ", ".join(name for name in own[key] if name)
            raise ValueError(f"bounds of {key}: no parameter {unknown[0]!r}; it has {options}")
    boxes = {}
    for family in families:
        shared = {k: v for k, v in bounds.items() if not isinstance(v, Mapping) and k in own[family.name]}
        wanted = {**shared, **bounds.get(family.name, {})}
        if wanted:
            boxes[family.name] = _box(family, own[family.name], wanted, shape)
    return boxes


def _parameter_names(family: Family) -> list[str]:
    if isinstance(family.model, CustomModel):
        return list(family.model.names)
    return [_NAMES.get(name, "") for name in family.model.names]


def _box(family: Family, names: list[str], wanted: Mapping[str, Any], shape: tuple[int, int]) -> Box:
    lows, highs = [], []
    defaults = zip(family.model.names, names, *search_bounds(family.model, shape), strict=True)
    for search_name, name, least, greatest in defaults:
        low, high = least, greatest
        if name in wanted:
            low, high = _sides(name, wanted[name])
            log = name != search_name and search_name.startswith("log_")
            low, high = (_finite(name, v, log) for v in (low, high))
            _check(f"{family.name}: {name}", low, high, least, greatest, log)
        lows.append(low)
        highs.append(high)
    xp = jnp if any(isinstance(value, Tracer) for value in (*lows, *highs)) else np
    lengths = {np.shape(value)[0] for value in (*lows, *highs) if np.shape(value)}
    if len(lengths - {1}) > 1:
        raise ValueError(f"bounds of {family.name} are for {' and '.join(map(str, sorted(lengths)))} kernels")
    rows = np.broadcast_shapes((1,), *(np.shape(value) for value in (*lows, *highs)))
    return Box(*(xp.stack([xp.broadcast_to(value, rows) for value in side]) for side in (lows, highs)))


def _sides(name: str, value: Any) -> tuple[Any, Any]:
    """Least and greatest: a tuple or list has two, everything else is one value."""
    if not isinstance(value, tuple | list):
        return value, value
    if len(value) != 2:
        raise ValueError(
            f"bounds: {name} is a {type(value).__name__} of {len(value)}; a tuple or list is a range (least, "
            "greatest), and values per kernel are an array"
        )
    return value[0], value[1]


def _finite(name: str, value: Any, log: bool) -> Any:
    """The value as it is searched; checked where it is known when traced."""
    if isinstance(value, Tracer):
        return jnp.log(value) if log else value
    try:
        array = np.asarray(host_array(value, f"bounds of {name}"), np.float64)
    except TypeError as error:
        raise ValueError(f"bounds: {name} must be finite numbers: {error}") from error
    if array.ndim > 1 or not np.isfinite(array).all() or (log and (array <= 0).any()):
        raise ValueError(f"bounds: {name} must be finite numbers{' above 0' * log}, one or one per kernel")
    return np.log(array) if log else array


def _check(what: str, low: Any, high: Any, least: float, greatest: float, log: bool) -> None:
    if isinstance(low, Tracer) or isinstance(high, Tracer):
        return
    slack = 1e-6 * (1 + abs(least) + abs(greatest))
    if np.any(low > high):
        raise ValueError(f"bounds of {what}: the least is above the greatest")
    if np.any(low < least - slack) or np.any(high > greatest + slack):
        shown = [math.exp(v) if log else v for v in (least, greatest)]
        raise ValueError(f"bounds of {what} must lie within {shown[0]:g} to {shown[1]:g}")
