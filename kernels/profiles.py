"""One-dimensional profiles of a Gaussian and its derivatives, integrated over each tap.

Tap `u` of `k` has its centre at `u - (k - 1) / 2` and covers one unit. With `z` the edges in units of
`sigma`, the order-n profile is the difference over each tap of

    T_0 = Phi(z),  T_1 = phi(z),  T_(n+1) = dT_n / dz = -z T_n - (n - 1) T_(n-1),

that is `sigma**n` times the integral of the n-th derivative of the Gaussian: dimensionless, and of
comparable size at every width. Two identities give all derivatives (P_n the unscaled profile):
dP_n/dcentre = -P_(n+1) and dP_n/dsigma = sigma P_(n+2).
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)


def integrated_profiles(
    center: Float[Array, " b"], sigma: Float[Array, " b"], size: int, max_order: int
) -> list[Float[Array, "k b"]]:
    """Scaled profiles of orders 0 to `max_order` (at least 1), batch on the last axis.

    Args:
      center: centre of the Gaussian in taps from the middle of the kernel.
      sigma: standard deviation in taps, positive.
      size: number of taps `k`.
      max_order: highest derivative order.

    Returns:
      A list over order of arrays `[k, b]`, each `sigma**n` times the integrated n-th derivative.
    """
    edges = jnp.arange(size + 1, dtype=center.dtype) - size / 2
    z = (edges[:, None] - center[None, :]) / sigma[None, :]
    # erf, not Phi: it is odd, so that narrow taps near the centre keep their relative precision.
    antiderivatives = [0.5 * lax.erf(z * _SQRT_HALF), _INV_SQRT_2PI * jnp.exp(-0.5 * z * z)]
    for n in range(1, max_order):
        antiderivatives.append(-z * antiderivatives[n] - (n - 1) * antiderivatives[n - 1])
    return [t[1:] - t[:-1] for t in antiderivatives]
