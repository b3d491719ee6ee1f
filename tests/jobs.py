"""The job in a process of its own, made small; run as a script: `jobs.py NAME [the command's words]`."""

import sys
from dataclasses import replace

import numpy as np
import tyro

from dogfit import run
from dogfit.job.config import RunConfig

KERNELS = np.random.default_rng(0).normal(size=(203, 5, 5)).astype(np.float32)
TRAINING = {"batch_size": 64, "decoder_only_batch_size": 64, "restarts": 2, "widths": (32,), "frequencies": 4}


def small(config: RunConfig) -> int:
    """The job with few nulls, a small autoencoder and no figures."""
    from dogfit.analysis import size as analyse
    from dogfit.report.figures import draw as gather

    def train_small(rows, settings, *others):
        return train(rows, replace(settings, **TRAINING), *others)

    train = analyse.train_together
    analyse.train_together = train_small
    analyse.NULL_KERNELS = (128, 128)
    gather.draw_figures = lambda *_: {}
    return run._reported(config)


def training(config: RunConfig) -> int:
    """Nothing but training, with a checkpoint after every chunk of steps; process 0 saves the result."""
    from dogfit.job import main as job

    def train(config: RunConfig, _) -> dict:
        from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
        from dogfit.devices import data_mesh
        from dogfit.distributed import own_rows, process_index

        model = train_autoencoder(
            KERNELS[own_rows(len(KERNELS))],
            AutoencoderConfig(steps=config.steps or 0, **TRAINING),
            mesh=data_mesh(),
            checkpoint_dir=config.out / "training",
            checkpoint_every_s=0,
            progress=lambda step, *_: print("step", step, file=sys.stderr, flush=True),
        )
        if process_index() == 0:
            model.save(config.out)
        return {}

    job.run_job = train
    return run._reported(config)


def main() -> int:
    job = {"small": small, "training": training}[sys.argv[1]]
    config = tyro.cli(RunConfig, args=sys.argv[2:], config=(tyro.conf.FlagCreatePairsOff,))
    if config.coordinator is None:
        return job(config)
    from dogfit.runtime.supervisor import run_watched

    return run_watched(job, config)


if __name__ == "__main__":
    sys.exit(main())
