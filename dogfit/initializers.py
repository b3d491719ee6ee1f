"""Initial depthwise kernels that are Gaussians, differences of Gaussians and their derivatives.

They follow the contract of `jax.nn.initializers`: a factory returns `init(key, shape, dtype)`, for the shape
`[h, w, 1, n]` that Flax gives the kernel of a convolution with one input channel per group.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer, lecun_normal
from jaxtyping import Array, Float, Int

from dogfit.fitting.api import MAX_SIZE
from dogfit.fitting.families import BUILTIN_FAMILIES, render, with_profile
from dogfit.fitting.result import FitResult
from dogfit.kernels.model.bounds import MAX_RATIO, MAX_SHAPE, MIN_RATIO
from dogfit.normalize import unit_norm

Range = tuple[float, float]

# Of the ranges of `Shapes`. Narrower than 0.3 taps, and wider than the widest kernel, widths look alike.
_ALLOWED: Mapping[str, Range] = {
    "sigma_px": (0.3, MAX_SIZE),
    "surround_ratio": (MIN_RATIO, MAX_RATIO),
    "surround_weight": (0.0, 1.0),
    "second": (-1.0, 1.0),
    "aspect": (1.0, math.exp(MAX_SHAPE)),
}
# Numbers behind the parameters of a kernel; see `_draw_values`.
_NUMBERS = 10


@dataclass(frozen=True)
class Shapes:
    """Distributions that kernels are drawn from.

    Angles are uniform, and signs even. All numbers are independent of each other.
    """

    families: Mapping[str, float] = field(
        default_factory=lambda: {"gaussian": 1.0, "dog": 1.0, "d1": 1.0, "d2": 1.0}
    )
    """Names of families built in, each with its weight; weights need not sum to 1."""
    sigma_px: Range = (0.5, 1.5)
    """Width in taps, log-uniform."""
    center_px: float = 0.5
    """Centre in taps from the middle, uniform up to this far along x and y."""
    surround_ratio: Range = (1.5, 3.0)
    """Width of a surround to that of its centre, log-uniform."""
    surround_weight: Range = (0.5, 1.0)
    """Integral of a surround to that of its centre, uniform; they have opposite signs."""
    second: Range = (-1.0, 1.0)
    """Second derivatives: the gain across to that along the main axis, uniform. -1 is a saddle, 0 a bar, 1 a
    ring."""
    aspect: Range = (1.0, 2.0)
    """Longer to shorter width of elliptic families, log-uniform."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.families if name not in BUILTIN_FAMILIES]:
            raise ValueError(f"no family is called {unknown[0]!r}; choose from {', '.join(BUILTIN_FAMILIES)}")
        weights = list(self.families.values())
        if not weights or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(f"families need weights of 0 or more, not all 0, got {dict(self.families)}")
        for name, (least, most) in _ALLOWED.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be a range within {least:g} to {most:g}, got ({low}, {high})")
        if not 0 <= self.center_px < math.inf:
            raise ValueError(f"center_px must be 0 or more, got {self.center_px}")


@dataclass(frozen=True)
class Fitted:
    """Kernels drawn from those of a fit, each as likely as the others.

    Parameters are in taps, so they serve for kernels of another size too.
    """

    result: FitResult
    """From `fit_kernels`."""
    least_r2: float = 0.8
    """Kernels that fit no better than this are left out."""
    jitter: float = 0.0
    """0: parameters as fitted (bootstrap). Else the standard deviation by which the centre is moved, in taps,
    the angle turned, in radians, and the widths scaled, in units of their logarithm (smoothed bootstrap)."""

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"jitter must be 0 or more, got {self.jitter}")
        if not len(self.rows):
            raise ValueError(f"none of the {len(self.result)} fitted kernels has an R² of {self.least_r2}")

    @property
    def rows(self) -> Int[np.ndarray, " m"]:
        """Kernels that may be drawn."""
        return np.flatnonzero(np.asarray(self.result.r2) >= self.least_r2)


def dog_derivative(
    shapes: Shapes | Fitted | FitResult | None = None,
    *,
    noise: float = 0.0,
    norm_of: Initializer | None = None,
) -> Initializer:
    """Initializer of depthwise kernels: Gaussians, differences of Gaussians and their derivatives.

    Args:
      shapes: where kernels are drawn from: given distributions, or the kernels of a fit (a `FitResult` alone
        means `Fitted(result)`). `Shapes()` if None.
      noise: norm of white noise that is added to each kernel, relative to the kernel's.
      norm_of: initializer that lends its norms: each kernel gets the Frobenius norm of a kernel that this
        one draws. `lecun_normal()` if None, the default of Flax: variance scaling by the fan-in, which is
        h * w for a depthwise kernel.

    Returns:
      `init(key, shape, dtype)` for shapes `[h, w, 1, n]`; pure, deterministic in the key.

    Raises:
      ValueError: for noise below 0; when called, for a shape that is not of a depthwise kernel.

    Example:
      `nnx.Conv(64, 64, (7, 7), feature_group_count=64, kernel_init=dog_derivative(), rngs=rngs)`
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be 0 or more, got {noise}")
    source = Shapes() if shapes is None else Fitted(shapes) if isinstance(shapes, FitResult) else shapes
    lend = lecun_normal() if norm_of is None else norm_of

    # One program for each shape: hundreds of small ones would take far longer to compile.
    @functools.partial(jax.jit, static_argnames=("shape", "dtype"))
    def draw(key: Array, shape: tuple[int, int, int, int], dtype: Any) -> Array:
        drawn, noisy, normed = jax.random.split(key, 3)
        height, width, _, count = shape
        working = jnp.promote_types(dtype, jnp.float32)
        kernels = unit_norm(_draw(source, drawn, (height, width), count, working))
        if noise:
            white = jax.random.normal(noisy, kernels.shape, working) / math.sqrt(height * width)
            kernels = unit_norm(kernels + noise * white)
        norms = jnp.sqrt(jnp.sum(lend(normed, shape, working) ** 2, axis=(0, 1, 2)))
        return jnp.transpose(norms[:, None, None] * kernels, (1, 2, 0))[:, :, None].astype(dtype)

    def init(key: Array, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None) -> Array:
        if len(shape) != 4 or shape[2] != 1:
            raise ValueError(
                f"the shape must be [h, w, 1, n], that of a depthwise kernel, got {tuple(shape)}; "
                "set feature_group_count to the number of input channels"
            )
        height, width, one, count = shape
        dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
        out = draw(key, (height, width, one, count), dtype)
        return out if out_sharding is None else jax.device_put(out, out_sharding)

    return init


def _draw(
    source: Shapes | Fitted, key: Array, size: tuple[int, int], count: int, dtype: Any
) -> Float[Array, "n h w"]:
    """Kernels of any norm."""
    if isinstance(source, Fitted):
        return _draw_fitted(source, key, size, count, dtype)
    return _draw_shapes(source, key, size, count, dtype)


def _draw_shapes(
    shapes: Shapes, key: Array, size: tuple[int, int], count: int, dtype: Any
) -> Float[Array, "n h w"]:
    # All numbers in one call, which is one generator to compile. Families may share them: a kernel is of one.
    which, *numbers = jax.random.uniform(key, (1 + _NUMBERS, count), dtype)
    shares = np.array(list(shapes.families.values()), np.float64)
    edges = jnp.asarray(np.cumsum(shares / shares.sum())[:-1], dtype)
    values = _draw_values(shapes, numbers)
    images = [
        render(family, jnp.stack([values[name] for name in family.names], axis=1), size)
        for family in map(BUILTIN_FAMILIES.__getitem__, shapes.families)
    ]
    return _pick(images, jnp.searchsorted(edges, which, side="right"))


def _draw_values(shapes: Shapes, numbers: list[Float[Array, " n"]]) -> dict[str, Float[Array, " n"]]:
    """Parameters of all families, from numbers that are uniform between 0 and 1."""
    left = iter(numbers)

    def uniform(low: float, high: float) -> Array:
        return low + (high - low) * next(left)

    def log_uniform(low: float, high: float) -> Array:
        return jnp.exp(uniform(math.log(low), math.log(high)))

    sign = jnp.where(next(left) < 0.5, -1.0, 1.0).astype(numbers[0].dtype)
    sigma, weight = log_uniform(*shapes.sigma_px), uniform(*shapes.surround_weight)
    return {
        "offset": jnp.zeros_like(sign),
        "amplitude": sign,
        "amplitude_center": sign,
        "amplitude_surround": -sign * weight,
        "amplitude_1": sign,
        "amplitude_2": sign * uniform(*shapes.second),
        "theta_rad": uniform(-math.pi, math.pi),
        "x0_px": uniform(-shapes.center_px, shapes.center_px),
        "y0_px": uniform(-shapes.center_px, shapes.center_px),
        "sigma_px": sigma,
        "sigma_surround_px": sigma * log_uniform(*shapes.surround_ratio),
        "surround_weight": weight,
        "aspect": log_uniform(*shapes.aspect),
        "phi_rad": uniform(-math.pi / 2, math.pi / 2),
    }


def _draw_fitted(
    fitted: Fitted, key: Array, size: tuple[int, int], count: int, dtype: Any
) -> Float[Array, "n h w"]:
    result, rows = fitted.result, fitted.rows
    chosen, moved = jax.random.split(key)
    row = jax.random.randint(chosen, (count,), 0, len(rows))
    right, down, turned, wider = fitted.jitter * jax.random.normal(moved, (4, count), dtype)
    shift = {"x0_px": right, "y0_px": down, "theta_rad": turned, "phi_rad": turned}
    images = []
    for family in result.families:
        parameters = jnp.asarray(np.asarray(result.parameters[family.name])[rows], dtype)
        columns = jnp.moveaxis(parameters[row], 1, 0)
        changed = [
            # Both widths by one factor: the shape stays.
            column * jnp.exp(wider) if name.startswith("sigma") else column + shift.get(name, 0.0)
            for name, column in zip(family.names, columns, strict=True)
        ]
        images.append(render(with_profile(family, result.profile), jnp.stack(changed, axis=1), size))
    return _pick(images, jnp.asarray(np.asarray(result.family)[rows])[row])


def _pick(images: list[Float[Array, "n h w"]], kind: Int[Array, " n"]) -> Float[Array, "n h w"]:
    """Pick the image of each kernel's kind."""
    return jnp.take_along_axis(jnp.stack(images), kind[None, :, None, None].astype(jnp.int32), axis=0)[0]
