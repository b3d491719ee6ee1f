"""Images of the derivatives of an elliptic Gaussian, in closed form.

Lengths are in units of the width, in which the covariance `K` has determinant one. Over a tap, derivatives
along both axes integrate to differences of the density's derivatives at its four corners; derivatives along
one axis to differences of

    d^n/dx^n int_(-inf)^y g(x, y') dy',  with  int g dy' = p(x) Phi((y - k_xy / k_xx x) sqrt(k_xx)),

`p` the marginal density. The Gaussian's own mass is that of the product of its marginals, and what the
correlation r adds: the integral of the density over it from zero (Plackett, Biometrika 41, 1954), here over
`r / sqrt(1 - r^2)`, which ends at `k_xy`.

Differences between corners have no digits left, in float32, where the Gaussian is much wider than the
kernel; a Taylor series about the centres of the taps has.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from dogfit.kernels.linalg import materialize, sum_arrays
from dogfit.kernels.types import Batch, Image

# What varies along one axis or none has a length of one there.
Along = Float[Array, "#ky #kx b"]
Covariance = tuple[Along, Along, Along]

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_PEAK = _INV_SQRT_2PI**2
# Nodes over the correlation: exact to rounding up to 0.85, the most that bounds of log 3 allow.
_CORRELATIONS = {"float32": 8, "float64": 20}
# Width of the shorter axis, in taps, from which the series is as good as float32.
_WIDE = 3.0
# Total order up to which it goes on to the fourth power: terms of higher orders stand in curvatures alone.
_IMAGES = 2


def elliptic_images(
    center: tuple[Batch, Batch],
    sigma: Batch,
    covariance: tuple[Batch, Batch, Batch],
    shape: tuple[int, int],
    orders: tuple[int, int],
    profile: str,
    paired: bool = False,
) -> tuple[dict[tuple[int, int], Image], Batch | None]:
    """Images of all derivatives of some total orders, scaled by the width to the power of the order.

    Args:
      center: of the Gaussian in taps from the middle of the kernel, along x and y.
      sigma: width in taps.
      covariance: `(k_xx, k_xy, k_yy)` of determinant one, in units of `sigma**2`.
      shape: number of taps along y and x.
      orders: lowest and highest total order of differentiation.
      profile: `integrated` over taps, or `sampled` at their centres.
      paired: whether images of two widths are to be told apart, which takes the digits of wide ones.

    Returns:
      By order along x and along y, `[ky, kx, b]`; and, if any, a constant that the image of order 0 is less
      than the whole: of wide Gaussians it is almost all, and float32 has few digits for the rest.
    """
    lowest, highest = orders
    wanted = [(n - j, j) for n in range(lowest, highest + 1) for j in range(n + 1)]
    kxx, kxy, kyy = (entry[None, None] for entry in covariance)
    on_edges = profile == "integrated"

    def along(axis: int) -> Float[Array, "k b"]:
        taps = shape[1 - axis]
        places = jnp.arange(taps + on_edges, dtype=sigma.dtype) - (taps - 1 + on_edges) / 2
        return (places[:, None] - center[axis][None]) / sigma[None]

    x, y = materialize((along(0)[None], along(1)[:, None]))
    side = 1.0 / sigma[None, None]
    half_trace = 0.5 * (kxx + kyy)
    longer = half_trace + jnp.sqrt(jnp.maximum(half_trace * half_trace - 1.0, 0.0))
    wide = longer * side * side < _WIDE**-2
    by_digits = paired and sigma.dtype == jnp.float32
    level = jnp.where(wide, _PEAK * side * side, 0.0)[0, 0] if by_digits and lowest == 0 else None
    density = _density(x, y, (kxx, kxy, kyy), max(highest - 2, 0) if on_edges else highest)
    if not on_edges:
        if level is not None:
            density[0, 0] = jnp.where(wide, _variation(x, y, (kxx, kxy, kyy)), density[0, 0])
        return {term: density[term] * side * side for term in wanted}, level
    across = {(j, i): value for (i, j), value in density.items()}
    integrals = {(i + 1, j + 1): value for (i, j), value in density.items()}
    for n, value in enumerate(_along_one(x, y, (kxx, kxy), density, highest - 1)):
        integrals[n + 1, 0] = value
    for n, value in enumerate(_along_one(y, x, (kyy, kxy), across, highest - 1)):
        integrals[0, n + 1] = value
    images = {term: _over_taps(integrals[term]) for term in wanted if term != (0, 0)}
    if lowest == 0:
        images[0, 0] = _mass(x, y, (kxx, kxy, kyy))
    if by_digits:
        centers = x[:, :-1] + 0.5 * side, y[:-1] + 0.5 * side
        series = _by_series(*centers, (kxx, kxy, kyy), side, highest)
        images = {term: jnp.where(wide, series[term], image) for term, image in images.items()}
    return materialize(images), level


def _over_taps(corners: Image) -> Image:
    along_x = corners[:, 1:] - corners[:, :-1]
    return along_x[1:] - along_x[:-1]


def _by_series(
    x: Along, y: Along, covariance: Covariance, side: Along, highest: int
) -> dict[tuple[int, int], Image]:
    """Images of all terms up to a total order, from centres and side of taps; of order 0 less the peak."""
    square = side * side
    density = _density(x, y, covariance, max(min(highest, _IMAGES) + 4, highest + 2))
    middle = density | {(0, 0): _variation(x, y, covariance)}

    def over_tap(i: int, j: int) -> Image:
        correction = (density[i + 2, j] + density[i, j + 2]) / 24.0
        if i + j <= _IMAGES:
            fourth = (density[i + 4, j] + density[i, j + 4]) / 1920.0 + density[i + 2, j + 2] / 576.0
            correction = correction + square * fourth
        return square * (middle[i, j] + square * correction)

    return {(n - j, j): over_tap(n - j, j) for n in range(highest + 1) for j in range(n + 1)}


def _variation(x: Along, y: Along, covariance: Covariance) -> Image:
    """The density less its peak."""
    kxx, kxy, kyy = covariance
    return _PEAK * jnp.expm1(kxy * x * y - 0.5 * (kyy * x * x + kxx * y * y))


def _density(x: Along, y: Along, covariance: Covariance, highest: int) -> dict[tuple[int, int], Image]:
    """The density and its derivatives up to a total order, by order along x and y."""
    kxx, kxy, kyy = covariance
    p, q = materialize((kxy * y - kyy * x, kxy * x - kxx * y))
    out = {(0, 0): _PEAK * jnp.exp(0.5 * (p * x + q * y))}
    for n in range(highest):
        for i in range(n + 1):
            j = n - i
            out[i, j + 1] = q * out[i, j]
            if j:
                out[i, j + 1] -= j * kxx * out[i, j - 1]
            if i:
                out[i, j + 1] += i * kxy * out[i - 1, j]
        out[n + 1, 0] = p * out[n, 0]
        if n:
            out[n + 1, 0] -= n * kyy * out[n - 1, 0]
    return materialize(out)


def _along_one(
    x: Along, y: Along, covariance: tuple[Along, Along], density: dict[tuple[int, int], Image], highest: int
) -> list[Image]:
    """Derivatives by x of the density integrated along y, from the middle, of orders 0 to `highest`."""
    kxx, kxy = covariance
    slope, inverse = kxy / kxx, 1.0 / kxx
    marginal = _INV_SQRT_2PI * jnp.sqrt(inverse) * jnp.exp(-0.5 * inverse * x * x)
    # erf, not Phi: it is odd, so that narrow taps near the centre keep their relative precision.
    out = [marginal * (0.5 * lax.erf((y - slope * x) * jnp.sqrt(0.5 * kxx)))]
    for n in range(highest):
        before = n * out[n - 1] if n else 0.0
        out.append(-inverse * (x * out[n] + before) - slope * density[n, 0])
    return materialize(out)


def _mass(x: Along, y: Along, covariance: Covariance) -> Image:
    """Integral of the density over each tap, given the edges of taps."""
    kxx, kxy, kyy = covariance
    x, y = x / jnp.sqrt(kxx), y / jnp.sqrt(kyy)
    inner_x, inner_y = lax.erf(x * _SQRT_HALF), lax.erf(y * _SQRT_HALF)
    product = 0.25 * (inner_x[:, 1:] - inner_x[:, :-1]) * (inner_y[1:] - inner_y[:-1])
    squares, products = materialize((-0.5 * (x * x + y * y), x * y))

    def at(node: float) -> Image:
        t = node * kxy
        stretch = 1.0 + t * t
        return jnp.exp(squares * stretch + products * (t * jnp.sqrt(stretch))) / stretch

    nodes, weights = np.polynomial.legendre.leggauss(_CORRELATIONS[x.dtype.name])
    added = sum_arrays(float(w) * at(0.5 + 0.5 * float(node)) for node, w in zip(nodes, weights, strict=True))
    return product + _over_taps(0.5 * _PEAK * kxy * added)
