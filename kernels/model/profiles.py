"""One-dimensional profiles of a Gaussian and its derivatives: integrated over taps, sampled, or discrete.

Tap `u` of `k` has its centre at `u - (k - 1) / 2`. All profiles of order n are scaled by `sigma**n`, so that
they are dimensionless and of comparable size at every width, and all are closed under differentiation:
with P_n the unscaled profile, dP_n/dcentre = -P_(n+1) (not for discrete profiles, whose centre does not
move) and dP_n/dsigma = sigma P_(n+2), the heat equation. NumPy arrays in give NumPy arrays out.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from dogfit.kernels.linalg import materialize, sum_arrays

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
# Most frequencies that one round of a loop adds.
_MOST_WAVES = 48

Profiles = Callable[[Any, Any, int, int], list[Any]]


def _namespace(array: Any) -> Any:
    return jnp if isinstance(array, jax.Array) else np


def _erf(z: Any) -> Any:
    return lax.erf(z) if isinstance(z, jax.Array) else np.vectorize(math.erf)(z)


def integrated_profiles(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int, max_order: int
) -> list[Float[Array, "k b"]]:
    """Integrals over each tap, of orders 0 to `max_order` (at least 1), batch on the last axis.

    With `z` the edges of the taps in units of `sigma`, the differences over each tap of

        T_0 = Phi(z),  T_1 = phi(z),  T_(n+1) = dT_n / dz = -z T_n - (n - 1) T_(n-1).

    Args:
      center: centre of the Gaussian in taps from the middle of the kernel.
      sigma: standard deviation in taps, positive.
      size: number of taps `k`.
      max_order: highest derivative order.

    Returns:
      A list over order of arrays `[k, b]`.
    """
    xp = _namespace(center)
    edges = xp.arange(size + 1, dtype=center.dtype) - size / 2
    z = (edges[:, None] - center[None, :]) / sigma[None, :]
    # erf, not Phi: it is odd, so that narrow taps near the centre keep their relative precision.
    antiderivatives = [0.5 * _erf(z * _SQRT_HALF), _INV_SQRT_2PI * xp.exp(-0.5 * z * z)]
    for n in range(1, max_order):
        antiderivatives.append(-z * antiderivatives[n] - (n - 1) * antiderivatives[n - 1])
    return [t[1:] - t[:-1] for t in antiderivatives]


def sampled_profiles(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int, max_order: int
) -> list[Float[Array, "k b"]]:
    """Values at the centre of each tap; arguments and result as of `integrated_profiles`."""
    xp = _namespace(center)
    taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
    z = (taps[:, None] - center[None, :]) / sigma[None, :]
    values = [_INV_SQRT_2PI * xp.exp(-0.5 * z * z) / sigma[None, :]]
    values.append(-z * values[0])
    for n in range(1, max_order):
        values.append(-z * values[n] - n * values[n - 1])
    return values


def discrete_profiles(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int, max_order: int
) -> list[Float[Array, "k b"]]:
    """Lindeberg's discrete Gaussian `exp(-s) I_n(s)`, `s = sigma**2`, and its finite differences.

    Centres lie on taps or on the edges between them (others are rounded). Differences are staggered: of
    even order about a tap and of odd order about an edge they are plain, the others are averaged over the
    two neighbours, so that a first derivative is a central difference about a tap and a one-sided one about
    an edge. Other arguments and the result as of `integrated_profiles`. (Lindeberg, 1990: the kernel solves
    the heat equation with the second difference, hence `dP_n/dsigma = sigma P_(n+2)` here as well.)
    """
    level, sums = _sum_waves(center, sigma, size, max_order)
    return [level[None, :] + sums[0], *sums[1:]]


def _sum_waves(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int, max_order: int
) -> tuple[Float[Array, " b"], list[Float[Array, "k b"]]]:
    """The inverse Fourier transform that discrete profiles are: a constant of order 0, and all that varies.

    By the trapezoidal rule, as far as the spectrum of a wide Gaussian reaches: exact but for images one
    period, at least seven widths, away.
    """
    xp = _namespace(center)
    taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
    offset = 0.5 * xp.round(2.0 * (taps[:, None] - center[None, :]))
    on_edge = xp.abs(offset[:1] % 1.0 - 0.5) < 0.25
    half = 4 * size + 8
    rounds = -(-(half + 1) // _MOST_WAVES)
    together = -(-(half + 1) // rounds)
    number = xp.arange(rounds * together, dtype=center.dtype)[:, None]
    step = (xp.minimum(1.0, 12.0 / (math.pi * sigma)) * (math.pi / half))[None, :]
    share = xp.where((number == 0) | (number == half), 0.5, xp.where(number > half, 0.0, 1.0))
    transfers = [
        transfer.reshape(rounds, together, -1)
        for transfer in _transfers(number * step, share * (step / math.pi), sigma, on_edge, max_order)
    ]
    # From one frequency to the next every wave turns by the same angle: 1 - cos, and sin, of that.
    straight, aside = 2.0 * _sine(0.5 * step * offset) ** 2, _sine(step * offset)
    if xp is jnp:
        transfers, straight, aside = materialize((transfers, straight, aside))

    def add(i: Any, state: tuple[Any, Any, list[Any]]) -> tuple[Any, Any, list[Any]]:
        fall, sine, sums = state
        now = [transfer[i] for transfer in transfers]
        for m in range(together):
            cosine = 1.0 - fall
            waves = [-fall, *([sine, cosine] * max_order)[:max_order]]
            sums = [
                so_far + transfer[m : m + 1] * wave
                for so_far, transfer, wave in zip(sums, now, waves, strict=True)
            ]
            fall, sine = fall + straight * cosine + aside * sine, sine - straight * sine + aside * cosine
        return fall, sine, sums

    nothing = 0.0 * (offset + sigma[None, :])
    state = (nothing, nothing, [nothing] * (max_order + 1))
    if xp is jnp:
        state = lax.fori_loop(0, rounds, add, state)
    else:
        for i in range(rounds):
            state = add(i, state)
    # Term by term: summed over an axis, XLA's reductions for CPUs were seen to be wrong where a factor is
    # broadcast and the batch large (jax 0.10.2).
    level = sum_arrays(transfers[0][i, m] for i in range(rounds) for m in range(together))
    return level, state[2]


def _transfers(
    angle: Float[Array, "f b"],
    share: Float[Array, "f b"],
    sigma: Float[Array, " b"],
    on_edge: Bool[Array, "1 b"],
    max_order: int,
) -> list[Float[Array, "f b"]]:
    """Spectrum of each order at angles to half a turn, with the sign of the wave it goes with."""
    xp = _namespace(sigma)
    decay = 2.0 * sigma[None, :] * _sine(0.5 * angle)
    spectrum = share * xp.exp(-0.5 * decay**2)
    averaging = 1.0 - 2.0 * _sine(0.25 * angle) ** 2
    out = []
    for n in range(max_order + 1):
        averaged = on_edge if n % 2 == 0 else ~on_edge
        sign = -1.0 if n % 4 in (1, 2) else 1.0
        out.append(sign * spectrum * decay**n * xp.where(averaged, averaging, 1.0))
    return out


def _sine(angle: Any) -> Any:
    """Sine to a quarter turn by its Taylor series: XLA's own, of any angle, takes CPUs many times as long."""
    square, series = angle * angle, 0.0
    for n in reversed(range(7 if angle.dtype == np.float32 else 12)):
        series = series * square + (-1.0) ** n / math.factorial(2 * n + 1)
    return angle * series


def integrated_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], profile: Float[Array, "k b"]
) -> Float[Array, "k b"]:
    """The profile of order 0 less a constant.

    Where the Gaussian is much wider than the kernel the constant is almost all, and float32 has few digits
    for the rest.
    """
    xp, size = _namespace(center), len(profile)
    edges = xp.arange(size + 1, dtype=center.dtype) - size / 2
    z = (edges[:, None] - center[None, :]) / sigma[None, :]
    # Inside 1, Phi by its Taylor series less the linear part.
    square, series = z * z, 0.0
    for n in reversed(range(1, 8 if z.dtype == np.float32 else 16)):
        series = series * square + (-0.5) ** n / (math.factorial(n) * (2 * n + 1))
    wide = (xp.abs(z[:1]) < 1.0) & (xp.abs(z[-1:]) < 1.0)
    antiderivative = _INV_SQRT_2PI * z * square * series
    return xp.where(wide, antiderivative[1:] - antiderivative[:-1], profile)


def sampled_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], profile: Float[Array, "k b"]
) -> Float[Array, "k b"]:
    """The sampled profile of order 0 less a constant; see `integrated_variation`."""
    xp, size = _namespace(center), len(profile)
    taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
    z = (taps[:, None] - center[None, :]) / sigma[None, :]
    return _INV_SQRT_2PI * xp.expm1(-0.5 * z * z) / sigma[None, :]


def discrete_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], profile: Float[Array, "k b"]
) -> Float[Array, "k b"]:
    """The discrete profile of order 0 less a constant; see `integrated_variation`."""
    return _sum_waves(center, sigma, len(profile), 0)[1][0]


PROFILES: Mapping[str, Profiles] = MappingProxyType(
    {"integrated": integrated_profiles, "sampled": sampled_profiles, "discrete": discrete_profiles}
)
"""Profile functions by name."""

VARIATIONS: Mapping[str, Callable[[Any, Any, Any], Any]] = MappingProxyType(
    {"integrated": integrated_variation, "sampled": sampled_variation, "discrete": discrete_variation}
)
"""Of each, the profile of order 0 less a constant."""
