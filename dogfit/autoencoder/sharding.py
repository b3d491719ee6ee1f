"""The kernels of one training run, of which each process of the mesh has read a shard and holds no other."""

import dataclasses
import json
import math
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, UInt64

from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig
from dogfit.devices import mesh_processes
from dogfit.distributed import gather_rows, process_count, process_index
from dogfit.errors import DogfitError, InputError, TooFewKernels
from dogfit.normalize import normalize_rows

Gather = Callable[[Any], Any]

MAX_HELDOUT = 4096
# Rows at either end by which shards are told apart, and rows at once where a step makes copies.
_END_ROWS, _BLOCK = 64, 4096


@dataclasses.dataclass(frozen=True, eq=False)
class KernelShard:
    """One process's shard, and how many kernels each process has. Rows are numbered process by process.

    Attributes:
      taps: this process's kernels `[c, taps]`, centered and of unit norm.
      counts: number of kernels of each process of the mesh.
      rank: position of this process among those of the mesh.
      gather: joins arrays, or trees of arrays, of all processes along their first axis, in order, in every
        process.
    """

    taps: Float[np.ndarray, "c taps"]
    counts: tuple[int, ...]
    rank: int
    gather: Gather

    @property
    def n(self) -> int:
        """Kernels of all processes."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """Number of this process's first row."""
        return sum(self.counts[: self.rank])

    def digest(self) -> str:
        """Digest of the kernels of all processes and their order; how they are sharded does not change it."""
        own = np.array([digest_shard(self.taps, self.start)], np.uint64)
        return f"{np.sum(self.gather(own), dtype=np.uint64):016x}"

    def split(self, config: AutoencoderConfig) -> tuple[Float[np.ndarray, "h taps"], "KernelShard"]:
        """Hold kernels out, drawn at random among those of all processes.

        Returns:
          The held-out kernels of all processes `[h, taps]`, and the shard of the others, which training sees.
        """
        count = min(max(round(self.n * config.holdout), 1), self.n - 1, MAX_HELDOUT)
        drawn = np.sort(np.random.default_rng(config.seed).choice(self.n, count, replace=False))
        cuts = np.searchsorted(drawn, np.cumsum([0, *self.counts]))
        own = drawn[cuts[self.rank] : cuts[self.rank + 1]] - self.start
        left = np.subtract(self.counts, np.diff(cuts)).tolist()
        training = KernelShard(np.delete(self.taps, own, axis=0), tuple(left), self.rank, self.gather)
        return self.gather(self.taps[own]), training


def shard_kernels(
    kernels: ArrayLike, config: AutoencoderConfig, mesh: Mesh, *, gather: Gather | None = None
) -> KernelShard:
    """Normalize this process's kernels and learn how many the others have.

    Args:
      kernels: this process's shard `[c, k, k]`.
      config: settings of the run, which must be the same in all processes.
      mesh: devices to train on.
      gather: joins the arrays of all processes; JAX's coordination service does it when None.

    Returns:
      This process's shard.

    Raises:
      ValueError: kernels of different sizes, or every process gives the same ones.
      DogfitError: the processes have different settings.
      InputError: some kernels are constant or not finite.
      TooFewKernels: there are fewer than `MIN_KERNELS` in all.
        Each of these is raised in all processes alike.
    """
    taps, good = normalize_rows(kernels)
    about = {
        "count": len(taps),
        "bad": int(np.sum(~good)),
        "width": taps.shape[1],
        "settings": _digest(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()),
        "ends": _digest(taps[:_END_ROWS].tobytes() + taps[-_END_ROWS:].tobytes()),
    }
    gather = gather or (gather_rows if mesh.is_multi_process else lambda own: own)
    every = gather({name: np.array([value], np.int64) for name, value in about.items()})
    _check(every)
    rank = mesh_processes(mesh).index(process_index())
    return KernelShard(taps, tuple(every["count"].tolist()), rank, gather)


def check_mesh(mesh: Mesh, *, checkpoints: bool) -> None:
    """Refuse a mesh on which the processes could train neither together nor this one alone.

    Raises:
      ValueError: the mesh spans some processes but not all, or one of several that is to write checkpoints.
    """
    among = len(mesh_processes(mesh))
    if among < process_count() and (among > 1 or checkpoints):
        raise ValueError(
            f"the mesh spans {among} of {process_count()} processes; give one that spans all, or the devices "
            "of one process and no checkpoint_dir"
        )


def _check(every: dict[str, np.ndarray]) -> None:
    count, bad, size = every["count"], int(every["bad"].sum()), math.isqrt(int(every["width"][0]))
    if (every["width"] != every["width"][0]).any():
        sizes = [math.isqrt(width) for width in every["width"].tolist()]
        raise ValueError(f"kernels must be of one size in all processes, got {sizes} in their order")
    for process in np.flatnonzero(every["settings"] != every["settings"][0]).tolist():
        raise DogfitError(f"process {process} trains with other settings than process 0")
    if len(count) > 1 and count[0] > 0 and all((every[n] == every[n][0]).all() for n in ("count", "ends")):
        raise ValueError(
            f"all {len(count)} processes give the same {count[0]} kernels; each gives its own shard, "
            "kernels[dogfit.distributed.own_rows(len(kernels))]"
        )
    if bad:
        raise InputError(f"{bad} of {count.sum()} kernels are constant or not finite; leave them out")
    if count.sum() < MIN_KERNELS:
        raise TooFewKernels(
            f"{count.sum()} kernels of {size}x{size} are too few to learn a code from; "
            f"at least {MIN_KERNELS} are needed"
        )


def digest_shard(taps: Float[np.ndarray, "c taps"], start: int) -> int:
    """Compute the digest of rows `[c, taps]` that begin with number `start`.

    Each number is mixed with its position among all, and the results are added modulo 2^64: digests of shards
    add up to that of the whole, wherever it is cut. They notice other kernels, not forged ones.
    """
    total, width = 0, taps.shape[1]
    for row in range(0, len(taps), _BLOCK):
        bits = np.ascontiguousarray(taps[row : row + _BLOCK], np.float32).view(np.uint32).astype(np.uint64)
        position = np.arange(bits.size, dtype=np.uint64).reshape(bits.shape) + np.uint64(
            (start + row) * width
        )
        total += int(np.sum(_mix(bits + position * np.uint64(0x9E3779B97F4A7C15)), dtype=np.uint64))
    return total % 2**64


def _mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Hash words with the finalizer of SplitMix64: each bit of the input changes each of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _digest(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:7], "little")
