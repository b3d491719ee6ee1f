"""Nodes of elliptic models, and which of them explain most of a kernel.

An ellipse at an angle is no product of profiles along the axes: the images of all nodes are made in full,
while the program runs, and one matrix product gives their energies.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.linalg import map_chunks, orthonormal_columns, solve_gram, sum_arrays
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.products import whiten
from dogfit.kernels.starts.constants import ELLIPTIC
from dogfit.kernels.starts.dictionary import offset_line, width_levels
from dogfit.kernels.starts.peaks import pack_keys
from dogfit.kernels.types import Box, Image

# Added to the squares of basis functions of unit norm, as weights see them.
_LEAST_NORM = 1e-3
# Nodes looked at together, and kernels.
_TOGETHER, _PART = 1024, 128


class _Nodes(NamedTuple):
    """Nodes that differ by their centre alone, on the same centres each."""

    centers: Float[np.ndarray, "c 2"]
    rest: Float[np.ndarray, "g q"]
    """The other search parameters, and numbers of the width and of the ratio with the surround weight."""


class _Given(NamedTuple):
    """Kernels, whitened and times the roots of their weights, and what there is of weights and bounds."""

    taps: Float[Array, "t b"]
    weights: Float[Array, "t b"] | None
    box: Box | None


def part_of(rows: int) -> int:
    """Kernels whose energies at some nodes stay in a CPU's cache; elsewhere all of them."""
    return _PART if jax.default_backend() == "cpu" and rows % _PART == 0 else rows


def has_nodes(model: GaussianModel, shape: tuple[int, ...]) -> bool:
    """True if there are such nodes: for elliptic models and kernels that are not large."""
    return model.elliptic and math.prod(shape) <= ELLIPTIC.most_taps


def _centers(offsets: tuple[float, ...], shape: tuple[int, int]) -> Float[np.ndarray, "c 2"]:
    lines = [offset_line(size, offsets) for size in reversed(shape)]
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, 2)


def _rings(model: GaussianModel) -> tuple[tuple[float, float], ...]:
    """Rings of ellipses. With a shared amplitude optima lie mostly on the bounds, sampled ones everywhere."""
    if model.profile == "sampled":
        return ELLIPTIC.ring, ELLIPTIC.along_axes, ELLIPTIC.between
    return ELLIPTIC.ring, ELLIPTIC.along_axes if model.shared_amplitude else ELLIPTIC.between


@functools.cache
def _nodes_of(model: GaussianModel, shape: tuple[int, int]) -> tuple[_Nodes, ...]:
    low, high = model.min_sigma, max(model.min_sigma, ELLIPTIC.widest * max(shape))
    ratios = (
        (ELLIPTIC.shared_ratios if model.shared_amplitude else ELLIPTIC.ratios)
        if model.two_widths
        else (1.0,)
    )
    tails = [
        [math.log(ratio)] * model.two_widths + [weight] * model.shared_amplitude
        for ratio in ratios
        for weight in (ELLIPTIC.surround_weights if model.shared_amplitude else (0.0,))
    ]
    ellipses = [(0.0, 0.0)]
    for radius, turn in _rings(model):
        angles = 2 * np.pi * (np.arange(ELLIPTIC.directions) + turn) / ELLIPTIC.directions
        ellipses += zip(radius * np.cos(angles), radius * np.sin(angles), strict=True)
    by_offsets: dict[tuple[float, ...], list[list[float]]] = {}
    for step, sigma in enumerate(width_levels(low, high, ELLIPTIC.width_step)):
        for ellipse in ellipses:
            short = sigma * math.exp(-0.5 * math.hypot(*ellipse))
            offsets = next(offsets for most, offsets in ELLIPTIC.offsets if short < most)
            groups = by_offsets.setdefault(
                ELLIPTIC.narrow_offsets if sigma < ELLIPTIC.narrow else offsets, []
            )
            groups += [[math.log(sigma), *tail, *ellipse, step, number] for number, tail in enumerate(tails)]
    return tuple(_Nodes(_centers(offsets, shape), np.array(rest)) for offsets, rest in by_offsets.items())


@functools.cache
def elliptic_nodes(model: GaussianModel, shape: tuple[int, int]) -> Float[np.ndarray, "n q"]:
    """Search point, and numbers of the width and of the ratio with the surround weight, of every node."""
    nodes = [
        [np.tile(n.centers, (len(n.rest), 1)), np.repeat(n.rest, len(n.centers), axis=0)]
        for n in _nodes_of(model, shape)
    ]
    return np.block(nodes).astype(np.float32)


def elliptic_keys(
    kernels: Image, model: GaussianModel, bits: int, weights: Image | None = None, box: Box | None = None
) -> Int[Array, "c b"]:
    """Keys of the best nodes of each width, shape and surround, for centred kernels of unit energy.

    Where taps have weights, kernels are whitened by them. Nodes outside a box count for less, the further
    they are away.
    """
    shape = (kernels.shape[0], kernels.shape[1])
    taps = (kernels if weights is None else jnp.sqrt(weights) * kernels).reshape(-1, kernels.shape[-1])
    given = _Given(taps, None if weights is None else weights.reshape(taps.shape), box)
    found, first = [], 0
    for nodes in _nodes_of(model, shape):
        found.append(_best_centers(given, nodes, model, shape, first, bits))
        first += len(nodes.centers) * len(nodes.rest)
    return jnp.concatenate(found)


def _dot(rows: Float[Array, "t n"], taps: Float[Array, "t b"]) -> Float[Array, "n b"]:
    """Sums over the taps; of the highest precision, since TF32 would misplace starts."""
    return lax.dot_general(rows, taps, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def _energies(
    columns: Float[Array, "t q*n"],
    products: dict[tuple[int, int], Float[Array, "t n"]],
    q: int,
    given: _Given,
) -> Float[Array, "n b"]:
    """Energy that the `q` orthonormal columns of each node explain; with weights, by their products."""
    taps, weights, _ = given
    sums = jnp.split(_dot(columns, taps), q)
    if weights is None:
        return sum_arrays(part * part for part in sums)
    means = jnp.split(_dot(columns, weights) * lax.rsqrt(sum_arrays(weights))[None], q)
    gram = {(i, j): _dot(product, weights) - means[i] * means[j] for (i, j), product in products.items()}
    # Of columns that the weights all but make dependent, one is enough.
    gram |= {(i, i): gram[i, i] + _LEAST_NORM for i in range(q)}
    return jnp.minimum(solve_gram(gram, sums).energy, 1.0)


def _inside(point: list[Float[Array, " n"]], box: Box) -> Float[Array, "n #b"]:
    """Factor of each node: 1 in a box and to within one spacing of it, less beyond."""
    spacing = [0.7 * jnp.exp(point[2])] * 2 + [jnp.full_like(point[2], 0.4)] * (len(point) - 2)
    far = sum_arrays(
        jnp.maximum(jnp.maximum(low[None] - at[:, None], at[:, None] - high[None]), 0.0) / unit[:, None]
        for at, low, high, unit in zip(point, box.lower, box.upper, spacing, strict=True)
    )
    return 1.0 / (1.0 + 20.0 * jnp.maximum(far - 1.0, 0.0))


def _best_centers(
    given: _Given, nodes: _Nodes, model: GaussianModel, shape: tuple[int, int], first: int, bits: int
) -> Int[Array, "c b"]:
    centers, groups = len(nodes.centers), len(nodes.rest)
    together = max(_TOGETHER // centers, 1)
    # Twice the last where they do not come out even: a key that is there twice counts once.
    number = np.minimum(np.arange(-(-groups // together) * together), groups - 1).reshape(-1, together)
    parameters = len(model.names) - 2
    dtype, rows = given.taps.dtype, given.taps.shape[-1]
    at = jnp.asarray(nodes.centers.T, dtype)

    def look(chosen: Int[Array, " g"]) -> Int[Array, "c b"]:
        rest = jnp.asarray(nodes.rest[:, :parameters], dtype)[chosen]
        point = [*jnp.tile(at, (1, together)), *jnp.repeat(rest, centers, axis=0).T]
        columns = orthonormal_columns([whiten(image, None) for image in model.images(point, shape)])
        columns = [column.reshape(len(given.taps), -1) for column in columns]
        pairs = [(i, j) for i in range(len(columns)) for j in range(i + 1)]
        products = {} if given.weights is None else {(i, j): columns[i] * columns[j] for i, j in pairs}
        side_by_side = jnp.concatenate(columns, axis=1)
        numbers = first + chosen[:, None] * centers + np.arange(centers, dtype=np.int32)[None]

        def best(part: _Given) -> Int[Array, "c p"]:
            energies = _energies(side_by_side, products, len(columns), part)
            if part.box is not None:
                energies = energies * _inside(point, part.box)
            keys = pack_keys(energies.reshape(together, centers, -1), numbers[..., None], bits)
            return jnp.concatenate(
                [jnp.max(keys[:, place :: ELLIPTIC.places], axis=1) for place in range(ELLIPTIC.places)]
            )

        return map_chunks(best, given, part_of(rows))

    return lax.map(look, jnp.asarray(number, jnp.int32)).reshape(-1, rows)
