"""Bounds and fixed parameters: kept to the bit, as good as SciPy's inside them, told when they cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.api import fit_kernel, fit_kernels, fit_stream
from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES, custom_family
from dogfit.fitting.result import Status
from dogfit.kernels.model.custom import SearchRange
from fit_drawings import leaves_equal, rows_of
from scipy_families import bounds, draw
from scipy_reference import Reference

SIZE, ROWS = 6, 12
CONFIG = FitConfig(effort=4)
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    generator = np.random.default_rng(70)
    images = np.stack([draw("gaussian", SIZE, *generator.uniform(-1.5, 1.5, 2), 1.0) for _ in range(ROWS)])
    noise = 0.2 * images.std(axis=(1, 2), keepdims=True) * generator.normal(size=images.shape)
    return (images + noise).astype(np.float32)


def fit(kernels, box, families=("gaussian",)):
    return fit_kernels(kernels, families, bounds=box, config=CONFIG)


def named(result, family="gaussian") -> dict[str, np.ndarray]:
    return dict(zip(BUILTIN_FAMILIES[family].names, result.parameters[family].T, strict=True))


def scipy_r2(kernels, family: str, box: dict[int, tuple[float, float]]) -> np.ndarray:
    """Best R² inside a box, given by the number of the search parameter."""
    low, high = bounds(family, SIZE)
    for index, sides in box.items():
        low[index], high[index] = sides
    reference = Reference(family, SIZE, starts=8, low=low, high=high)
    costs = np.array([reference.fit(kernel)[0] for kernel in kernels.astype(float)])
    energy = np.sum((kernels - kernels.mean(axis=(1, 2), keepdims=True)) ** 2, axis=(1, 2))
    return 1 - costs / energy


def test_fit_kernels_fixed_parameters(kernels):
    """Fixed parameters stay where they are."""
    result = fit(kernels, {"x0_px": 0.0, "sigma_px": 1.2})
    found = named(result)
    np.testing.assert_array_equal(found["x0_px"], 0.0)
    np.testing.assert_allclose(found["sigma_px"], 1.2, rtol=2e-7)
    assert len(np.unique(found["y0_px"])) == ROWS
    wanted = scipy_r2(kernels, "gaussian", {0: (0, 0), 2: (np.log(1.2), np.log(1.2))})
    np.testing.assert_allclose(result.r2, wanted, atol=2e-5)


def test_standard_errors_fixed_parameters(kernels):
    """Fixed parameters have no standard error and the others fewer rivals."""
    box = {"x0_px": 0.0, "sigma_px": 1.2}
    result = fit(kernels, box)
    errors = dict(
        zip(BUILTIN_FAMILIES["gaussian"].names, result.standard_errors()["gaussian"].T, strict=True)
    )
    assert np.all(np.isnan(errors["x0_px"]) & np.isnan(errors["sigma_px"]))
    for row, p in enumerate(result.parameters["gaussian"].astype(float)):

        def image(offset, amplitude, y0):
            return draw("gaussian", SIZE, 0.0, y0, 1.2, gains=(amplitude,), offset=offset).ravel()

        h = 1e-5
        value = np.array([p[0], p[1], p[3]])
        moves = h * np.eye(3)
        jacobian = np.stack([(image(*(value + m)) - image(*(value - m))) / (2 * h) for m in moves], axis=1)
        residual = kernels[row].astype(float).ravel() - image(*value)
        variance = residual @ residual / (SIZE**2 - 3)
        wanted = np.sqrt(variance * np.diag(np.linalg.inv(jacobian.T @ jacobian)))
        found = [errors[name][row] for name in ("offset", "amplitude", "y0_px")]
        np.testing.assert_allclose(found, wanted, rtol=2e-3)


def test_fit_kernels_box_optimum(kernels):
    """Best fits inside a box are those of SciPy."""
    box = {"sigma_px": (1.1, 2.0), "x0_px": (-0.4, 0.7), "y0_px": (0.0, 3.0)}
    result = fit(kernels, box)
    found = named(result)
    for name, (low, high) in box.items():
        assert np.all((found[name] >= low - 1e-6) & (found[name] <= high + 1e-6))
    sides = {0: (-0.4, 0.7), 1: (0.0, 3.0), 2: tuple(np.log([1.1, 2.0]))}
    np.testing.assert_allclose(result.r2, scipy_r2(kernels, "gaussian", sides), atol=1e-4)


def test_fit_kernels_at_bound(kernels):
    """What sits on a bound is told."""
    result = fit(kernels, {"x0_px": (-0.3, 0.3)})
    x0 = named(result)["x0_px"]
    on_bound = np.abs(x0) == np.float32(0.3)
    assert 0 < on_bound.sum() < ROWS
    np.testing.assert_array_equal(result.at_bound["gaussian"][:, 0], on_bound)
    np.testing.assert_array_equal(result.status == Status.AT_BOUND, on_bound)
    assert np.all(result.status[~on_bound] == Status.CONVERGED)
    errors = result.standard_errors()["gaussian"]
    column = BUILTIN_FAMILIES["gaussian"].names.index("x0_px")
    np.testing.assert_array_equal(np.isnan(errors[:, column]), on_bound)
    assert np.all(np.isfinite(np.delete(errors, column, axis=1)))


def test_fit_kernels_idle_bounds(kernels):
    """Bounds that change nothing."""
    free = fit_kernels(kernels, ("gaussian",), config=CONFIG)
    bounded = fit(kernels, {"sigma_px": (0.3, 6.0)})
    np.testing.assert_allclose(bounded.r2, free.r2, atol=1e-5)
    np.testing.assert_array_equal(bounded.status, free.status)


@pytest.mark.slow
def test_fit_kernels_bounds_per_kernel(kernels):
    """Bounds of every kernel."""
    places, widths = np.linspace(-1, 1, ROWS), np.linspace(0.8, 1.5, ROWS)
    result = fit(kernels, {"x0_px": places, "sigma_px": (widths, 2 * widths)})
    found = named(result)
    np.testing.assert_array_equal(found["x0_px"], places.astype(np.float32))
    assert np.all((found["sigma_px"] >= widths * (1 - 3e-7)) & (found["sigma_px"] <= 2 * widths * (1 + 3e-7)))
    for row in (0, 3, ROWS - 1):
        log = np.log([widths[row], 2 * widths[row]])
        wanted = scipy_r2(kernels[row : row + 1], "gaussian", {0: (places[row],) * 2, 2: tuple(log)})
        np.testing.assert_allclose(result.r2[row], wanted[0], atol=1e-4)
    # As many kernels as fill more than one call of the compiled program.
    many = np.tile(kernels, (100, 1, 1))
    repeated = fit(
        many, {"x0_px": np.tile(places, 100), "sigma_px": (np.tile(widths, 100), np.tile(2 * widths, 100))}
    )
    assert leaves_equal(rows_of(repeated, slice(-ROWS, None)), result)


@pytest.mark.slow
def test_fit_kernels_bounds_by_family(kernels):
    """The DoG alone is held at the middle; the widths of both are."""
    box = {"dog": {"x0_px": 0.25, "surround_ratio": (2.0, 3.0)}, "sigma_px": (0.5, 1.5), "gaussian": {}}
    result = fit(kernels, box, ("gaussian", "dog"))
    dog, gaussian = named(result, "dog"), named(result)
    np.testing.assert_array_equal(dog["x0_px"], np.float32(0.25))
    assert len(np.unique(gaussian["x0_px"])) == ROWS
    ratio = dog["sigma_surround_px"] / dog["sigma_px"]
    assert np.all((ratio >= 2 - 1e-5) & (ratio <= 3 + 1e-5))
    for found in (dog, gaussian):
        assert np.all((found["sigma_px"] >= 0.5 - 1e-6) & (found["sigma_px"] <= 1.5 + 1e-6))
    wanted = scipy_r2(
        kernels, "dog", {0: (0.25,) * 2, 2: tuple(np.log([0.5, 1.5])), 3: tuple(np.log([2, 3]))}
    )
    assert np.mean(result.r2_by_family[:, 1] >= wanted - 1e-4) >= 0.9
    assert np.all(result.r2_by_family[:, 1] <= wanted + 1e-3)


def test_fit_kernels_own_bounds_first(kernels):
    """A family's own bounds go before those of all."""
    box = {"sigma_px": (0.5, 1.0), "gaussian": {"sigma_px": 1.7}}
    np.testing.assert_allclose(named(fit(kernels, box))["sigma_px"], 1.7, rtol=2e-7)


@pytest.mark.slow
def test_fit_kernel_traced_bounds(kernels):
    """One compiled program for bounds that `vmap` brings, one per kernel."""

    def place(kernel, x0, widest):
        box = {"x0_px": x0, "sigma_px": (0.5, widest)}
        return fit_kernel(kernel, ("gaussian",), bounds=box, config=CONFIG).parameters["gaussian"]

    places, widest = np.linspace(-1, 1, ROWS), np.linspace(0.6, 1.4, ROWS)
    run = jax.jit(jax.vmap(place), compiler_options=QUICK)
    found = np.asarray(run(kernels, jnp.asarray(places), jnp.asarray(widest)))
    columns = dict(zip(BUILTIN_FAMILIES["gaussian"].names, found.T, strict=True))
    np.testing.assert_array_equal(columns["x0_px"], places.astype(np.float32))
    assert np.all(columns["sigma_px"] <= widest * (1 + 1e-6))
    wanted = fit(kernels, {"x0_px": places, "sigma_px": (np.full(ROWS, 0.5), widest)})
    np.testing.assert_allclose(found, wanted.parameters["gaussian"], rtol=5e-3, atol=5e-3)


def test_fit_kernels_bounds_as_lists(kernels):
    """A list of two is a range, however many kernels there are."""
    ranged = fit(kernels, {"sigma_px": (0.5, 2.0)})
    assert leaves_equal(fit(kernels, {"sigma_px": [0.5, 2.0]}), ranged)
    assert leaves_equal(fit(kernels[:2], {"sigma_px": [0.5, 2.0]}), rows_of(ranged, slice(2)))


@pytest.mark.slow
def test_fit_kernels_bounds_of_nothing(kernels):
    """No kernels, with bounds of their own."""
    nothing = fit(kernels[:0], {"x0_px": (np.zeros(0), np.ones(0)), "sigma_px": np.zeros(0) + 1})
    assert len(nothing) == 0
    assert nothing.table().height == 0


class TestBrokenBounds:
    @pytest.mark.parametrize(
        ("box", "told"),
        [
            ({"sigma": 1.0}, "'sigma' is no parameter with bounds of this fit; it has sigma_px, surr"),
            ({"theta_rad": 1.0}, "'theta_rad' is no parameter with bounds"),
            ({"d1": {"x0_px": 0.0}}, "'d1' is no family of this fit; it has dog, gaussian"),
            ({"gaussian": {"surround_ratio": 2.0}}, "gaussian: no parameter 'surround_ratio'; it has x0_px"),
            ({"sigma_px": (2.0, 1.0)}, "bounds of gaussian: sigma_px: the least is above the greatest"),
            ({"sigma_px": (0.1, 1.0)}, "gaussian: sigma_px must lie within 0.3 to 6"),
            ({"x0_px": 3.5}, "gaussian: x0_px must lie within -3 to 3"),
            ({"dog": {"surround_ratio": 9.0}}, "dog: surround_ratio must lie within 1.1 to 8"),
            ({"sigma_px": 0.0}, "sigma_px must be finite numbers above 0"),
            ({"x0_px": np.nan}, "x0_px must be finite numbers, one or one per kernel"),
            ({"x0_px": (-np.inf, 1.0)}, "x0_px must be finite numbers"),
            ({"x0_px": np.zeros((ROWS, 1))}, "x0_px must be finite numbers, one or one per kernel"),
            ({"x0_px": [0.0, 0.5, 1.0]}, "x0_px is a list of 3; a tuple or list is a range"),
            ({"x0_px": (0.5,)}, "x0_px is a tuple of 1; a tuple or list is a range"),
            ({"x0_px": "left"}, "x0_px must be finite numbers: .*dtype <U4"),
            ({"x0_px": np.zeros(5)}, "bounds of gaussian are for 5 kernels, but there are 12"),
            ({"x0_px": np.zeros(5), "y0_px": np.zeros(ROWS)}, "bounds of gaussian are for 5 and 12 kernels"),
        ],
    )  # fmt: skip
    def test_fit_kernels_bounds_errors(self, kernels, box, told):
        """Are told by name."""
        with pytest.raises(ValueError, match=told):
            fit(kernels, box, ("gaussian", "dog"))

    def test_fit_stream_bounds_errors(self, kernels):
        """One kernel and a stream have numbers."""
        box = {"x0_px": np.zeros(ROWS)}
        with pytest.raises(ValueError, match="bounds of one kernel must be numbers; use vmap"):
            fit_kernel(kernels[0], bounds=box)
        with pytest.raises(ValueError, match="bounds of a stream must be numbers"):
            list(fit_stream([kernels], bounds=box))

    @pytest.mark.slow
    def test_fit_kernels_custom_bounds(self, kernels):
        """Their names are the caller's: even what looks like a logarithm is none."""
        family = custom_family(
            "ridge",
            lambda x, y, x0, log_width: (jnp.exp(-(((x - x0) / jnp.exp(log_width)) ** 2)) + 0 * y,),
            {"x0": SearchRange(-3, 3, 7), "log_width": SearchRange(-0.7, 0.7, 3)},
            ("gain",),
        )
        with pytest.raises(ValueError, match=r"ridge: log_width must lie within -0\.7 to 0\.7"):
            fit(kernels, {"log_width": 0.9}, (family,))
        result = fit(kernels, {"log_width": -0.25, "x0": (-1.0, 1.0)}, (family,))
        np.testing.assert_array_equal(result.parameters["ridge"][:, 3], np.float32(-0.25))
        errors = result.standard_errors()["ridge"]
        assert np.all(np.isnan(errors[:, 3]))
        on_bound = np.abs(result.parameters["ridge"][:, 2]) == 1
        np.testing.assert_array_equal(np.isnan(errors[:, 2]), on_bound)
