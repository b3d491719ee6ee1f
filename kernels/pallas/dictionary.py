"""Starting points for the fused search: a dictionary as one table of orthonormal columns, in tiles.

The explained energy of a kernel at a node is the squared norm of its projection on the node's columns: a
matrix product, the one part of the search that matrix units can do. They may round to bfloat16, since seeds
only choose where exact steps begin.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.model.profiles import PROFILES
from dogfit.kernels.starts.constants import FUSED, XLA
from dogfit.kernels.starts.dictionary import offset_line

# Nodes per matrix product: what a warp's registers hold beside the taps.
TILE = 32


class Dictionary(NamedTuple):
    """All nodes of a model at one kernel size, grid after grid, each the rows of a strip of a square grid.

    Attributes:
      columns: float32 `[tiles, q, TILE, taps]`, taps padded with zeros to a power of two.
      first: int32 `[grids + 1]`, first tile of each grid.
      row: int32 `[grids]`, first row of each strip in its square grid.
      slot: int32 `[grids]`; the best nodes of grids that share a slot compete.
      start: int32 `[grids]`, where each grid's numbers begin.
      length: int32 `[grids]`, nodes along a line.
      numbers: float32, of each grid the search parameters but the centre, then the centres on the line.
      slots: number of slots.
      bits: bits that hold a node's number within its grid.
    """

    columns: np.ndarray
    first: np.ndarray
    row: np.ndarray
    slot: np.ndarray
    start: np.ndarray
    length: np.ndarray
    numbers: np.ndarray
    slots: int
    bits: int


def center_line(sigma: float, size: int, shape: str | None) -> np.ndarray:
    """Centres tried along one axis, from one end of the kernel to the other.

    Args:
      sigma: width in taps.
      size: taps along a side.
      shape: derivative whose shape changes within a tap, one of "first", "second" and "laplacian", or None.

    Returns:
      Centres `[m]`, ascending, in taps from the middle.
    """
    for limit, offsets in FUSED.offsets[shape] if shape else ():
        if sigma <= limit:
            return offset_line(size, tuple(sign * offset for offset in offsets for sign in (-1, 1)))
    if shape:
        distance = max(FUSED.spacing * sigma, FUSED.min_spacing)
    else:
        distance = max(FUSED.smooth_spacing * sigma, FUSED.smooth_min_spacing)
    distance = min(distance, FUSED.max_spacing * size)
    return np.linspace(-size / 2, size / 2, math.ceil(size / distance) + 1)


def padded_taps(size: int) -> int:
    """Taps of a square kernel, to the next power of two (and matrix units' least depth)."""
    return max(16, 1 << (size * size - 1).bit_length())


def _surrounds(model: GaussianModel, sigma: float) -> list[list[tuple[float, float]]]:
    """Ratios of widths and surround weights tried at a width; those of a group compete."""
    if model.shared_amplitude:
        weights = XLA.narrow_surround_weights if sigma <= FUSED.narrow else XLA.surround_weights
        return [[(ratio, weight) for weight in weights] for ratio in XLA.shared_ratios]
    return [[(ratio, 0.0) for ratio in group] for group in (FUSED.ratios if model.two_widths else ((1.0,),))]


@functools.cache
def dictionary(model: GaussianModel, size: int) -> Dictionary:
    """Dictionary of a round model of integrated profiles for square kernels.

    Args:
      model: round, integrated.
      size: taps along a side.
    """
    levels = np.geomspace(model.min_sigma, FUSED.widest * size, FUSED.widths).tolist()
    tiles, numbers, first, row, slot, start, length = [], [], [0], [], [], [], []
    slots = 0
    for sigma in levels:
        strips = size + FUSED.more_strips if sigma <= FUSED.narrow else FUSED.strips
        for group in _surrounds(model, sigma):
            for ratio, weight in group:
                line, columns = _grid(model, size, sigma, ratio, weight)
                for strip, rows in enumerate(np.array_split(np.arange(line.size), strips)):
                    tiles.append(_tiled(columns[rows]))
                    first.append(first[-1] + len(tiles[-1]))
                    row.append(rows[0])
                    slot.append(slots + strip)
                    start.append(len(numbers))
                    length.append(line.size)
                numbers += (
                    [math.log(sigma)]
                    + [math.log(ratio)] * model.two_widths
                    + [weight] * model.shared_amplitude
                )
                numbers += line.tolist()
            slots += strips
    return Dictionary(
        columns=np.concatenate(tiles),
        first=np.asarray(first, np.int32),
        row=np.asarray(row, np.int32),
        slot=np.asarray(slot, np.int32),
        start=np.asarray(start, np.int32),
        length=np.asarray(length, np.int32),
        numbers=np.asarray(numbers, np.float32),
        slots=slots,
        bits=(max(length) ** 2 - 1).bit_length(),
    )


def _grid(
    model: GaussianModel, size: int, sigma: float, ratio: float, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Line of centres `[m]`, and the columns of all pairs of them, `[m, m, q, taps]`."""
    near_derivative = model.two_widths and not model.shared_amplitude and ratio < FUSED.laplacian_ratio
    shape = "laplacian" if near_derivative else (None, "first", "second")[model.order]
    line = center_line(sigma, size, shape)
    widths = [sigma, ratio * sigma][: 1 + model.two_widths]
    evaluate = PROFILES["integrated"]
    profiles = [evaluate(line, np.full_like(line, w), size, max(model.order, 1)) for w in widths]
    columns = np.zeros((line.size**2, len(model.terms), size * size))
    for q, function in enumerate(model.terms):
        for w, i, j in function:
            images = np.einsum("xm,yn->mnyx", profiles[w][i], profiles[w][j])
            columns[:, q] += (-weight if model.shared_amplitude and w else 1.0) * images.reshape(
                line.size**2, -1
            )
    columns -= columns.mean(axis=-1, keepdims=True)
    # Scaled before and after, so that a column which is all but dependent stays small instead of noisy.
    columns /= np.maximum(np.linalg.norm(columns, axis=-1, keepdims=True), 1e-15)
    gram = columns @ columns.swapaxes(-1, -2) + 1e-8 * np.eye(columns.shape[1])
    columns = np.linalg.solve(np.linalg.cholesky(gram), columns)
    return line, columns.reshape(line.size, line.size, *columns.shape[1:])


def _tiled(columns: np.ndarray) -> np.ndarray:
    """Columns of nodes `[m, n, q, k * k]` in tiles, both nodes and taps padded with zeros."""
    columns = columns.reshape(-1, *columns.shape[2:])
    nodes, q, taps = columns.shape
    padded = np.zeros((-(-nodes // TILE) * TILE, q, padded_taps(math.isqrt(taps))), np.float32)
    padded[:nodes, :, :taps] = columns
    return padded.reshape(-1, TILE, *padded.shape[1:]).swapaxes(1, 2)
