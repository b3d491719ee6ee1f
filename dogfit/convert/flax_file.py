"""Weights that Flax keeps in msgpack."""

from pathlib import Path

import numpy as np

from dogfit.convert.weights import Weights
from dogfit.errors import InputError


def read_msgpack(path: Path) -> Weights:
    """Read the arrays of a Flax `.msgpack` file.

    Args:
      path: the file.

    Returns:
      The arrays under their paths.

    Raises:
      InputError: if the file is damaged.
    """
    from flax.serialization import msgpack_restore

    try:
        content = msgpack_restore(path.read_bytes())
    except Exception as error:
        raise InputError(f"{path}: damaged msgpack file: {error}") from error
    tensors: dict[str, np.ndarray] = {}
    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{name}/{key}" if name else str(key), child) for key, child in value.items()]
        elif isinstance(value, np.ndarray):
            tensors[name] = value
    return Weights(dict(sorted(tensors.items())))
