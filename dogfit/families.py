"""Model families: what is fitted, what its parameters mean, and how it looks.

Coordinates: x to the right (last axis), y down (rows), both in taps from the middle of the kernel;
correlation order, as PyTorch stores kernels. Every family has a free offset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dogfit.kernels.profiles import integrated_profiles
from dogfit.kernels.separable import Terms

# Bounds of the search, in taps: narrower Gaussians than this are single taps.
MIN_SIGMA_PX = 0.3
MIN_RATIO, MAX_RATIO = 1.1, 8.0
# A family is fitted where at least this many taps are left over to test it.
MIN_RESIDUAL_TAPS = 3


@dataclass(frozen=True)
class Parameter:
    """One reported parameter."""

    name: str
    unit: str
    """"px" (taps), "rad", or "weight" (the kernel's own unit)."""


@dataclass(frozen=True)
class Family:
    """A family of functions, its basis and its reported parameters."""

    name: str
    terms: Terms
    """Basis solved for linearly, beside the offset: (width index, order in x, order in y)."""
    parameters: tuple[Parameter, ...]
    """As reported, one per degree of freedom."""

    @property
    def two_widths(self) -> bool:
        """Whether a surround width is searched as well."""
        return any(width for width, _, _ in self.terms)


def _parameters(*gains: str, angle: bool = False, surround: bool = False) -> tuple[Parameter, ...]:
    names = [("offset", "weight"), *((gain, "weight") for gain in gains)]
    names += [("theta_rad", "rad")] * angle
    names += [("x0_px", "px"), ("y0_px", "px"), ("sigma_px", "px")]
    names += [("sigma_surround_px", "px")] * surround
    return tuple(Parameter(name, unit) for name, unit in names)


FAMILY: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("gaussian", ((0, 0, 0),), _parameters("amplitude")),
            Family(
                "dog",
                ((0, 0, 0), (1, 0, 0)),
                _parameters("amplitude_center", "amplitude_surround", surround=True),
            ),
            Family("d1", ((0, 1, 0), (0, 0, 1)), _parameters("amplitude", angle=True)),
            Family(
                "d2",
                ((0, 2, 0), (0, 1, 1), (0, 0, 2)),
                _parameters("amplitude_1", "amplitude_2", angle=True),
            ),
        )
    }
)
"""Families by name.

Gains multiply `sigma**n` times the n-th derivative of the unit-mass Gaussian. `theta_rad` turns from +x
towards +y (clockwise on screen): for d1 the direction of the derivative, for d2 the axis of
`amplitude_1`, the larger of the two second derivatives along its principal axes.
"""


def search_bounds(family: Family, size: int) -> tuple[list[float], list[float]]:
    """Lower and upper bounds of (x0, y0, log sigma[, log ratio]) at kernel size `size`."""
    lower = [-size / 2, -size / 2, float(np.log(MIN_SIGMA_PX))]
    upper = [size / 2, size / 2, float(np.log(size))]
    if family.two_widths:
        lower.append(float(np.log(MIN_RATIO)))
        upper.append(float(np.log(MAX_RATIO)))
    return lower, upper


def at_bounds(family: Family, parameters: np.ndarray, size: int) -> np.ndarray:
    """Which reported parameters `[n, p]` sit on a bound of the search."""
    out = np.zeros(parameters.shape, bool)
    columns = {p.name: i for i, p in enumerate(family.parameters)}

    def flag(name: str, values: np.ndarray, *bounds: float) -> None:
        for bound in bounds:
            out[:, columns[name]] |= np.isclose(values, bound, rtol=1e-5, atol=1e-5)

    sigma = parameters[:, columns["sigma_px"]]
    flag("sigma_px", sigma, MIN_SIGMA_PX, size)
    for name in ("x0_px", "y0_px"):
        flag(name, parameters[:, columns[name]], -size / 2, size / 2)
    if family.two_widths:
        ratio = parameters[:, columns["sigma_surround_px"]] / sigma
        flag("sigma_surround_px", ratio, MIN_RATIO, MAX_RATIO)
    return out


def why_unidentifiable(family: Family, size: int) -> str | None:
    """Why a kernel size cannot test a family, or None if it can."""
    left = size * size - len(family.parameters)
    if left >= MIN_RESIDUAL_TAPS:
        return None
    return (
        f"{family.name} has {len(family.parameters)} parameters and a {size}x{size} kernel "
        f"{size * size} taps; at least {MIN_RESIDUAL_TAPS} taps must be left over to test a fit"
    )


def basis_images(family: Family, point: Float[Array, "p b"], size: int) -> list[Float[Array, "k k b"]]:
    """The family's basis, uncentred, y on the first axis, at search points."""
    widths = [jnp.exp(point[2])]
    if family.two_widths:
        widths.append(widths[0] * jnp.exp(point[3]))
    highest = max(1, *(max(i, j) for _, i, j in family.terms))
    profiles = [[integrated_profiles(c, s, size, highest) for c in (point[0], point[1])] for s in widths]
    return [
        profiles[width][1][j][:, None, :] * profiles[width][0][i][None, :, :] for width, i, j in family.terms
    ]


def to_parameters(
    family: Family, point: Float[Array, "p b"], offset: Float[Array, " b"], gains: list[Float[Array, " b"]]
) -> Float[Array, "b m"]:
    """Reported parameters, in the order of `family.parameters`."""
    sigma = jnp.exp(point[2])
    where = [point[0], point[1], sigma]
    if family.name == "d1":
        along_x, along_y = gains
        shape = [jnp.hypot(along_x, along_y), jnp.arctan2(along_y, along_x)]
    elif family.name == "d2":
        shape = list(_principal_axes(*gains))
    else:
        shape = gains
    if family.two_widths:
        where.append(sigma * jnp.exp(point[3]))
    return jnp.stack([offset, *shape, *where], axis=-1)


def _principal_axes(xx: Array, xy: Array, yy: Array) -> tuple[Array, Array, Array]:
    """Principal values, larger magnitude first, and the axis of the first, of [[xx, xy/2], [xy/2, yy]]."""
    middle, spread = (xx + yy) / 2, jnp.hypot((xx - yy) / 2, xy / 2)
    high_axis = 0.5 * jnp.arctan2(xy, xx - yy)
    high_first = middle >= 0
    # The axis of the lower value is a quarter turn away; axes have no direction, so keep (-pi/2, pi/2].
    low_axis = jnp.where(high_axis > 0, high_axis - jnp.pi / 2, high_axis + jnp.pi / 2)
    first = jnp.where(high_first, middle + spread, middle - spread)
    second = jnp.where(high_first, middle - spread, middle + spread)
    return first, second, jnp.where(high_first, high_axis, low_axis)


def render(family: Family, parameters: Float[Array, "b m"], size: int) -> Float[Array, "b k k"]:
    """Images of a family, from its reported parameters."""
    values = dict(zip((p.name for p in family.parameters), jnp.moveaxis(parameters, -1, 0), strict=True))
    point = [values["x0_px"], values["y0_px"], jnp.log(values["sigma_px"])]
    if family.two_widths:
        point.append(jnp.log(values["sigma_surround_px"]) - point[2])
    if family.name == "d1":
        gains = [values["amplitude"] * f(values["theta_rad"]) for f in (jnp.cos, jnp.sin)]
    elif family.name == "d2":
        first, second = values["amplitude_1"], values["amplitude_2"]
        cos, sin = jnp.cos(values["theta_rad"]), jnp.sin(values["theta_rad"])
        gains = [
            first * cos**2 + second * sin**2,
            2 * (first - second) * cos * sin,
            first * sin**2 + second * cos**2,
        ]
    else:
        gains = [values[p.name] for p in family.parameters if p.name.startswith("amplitude")]
    image = jnp.broadcast_to(values["offset"][None, None, :], (size, size, parameters.shape[0]))
    for gain, basis in zip(gains, basis_images(family, jnp.stack(point), size), strict=True):
        image = image + gain[None, None, :] * basis
    return lax.transpose(image, (2, 0, 1))
