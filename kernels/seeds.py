"""Starting points from a dictionary: the explained energy on a grid of centres at several widths.

The energy of a kernel at a grid node is exact (offset, gains and orientation solved for), so the best node
lies in, or next to, the best basin. The grid is a product of lines, so the projections of all its nodes on a
kernel are two small matrix products, `P_x W P_y'`; what depends on the grid alone is prepared in NumPy.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.separable import Terms

# Widths of the surround, in widths of the centre, at which a two-width model is tried.
# Near the least ratio the pair is a second derivative: a basin of its own, that needs as fine a grid.
_RATIOS = ((1.1,), (1.7, 3.0, 7.0))
_NEAR_DERIVATIVE = 1.5
MAX_STARTS = 10  # one per width
_NARROWEST = 0.3
# A derivative of a Gaussian far narrower than a tap changes its shape within hundredths of a tap where its
# integral over the tap vanishes: at the tap's centre for the first, near its edges for the second.
# Offsets from a tap's centre by order, for widths up to the first number.
_NARROW_OFFSETS = {
    1: ((0.35, (0.0, 0.1, 0.2, 0.35, 0.5)), (0.5, (0.0, 0.3, 0.5))),
    2: ((0.35, (0.0, 0.3, 0.45, 0.49, 0.5)), (0.5, (0.0, 0.3, 0.5))),
}


class Seeds(NamedTuple):
    """Candidate starts, best first.

    Attributes:
      points: search points (x0, y0, log sigma[, log ratio]).
      energies: explained energy at each, to about three digits.
    """

    points: Float[Array, "s p b"]
    energies: Float[Array, "s b"]


class _Grid(NamedTuple):
    """Nodes of one width: a line of centres for each axis, and what projects on them."""

    line: np.ndarray
    """Centres `[m]`, in taps from the middle."""
    constants: tuple[float, ...]
    """log sigma[, log ratio]."""
    profiles: tuple[np.ndarray, ...]
    """Per term, x then y: `[k, m]`."""
    whitening: dict[tuple[int, int], np.ndarray]
    """Inverse Cholesky factor of the Gram matrix at each node: lower triangle of `[m, m]`."""


def center_line(sigma: float, size: int, order: int) -> np.ndarray:
    """Centres tried along one axis, `[m]`, from one end of the kernel to the other."""
    if order > 0:
        for limit, offsets in _NARROW_OFFSETS[order]:
            if sigma <= limit:
                around = sorted({sign * o for o in offsets for sign in (-1, 1)})
                taps = np.arange(size)[:, None] - (size - 1) / 2
                return np.unique(np.round((taps + np.array(around)).ravel(), 6))
    spacing = min(max(0.5 * sigma, 0.25) if order else max(sigma, 0.5), 0.17 * size)
    return np.linspace(-size / 2, size / 2, math.ceil(size / spacing) + 1)


def _profile(order: int, line: np.ndarray, sigma: float, size: int) -> np.ndarray:
    """As `profiles.integrated_profiles`, in float64, `[k, m]`."""
    z = (np.arange(size + 1)[:, None] - size / 2 - line[None, :]) / sigma
    if order == 0:
        edge = 0.5 * np.vectorize(math.erf)(z / math.sqrt(2))
    else:
        hermite = (np.ones_like(z), -z, z * z - 1)[order - 1]
        edge = hermite * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return np.diff(edge, axis=0)


@functools.cache
def _grids(terms: Terms, size: int) -> tuple[tuple[_Grid, ...], ...]:
    """All grids of a model; each group yields one start."""
    order = sum(terms[0][1:])
    levels = np.geomspace(_NARROWEST, 0.75 * size, MAX_STARTS)
    two_widths = any(width for width, _, _ in terms)
    ratios = _RATIOS if two_widths else ((1.0,),)
    return tuple(
        tuple(_grid(terms, size, order, sigma, ratio, two_widths) for ratio in group)
        for sigma in levels.tolist()
        for group in ratios
    )


def _grid(terms: Terms, size: int, order: int, sigma: float, ratio: float, two_widths: bool) -> _Grid:
    line = center_line(sigma, size, 2 if two_widths and ratio < _NEAR_DERIVATIVE else order)
    axes = [
        tuple(_profile(o, line, sigma * (ratio if width else 1.0), size) for o in (i, j))
        for width, i, j in terms
    ]
    columns = np.stack(
        [np.einsum("xm,yn->mnxy", x, y).reshape(line.size, line.size, -1) for x, y in axes], -2
    )
    columns = columns - columns.mean(axis=-1, keepdims=True)
    gram = columns @ columns.swapaxes(-1, -2)
    diagonal = np.einsum("mnii->mni", gram)
    scale = 1 / np.sqrt(np.maximum(diagonal, 1e-30))
    correlation = gram * scale[..., :, None] * scale[..., None, :] + 1e-8 * np.eye(len(terms))
    inverse = np.linalg.inv(np.linalg.cholesky(correlation)) * scale[..., None, :]
    whitening = {(i, j): inverse[..., i, j] for i in range(len(terms)) for j in range(i + 1)}
    constants = (math.log(sigma), math.log(ratio)) if two_widths else (math.log(sigma),)
    return _Grid(line, constants, tuple(p for pair in axes for p in pair), whitening)


def find_seeds(kernels: Float[Array, "kx ky b"], terms: Terms, count: int) -> Seeds:
    """The `count` best starts of centred kernels, at most one per group of grids.

    Args:
      kernels: centred kernels of unit energy, x on the first axis, batch last.
      terms: basis of the model, as in `separable`; static.
      count: number of starts wanted, at most `MAX_STARTS`.
    """
    levels = [_best_of_level(kernels, grids) for grids in _grids(terms, kernels.shape[0])]
    points = jnp.stack([point for point, _ in levels])
    energies = jnp.stack([energy for _, energy in levels])
    # Repeated maximum: lax.top_k sorts on CPU, and costs more than all else here.
    chosen_points, chosen_energies = [], []
    level = jnp.arange(len(levels), dtype=jnp.int32)[:, None]
    for _ in range(count):
        best = level == jnp.argmax(energies, axis=0).astype(jnp.int32)[None, :]
        chosen_energies.append(jnp.max(energies, axis=0))
        chosen_points.append(jnp.sum(jnp.where(best[:, None, :], points, 0.0), axis=0))
        energies = jnp.where(best, -jnp.inf, energies)
    return Seeds(jnp.stack(chosen_points), jnp.stack(chosen_energies))


def _best_of_level(
    kernels: Float[Array, "kx ky b"], grids: tuple[_Grid, ...]
) -> tuple[Float[Array, "p b"], Float[Array, " b"]]:
    """Best node at one width of the centre, over all surrounds."""
    points, energies = zip(*(_best_of_grid(kernels, grid) for grid in grids), strict=True)
    point, energy = points[0], energies[0]
    for other_point, other_energy in zip(points[1:], energies[1:], strict=True):
        point = jnp.where((other_energy > energy)[None, :], other_point, point)
        energy = jnp.maximum(energy, other_energy)
    return point, energy


def _best_of_grid(
    kernels: Float[Array, "kx ky b"], grid: _Grid
) -> tuple[Float[Array, "p b"], Float[Array, " b"]]:
    energies = _grid_energies(kernels, grid)
    index, energy = _packed_argmax(energies)
    line = jnp.asarray(grid.line, kernels.dtype)
    constants = [jnp.full_like(energy, c, kernels.dtype) for c in grid.constants]
    point = jnp.stack([line[index // line.size], line[index % line.size], *constants])
    return point, energy.astype(kernels.dtype)


def _grid_energies(kernels: Float[Array, "kx ky b"], grid: _Grid) -> Float[Array, "b m n"]:
    """Explained energy with the centre at (line[m], line[n]), linear weights solved for at each node."""

    def along_first(array: Array, profile: np.ndarray) -> Array:
        # Contracting the leading axis moves no data. Highest precision: TF32 would misplace starts.
        dimensions = (((0,), (0,)), ((), ()))
        weights = jnp.asarray(profile, kernels.dtype)
        return lax.dot_general(array, weights, dimensions, precision=lax.Precision.HIGHEST)

    pairs = zip(grid.profiles[::2], grid.profiles[1::2], strict=True)
    projections = [along_first(along_first(kernels, x), y) for x, y in pairs]
    energies = None
    for i in range(len(projections)):
        white = jnp.asarray(grid.whitening[i, 0], kernels.dtype)[None] * projections[0]
        for j in range(1, i + 1):
            white = white + jnp.asarray(grid.whitening[i, j], kernels.dtype)[None] * projections[j]
        energies = white * white if energies is None else energies + white * white
    assert energies is not None
    return energies


def _packed_argmax(energies: Float[Array, "b m n"]) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """Flat index and value of the largest energy, as one integer maximum.

    Non-negative floats order like their bits, so the index can ride in the low ones, at the price of
    digits that a seed does not need. `argmax` proper is 20 times slower on CPU.
    """
    flat = energies.astype(jnp.float32).reshape(energies.shape[0], -1)
    low_bits = (1 << max(flat.shape[1] - 1, 1).bit_length()) - 1
    index = jnp.arange(flat.shape[1], dtype=jnp.int32)[None, :]
    packed = jnp.max((lax.bitcast_convert_type(flat, jnp.int32) & ~low_bits) | index, axis=1)
    return packed & low_bits, lax.bitcast_convert_type(packed & ~low_bits, jnp.float32)
