"""Epoch shuffles that are computed where they are needed and stored nowhere."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt, UInt32

ROUNDS = 8


def shuffled_rows(
    epoch: Int[Array, " b"], position: Int[Array, " b"], key: UInt32[Array, "2"], n: int
) -> Int[Array, " b"]:
    """Rows at some positions of the shuffles of `n` rows; each epoch holds every row at exactly one position.

    A Feistel network permutes the numbers below the next power of two; those that land at `n` or above are
    sent through again until they fall below (cycle walking: Black and Rogaway, Ciphers with Arbitrary Finite
    Domains, 2002). A batch costs its own length, for any `n`: no sort, no array of all rows to carry along.
    At ten million rows `jax.random.permutation` takes half a gigabyte and far more time than the default
    training (`benchmarks/shuffle.py`, docs/autoencoder.md).

    Args:
      epoch: number of the shuffle, for each entry of the batch `[b]`.
      position: position in that shuffle, in [0, n) `[b]`.
      key: two random words.
      n: rows; at most 2^31.

    Returns:
      Row numbers in [0, n), int32 `[b]`.
    """
    bits = max((n - 1).bit_length(), 2)
    low = bits // 2
    low_mask, high_mask = jnp.uint32((1 << low) - 1), jnp.uint32((1 << (bits - low)) - 1)
    word = _mix(epoch.astype(jnp.uint32) ^ key[0])

    def permute(x: UInt[Array, " b"]) -> UInt[Array, " b"]:
        left, right = x >> low, x & low_mask
        for step in range(ROUNDS):
            salt = _mix(word + jnp.uint32(step)) ^ key[1]
            if step % 2:
                right = right ^ (_mix(left ^ salt) & low_mask)
            else:
                left = left ^ (_mix(right ^ salt) & high_mask)
        return (left << low) | right

    return jax.lax.while_loop(
        lambda x: jnp.any(x >= n),
        lambda x: jnp.where(x >= n, permute(x), x),
        permute(position.astype(jnp.uint32)),
    ).astype(jnp.int32)


def _mix(x: UInt[Array, " b"]) -> UInt[Array, " b"]:
    """Hash words with the finalizer of MurmurHash3: each bit of the input changes each of the output."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
