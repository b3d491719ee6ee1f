"""Coverage of intervals: what is counted, angles the short way round, right shares where they are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.families import BUILTIN_FAMILIES, render
from dogfit.fitting.result import Status
from dogfit.uncertainty import (
    NOMINAL,
    Coverage,
    bootstrap,
    bootstrap_coverage,
    draw_noise,
    parameter_errors,
    student_factor,
)


@pytest.fixture(scope="module")
def fit():
    """Clean edges of one angle near the seam of the circle, some that lie at a bound, and a constant."""
    generator = np.random.default_rng(0)
    rows = 60
    columns = [np.zeros(rows), np.ones(rows), np.full(rows, 3.1), *generator.uniform(-0.5, 0.5, (2, rows))]
    parameters = np.stack([*columns, np.where(np.arange(rows) < 50, 1.1, 12.0)], axis=1)
    images = np.asarray(render(BUILTIN_FAMILIES["d1"], jnp.asarray(parameters), (7, 7)))
    images = images / np.linalg.norm(images, axis=(1, 2), keepdims=True)
    noisy = images + 0.02 * generator.normal(size=images.shape)
    return fit_kernels(np.concatenate([noisy, np.ones((1, 7, 7))]).astype(np.float32), ["d1"])


class TestBootstrap:
    def test_bootstrap_coverage_edges(self, fit):
        """Intervals cover what they should where noise is small."""
        table = bootstrap_coverage(fit, draws=30, seed=1)
        assert table["family"].unique().to_list() == ["d1"]
        assert table["parameter"].to_list() == list(BUILTIN_FAMILIES["d1"].names)
        assert table["count"].min() > 1200
        slack = 4 * (NOMINAL * (1 - NOMINAL) / table["count"].min()) ** 0.5
        assert np.abs(table["covered"].to_numpy() - NOMINAL).max() < slack
        assert np.abs(table["needed"].to_numpy() - 1).max() < 0.1
        assert (table["covered_t"] >= table["covered"]).all()
        assert ((table["low"] < table["covered"]) & (table["covered"] < table["high"])).all()

    def test_bootstrap_at_bound(self, fit):
        """Rows at bounds are not drawn but counted."""
        found, left_out = bootstrap(fit, draws=2)
        usable = fit.status == Status.CONVERGED
        assert left_out == np.sum(~usable) - 1  # the constant is not a fit
        assert left_out >= 8
        coverage = found["d1"]
        assert len(coverage.truth) + coverage.at_bound + coverage.unfinished == 2 * usable.sum()
        drawn = {tuple(row) for row in coverage.truth.astype(np.float32)}
        assert drawn <= {tuple(row) for row in fit.parameters["d1"][usable]}
        assert coverage.freedom == 49 - 6

    def test_bootstrap_sample(self, fit):
        """The sample is drawn without repeats and by seed."""
        one, same, other = (bootstrap(fit, sample=20, seed=seed)[0]["d1"] for seed in (3, 3, 4))
        assert len(one.truth) == len(np.unique(one.truth, axis=0)) <= 20
        np.testing.assert_array_equal(one.error, same.error)
        assert not np.array_equal(one.truth, other.truth)

    def test_bootstrap_coverage_nothing(self):
        fit = fit_kernels(np.ones((2, 7, 7), np.float32), ["d1"])
        with pytest.raises(ValueError, match="none of the 2 kernels converged inside the bounds"):
            bootstrap_coverage(fit)

    def test_bootstrap_coverage_numbers(self, fit):
        with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
            bootstrap_coverage(fit, sample=0)


def test_draw_noise_weights(fit):
    """Taps of a quarter of the weight get twice the noise, and those of none get none."""
    rows = np.flatnonzero(fit.status == Status.CONVERGED)[:40]
    weights = np.full((40, 7, 7), 4.0, np.float32)
    weights[:, :3], weights[:, 6] = 1.0, 0.0
    chosen = jax.tree.map(lambda leaf: leaf[rows], fit)
    weighted = type(fit)(**{**vars(chosen), "weights": weights})
    generator = np.random.default_rng(0)
    drawn = np.concatenate([draw_noise(weighted, generator) for _ in range(20)])
    spread = (drawn / np.tile(weighted.noise, 20)[:, None, None]).std(axis=(0, 2))
    mean = weights[0].sum() / 42
    np.testing.assert_allclose(spread, np.sqrt(mean) * np.array([1] * 3 + [0.5] * 3 + [0]), rtol=0.05)


class TestErrors:
    def test_error_periods(self):
        """Directions have a period of a turn and axes of half a turn."""
        for name, wanted in (("d1", [0.2, np.pi - 0.1]), ("d2", [0.2, -0.1])):
            family = BUILTIN_FAMILIES[name]
            truth = np.ones((2, len(family.names)))
            estimate = truth.copy()
            theta = family.names.index("theta_rad")
            truth[:, theta] = [np.pi - 0.1, 0.0]
            estimate[:, theta] = [-np.pi + 0.1, np.pi - 0.1]
            if name == "d2":
                truth[:, family.names.index("amplitude_2")] = 0.3
                estimate[:, family.names.index("amplitude_2")] = 0.3
            np.testing.assert_allclose(
                parameter_errors(family, estimate, truth)[:, theta], wanted, atol=1e-12
            )

    def test_error_swapped_axes(self):
        """Axes of like gains may change names."""
        family = BUILTIN_FAMILIES["d2"]
        at = {name: column for column, name in enumerate(family.names)}
        truth = np.zeros((1, len(family.names)))
        truth[0, [at["amplitude_1"], at["amplitude_2"], at["theta_rad"]]] = 1.0, -0.95, 0.1
        estimate = truth.copy()
        estimate[0, [at["amplitude_1"], at["amplitude_2"], at["theta_rad"]]] = -1.0, 0.97, 0.12 - np.pi / 2
        error = parameter_errors(family, estimate, truth)[0]
        assert error[at["amplitude_1"]] == pytest.approx(-0.03)
        assert error[at["amplitude_2"]] == pytest.approx(-0.05)
        assert error[at["theta_rad"]] == pytest.approx(0.02)

    def test_covered_unknown_error(self):
        """An interval without an error is not counted."""
        one = np.array([[0.5, 0.5, 2.0]])
        found = Coverage(
            BUILTIN_FAMILIES["d1"], one, one, np.array([[1.0, np.nan, 1.0]]), np.ones(1), 4, 0, 0
        )
        np.testing.assert_array_equal(found.covered(), [[1, np.nan, 0]])
        np.testing.assert_array_equal(found.covered(factor=3), [[1, np.nan, 1]])


class TestStatistics:
    @pytest.mark.parametrize("freedom", [2, 3, 4, 18, 44])
    def test_student_factor(self, freedom):
        assert student_factor(freedom) == pytest.approx(stats.t.ppf(stats.norm.cdf(1), freedom), rel=1e-9)
