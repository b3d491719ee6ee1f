"""The dictionary of starts: grids of centres at several widths, and what depends on them alone, in NumPy."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dogfit.kernels.linalg import sum_arrays
from dogfit.kernels.model.gaussian import GaussianModel, Term
from dogfit.kernels.model.profiles import PROFILES

# Ratio of neighbouring widths, and a smaller one for models with more optima; the widest, of the kernel's
# size; and the width up to which a Gaussian is a matter of single taps.
_STEP, _SMALL_STEP, _WIDEST, _NARROW = 1.8, 1.4, 0.75, 0.4
# Distance of neighbouring centres, in widths; less where values at single points make a shape.
_SPACING, _SAMPLED_SPACING = 0.7, 0.5
# Widths of the surround, in widths of the centre. Near equal widths the pair is a Gaussian and its Laplacian.
_NEAR_RATIO, _RATIOS, TIED_RATIOS = 1.15, (1.7, 3.0, 7.0), (1.5, 2.7, 6.0)
KAPPAS, NARROW_KAPPAS = (0.35, 0.65, 0.85, 1.0), (0.1, 0.5, 0.73, 1.0)
# Offsets of centres from a tap's for narrow Gaussians. A derivative changes its shape within hundredths of a
# tap where its integral over the tap vanishes: the first at the tap's centre, the second and the Laplacian at
# its edges. Nodes around those places are for that order alone.
_OFFSETS = (-0.3, 0.0, 0.3, 0.5)
_FIRST_OFFSETS = (-0.18, -0.06, 0.06, 0.18)
_SECOND_OFFSETS = (-0.4, -0.2, 0.2, 0.4, 0.48, 0.49, 0.5, 0.51, 0.52)
_LAPLACIAN_OFFSETS = (-0.4, -0.2, 0.2, 0.4, 0.475, 0.49, 0.497, 0.503, 0.51, 0.525)
_TIED_OFFSETS = (-0.4, -0.2, 0.0, 0.2, 0.4, 0.48, 0.5, 0.52)
# Where a tied surround all but cancels its centre, hundredths of kappa make a difference too.
_CANCELLING_OFFSETS, _CANCELLING_KAPPAS = (-0.04, 0.0, 0.04, 0.49, 0.51), (0.7, 0.75, 0.78)
# Largest kernels for which there are such nodes: in larger ones they would outnumber all others.
_FINE_SIZE = 15


class Grid(NamedTuple):
    """Nodes of one width and one ratio of widths: a line of centres along each axis, at every kappa."""

    lines: tuple[np.ndarray, np.ndarray]
    """Centres along x `[m]` and y `[n]`, in taps from the middle; an even number, first and last twice."""
    constants: np.ndarray
    """The other search parameters `[kappas, p - 2]`."""
    family: tuple[int, int]
    """Number of the width and of the ratio: neighbours see the same peak."""
    profiles: dict[tuple[int, int, int], np.ndarray]
    """By axis, width and order: `[k, m]`."""
    functions: tuple[tuple[tuple[Term, np.ndarray], ...], ...]
    """Terms of each basis function, with weights `[kappas]`."""
    whitening: dict[tuple[int, int], np.ndarray]
    """Inverse Cholesky factor of the Gram matrix at each node: lower triangle of `[kappas, m, n]`."""


class _Place(NamedTuple):
    """Where nodes are put, and what for."""

    sigma: float
    step: int
    offsets: tuple[float, ...] | None
    ratios: tuple[float, ...]
    kappas: tuple[float, ...]
    stride: int


def center_line(
    sigma: float, size: int, offsets: tuple[float, ...] | None = None, apart: float = _SPACING
) -> np.ndarray:
    """Centres tried along one axis, `[m]`: at offsets from each tap, or evenly, so many widths `apart`."""
    if offsets is None and sigma < _NARROW:
        offsets = _OFFSETS
    if offsets is None:
        spacing = min(max(apart * sigma, 0.3), 0.17 * size)
        half = math.ceil(0.5 * size / spacing)
        return np.linspace(-size / 2, size / 2, 2 * half + 1)
    return offset_line(size, offsets)


def offset_line(size: int, offsets: tuple[float, ...]) -> np.ndarray:
    """Centres at offsets from each tap, `[m]`."""
    taps = np.arange(-1, size + 1)[:, None] - (size - 1) / 2
    line = np.unique(np.round((taps + np.array(offsets)).ravel(), 6))
    return line[np.abs(line) <= size / 2]


def width_levels(low: float, high: float, step: float) -> np.ndarray:
    """Widths from `low` to `high`, neighbours in a ratio of `step` at most."""
    return np.geomspace(low, high, max(math.ceil(math.log(high / low) / math.log(step) - 1e-6), 1) + 1)


def _places(model: GaussianModel, shape: tuple[int, int]) -> list[_Place]:
    low, high = model.min_sigma, max(model.min_sigma, _WIDEST * max(shape))
    many_optima = model.shared_amplitude or (model.profile != "integrated" and model.order > 0)
    step = _SMALL_STEP if many_optima else _STEP
    levels = width_levels(low, high, step).tolist()
    if model.shared_amplitude:
        # Where narrow, they have nodes of their own.
        places = [_Place(s, i, None, TIED_RATIOS, KAPPAS, 1) for i, s in enumerate(levels) if s >= _NARROW]
        small = max(shape) <= _FINE_SIZE
        offsets = _TIED_OFFSETS if small else None
        narrow = [_Place(s, 0, offsets, TIED_RATIOS, NARROW_KAPPAS, 1) for s in (low, 1.18 * low)]
        if small and model.order == 2 and model.profile == "integrated":
            narrow.append(_Place(low, 0, _CANCELLING_OFFSETS, TIED_RATIOS[:1], _CANCELLING_KAPPAS, 1))
        return places + narrow * (low < _NARROW)
    if model.two_widths:
        places = [_Place(s, i, None, (_NEAR_RATIO,), (0.0,), 1) for i, s in enumerate(levels)]
        places += [_Place(s, i, None, _RATIOS, (0.0,), 2) for i, s in enumerate(levels)]
    else:
        places = [_Place(s, i, None, (1.0,), (0.0,), 1) for i, s in enumerate(levels)]
    fine = (model.two_widths or model.order > 0) and model.profile != "discrete"
    if low < _NARROW and fine and max(shape) <= _FINE_SIZE:
        offsets = (_LAPLACIAN_OFFSETS, _FIRST_OFFSETS, _SECOND_OFFSETS)[model.order]
        places.append(_Place(low, 0, offsets, (_NEAR_RATIO,) if model.two_widths else (1.0,), (0.0,), 1))
    return places


@functools.cache
def grids_of(model: GaussianModel, shape: tuple[int, int]) -> tuple[Grid, ...]:
    """All grids of a round model."""
    return tuple(
        _grid(model, shape, place, ratio)
        for place in sorted(_places(model, shape), key=lambda place: -place.sigma)
        for ratio in place.ratios
    )


def _grid(model: GaussianModel, shape: tuple[int, int], place: _Place, ratio: float) -> Grid:
    if model.profile == "discrete":
        lines = [np.arange(2 * size + 1) / 2 - size / 2 for size in shape]
    else:
        pointwise = model.profile == "sampled" and (model.order > 0 or model.two_widths)
        apart = _SAMPLED_SPACING if pointwise else _SPACING
        lines = [center_line(place.sigma, size, place.offsets, apart)[:: place.stride] for size in shape]
    # Ends twice, so that every node has neighbours; and an even number of inner ones.
    x, y = (np.pad(line, (1, 1 + line.size % 2), mode="edge") for line in lines)
    evaluate, widths = PROFILES[model.profile], [place.sigma, ratio * place.sigma][: 1 + model.two_widths]
    laplacian = model.two_widths and not model.shared_amplitude and ratio == _NEAR_RATIO
    highest = 2 if laplacian else max(model.order, 1)
    profiles = {
        (axis, w, order): values
        for axis, (line, size) in enumerate(zip((x, y), shape, strict=True))
        for w, width in enumerate(widths)
        for order, values in enumerate(evaluate(line, np.full_like(line, width), size, highest))
    }
    one = np.ones(len(place.kappas))
    functions = tuple(
        tuple((t, -np.array(place.kappas) if model.shared_amplitude and t[0] else one) for t in function)
        for function in model.terms
    )
    if laplacian:
        functions = ((((0, 0, 0), one),), (((0, 2, 0), one), ((0, 0, 2), one)))
    constants = [np.log(place.sigma) * one] + [np.log(ratio) * one] * model.two_widths
    constants += [np.array(place.kappas)] * model.shared_amplitude
    # The far one of a free surround's ratios and all of a tied one's are no neighbours of others.
    variant = place.ratios.index(ratio)
    variant = 8 * variant if model.shared_amplitude else 0 if laplacian else 1 + variant + (ratio > 5.0)
    return Grid(
        (x, y),
        np.stack(constants, 1),
        (place.step, variant),
        profiles,
        functions,
        _whitening(profiles, functions),
    )


def _whitening(
    profiles: dict[tuple[int, int, int], np.ndarray], functions: Sequence[Sequence[tuple[Term, np.ndarray]]]
) -> dict[tuple[int, int], np.ndarray]:
    """Lower triangle of the inverse Cholesky factors of the functions' Gram matrices."""

    def inner(one: Term, other: Term) -> np.ndarray:
        """Of two terms about their means `[m, n]`."""
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
    scale = 1 / np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 1e-30))
    correlation = gram * scale[..., :, None] * scale[..., None, :] + 1e-8 * np.eye(q)
    inverse = np.linalg.inv(np.linalg.cholesky(correlation)) * scale[..., None, :]
    return {(i, j): inverse[..., i, j] for i in range(q) for j in range(i + 1)}


@functools.cache
def nodes_of(model: GaussianModel, shape: tuple[int, int]) -> np.ndarray:
    """Search point, and numbers of the width and the ratio with kappa, of every node `[nodes, p + 2]`."""
    out = []
    for grid in grids_of(model, shape):
        x, y = grid.lines
        for kappa, constants in enumerate(grid.constants):
            step, variant = grid.family
            rest = [*constants, step, variant + kappa]
            at = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
            out.append(np.concatenate([at, np.tile(rest, (len(at), 1))], axis=1))
    return np.concatenate(out).astype(np.float32)
