"""Part of the processes other than the first in a job: their shard of every task."""

import json

from dogfit.checkpoints.load_shard import load_shard
from dogfit.distributed import finish, own_rows, process_index, receive_task
from dogfit.errors import DogfitError, InputError
from dogfit.job.config import RunConfig
from dogfit.runtime.tasks import run_task, shard_digest
from dogfit.runtime.workspace import checkpoints_folder


def run_worker(config: RunConfig) -> None:
    """Read a shard of the kernels, then fit, train and encode it until process 0 ends. Writes no results.

    Args:
      config: the same as in process 0, but for the number of the process.

    Raises:
      InputError: this process has read other kernels, or has other settings, than process 0.
      DogfitError: process 0 could not begin, for the reason it gives.
    """
    task = receive_task()
    if task["task"] == "fail":
        finish()
        error = DogfitError(task["reason"])
        error.exit_code = task["code"]
        raise error
    if task["task"] == "end":
        return
    same = json.loads(json.dumps(config.result_settings())) == task["settings"]
    if same:
        shard = load_shard(
            config.source_paths(),
            task["layers"],
            own_rows,
            include=config.include,
            exclude=config.exclude,
            offline=config.offline,
        )
        same = shard_digest(shard.groups, slice) == task["shards"][process_index()]
    if not same:
        raise InputError(
            f"process {process_index()} has read other kernels, or was started with other settings, than "
            "process 0; start all with the same command on the same files"
        )
    checkpoints = checkpoints_folder(config.out)
    while (task := receive_task())["task"] != "end":
        run_task(task, shard.groups[task["size"]], checkpoints)
