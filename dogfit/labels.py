"""Names of kernels by rule, from their fitted parameters.

| name | family | rule |
|---|---|---|
| on-centre, off-centre | gaussian, dog | polarity of the centre: the sign of what it adds to its surround |
| on-square, off-square | gaussian, dog | as above, narrow, and centred near the corner of four taps |
| on-margin, off-margin | gaussian, dog | as above, centred outside the outermost taps: one flank is seen |
| d1-E, -NE, -N, ... | d1 | compass direction of the positive lobe, in steps of 45°; N is up |
| on-bar-H, -V, -D, -A | d2 | one axis prevails: bar horizontal, vertical, along the diagonal or against it |
| on-cross, off-cross | d2 | both principal values alike and narrow: the five-point Laplacian |
| on-ring, off-ring | d2 | both principal values alike and wide |
| saddle-axis, saddle-diagonal | d2 | principal values of opposite sign, along the axes or the diagonals |
| the family's name | your own | any |
| unclear | any | the best fit explains less than `least_r2` |
| unfitted | none | constant or non-finite kernel |

Derivatives of a DoG and elliptic families go by the rules of the family they extend. `on` means a
positive middle.
"""

from collections.abc import Mapping

import numpy as np

from dogfit.fitting.result import FitResult
from dogfit.kernels.model.gaussian import GaussianModel

# Half a tap's reach about the corner of four taps, and the width above which a corner cannot be told.
_CORNER_PX = 0.25
_SQUARE_SIGMA_PX = 1.0
# Widest second derivative that is a cross of single taps rather than a ring.
_CROSS_SIGMA_PX = 0.6
# Ratio of the smaller to the larger principal value beyond which both count.
_BOTH_AXES = 0.5

_COMPASS = ("E", "NE", "N", "NW", "W", "SW", "S", "SE")
_BARS = ("V", "A", "H", "D")
_POLAR = ("centre", "square", "margin", *(f"bar-{b}" for b in ("H", "V", "D", "A")), "cross", "ring")

UNCLEAR, UNFITTED = "unclear", "unfitted"
LABELS = (
    *(f"{sign}-{kind}" for kind in _POLAR for sign in ("on", "off")),
    *(f"d1-{direction}" for direction in _COMPASS),
    "saddle-axis",
    "saddle-diagonal",
    UNCLEAR,
    UNFITTED,
)
"""All labels, in the order of display."""


def label_fits(result: FitResult, least_r2: float = 0.49) -> np.ndarray:
    """Name each kernel by rule, from the parameters of its chosen fit.

    The rules are in the table above, which `help(dogfit.labels)` shows.

    Args:
      result: fits of one kernel size.
      least_r2: fits that explain less are "unclear". The default is the paper's criterion for 7x7
        kernels, cosine 0.7.

    Returns:
      Strings `[n]` out of `LABELS`, or names of your own families.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-(x**2 + y**2) / 2)
      >>> kernels = np.stack([blob, -blob, x * blob, 0 * blob])
      >>> dogfit.label_fits(dogfit.fit_kernels(kernels, ["gaussian", "d1"])).tolist()
      ['on-centre', 'off-centre', 'd1-E', 'unfitted']
    """
    result = result.as_batch()
    labels = np.full(len(result), UNFITTED, dtype=object)
    for index, family in enumerate(result.families):
        rows = np.flatnonzero(np.asarray(result.family) == index)
        parameters = np.asarray(result.parameters[family.name], np.float64)[rows]
        values = dict(zip(family.names, parameters.T, strict=True))
        if isinstance(family.model, GaussianModel):
            rule = (_round, _first, _second)[family.model.order]
            labels[rows] = rule(values, result.shape)
        else:
            labels[rows] = family.name
    with np.errstate(invalid="ignore"):
        labels[np.asarray(result.r2) < least_r2] = UNCLEAR
    return labels


def _polarity(positive: np.ndarray) -> np.ndarray:
    return np.where(positive, "on-", "off-").astype(object)


Values = Mapping[str, np.ndarray]


def _round(values: Values, shape: tuple[int, int]) -> np.ndarray:
    x0, y0, sigma = values["x0_px"], values["y0_px"], values["sigma_px"]
    if "amplitude" in values:
        gain = values["amplitude"]
    else:
        # Height of the middle above the flanks.
        wide = values["sigma_surround_px"]
        gain = values["amplitude_center"] / sigma**2 + values["amplitude_surround"] / wide**2
    to_edge = [np.abs((c + size / 2 + 0.5) % 1.0 - 0.5) for c, size in zip((y0, x0), shape, strict=True)]
    square = (np.maximum(*to_edge) <= _CORNER_PX) & (sigma <= _SQUARE_SIGMA_PX)
    margin = (np.abs(y0) > (shape[0] - 1) / 2) | (np.abs(x0) > (shape[1] - 1) / 2)
    kind = np.where(margin, "margin", np.where(square, "square", "centre")).astype(object)
    return _polarity(gain > 0) + kind


def _first(values: Values, _: tuple[int, int]) -> np.ndarray:
    # A Gaussian falls along its derivative's direction, so the positive lobe lies opposite; y is down.
    theta = values["theta_rad"]
    bearing = np.arctan2(np.sin(theta), -np.cos(theta))
    step = np.round(bearing / (np.pi / 4)).astype(int) % 8
    return np.array([f"d1-{direction}" for direction in _COMPASS], dtype=object)[step]


def _second(values: Values, _: tuple[int, int]) -> np.ndarray:
    first, second, theta = (values[name] for name in ("amplitude_1", "amplitude_2", "theta_rad"))
    ratio = second / np.where(first == 0, 1.0, first)
    step = np.round(theta / (np.pi / 4)).astype(int) % 4
    bar = np.array([f"bar-{b}" for b in _BARS], dtype=object)[step]
    alike = np.where(values["sigma_px"] <= _CROSS_SIGMA_PX, "cross", "ring").astype(object)
    # The middle of a second derivative has the sign opposite to its gain.
    polar = _polarity(first < 0) + np.where(ratio > _BOTH_AXES, alike, bar)
    saddle = np.where(step % 2 == 0, "saddle-axis", "saddle-diagonal").astype(object)
    return np.where(ratio < -_BOTH_AXES, saddle, polar)
