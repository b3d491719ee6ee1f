"""Families of functions: what is fitted, what its parameters mean, and how it looks.

Coordinates: x to the right (last axis), y down (rows), both in taps from the middle of the kernel;
correlation order, as PyTorch stores kernels. Every family has a free offset.

| family | shape | parameters beside offset, x0_px, y0_px, sigma_px |
|---|---|---|
| gaussian | a Gaussian | amplitude |
| dog | two concentric Gaussians | amplitude_center, amplitude_surround, sigma_surround_px |
| d1 | first derivative along theta | amplitude, theta_rad |
| d2 | second derivatives along theta and across | amplitude_1, amplitude_2, theta_rad |
| dog_d1, dog_d2 | the same of a Gaussian less a wider one | sigma_surround_px, surround_weight too |
| `*_elliptic` | each of the above, of elliptic Gaussians | aspect, phi_rad too |

Gains multiply `sigma**n` times the n-th derivative of the unit-mass Gaussian. `theta_rad` turns from +x
towards +y (clockwise on screen): for first derivatives their direction, for second derivatives the axis of
`amplitude_1`, the larger of the two along principal axes. Of an ellipse, `sigma_px` is the geometric mean of
its widths, `aspect` the ratio of the longer to the shorter and `phi_rad` the direction of the longer.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.fitting.family_names import ALL_FAMILIES
from dogfit.kernels.model.custom import CustomModel, SearchRange
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.model.kinds import Model

# A family is fitted where at least this many taps are left over to test it.
MIN_RESIDUAL_TAPS = 3

# Reported parameters that stand for a search parameter.
_REPORTED = {
    "x0": ("x0_px",),
    "y0": ("y0_px",),
    "log_sigma": ("sigma_px",),
    "log_ratio": ("sigma_surround_px",),
    "surround_weight": ("surround_weight",),
    "e1": ("aspect", "phi_rad"),
    "e2": ("aspect", "phi_rad"),
}


@dataclass(frozen=True)
class Parameter:
    """One reported parameter."""

    name: str
    unit: str
    """"px" (taps), "rad", "weight" (the kernel's own unit) or "ratio"."""


@dataclass(frozen=True)
class Family:
    """A family of functions: its model and its reported parameters."""

    name: str
    model: Model
    """Basis solved for linearly beside the offset, and what is searched."""
    parameters: tuple[Parameter, ...]
    """As reported, one per degree of freedom."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reported parameters."""
        return tuple(p.name for p in self.parameters)


def _gaussian_family(name: str, model: GaussianModel) -> Family:
    gains = {0: ("amplitude",), 1: ("amplitude",), 2: ("amplitude_1", "amplitude_2")}[model.order]
    if model.two_widths and not model.shared_amplitude:
        gains = ("amplitude_center", "amplitude_surround")
    units = {"offset": "weight"} | dict.fromkeys(gains, "weight")
    units |= {"theta_rad": "rad"} if model.order else {}
    units |= dict.fromkeys(("x0_px", "y0_px", "sigma_px"), "px")
    units |= {"sigma_surround_px": "px"} if model.two_widths else {}
    units |= {"surround_weight": "ratio"} if model.shared_amplitude else {}
    units |= {"aspect": "ratio", "phi_rad": "rad"} if model.elliptic else {}
    return Family(name, model, tuple(Parameter(*item) for item in units.items()))


_ROUND = {
    "gaussian": GaussianModel(0),
    "dog": GaussianModel(0, two_widths=True),
    "d1": GaussianModel(1),
    "d2": GaussianModel(2),
    "dog_d1": GaussianModel(1, two_widths=True, shared_amplitude=True),
    "dog_d2": GaussianModel(2, two_widths=True, shared_amplitude=True),
}
_MODELS = _ROUND | {f"{name}_elliptic": replace(model, elliptic=True) for name, model in _ROUND.items()}
BUILTIN_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {name: _gaussian_family(name, _MODELS[name]) for name in ALL_FAMILIES}
)
"""Families by name."""


def custom_family(
    name: str,
    basis: Callable[..., Sequence[Float[Array, "h w"]]],
    ranges: Mapping[str, SearchRange],
    gains: Sequence[str],
) -> Family:
    """Make a family of a basis function of your own, with the same search, status and errors.

    The best of the nodes of all `ranges` are the starts; derivatives come from JAX. Every evaluation makes
    the basis and its second derivatives, so it is slower than the families built in. A family made once is
    compiled once: keep it.

    Args:
      name: how results call it.
      basis: `basis(x, y, *parameters)` gives the functions whose weights are solved for, as images `[h, w]`;
        `x` and `y` are the coordinates of the taps `[h, w]`, the parameters scalars in the order of `ranges`.
        It must be differentiable twice by JAX. The offset is added.
      ranges: searched parameters with their bounds and numbers of nodes.
      gains: names of the functions' weights, one each.

    Returns:
      A family to hand to `fit_kernels` and all that take families.

    Raises:
      ValueError: for a name that is taken or used twice, or no parameter to search.

    Example:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> import dogfit
      >>> def ridge(x, y, x0_px):
      ...     return (jnp.exp(-((x - x0_px) ** 2)),)
      >>> family = dogfit.custom_family("ridge", ridge, {"x0_px": dogfit.SearchRange(-1, 1, 3)}, ("gain",))
      >>> x = np.arange(-2.0, 3.0)[None, :] + np.zeros((5, 1))
      >>> fit = dogfit.fit_kernel(1 + 3 * np.exp(-((x - 0.5) ** 2)), [family])
      >>> print(*family.names, *fit.parameters["ridge"].round(2))
      offset gain x0_px 1.0 3.0 0.5
    """
    if name in BUILTIN_FAMILIES:
        raise ValueError(f"{name} is the name of a family built in; choose another")
    if not ranges or not gains:
        raise ValueError(f"family {name} needs at least one range and one gain")
    names = ("offset", *gains, *ranges)
    if len(set(names)) != len(names):
        raise ValueError(f"family {name} names a parameter twice: {', '.join(names)}")
    units = dict.fromkeys(("offset", *gains), "weight")
    units |= {n: "px" if n.endswith("_px") else "rad" if n.endswith("_rad") else "ratio" for n in ranges}
    model = CustomModel(basis, tuple(ranges.items()), len(gains))
    return Family(name, model, tuple(Parameter(*item) for item in units.items()))


def resolve_families(families: Iterable[str | Family]) -> tuple[Family, ...]:
    """Look up families by name.

    Args:
      families: names and families of your own, each once however often it is given.

    Returns:
      The families, in the order given.

    Raises:
      ValueError: for anything else, no family, or two of one name.
    """
    given = "" if isinstance(families, str) or not isinstance(families, Iterable) else list(families)
    unknown = [
        family
        for family in given
        if not isinstance(family, Family) and not (isinstance(family, str) and family in BUILTIN_FAMILIES)
    ]
    if unknown or not given:
        shown = families if isinstance(given, str) else ", ".join(map(str, unknown)) or "none"
        raise ValueError(f"families must be a sequence out of {', '.join(BUILTIN_FAMILIES)}, got {shown}")
    distinct = tuple(
        dict.fromkeys(BUILTIN_FAMILIES[family] if isinstance(family, str) else family for family in given)
    )
    if len({family.name for family in distinct}) < len(distinct):
        raise ValueError(f"two families share a name: {', '.join(family.name for family in distinct)}")
    return distinct


def with_profile(family: Family, profile: str) -> Family:
    """Give a family another profile.

    Args:
      family: any; a custom family has its own profile and stays as it is.
      profile: see `FitConfig.profile`.

    Returns:
      The family that is drawn so.
    """
    if isinstance(family.model, CustomModel):
        return family
    return replace(family, model=replace(family.model, profile=profile))


def reported_names(model: Model, search_parameter: str) -> tuple[str, ...]:
    """Reported parameters that a search parameter stands behind."""
    return (search_parameter,) if isinstance(model, CustomModel) else _REPORTED[search_parameter]


def unidentifiable(families: Iterable[Family], shape: tuple[int, int]) -> dict[str, str]:
    """List families that kernels of a shape have too few taps to test.

    Args:
      families: any.
      shape: taps along y and x.

    Returns:
      The reason of each such family, by name; empty if all can be tested.
    """
    height, width = shape
    return {
        family.name: (
            f"{family.name} has {len(family.parameters)} parameters and a {height}x{width} kernel "
            f"{height * width} taps; at least {MIN_RESIDUAL_TAPS} taps must be left over to test a fit"
        )
        for family in families
        if height * width - len(family.parameters) < MIN_RESIDUAL_TAPS
    }


def to_parameters(
    model: Model, point: Float[Array, "p b"], offset: Float[Array, " b"], gains: list[Float[Array, " b"]]
) -> Float[Array, "b m"]:
    """Reported parameters, in the order of `Family.parameters`."""
    if isinstance(model, CustomModel):
        return jnp.stack([offset, *gains, *point], axis=-1)
    at = dict(zip(model.names, point, strict=True))
    sigma = jnp.exp(at["log_sigma"])
    if model.order == 1:
        along_x, along_y = gains
        gains = [jnp.hypot(along_x, along_y), jnp.arctan2(along_y, along_x)]
    elif model.order == 2:
        gains = list(_principal_axes(*gains))
    values = [offset, *gains, at["x0"], at["y0"], sigma]
    if model.two_widths:
        values.append(sigma * jnp.exp(at["log_ratio"]))
    if model.shared_amplitude:
        values.append(at["surround_weight"])
    if model.elliptic:
        values += [jnp.exp(jnp.hypot(at["e1"], at["e2"])), 0.5 * jnp.arctan2(at["e2"], at["e1"])]
    return jnp.stack(values, axis=-1)


def from_parameters(
    family: Family, parameters: Float[Array, "b m"]
) -> tuple[Float[Array, "p b"], Float[Array, " b"], list[Float[Array, " b"]]]:
    """Search point, offset and gains of reported parameters: the inverse of `to_parameters`."""
    model, columns = family.model, jnp.moveaxis(parameters, -1, 0)
    if isinstance(model, CustomModel):
        first = 1 + model.gains
        return columns[first:], columns[0], list(columns[1:first])
    values = dict(zip(family.names, columns, strict=True))
    gains = [values[name] for name in family.names if name.startswith("amplitude")]
    if model.order:
        cos, sin = jnp.cos(values["theta_rad"]), jnp.sin(values["theta_rad"])
        if model.order == 1:
            gains = [gains[0] * cos, gains[0] * sin]
        else:
            first, second = gains
            gains = [
                first * cos**2 + second * sin**2,
                2 * (first - second) * cos * sin,
                first * sin**2 + second * cos**2,
            ]
    point = [values["x0_px"], values["y0_px"], jnp.log(values["sigma_px"])]
    if model.two_widths:
        point.append(jnp.log(values["sigma_surround_px"]) - point[2])
    if model.shared_amplitude:
        point.append(values["surround_weight"])
    if model.elliptic:
        log_aspect, twice = jnp.log(values["aspect"]), 2 * values["phi_rad"]
        point += [log_aspect * jnp.cos(twice), log_aspect * jnp.sin(twice)]
    return jnp.stack(point), values["offset"], gains


def split_units(
    family: Family, parameters: Float[np.ndarray, "b m"]
) -> tuple[Float[np.ndarray, "b m"], Float[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Take the offset and the magnitude off reported parameters.

    Args:
      family: whose parameters they are.
      parameters: NumPy, as reported.

    Returns:
      Parameters with an offset of 0 and gains of about 1 or less; the offset; and the power of two that the
      gains were divided by.
    """
    values = parameters.astype(np.float64)
    at = family.names.index("offset")
    offset = values[:, at].copy()
    values[:, at] = 0.0
    gains = [parameter.unit == "weight" for parameter in family.parameters]
    power = np.frexp(np.abs(values[:, gains]).max(axis=1))[1]
    values[:, gains] = np.ldexp(values[:, gains], -power[:, None])
    return values, offset, power


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


def render(family: Family, parameters: Float[Array, "b m"], shape: tuple[int, int]) -> Float[Array, "b h w"]:
    """Draw images of a family from its reported parameters.

    Args:
      family: with the profile it was fitted with, see `with_profile`.
      parameters: `[b, m]`, in the order of `family.parameters` and their units.
      shape: taps along y and x.

    Returns:
      Images `[b, h, w]`.
    """
    point, offset, gains = from_parameters(family, parameters)
    image = jnp.broadcast_to(offset[None, None, :], (*shape, parameters.shape[0]))
    for gain, function in zip(gains, family.model.images(list(point), shape), strict=True):
        image = image + gain[None, None, :] * function
    return lax.transpose(image, (2, 0, 1))
