"""Starting points for the fused search: a dictionary as one table of orthonormal columns, in tiles.

The explained energy of a kernel at a node is the squared norm of its projection on the node's columns: a
matrix product, the one part of the search that matrix units can do. They may round to bfloat16, since seeds
only choose where exact steps begin.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from dogfit.kernels.model import GaussianModel
from dogfit.kernels.profiles import PROFILES

# Nodes per matrix product: what a warp's registers hold beside the taps.
TILE = 32
WIDTHS = 10
# Widths of the surround, in widths of the centre; near the least ratio the pair is a second derivative.
_RATIOS = ((1.1,), (1.7, 3.0, 7.0))
_NEAR_DERIVATIVE = 1.5
_KAPPAS = (0.3, 0.65, 1.0)
# A derivative of a Gaussian far narrower than a tap changes its shape within hundredths of a tap where its
# integral over the tap vanishes: at the tap's centre for the first, near its edges for the second.
# Offsets from a tap's centre by order, for widths up to the first number.
_NARROW_OFFSETS = {
    1: ((0.35, (0.0, 0.1, 0.2, 0.35, 0.5)), (0.5, (0.0, 0.3, 0.5))),
    2: ((0.35, (0.0, 0.3, 0.45, 0.49, 0.5)), (0.5, (0.0, 0.3, 0.5))),
}


class Dictionary(NamedTuple):
    """All nodes of a model at one kernel size, grid after grid, each grid a product of two equal lines.

    Attributes:
      columns: float32 `[tiles, q, TILE, taps]`, taps padded with zeros to a power of two; x first.
      first: int32 `[grids + 1]`, first tile of each grid.
      slot: int32 `[grids]`; the best nodes of grids that share a slot compete.
      start: int32 `[grids]`, where each grid's numbers begin.
      length: int32 `[grids]`, nodes along a line.
      numbers: float32, of each grid the search parameters but the centre, then the centres on the line.
      slots: number of slots.
      bits: bits that hold a node's number within its grid.
    """

    columns: np.ndarray
    first: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    length: np.ndarray
    numbers: np.ndarray
    slots: int
    bits: int


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


def padded_taps(size: int) -> int:
    """Taps of a square kernel, to the next power of two (and matrix units' least depth)."""
    return max(16, 1 << (size * size - 1).bit_length())


@functools.cache
def dictionary(model: GaussianModel, size: int) -> Dictionary:
    """The dictionary of a round model of integrated profiles; the surrounds of a width in two slots."""
    levels = np.geomspace(model.min_sigma, 0.75 * size, WIDTHS).tolist()
    groups = _RATIOS if model.two_widths else ((1.0,),)
    kappas = _KAPPAS if model.tied else (0.0,)
    tiles, numbers, first, slot, start, length = [], [], [0], [], [], []
    places = [(sigma, group) for sigma in levels for group in groups]
    for number, (sigma, group) in enumerate(places):
        for ratio, kappa in itertools.product(group, kappas):
            line, columns = _grid(model, size, sigma, ratio, kappa)
            tiles.append(columns)
            first.append(first[-1] + len(columns))
            slot.append(number)
            start.append(len(numbers))
            length.append(line.size)
            numbers += [math.log(sigma)] + [math.log(ratio)] * model.two_widths + [kappa] * model.tied
            numbers += line.tolist()
    return Dictionary(
        columns=np.concatenate(tiles),
        first=np.asarray(first, np.int32),
        slot=np.asarray(slot, np.int32),
        start=np.asarray(start, np.int32),
        length=np.asarray(length, np.int32),
        numbers=np.asarray(numbers, np.float32),
        slots=len(places),
        bits=(max(length) ** 2 - 1).bit_length(),
    )


def _grid(
    model: GaussianModel, size: int, sigma: float, ratio: float, kappa: float
) -> tuple[np.ndarray, np.ndarray]:
    """Line of centres `[m]`, and the columns of all pairs of them in tiles."""
    fine = 2 if model.two_widths and not model.tied and ratio < _NEAR_DERIVATIVE else model.order
    line = center_line(sigma, size, fine)
    widths = [sigma, ratio * sigma][: 1 + model.two_widths]
    evaluate = PROFILES["integrated"]
    profiles = [evaluate(line, np.full_like(line, w), size, max(model.order, 1)) for w in widths]
    columns = np.zeros((line.size**2, len(model.terms), size * size))
    for q, function in enumerate(model.terms):
        for w, i, j in function:
            images = np.einsum("xm,yn->mnxy", profiles[w][i], profiles[w][j])
            columns[:, q] += (-kappa if model.tied and w else 1.0) * images.reshape(line.size**2, -1)
    columns -= columns.mean(axis=-1, keepdims=True)
    # Scaled before and after, so that a column which is all but dependent stays small instead of noisy.
    columns /= np.maximum(np.linalg.norm(columns, axis=-1, keepdims=True), 1e-15)
    gram = columns @ columns.swapaxes(-1, -2) + 1e-8 * np.eye(columns.shape[1])
    columns = np.linalg.solve(np.linalg.cholesky(gram), columns)
    nodes = -(-len(columns) // TILE) * TILE
    padded = np.zeros((nodes, columns.shape[1], padded_taps(size)), np.float32)
    padded[: len(columns), :, : size * size] = columns
    return line, padded.reshape(-1, TILE, *padded.shape[1:]).swapaxes(1, 2)
