"""The network: a sigmoid code, and a decoder that reads the code through Fourier features."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Params = Any  # nested dict of arrays: an ordinary pytree


class Mlp(nnx.Module):
    """Dense layers with ReLU between them."""

    def __init__(self, widths: Sequence[int], rngs: nnx.Rngs):
        self.layers = nnx.List(
            [
                nnx.Linear(a, b, kernel_init=nnx.initializers.he_uniform(), rngs=rngs)
                for a, b in pairwise(widths)
            ]
        )

    def __call__(self, x: Float[Array, "n a"]) -> Float[Array, "n b"]:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Network(nnx.Module):
    """Kernel of `taps` numbers -> code in [0, 1]^code_dim -> centred kernel of unit norm.

    A bare scalar is a poor input for an MLP, which then learns slowly varying curves only; sines and cosines
    of `frequencies` multiples of half a turn let the decoder's curve bend as often as the kernels ask for.
    """

    def __init__(self, taps: int, widths: Sequence[int], code_dim: int, frequencies: int, *, rngs: nnx.Rngs):
        self.frequencies = frequencies
        self.encoder = Mlp((taps, *widths, code_dim), rngs)
        self.decoder = Mlp((code_dim * (1 + 2 * frequencies), *reversed(widths), taps), rngs)

    def logit(self, kernels: Float[Array, "n taps"]) -> Float[Array, "n code"]:
        # A unit-norm kernel has taps of size 1/sqrt(taps); the layers want inputs of size one.
        return self.encoder(kernels * np.sqrt(kernels.shape[-1]))

    def encode(self, kernels: Float[Array, "n taps"]) -> Float[Array, "n code"]:
        return nnx.sigmoid(self.logit(kernels))

    def decode(self, code: Float[Array, "m code"]) -> Float[Array, "m taps"]:
        multiples = np.pi * np.arange(1, self.frequencies + 1, dtype=np.float32)
        angle = code[..., None] * multiples[None, None, :]
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        features = jnp.concatenate([2 * code - 1, waves.reshape(len(code), -1)], axis=-1)
        return unit(self.decoder(features))


def unit(kernels: Float[Array, "n taps"]) -> Float[Array, "n taps"]:
    """Remove each row's mean and scale it to unit norm."""
    centred = kernels - jnp.mean(kernels, axis=-1, keepdims=True)
    # The floor keeps the gradient finite for a row that is constant.
    return centred * jax.lax.rsqrt(jnp.sum(centred**2, axis=-1, keepdims=True) + 1e-12)


def code_grid(m: int, code_dim: int) -> Float[np.ndarray, "m code"]:
    """`m` codes spread evenly over [0, 1]^code_dim: equal steps in one dimension, a lattice above."""
    index = np.arange(m)[:, None] + 0.5
    if code_dim == 1:
        return (index / m).astype(np.float32)
    # Roberts' R_d sequence: steps are powers of 1/g with g^(d+1) = g + 1, the golden ratio generalised.
    g = 2.0
    for _ in range(50):
        g = (1 + g) ** (1 / (code_dim + 1))
    return (index * g ** -np.arange(1, code_dim + 1)[None, :] % 1).astype(np.float32)
