"""Starting points from a dictionary: the explained energy on a grid of centres at several widths.

The energy of a kernel at a grid node is exact (offset, gains and orientation solved for), so the best node
lies in, or next to, the best basin. The grid is a product of lines, so the projections of all its nodes on a
kernel are two small matrix products, `P_x W P_y'`; what depends on the grid alone is prepared in NumPy.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.custom import CustomModel
from dogfit.kernels.derivatives import Model
from dogfit.kernels.linalg import Batch, descent_solve, project, total
from dogfit.kernels.model import GaussianModel, Term
from dogfit.kernels.newton import Box
from dogfit.kernels.products import Image, whiten
from dogfit.kernels.profiles import PROFILES

# Widths of the surround, in widths of the centre, at which a two-width model is tried.
# Near the least ratio the pair is a second derivative: a basin of its own, that needs as fine a grid.
_RATIOS = ((1.1,), (1.7, 3.0, 7.0))
_TIED_RATIOS = ((1.5,), (2.5, 6.0))
_NEAR_DERIVATIVE = 1.5
_KAPPAS = (0.3, 0.65, 1.0)
MAX_STARTS = 10  # one per width
# A derivative of a Gaussian far narrower than a tap changes its shape within hundredths of a tap where its
# integral over the tap vanishes: at the tap's centre for the first, near its edges for the second.
# Offsets from a tap's centre by order, for widths up to the first number.
_NARROW_OFFSETS = {
    1: ((0.35, (0.0, 0.1, 0.2, 0.35, 0.5)), (0.5, (0.0, 0.3, 0.5))),
    2: ((0.35, (0.0, 0.3, 0.45, 0.49, 0.5)), (0.5, (0.0, 0.3, 0.5))),
}
# Ellipses tried at each start of a round model: none, and one of each of four directions.
_ELLIPSES = ((0.0, 0.0), (0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7))


class Seeds(NamedTuple):
    """Candidate starts, best first.

    Attributes:
      points: search points.
      energies: explained energy at each, to about three digits.
    """

    points: Float[Array, "s p b"]
    energies: Float[Array, "s b"]


class _Grid(NamedTuple):
    """Nodes of one width: a line of centres for each axis, and what projects on them."""

    lines: tuple[np.ndarray, np.ndarray]
    """Centres along x `[m]` and y `[n]`, in taps from the middle."""
    constants: tuple[float, ...]
    """The other search parameters."""
    profiles: dict[tuple[int, int, int], np.ndarray]
    """By axis, width and order: `[k, m]`."""
    terms: tuple[tuple[tuple[Term, float], ...], ...]
    """Terms of each basis function, with weights."""
    whitening: dict[tuple[int, int], np.ndarray]
    """Inverse Cholesky factor of the Gram matrix at each node: lower triangle of `[m, n]`."""


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


@functools.cache
def _grids(model: GaussianModel, shape: tuple[int, int]) -> tuple[tuple[_Grid, ...], ...]:
    """All grids of a round model; each group yields one start."""
    levels = np.geomspace(model.min_sigma, 0.75 * max(shape), MAX_STARTS).tolist()
    groups = _TIED_RATIOS if model.tied else _RATIOS if model.two_widths else ((1.0,),)
    kappas = _KAPPAS if model.tied else (0.0,)
    return tuple(
        tuple(_grid(model, shape, sigma, ratio, kappa) for ratio, kappa in itertools.product(group, kappas))
        for sigma in levels
        for group in groups
    )


def _grid(model: GaussianModel, shape: tuple[int, int], sigma: float, ratio: float, kappa: float) -> _Grid:
    fine = 2 if model.two_widths and not model.tied and ratio < _NEAR_DERIVATIVE else model.order
    if model.profile == "discrete":
        x, y = (np.arange(2 * size + 1) / 2 - size / 2 for size in shape)
    else:
        x, y = (center_line(sigma, size, fine) for size in shape)
    evaluate, widths = PROFILES[model.profile], [sigma, ratio * sigma][: 1 + model.two_widths]
    profiles = {
        (axis, w, order): values
        for axis, (line, size) in enumerate(zip((x, y), shape, strict=True))
        for w, width in enumerate(widths)
        for order, values in enumerate(evaluate(line, np.full_like(line, width), size, max(model.order, 1)))
    }
    terms = tuple(
        tuple((t, -kappa if model.tied and t[0] else 1.0) for t in function) for function in model.terms
    )
    images = [
        total(
            weight * np.einsum("xm,yn->mnxy", profiles[0, w, i], profiles[1, w, j])
            for (w, i, j), weight in function
        )
        for function in terms
    ]
    columns = np.stack([image.reshape(x.size, y.size, -1) for image in images], axis=-2)
    constants = [math.log(sigma)]
    constants += [math.log(ratio)] * model.two_widths + [kappa] * model.tied
    return _Grid((x, y), tuple(constants), profiles, terms, _whitening(columns))


def _whitening(columns: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
    """Lower triangle of the inverse Cholesky factor of the Gram matrices of columns `[..., q, taps]`."""
    q = columns.shape[-2]
    columns = columns - columns.mean(axis=-1, keepdims=True)
    gram = columns @ columns.swapaxes(-1, -2)
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-30))
    correlation = gram * scale[..., :, None] * scale[..., None, :] + 1e-8 * np.eye(q)
    inverse = np.linalg.inv(np.linalg.cholesky(correlation)) * scale[..., None, :]
    return {(i, j): inverse[..., i, j] for i in range(q) for j in range(i + 1)}


def find_seeds(
    kernels: Image, model: Model, count: int, weights: Image | None = None, box: Box | None = None
) -> Seeds:
    """The `count` best starts of centred kernels, at most one per group of grids.

    Args:
      kernels: centred kernels of unit energy, x on the first axis, batch last; with weights, whitened.
      model: static.
      count: number of starts wanted, at most `MAX_STARTS` (twice as many for two widths).
      weights: of each tap; all alike if None.
      box: bounds narrower than the dictionary's, outside which no start is wanted.
    """
    if isinstance(model, CustomModel):
        return _custom_seeds(kernels, model, count, weights, box)
    levels = [_best_of_level(kernels, g, weights, box) for g in _grids(model, kernels.shape[:2])]
    seeds = _best(jnp.stack([p for p, _ in levels]), jnp.stack([e for _, e in levels]), count)
    return _elongate(kernels, model, seeds, weights) if model.elliptic else seeds


def _best(points: Float[Array, "l p b"], energies: Float[Array, "l b"], count: int) -> Seeds:
    """Repeated maximum: lax.top_k sorts on CPU, and costs more than all else here."""
    chosen_points, chosen_energies = [], []
    level = jnp.arange(len(energies), dtype=jnp.int32)[:, None]
    for _ in range(count):
        best = level == jnp.argmax(energies, axis=0).astype(jnp.int32)[None, :]
        chosen_energies.append(jnp.max(energies, axis=0))
        chosen_points.append(jnp.sum(jnp.where(best[:, None, :], points, 0.0), axis=0))
        energies = jnp.where(best, -jnp.inf, energies)
    return Seeds(jnp.stack(chosen_points), jnp.stack(chosen_energies))


def _best_of_level(
    kernels: Image, grids: tuple[_Grid, ...], weights: Image | None, box: Box | None
) -> tuple[Float[Array, "p b"], Batch]:
    """Best node at one width of the centre, over all surrounds."""
    points, energies = zip(*(_best_of_grid(kernels, grid, weights, box) for grid in grids), strict=True)
    point, energy = points[0], energies[0]
    for other_point, other_energy in zip(points[1:], energies[1:], strict=True):
        point = jnp.where((other_energy > energy)[None, :], other_point, point)
        energy = jnp.maximum(energy, other_energy)
    return point, energy


def _best_of_grid(
    kernels: Image, grid: _Grid, weights: Image | None, box: Box | None
) -> tuple[Float[Array, "p b"], Batch]:
    energies = (
        _grid_energies(kernels, grid) if weights is None else _weighted_energies(kernels, grid, weights)
    )
    if box is not None:
        energies = energies * _inside(grid, box)
    index, energy = _packed_argmax(energies)
    x, y = (jnp.asarray(line, kernels.dtype) for line in grid.lines)
    constants = [jnp.full_like(energy, c, kernels.dtype) for c in grid.constants]
    point = jnp.stack([x[index // y.size], y[index % y.size], *constants])
    return point, energy.astype(kernels.dtype)


def _inside(grid: _Grid, box: Box) -> Float[Array, "#b m n"]:
    """Which nodes lie in a box, or next to it: 1, or small the further out."""
    dtype = box.lower.dtype

    def excess(values: np.ndarray, parameter: int, reach: float) -> Array:
        low, high = box.lower[parameter][:, None], box.upper[parameter][:, None]
        node = jnp.asarray(values, dtype)[None, :]
        return jnp.maximum(jnp.maximum(low - node, node - high), 0.0) / reach

    x, y = (
        excess(line, axis, float(np.diff(line).max()) if line.size > 1 else 1.0)
        for axis, line in enumerate(grid.lines)
    )
    far = x[:, :, None] + y[:, None, :]
    for offset, value in enumerate(grid.constants):
        far = far + excess(np.array([value]), 2 + offset, 0.4)[:, :, None]
    # A node within one spacing keeps its energy; beyond, the nearest is the best to be had.
    return jnp.exp(-20.0 * jnp.maximum(far - 1.0, 0.0))


def _along_first(array: Array, profile: Array) -> Array:
    # Contracting the leading axis moves no data. Highest precision: TF32 would misplace starts.
    return lax.dot_general(array, profile, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def _node_sums(image: Image, along_x: np.ndarray, along_y: np.ndarray) -> Float[Array, "b m n"]:
    """Sums over the taps of an image times the products of two sets of profiles `[k, m]`, `[k, n]`."""
    x, y = (jnp.asarray(profile, image.dtype) for profile in (along_x, along_y))
    return _along_first(_along_first(image, x), y)


def _function_sums(image: Image, grid: _Grid) -> list[Float[Array, "b m n"]]:
    """Sums of an image times each basis function at each node."""
    return [
        total(
            weight * _node_sums(image, grid.profiles[0, w, i], grid.profiles[1, w, j])
            for (w, i, j), weight in function
        )
        for function in grid.terms
    ]


def _grid_energies(kernels: Image, grid: _Grid) -> Float[Array, "b m n"]:
    """Explained energy at each node, linear weights solved for."""
    projections = _function_sums(kernels, grid)
    energies = []
    for i in range(len(projections)):
        white = total(
            jnp.asarray(grid.whitening[i, j], kernels.dtype)[None] * projections[j] for j in range(i + 1)
        )
        energies.append(white * white)
    return total(energies)


def _weighted_energies(kernels: Image, grid: _Grid, weights: Image) -> Float[Array, "b m n"]:
    """As `_grid_energies` with weighted taps: the Gram matrices are the kernels' own."""
    projections = _function_sums(jnp.sqrt(weights) * kernels, grid)
    means = _function_sums(weights, grid)
    everything = jnp.sum(weights, axis=(0, 1))[:, None, None]
    q = len(projections)

    def gram(i: int, j: int) -> Float[Array, "b m n"]:
        product = total(
            p
            * r
            * _node_sums(
                weights,
                *(
                    grid.profiles[axis, s[0], s[1 + axis]] * grid.profiles[axis, t[0], t[1 + axis]]
                    for axis in (0, 1)
                ),
            )
            for s, p in grid.terms[i]
            for t, r in grid.terms[j]
        )
        return product - means[i] * means[j] / everything

    matrix = {(i, j): gram(i, j) for i in range(q) for j in range(i + 1)}
    # A function that the weights leave nothing of explains nothing.
    scale = [lax.rsqrt(jnp.maximum(matrix[i, i], 1e-12)) for i in range(q)]
    matrix = {(i, j): value * scale[i] * scale[j] for (i, j), value in matrix.items()}
    right = [p * s for p, s in zip(projections, scale, strict=True)]
    solved = descent_solve(matrix, right, jnp.full_like(right[0], 1e-5), 1e-5)
    return jnp.clip(total(x * y for x, y in zip(right, solved, strict=True)), 0.0, 1.0)


def _packed_argmax(energies: Float[Array, "b m n"]) -> tuple[Int[Array, " b"], Batch]:
    """Flat index and value of the largest energy, as one integer maximum.

    Non-negative floats order like their bits, so the index can ride in the low ones, at the price of
    digits that a seed does not need. `argmax` proper is 20 times slower on CPU.
    """
    flat = energies.astype(jnp.float32).reshape(energies.shape[0], -1)
    low_bits = (1 << max(flat.shape[1] - 1, 1).bit_length()) - 1
    index = jnp.arange(flat.shape[1], dtype=jnp.int32)[None, :]
    packed = jnp.max((lax.bitcast_convert_type(flat, jnp.int32) & ~low_bits) | index, axis=1)
    return packed & low_bits, lax.bitcast_convert_type(packed & ~low_bits, jnp.float32)


def energy_at(kernels: Image, point: list[Batch], model: Model, weights: Image | None) -> Batch:
    """Explained energy at a search point."""
    images = model.images(point, (kernels.shape[0], kernels.shape[1]))
    residual = project(kernels, [whiten(image, weights) for image in images]).residual
    return jnp.sum(kernels * kernels, axis=(0, 1)) - jnp.sum(residual * residual, axis=(0, 1))


def _elongate(kernels: Image, model: GaussianModel, seeds: Seeds, weights: Image | None) -> Seeds:
    """Starts of a round model with the best of a few ellipses each, best start first."""
    ellipses = jnp.asarray(_ELLIPSES, kernels.dtype)

    def with_ellipse(point: Float[Array, "p b"], ellipse: Float[Array, " 2"]) -> Float[Array, "p b"]:
        shape = jnp.broadcast_to(ellipse[:, None], (2, point.shape[1])) + 0.0 * point[:2]
        return jnp.concatenate([point, shape])

    def best(point: Float[Array, "p b"]) -> tuple[Float[Array, "q b"], Batch]:
        candidates = jax.vmap(lambda e: with_ellipse(point, e))(ellipses)
        energies = lax.map(lambda p: energy_at(kernels, list(p), model, weights), candidates)
        chosen = _best(candidates, energies, 1)
        return chosen.points[0], chosen.energies[0]

    points, energies = lax.map(best, seeds.points)
    return _best(points, energies, len(energies))


def _custom_seeds(
    kernels: Image, model: CustomModel, count: int, weights: Image | None, box: Box | None
) -> Seeds:
    """The best node of each of `count` parts of a custom model's nodes, cut along its first parameters."""
    nodes = jnp.asarray(model.nodes, kernels.dtype)
    rows = kernels.shape[-1]

    def weigh(node: Float[Array, " p"]) -> tuple[Float[Array, "p b"], Batch]:
        point = jnp.broadcast_to(node[:, None], (node.size, rows)) + 0.0 * kernels[:1, 0]
        if box is not None:
            point = jnp.clip(point, box.lower, box.upper)
        return point, energy_at(kernels, list(point), model, weights)

    each = -(-nodes.shape[1] // count)
    padded = jnp.pad(nodes, ((0, 0), (0, count * each - nodes.shape[1])), mode="edge")

    def best_of_part(part: Float[Array, "p m"]) -> tuple[Float[Array, "p b"], Batch]:
        def keep_better(best: tuple[Array, Array], node: Array) -> tuple[tuple[Array, Array], None]:
            point, energy = weigh(node)
            better = energy > best[1]
            return (jnp.where(better[None, :], point, best[0]), jnp.maximum(energy, best[1])), None

        first = weigh(part[:, 0])
        return lax.scan(keep_better, first, part[:, 1:].T)[0]

    parts = jnp.moveaxis(padded.reshape(nodes.shape[0], count, each), 1, 0)
    points, energies = lax.map(best_of_part, parts)
    return _best(points, energies, count)
