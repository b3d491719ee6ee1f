"""Jobs for processes of their own; run as a script: `jobs.py NAME [the command's words]`."""

import os
import signal
import sys

import numpy as np
import tyro

from dogfit.job.config import RunConfig
from dogfit.run import main as run_command
from job_inputs import TRAINING

KERNELS = np.random.default_rng(0).normal(size=(203, 5, 5)).astype(np.float32)


def exchange(config: RunConfig) -> int:
    """Send messages both ways; then process 1 is lost, and process 0 waits for it."""
    from dogfit import distributed
    from dogfit.run import exit_code_of

    def job() -> int:
        distributed.start(config.coordinator or "", config.processes, config.process_id, lost_after_s=2)
        index = distributed.process_index()
        assert distributed.broadcast(f"from {index}".encode()) == b"from 0"
        mine = KERNELS[distributed.own_rows(len(KERNELS))]
        np.testing.assert_array_equal(distributed.scatter_rows(KERNELS if index == 0 else None), mine)
        np.testing.assert_array_equal(distributed.gather_rows(mine), KERNELS)
        print("messages arrived", file=sys.stderr, flush=True)
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        distributed.wait_for_all()
        return 0

    return exit_code_of(job, config)


def broken(config: RunConfig) -> int:
    """Fail in process 0 for a reason of its own, while process 1 waits."""
    from dogfit import distributed
    from dogfit.run import exit_code_of

    def job() -> int:
        distributed.start(config.coordinator or "", config.processes, config.process_id, lost_after_s=2)
        if distributed.process_index() == 0:
            raise TypeError("a fault of its own: heartbeat UNAVAILABLE")
        distributed.wait_for_all()
        return 0

    return exit_code_of(job, config)


def training(config: RunConfig) -> int:
    """Train with a checkpoint after every chunk of steps, and nothing else; process 0 saves the result."""
    from dogfit import distributed
    from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
    from dogfit.devices import data_mesh
    from dogfit.run import exit_code_of

    def job() -> int:
        if config.coordinator is not None:
            distributed.start(
                config.coordinator, config.processes, config.process_id, lost_after_s=config.lost_after
            )
        model = train_autoencoder(
            KERNELS[distributed.own_rows(len(KERNELS))],
            AutoencoderConfig(steps=config.steps or 0, **TRAINING),
            mesh=data_mesh(),
            checkpoint_dir=config.out / "training",
            checkpoint_every_s=0,
            progress=lambda done, _: print("step", done, file=sys.stderr, flush=True),
        )
        if distributed.process_index() == 0:
            model.save(config.out)
        if config.coordinator is not None:
            distributed.finish()
        return 0

    return exit_code_of(job, config)


def main() -> int:
    if sys.argv[1] == "command":
        return run_command(sys.argv[2:])
    config = tyro.cli(RunConfig, args=sys.argv[2:], config=(tyro.conf.FlagCreatePairsOff,))
    job = {"exchange": exchange, "broken": broken, "training": training}[sys.argv[1]]
    if config.coordinator is None:
        return job(config)
    from dogfit.runtime.supervisor import run_supervised

    return run_supervised(job, config)


if __name__ == "__main__":
    sys.exit(main())
