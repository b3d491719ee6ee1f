"""Files of stages: arrays, and plain data about them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ABOUT = "about"


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], about: Any) -> None:
    """Write one safetensors file.

    Args:
      path: the file.
      arrays: by name; none is called "about".
      about: anything for JSON.
    """
    from safetensors.numpy import save_file

    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    # safetensors writes the memory of an array as it lies, strides unseen.
    save_file({_ABOUT: text, **{name: np.ascontiguousarray(array) for name, array in arrays.items()}}, path)


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """Read what `save_arrays` wrote.

    Args:
      path: the file.

    Returns:
      The arrays by name, and what was said about them.
    """
    from safetensors.numpy import load_file

    arrays = load_file(path)
    return arrays, json.loads(arrays.pop(_ABOUT).tobytes())
