"""Work that the processes of a job share: process 0 has all kernels and names the task, the others join in.

The other processes hold their shard of the network's kernels, which they have read themselves, and are sent
their shard of any others, such as nulls. Each function below is the coordinator's side of a task, and
`run_task` is the workers'.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from dogfit.distributed import (
    broadcast,
    broadcast_task,
    finish,
    gather_rows,
    own_rows,
    process_count,
    scatter_rows,
)
from dogfit.errors import DogfitError
from dogfit.fitting.config import FitConfig
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.runtime.progress import Update

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig
    from dogfit.fitting.result import FitResult

Codes = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]
"""Code and reconstruction cosine of each kernel."""


@dataclass(frozen=True)
class Rows:
    """Kernels of one size in process 0.

    Attributes:
      kernels: all of them `[n, k, k]`.
      own: number of the first ones that are this process's shard, where the others have read theirs; None
        where the others have none and are sent them.
    """

    kernels: Float[np.ndarray, "n k k"]
    own: int | None = None

    def assign(self, task: str, **parameters: Any) -> Float[np.ndarray, "m k k"]:
        """Tell the other processes what to do with their shards.

        Args:
          task: its name.
          parameters: for JSON.

        Returns:
          This process's own shard.
        """
        size, sharded = self.kernels.shape[-1], self.own is not None
        broadcast_task(task, size=size, sharded=sharded, **parameters)
        return self.kernels[: self.own] if sharded else scatter_rows(self.kernels)


def already_sharded(
    kernels: Float[np.ndarray, "n k k"], usable: Bool[np.ndarray, " m"] | None = None
) -> Rows:
    """Describe kernels of the network, of which every process has read its shard.

    Args:
      kernels: all kernels of one size, or the usable ones alone.
      usable: in the latter case, which of all kernels these are.

    Returns:
      The kernels, ready for a task.
    """
    everything = np.ones(len(kernels), bool) if usable is None else usable
    return Rows(kernels, int(everything[own_rows(len(everything))].sum()))


def fit_rows(
    rows: Rows, families: Sequence[str], config: FitConfig, progress: Update | None = None
) -> "FitResult":
    """Fit all rows, each process its own shard.

    Args:
      rows: kernels `[n, k, k]`.
      families: names of the families to fit.
      config: see `FitConfig`.
      progress: called with the kernels done and in all, of this process.

    Returns:
      The fits of all rows.
    """
    mine = rows.assign("fit", families=list(families), config=asdict(config))
    return _fit_shard(mine, families, config, progress)


def train_on_rows(
    rows: Rows,
    config: "AutoencoderConfig",
    checkpoints: Path | None = None,
    progress: Update | None = None,
) -> "Autoencoder":
    """Train an autoencoder on all devices of all processes.

    Args:
      rows: kernels `[n, k, k]`.
      config: see `AutoencoderConfig`.
      checkpoints: folder of this name among those of the job (see `run_task`), or None for no checkpoints.
      progress: called with the steps done and in all.

    Returns:
      The trained autoencoder.
    """
    name = None if checkpoints is None else checkpoints.name
    mine = rows.assign("train", config=asdict(config), checkpoints=name)
    return _train_on_shard(mine, config, checkpoints, progress)


def encode_rows(rows: Rows, autoencoder: "Autoencoder") -> Codes:
    """Encode all rows, each process its own shard.

    Args:
      rows: kernels `[n, k, k]`.
      autoencoder: sent to all processes.

    Returns:
      Code and reconstruction cosine `[n]` of all rows.
    """
    mine = rows.assign("encode")
    if process_count() > 1:
        broadcast(autoencoder.to_bytes())
    return gather_rows(autoencoder.encode_and_score(mine), everywhere=False)


def run_task(task: Mapping[str, Any], group: KernelGroup, checkpoints: Path) -> None:
    """Do a worker's part of a task that process 0 has assigned.

    Args:
      task: as `receive_task` gives it.
      group: this process's shard of the network's kernels of the task's size.
      checkpoints: folder of all checkpoints of the job, as this process reaches it.

    Raises:
      DogfitError: this release does not know the task.
    """
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig

    if task["task"] == "fit":
        mine = group.kernels if task["sharded"] else scatter_rows()
        _fit_shard(mine, task["families"], FitConfig(**task["config"]))
        return
    mine = group.normalized()[group.flag == Flag.OK] if task["sharded"] else scatter_rows()
    if task["task"] == "train":
        folder = None if task["checkpoints"] is None else checkpoints / task["checkpoints"]
        _train_on_shard(mine, AutoencoderConfig.from_json(task["config"]), folder)
    elif task["task"] == "encode":
        gather_rows(Autoencoder.from_bytes(broadcast()).encode_and_score(mine), everywhere=False)
    else:
        raise DogfitError(
            f"process 0 assigns the task {task['task']!r}, which this release does not know; "
            "install the same release of dogfit on all hosts"
        )


def _fit_shard(
    mine: np.ndarray, families: Sequence[str], config: FitConfig, progress: Update | None = None
) -> "FitResult":
    from dogfit.fitting.api import fit_kernels

    return gather_rows(fit_kernels(mine, families, config=config, progress=progress), everywhere=False)


def _train_on_shard(
    mine: np.ndarray, config: "AutoencoderConfig", checkpoints: Path | None, progress: Update | None = None
) -> "Autoencoder":
    from dogfit.autoencoder import train_autoencoder
    from dogfit.devices import data_mesh

    folder = None if checkpoints is None else checkpoints.resolve()
    return train_autoencoder(mine, config, mesh=data_mesh(), checkpoint_dir=folder, progress=progress)


@contextmanager
def broadcast_failure() -> Iterator[None]:
    """Tell the other processes why process 0 cannot begin, so that they end for the same reason."""
    try:
        yield
    except DogfitError as error:
        if process_count() > 1:
            broadcast_task("fail", code=error.exit_code, reason=str(error))
            # Or the first to end would be a loss to the others, before they have said a word.
            finish()
        raise


def shard_digest(groups: Mapping[int, KernelGroup], rows: Callable[[int], slice]) -> str:
    """Digest a shard of the kernels of every size.

    Args:
      groups: kernels by size.
      rows: chooses the shard out of each size's number of kernels.

    Returns:
      Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for size in sorted(groups):
        kernels = groups[size].kernels
        digest.update(np.ascontiguousarray(kernels[rows(len(kernels))]).data)
    return digest.hexdigest()
