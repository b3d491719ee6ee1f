"""Elliptic images against float64 quadrature in SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scipy_families
from dogfit.kernels.model.ellipses import elliptic_images

# Circles, and the corners of the bounds of shape.
SHAPES = np.array(
    [(0.0, 0.0), (1.0986, 0.0), (0.0, -1.0986), (1.0986, 1.0986), (-1.0986, 1.0986), (-0.3, 0.2)]
)
KX, KY = 7, 5
CENTER = (0.3, -0.2)
HIGHEST = 6
QUICK = {"xla_backend_optimization_level": 0}  # run once: compiling is what takes the time


@pytest.mark.parametrize("profile", ["integrated", pytest.param("sampled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "sigma", "tolerance"),
    [
        ("float64", 0.3, 1e-12),
        pytest.param("float64", 1.0, 1e-12, marks=pytest.mark.slow),
        ("float64", 7.0, 1e-12),
        ("float32", 0.3, 2e-5),
        pytest.param("float32", 1.0, 1e-5, marks=pytest.mark.slow),
        ("float32", 7.0, 2e-4),  # a mixed difference over a tap is a fiftieth of what it is taken of
    ],
)
def test_elliptic_images_against_quadrature(profile, dtype, sigma, tolerance):
    metric = np.stack([scipy_families.shear_matrix(e)[0] for e in SHAPES])
    with jax.enable_x64(dtype == "float64"):
        rows = [np.full(len(SHAPES), value) for value in (*CENTER, sigma)]
        x, y, width, *covariance = (
            jnp.asarray(v, dtype) for v in (*rows, metric[:, 0, 0], metric[:, 0, 1], metric[:, 1, 1])
        )
        found, level = jax.jit(elliptic_images, static_argnums=(3, 4, 5), compiler_options=QUICK)(
            (x, y), width, tuple(covariance), (KY, KX), (0, HIGHEST), profile
        )
    assert level is None
    assert len(found) == (HIGHEST + 1) * (HIGHEST + 2) // 2
    for row, e in enumerate(SHAPES):
        wanted = scipy_families.elliptic_images(CENTER, sigma, e, (KY, KX), HIGHEST + 1, profile)
        for (i, j), images in found.items():
            scale = np.abs(wanted[i, j]).max()
            np.testing.assert_allclose(
                images[..., row], wanted[i, j], atol=tolerance * scale, err_msg=f"{i}, {j}"
            )


@pytest.mark.parametrize("profile", ["integrated", pytest.param("sampled", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "sigma", [pytest.param(2.0, marks=pytest.mark.slow), pytest.param(6.0, marks=pytest.mark.slow), 50.0]
)
def test_elliptic_images_wide_pairs(profile, sigma):
    """What a surround has besides its mean, which alone is left for a weight to find."""
    metric = np.stack([scipy_families.shear_matrix(e)[0] for e in SHAPES])
    rows = [np.full(len(SHAPES), value) for value in (*CENTER, sigma)]
    x, y, width, *covariance = (
        jnp.asarray(v, jnp.float32) for v in (*rows, metric[:, 0, 0], metric[:, 0, 1], metric[:, 1, 1])
    )

    def make(x, y, width, covariance):
        return elliptic_images((x, y), width, covariance, (KY, KX), (0, 4), profile, paired=True)

    found, level = jax.jit(make, compiler_options=QUICK)(x, y, width, tuple(covariance))
    for row, e in enumerate(SHAPES):
        wanted = scipy_families.elliptic_images(CENTER, sigma, e, (KY, KX), 5, profile)
        for (i, j), images in found.items():
            image, truth = (a - a.mean() for a in (np.asarray(images[..., row]), wanted[i, j]))
            tolerance = 3e-3 if i + j else 5e-5
            assert np.abs(image - truth).max() < tolerance * np.abs(truth).max(), (i, j, e)
        np.testing.assert_allclose(found[0, 0][..., row] + level[row], wanted[0, 0], rtol=1e-4, atol=1e-6)


def test_elliptic_images_orders():
    """Only the orders asked for are made."""

    def make(one):
        return elliptic_images((one, one), one, (one, 0 * one, one), (5, 5), (1, 2), "integrated")

    found, _ = jax.eval_shape(make, jnp.ones(2))
    assert sorted(found) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
