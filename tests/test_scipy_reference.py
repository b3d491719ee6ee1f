"""The reference itself: images against quadrature and transfer functions, slopes, known fits."""

import numpy as np
import pytest
from scipy.stats import norm

from scipy_families import PROFILES, REFERENCE_FAMILIES, basis, bounds, draw, scaled_profiles
from scipy_reference import Problem, Reference, orthonormal

SHAPE = (5, 7)


def points(family, profile, count, seed=0):
    """Random search points within the bounds."""
    low, high = bounds(family, SHAPE, profile)
    x = np.random.default_rng(seed).uniform(low, high, (count, len(low)))
    if profile == "discrete":
        x[:, :2] = np.round(2 * x[:, :2]) / 2
    return x


def cases():
    return [
        (family, profile)
        for family in REFERENCE_FAMILIES
        for profile in PROFILES
        if not (profile == "discrete" and REFERENCE_FAMILIES[family].elliptic)
    ]


@pytest.mark.parametrize("family", REFERENCE_FAMILIES)
def test_basis_spans_textbook(family):
    """Spans hold the textbook formulas."""
    drawn = {"x0": 0.4, "y0": -0.7, "sigma": 0.9, "theta": 0.5, "gains": (1.0, -0.4), "surround": 1.7}
    drawn |= {"surround_weight": 0.6, "e": (0.7, -0.9) if REFERENCE_FAMILIES[family].elliptic else (0.0, 0.0)}
    x = [drawn["x0"], drawn["y0"], np.log(0.9)]
    x += [np.log(1.7 / 0.9)] if REFERENCE_FAMILIES[family].widths == 2 else []
    x += [0.6] if REFERENCE_FAMILIES[family].tied else []
    x += drawn["e"] if REFERENCE_FAMILIES[family].elliptic else []
    if REFERENCE_FAMILIES[family].widths == 1:
        drawn["surround"] = None
    image = draw(family, SHAPE, **drawn).ravel()
    q = orthonormal(basis(family, np.array(x), SHAPE))
    centred = image - image.mean()
    np.testing.assert_allclose(q @ (q.T @ centred), centred, atol=1e-9 * np.linalg.norm(centred))


def test_scaled_profiles_sampled():
    """Sampled profiles are values of derivatives."""
    taps, step = np.arange(5) - 2 - 0.3, 1e-3
    density = [norm.pdf(taps + i * step, scale=0.8) for i in (-1, 0, 1)]
    wanted = [density[1], 0.8 * (density[2] - density[0]) / (2 * step)]
    wanted += [0.64 * (density[2] - 2 * density[1] + density[0]) / step**2]
    np.testing.assert_allclose(scaled_profiles(0.3, 0.8, 5, 3, "sampled"), wanted, atol=1e-5)


@pytest.mark.parametrize("center", [-2.5, -1.0, 0.0, 0.5, 1.5])
@pytest.mark.parametrize("size", [4, 7])
def test_scaled_profiles_discrete(center, size):
    """Discrete profiles have their transfer function."""
    sigma, orders = 0.7, 5
    angle = (np.arange(4000) + 0.5) / 4000 * 2 * np.pi - np.pi
    distance = np.arange(size) - (size - 1) / 2 - center
    for order, profile in enumerate(scaled_profiles(center, sigma, size, orders, "discrete")):
        matches = (2 * distance[0] + order) % 2 == 0
        transfer = np.exp(-(sigma**2) * (1 - np.cos(angle))) * (2j * np.sin(angle / 2)) ** order
        transfer = transfer * (1 if matches else np.cos(angle / 2))
        wanted = sigma**order * np.mean(transfer * np.exp(1j * angle * distance[:, None]), axis=1)
        np.testing.assert_allclose(profile, wanted.real, atol=1e-12)
        np.testing.assert_allclose(wanted.imag, 0, atol=1e-12)


@pytest.mark.parametrize(("family", "profile"), cases())
def test_jacobian_differences(family, profile):
    """Jacobian is the slope of the residual."""
    generator = np.random.default_rng(3)
    reference = Reference(family, SHAPE, profile=profile, weights=generator.uniform(0.2, 1, SHAPE))
    problem = Problem(reference, reference.normalised(generator.normal(size=SHAPE))[0])
    movable = slice(2, None) if profile == "discrete" else slice(None)
    for x in points(family, profile, 6):
        x[2] = max(x[2], np.log(0.5))
        moves = 1e-5 * np.eye(len(x))
        slopes = [(problem.residual(x + m) - problem.residual(x - m)) / 2e-5 for m in moves[movable]]
        found = problem.jacobian(x)[:, movable]
        np.testing.assert_allclose(found, np.transpose(slopes), atol=1e-6 * (1 + np.abs(found).max()))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("family", ["gaussian", "d1", "d2"])
def test_reference_fit_drawings(family, profile):
    """Finds what was drawn."""
    x = np.array([0.5, -1.0, np.log(1.1)])
    columns = basis(family, x, SHAPE, profile)
    kernel = (columns @ [0.3, 1.0, -0.5, 0.7][: columns.shape[1]]).reshape(SHAPE)
    cost, found = Reference(family, SHAPE, profile=profile).fit(kernel)
    assert cost < 1e-16
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_reference_fit_ellipse():
    x = np.array([0.3, -0.6, np.log(1.1), 0.8, -0.5])
    columns = basis("d1_elliptic", x, 5)
    reference = Reference("d1_elliptic", 5)
    reference.dense = []  # takes seconds to make; the sheared round fits find this one
    cost, found = reference.fit((columns @ [0.3, 1.0, -0.5]).reshape(5, 5))
    assert cost < 1e-16
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_reference_fit_no_lower_start():
    """No random start ends lower."""
    kernel = np.random.default_rng(5).normal(size=(5, 5))
    reference = Reference("d2", 5)
    cost, _ = reference.fit(kernel)
    target, norm_ = reference.normalised(kernel)
    problem = Problem(reference, target)
    starts = np.random.default_rng(6).uniform(reference.low, reference.high, (60, 3))
    others = [reference.climb(problem, x)[0] for x in starts]
    assert cost <= min(others) * norm_**2 + 1e-10


def test_reference_fit_masked():
    """Weightless taps do not count."""
    x = np.array([0.4, -0.2, np.log(0.9)])
    kernel = (basis("d1", x, 5) @ [0.3, 1.0, -0.5]).reshape(5, 5)
    weights = np.ones((5, 5))
    weights[0], kernel[0] = 0, 100.0
    cost, found = Reference("d1", 5, weights=weights).fit(kernel)
    assert cost < 1e-16
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_reference_fit_bounds():
    """Stays within the bounds it is given."""
    x = np.array([0.4, -0.2, np.log(0.9)])
    kernel = (basis("d1", x, 5) @ [0.3, 1.0, -0.5]).reshape(5, 5)
    low, high = bounds("d1", 5)
    low[2], high[0], low[1], high[1] = np.log(1.2), 0.1, 0.25, 0.25
    cost, found = Reference("d1", 5, low=low, high=high).fit(kernel)
    assert cost > 1e-4
    np.testing.assert_allclose(found, [0.1, 0.25, np.log(1.2)], atol=1e-6)
