"""Nodes of the compiled search, as `csrc/seed_tables.h` reads them."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.model.profiles import PROFILES
from dogfit.kernels.starts.constants import NATIVE
from dogfit.kernels.starts.dictionary import Grid, Place, is_laplacian, lines_of, make_grid, place_grids

# Taps that a profile reaches, as seeds need it, up to this width (kReach in csrc/api.h).
_REACH, _REACHED_WIDTH = 4, 0.5
# kKind in csrc/api.h.
_ORDER, _LAPLACIAN, _PAIR, _SHARED = range(4)


class SeedTables(NamedTuple):
    """Operands of the compiled search.

    A level is a width and a line of centres for both axes; a plane is one model's grid of a level, of one
    ratio of widths and surround weight. All models of a level share its projections.

    Attributes:
      levels: a `LevelRow` each.
      planes: a `PlaneRow` each, level by level.
      reached: level by level, the first tap that the profile at each centre reaches.
      numbers: of each level its width, the logarithm of it, its line `[m]`, profiles of orders 0 to 2
        `[3, m, reach]` and, at every `stride`-th centre, of the wider Gaussians `[seconds, 3, n, k]`; then of
        each of its planes the logarithm of the ratio, the weight, and whitening of one quadrant's nodes
        `[h, h, q (q + 1) / 2]`, `h` up to the middle of the plane's line.
    """

    levels: Int32[np.ndarray, "l 8"]
    planes: Int32[np.ndarray, "p 6"]
    reached: Int32[np.ndarray, " c"]
    numbers: Float32[np.ndarray, " v"]


class _Part(NamedTuple):
    """Part of a level: the number of a model, and a place of it."""

    number: int
    model: GaussianModel
    place: Place


class _Plane(NamedTuple):
    row: tuple[int, ...]
    numbers: list[np.ndarray]


@functools.lru_cache(maxsize=8)
def seed_tables(models: tuple[GaussianModel, ...], size: int) -> SeedTables:
    """Tables of round, integrated models for square kernels.

    They become constants of the program: 0.12 MB for the four default families at 7x7 and 1.2 MB with both
    families of shared amplitudes; at most 22 MB, at 51x51. Larger ones would slow its compilation down.

    Args:
      models: the models that are searched together.
      size: number of taps along a side.
    """
    levels, planes, reached, numbers = [], [], [], []
    for parts in _levels(models, size):
        row, of_level, first, values = _level(parts, size)
        levels.append(row)
        planes += [plane.row for plane in of_level]
        reached.append(first)
        numbers += values
        for plane in of_level:
            numbers += plane.numbers
    return SeedTables(
        np.array(levels, np.int32),
        np.array(planes, np.int32),
        np.concatenate(reached).astype(np.int32),
        np.concatenate([np.ravel(value) for value in numbers]).astype(np.float32),
    )


def _levels(models: tuple[GaussianModel, ...], size: int) -> Iterator[list[_Part]]:
    """Places of all models with the same line together.

    The widest first: they have the fewest nodes, and a good energy early spares maxima that cannot win.
    """
    levels: dict[tuple, list[_Part]] = {}
    for number, model in enumerate(models):
        for place in place_grids(model, (size, size), NATIVE):
            key = (
                place.offsets is not None,
                model.shared_amplitude,
                -place.sigma,
                place.level,
                place.offsets,
            )
            levels.setdefault(key, []).append(_Part(number, model, place))
    for key in sorted(levels, key=lambda key: key[:4]):
        yield levels[key]


def _level(
    parts: list[_Part], size: int
) -> tuple[tuple[int, ...], list[_Plane], np.ndarray, list[np.ndarray]]:
    """The level's row, its planes, taps reached, and numbers."""
    _, model, place = parts[0]
    line = lines_of(model, (size, size), place, NATIVE)[0]
    stride = max(part.place.stride for part in parts)
    ratios: list[float] = []
    planes = [plane for part in parts for plane in _planes(part, size, ratios)]
    length = _REACH if place.sigma < _REACHED_WIDTH and size > _REACH else size
    first = np.clip(np.floor(line + 0.5 * (size - length) + 0.5).astype(int), 0, size - length)
    taps = first[:, None] + np.arange(length)
    narrow = [values.T[np.arange(line.size)[:, None], taps] for values in _profiles(line, place.sigma, size)]
    wide = [values.T for ratio in ratios for values in _profiles(line[::stride], ratio * place.sigma, size)]
    orders = [(0, 2) if plane.row[0] == _LAPLACIAN else (plane.row[2],) for plane in planes]
    totals = {order for several in orders for order in several}
    second_totals = {plane.row[2] for plane in planes if plane.row[0] in (_PAIR, _SHARED)}
    row = (
        *(place.level, line.size, stride, length),
        *(sum(1 << order for order in some) for some in (totals, second_totals)),
        *(len(ratios), len(planes)),
    )
    return row, planes, first, [np.array([place.sigma, math.log(place.sigma)]), line, *narrow, *wide]


def _profiles(line: np.ndarray, sigma: float, size: int) -> list[np.ndarray]:
    """Profiles of orders 0 to 2 at all centres of a line, `[k, m]` each."""
    return PROFILES["integrated"](line, np.full_like(line, sigma), size, 2)


def _planes(part: _Part, size: int, ratios: list[float]) -> Iterator[_Plane]:
    """Planes of a model at a level; ratios of widths that are new to the level are appended."""
    number, model, place = part
    for ratio in place.ratios:
        grid = make_grid(model, (size, size), place, ratio, NATIVE, quadrant=True)
        kind = _ORDER
        if is_laplacian(model, ratio, NATIVE):
            kind = _LAPLACIAN
        elif model.two_widths:
            kind = _SHARED if model.shared_amplitude else _PAIR
            if ratio not in ratios:
                ratios.append(ratio)
        second = ratios.index(ratio) if kind in (_PAIR, _SHARED) else 0
        for entry, weight in enumerate(place.surround_weights):
            yield _Plane(
                (kind, number, model.order, second, grid.family[1] + entry, place.stride),
                [np.array([math.log(ratio), weight]), _triangles(grid, entry)],
            )


def _triangles(grid: Grid, entry: int) -> np.ndarray:
    """Whitening by rows of the triangle, `[h, h, q (q + 1) / 2]`, at one surround weight."""
    return np.stack([values[entry] for _, values in sorted(grid.whitening.items())], axis=-1)
