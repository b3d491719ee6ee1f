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
    xp = _namespace(center)
    taps = xp.arange(size, dtype=center.dtype) - (size - 1) / 2
    offset = 0.5 * xp.round(2.0 * (taps[:, None] - center[None, :]))
    on_edge = xp.abs(offset[0] % 1.0 - 0.5) < 0.25
    # Inverse Fourier transform by the trapezoidal rule, as far as the spectrum of a wide Gaussian reaches:
    # exact but for images one period, at least seven widths, away.
    half = 4 * size + 8
    step = xp.minimum(1.0, 12.0 / (math.pi * sigma)) * (math.pi / half)

    def add_frequency(i: Any, profiles: list[Any]) -> list[Any]:
        angle = i * step
        decay = 2.0 * sigma * xp.sin(0.5 * angle)
        end = xp.where((i == 0) | (i == half), 0.5, 1.0)
        spectrum = end * (step / math.pi) * xp.exp(-0.5 * decay**2)
        phase = angle[None, :] * offset
        waves = (xp.cos(phase), -xp.sin(phase))
        out = []
        for n, profile in enumerate(profiles):
            averaged = on_edge if n % 2 == 0 else ~on_edge
            transfer = spectrum * decay**n * xp.where(averaged, xp.cos(0.5 * angle), 1.0)
            sign = -1.0 if n % 4 > 1 else 1.0
            out.append(profile + sign * transfer[None, :] * waves[n % 2])
        return out

    profiles = [xp.zeros_like(offset) + 0.0 * sigma[None, :] for _ in range(max_order + 1)]
    if xp is jnp:
        # In a loop: summed over an axis, XLA's reductions for CPUs were seen to be wrong where a factor is
        # broadcast and the batch large (jax 0.10.2).
        return lax.fori_loop(0, half + 1, lambda i, p: add_frequency(i.astype(center.dtype), p), profiles)
    for i in range(half + 1):
        profiles = add_frequency(i, profiles)
    return profiles


PROFILES: Mapping[str, Profiles] = MappingProxyType(
    {"integrated": integrated_profiles, "sampled": sampled_profiles, "discrete": discrete_profiles}
)
"""Profile functions by name."""
