"""The network: an encoder to a sigmoid code, and a decoder that reads it through Fourier features."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dogfit.autoencoder.config import AutoencoderConfig

Params = Any  # nested dict of arrays: an ordinary pytree

HE = nnx.initializers.he_uniform()


class Mlp(nnx.Module):
    """Dense layers with ReLU between them.

    With `even` the first layer has no bias and is followed by |.| instead, so that x and -x give the same.
    """

    def __init__(self, widths: Sequence[int], dtype: Any, *, even: bool = False, rngs: nnx.Rngs):
        self.even = even
        self.layers = nnx.List(
            [
                nnx.Linear(a, b, use_bias=not (even and i == 0), kernel_init=HE, dtype=dtype, rngs=rngs)
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )

    def __call__(self, x: Float[Array, "n a"]) -> Float[Array, "n b"]:
        for i, layer in enumerate(self.layers[:-1]):
            x = jnp.abs(layer(x)) if self.even and i == 0 else nnx.relu(layer(x))
        return self.layers[-1](x)


class ConvEncoder(nnx.Module):
    """3x3 convolutions that halve the kernel, then dense layers."""

    def __init__(self, sides: Sequence[int], config: AutoencoderConfig, dtype: Any, *, rngs: nnx.Rngs):
        self.sides = tuple(sides)
        self.even = config.tie_sign
        self.convs = nnx.List(
            [
                nnx.Conv(
                    a,
                    b,
                    (3, 3),
                    strides=2,
                    use_bias=not (self.even and i == 0),
                    kernel_init=HE,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, (a, b) in enumerate(pairwise((1, *config.channels)))
            ]
        )
        flat = sides[-1] ** 2 * config.channels[-1]
        self.dense = Mlp((flat, *config.widths, config.code_dim), dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n taps"]) -> Float[Array, "n code"]:
        x = x.reshape(len(x), self.sides[0], self.sides[0], 1)
        for i, conv in enumerate(self.convs):
            x = jnp.abs(conv(x)) if self.even and i == 0 else nnx.relu(conv(x))
        return self.dense(x.reshape(len(x), -1))


class ConvDecoder(nnx.Module):
    """Dense layers, then enlargements, each followed by a 3x3 convolution."""

    def __init__(
        self, features: int, sides: Sequence[int], config: AutoencoderConfig, dtype: Any, *, rngs: nnx.Rngs
    ):
        self.sides = tuple(sides)
        flat = sides[-1] ** 2 * config.channels[-1]
        self.dense = Mlp((features, *reversed(config.widths), flat), dtype, rngs=rngs)
        self.convs = nnx.List(
            [
                nnx.Conv(a, b, (3, 3), kernel_init=HE, dtype=dtype, rngs=rngs)
                for a, b in pairwise((*reversed(config.channels), 1))
            ]
        )

    def __call__(self, x: Float[Array, "m features"]) -> Float[Array, "m taps"]:
        x = self.dense(x).reshape(len(x), self.sides[-1], self.sides[-1], -1)
        for side, conv in zip(reversed(self.sides[:-1]), self.convs, strict=True):
            x = nnx.relu(x)
            x = conv(jax.image.resize(x, (len(x), side, side, x.shape[-1]), "linear"))
        return x.reshape(len(x), -1)


class Network(nnx.Module):
    """Autoencoder of kernels of `taps` numbers, by a code in [0, 1]^code_dim, to centered unit-norm kernels.

    A bare scalar is a poor input for an MLP, which then learns slowly varying curves only; sines and cosines
    of `frequencies` multiples of half a turn let the decoder's curve bend as often as the kernels ask for.
    Weights, codes and kernels are float32 for every `config.compute_dtype`.
    """

    def __init__(self, taps: int, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.frequencies = config.frequencies
        dtype = jnp.dtype(config.compute_dtype)
        features = config.code_dim * (1 + 2 * config.frequencies)
        if config.channels:
            sides = [math.isqrt(taps)]
            for _ in config.channels:
                sides.append(-(-sides[-1] // 2))
            self.encoder = ConvEncoder(sides, config, dtype, rngs=rngs)
            self.decoder = ConvDecoder(features, sides, config, dtype, rngs=rngs)
        else:
            widths, even = config.widths, config.tie_sign
            self.encoder = Mlp((taps, *widths, config.code_dim), dtype, even=even, rngs=rngs)
            self.decoder = Mlp((features, *reversed(widths), taps), dtype, rngs=rngs)

    def logit(self, kernels: Float[Array, "n taps"]) -> Float[Array, "n code"]:
        """Codes before the sigmoid, of kernels `[n, taps]`."""
        # A unit-norm kernel has taps of size 1/sqrt(taps); the layers want inputs of size one.
        return self.encoder(kernels * np.sqrt(kernels.shape[-1])).astype(jnp.float32)

    def encode(self, kernels: Float[Array, "n taps"]) -> Float[Array, "n code"]:
        """Codes in [0, 1] of kernels `[n, taps]`, centered and of unit norm."""
        return nnx.sigmoid(self.logit(kernels))

    def decode(self, code: Float[Array, "m code"]) -> Float[Array, "m taps"]:
        """Centered unit-norm kernels at codes `[m, code]`."""
        multiples = np.pi * np.arange(1, self.frequencies + 1, dtype=np.float32)
        angle = code[..., None] * multiples[None, None, :]
        waves = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        features = jnp.concatenate([2 * code - 1, waves.reshape(len(code), -1)], axis=-1)
        return normalize(self.decoder(features).astype(jnp.float32))


def normalize(kernels: Float[Array, "n taps"]) -> Float[Array, "n taps"]:
    """Remove each row's mean and scale it to unit norm."""
    centered = kernels - jnp.mean(kernels, axis=-1, keepdims=True)
    # The floor keeps the gradient finite for a row that is constant.
    return centered * jax.lax.rsqrt(jnp.sum(centered**2, axis=-1, keepdims=True) + 1e-12)


def code_grid(m: int, code_dim: int) -> Float[np.ndarray, "m code"]:
    """Spread `m` codes evenly over [0, 1]^code_dim: equal steps in one dimension, a lattice above."""
    index = np.arange(m)[:, None] + 0.5
    if code_dim == 1:
        return (index / m).astype(np.float32)
    # Roberts' R_d sequence: steps are powers of 1/g with g^(d+1) = g + 1, the golden ratio generalized.
    g = 2.0
    for _ in range(50):
        g = (1 + g) ** (1 / (code_dim + 1))
    return (index * g ** -np.arange(1, code_dim + 1)[None, :] % 1).astype(np.float32)
