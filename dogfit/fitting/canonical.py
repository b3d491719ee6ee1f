"""Canonical form of every kernel, so that turning or mirroring a kernel turns its fit, and no more.

A search from a dictionary meets a kernel and its mirror image by different roundings, and now and then ends
in different optima. So kernels are first mirrored and transposed until most of their energy lies to the
right, below, and further to the right than below; all images of one kernel are then the same numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from dogfit.kernels.linalg import largest_tap, sum_arrays, sum_taps
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.types import Image


class CanonicalTransform(NamedTuple):
    """Symmetries that bring each kernel to its canonical form: mirrored along x, along y, then transposed."""

    mirror_x: Bool[Array, " b"]
    mirror_y: Bool[Array, " b"]
    swap: Bool[Array, " b"]

    def apply(self, images: Image) -> Image:
        """Transform images to their canonical form."""
        images = jnp.where(self.mirror_x[None, None, :], images[:, ::-1], images)
        images = jnp.where(self.mirror_y[None, None, :], images[::-1], images)
        if images.shape[0] != images.shape[1]:
            return images
        return jnp.where(self.swap[None, None, :], jnp.swapaxes(images, 0, 1), images)

    def undo_point(self, model: GaussianModel, point: Float[Array, "p b"]) -> Float[Array, "p b"]:
        """Turn search points back to those of the kernels as given."""
        at = dict(zip(model.names, point, strict=True))
        x0, y0 = self._swapped(at["x0"], at["y0"])
        at |= {"x0": jnp.where(self.mirror_x, -x0, x0), "y0": jnp.where(self.mirror_y, -y0, y0)}
        if model.elliptic:
            e1 = jnp.where(self.swap, -at["e1"], at["e1"])
            at |= {"e1": e1, "e2": jnp.where(self.mirror_x ^ self.mirror_y, -at["e2"], at["e2"])}
        return jnp.stack([at[name] for name in model.names])

    def undo_gains(
        self, model: GaussianModel, gains: Sequence[Float[Array, " b"]]
    ) -> list[Float[Array, " b"]]:
        """Turn gains back to those of the kernels as given."""
        if model.order == 0:
            return list(gains)
        first, last = self._swapped(gains[0], gains[-1])
        if model.order == 1:
            return [jnp.where(self.mirror_x, -first, first), jnp.where(self.mirror_y, -last, last)]
        return [first, jnp.where(self.mirror_x ^ self.mirror_y, -gains[1], gains[1]), last]

    def undo_at_bound(self, model: GaussianModel, at_bound: Bool[Array, "p b"]) -> Bool[Array, "p b"]:
        """Turn flags of search parameters on a bound back to those of the kernels as given."""
        x0, y0 = self._swapped(at_bound[0], at_bound[1])
        return jnp.concatenate([x0[None], y0[None], at_bound[2 : len(model.names)]])

    def _swapped(self, one: Array, other: Array) -> tuple[Array, Array]:
        return jnp.where(self.swap, other, one), jnp.where(self.swap, one, other)


def canonical_transform(kernels: Image, weights: Image | None) -> CanonicalTransform:
    """Find the transform of each kernel from where the energy about its mean lies."""
    counted = jnp.ones_like(kernels) if weights is None else weights
    safe = jnp.where((counted > 0) & jnp.isfinite(kernels), kernels, 0.0)
    largest = largest_tap(jnp.abs(safe))
    safe = safe / jnp.where(largest > 0, largest, 1.0)[None, None, :]
    everything = sum_taps(counted)
    mean = sum_taps(counted * safe) / jnp.where(everything > 0, everything, 1.0)
    energy = lax.stop_gradient(counted * (safe - mean[None, None, :]) ** 2)

    def excess(energy: Float[Array, "m k b"]) -> Float[Array, " b"]:
        """Moment of the energy along the second axis; its sign turns exactly with that axis."""
        columns = sum_arrays(row + mirrored for row, mirrored in zip(energy, energy[::-1], strict=True))
        away = jnp.arange(columns.shape[0], dtype=columns.dtype) - (columns.shape[0] - 1) / 2
        return sum_arrays(
            weight * column for weight, column in zip(away, columns - columns[::-1], strict=True)
        )

    along_x, along_y = excess(energy), excess(jnp.swapaxes(energy, 0, 1))
    square = kernels.shape[0] == kernels.shape[1]
    return CanonicalTransform(along_x < 0, along_y < 0, (jnp.abs(along_x) < jnp.abs(along_y)) & square)
