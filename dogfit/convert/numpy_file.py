"""Arrays of NumPy's `.npz`."""

import zipfile
from pathlib import Path

import numpy as np

from dogfit.convert.weights import Weights
from dogfit.errors import InputError


def read_npz(path: Path) -> Weights:
    """Read the arrays of a `.npz` file; pickled objects in it are never loaded.

    Args:
      path: the file.

    Returns:
      All arrays of numbers under their names.

    Raises:
      InputError: if the file is damaged.
    """
    tensors: dict[str, np.ndarray] = {}
    left: dict[str, str] = {}
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            for name in file.files:
                try:
                    tensors[name] = file[name]
                except ValueError as error:
                    left[name] = str(error).splitlines()[0]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged NumPy file: {error}") from error
    return Weights(tensors, left=left)
