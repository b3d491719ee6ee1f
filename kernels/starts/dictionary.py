"""The dictionary of starts: grids of centres at several widths, and what depends on them alone, in NumPy."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dogfit.kernels.linalg import sum_arrays
from dogfit.kernels.model.gaussian import GaussianModel, Term
from dogfit.kernels.model.profiles import PROFILES
from dogfit.kernels.starts.constants import XLA, GridConstants

# Basis functions as sums of terms, each with its weights at every surround weight.
Functions = tuple[tuple[tuple[Term, np.ndarray], ...], ...]
# One-dimensional profiles `[k, m]` by axis, number of the width and order.
Profiles = dict[tuple[int, int, int], np.ndarray]
# Lower triangle of a matrix per node: `[surround weights, m, n]` by row and column.
Triangle = dict[tuple[int, int], np.ndarray]


class Place(NamedTuple):
    """Grids of one width of the centre.

    Attributes:
      sigma: width, in taps.
      level: number of the width: neighbours differ by one.
      offsets: of centres from each tap's, in taps; evenly spaced centres if None.
      ratios: widths of the surround, in widths of the centre, a grid each; 1 where there is none.
      surround_weights: weights of a surround that shares the amplitude; 0 alone where there is none.
      stride: every how manieth centre is a node.
    """

    sigma: float
    level: int
    offsets: tuple[float, ...] | None
    ratios: tuple[float, ...]
    surround_weights: tuple[float, ...]
    stride: int


class Grid(NamedTuple):
    """Nodes of one width and ratio of widths: a line of centres along each axis, at every surround weight.

    Attributes:
      lines: centres along x `[m]` and y `[n]`, in taps from the middle.
      ratio: width of the surround, in widths of the centre.
      parameters: the other search parameters `[surround weights, p - 2]`.
      family: numbers of the width and of the ratio; neighbours see the same peak.
      profiles: see `Profiles`.
      functions: see `Functions`.
      whitening: inverse Cholesky factor of the functions' Gram matrix at each node.
    """

    lines: tuple[np.ndarray, np.ndarray]
    ratio: float
    parameters: np.ndarray
    family: tuple[int, int]
    profiles: Profiles
    functions: Functions
    whitening: Triangle


def center_line(
    sigma: float,
    size: int,
    offsets: tuple[float, ...] | None = None,
    spacing: float = XLA.spacing,
    max_spacing: float = XLA.max_spacing,
    constants: GridConstants = XLA,
) -> np.ndarray:
    """Centres tried along one axis, symmetric about the middle of the kernel.

    Args:
      sigma: width in taps.
      size: number of taps along the axis.
      offsets: where centres lie about each tap's, in taps; evenly spaced if None and the width is not narrow.
      spacing: distance of neighbouring centres, in widths.
      max_spacing: largest distance, of the kernel's side.
      constants: those of the engine.

    Returns:
      Centres `[m]`, ascending, in taps from the middle.
    """
    if offsets is None and sigma < constants.narrow:
        offsets = constants.offsets
    if offsets is not None:
        return offset_line(size, offsets)
    distance = min(max(spacing * sigma, constants.min_spacing), max_spacing * size)
    half = math.ceil(0.5 * size / distance)
    return np.linspace(-size / 2, size / 2, 2 * half + 1)


def offset_line(size: int, offsets: tuple[float, ...]) -> np.ndarray:
    """Centres at offsets from each tap, those inside the kernel.

    Args:
      size: number of taps along the axis.
      offsets: in taps.

    Returns:
      Centres `[m]`, ascending, in taps from the middle.
    """
    taps = np.arange(-1, size + 1)[:, None] - (size - 1) / 2
    line = np.unique(np.round((taps + np.array(offsets)).ravel(), 6))
    return line[np.abs(line) <= size / 2]


def width_levels(low: float, high: float, step: float) -> np.ndarray:
    """Widths from `low` to `high`, neighbours in a ratio of `step` at most."""
    return np.geomspace(low, high, max(math.ceil(math.log(high / low) / math.log(step) - 1e-6), 1) + 1)


def place_grids(
    model: GaussianModel, shape: tuple[int, int], constants: GridConstants = XLA
) -> tuple[Place, ...]:
    """Places of a round model's grids, those of all its widths before those of one order alone.

    Args:
      model: round.
      shape: number of taps along y and x.
      constants: those of the engine.
    """
    low, high = model.min_sigma, max(model.min_sigma, constants.widest * max(shape))
    many_optima = model.shared_amplitude or (model.profile != "integrated" and model.order > 0)
    levels = width_levels(low, high, constants.small_width_step if many_optima else constants.width_step)
    narrow, small = low < constants.narrow, max(shape) <= constants.fine_size
    if model.shared_amplitude:
        return tuple(_place_shared(model, levels.tolist(), narrow, small, constants))
    # Centres on taps and the edges between are few enough for every surround.
    places, stride = [], 1 if model.profile == "discrete" else 2
    for level, sigma in enumerate(levels.tolist()):
        ratios = (constants.near_ratio,) if model.two_widths else (1.0,)
        places.append(Place(sigma, level, None, ratios, (0.0,), 1))
        if model.two_widths:
            places.append(Place(sigma, level, None, constants.ratios, (0.0,), stride))
    if model.order > 0:
        # Ramps are explained from the corners of the box: nodes as wide as it allows see them as peaks there.
        places.append(Place(float(max(shape)), len(levels), None, (1.0,), (0.0,), 1))
    if narrow and small and (model.two_widths or model.order > 0) and model.profile != "discrete":
        by_order = (constants.laplacian_offsets, constants.first_offsets, constants.second_offsets)
        ratios = (constants.near_ratio,) if model.two_widths else (1.0,)
        places.append(Place(low, 0, by_order[model.order], ratios, (0.0,), 1))
    return tuple(places)


def _place_shared(
    model: GaussianModel, levels: list[float], narrow: bool, small: bool, constants: GridConstants
) -> Iterator[Place]:
    """Places of a pair that shares its amplitude; where narrow, with offsets and weights of their own."""
    ratios, weights = constants.shared_ratios, constants.surround_weights
    for level, sigma in enumerate(levels):
        if sigma >= constants.narrow:
            yield Place(sigma, level, None, ratios, weights, 1)
    if not narrow:
        return
    offsets = constants.shared_offsets if small else None
    for wider in constants.narrow_widths:
        yield Place(wider * levels[0], 0, offsets, ratios, constants.narrow_surround_weights, 1)
    if small and model.order == 2 and model.profile == "integrated":
        yield Place(levels[0], 0, constants.cancelling_offsets, ratios[:1], constants.cancelling_weights, 1)


def is_laplacian(model: GaussianModel, ratio: float, constants: GridConstants = XLA) -> bool:
    """Tell whether a node stands for a pair of nearly one width: a Gaussian and its Laplacian."""
    return model.two_widths and not model.shared_amplitude and ratio == constants.near_ratio


def lines_of(
    model: GaussianModel, shape: tuple[int, int], place: Place, constants: GridConstants = XLA
) -> tuple[np.ndarray, np.ndarray]:
    """Centres of a place along x `[m]` and y `[n]`, before its stride."""
    if model.profile == "discrete":
        # They stay on taps and on the edges between.
        x, y = (np.arange(2 * size + 1) / 2 - size / 2 for size in reversed(shape))
        return x, y
    pointwise = model.profile == "sampled" and (model.order > 0 or model.two_widths)
    spacing = constants.sampled_spacing if pointwise else constants.spacing
    derivative = model.order > 0 and not model.two_widths
    max_spacing = constants.derivative_max_spacing if derivative else constants.max_spacing
    x, y = (
        center_line(place.sigma, size, place.offsets, spacing, max_spacing, constants)
        for size in reversed(shape)
    )
    return x, y


def make_grid(
    model: GaussianModel,
    shape: tuple[int, int],
    place: Place,
    ratio: float,
    constants: GridConstants = XLA,
    *,
    quadrant: bool = False,
) -> Grid:
    """Grid of one place and ratio, in float64.

    Args:
      model: round.
      shape: number of taps along y and x.
      place: out of `place_grids`.
      ratio: out of the place's ratios.
      constants: those of the engine.
      quadrant: whether to whiten only nodes up to the middle of either line; the others are their mirror
        images.
    """
    x, y = (line[:: place.stride] for line in lines_of(model, shape, place, constants))
    evaluate, widths = PROFILES[model.profile], [place.sigma, ratio * place.sigma][: 1 + model.two_widths]
    laplacian = is_laplacian(model, ratio, constants)
    profiles = {
        (axis, w, order): values
        for axis, (line, size) in enumerate(zip((x, y), reversed(shape), strict=True))
        for w, width in enumerate(widths)
        for order, values in enumerate(
            evaluate(line, np.full_like(line, width), size, 2 if laplacian else max(model.order, 1))
        )
    }
    weights = np.array(place.surround_weights)
    one = np.ones_like(weights)
    functions = tuple(
        tuple((term, -weights if model.shared_amplitude and term[0] else one) for term in function)
        for function in model.terms
    )
    if laplacian:
        functions = ((((0, 0, 0), one),), (((0, 2, 0), one), ((0, 0, 2), one)))
    parameters = [np.log(place.sigma) * one] + [np.log(ratio) * one] * model.two_widths
    parameters += [weights] * model.shared_amplitude
    # The far one of a free surround's ratios and all of a shared amplitude's are no neighbours of others.
    variant = place.ratios.index(ratio)
    if model.shared_amplitude:
        variant *= 8
    else:
        variant = 0 if laplacian else 1 + variant + (ratio > constants.far_ratio)
    whitened = profiles
    if quadrant:
        whitened = {key: values[:, : -(-values.shape[1] // 2)] for key, values in profiles.items()}
    return Grid(
        lines=(x, y),
        ratio=ratio,
        parameters=np.stack(parameters, 1),
        family=(place.level, variant),
        profiles=profiles,
        functions=functions,
        whitening=whiten_nodes(whitened, functions),
    )


def whiten_nodes(profiles: Profiles, functions: Sequence[Sequence[tuple[Term, np.ndarray]]]) -> Triangle:
    """Inverse Cholesky factors of the Gram matrices of centred functions, at each node.

    The squared norm of a factor times a kernel's projections is the energy that a node explains of it.
    """

    def inner(one: Term, other: Term) -> np.ndarray:
        """Inner products `[m, n]` of two terms about their means."""
        about, means = [], []
        for axis in (0, 1):
            p, q = (profiles[axis, term[0], term[1 + axis]] for term in (one, other))
            means.append(p.sum(0) * q.sum(0) / len(p))
            about.append(((p - p.mean(0)) * (q - q.mean(0))).sum(0))
        return np.multiply.outer(about[0], about[1] + means[1]) + np.multiply.outer(means[0], about[1])

    q = len(functions)
    rows = [
        [
            sum_arrays((v * w)[:, None, None] * inner(s, t) for s, v in functions[i] for t, w in functions[j])
            for j in range(q)
        ]
        for i in range(q)
    ]
    gram = np.moveaxis(np.array(rows), (0, 1), (-2, -1))
    # Scaled and a little shifted: functions that are all but dependent stay small instead of noisy.
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-30))
    correlation = gram * scale[..., :, None] * scale[..., None, :] + 1e-8 * np.eye(q)
    inverse = np.linalg.inv(np.linalg.cholesky(correlation)) * scale[..., None, :]
    return {(i, j): inverse[..., i, j] for i in range(q) for j in range(i + 1)}


@functools.cache
def grids_of(model: GaussianModel, shape: tuple[int, int]) -> tuple[Grid, ...]:
    """Grids of a round model, widest first, for the search in XLA.

    First and last centre of a line are there twice, so that every node between them has neighbours, and an
    even number of nodes lie between.
    """
    return tuple(
        _repeat_ends(make_grid(model, shape, place, ratio))
        for place in sorted(place_grids(model, shape), key=lambda place: -place.sigma)
        for ratio in place.ratios
    )


def _repeat_ends(grid: Grid) -> Grid:
    x, y = (np.pad(np.arange(line.size), (1, 1 + line.size % 2), mode="edge") for line in grid.lines)
    return grid._replace(
        lines=(grid.lines[0][x], grid.lines[1][y]),
        profiles={key: values[:, (x, y)[key[0]]] for key, values in grid.profiles.items()},
        whitening={pair: values[:, x][:, :, y] for pair, values in grid.whitening.items()},
    )


@functools.cache
def nodes_of(model: GaussianModel, shape: tuple[int, int]) -> np.ndarray:
    """Search point, and numbers of the width and of the surround, of every node of `grids_of`.

    Returns:
      float32 `[nodes, p + 2]`.
    """
    out = []
    for grid in grids_of(model, shape):
        x, y = grid.lines
        level, variant = grid.family
        at = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
        for number, parameters in enumerate(grid.parameters):
            rest = [*parameters, level, variant + number]
            out.append(np.concatenate([at, np.tile(rest, (len(at), 1))], axis=1))
    return np.concatenate(out).astype(np.float32)
