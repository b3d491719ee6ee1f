"""Starting points from a dictionary: the explained energy on grids of centres at several widths.

The energy of a kernel at a node is exact (offset, gains and orientation solved for), so a node that explains
no less than its neighbours lies in, or next to, a basin of attraction. A grid is a product of lines, so the
projections of all its nodes on a kernel are two small matrix products, `P_x W P_y'`.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dogfit.kernels.linalg import descent_solve, map_chunks, materialize, project, sum_arrays, sum_taps
from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.objective.products import whiten
from dogfit.kernels.starts.dictionary import Grid, grids_of, nodes_of
from dogfit.kernels.starts.ellipses import elliptic_keys, elliptic_nodes, has_nodes, part_of
from dogfit.kernels.starts.peaks import largest_keys, pack_keys
from dogfit.kernels.types import Batch, Box, Image

# Differences of shape within which an elliptic start stands for another, in units of `apart`; and peaks from
# which one start is chosen, more where surround weights make many alike.
_ALIKE, _PEAKS, _TIED_PEAKS = 2.0, 3, 5
# Nodes of which the two best peaks are kept.
_GROUP = 8
# Ellipses tried at each start of a round model: none, and two of each of four directions.
_AXES = ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
_ELLIPSES = ((0.0, 0.0), *((size * e1, size * e2) for size in (0.5, 1.1) for e1, e2 in _AXES))


class Seeds(NamedTuple):
    """Candidate starts, best first.

    Attributes:
      points: search points.
      energies: explained energy at each, to about three digits.
    """

    points: Float[Array, "s p b"]
    energies: Float[Array, "s b"]


def find_seeds(
    kernels: Image,
    model: Model,
    count: int,
    weights: Image | None = None,
    box: Box | None = None,
    apart: float = 0.3,
) -> Seeds:
    """The `count` best starts of centred kernels: nodes that explain no less than their neighbours.

    Args:
      kernels: centred kernels of unit energy; with weights, whitened.
      model: static.
      count: number of starts wanted; where there are fewer, the rest have no energy.
      weights: of each tap; all alike if None.
      box: bounds narrower than the dictionary's, outside which no start is wanted.
      apart: widths within which a start stands for those of neighbouring widths and ratios.
    """
    if isinstance(model, CustomModel):
        return _custom_seeds(kernels, model, count, weights, box)
    if uses_images(model, kernels.shape[:2]):
        return _elliptic_seeds(kernels, model, count, weights, box, apart)
    shape = kernels.shape[0], kernels.shape[1]
    grids = grids_of(model, shape)
    sizes = [grid.whitening[0, 0].size for grid in grids]
    bits = (sum(sizes) - 1).bit_length()
    numbered = [
        (_energies(kernels, grid, weights, box), sum(sizes[:number]), bits)
        for number, grid in enumerate(grids)
    ]
    if model.is_searched[0] or model.two_widths:
        keys = jnp.concatenate([_peaks(*grid) for grid in numbered])
    else:
        # Centres that stay stand for no other, and all grids have the same: of each the best width.
        best = functools.reduce(jnp.maximum, [keys for grid in numbered for keys in _keys(*grid)])
        keys, apart = best.reshape(-1, best.shape[-1]), 0.0
    peaks = largest_keys(keys, 2 * count + 6, bits)
    seeds = _suppress_non_maxima(*peaks, nodes_of(model, shape), count, apart, kernels.dtype)
    return _elongate(kernels, model, seeds, weights) if model.elliptic else seeds


def uses_images(model: Model, shape: tuple[int, ...]) -> bool:
    """True if `find_seeds` makes images of elliptic nodes rather than elongating those of the round model."""
    return isinstance(model, GaussianModel) and has_nodes(model, shape)


def _elliptic_seeds(
    kernels: Image,
    model: GaussianModel,
    count: int,
    weights: Image | None,
    box: Box | None,
    apart: float,
) -> Seeds:
    """`find_seeds` for elliptic models of kernels that are not large."""
    nodes = elliptic_nodes(model, kernels.shape[:2])
    bits, most = (len(nodes) - 1).bit_length(), (_TIED_PEAKS if model.shared_amplitude else _PEAKS) * count

    def choose(given: tuple[Image, Int[Array, "c b"], Image | None, Box | None]) -> Seeds:
        kernels, keys, weights, box = given
        peaks = largest_keys(keys, most, bits)
        if box is not None:
            points = jnp.asarray(nodes[:, : len(model.names)], kernels.dtype)

            def inside(number: Int[Array, " b"]) -> Batch:
                """Energy where the search is to start."""
                point = jnp.clip(jnp.take(points, number, axis=0).T, box.lower, box.upper)
                return energy_at(kernels, list(point), model, weights)

            numbers = peaks[1]
            peaks = largest_keys(pack_keys(lax.map(inside, numbers), numbers, bits), most, bits)
        return _suppress_non_maxima(*peaks, nodes, count, apart, kernels.dtype, alike=_ALIKE * apart)

    keys = elliptic_keys(kernels, model, bits, weights, box)
    return map_chunks(choose, (kernels, keys, weights, box), part_of(kernels.shape[-1]))


def _energies(
    kernels: Image, grid: Grid, weights: Image | None, box: Box | None
) -> Float[Array, "weights m n b"]:
    energies = (
        _grid_energies(kernels, grid) if weights is None else _weighted_energies(kernels, grid, weights)
    )
    return energies if box is None else energies * _inside(grid, box)


def _keys(energies: Float[Array, "weights m n b"], first: int, bits: int) -> Int[Array, "weights i j b"]:
    """Keys of all nodes but the outermost, which are there twice, numbered from `first`."""
    size = math.prod(energies.shape[:-1])
    number = np.arange(first, first + size, dtype=np.int32).reshape(energies.shape[:-1])
    return pack_keys(energies[:, 1:-1, 1:-1], number[:, 1:-1, 1:-1, None], bits)


def _peaks(energies: Float[Array, "weights m n b"], first: int, bits: int) -> Int[Array, "c b"]:
    """Keys of nodes that explain no less than their neighbours in x and y; of others 0."""
    inner = energies[:, 1:-1, 1:-1]
    along_x = jnp.maximum(jnp.maximum(energies[:, :-2], energies[:, 2:]), energies[:, 1:-1])
    around = jnp.maximum(jnp.maximum(along_x[:, :, :-2], along_x[:, :, 2:]), along_x[:, :, 1:-1])
    keys = jnp.where(inner >= around, _keys(energies, first, bits), 0)
    # Of four nodes at most one is a peak.
    keys = jnp.maximum(keys[:, ::2], keys[:, 1::2])
    keys = jnp.maximum(keys[:, :, ::2], keys[:, :, 1::2])
    keys = keys.reshape(-1, keys.shape[-1])
    if len(keys) > 2 * _GROUP:
        # Nodes far from each other share a group.
        keys = jnp.pad(keys, ((0, -len(keys) % _GROUP), (0, 0)))
        members = keys.reshape(_GROUP, -1, keys.shape[-1])
        best = functools.reduce(jnp.maximum, list(members))
        second = functools.reduce(jnp.maximum, [jnp.where(k < best, k, 0) for k in members])
        keys = jnp.concatenate([best, second])
    return keys


def _suppress_non_maxima(
    energies: Float[Array, "t b"],
    numbers: Int[Array, "t b"],
    nodes: np.ndarray,
    count: int,
    apart: float,
    dtype: jnp.dtype,
    alike: float | None = None,
) -> Seeds:
    """The first of the peaks, without those that a better one next to them stands for.

    Next to them are centres within `apart` widths, of neighbouring widths and ratios, and, where nodes are
    elliptic, of shapes no further than `alike` from each other.
    """
    found = materialize(jnp.moveaxis(jnp.take(jnp.asarray(nodes), numbers, axis=0), -1, 0))
    at = [*found[:2], *found[-2:]]
    reach = [apart * jnp.exp(found[2])] * 2 + [jnp.ones_like(energies)] * 2
    if alike is not None:
        at += [*found[-4:-2]]
        reach += [jnp.full_like(energies, alike)] * 2
    values = jnp.concatenate([found[:-2], energies[None]])
    place, slot = (jnp.arange(n, dtype=jnp.int32)[:, None] for n in (len(energies), count))

    # One after the other: all pairs at once are a reduction, many times slower on CPUs.
    def take_up(state: tuple[Array, ...]) -> tuple[Array, ...]:
        j, hidden, taken, seeds = state
        keep = (energies[j] > 0) & ~hidden[j]
        near = [jnp.abs(a - a[j][None]) <= r[j][None] for a, r in zip(at, reach, strict=True)]
        hidden = hidden | (functools.reduce(operator.and_, near) & (place > j))
        here = keep[None] & (slot == taken[None])
        return j + 1, hidden, taken + keep, jnp.where(here[None], values[:, j, None], seeds)

    def wanting(state: tuple[Array, ...]) -> Bool[Array, ""]:
        j, _, taken, _ = state
        return (j < len(energies)) & jnp.any((energies[j] > 0) & (taken < count))

    start = energies < 0, 0 * numbers[0], jnp.repeat(0.0 * values[:, :1], count, axis=1)
    seeds = lax.while_loop(wanting, take_up, (jnp.int32(0), *start))[3]
    return Seeds(jnp.moveaxis(seeds[:-1], 1, 0).astype(dtype), seeds[-1].astype(dtype))


def _best(points: Float[Array, "l p b"], energies: Float[Array, "l b"], count: int) -> Seeds:
    """Repeated maximum: lax.top_k sorts on CPU, and costs more than all else here."""
    level = jnp.arange(len(energies), dtype=jnp.int32)[:, None]

    def take_best(left: Float[Array, "l b"], _: None) -> tuple[Float[Array, "l b"], Seeds]:
        best = level == jnp.argmax(left, axis=0).astype(jnp.int32)[None, :]
        point = sum_arrays(jnp.where(b[None], p, 0.0) for b, p in zip(best, points, strict=True))
        return jnp.where(best, -jnp.inf, left), Seeds(point, jnp.max(left, axis=0))

    return lax.scan(take_best, energies, length=count)[1]


def _inside(grid: Grid, box: Box) -> Float[Array, "weights m n #b"]:
    """Factor of each node: 1 in a box; 0 where its centre is outside, little where it is far off."""

    def excess(values: np.ndarray, parameter: int) -> Float[Array, "v #b"]:
        low, high = box.lower[parameter][None, :], box.upper[parameter][None, :]
        node = jnp.asarray(values, box.lower.dtype)[:, None]
        return jnp.maximum(jnp.maximum(low - node, node - high), 0.0)

    # Centres outside would hide the peaks inside. Where none is inside, the nearest has to do.
    x, y = (excess(line, axis) for axis, line in enumerate(grid.lines))
    x, y = (far <= jnp.min(far, axis=0, keepdims=True) for far in (x, y))
    centres = (x[:, None] & y[None]).astype(box.lower.dtype)
    far = sum_arrays(excess(values, 2 + offset) for offset, values in enumerate(grid.parameters.T)) / 0.4
    # Within one spacing of widths a start is as good as one inside; beyond, the nearest is the best there is.
    return centres[None] * jnp.exp(-20.0 * jnp.maximum(far - 1.0, 0.0))[:, None, None]


def _node_sums(image: Image, along_x: np.ndarray, along_y: np.ndarray) -> Float[Array, "m n b"]:
    """Sums over the taps of an image times the products of two sets of profiles `[k, m]`, `[k, n]`."""
    x, y = (jnp.asarray(profile, image.dtype) for profile in (along_x, along_y))
    # Highest precision: TF32 would misplace starts.
    columns = lax.dot_general(y, image, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    return lax.dot_general(x, columns, (((0,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _along_weights(weight: np.ndarray, sums: Float[Array, "m n b"]) -> Float[Array, "weights m n b"]:
    if np.all(weight == 1):
        return sums[None]
    return jnp.asarray(weight, sums.dtype)[:, None, None, None] * sums[None]


def _function_sums(image: Image, grid: Grid) -> list[Float[Array, "weights m n b"]]:
    """Sums of an image times each basis function at each node."""
    return [
        sum_arrays(
            _along_weights(weight, _node_sums(image, grid.profiles[0, w, i], grid.profiles[1, w, j]))
            for (w, i, j), weight in function
        )
        for function in grid.functions
    ]


def _grid_energies(kernels: Image, grid: Grid) -> Float[Array, "weights m n b"]:
    """Explained energy at each node, linear weights solved for."""
    projections = _function_sums(kernels, grid)
    energies = []
    for i in range(len(projections)):
        white = sum_arrays(
            jnp.asarray(grid.whitening[i, j], kernels.dtype)[..., None] * projections[j] for j in range(i + 1)
        )
        energies.append(white * white)
    return sum_arrays(energies)


def _weighted_energies(kernels: Image, grid: Grid, weights: Image) -> Float[Array, "weights m n b"]:
    """Energies of `_grid_energies` with weighted taps: the Gram matrices are the kernels' own."""
    projections = _function_sums(jnp.sqrt(weights) * kernels, grid)
    means = _function_sums(weights, grid)
    everything = sum_taps(weights)[None, None, None]
    q = len(projections)

    def gram(i: int, j: int) -> Float[Array, "weights m n b"]:
        product = sum_arrays(
            _along_weights(
                p * r,
                _node_sums(
                    weights,
                    *(
                        grid.profiles[axis, s[0], s[1 + axis]] * grid.profiles[axis, t[0], t[1 + axis]]
                        for axis in (0, 1)
                    ),
                ),
            )
            for s, p in grid.functions[i]
            for t, r in grid.functions[j]
        )
        return product - means[i] * means[j] / everything

    matrix = {(i, j): gram(i, j) for i in range(q) for j in range(i + 1)}
    # A function that the weights leave nothing of explains nothing.
    scale = [lax.rsqrt(jnp.maximum(matrix[i, i], 1e-12)) for i in range(q)]
    matrix = {(i, j): value * scale[i] * scale[j] for (i, j), value in matrix.items()}
    right = [p * s for p, s in zip(projections, scale, strict=True)]
    solved = descent_solve(matrix, right, jnp.full_like(right[0], 1e-5), 1e-5)
    return jnp.clip(sum_arrays(x * y for x, y in zip(right, solved, strict=True)), 0.0, 1.0)


def energy_at(kernels: Image, point: list[Batch], model: Model, weights: Image | None) -> Batch:
    """Explained energy at a search point."""
    images = model.varying_images(point, (kernels.shape[0], kernels.shape[1]))
    residual = project(kernels, [whiten(image, weights) for image, _ in images]).residual
    return sum_taps(kernels * kernels) - sum_taps(residual * residual)


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
