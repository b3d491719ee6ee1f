"""Models given as a basis function: seeds from a list of nodes, derivatives by automatic differentiation."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dogfit.kernels.types import Batch, Image


@dataclass(frozen=True)
class SearchRange:
    """Range of a search parameter, and the values it is tried at.

    Attributes:
      low: lower bound.
      high: upper bound.
      nodes: number of values tried for a start, evenly from end to end.
    """

    low: float
    high: float
    nodes: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range must be finite with low < high, got {self.low} to {self.high}")
        if self.nodes < 1:
            raise ValueError(f"a range needs at least 1 node, got {self.nodes}")

    def values(self) -> np.ndarray:
        """The values tried."""
        if self.nodes == 1:
            return np.array([(self.low + self.high) / 2])
        return np.linspace(self.low, self.high, self.nodes)


@dataclass(frozen=True)
class CustomModel:
    """Static description of a model by its basis.

    Attributes:
      basis: from tap coordinates x and y (each `[ky, kx]`, taps from the middle, y down) and one scalar per
        search parameter to the basis functions, a sequence of images `[ky, kx]`; traceable by JAX.
      ranges: search parameters.
      gains: number of basis functions.
    """

    basis: Callable[..., Sequence[Float[Array, "ky kx"]]]
    ranges: tuple[tuple[str, SearchRange], ...]
    gains: int

    @property
    def names(self) -> tuple[str, ...]:
        """Search parameters."""
        return tuple(name for name, _ in self.ranges)

    @property
    def is_searched(self) -> tuple[bool, ...]:
        """All parameters are searched continuously."""
        return (True,) * len(self.ranges)

    @property
    def max_step(self) -> tuple[float, ...]:
        """Longest step of the search, in units of `scale`."""
        return (1.0,) * len(self.ranges)

    def scale(self, point: list[Batch]) -> list[Batch]:
        """Unit of each search parameter: the spacing of its nodes.

        Args:
          point: search parameters.

        Returns:
          A unit per parameter.
        """
        return [
            jnp.full_like(value, (r.high - r.low) / max(r.nodes, 4))
            for value, (_, r) in zip(point, self.ranges, strict=True)
        ]

    def images(self, point: list[Batch], shape: tuple[int, int]) -> list[Image]:
        """Basis functions as images, not centred.

        Args:
          point: search parameters.
          shape: number of taps along y and x.

        Returns:
          An image per function.

        Raises:
          ValueError: if the basis returns other shapes, or not one per gain.
        """
        ky, kx = shape
        dtype = point[0].dtype
        x = jnp.broadcast_to(jnp.arange(kx, dtype=dtype)[None, :] - (kx - 1) / 2, (ky, kx))
        y = jnp.broadcast_to(jnp.arange(ky, dtype=dtype)[:, None] - (ky - 1) / 2, (ky, kx))
        batched = jax.vmap(lambda *values: tuple(self.basis(x, y, *values)), in_axes=-1, out_axes=-1)
        images = batched(*point)
        wanted = [(ky, kx, *point[0].shape)] * self.gains
        if [image.shape for image in images] != wanted:
            given = ", ".join(str(image.shape[:-1]) for image in images)
            raise ValueError(
                f"the basis must return {self.gains} images of shape ({ky}, {kx}), one per gain, got {given}"
            )
        return list(images)

    def varying_images(self, point: list[Batch], shape: tuple[int, int]) -> list[tuple[Image, Batch]]:
        """Basis functions as images, with 0 for the constant that was taken off each: none.

        Args:
          point: search parameters.
          shape: number of taps along y and x.

        Returns:
          An image and a constant per function.
        """
        return [(image, jnp.zeros_like(point[0])) for image in self.images(point, shape)]

    @functools.cached_property
    def nodes(self) -> np.ndarray:
        """Search points tried, `[p, m]`."""
        axes = [r.values() for _, r in self.ranges]
        return np.array(list(itertools.product(*axes))).T
