"""One-dimensional profiles against quadrature, Hermite polynomials and differences of Bessel functions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import eval_hermitenorm, ive

from dogfit.kernels.model.profiles import PROFILES, VARIATIONS

HIGHEST = 6
# Size, centre, sigma; half-taps, so that discrete profiles can take them too.
CASES = [(7, 0.0, 0.3), (8, -3.5, 1.3), (5, 0.5, 56.0), (7, -1.0, 2.0), (51, 25.5, 3.0), (3, 1.0, 24.0)]

# Every size compiles for itself: the narrowest and the widest Gaussian in the default tier.
DEFAULT_CASES = (CASES[0], CASES[2])
QUICK = {"xla_backend_optimization_level": 0}  # run once: compiling is what takes the time


def derivative(order: int, z: float, sigma: float) -> float:
    """`sigma**order` times a derivative of the unit-mass Gaussian, `z` widths from its centre."""
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / sigma
    return (-1) ** order * eval_hermitenorm(order, z) * density


def integrated(order, tap, center, sigma):
    def value(u):
        return derivative(order, (u - center) / sigma, sigma)

    return quad(value, tap - 0.5, tap + 0.5, epsabs=1e-13)[0]


def sampled(order, tap, center, sigma):
    return derivative(order, (tap - center) / sigma, sigma)


def discrete(order, tap, center, sigma):
    """Central differences of `exp(-s) I(s)`, averages of two neighbours where parities differ."""

    def difference(n, x):
        if n == 0:
            return ive(abs(round(x)), sigma**2)
        return difference(n - 1, x + 0.5) - difference(n - 1, x - 0.5)

    x = tap - center
    aligned = round(2 * x + order) % 2 == 0
    places = [x] if aligned else [x - 0.5, x + 0.5]
    return sigma**order * np.mean([difference(order, p) for p in places])


WANTED = {"integrated": integrated, "sampled": sampled, "discrete": discrete}


def evaluate(profile, center, sigma, size, highest=HIGHEST):
    """Profiles by order, in float64, from lists of centres and widths."""
    with jax.enable_x64(True):
        run = jax.jit(PROFILES[profile], static_argnums=(2, 3), compiler_options=QUICK)
        found = run(jnp.asarray(center, float), jnp.asarray(sigma, float), size, highest)
        return [np.asarray(p) for p in found]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("size", "center", "sigma"),
    [case if case in DEFAULT_CASES else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_profiles_against_definitions(profile, size, center, sigma):
    profiles = evaluate(profile, [center], [sigma], size)
    assert len(profiles) == HIGHEST + 1
    taps = np.arange(size) - (size - 1) / 2
    for order, found in enumerate(profiles):
        wanted = [WANTED[profile](order, tap, center, sigma) for tap in taps]
        # Differences of Bessel functions of nearly one value, scaled by the width to the order.
        rounding = 1e-16 * sigma**order if profile == "discrete" else 0.0
        np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-10, atol=1e-12 + rounding)


@pytest.mark.parametrize("profile", ["integrated", "sampled"])
def test_profiles_centers_anywhere(profile):
    center, sigma = 0.237, 0.45
    taps = np.arange(6) - 2.5
    for order, found in enumerate(evaluate(profile, [center], [sigma], 6)):
        wanted = [WANTED[profile](order, tap, center, sigma) for tap in taps]
        np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-10, atol=1e-12)


def test_discrete_profiles_centers():
    """Centers lie on the nearest half tap."""
    exact = evaluate("discrete", [1.5, -2.0, 0.0], [0.9] * 3, 7)
    near = evaluate("discrete", [1.62, -2.2, 0.2], [0.9] * 3, 7)
    np.testing.assert_array_equal(near, exact)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_derivatives(profile):
    size, h = 7, 1e-5
    center, sigma = np.array([0.5, -2.0, 1.5]), np.array([0.4, 1.0, 3.0])

    def unscaled(center, sigma):
        found = evaluate(profile, center, sigma, size)
        return [p / sigma**n for n, p in enumerate(found)]

    here = unscaled(center, sigma)
    # Differences of values of up to 1e3 (narrowest, highest order), one step of 1e-5 squared.
    close = {"rtol": 1e-5, "atol": 1e-5}
    for n, (wide, narrow) in enumerate(
        zip(unscaled(center, sigma + h), unscaled(center, sigma - h), strict=True)
    ):
        if n + 2 <= HIGHEST:
            np.testing.assert_allclose((wide - narrow) / (2 * h), sigma * here[n + 2], **close)
    if profile == "discrete":
        return
    for n, (right, left) in enumerate(
        zip(unscaled(center + h, sigma), unscaled(center - h, sigma), strict=True)
    ):
        if n + 1 <= HIGHEST:
            np.testing.assert_allclose((right - left) / (2 * h), -here[n + 1], **close)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_of_numpy(profile):
    center, sigma = np.array([0.5, -2.0, 1.0]), np.array([0.35, 1.0, 20.0])
    host = PROFILES[profile](center, sigma, 7, 4)
    assert all(type(p) is np.ndarray and p.dtype == np.float64 for p in host)
    for a, b in zip(host, evaluate(profile, center, sigma, 7, 4), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("size", [3, pytest.param(31, marks=pytest.mark.slow)])
def test_profiles_in_float32(profile, size):
    center = np.array([0.0, size / 2, -size / 2, 0.5])
    run = jax.jit(PROFILES[profile], static_argnums=(2, 3))
    for sigma in (0.3, 1.0, 8.0 * size):
        single = run(jnp.asarray(center, np.float32), jnp.full(4, sigma, np.float32), size, HIGHEST)
        double = evaluate(profile, center, [sigma] * 4, size)
        for n, (a, b) in enumerate(zip(single, double, strict=True)):
            assert a.dtype == jnp.float32
            # Polynomials of degree 5 in z of size up to 5.
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()), err_msg=f"order {n}")


@pytest.mark.parametrize("profile", ["integrated", "discrete"])
def test_profiles_mass(profile):
    """Sampled profiles gain or lose some between the taps."""
    for sigma in (0.3, 1.0, 3.0):
        for center in (0.0, 0.5, -2.0):
            np.testing.assert_allclose(evaluate(profile, [center], [sigma], 51, 1)[0].sum(), 1.0, atol=1e-12)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    ("size", "center", "sigma"),
    [case if case in DEFAULT_CASES else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_variations_keep_their_digits(profile, size, center, sigma):
    def about_mean(values):
        values = np.asarray(values, float)
        return values - values.mean(axis=0)

    def vary_profile(center, sigma):
        return VARIATIONS[profile](center, sigma, PROFILES[profile](center, sigma, size, 1)[0])

    def vary(dtype):
        run = jax.jit(vary_profile, compiler_options=QUICK)
        return run(jnp.asarray([center], dtype), jnp.asarray([sigma], dtype))

    wanted = about_mean(evaluate(profile, [center], [sigma], size)[0])
    with jax.enable_x64(True):
        double = vary(jnp.float64)
    single = vary(jnp.float32)
    assert single.dtype == jnp.float32
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(about_mean(double), wanted, atol=1e-10 * largest)
    np.testing.assert_allclose(about_mean(single), wanted, atol=1e-6 * largest)
