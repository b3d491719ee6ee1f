"""Bounds of the search parameters of each kind of model."""

import math
from typing import Any

import jax.numpy as jnp

from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.types import Box

# Width of the surround, in widths of the centre.
MIN_RATIO, MAX_RATIO = 1.1, 8.0
# Where both share an amplitude: derivatives of a DoG of closer widths are those of the next orders, and
# cannot be told from them.
MIN_SHARED_RATIO = 1.5
# Largest logarithm of an ellipse's aspect along each of two axes.
MAX_SHAPE = math.log(3.0)


def search_bounds(model: Model, shape: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Lower and upper bounds of a model's search parameters.

    Args:
      model: static.
      shape: number of taps along y and x.

    Returns:
      Lower and upper bounds in the order of `model.names`: centres in taps from the middle, logarithms of
      widths in taps.
    """
    if isinstance(model, CustomModel):
        return [r.low for _, r in model.ranges], [r.high for _, r in model.ranges]
    height, width = shape
    ranges = {
        "x0": (-width / 2, width / 2),
        "y0": (-height / 2, height / 2),
        "log_sigma": (math.log(model.min_sigma), math.log(max(shape))),
        "log_ratio": (
            math.log(MIN_SHARED_RATIO if model.shared_amplitude else MIN_RATIO),
            math.log(MAX_RATIO),
        ),
        "surround_weight": (0.0, 1.0),
        "e1": (-MAX_SHAPE, MAX_SHAPE),
        "e2": (-MAX_SHAPE, MAX_SHAPE),
    }
    lower, upper = zip(*(ranges[name] for name in model.names), strict=True)
    return list(lower), list(upper)


def search_box(model: Model, shape: tuple[int, int], dtype: Any) -> Box:
    """Bounds of a model's search parameters as arrays `[p, 1]`, shared by all kernels."""
    lower, upper = (jnp.asarray(side, dtype)[:, None] for side in search_bounds(model, shape))
    return Box(lower, upper)
