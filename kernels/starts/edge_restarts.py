"""Starts across the edges of taps.

The second derivative of a narrow Gaussian, integrated over taps, turns round within hundredths of a tap where
its centre crosses an edge: maxima lie on either side, closer than any grid of starts. So the search starts
again from the best point it has found, its centre moved along x, y or both.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dogfit.kernels.types import Batch

# Where along x and y: as it is (0), just beyond the next edge of a tap (1) or this side of it (2), at its
# mirror image in the tap (3), or where a profile changes most within the tap (4).
_MOVES = (
    *((1, 1), (1, 0), (0, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2)),
    *((3, 0), (0, 3), (3, 3), (4, 0), (0, 4), (4, 4)),
)
N_EDGE_RESTARTS = len(_MOVES)
# Taps from the edge, and from the middle of the tap.
_BESIDE_EDGE, _WITHIN_TAP = 0.006, 0.37


def move_across_edges(
    point: Float[Array, "p b"], which: Int[Array, " b"], shape: tuple[int, int], narrowest: Batch
) -> Float[Array, "p b"]:
    """A start beside a search point, at the narrowest width.

    Args:
      point: search point of a `GaussianModel`.
      which: of the `N_EDGE_RESTARTS`.
      shape: number of taps along y and x.
      narrowest: log width.
    """
    return jnp.stack(
        [
            *(_move(point[a], jnp.asarray(_MOVES, jnp.int32)[which, a], shape[1 - a]) for a in (0, 1)),
            jnp.broadcast_to(narrowest, point[2].shape),
            *point[3:],
        ]
    )


def _move(center: Batch, move: Int[Array, " b"], taps: int) -> Batch:
    middle = 0.5 * (taps % 2)
    edge = jnp.round(center - middle) + middle
    tap = jnp.round(center - middle - 0.5) + middle + 0.5
    beside = edge + jnp.where((center > edge) == (move == 2), _BESIDE_EDGE, -_BESIDE_EDGE)
    within = tap + jnp.where(center > tap, _WITHIN_TAP, -_WITHIN_TAP)
    return jnp.select([move == 0, move <= 2, move == 3], [center, beside, 2.0 * tap - center], within)
