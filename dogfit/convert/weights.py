"""Weights read from a file of another format."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Weights:
    """Tensors of a file, and what is known about them."""

    tensors: Mapping[str, np.ndarray]
    """Name -> values."""
    order: tuple[str, ...] = ()
    """Names in the order in which the network runs, where the file tells; a part of them suffices."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Name of each part that was left out -> why."""
