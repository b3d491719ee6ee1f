"""The kernels of one training run: each process of the mesh has read a share of them, and holds no other."""

import dataclasses
import json
import math
from hashlib import sha256

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float, UInt64

from dogfit.autoencoder.autoencoder import unit_rows
from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig
from dogfit.devices import mesh_processes
from dogfit.distributed import gather_rows, process_count, process_index
from dogfit.errors import DogfitError, InputError, TooFewKernels

HELDOUT_MOST = 4096
# Rows that tell shares apart, and rows at once where a step makes copies.
_ENDS, _BLOCK = 64, 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """One process's share, and how many the others have. Rows are numbered through, process by process.

    Attributes:
      taps: this process's kernels, centred and of unit norm.
      counts: number of kernels of each process of the mesh.
      mesh: where to train.
    """

    taps: Float[np.ndarray, "c taps"]
    counts: tuple[int, ...]
    mesh: Mesh

    @property
    def n(self) -> int:
        return sum(self.counts)

    @property
    def place(self) -> int:
        """Which of the mesh's processes this one is."""
        return mesh_processes(self.mesh).index(process_index())

    @property
    def start(self) -> int:
        """Number of the first own row."""
        return sum(self.counts[: self.place])

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """Rows of all processes, joined in order, in every process."""
        return gather_rows(rows) if self.mesh.is_multi_process else rows

    def digest(self) -> str:
        """Of the kernels of all processes and their order, whoever has which."""
        own = np.array([digest_share(self.taps, self.start)], np.uint64)
        return f"{np.sum(self.gathered(own), dtype=np.uint64):016x}"

    def split(self, config: AutoencoderConfig) -> tuple[Float[np.ndarray, "h taps"], "Shares"]:
        """Held-out kernels, drawn at random, of all processes; and the others: all that training sees."""
        count = min(max(round(self.n * config.holdout), 1), self.n - 1, HELDOUT_MOST)
        drawn = np.sort(np.random.default_rng(config.seed).choice(self.n, count, replace=False))
        cuts = np.searchsorted(drawn, np.cumsum([0, *self.counts]))
        own = drawn[cuts[self.place] : cuts[self.place + 1]] - self.start
        left = np.subtract(self.counts, np.diff(cuts)).tolist()
        training = Shares(np.delete(self.taps, own, axis=0), tuple(left), self.mesh)
        return self.gathered(self.taps[own]), training


def share_kernels(kernels: ArrayLike, config: AutoencoderConfig, mesh: Mesh) -> Shares:
    """Normalise this process's kernels and hear how many the others have; errors are raised in all alike.

    Raises:
      ValueError: kernels of different sizes, or every process gives the same ones.
      DogfitError: the processes have different settings.
      InputError: some kernels are constant or not finite.
      TooFewKernels: there are fewer than `MIN_KERNELS` in all.
    """
    taps, good = unit_rows(kernels)
    about = {
        "count": len(taps),
        "bad": int(np.sum(~good)),
        "width": taps.shape[1],
        "settings": _number(json.dumps(dataclasses.asdict(config), sort_keys=True).encode()),
        "ends": _number(taps[:_ENDS].tobytes() + taps[-_ENDS:].tobytes()),
    }
    every = {name: np.array([value], np.int64) for name, value in about.items()}
    if mesh.is_multi_process:
        every = gather_rows(every)
    _check(every)
    return Shares(taps, tuple(every["count"].tolist()), mesh)


def check_mesh(mesh: Mesh, *, checkpoints: bool) -> None:
    """Refuse a mesh on which the processes could not train together, nor this one alone."""
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
            f"all {len(count)} processes give the same {count[0]} kernels; each gives its own share, "
            "kernels[dogfit.distributed.own_rows(len(kernels))]"
        )
    if bad:
        raise InputError(f"{bad} of {count.sum()} kernels are constant or not finite; leave them out")
    if count.sum() < MIN_KERNELS:
        raise TooFewKernels(
            f"{count.sum()} kernels of {size}x{size} are too few to learn a code from; "
            f"at least {MIN_KERNELS} are needed"
        )


def digest_share(taps: Float[np.ndarray, "c taps"], start: int) -> int:
    """Digest of rows that begin with number `start`.

    Each number is mixed with its place among all, and the results are added modulo 2^64: digests of shares
    add up to that of the whole, wherever it is cut. They notice other kernels, not forged ones.
    """
    total, width = 0, taps.shape[1]
    for row in range(0, len(taps), _BLOCK):
        bits = np.ascontiguousarray(taps[row : row + _BLOCK], np.float32).view(np.uint32).astype(np.uint64)
        place = np.arange(bits.size, dtype=np.uint64).reshape(bits.shape) + np.uint64((start + row) * width)
        total += int(np.sum(_mixed(bits + place * np.uint64(0x9E3779B97F4A7C15)), dtype=np.uint64))
    return total % 2**64


def _mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """The finaliser of SplitMix64: every bit of the input sways every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _number(data: bytes) -> int:
    return int.from_bytes(sha256(data).digest()[:7], "little")
