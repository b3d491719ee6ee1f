"""Derivatives of fits by the kernel, against refits of changed kernels: SciPy's, and in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from dogfit.fitting.api import fit_kernel
from dogfit.fitting.config import FitConfig
from dogfit.fitting.result import Status
from scipy_families import basis, draw

SIZE = 5
QUICK = FitConfig(effort=2)
DOUBLE = FitConfig(effort=2, engine="xla")
# Compiling is what takes the time.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
STEP = 1e-4


def noisy_kernel(family: str, size: int = SIZE, **drawn) -> np.ndarray:
    kernel = draw(family, size, **{"x0": 0.3, "y0": -0.4, "sigma": 0.9, **drawn})
    return kernel + 0.05 * kernel.std() * np.random.default_rng(3).normal(size=kernel.shape)


def directions(kernel: np.ndarray, count: int = 3) -> np.ndarray:
    return kernel.std() * np.random.default_rng(4).normal(size=(count, *kernel.shape))


def floats_of(result, family: str):
    """All results that are not whole numbers, but for the distance from the optimum, which is none."""
    scores = jnp.stack([result.rmse, result.r2])
    return jnp.concatenate([result.parameters[family], scores, result.r2_by_family, result.score_by_family])


def scipy_floats(kernel: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The same of a Gaussian, at the optimum next to a search point."""

    def solved(point):
        columns = basis("gaussian", point, SIZE)
        gains = np.linalg.lstsq(columns, kernel.ravel(), rcond=None)[0]
        return gains, kernel.ravel() - columns @ gains

    found = least_squares(lambda p: solved(p)[1], start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    gains, residual = solved(found.x)
    left = residual @ residual
    r2 = 1 - left / np.sum((kernel - kernel.mean()) ** 2)
    score = kernel.size * np.log((1 - r2) / kernel.size) + 5 * np.log(kernel.size)
    x0, y0, log_sigma = found.x
    return np.array([*gains, x0, y0, np.exp(log_sigma), np.sqrt(left / kernel.size), r2, r2, score])


@pytest.mark.slow
def test_fit_kernel_derivatives():
    """Parameters, errors and scores follow the kernel as SciPy's do."""
    kernel = noisy_kernel("gaussian")
    start = np.array([0.3, -0.4, np.log(0.9)])

    def run(kernel):
        return floats_of(fit_kernel(kernel, ["gaussian"], config=QUICK), "gaussian")

    values = compiled(run)(kernel.astype(np.float32))
    np.testing.assert_allclose(values, scipy_floats(kernel, start), rtol=2e-3, atol=3e-5)
    slopes = compiled(jax.jacfwd(run))(kernel.astype(np.float32))
    for towards in directions(kernel):
        wanted = scipy_floats(kernel + STEP * towards, start) - scipy_floats(kernel - STEP * towards, start)
        found = np.einsum("nij,ij->n", slopes, towards)
        # A search in float32 stops 1e-7 of the energy short of the optimum, of 3e-3 that the noise leaves.
        np.testing.assert_allclose(found, wanted / (2 * STEP), rtol=2e-2, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("d1", {"theta": 0.5, "profile": "sampled", "criterion": "aicc"}),
        ("d2", {"theta": 0.5, "gains": (1.0, -0.4), "criterion": "cv"}),
        ("dog", {"surround": 1.9, "gains": (2.0, -1.5), "size": 7}),
    ],
)
def test_fit_kernel_derivatives_double(family, options):
    """Forwards and backwards, against differences of fits in float64."""
    settings = {name: options.pop(name) for name in ("criterion", "profile") if name in options}
    config = FitConfig(effort=2, engine="xla", **settings)
    with jax.enable_x64(True):
        kernel = noisy_kernel(family, **options)

        def floats(kernel):
            return floats_of(fit_kernel(kernel, [family], config=config), family)

        run, slopes = compiled(floats), compiled(jax.jacfwd(floats))(kernel)
        if family == "d1":
            np.testing.assert_allclose(compiled(jax.jacrev(floats))(kernel), slopes, rtol=1e-6, atol=1e-9)
        for towards in directions(kernel):
            wanted = (run(kernel + STEP * towards) - run(kernel - STEP * towards)) / (2 * STEP)
            found = np.einsum("nij,ij->n", slopes, towards)
            np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_fit_kernel_second_derivatives():
    """Of R² and of a parameter."""

    def pair(kernel):
        result = fit_kernel(kernel, ["gaussian"], config=DOUBLE)
        return jnp.stack([result.r2, result.parameters["gaussian"][4]])

    with jax.enable_x64(True):
        kernel = noisy_kernel("gaussian")
        slopes, curvature = compiled(jax.jacrev(pair)), compiled(jax.jacfwd(jax.jacrev(pair)))(kernel)
        towards = directions(kernel, 1)[0]
        wanted = (slopes(kernel + STEP * towards) - slopes(kernel - STEP * towards)) / (2 * STEP)
        np.testing.assert_allclose(
            np.einsum("nijkl,kl->nij", curvature, towards), wanted, rtol=1e-4, atol=1e-7
        )


@pytest.mark.slow
def test_fit_kernel_derivatives_at_bound():
    """Parameters on a bound stay there, and weights count; there are no derivatives by these."""
    weights = np.random.default_rng(5).uniform(0.5, 2, (SIZE, SIZE))

    def fit(kernel, weights=weights, widest=0.7):
        bounds = {"sigma_px": (0.5, widest)}
        return fit_kernel(kernel, ["gaussian"], weights=weights, bounds=bounds, config=DOUBLE)

    with jax.enable_x64(True):
        kernel = noisy_kernel("gaussian")
        assert fit(kernel).status == Status.AT_BOUND

        def floats(kernel):
            return floats_of(fit(kernel), "gaussian")

        run, slopes = compiled(floats), compiled(jax.jacfwd(floats))(kernel)
        assert not np.any(slopes[4])
        for towards in directions(kernel):
            wanted = (run(kernel + STEP * towards) - run(kernel - STEP * towards)) / (2 * STEP)
            np.testing.assert_allclose(np.einsum("nij,ij->n", slopes, towards), wanted, rtol=2e-4, atol=1e-6)
        with pytest.raises(NotImplementedError, match="by the kernel, not by weights"):
            jax.grad(lambda w: fit(kernel, w).r2)(weights)
        with pytest.raises(NotImplementedError, match="by the kernel, not by bounds"):
            jax.grad(lambda widest: fit(kernel, widest=widest).r2)(0.7)


@pytest.mark.slow
def test_fit_kernel_derivatives_without_a_fit():
    """A constant kernel has no fit and no slope, and spoils no other under vmap."""
    kernels = np.stack([noisy_kernel("gaussian"), np.ones((SIZE, SIZE))]).astype(np.float32)

    def total(kernels):
        result = jax.vmap(lambda k: fit_kernel(k, ["gaussian"], config=QUICK))(kernels)
        fitted = result.family >= 0
        return jnp.sum(jnp.where(fitted, result.rmse, 0)) + jnp.sum(
            jnp.where(fitted[:, None], result.parameters["gaussian"], 0)
        )

    both = compiled(jax.grad(total))(kernels)
    assert not np.any(both[1])
    assert np.all(np.isfinite(both[0]))
    assert np.any(both[0])
