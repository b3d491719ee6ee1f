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
from jaxtyping import Array, Float

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)

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
    waves = _Waves(center, sigma, size)
    xp = waves.xp

    def at_frequency(angle: Any, spectrum: Any) -> list[Any]:
        decay = 2.0 * sigma * xp.sin(0.5 * angle)
        phase = angle[None, :] * waves.offset
        pair = (xp.cos(phase), -xp.sin(phase))
        out = []
        for n in range(max_order + 1):
            averaged = waves.on_edge if n % 2 == 0 else ~waves.on_edge
            transfer = spectrum * decay**n * xp.where(averaged, xp.cos(0.5 * angle), 1.0)
            out.append((-1.0 if n % 4 > 1 else 1.0) * transfer[None, :] * pair[n % 2])
        return out

    return waves.total(at_frequency, max_order + 1)


class _Waves:
    """The inverse Fourier transform that discrete profiles are, as a sum over frequencies.

    By the trapezoidal rule, as far as the spectrum of a wide Gaussian reaches: exact but for images one
    period, at least seven widths, away.
    """

    def __init__(self, center: Float[Array, " b"], sigma: Float[Array, " b"], size: int) -> None:
        self.xp = xp = _namespace(center)
        taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
        self.offset = 0.5 * xp.round(2.0 * (taps[:, None] - center[None, :]))
        self.on_edge = xp.abs(self.offset[0] % 1.0 - 0.5) < 0.25
        self._sigma, self._half = sigma, 4 * size + 8
        self._step = xp.minimum(1.0, 12.0 / (math.pi * sigma)) * (math.pi / self._half)

    def total(self, at_frequency: Callable[[Any, Any], list[Any]], count: int) -> list[Any]:
        """Sum of what a function of the angle and the spectrum there gives, `count` arrays `[k, b]`."""
        xp, half, step = self.xp, self._half, self._step

        def add(i: Any, sums: list[Any]) -> list[Any]:
            angle = i * step
            end = xp.where((i == 0) | (i == half), 0.5, 1.0)
            spectrum = end * (step / math.pi) * xp.exp(-0.5 * (2.0 * self._sigma * xp.sin(0.5 * angle)) ** 2)
            return [one + more for one, more in zip(sums, at_frequency(angle, spectrum), strict=True)]

        sums = [xp.zeros_like(self.offset) + 0.0 * self._sigma[None, :] for _ in range(count)]
        if xp is jnp:
            # In a loop: summed over an axis, XLA's reductions for CPUs were seen to be wrong where a factor
            # is broadcast and the batch large (jax 0.10.2).
            return lax.fori_loop(0, half + 1, lambda i, p: add(i.astype(self.offset.dtype), p), sums)
        for i in range(half + 1):
            sums = add(i, sums)
        return sums


def integrated_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int
) -> Float[Array, "k b"]:
    """The profile of order 0 less a constant.

    Where the Gaussian is much wider than the kernel the constant is almost all, and float32 would have few
    digits for the rest. Arguments as of `integrated_profiles`.
    """
    xp = _namespace(center)
    edges = xp.arange(size + 1, dtype=center.dtype) - size / 2
    z = (edges[:, None] - center[None, :]) / sigma[None, :]
    # Inside 1, Phi by its Taylor series less the linear part.
    square, series = z * z, 0.0
    for n in reversed(range(1, 8 if z.dtype == np.float32 else 16)):
        series = series * square + (-0.5) ** n / (math.factorial(n) * (2 * n + 1))
    wide = (xp.abs(z[:1]) < 1.0) & (xp.abs(z[-1:]) < 1.0)
    antiderivative = xp.where(wide, _INV_SQRT_2PI * z * square * series, 0.5 * _erf(z * _SQRT_HALF))
    return antiderivative[1:] - antiderivative[:-1]


def sampled_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int
) -> Float[Array, "k b"]:
    """As `integrated_variation`."""
    xp = _namespace(center)
    taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
    z = (taps[:, None] - center[None, :]) / sigma[None, :]
    return _INV_SQRT_2PI * xp.expm1(-0.5 * z * z) / sigma[None, :]


def discrete_variation(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int
) -> Float[Array, "k b"]:
    """As `integrated_variation`."""
    waves = _Waves(center, sigma, size)
    xp = waves.xp

    def at_frequency(angle: Any, spectrum: Any) -> list[Any]:
        transfer = spectrum * xp.where(waves.on_edge, xp.cos(0.5 * angle), 1.0)
        return [-2.0 * transfer[None, :] * xp.sin(0.5 * angle[None, :] * waves.offset) ** 2]

    return waves.total(at_frequency, 1)[0]


PROFILES: Mapping[str, Profiles] = MappingProxyType(
    {"integrated": integrated_profiles, "sampled": sampled_profiles, "discrete": discrete_profiles}
)
"""Profile functions by name."""

VARIATIONS: Mapping[str, Callable[[Any, Any, int], Any]] = MappingProxyType(
    {"integrated": integrated_variation, "sampled": sampled_variation, "discrete": discrete_variation}
)
"""Of each, the profile of order 0 less a constant."""
