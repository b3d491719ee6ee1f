"""Tiny unrolled linear algebra against NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogfit.kernels.linalg import (
    back_substitute,
    cholesky_solve,
    descent_solve,
    leverages,
    map_chunks,
    materialize,
    project,
)


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
            a = np.stack([columns[0][..., b].ravel(), columns[2][..., b].ravel()], 1)
            w = image[..., b].ravel()
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
            gradient = jax.jit(jax.grad(unexplained))(jnp.asarray(image))
            residual = project(jnp.asarray(image), [jnp.asarray(c) for c in columns]).residual
        np.testing.assert_allclose(gradient, 2 * np.asarray(residual), atol=1e-12)


class TestLeverages:
    @pytest.mark.parametrize("dependent", [False, True])
    def test_are_the_diagonal_of_the_hat_matrix(self, projection, dependent):
        columns = projection[1].copy()
        if dependent:
            columns[1] = -3 * columns[0]
        with jax.enable_x64(True):
            found = np.asarray(leverages([jnp.asarray(c) for c in columns]))
        for b in range(found.shape[-1]):
            a = columns[..., b].reshape(3, -1).T
            np.testing.assert_allclose(found[..., b].ravel(), np.diag(a @ np.linalg.pinv(a)), atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=(0, 1)), 2 if dependent else 3, atol=1e-12)


class TestDescentSolve:
    @staticmethod
    def solve(matrices: np.ndarray, right: np.ndarray, shift: float, floor: float) -> np.ndarray:
        n = right.shape[1]
        with jax.enable_x64(True):
            lower = {(a, b): jnp.asarray(matrices[:, a, b]) for a in range(n) for b in range(a + 1)}
            entries = [jnp.asarray(right[:, a]) for a in range(n)]
            return np.stack(descent_solve(lower, entries, jnp.full(len(right), shift), floor), axis=1)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0.0, 3.0))
    def test_positive_matrices_are_solved_exactly(self, seed, n, shift):
        generator = np.random.default_rng(seed)
        root = generator.normal(size=(8, n, n))
        matrices, right = root @ root.swapaxes(1, 2) + 0.1 * np.eye(n), generator.normal(size=(8, n))
        wanted = np.linalg.solve(matrices + shift * np.eye(n), right[..., None])[..., 0]
        np.testing.assert_allclose(self.solve(matrices, right, shift, 1e-12), wanted, rtol=1e-8, atol=1e-8)

    @given(st.integers(0, 2**32 - 1), st.integers(1, 7))
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


class TestMaterialize:
    def test_values_and_their_derivatives_pass(self):
        x = jnp.arange(1.0, 4.0)

        def f(x):
            first, (second,) = materialize((x, [x * x]))
            return jnp.sum(first * second)

        for compute in (f, jax.jit(f)):
            assert compute(x) == 36.0
            np.testing.assert_array_equal(jax.grad(compute)(x), 3 * x * x)
            np.testing.assert_array_equal(jax.vmap(compute)(jnp.stack([x, 2 * x])), [36.0, 288.0])

    def test_values_are_no_part_of_what_follows(self):
        def f(x):
            return jnp.stack([materialize(jnp.cos(x)) * scale for scale in (1.0, 2.0)])

        compiled = jax.jit(f).lower(jnp.ones(8)).compile().as_text()
        assert "call(" in compiled


@pytest.mark.parametrize("size", [2, 3, 12])
def test_map_chunks_joins_in_order(size):
    """Parts of a batch are joined in order, and empty ones passed over."""
    generator = np.random.default_rng(8)
    own, shared = generator.normal(size=(3, 2, 12)).astype(np.float32), np.ones((4, 1), np.float32)
    own[..., 6:] = 0.0

    def function(arrays):
        assert {leaf.shape[-1] for leaf in jax.tree.leaves(arrays)} == {size}
        x, y = arrays["own"], arrays["shared"]
        return {"sum": x.sum((0, 1)) + y.sum(0), "index": jnp.argmax(x[:, 0], axis=0)[None] + 1}

    found = jax.jit(lambda arrays: map_chunks(function, arrays, size))({"own": own, "shared": shared})
    # A part with some zeros is worked out, one of zeros alone is not.
    used = np.repeat(np.any(own.reshape(6, -1, size), axis=(0, 2)), size)
    np.testing.assert_allclose(found["sum"], np.where(used, own.sum((0, 1)) + 4, 0), rtol=1e-5)
    np.testing.assert_array_equal(found["index"][0], np.where(used, np.argmax(own[:, 0], axis=0) + 1, 0))
