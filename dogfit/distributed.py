"""Several processes, on one host or on many, at one job: start, shares, and what they tell each other.

Kernels are fitted where they are read and need no other kernel, so what fits exchange goes through JAX's
coordination service, byte for byte and without a collective. Training uses collectives, see `dogfit.devices`.

Every process must make the same calls in the same order, as with anything in JAX that spans processes.
"""

import io
import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from dogfit.errors import DogfitError

AUTO = "auto"
LOST_AFTER_S = 60
CONNECT_WITHIN_S = 300
Tree = TypeVar("Tree")

# The service keeps every value in memory, in messages of a few MiB at most.
_PIECE = 1 << 20
# A wait ends when the value comes or a process is lost, not before.
_FOREVER_MS = 10**9
# Calls are told apart by their number, since all processes make the same ones.
_calls = itertools.count()


def start(
    coordinator: str,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    lost_after_s: int = LOST_AFTER_S,
    connect_within_s: int = CONNECT_WITHIN_S,
) -> None:
    """Join the processes of one job; to be called before JAX has computed anything or listed a device.

    Args:
      coordinator: "HOST:PORT" with the address of process 0 and a free port there, the same in every process;
        or "auto" for what JAX recognises: SLURM, Open MPI, Kubernetes, Cloud TPU.
      processes: how many there are; found out with "auto".
      process_id: which one this is, from 0; found out with "auto".
      lost_after_s: a process that gave no sign of life for so many seconds is lost, and JAX ends the others.
      connect_within_s: JAX ends the process when the others have not come by then.

    Raises:
      DogfitError: no cluster is recognised.
    """
    known = coordinator != AUTO
    try:
        jax.distributed.initialize(
            coordinator if known else None,
            processes,
            process_id,
            cluster_detection_method="deactivate" if known and None not in (processes, process_id) else None,
            initialization_timeout=connect_within_s,
            heartbeat_timeout_seconds=lost_after_s,
            # Processes end together, or one of them is lost.
            shutdown_timeout_seconds=lost_after_s,
            coordinator_bind_address=coordinator if known and _is_loopback(coordinator) else None,
        )
    except ValueError as error:
        raise DogfitError(
            "no cluster was recognised (SLURM, Open MPI, Kubernetes, Cloud TPU); give --coordinator "
            f"HOST:PORT --processes N --process-id I ({error})"
        ) from error


def _is_loopback(address: str) -> bool:
    """Whether only this host can be meant: then nothing must listen to others."""
    host = address.rsplit(":", 1)[0]
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return False


def finish() -> None:
    """Part from the other processes; returns when all have come this far."""
    jax.distributed.shutdown()


def process_index() -> int:
    """Number of this process, 0 when it is alone."""
    return _state().process_id


def process_count() -> int:
    """Number of processes, 1 when this one is alone."""
    return _state().num_processes


def own_rows(n: int) -> slice:
    """This process's share of `n` rows: contiguous, in order of the processes, even to within one row."""
    return rows_of(process_index(), n)


def rows_of(index: int, n: int) -> slice:
    """The share of `n` rows of one process."""
    count = process_count()
    return slice(n * index // count, n * (index + 1) // count)


def broadcast(data: bytes = b"") -> bytes:
    """What process 0 says, in every process."""
    key = f"dogfit/{next(_calls)}"
    if process_count() == 1:
        return data
    if process_index() == 0:
        _send(key, data)
        return data
    return _receive(key)


def announce(**order: Any) -> None:
    """Tell the other processes what comes next, from process 0; they hear it with `next_order`."""
    broadcast(json.dumps(order).encode())


def next_order() -> dict[str, Any]:
    """What process 0 announces next."""
    return json.loads(broadcast())


def gather_rows(tree: Tree, *, everywhere: bool = True) -> Tree:
    """Join the rows of all processes, in order: of a `FitResult`, or of any pytree of host arrays.

    The arrays arrive bit for bit, in any dtype. The processes may have different numbers of rows.

    Args:
      tree: this process's rows, on the first axis of every array.
      everywhere: False joins them in process 0 alone; the others get back what they gave.
    """
    key = f"dogfit/{next(_calls)}"
    index, count = process_index(), process_count()
    if count == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    _send(f"{key}/{index}", _to_bytes([np.asarray(leaf) for leaf in leaves]))
    if everywhere or index == 0:
        parts = [list(_from_bytes(_receive(f"{key}/{other}"))) for other in range(count)]
        tree = jax.tree.unflatten(structure, [np.concatenate(column) for column in zip(*parts, strict=True)])
    wait_for_all()
    if index == 0:
        _client().key_value_delete(f"{key}/")
    return tree


def scatter_rows(array: np.ndarray | None = None) -> np.ndarray:
    """This process's share of rows that process 0 has, bit for bit; the others give nothing."""
    key = f"dogfit/{next(_calls)}"
    index, count = process_index(), process_count()
    if index > 0:
        (mine,) = _from_bytes(_receive(f"{key}/{index}"))
    elif array is None:
        raise ValueError("process 0 must give the rows to share out, got None")
    else:
        for other in range(1, count):
            _send(f"{key}/{other}", _to_bytes([array[rows_of(other, len(array))]]))
        mine = array[rows_of(0, len(array))]
    wait_for_all()
    if index == 0 and count > 1:
        _client().key_value_delete(f"{key}/")
    return mine


def wait_for_all() -> None:
    """Return when every process has made this call."""
    call = next(_calls)
    if process_count() > 1:
        _client().wait_at_barrier(f"dogfit-{call}", _FOREVER_MS)


def is_loss(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that another process cannot be reached any more."""
    signs = ("Gloo", "coordination service", "UNAVAILABLE", "heartbeat", "NCCL", "preempted/died", "barrier")
    while error is not None and process_count() > 1:
        if any(sign in str(error) for sign in signs):
            return True
        # Amid a save it is Orbax that waits, and raises an error of its own.
        error = error.__cause__ or error.__context__
    return False


def _send(key: str, data: bytes) -> None:
    client = _client()
    pieces = range(0, len(data), _PIECE)
    for number, at in enumerate(pieces):
        client.key_value_set_bytes(f"{key}/{number}", data[at : at + _PIECE])
    client.key_value_set(f"{key}/pieces", str(len(pieces)))


def _receive(key: str) -> bytes:
    client = _client()
    pieces = int(client.blocking_key_value_get(f"{key}/pieces", _FOREVER_MS))
    return b"".join(
        client.blocking_key_value_get_bytes(f"{key}/{number}", _FOREVER_MS) for number in range(pieces)
    )


def _to_bytes(arrays: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _from_bytes(data: bytes) -> Iterator[np.ndarray]:
    buffer = io.BytesIO(data)
    while buffer.tell() < len(data):
        yield np.load(buffer, allow_pickle=False)


def _state() -> Any:
    # The public jax.process_index() starts the accelerators, and the service's client has no public name.
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client
