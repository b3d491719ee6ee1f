"""Dictionary of starting points for `scipy_reference`: centres on a grid, separable along x and y.

Shares no code with `dogfit`. One grid for each setting of all search parameters but the centre.
"""

import itertools
from typing import NamedTuple

import numpy as np

from scipy_families import REFERENCE_FAMILIES, scaled_profiles

NARROW = 0.6  # widths below it get starts where the integral of a derivative over a tap vanishes
NARROW_OFFSETS = (-0.5, -0.49, -0.45, -0.35, -0.2, -0.1, 0.0, 0.1, 0.2, 0.35, 0.45, 0.49, 0.5)


class Grid(NamedTuple):
    """Nodes of one setting of all but the centre."""

    x: np.ndarray
    y: np.ndarray
    tail: tuple
    parts: tuple
    """Per column, its separable parts (weight, profiles along y `[y, h]`, along x `[x, w]`)."""
    whitening: np.ndarray
    """Inverse Cholesky factor of the Gram matrix, `[q, q, y, x]`."""


def tap_line(offsets, low, high, taps):
    """The same offsets about every tap."""
    line = np.unique(np.add.outer(np.arange(taps) - (taps - 1) / 2, offsets).round(6))
    line = line[(line >= low) & (line <= high)]
    return line if len(line) else np.array([(low + high) / 2])


def center_line(sigma, order, low, high, taps, profile):
    """Centres tried along one axis."""
    if profile == "discrete":
        return np.arange(np.ceil(2 * low), np.floor(2 * high) + 1) / 2
    if profile == "integrated" and sigma < NARROW:
        around = (
            np.concatenate([NARROW_OFFSETS, np.negative(NARROW_OFFSETS)]) if order else (0, 0.25, 0.5, -0.25)
        )
        line = (np.arange(taps)[:, None] - (taps - 1) / 2 + around).ravel()
        line = np.unique(line.round(6))
        line = line[(line >= low) & (line <= high)]
        return line if len(line) else np.array([(low + high) / 2])
    step = np.clip(0.5 * sigma, 0.25, 1.5)
    return np.linspace(low, high, int(np.ceil((high - low) / step)) + 1)


def geometric(low, high, count):
    """Values between two logarithms, a little inside."""
    inset = 0.02 * (high - low)
    return np.exp(np.linspace(low + inset, high - inset, count))


def grid(name, shape, profile, weights, tail, lines):
    """Separable dictionary of one setting of all but the centre: its nodes and their whitening."""
    family = REFERENCE_FAMILIES[name]
    sigma, orders = np.exp(tail[0]), family.order + 1

    def along(axis, width):
        taps = shape[1 - axis]
        return scaled_profiles(lines[axis], np.full(len(lines[axis]), width), taps, orders, profile)

    widths = [sigma] if family.widths == 1 else [sigma, sigma * np.exp(tail[1])]
    px, py = zip(*((along(0, width), along(1, width)) for width in widths), strict=True)
    parts = [[(1.0, py[0][j], px[0][i])] for i, j in family.terms]
    if family.widths == 2:
        second = [(-tail[2] if family.tied else 1.0, py[1][j], px[1][i]) for i, j in family.terms]
        if family.tied:
            parts = [[*part, other] for part, other in zip(parts, second, strict=True)]
        else:
            parts += [[other] for other in second]
    means = np.stack([sum(c * (y @ weights @ x.T) for c, y, x in part) for part in parts])
    gram = np.empty((len(parts), len(parts), *means.shape[1:]))
    for a, b in itertools.product(range(len(parts)), repeat=2):
        pairs = itertools.product(parts[a], parts[b])
        products = (ca * cb * ((ya * yb) @ weights @ (xa * xb).T) for (ca, ya, xa), (cb, yb, xb) in pairs)
        gram[a, b] = sum(products) - means[a] * means[b] / weights.sum()
    gram = np.moveaxis(gram, (0, 1), (-2, -1))
    scale = 1 / np.sqrt(np.maximum(np.einsum("...ii->...i", gram), 1e-30))
    correlation = gram * scale[..., :, None] * scale[..., None, :] + 1e-8 * np.eye(len(parts))
    whitening = np.linalg.inv(np.linalg.cholesky(correlation)) * scale[..., None, :]
    whitening = np.ascontiguousarray(np.moveaxis(whitening, (-2, -1), (0, 1)))
    return Grid(*lines, tuple(tail), parts, whitening)


def grid_energies(grid, image):
    """Explained energy of a centred, weighted kernel `[h, w]` at the nodes, `[y, x]`."""
    projections = [sum(c * (y @ image @ x.T) for c, y, x in part) for part in grid.parts]
    energies = 0.0
    for row in grid.whitening:
        energies = energies + sum(w * p for w, p in zip(row, projections, strict=True)) ** 2
    return energies


def best_nodes(grid, energies, count, apart):
    """The `count` best nodes at least `apart` taps from each other, as (energy, search point)."""
    found = []
    energies = energies.copy()
    for _ in range(count):
        row, column = np.unravel_index(energies.argmax(), energies.shape)
        if energies[row, column] < 0:
            break
        x, y = grid.x[column], grid.y[row]
        found.append((energies[row, column], np.array([x, y, *grid.tail])))
        near = (np.abs(grid.x - x) < apart) & (np.abs(grid.y - y) < apart)[:, None]
        energies[near] = -1.0
    return found


def apart_in_space(points, count):
    """The first few of the points whose centres differ."""
    kept = []
    for x in points:
        if len(kept) < count and all(np.abs(x[:2] - other[:2]).max() > 0.15 for other in kept):
            kept.append(x)
    return kept
