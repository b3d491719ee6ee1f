"""Functions compiled for a fixed number of rows, applied to any number."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

_ROWS = 512


def map_padded_rows(function: Callable[[Any], Any], rows: Float[np.ndarray, "n p"]) -> Any:
    """Apply a jitted function to rows in pieces of one size, padding the last with copies of its last row.

    Args:
      function: takes `[512, p]`; returns a pytree of arrays with a row for each.
      rows: at least one.

    Returns:
      The pytree, of NumPy arrays with n rows.
    """

    def apply(start: int) -> Any:
        piece = rows[start : start + _ROWS]
        padded = np.concatenate([piece, np.repeat(piece[-1:], _ROWS - len(piece), axis=0)])
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(piece)], function(jnp.asarray(padded)))

    pieces = map(apply, range(0, len(rows), _ROWS))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
