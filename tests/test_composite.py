"""Sums of two fits: recovered where they are there, refused where they are not."""

import numpy as np
import pytest

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.composite import fit_composites
from scipy_families import draw

FAMILIES = ("gaussian", "d1")
SIZE, ROWS, NOISE = 9, 12, 0.01


def drawings(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An edge alone, and an edge with a spot beside it, both of unit norm, without noise."""
    alone, both = [], []
    for _ in range(ROWS):
        theta = generator.uniform(0, 2 * np.pi)
        edge = draw("d1", SIZE, *generator.uniform(-1, 1, 2), sigma=1.8, theta=theta)
        spot = draw("gaussian", SIZE, *generator.uniform(-3, 3, 2), sigma=0.7, offset=0.02)
        edge, spot = edge / np.linalg.norm(edge), spot / np.linalg.norm(spot)
        alone.append(edge)
        both.append((edge + spot) / np.linalg.norm(edge + spot))
    return np.array(alone), np.array(both)


@pytest.fixture(scope="module")
def kernels():
    generator = np.random.default_rng(0)
    alone, both = drawings(generator)
    whole = np.concatenate([alone, both])
    noisy = whole + NOISE * generator.normal(size=whole.shape)
    return np.concatenate([noisy, np.ones((1, SIZE, SIZE))]).astype(np.float32)


@pytest.fixture(scope="module")
def composite(kernels):
    return fit_composites(kernels, FAMILIES)


def test_pays_two_parts(composite):
    """A sum pays where there are two parts."""
    assert composite.pays[ROWS : 2 * ROWS].all()
    # Chance: each second part may fit noise, at four parameters' price.
    assert composite.pays[:ROWS].mean() < 0.2


def test_fit_composites_parts(composite):
    """Both parts are found."""
    rows = slice(ROWS, 2 * ROWS)
    clean = drawings(np.random.default_rng(0))[1]
    error = np.linalg.norm((composite.templates()[rows] - clean).reshape(ROWS, -1), axis=1)
    # 9 of 81 degrees of freedom take a share of the noise, and some kernels hide the spot in the edge.
    assert np.median(error) < NOISE * 9 * np.sqrt(9 / 81) * 1.5
    chosen = {
        tuple(sorted((composite.first.family_names[a], composite.second.family_names[b])))
        for a, b in zip(composite.first.family[rows], composite.second.family[rows], strict=True)
    }
    assert ("d1", "gaussian") in chosen


def test_fit_composites_r2(kernels, composite):
    """R² is that of the parts."""
    fitted = slice(0, 2 * ROWS)
    both = composite.first.templates()[fitted] + composite.second.templates()[fitted]
    wanted = kernels[fitted]
    centred = wanted - wanted.mean(axis=(1, 2), keepdims=True)
    r2 = 1 - ((wanted - both) ** 2).sum(axis=(1, 2)) / (centred**2).sum(axis=(1, 2))
    np.testing.assert_allclose(composite.r2[fitted], r2, atol=1e-5)
    single = fit_kernels(kernels, FAMILIES)
    assert np.all(composite.r2[fitted] >= single.r2[fitted] - 1e-6)
    np.testing.assert_array_equal(composite.single.family, single.family)


def test_bic_shared_offset(composite):
    """The criterion counts the shared offset once."""
    taps, free = SIZE**2, np.array([5, 6])
    for row in range(2 * ROWS):
        parameters = free[composite.first.family[row]] + free[composite.second.family[row]] - 1
        wanted = taps * np.log((1 - composite.r2[row]) / taps) + parameters * np.log(taps)
        np.testing.assert_allclose(composite.bic[row, 1], wanted, rtol=1e-6)


def test_fit_composites_constant(composite):
    """What was not fitted stays so."""
    assert composite.single.family[-1] == -1
    assert not composite.pays[-1]
    assert np.isnan(composite.r2[-1])
    assert np.isnan(composite.templates()[-1]).all()


def test_fit_composites_sweeps_error(kernels):
    """At least one sweep."""
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        fit_composites(kernels, FAMILIES, sweeps=0)
