"""One mesh over all devices of all processes, its two shardings, and the layout of uneven rows on it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from dogfit.errors import DogfitError

DATA = "data"
"""Name of the mesh's axis."""


def check_devices() -> None:
    """Check that JAX has a device of the kind it was told to use.

    Raises:
      DogfitError: if it has none, with what to do.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0]})" if str(error) else ""
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        raise DogfitError(
            f"JAX was told to use {asked!r} and has no such device{reason}; unset "
            "JAX_PLATFORMS to use what there is, or install JAX for that device"
        ) from error


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh of one axis, named "data".

    Args:
      devices: the devices of the mesh; all devices of all processes when None.

    Returns:
      The mesh.

    Example:
      >>> from dogfit.devices import data_mesh
      >>> data_mesh().axis_names
      ('data',)
    """
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (DATA,), devices=chosen, axis_types=(AxisType.Auto,))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Make the sharding that splits the first axis over the mesh.

    Args:
      mesh: see `data_mesh`. The length of the axis must be a multiple of `mesh.size`.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """Make the sharding that keeps a full copy on every device.

    Args:
      mesh: see `data_mesh`.

    Returns:
      The sharding.
    """
    return NamedSharding(mesh, PartitionSpec())


def place(array: Shaped[np.ndarray, "..."], sharding: NamedSharding) -> Shaped[Array, "..."]:
    """Put an array of the host on the devices of a mesh that may span processes.

    Args:
      array: the same in every process; each copies no more of it than its own devices hold.
      sharding: where its parts go.

    Returns:
      The array over the mesh.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


class RowLayout(NamedTuple):
    """Places of rows that the processes of a mesh hold in uneven shards, each on its own devices.

    All devices have room for `block` rows, so that one array can span them; room that a device does not fill
    is zero. The devices are listed in the order of their rows.
    """

    first: tuple[int, ...]
    """First row on each device."""
    place: tuple[int, ...]
    """Position in the array at which each device's room begins."""
    block: int
    """Rows that each device has room for."""
    n: int
    """Rows in all."""

    @property
    def even(self) -> bool:
        """True if every row lies at the position of its own number."""
        after = (*self.first[1:], self.n)
        placed = zip(self.first, after, self.place, strict=True)
        return all(row in (stop, place) for row, stop, place in placed)

    def places(self, row: Int[Array, " b"]) -> Int[Array, " b"]:
        """Find the positions of rows in the array.

        Args:
          row: numbers of rows.

        Returns:
          Their positions on the first axis of what `place_rows` makes.
        """
        if self.even:
            return row
        first, place = jnp.asarray(self.first), jnp.asarray(self.place)
        device = jnp.searchsorted(first, row, side="right") - 1
        return row - first[device] + place[device]


def mesh_processes(mesh: Mesh) -> list[int]:
    """List the processes whose devices are in a mesh.

    Args:
      mesh: see `data_mesh`.

    Returns:
      Their numbers, ascending.
    """
    return sorted({device.process_index for device in mesh.devices.flat})


def row_layout(counts: Sequence[int], mesh: Mesh) -> RowLayout:
    """Spread the rows of each process over its own devices, numbered process by process.

    Args:
      counts: rows of the mesh's first, second, ... process.
      mesh: the devices.

    Returns:
      The layout.
    """
    processes = [device.process_index for device in mesh.devices.flat]
    of_process = [[at for at, p in enumerate(processes) if p == one] for one in mesh_processes(mesh)]
    shards = list(zip(counts, of_process, strict=True))
    block = max(1, *(-(-count // len(devices)) for count, devices in shards))
    first: list[int] = []
    start = 0
    for count, devices in shards:
        first += [start + min(number * block, count) for number in range(len(devices))]
        start += count
    places = tuple(at * block for devices in of_process for at in devices)
    return RowLayout(tuple(first), places, block, start)


def place_rows(
    own: Shaped[np.ndarray, "c ..."], start: int, layout: RowLayout, mesh: Mesh
) -> Shaped[Array, "m ..."]:
    """Make one array over the mesh of the rows that its processes hold.

    Args:
      own: this process's rows `[c, ...]`.
      start: number of the first of them.
      layout: see `row_layout`.
      mesh: the devices.

    Returns:
      The array `[mesh.size * layout.block, ...]`.
    """

    def on_device(index: Any) -> np.ndarray:
        device = layout.place.index(index[0].start or 0)
        begin = layout.first[device] - start
        here = own[begin : begin + layout.block]
        if len(here) == layout.block:
            return here
        return np.concatenate([here, np.zeros((layout.block - len(here), *own.shape[1:]), own.dtype)])

    shape = (mesh.size * layout.block, *own.shape[1:])
    return jax.make_array_from_callback(shape, row_sharding(mesh), on_device)


def pad_rows(
    array: Shaped[np.ndarray, "n ..."], multiple: int
) -> tuple[Shaped[np.ndarray, "m ..."], Bool[np.ndarray, " m"]]:
    """Append zero rows until the number of rows is a multiple of `multiple`.

    Args:
      array: rows `[n, ...]`.
      multiple: at least 1; the result has at least as many rows.

    Returns:
      The padded array, and a mask that is True on the rows of the input.

    Raises:
      ValueError: if `multiple` is below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    n = len(array)
    extra = max(-(-n // multiple), 1) * multiple - n
    padded = np.concatenate([array, np.zeros((extra, *array.shape[1:]), array.dtype)])
    return padded, np.arange(n + extra) < n
