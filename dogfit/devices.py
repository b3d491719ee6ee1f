"""One mesh over all devices of all processes, its two shardings, and padding of uneven row counts."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped

DATA = "data"


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-axis mesh, named "data", over `devices` (all devices of all processes when None)."""
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (DATA,), devices=chosen, axis_types=(AxisType.Auto,))


def rows(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the first axis over the mesh; its length must be a multiple of `mesh.size`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Sharding that keeps a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place(array: Shaped[np.ndarray, "..."], sharding: NamedSharding) -> Shaped[Array, "..."]:
    """Put an array of the host on the devices of a mesh that may span processes.

    Every process gives the same array, and copies no more of it than its own devices hold.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def pad_rows(
    array: Shaped[np.ndarray, "n ..."], multiple: int
) -> tuple[Shaped[np.ndarray, "m ..."], Bool[np.ndarray, " m"]]:
    """Append zero rows until the row count is a multiple of `multiple`; at least `multiple` rows result.

    Returns:
      The padded array and a mask that is True on the rows of the input.

    Raises:
      ValueError: if `multiple` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    n = len(array)
    extra = max(-(-n // multiple), 1) * multiple - n
    padded = np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)])
    return padded, np.arange(n + extra) < n
