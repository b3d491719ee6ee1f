"""What the processes of a job other than the first do: their share of what it announces."""

from dogfit.analyse import fit_together, null_kernels, train_together
from dogfit.config import RunConfig
from dogfit.distributed import next_order, process_index
from dogfit.errors import DogfitError, InputError
from dogfit.kernelset import Flag, KernelSet
from dogfit.outputs import Workspace


def follow(kernelset: KernelSet, config: RunConfig, fingerprint: str) -> None:
    """Fit shares of kernels and train along until process 0 ends the job. Writes nothing.

    Raises:
      InputError: this process has read other kernels, or has other settings, than process 0.
    """
    if next_order()["fingerprint"] != fingerprint:
        raise InputError(
            f"process {process_index()} has read other kernels, or was started with other settings, than "
            "process 0; start all with the same command on the same files"
        )
    hidden = Workspace(config.out, fingerprint).hidden
    while (order := next_order())["do"] != "end":
        group = kernelset.groups[order["size"]]
        if order["do"] == "fit":
            name = order["name"]
            fit_together(
                group.kernels if name == "network" else null_kernels(group, config.seed)[name][0], config
            )
        elif order["do"] == "train":
            train_together(group.normalised()[group.flag == Flag.OK], config, hidden)
        else:
            raise DogfitError(f"process 0 asks for {order['do']}, which this release does not know")
