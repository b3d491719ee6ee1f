"""Several processes, on one host or on many, at one job: their start, their shards, and their messages.

Kernels are fitted where they are read and need no other kernel, so fits go through JAX's coordination
service, byte for byte and without a collective. Training uses collectives, see `dogfit.devices`.

Every process must make the same calls in the same order, as with anything in JAX that spans processes.
"""

import io
import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from dogfit.errors import DogfitError, LostProcessError

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
# Status codes with which the service answers a process that waits for one that is gone: cancelled, deadline
# exceeded, aborted, internal, unavailable.
_LOSS_CODES = (1, 4, 10, 13, 14)
_DEADLINE_EXCEEDED = 4


def start(
    coordinator: str,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    lost_after_s: int = LOST_AFTER_S,
    connect_within_s: int = CONNECT_WITHIN_S,
) -> None:
    """Join the processes of one job, before JAX has computed anything or listed a device.

    Args:
      coordinator: "HOST:PORT" with the address of process 0 and a free port there, the same in every process;
        or "auto" for what JAX recognizes: SLURM, Open MPI, Kubernetes, Cloud TPU.
      processes: how many there are; found out with "auto".
      process_id: which one this is, from 0; found out with "auto".
      lost_after_s: seconds without a sign of life after which a process is lost, and JAX ends the others.
      connect_within_s: seconds after which JAX ends the process if the others have not come.

    Raises:
      DogfitError: no cluster is recognized.
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
            "no cluster was recognized (SLURM, Open MPI, Kubernetes, Cloud TPU); give --coordinator "
            f"HOST:PORT --processes N --process-id I ({error})"
        ) from error
    # The first look at the devices waits for that of all processes: here none waits for a task.
    jax.devices()


def _is_loopback(address: str) -> bool:
    """Check if only this host can be meant: then nothing must listen to others."""
    host = address.rsplit(":", 1)[0]
    try:
        return socket.gethostbyname(host).startswith("127.")
    except OSError:
        return False


def finish() -> None:
    """Leave the other processes; returns when all have come this far."""
    jax.distributed.shutdown()


def process_index() -> int:
    """Return the number of this process, 0 when it is alone."""
    return _state().process_id


def process_count() -> int:
    """Return the number of processes, 1 when this one is alone."""
    return _state().num_processes


def own_rows(n: int) -> slice:
    """Choose this process's shard of some rows.

    Args:
      n: number of rows in all.

    Returns:
      A contiguous slice. Shards follow the order of the processes and are even to within one row.
    """
    return rows_of(process_index(), n)


def rows_of(index: int, n: int) -> slice:
    """Choose the shard of one process.

    Args:
      index: number of the process.
      n: number of rows in all.

    Returns:
      See `own_rows`.
    """
    count = process_count()
    return slice(n * index // count, n * (index + 1) // count)


def broadcast(data: bytes = b"") -> bytes:
    """Send bytes from process 0 to all.

    Args:
      data: what process 0 sends; the others give nothing.

    Returns:
      The bytes, in every process.

    Raises:
      LostProcessError: another process cannot be reached.
    """
    key = f"dogfit/{next(_calls)}"
    if process_count() == 1:
        return data
    if process_index() == 0:
        _send(key, data)
        return data
    return _receive(key)


def broadcast_task(task: str, **parameters: Any) -> None:
    """Tell the other processes, from process 0, what to do next; they hear it with `receive_task`.

    Args:
      task: its name.
      parameters: for JSON.

    Raises:
      LostProcessError: another process cannot be reached.
    """
    broadcast(json.dumps({"task": task, **parameters}).encode())


def receive_task() -> dict[str, Any]:
    """Wait for the next task from process 0.

    Returns:
      Its parameters, and its name as "task".

    Raises:
      LostProcessError: another process cannot be reached.
    """
    return json.loads(broadcast())


def gather_rows(tree: Tree, *, everywhere: bool = True) -> Tree:
    """Join the rows of all processes, in their order, bit for bit and in any dtype.

    Args:
      tree: a `FitResult`, or any pytree of host arrays, with this process's rows on the first axis of every
        array. The processes may have different numbers of rows.
      everywhere: False joins them in process 0 alone; the others get back what they gave.

    Returns:
      The same tree with the rows of all processes.

    Raises:
      LostProcessError: another process cannot be reached.
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
        _delete(key)
    return tree


def scatter_rows(array: np.ndarray | None = None) -> np.ndarray:
    """Send each process its shard of the rows that process 0 has, bit for bit.

    Args:
      array: rows `[n, ...]` in process 0; the others give nothing.

    Returns:
      This process's rows, as `own_rows` chooses them.

    Raises:
      ValueError: process 0 gave no rows.
      LostProcessError: another process cannot be reached.
    """
    key = f"dogfit/{next(_calls)}"
    index, count = process_index(), process_count()
    if index > 0:
        (mine,) = _from_bytes(_receive(f"{key}/{index}"))
    elif array is None:
        raise ValueError("process 0 must give the rows to scatter, got None")
    else:
        for other in range(1, count):
            _send(f"{key}/{other}", _to_bytes([array[rows_of(other, len(array))]]))
        mine = array[rows_of(0, len(array))]
    wait_for_all()
    if index == 0 and count > 1:
        _delete(key)
    return mine


def wait_for_all() -> None:
    """Return when every process has made this call.

    Raises:
      LostProcessError: another process cannot be reached.
    """
    call = next(_calls)
    if process_count() > 1:
        with _losses_by_type():
            _client().wait_at_barrier(f"dogfit-{call}", _FOREVER_MS)


def caused_by_loss(error: BaseException | None, lost_after_s: float = LOST_AFTER_S) -> bool:
    """Find out if an error was caused by the loss of another process.

    Collectives report a lost process by errors that have no type or code of their own, and libraries wrap
    them. Unless the error is a `LostProcessError`, the coordination service is asked: it notices a loss
    within `lost_after_s`, so this may take as long. JAX may end this process meanwhile.

    Args:
      error: what was raised, in a process that then ends.
      lost_after_s: as given to `start`.

    Returns:
      True if another process is lost.
    """
    if process_count() == 1:
        return False
    while error is not None:
        if isinstance(error, LostProcessError):
            return True
        error = error.__cause__ or error.__context__
    try:
        # A barrier that no other process comes to: it fails when one is lost, and otherwise times out.
        _client().wait_at_barrier(f"dogfit-lost-{process_index()}", round(1000 * (lost_after_s + 5)))
    except jax.errors.JaxRuntimeError as answer:
        return answer.error_code != _DEADLINE_EXCEEDED
    return False


@contextmanager
def _losses_by_type() -> Iterator[None]:
    """Raise what the service reports of a lost process as an error of its own type."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if error.error_code not in _LOSS_CODES:
            raise
        raise LostProcessError("another process of this job cannot be reached any more") from error


def _send(key: str, data: bytes) -> None:
    client = _client()
    pieces = range(0, len(data), _PIECE)
    with _losses_by_type():
        for number, at in enumerate(pieces):
            client.key_value_set_bytes(f"{key}/{number}", data[at : at + _PIECE])
        client.key_value_set(f"{key}/pieces", str(len(pieces)))


def _receive(key: str) -> bytes:
    client = _client()
    with _losses_by_type():
        pieces = int(client.blocking_key_value_get(f"{key}/pieces", _FOREVER_MS))
        return b"".join(
            client.blocking_key_value_get_bytes(f"{key}/{number}", _FOREVER_MS) for number in range(pieces)
        )


def _delete(key: str) -> None:
    with _losses_by_type():
        _client().key_value_delete(f"{key}/")


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
