"""Libraries that read other formats, which are optional."""

import importlib
from pathlib import Path
from typing import Any

from dogfit.errors import InputError


def import_extra(module: str, extra: str, path: Path) -> Any:
    """Import a library that reads a format.

    Args:
      module: name of the library, or of a module in it.
      extra: extra of dogfit that installs it.
      path: file that needs it.

    Returns:
      The module.

    Raises:
      InputError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{path}: needs {module.partition('.')[0]}, which is missing; pip install 'dogfit[{extra}]'"
        ) from error
