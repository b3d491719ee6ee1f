"""Checkpoints of a training run: only whole ones are read, and only by the run that wrote them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from dogfit.atomic_write import write_atomically
from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.autoencoder.sharding import KernelShard
from dogfit.autoencoder.training_step import State
from dogfit.distributed import broadcast, process_index
from dogfit.errors import DogfitError

FINGERPRINT = "run.json"


def fingerprint(shard: KernelShard, config: AutoencoderConfig) -> dict[str, str | int]:
    """Identity of a run: its kernels, in whichever process they are, and its settings."""
    settings = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return {"kernels": shard.n, "kernels_digest": shard.digest(), "config": settings}


def _context() -> ocp.Context:
    context = ocp.Context()
    # A state is whole on every device: the first process writes it, and the others wait.
    context.array.saving.use_replica_parallel = False
    return context


class Checkpoints:
    """Keeps the two newest states of one run in a folder.

    Orbax writes beside and renames: a state that was being written when a process died is never read.
    The processes of the mesh share the folder; each of them makes every call, and the first one writes.

    Raises:
      DogfitError: the folder holds another run, or is damaged.
    """

    def __init__(self, directory: Path, run: dict[str, str | int], mesh: Mesh):
        # Orbax wants absolute paths.
        self.directory = directory.absolute()
        self._claim_together(run, mesh)
        newest_two: Any = ocp.training.preservation_policies.LatestN(2)
        self._orbax = ocp.training.Checkpointer(
            str(self.directory / "states"),
            context=_context(),
            preservation_policy=newest_two,
            cleanup_tmp_directories=True,
        )

    def _claim_together(self, run: dict[str, str | int], mesh: Mesh) -> None:
        """Claim the folder for the run; raises in all processes if the first cannot."""
        if not mesh.is_multi_process:
            self._claim(run)
            return
        problem = ""
        if process_index() == 0:
            try:
                self._claim(run)
            except (DogfitError, OSError) as error:
                problem = str(error)
        if problem := broadcast(problem.encode()).decode():
            raise DogfitError(problem)

    def _claim(self, run: dict[str, str | int]) -> None:
        """Write the run's identity into the folder, or compare it with the one that is there."""
        (self.directory / "states").mkdir(parents=True, exist_ok=True)
        path = self.directory / FINGERPRINT
        try:
            before = dict(json.loads(path.read_text()))
        except FileNotFoundError:
            write_atomically(path, json.dumps(run, indent=1).encode())
            return
        except (ValueError, TypeError) as error:
            raise DogfitError(
                f"{path} is damaged ({error}); delete {self.directory} to start again"
            ) from error
        different = [name for name in run if before.get(name) != run[name]]
        if different:
            raise DogfitError(
                f"{self.directory} holds the checkpoints of another training run "
                f"({', '.join(different)} differ); choose another folder, or delete it to start again"
            )

    def restore(self, state: State) -> State:
        """Read the newest state onto the devices of `state`; return `state` itself when there is none yet.

        Raises:
          DogfitError: the checkpoint is damaged.
        """
        if self._orbax.latest is None:
            return state
        step = self._orbax.latest.step
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        try:
            return self._orbax.load(step, like)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise DogfitError(
                f"the checkpoint of step {step} in {self.directory} cannot be read ({reason}); "
                "delete the folder to start again"
            ) from error

    def save(self, state: State) -> None:
        """Write a state, unless one as new is there."""
        step = int(state["step"])
        if self._orbax.latest is None or self._orbax.latest.step < step:
            self._orbax.save(step, state, force=True)

    def close(self) -> None:
        """Wait for writes to end."""
        self._orbax.close()
