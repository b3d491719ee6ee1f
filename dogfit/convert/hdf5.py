"""Weights that Keras and others keep in HDF5: `.h5`, `.weights.h5`, and `.keras` archives."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from dogfit.convert.extras import import_extra
from dogfit.convert.weights import Weights
from dogfit.errors import InputError

WEIGHTS_IN_ARCHIVE = "model.weights.h5"


def read_hdf5(path: Path) -> Weights:
    """Read all datasets of an HDF5 file.

    Args:
      path: the file.

    Returns:
      The datasets under their paths.

    Raises:
      InputError: if the file is damaged, or h5py is not installed.
    """
    return _read(path, path)


def read_keras(path: Path) -> Weights:
    """Read the weights in a Keras 3 archive.

    Args:
      path: the file.

    Returns:
      The datasets under their paths.

    Raises:
      InputError: if the file is damaged, or h5py is not installed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = io.BytesIO(archive.read(WEIGHTS_IN_ARCHIVE))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged Keras archive: {error}") from error
    return _read(content, path)


def _read(source: Any, path: Path) -> Weights:
    h5py = import_extra("h5py", "hdf5", path)
    tensors: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            tensors[name] = np.asarray(item[()])

    try:
        with h5py.File(source, "r") as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: damaged HDF5 file: {error}") from error
    return Weights(tensors)
