"""Tables of starts that the compiled search is handed, against SciPy and NumPy; no compilation."""

import itertools
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import ndtr

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native.tables import SeedTables, seed_tables
from dogfit.kernels.starts.constants import NATIVE
from dogfit.kernels.starts.dictionary import make_grid, place_grids

MODELS = (
    GaussianModel(0),
    GaussianModel(0, two_widths=True),
    GaussianModel(1),
    GaussianModel(2),
    GaussianModel(1, two_widths=True, shared_amplitude=True),
    GaussianModel(2, two_widths=True, shared_amplitude=True),
)
ORDER, LAPLACIAN, PAIR, SHARED = range(4)


class Plane(NamedTuple):
    kind: int
    model: int
    order: int
    second: int
    stride: int
    ratio: float
    weight: float
    white: np.ndarray


class Level(NamedTuple):
    sigma: float
    line: np.ndarray
    reached: np.ndarray
    narrow: np.ndarray
    wide: np.ndarray
    planes: list[Plane]


def read(tables: SeedTables, size: int) -> list[Level]:
    """The tables taken apart in the order in which C++ does."""
    numbers, reached, planes = iter(tables.numbers), iter(tables.reached), iter(tables.planes)

    def take(*shape: int) -> np.ndarray:
        return np.array(list(itertools.islice(numbers, int(np.prod(shape))))).reshape(shape)

    levels = []
    for _, count, stride, length, _, _, seconds, many in tables.levels.tolist():
        sigma, log_sigma = take(2)
        assert log_sigma == pytest.approx(np.log(sigma), abs=1e-6)
        first = np.array(list(itertools.islice(reached, count)))
        line = take(count)
        narrow, wide = take(3, count, length), take(seconds, 3, -(-count // stride), size)
        here = []
        for kind, model, order, second, _, step in itertools.islice(planes, many):
            log_ratio, weight = take(2)
            q = 2 if kind in (LAPLACIAN, PAIR) else order + 1
            half = (-(-count // step) + 1) // 2
            white = take(half, half, q * (q + 1) // 2)
            here.append(
                Plane(kind, model, order, second, step, float(np.exp(log_ratio)), float(weight), white)
            )
        levels.append(Level(float(sigma), line, first, narrow, wide, here))
    assert not list(numbers) and not list(reached) and not list(planes)
    return levels


def profile(order: int, center: float, sigma: float, size: int) -> np.ndarray:
    """Integral over each tap of a derivative of a Gaussian, times `sigma**order`."""
    z = (np.arange(size + 1) - size / 2 - center) / sigma
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return np.diff([ndtr(z), density, -z * density][order])


def functions(plane: Plane, sigma: float, x: float, y: float, size: int) -> np.ndarray:
    """Centred functions of a node `[q, taps]`, in float64."""

    def image(width: float, i: int, j: int) -> np.ndarray:
        return np.outer(profile(i, x, width, size), profile(j, y, width, size)).ravel()

    wide = plane.ratio * sigma
    orders = [(plane.order - j, j) for j in range(plane.order + 1)]
    if plane.kind == LAPLACIAN:
        out = [image(sigma, 0, 0), image(sigma, 2, 0) + image(sigma, 0, 2)]
    elif plane.kind == PAIR:
        out = [image(sigma, 0, 0), image(wide, 0, 0)]
    elif plane.kind == SHARED:
        out = [image(sigma, *o) - plane.weight * image(wide, *o) for o in orders]
    else:
        out = [image(sigma, *o) for o in orders]
    return np.array([f - f.mean() for f in out])


@pytest.mark.parametrize("size", [3, 7, 10])
def test_seed_tables_profiles_against_scipy(size):
    """Profiles of every level at the taps that they reach, and the taps beyond are next to nothing."""
    for level in read(seed_tables(MODELS, size), size):
        np.testing.assert_allclose(level.line, -level.line[::-1], atol=1e-6)
        ratios = {plane.second: plane.ratio for plane in level.planes if plane.kind in (PAIR, SHARED)}
        for c in range(0, level.line.size, 3):
            for order in range(3):
                whole = profile(order, level.line[c], level.sigma, size)
                taps = level.reached[c] + np.arange(level.narrow.shape[-1])
                np.testing.assert_allclose(level.narrow[order, c], whole[taps], atol=2e-6)
                # A centre on the middle of a tap has one tap of four on its far side.
                assert np.abs(np.delete(whole, taps)).max(initial=0.0) < 5e-3
        stride = max(plane.stride for plane in level.planes)
        for second, ratio in ratios.items():
            for order in range(3):
                found = level.wide[second, order]
                for c, center in enumerate(level.line[::stride]):
                    wanted = profile(order, center, ratio * level.sigma, size)
                    np.testing.assert_allclose(found[c], wanted, atol=2e-6)


@pytest.mark.parametrize("size", [3, 6])
def test_seed_tables_whitening_against_numpy(size):
    """Whitened functions of a node are orthonormal: its factor is the inverse of NumPy's Cholesky factor."""
    kinds = set()
    for level in read(seed_tables(MODELS, size), size):
        for plane in level.planes[::3]:
            kinds.add(plane.kind)
            line, half = level.line[:: plane.stride], len(plane.white)
            for m, n in itertools.product(range(0, half, 3), repeat=2):
                basis = functions(plane, level.sigma, float(line[m]), float(line[n]), size)
                norms = np.linalg.norm(basis, axis=1)
                gram = basis @ basis.T / np.outer(norms, norms) if norms.min() > 1e-7 else None
                if gram is None or np.linalg.eigvalsh(gram)[0] < 1e-3:
                    continue  # float32 has no digits for functions that are all but dependent
                factor = np.zeros(gram.shape)
                factor[np.tril_indices(len(gram))] = plane.white[m, n]
                wanted = np.linalg.inv(np.linalg.cholesky(gram)) / norms
                np.testing.assert_allclose(factor * norms, wanted * norms, atol=1e-4)
    assert kinds == {ORDER, LAPLACIAN, PAIR, SHARED}


@pytest.mark.parametrize("model", MODELS)
def test_whitening_of_mirrored_nodes_changes_signs_alone(model):
    """What the compiled search takes for granted: of odd functions the second turns its sign."""
    for place in place_grids(model, (5, 5), NATIVE):
        grid = make_grid(model, (5, 5), place, place.ratios[0], NATIVE)
        for (i, j), values in grid.whitening.items():
            odd = (i == 1) != (j == 1) and model.order > 0
            mirrored = values[:, ::-1] * (-1.0 if odd else 1.0)
            scale = np.abs(values).max()
            np.testing.assert_allclose(values, mirrored, atol=1e-6 * scale)


@pytest.mark.parametrize(("size", "most"), [(7, 1.2e6), (15, 5e6)])
def test_seed_tables_keep_within_their_bound_of_memory(size, most):
    """They are constants of a program, so that large ones would slow its compilation down."""
    assert sum(table.nbytes for table in seed_tables(MODELS, size)) < most
    assert sum(table.nbytes for table in seed_tables(MODELS[:4], size)) < most / 5
