"""The ascent of the explained energy: never down, never out of the box, and to where nothing pulls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.types import Box
from dogfit.kernels.xla.newton import advance, begin_ascent
from scipy_families import basis, bounds
from scipy_reference import Problem, Reference, orthonormal

FAMILY, MODEL, SIZE, ROWS = "d1", GaussianModel(1), 6, 64
LOW, HIGH = (side[:, None] for side in bounds(FAMILY, SIZE))


def explained(kernel: np.ndarray, point: np.ndarray) -> float:
    """Energy of a kernel that the family explains at a search point, by SVD in float64."""
    q = orthonormal(basis(FAMILY, point, SIZE))
    return float(np.sum((q.T @ kernel.ravel()) ** 2))


@pytest.fixture(scope="module")
def climb():
    """`climb(kernels, starts, steps, low, high)`: the ascent in float64, compiled once."""

    @jax.jit
    def run(kernels, start, steps, low, high):
        box = Box(low, high)

        def unfinished(carry):
            ascent, turn = carry
            return (turn < steps) & jnp.any(ascent.predicted_gain > 1e-13)

        def step(carry):
            ascent, turn = carry
            return advance(ascent, kernels, box, MODEL, 1e-13), turn + 1

        start = begin_ascent(jnp.clip(start, low, high))
        return jax.lax.while_loop(unfinished, step, (start, jnp.zeros_like(steps)))[0]

    def climb(kernels, start, steps, low=LOW, high=HIGH):
        low, high = (np.broadcast_to(side, start.shape) for side in (low, high))
        with jax.enable_x64(True):
            given = (jnp.asarray(a) for a in (kernels, start, steps, low, high))
            return jax.tree.map(np.asarray, run(*given))

    return climb


@pytest.fixture(scope="module")
def problems():
    """Noise, and starts of which a quarter of the coordinates lies outside the box."""
    generator = np.random.default_rng(6)
    kernels = generator.normal(size=(SIZE, SIZE, ROWS))
    kernels -= kernels.mean(axis=(0, 1))
    kernels /= np.linalg.norm(kernels, axis=(0, 1))
    start = (LOW + HIGH) / 2 + (HIGH - LOW) / 2 * generator.uniform(-1.3, 1.3, (3, ROWS))
    return kernels, start


def test_advance_stays_in_the_box(climb, problems):
    """No step leaves the box or descends."""
    kernels, start = problems
    clipped = np.clip(start, LOW, HIGH)
    before = np.array([explained(kernels[..., b], clipped[:, b]) for b in range(ROWS)])
    for steps in (1, 2, 5, 60):
        found = climb(kernels, start, steps)
        assert np.all((found.point >= LOW) & (found.point <= HIGH))
        assert np.all(found.energy >= before - 1e-12)
        reached = [explained(kernels[..., b], found.point[:, b]) for b in range(ROWS)]
        np.testing.assert_allclose(found.energy, reached, atol=1e-10)
        assert np.all(found.steps <= steps)
        before = found.energy


def test_advance_to_a_stationary_point(climb, problems):
    """Ascents end where no free parameter has a slope."""
    kernels, start = problems
    found = climb(kernels, start, 200)
    assert np.all(found.predicted_gain <= 1e-13)
    slope = np.empty_like(start)
    for b in range(ROWS):
        problem, x = Problem(Reference(FAMILY, SIZE), kernels[..., b].ravel()), found.point[:, b]
        slope[:, b] = -2 * problem.jacobian(x).T @ problem.residual(x)
    at_low, at_high = found.point <= LOW, found.point >= HIGH
    assert np.any(at_low | at_high)
    assert not np.all(np.any(at_low | at_high, axis=0))
    # The promise is the slope squared over twice the curvature, and curvatures are of order 1.
    small = np.abs(slope) < 1e-5
    assert np.all(small | (at_low & (slope < 0)) | (at_high & (slope > 0)))


def test_advance_rows_are_independent(climb, problems):
    """A row that is not finite spoils no other."""
    kernels, start = problems
    spoilt, spoilt_start = kernels.copy(), start.copy()
    spoilt[2, 1, 7] = np.nan
    spoilt_start[0, 9] = np.nan
    good = np.delete(np.arange(ROWS), [7, 9])
    clean, found = climb(kernels, start, 60), climb(spoilt, spoilt_start, 60)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(a[..., good], b[..., good])


def test_advance_bounds_of_each_row(climb, problems):
    """Bounds hold to the bit, those of each row."""
    kernels, start = problems
    low, high = np.broadcast_to(LOW, start.shape).copy(), np.broadcast_to(HIGH, start.shape).copy()
    low[0] = high[0] = np.linspace(-1, 1, ROWS)  # fixed
    low[2, ::2] = np.log(1.2)
    high[1, ::3] = 0.5
    found = climb(kernels, start, 60, low, high)
    np.testing.assert_array_equal(found.point[0], low[0])
    assert np.all((found.point >= low) & (found.point <= high))
    assert np.any(found.point[1, ::3] == 0.5)
    assert np.any(found.point[2, ::2] == np.log(1.2))
    # The rest moves as freely as ever.
    free = climb(kernels, found.point, 1)
    assert np.all(found.predicted_gain <= 1e-13)
    assert np.mean(free.predicted_gain > 1e-9) > 0.5
