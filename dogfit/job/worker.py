"""What the processes of a job other than the first do: their share of what it announces."""

import json

from dogfit.checkpoints.load_shard import load_shard
from dogfit.distributed import finish, next_order, own_rows, process_index
from dogfit.errors import DogfitError, InputError
from dogfit.job.config import RunConfig
from dogfit.runtime.tasks import inputs, share_digest, take_part
from dogfit.runtime.workspace import Workspace


def follow(config: RunConfig) -> None:
    """Read a share of the kernels, then fit, train and encode it along until process 0 ends. Writes nothing.

    Raises:
      InputError: this process has read other kernels, or has other settings, than process 0.
      DogfitError: process 0 could not begin, for the reason it gives.
    """
    order = next_order()
    if order["do"] == "fail":
        finish()
        error = DogfitError(order["why"])
        error.exit_code = order["code"]
        raise error
    if order["do"] == "end":
        return
    same = json.loads(json.dumps(config.deciding())) == order["settings"]
    if same:
        share = load_shard(
            inputs(config),
            order["layers"],
            own_rows,
            include=config.include,
            exclude=config.exclude,
            offline=config.offline,
        )
        same = share_digest(share.groups, slice) == order["shares"][process_index()]
    if not same:
        raise InputError(
            f"process {process_index()} has read other kernels, or was started with other settings, than "
            "process 0; start all with the same command on the same files"
        )
    hidden = Workspace(config.out, "").hidden
    while (order := next_order())["do"] != "end":
        take_part(order, share.groups[order["size"]], config, hidden)
