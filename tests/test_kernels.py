"""The compiled numerics against quadrature, NumPy and automatic differentiation of naive formulas."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.scipy.stats import norm
from scipy.integrate import quad
from scipy.special import eval_hermitenorm

from dogfit.kernels.linalg import back_substitute, cholesky_solve, descent_solve, project
from dogfit.kernels.newton import maximise_energy
from dogfit.kernels.profiles import integrated_profiles
from dogfit.kernels.seeds import find_seeds
from dogfit.kernels.separable import projected_derivatives
from scipy_reference import basis, bounds, orthonormal

# As in the documentation of the families, not imported from it.
TERMS = {
    "gaussian": ((0, 0, 0),),
    "dog": ((0, 0, 0), (1, 0, 0)),
    "d1": ((0, 1, 0), (0, 0, 1)),
    "d2": ((0, 2, 0), (0, 1, 1), (0, 0, 2)),
}


def unit_kernels(generator: np.random.Generator, rows: int, size: int) -> np.ndarray:
    """Centred kernels of unit energy `[size, size, rows]`, x on the first axis."""
    kernels = generator.normal(size=(size, size, rows))
    kernels -= kernels.mean(axis=(0, 1))
    return kernels / np.linalg.norm(kernels, axis=(0, 1))


def random_points(generator: np.random.Generator, family: str, rows: int, size: int) -> np.ndarray:
    """Search points `[p, rows]` inside the bounds, away from widths at which a basis nearly vanishes."""
    low, high = bounds(family, size)
    low[:2], high[:2], low[2], high[2] = -2, 2, np.log(0.5), np.log(3.0)
    return generator.uniform(low[:, None], high[:, None], (len(low), rows))


def explained(kernel: np.ndarray, family: str, point: np.ndarray) -> float:
    """Energy of a kernel (x first) that the family explains at a search point, by SVD in float64."""
    q = orthonormal(basis(family, point, kernel.shape[0]))
    return float(np.sum((q.T @ kernel.T.ravel()) ** 2))


class TestProfiles:
    @pytest.mark.parametrize(("size", "center", "sigma"), [(7, 0.2, 0.3), (8, -3.7, 1.3), (5, 0.4, 56.0)])
    def test_every_order_is_the_integral_of_a_derivative(self, size, center, sigma):
        def derivative(u, order):
            z = (u - center) / sigma
            density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / sigma
            return (-1) ** order * eval_hermitenorm(order, z) * density

        with jax.enable_x64(True):
            profiles = integrated_profiles(jnp.array([center]), jnp.array([sigma]), size, 6)
        assert len(profiles) == 7
        for order, profile in enumerate(profiles):
            lows = np.arange(size) - size / 2
            wanted = [quad(derivative, low, low + 1, args=(order,), epsabs=1e-13)[0] for low in lows]
            np.testing.assert_allclose(profile[:, 0], wanted, rtol=1e-10, atol=1e-12)

    def test_derivatives_are_profiles_of_higher_order(self):
        size, highest, h = 7, 6, 1e-5
        center, sigma = np.array([0.3, -2.0, 1.5]), np.array([0.4, 1.0, 3.0])

        def unscaled(center, sigma):
            profiles = integrated_profiles(jnp.asarray(center), jnp.asarray(sigma), size, highest)
            return [np.asarray(p) / sigma**n for n, p in enumerate(profiles)]

        with jax.enable_x64(True):
            here = unscaled(center, sigma)
            right, left = unscaled(center + h, sigma), unscaled(center - h, sigma)
            wide, narrow = unscaled(center, sigma + h), unscaled(center, sigma - h)
        by_center = [(a - b) / (2 * h) for a, b in zip(right, left, strict=True)]
        by_sigma = [(a - b) / (2 * h) for a, b in zip(wide, narrow, strict=True)]
        for n in range(highest - 1):
            # Two differences of values of up to 1e3 (narrowest, highest order), one step of 1e-5 squared.
            np.testing.assert_allclose(by_center[n], -here[n + 1], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(by_sigma[n], sigma * here[n + 2], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("size", [3, 8, 31])
    def test_single_precision_at_extreme_widths(self, size):
        run = jax.jit(integrated_profiles, static_argnums=(2, 3))
        center = np.array([0.0, size / 2, -size / 2, 0.49], np.float32)
        for sigma in (0.3, 56.0):
            single = run(jnp.asarray(center), jnp.full(4, sigma), size, 6)
            with jax.enable_x64(True):
                double = run(jnp.asarray(center, float), jnp.full(4, sigma), size, 6)
            for a, b in zip(single, double, strict=True):
                assert a.dtype == jnp.float32
                # Polynomials of degree 5 in z of size up to 5.
                np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.fixture(scope="module")
def projection():
    """An image and three columns, for six rows."""
    generator = np.random.default_rng(3)
    return generator.normal(size=(5, 4, 6)), generator.normal(size=(3, 5, 4, 6))


class TestProject:
    def test_against_lstsq(self, projection):
        image, columns = projection
        with jax.enable_x64(True):
            found = project(jnp.asarray(image), [jnp.asarray(c) for c in columns])
        for b in range(image.shape[-1]):
            a, w = columns[..., b].reshape(3, -1).T, image[..., b].ravel()
            wanted = np.linalg.lstsq(a, w)[0]
            np.testing.assert_allclose([weight[b] for weight in found.weights], wanted, atol=1e-12)
            np.testing.assert_allclose(found.residual[..., b].ravel(), w - a @ wanted, atol=1e-12)

    @pytest.mark.parametrize("spoilt", ["dependent", "zero"])
    def test_a_column_that_adds_nothing_gets_no_weight(self, projection, spoilt):
        image, columns = projection
        second = 2 * columns[0] if spoilt == "dependent" else 0 * columns[0]
        spoilt_columns = [columns[0], second, columns[2]]
        with jax.enable_x64(True):
            found = project(jnp.asarray(image), [jnp.asarray(c) for c in spoilt_columns])
        np.testing.assert_array_equal(found.weights[1], 0.0)
        for b in range(image.shape[-1]):
            a, w = (
                np.stack([columns[0][..., b].ravel(), columns[2][..., b].ravel()], 1),
                image[..., b].ravel(),
            )
            wanted = np.linalg.lstsq(a, w)[0]
            np.testing.assert_allclose([found.weights[0][b], found.weights[2][b]], wanted, atol=1e-10)
            np.testing.assert_allclose(found.residual[..., b].ravel(), w - a @ wanted, atol=1e-10)

    def test_factor_solves_the_normal_equations(self, projection):
        image, columns = projection
        right = np.random.default_rng(4).normal(size=(3, 6))
        with jax.enable_x64(True):
            lower, inverse = project(jnp.asarray(image), [jnp.asarray(c) for c in columns]).factor
            solved = np.stack(cholesky_solve((lower, inverse), [jnp.asarray(r) for r in right]))
            back = np.stack(back_substitute(lower, inverse, [jnp.asarray(r) for r in right]))
        for b in range(6):
            a = columns[..., b].reshape(3, -1).T
            factor = np.linalg.cholesky(a.T @ a)
            np.testing.assert_allclose(solved[:, b], np.linalg.solve(a.T @ a, right[:, b]), atol=1e-12)
            np.testing.assert_allclose(back[:, b], np.linalg.solve(factor.T, right[:, b]), atol=1e-12)

    def test_energy_is_differentiable_in_the_image(self, projection):
        image, columns = projection

        def unexplained(image):
            return jnp.sum(project(image, [jnp.asarray(c) for c in columns]).residual ** 2)

        with jax.enable_x64(True):
            gradient = jax.grad(unexplained)(jnp.asarray(image))
            residual = project(jnp.asarray(image), [jnp.asarray(c) for c in columns]).residual
        np.testing.assert_allclose(gradient, 2 * np.asarray(residual), atol=1e-12)


class TestDescentSolve:
    @staticmethod
    def solve(matrices: np.ndarray, right: np.ndarray, shift: float, floor: float) -> np.ndarray:
        n = right.shape[1]
        with jax.enable_x64(True):
            lower = {(a, b): jnp.asarray(matrices[:, a, b]) for a in range(n) for b in range(a + 1)}
            entries = [jnp.asarray(right[:, a]) for a in range(n)]
            return np.stack(descent_solve(lower, entries, jnp.full(len(right), shift), floor), axis=1)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.floats(0.0, 3.0))
    def test_positive_matrices_are_solved_exactly(self, seed, n, shift):
        generator = np.random.default_rng(seed)
        root = generator.normal(size=(8, n, n))
        matrices, right = root @ root.swapaxes(1, 2) + 0.1 * np.eye(n), generator.normal(size=(8, n))
        wanted = np.linalg.solve(matrices + shift * np.eye(n), right[..., None])[..., 0]
        np.testing.assert_allclose(self.solve(matrices, right, shift, 1e-12), wanted, rtol=1e-8, atol=1e-8)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(1, 4))
    def test_indefinite_matrices_give_an_ascent_direction(self, seed, n):
        generator = np.random.default_rng(seed)
        matrices = generator.normal(size=(8, n, n))
        matrices, right = matrices + matrices.swapaxes(1, 2), generator.normal(size=(8, n))
        step = self.solve(matrices, right, 0.0, 1e-5)
        assert np.all(np.isfinite(step))
        assert np.all(np.sum(step * right, axis=1) > 0)

    def test_a_singular_matrix_gives_a_finite_step(self):
        step = self.solve(np.zeros((1, 3, 3)), np.array([[1.0, -2.0, 0.0]]), 0.0, 0.5)
        np.testing.assert_allclose(step, [[2.0, -4.0, 0.0]])


def naive_energy(point, kernel, terms):
    """Explained energy from images and a dense solve: the definition, for automatic differentiation."""
    size = kernel.shape[0]
    edges = jnp.arange(size + 1.0) - size / 2

    def profile(order, center, width):
        z = (edges - center) / width
        edge = [norm.cdf(z), norm.pdf(z), -z * norm.pdf(z)][order]
        return edge[1:] - edge[:-1]

    columns = []
    for index, i, j in terms:
        width = jnp.exp(point[2] + point[3]) if index else jnp.exp(point[2])
        image = jnp.outer(profile(i, point[0], width), profile(j, point[1], width)).ravel()
        columns.append(image - image.mean())
    matrix = jnp.stack(columns, axis=1)
    moments = matrix.T @ kernel.ravel()
    return moments @ jnp.linalg.solve(matrix.T @ matrix, moments)


@pytest.mark.parametrize("family", TERMS)
def test_projected_derivatives_against_automatic_differentiation(family):
    generator = np.random.default_rng(5)
    size, rows, terms = 7, 12, TERMS[family]
    kernels, points = unit_kernels(generator, rows, size), random_points(generator, family, rows, size)

    def naive(point, kernel):
        """Hessian, with value and gradient as a by-product."""

        def slope(point):
            energy, gradient = jax.value_and_grad(naive_energy)(point, kernel, terms)
            return gradient, (energy, gradient)

        return jax.jacfwd(slope, has_aux=True)(point)

    # Unoptimised: it runs once, and compiling is what takes the time.
    naive = jax.jit(jax.vmap(naive, (1, 2)), compiler_options={"xla_backend_optimization_level": 0})
    with jax.enable_x64(True):
        found = jax.jit(lambda w, p: projected_derivatives(w, list(p), terms))(kernels, points)
        hessian, (energy, gradient) = jax.tree.map(np.asarray, naive(points, kernels))
    # Lengths in units of the width, and halves.
    scale = np.ones_like(points)
    scale[:2] = np.exp(points[2])
    np.testing.assert_allclose(found.energy, energy, atol=1e-10)
    np.testing.assert_allclose(np.stack(found.gradient), gradient.T * scale / 2, atol=1e-8)
    for (a, b), values in found.hessian.items():
        np.testing.assert_allclose(values, hessian[:, a, b] * scale[a] * scale[b] / 2, atol=1e-7)
    assert set(found.hessian) == {(a, b) for a in range(len(points)) for b in range(a + 1)}


CLIMBED, CLIMBED_SIZE = "d1", 6


@pytest.fixture(scope="module")
def climb():
    """`climb(kernels, starts, steps)`: the ascent in float64, compiled once."""
    low, high = bounds(CLIMBED, CLIMBED_SIZE)

    @jax.jit
    def run(kernels, start, steps):
        box = jnp.asarray(low), jnp.asarray(high)
        return maximise_energy(kernels, start, *box, TERMS[CLIMBED], steps, 1e-13)

    def climb(kernels, start, steps):
        with jax.enable_x64(True):
            return jax.tree.map(np.asarray, run(jnp.asarray(kernels), jnp.asarray(start), steps))

    return climb


@pytest.fixture(scope="module")
def slopes():
    """Noise, and starts of which a quarter of the coordinates lies outside the box."""
    generator = np.random.default_rng(6)
    low, high = bounds(CLIMBED, CLIMBED_SIZE)
    middle, half = (low + high)[:, None] / 2, (high - low)[:, None] / 2
    start = middle + half * generator.uniform(-1.3, 1.3, (3, 64))
    return unit_kernels(generator, 64, CLIMBED_SIZE), start


class TestNewton:
    def test_stays_in_the_box_and_never_descends(self, climb, slopes):
        kernels, start = slopes
        low, high = bounds(CLIMBED, CLIMBED_SIZE)
        clipped = np.clip(start, low[:, None], high[:, None])
        before = np.array([explained(kernels[..., b], CLIMBED, clipped[:, b]) for b in range(64)])
        for steps in (1, 2, 5, 60):
            found = climb(kernels, start, steps)
            assert np.all((found.point >= low[:, None]) & (found.point <= high[:, None]))
            assert np.all(found.energy >= before - 1e-12)
            reached = [explained(kernels[..., b], CLIMBED, found.point[:, b]) for b in range(64)]
            np.testing.assert_allclose(found.energy, reached, atol=1e-10)
            assert np.all(found.steps <= steps)
            before = found.energy

    def test_ends_where_no_free_parameter_has_a_slope(self, climb, slopes):
        kernels, start = slopes
        low, high = bounds(CLIMBED, CLIMBED_SIZE)
        found = climb(kernels, start, 200)
        assert np.all(found.promise <= 1e-13)
        with jax.enable_x64(True):
            gradient = jax.grad(functools.partial(naive_energy, terms=TERMS[CLIMBED]))
            slope = jax.jit(jax.vmap(gradient, (1, 2)))(jnp.asarray(found.point), jnp.asarray(kernels))
        slope = np.asarray(slope).T
        at_low, at_high = found.point <= low[:, None], found.point >= high[:, None]
        assert np.any(at_low | at_high)
        assert not np.all(np.any(at_low | at_high, axis=0))
        # The promise is the slope squared over twice the curvature, and curvatures are of order 1.
        small = np.abs(slope) < 1e-5
        assert np.all(small | (at_low & (slope < 0)) | (at_high & (slope > 0)))

    def test_a_row_that_is_not_finite_stays_alone(self, climb, slopes):
        kernels, start = slopes
        spoilt, spoilt_start = kernels.copy(), start.copy()
        spoilt[2, 1, 7] = np.nan
        spoilt_start[0, 9] = np.nan
        good = np.delete(np.arange(64), [7, 9])
        clean, found = climb(kernels, start, 60), climb(spoilt, spoilt_start, 60)
        for a, b in zip(clean, found, strict=True):
            np.testing.assert_array_equal(a[..., good], b[..., good])


@pytest.mark.parametrize("family", ["dog", "d2"])
def test_seeds_carry_the_energy_at_their_node_best_first(family):
    size, rows, count = 7, 20, 3
    kernels = unit_kernels(np.random.default_rng(7), rows, size)
    seeds = jax.jit(lambda w: find_seeds(w, TERMS[family], count))(jnp.asarray(kernels, jnp.float32))
    points, energies = np.asarray(seeds.points, float), np.asarray(seeds.energies)
    assert points.shape == (count, len(bounds(family, size)[0]), rows)
    assert energies.shape == (count, rows)
    assert np.all(np.isfinite(points))
    assert np.all(np.diff(energies, axis=0) <= 0)
    assert np.all((energies > 0) & (energies <= 1.001))
    for s, b in itertools.product(range(count), range(rows)):
        wanted = explained(kernels[..., b], family, points[s, :, b])
        # Coarse by design, and regularised where two Gaussians of nearly one width almost cancel.
        assert wanted - 5e-3 <= energies[s, b] <= wanted + 1e-3
    for one, other in itertools.combinations(points, 2):
        assert np.all(np.abs(one - other).max(axis=0) > 1e-3)
