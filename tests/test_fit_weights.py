"""Weighted and masked taps, against SciPy's weighted optimum and repeated observations."""

import jax
import numpy as np
import pytest

from dogfit.fitting.api import fit_kernel, fit_kernels, fit_stream
from dogfit.fitting.config import FitConfig
from dogfit.fitting.result import Status
from fit_drawings import leaves_equal, rows_of
from scipy_families import draw
from scipy_reference import Reference

SIZE, FAMILIES = 5, ("d1",)
CONFIG = FitConfig(effort=4)


def fit(kernels, **options):
    return fit_kernels(kernels, FAMILIES, config=CONFIG, **options)


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    generator = np.random.default_rng(60)
    drawn = [draw("d1", SIZE, *generator.uniform(-1, 1, 2), 1.0 + 0.05 * i, theta=0.7 * i) for i in range(10)]
    images = np.stack(drawn)
    noise = 0.15 * images.std(axis=(1, 2), keepdims=True) * generator.normal(size=images.shape)
    return (images + noise).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """Of every kernel its own; some taps left out."""
    generator = np.random.default_rng(61)
    weights = generator.uniform(0.1, 3, (10, SIZE, SIZE))
    weights[generator.uniform(size=weights.shape) < 0.15] = 0
    return weights.astype(np.float32)


@pytest.fixture(scope="module")
def weighted(kernels, weights):
    return fit(kernels, weights=weights)


def test_fit_kernels_weighted_optimum(kernels, weights, weighted):
    """Optimum is that of SciPy."""
    reached = np.zeros(weighted.r2_by_family.shape, bool)
    for row, (kernel, mine) in enumerate(zip(kernels.astype(float), weights.astype(float), strict=True)):
        mean = np.average(kernel, weights=mine)
        energy = np.sum(mine * (kernel - mean) ** 2)
        for column, family in enumerate(FAMILIES):
            cost, point = Reference(family, SIZE, starts=6, weights=mine).fit(kernel)
            left = 1 - weighted.r2_by_family[row, column]
            assert left >= cost / energy - 1e-5
            reached[row, column] = left <= cost / energy * 1.001 + 1e-4
            if left - cost / energy < 1e-5:
                found = weighted.parameters[family][row, -3:]
                np.testing.assert_allclose(found[:2], point[:2], atol=0.05)
                np.testing.assert_allclose(found[2], np.exp(point[2]), rtol=0.05)
    assert np.all(reached)


def test_fit_kernels_weighted_scores(kernels, weights, weighted):
    """Scores are those of the weighted residual."""
    taps = (weights > 0).sum(axis=(1, 2))
    scaled = weights * (taps / weights.sum(axis=(1, 2)))[:, None, None]
    residual = kernels - weighted.templates()
    left = np.sum(scaled * residual**2, axis=(1, 2))
    mean = np.average(kernels.reshape(10, -1), weights=weights.reshape(10, -1), axis=1)
    energy = np.sum(scaled * (kernels - mean[:, None, None]) ** 2, axis=(1, 2))
    np.testing.assert_allclose(weighted.r2, 1 - left / energy, atol=2e-5)
    np.testing.assert_allclose(weighted.rmse, np.sqrt(left / taps), rtol=2e-3)
    parameters = np.array([6])
    bic = taps[:, None] * np.log((1 - weighted.r2_by_family) / taps[:, None])
    np.testing.assert_allclose(weighted.score_by_family, bic + parameters * np.log(taps)[:, None], atol=1e-2)
    spare = taps - parameters[weighted.family]
    np.testing.assert_allclose(weighted.noise, np.sqrt(left / spare), rtol=2e-3)


def test_fit_kernels_masked_garbage(kernels, weights, weighted):
    """What stands in a masked tap does not matter."""
    for garbage in (np.nan, np.inf, 1e30, -7.0):
        spoilt = np.where(weights == 0, np.float32(garbage), kernels)
        assert leaves_equal(fit(spoilt, weights=weights), weighted)


def test_fit_kernels_weighted_broken_row(kernels, weights, weighted):
    """A spoilt tap that counts is told."""
    spoilt, row = kernels.copy(), 3
    y, x = np.argwhere(weights[row] > 0)[0]
    spoilt[row, y, x] = np.nan
    result = fit(spoilt, weights=weights)
    assert result.status[row] == Status.NONFINITE
    others = np.delete(np.arange(10), row)
    assert leaves_equal(rows_of(result, others), rows_of(weighted, others))


@pytest.mark.slow
def test_fit_kernels_equal_weights(kernels):
    """Equal weights are none."""
    plain = fit_kernels(kernels, FAMILIES)
    assert plain.weights is None
    for value in (1.0, 3.7):
        equal = fit(kernels, weights=np.full((SIZE, SIZE), value))
        np.testing.assert_array_equal(equal.family, plain.family)
        np.testing.assert_allclose(equal.r2_by_family, plain.r2_by_family, atol=1e-5)
        np.testing.assert_allclose(equal.score_by_family, plain.score_by_family, atol=1e-2)
        np.testing.assert_allclose(equal.rmse, plain.rmse, rtol=1e-3)
        np.testing.assert_allclose(equal.noise, plain.noise, rtol=1e-3)
        for family in FAMILIES:
            np.testing.assert_allclose(
                equal.standard_errors()[family], plain.standard_errors()[family], rtol=0.02, atol=1e-4
            )


@pytest.mark.parametrize("factor", [1e-6, 0.3, 1e6])
def test_fit_kernels_scaled_weights(kernels, weights, weighted, factor):
    """Only ratios of weights count."""
    scaled = fit(kernels, weights=weights * np.float32(factor))
    np.testing.assert_array_equal(scaled.family, weighted.family)
    np.testing.assert_allclose(scaled.r2_by_family, weighted.r2_by_family, atol=1e-5)
    np.testing.assert_allclose(scaled.rmse, weighted.rmse, rtol=1e-3)
    chosen = np.arange(10), weighted.family
    assert np.all(np.isfinite(scaled.score_by_family[chosen]))
    for family in FAMILIES:
        np.testing.assert_allclose(
            scaled.standard_errors()[family], weighted.standard_errors()[family], rtol=0.02, atol=1e-4
        )


def test_fit_kernels_repeated_taps(kernels):
    """The weighted sum of squares is that of a kernel whose taps were each seen so many times."""
    times = np.random.default_rng(62).integers(1, 4, (SIZE, SIZE))
    result = fit(kernels, weights=times.astype(np.float32))
    templates = result.templates().astype(float)
    for row, kernel in enumerate(kernels.astype(float)):
        seen, drawn = (
            np.repeat(kernel.ravel(), times.ravel()),
            np.repeat(templates[row].ravel(), times.ravel()),
        )
        wanted = 1 - np.sum((seen - drawn) ** 2) / np.sum((seen - seen.mean()) ** 2)
        np.testing.assert_allclose(result.r2[row], wanted, atol=2e-5)


def test_fit_kernels_shared_weights(kernels, weights):
    """Shared weights are those of every kernel."""
    shared = fit(kernels, weights=weights[0])
    repeated = fit(kernels, weights=np.broadcast_to(weights[0], kernels.shape))
    assert leaves_equal(shared, repeated)
    np.testing.assert_array_equal(shared.weights, repeated.weights)
    (streamed,) = fit_stream([kernels], FAMILIES, weights=weights[0], config=CONFIG)
    assert leaves_equal(streamed, shared)


@pytest.mark.slow
def test_fit_kernel_weighted_vmap(kernels, weights, weighted):
    """A kernel of its own and under vmap."""

    def score(kernel, mine):
        return fit_kernel(kernel, FAMILIES, weights=mine, config=CONFIG).r2

    # Compiling is what takes the time.
    mapped = jax.jit(jax.vmap(score), compiler_options={"xla_backend_optimization_level": 0})
    np.testing.assert_allclose(mapped(kernels, weights), weighted.r2_by_family[:, 0], atol=1e-5)


def test_fit_kernels_no_weight(kernels, weights, weighted):
    """A kernel without weight is not fitted."""
    none = weights.copy()
    none[4] = 0
    result = fit(kernels, weights=none)
    assert result.status[4] == Status.CONSTANT
    assert result.family[4] == -1
    assert np.isnan(result.r2[4])
    others = np.delete(np.arange(10), 4)
    assert leaves_equal(rows_of(result, others), rows_of(weighted, others))


def test_fit_kernels_few_weighted_taps(kernels, weights, weighted):
    """Fewer taps than parameters do no harm."""
    few = weights.copy()
    few[2] = 0
    few[2, 2, 1:5] = 1.0
    result = fit(kernels, weights=few)
    assert result.r2[2] <= 1
    assert np.all(np.isnan(result.standard_errors()["d1"][2]))
    others = np.delete(np.arange(10), 2)
    assert leaves_equal(rows_of(result, others), rows_of(weighted, others))


def test_standard_errors_weighted(kernels, weights, weighted):
    """From the Jacobian of SciPy's images in float64."""
    errors = weighted.standard_errors()["d1"]
    rows = np.flatnonzero(weighted.status == Status.CONVERGED)
    assert rows.size >= 3
    for row in rows:
        values = weighted.parameters["d1"][row].astype(float)

        def image(p):
            return draw("d1", SIZE, *p[3:6], theta=p[2], gains=(p[1],), offset=p[0]).ravel()

        moves = 1e-5 * np.eye(6)
        jacobian = np.stack([(image(values + m) - image(values - m)) / 2e-5 for m in moves], axis=1)
        mine = weights[row].astype(float).ravel()
        residual = kernels[row].astype(float).ravel() - image(values)
        left = np.sum(mine * residual**2) / (np.sum(mine > 0) - 6)
        wanted = np.sqrt(left * np.diag(np.linalg.inv(jacobian.T @ (mine[:, None] * jacobian))))
        np.testing.assert_allclose(errors[row], wanted, rtol=5e-3)


def test_fit_kernels_masked_kernels(kernels, weights, weighted):
    """A mask of the kernels or of the weights is a weight of 0."""
    spoilt = np.where(weights == 0, 50.0, kernels)
    masked = np.ma.array(spoilt, mask=weights == 0)
    everywhere = np.where(weights == 0, np.float32(7), weights)
    assert leaves_equal(fit(masked, weights=everywhere), weighted)
    hidden = np.ma.array(everywhere, mask=weights == 0)
    assert leaves_equal(fit(spoilt, weights=hidden), weighted)


@pytest.mark.slow
def test_fit_kernels_masked_blocks(kernels, weights):
    """Blocks without a masked tap are joined with others."""
    masked = np.ma.array(kernels, mask=weights == 0)
    joined = fit(iter([masked[:4], kernels[4:]]))
    np.testing.assert_array_equal(joined.weights[:4] > 0, weights[:4] > 0)
    assert np.all(joined.weights[4:] == 1)


@pytest.mark.parametrize("factor", [1e44, 1e-60, np.array([1e-300, 1e300] * 5)[:, None, None]])
def test_fit_kernels_weights_of_any_size(kernels, weights, weighted, factor):
    """Inverse variances in physical units have no place in float32, and their ratios have."""
    scaled = fit(kernels, weights=weights.astype(float) * factor)
    np.testing.assert_array_equal(scaled.family, weighted.family)
    np.testing.assert_allclose(scaled.r2, weighted.r2, atol=1e-5)
    np.testing.assert_allclose(scaled.rmse, weighted.rmse, rtol=1e-3)


class TestBrokenWeights:
    @pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
    def test_fit_kernels_weight_values(self, kernels, value):
        weights = np.ones((SIZE, SIZE))
        weights[1, 2] = value
        for call in (lambda: fit(kernels, weights=weights), lambda: fit_kernel(kernels[0], weights=weights)):
            with pytest.raises(
                ValueError, match="weights must be finite and not negative; 0 leaves a tap out"
            ):
                call()

    @pytest.mark.parametrize("shape", [(5, 6), (9, 5, 5), (25,), ()])
    def test_fit_kernels_weight_shapes(self, kernels, shape):
        told = r"weights must have shape \(5, 5\) or \(10, 5, 5\), got \(" + ", ".join(map(str, shape))
        with pytest.raises(ValueError, match=told):
            fit(kernels, weights=np.ones(shape))

    def test_fit_kernel_weight_shape(self, kernels):
        """Shapes of one kernel."""
        with pytest.raises(ValueError, match=r"weights must have shape \(5, 5\), got \(1, 5, 5\)"):
            fit_kernel(kernels[0], weights=np.ones((1, SIZE, SIZE)))

    def test_fit_stream_weight_shape(self, kernels):
        """A stream has shared weights."""
        with pytest.raises(ValueError, match=r"weights must have shape \(5, 5\), got \(10, 5, 5\)"):
            list(fit_stream([kernels], FAMILIES, weights=np.ones(kernels.shape)))
