"""What the processes of a job do together: process 0, which has all kernels, says what; the others join in.

The others hold their share of the network's kernels, which they have read themselves, and are sent their
share of any others, such as nulls. Each function below is one side's part, `take_part` the other side's.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from dogfit.distributed import (
    announce,
    broadcast,
    finish,
    gather_rows,
    own_rows,
    process_count,
    scatter_rows,
)
from dogfit.errors import DogfitError
from dogfit.job.config import RunConfig
from dogfit.kernelset.groups import Flag, KernelGroup
from dogfit.runtime.progress import Update

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig
    from dogfit.fitting.result import FitResult

Codes = tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]


@dataclass(frozen=True)
class Rows:
    """Kernels of one size in process 0.

    Attributes:
      kernels: all of them `[n, k, k]`.
      own: how many of the first are this process's share, where the others have read theirs; None: they have
        none, and are sent them.
    """

    kernels: Float[np.ndarray, "n k k"]
    own: int | None = None

    def shared_out(self, do: str, **order: Any) -> Float[np.ndarray, "m k k"]:
        """Tell the others what to do with their shares, and return this process's own."""
        announce(do=do, size=self.kernels.shape[-1], read=self.own is not None, **order)
        return scatter_rows(self.kernels) if self.own is None else self.kernels[: self.own]


def read_by_all(kernels: Float[np.ndarray, "n k k"], usable: Bool[np.ndarray, " m"] | None = None) -> Rows:
    """Kernels of the network, all or the usable ones alone, of which every process has read its share."""
    everything = np.ones(len(kernels), bool) if usable is None else usable
    return Rows(kernels, int(everything[own_rows(len(everything))].sum()))


def inputs(config: RunConfig) -> tuple[str | Path, ...]:
    """The checkpoints to look at: those named, or the network that comes with dogfit."""
    if config.sources:
        return config.sources
    from dogfit.embedded import PATH

    return (PATH,)


def fit_together(rows: Rows, config: RunConfig, progress: Update | None = None) -> "FitResult":
    """The fits of all rows."""
    return _fit_share(rows.shared_out("fit"), config, progress)


def train_together(
    rows: Rows,
    settings: "AutoencoderConfig",
    hidden: Path,
    checkpoints: str | None = None,
    progress: Update | None = None,
) -> "Autoencoder":
    """An autoencoder, trained on all devices of all processes; checkpoints go to a folder in `hidden`."""
    mine = rows.shared_out("train", settings=asdict(settings), checkpoints=checkpoints)
    return _train_share(mine, settings, hidden, checkpoints, progress)


def encode_together(rows: Rows, autoencoder: "Autoencoder") -> Codes:
    """Code and reconstruction cosine of all rows."""
    mine = rows.shared_out("encode")
    if process_count() > 1:
        broadcast(autoencoder.to_bytes())
    return gather_rows(autoencoder.encode_and_score(mine), everywhere=False)


def take_part(order: Mapping[str, Any], group: KernelGroup, config: RunConfig, hidden: Path) -> None:
    """What another process does when process 0 calls one of the above; `group` is what it has read itself."""
    from dogfit.autoencoder import Autoencoder, AutoencoderConfig

    if order["do"] == "fit":
        _fit_share(group.kernels if order["read"] else scatter_rows(), config)
        return
    mine = group.normalized()[group.flag == Flag.OK] if order["read"] else scatter_rows()
    if order["do"] == "train":
        settings = AutoencoderConfig.from_json(order["settings"])
        _train_share(mine, settings, hidden, order["checkpoints"])
    elif order["do"] == "encode":
        gather_rows(Autoencoder.from_bytes(broadcast()).encode_and_score(mine), everywhere=False)
    else:
        raise DogfitError(f"process 0 asks for {order['do']}, which this release does not know")


def fit_kernels_of_job(kernels: np.ndarray, config: RunConfig, progress: Update | None = None) -> "FitResult":
    """The fits of some kernels in this process alone, as the job's settings say."""
    from dogfit.fitting.api import fit_kernels
    from dogfit.fitting.config import FitConfig

    how = FitConfig(profile=config.profile, criterion=config.criterion)
    return fit_kernels(kernels, config.families, config=how, progress=progress)


def _fit_share(mine: np.ndarray, config: RunConfig, progress: Update | None = None) -> "FitResult":
    return gather_rows(fit_kernels_of_job(mine, config, progress), everywhere=False)


def _train_share(
    mine: np.ndarray,
    settings: "AutoencoderConfig",
    hidden: Path,
    checkpoints: str | None,
    progress: Update | None = None,
) -> "Autoencoder":
    from dogfit.autoencoder import train_autoencoder
    from dogfit.devices import data_mesh

    return train_autoencoder(
        mine,
        settings,
        mesh=data_mesh(),
        checkpoint_dir=None if checkpoints is None else hidden.resolve() / checkpoints,
        progress=progress,
    )


@contextmanager
def failing_together() -> Iterator[None]:
    """Where process 0 cannot begin, the others hear why and end for the same reason."""
    try:
        yield
    except DogfitError as error:
        if process_count() > 1:
            announce(do="fail", code=error.exit_code, why=str(error))
            # Or the first to end would be a loss to the others, before they have said a word.
            finish()
        raise


def share_digest(groups: Mapping[int, KernelGroup], rows: Callable[[int], slice]) -> str:
    """Of the rows that `rows` chooses out of each size's number of kernels."""
    digest = hashlib.sha256()
    for size in sorted(groups):
        kernels = groups[size].kernels
        digest.update(np.ascontiguousarray(kernels[rows(len(kernels))]).data)
    return digest.hexdigest()
