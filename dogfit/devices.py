"""One mesh over all devices of all processes, its two shardings, and padding of uneven row counts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

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


class Deal(NamedTuple):
    """Where rows lie that the processes of a mesh hold in uneven shares, each on its own devices.

    All devices have room for `block` rows, so that one array can span them; what a device does not fill is
    zero. The devices are listed in the order of their rows.
    """

    first: tuple[int, ...]
    """The first row that lies on each device."""
    place: tuple[int, ...]
    """Where in the array each device's room begins."""
    block: int
    n: int
    """Rows in all."""

    @property
    def even(self) -> bool:
        """Whether every row lies at its own number."""
        after = (*self.first[1:], self.n)
        dealt = zip(self.first, after, self.place, strict=True)
        return all(row in (stop, place) for row, stop, place in dealt)

    def places(self, row: Int[Array, " b"]) -> Int[Array, " b"]:
        """Where in the array rows lie, by their numbers."""
        if self.even:
            return row
        first, place = jnp.asarray(self.first), jnp.asarray(self.place)
        device = jnp.searchsorted(first, row, side="right") - 1
        return row - first[device] + place[device]


def members(mesh: Mesh) -> list[int]:
    """Numbers of the processes whose devices are in the mesh, ascending."""
    return sorted({device.process_index for device in mesh.devices.flat})


def deal(counts: Sequence[int], mesh: Mesh) -> Deal:
    """Deal `counts[i]` rows of the mesh's i-th process to its devices, numbered process by process."""
    processes = [device.process_index for device in mesh.devices.flat]
    of_process = [[at for at, p in enumerate(processes) if p == one] for one in members(mesh)]
    shares = list(zip(counts, of_process, strict=True))
    block = max(1, *(-(-count // len(devices)) for count, devices in shares))
    first: list[int] = []
    start = 0
    for count, devices in shares:
        first += [start + min(number * block, count) for number in range(len(devices))]
        start += count
    return Deal(tuple(first), tuple(at * block for devices in of_process for at in devices), block, start)


def place_dealt(
    own: Shaped[np.ndarray, "c ..."], start: int, dealt: Deal, mesh: Mesh
) -> Shaped[Array, "m ..."]:
    """One array over the mesh; each process gives its own rows, of which the first has number `start`."""

    def on_device(index: Any) -> np.ndarray:
        device = dealt.place.index(index[0].start or 0)
        begin = dealt.first[device] - start
        here = own[begin : begin + dealt.block]
        if len(here) == dealt.block:
            return here
        return np.concatenate([here, np.zeros((dealt.block - len(here), *own.shape[1:]), own.dtype)])

    shape = (mesh.size * dealt.block, *own.shape[1:])
    return jax.make_array_from_callback(shape, rows(mesh), on_device)


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
