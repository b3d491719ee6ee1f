"""Copies of one network in a checkpoint: averages of its weights, and names that only wrap it."""

import re
from collections.abc import Mapping

from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.naming import OPTIMIZER, QUANTIZED

# Prefixes that only wrap a network: `module.stages.0` is `stages.0`.
WRAPPERS = re.compile(
    r"^(?:(?:_orig_mod|module|state_dict|model_state_dict|model_state|model|student|net|network|params|variables|weights)[./])+"
)
# Marks of an averaged copy of the weights, and what stands around them.
AVERAGED = re.compile(
    r"(?:^|[./])(?:state_dict_ema|ema_state_dict|model_ema|ema_model|module_ema|ema_params|params_ema|ema|shadow"
    r"|shadow_params|averaged_model|swa_model|teacher|average)[./](?:(?:module|model|shadow)[./])*"
    r"|[./](?:ExponentialMovingAverage|ema)$"
)


def bare_name(name: str) -> str:
    """Remove wrapping prefixes and the marks of an averaged copy from a name.

    Args:
      name: tensor name, as in the file.

    Returns:
      The name that the tensor has in the plain network.
    """
    return WRAPPERS.sub("", AVERAGED.sub(".", WRAPPERS.sub("", name)).strip("./"))


def split_copies(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, str]]:
    """Split the names into one copy of the network and the rest.

    Returns:
      The network's names, each with the bare name that tells its place, and the other names with the reason.
    """
    names: dict[str, str] = {}
    dropped: dict[str, str] = {}
    copies: dict[str, list[str]] = {}
    for name in tensors:
        if OPTIMIZER.search(name):
            dropped[name] = "optimiser state"
        elif QUANTIZED.search(name):
            dropped[name] = "companion of a quantised weight"
        else:
            copies.setdefault(bare_name(name), []).append(name)
    # Some averages are stored under the name of their weight without its dots.
    for bare in list(copies):
        for name in copies.get(undotted := bare.replace(".", ""), []) if "." in bare else []:
            if AVERAGED.search(name):
                copies[bare] += copies.pop(undotted)
                break
    for same in copies.values():
        same.sort(key=lambda name: AVERAGED.search(name) is None)
        chosen, *others = same
        names[chosen] = bare_name(others[0] if others else chosen)
        averaged = AVERAGED.search(chosen) is not None
        for other in others:
            dropped[other] = (
                "its moving average is taken instead" if averaged else "a second copy under another prefix"
            )
    return names, dropped
