"""Keys of nodes, which order them by explained energy, and the largest of them."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.types import Batch

# Bits of the smallest and largest normal float32: keys are compared as floats, which is as fast as it gets.
_LEAST_KEY, _LARGEST_KEY = 0x00800000, 0x7F7FFFFF


def pack_keys(
    energies: Float[Array, "*n b"], numbers: Int[np.ndarray, "*n #b"] | Int[Array, "*n #b"], bits: int
) -> Int[Array, "*n b"]:
    """The energy of each node in fixed point, and in the lowest bits its number.

    At the price of digits that a seed does not need, no two are equal.
    """
    least, scale = _fixed_point(bits)
    fixed = least + (jnp.clip(energies, 0.0, 1.0) * scale).astype(jnp.int32)
    return (fixed << bits) | jnp.asarray(numbers, jnp.int32)


def _fixed_point(bits: int) -> tuple[int, int]:
    """Value of a key above its lowest bits for an energy of 0, and how much more it is for one of 1."""
    least = (_LEAST_KEY >> bits) + 1
    return least, (_LARGEST_KEY >> bits) - least


def largest_keys(
    keys: Int[Array, "c b"], count: int, bits: int
) -> tuple[Float[Array, "t b"], Int[Array, "t b"]]:
    """Energies and numbers of the largest keys, by repeated maximum: lax.top_k sorts on CPU."""
    values = lax.bitcast_convert_type(keys, jnp.float32)

    def next_largest(last: Batch, _: None) -> tuple[Batch, Batch]:
        best = jnp.max(jnp.where(values < last[None], values, 0.0), axis=0)
        return best, best

    found = lax.scan(next_largest, 0.0 * values[0] + jnp.inf, length=count)[1]
    keys = lax.bitcast_convert_type(found, jnp.int32)
    least, scale = _fixed_point(bits)
    energies = jnp.maximum((keys >> bits) - least, 0).astype(jnp.float32) / scale
    return energies, keys & ((1 << bits) - 1)
