"""The fitter against known truth; bad rows, bad arguments, and what must not matter."""

from dataclasses import fields

import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.api import fit_kernel, fit_kernels
from dogfit.fitting.config import THOROUGH, FitConfig
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.result import Status
from fit_drawings import (
    ENGINES,
    NAMES,
    SIZE,
    TRUTH,
    differences,
    drawings,
    leaves_equal,
    noisy,
    parameters_of,
    reported,
    rows_of,
)
from scipy_reference import Reference

SMALL = FitConfig(effort=2)


@pytest.fixture(scope="module", params=ENGINES)
def config(request) -> FitConfig:
    return FitConfig(engine=request.param)


@pytest.fixture(scope="module")
def clean_fit(config):
    return fit_kernels(drawings().astype(np.float32), config=config)


@pytest.fixture(scope="module")
def mixed() -> np.ndarray:
    """Structured kernels and pure noise."""
    clean = drawings()
    noise = np.random.default_rng(8).normal(size=(20, SIZE, SIZE))
    return np.concatenate([noisy(clean, 0.1, 9), noisy(clean, 0.5, 10), noise]).astype(np.float32)


@pytest.fixture(scope="module")
def mixed_fit(mixed, config):
    return fit_kernels(mixed, config=config)


@pytest.mark.parametrize("row", range(len(TRUTH)))
def test_fit_kernels_clean_parameters(clean_fit, row):
    """Recovers the parameters of a clean kernel."""
    family, drawn = TRUTH[row]
    index = clean_fit.family_names.index(family)
    assert clean_fit.r2_by_family[row, index] > 1 - 1e-5
    assert clean_fit.status_by_family[row, index] == Status.CONVERGED
    apart = differences(family, reported(clean_fit, family, row), parameters_of(family, drawn))
    # The weights of two overlapping Gaussians trade against each other: single precision leaves two digits.
    loose = family == "dog"
    assert max(apart.values()) < (0.05 if loose else 5e-3), apart


def test_fit_kernels_noisy_families(mixed_fit):
    """Chooses the true family of a noisy kernel."""
    assert [mixed_fit.family_names[i] for i in mixed_fit.family[: len(TRUTH)]] == NAMES
    assert np.all(mixed_fit.r2[: len(TRUTH)] > 0.97)


@pytest.mark.parametrize("row", range(len(TRUTH)))
def test_fit_kernels_noisy_parameters(mixed_fit, row):
    """Recovers the parameters of a noisy kernel."""
    family, drawn = TRUTH[row]
    apart = differences(family, reported(mixed_fit, family, row), parameters_of(family, drawn))
    if family == "dog":
        # Ten per cent of noise leaves the two weights open, not the place and the centre's width.
        apart = {name: apart[name] for name in ("x0_px", "y0_px", "sigma_px")}
    assert max(apart.values()) < 0.25, apart


def test_fit_kernels_r2_of_templates(mixed, mixed_fit):
    """R² is that of the templates."""
    residual = mixed - mixed_fit.templates()
    total = np.sum((mixed - mixed.mean(axis=(1, 2), keepdims=True)) ** 2, axis=(1, 2))
    np.testing.assert_allclose(mixed_fit.r2, 1 - np.sum(residual**2, axis=(1, 2)) / total, atol=2e-5)
    rmse = np.sqrt(np.mean(residual**2, axis=(1, 2)))
    np.testing.assert_allclose(mixed_fit.rmse, rmse, rtol=2e-3)
    rows = np.arange(len(mixed))
    np.testing.assert_array_equal(mixed_fit.r2, mixed_fit.r2_by_family[rows, mixed_fit.family])
    np.testing.assert_array_equal(mixed_fit.status, mixed_fit.status_by_family[rows, mixed_fit.family])


def test_fit_kernels_r2_of_wide_pairs(config):
    """There almost all of each is constant, which the offset takes up, and the gains all but cancel."""
    rng = np.random.default_rng(21)
    x, y = np.meshgrid(*[np.arange(SIZE) - (SIZE - 1) / 2] * 2)
    square = x**2 + y**2
    kernels = [square + a * square**2 + rng.normal(size=square.shape) for a in np.linspace(0, 0.2, 40)]
    kernels = np.array(kernels, np.float32)
    fit = fit_kernels(kernels, ["dog"], config=config)
    reference = Reference("dog", SIZE)
    widths = []
    for kernel, r2, row in zip(kernels.astype(float), fit.r2, fit.parameters["dog"], strict=True):
        values = dict(zip(fit.families[0].names, row.astype(float), strict=True))
        widths.append(values["sigma_px"])
        logs = np.log([values["sigma_px"], values["sigma_surround_px"] / values["sigma_px"]])
        cost = reference.cost_at(kernel, np.array([values["x0_px"], values["y0_px"], *logs]))
        assert abs(r2 - (1 - cost / np.sum((kernel - kernel.mean()) ** 2))) < 1e-4
    assert np.median(widths) > 0.7 * SIZE


def test_fit_kernels_dog_holds_gaussian(mixed_fit):
    """A DoG holds the Gaussian, so its global optimum cannot be worse."""
    gaussian, dog = (mixed_fit.r2_by_family[:, mixed_fit.family_names.index(f)] for f in ("gaussian", "dog"))
    assert np.mean(dog >= gaussian - 1e-4) >= 0.97


def test_fit_kernels_steps_and_agreeing(mixed, mixed_fit):
    """Steps and starts are counted."""
    for counted in (mixed_fit.steps, mixed_fit.n_agreeing):
        assert counted.shape == (len(mixed), len(FAMILIES))
        assert np.all(counted >= 1)
    # Clear kernels are found from several starts; those that join an optimum early are not counted.
    assert np.mean(mixed_fit.n_agreeing[: len(TRUTH)]) > 1.5


@pytest.mark.slow
def test_fit_kernels_engines_agree(mixed):
    native = fit_kernels(mixed, config=FitConfig(engine="auto"))
    xla = fit_kernels(mixed, config=FitConfig(engine="xla"))
    alike = np.abs(native.r2_by_family - xla.r2_by_family) < 1e-4
    structured = slice(2 * len(TRUTH))
    assert alike[structured].mean() > 0.98
    # White noise has many optima of nearly one height.
    assert alike.mean() > 0.9
    np.testing.assert_array_equal(native.family[structured], xla.family[structured])


class TestBadRows:
    @pytest.fixture(scope="class")
    @classmethod
    def spoilt(cls, config):
        """Rows that cannot be fitted or are of extreme size, and the position of each."""
        good = noisy(drawings(), 0.1, 9).astype(np.float32)
        one_nan, one_inf = good[3].copy(), good[4].copy()
        one_nan[2, 5], one_inf[0, 0] = np.nan, -np.inf
        plain = np.ones((SIZE, SIZE), np.float32)
        bad = {
            "zero": 0 * plain,
            "constant": 0.1 * plain,
            "large constant": -1e30 * plain,
            "nan": one_nan,
            "inf": one_inf,
            "all nan": np.nan * plain,
        }
        whole = np.concatenate([good[:6], np.stack(list(bad.values())), good[6:]])
        return good, bad, fit_kernels(whole, config=config)

    def test_fit_kernels_broken_status(self, spoilt):
        """Each gets its status and no fit."""
        _, bad, result = spoilt
        wanted = [Status.NONFINITE if "nan" in b or "inf" in b else Status.CONSTANT for b in bad]
        rows = slice(6, 6 + len(bad))
        np.testing.assert_array_equal(result.status[rows], wanted)
        np.testing.assert_array_equal(result.status_by_family[rows], np.tile(np.array(wanted)[:, None], 4))
        assert np.all(result.family[rows] == -1)
        scores = [result.r2, result.rmse, result.r2_by_family, result.score_by_family]
        for values in (*scores, *result.parameters.values(), result.evidence_ratio, result.noise):
            assert np.all(np.isnan(values[rows]))
        assert np.all(np.isnan(result.templates()[rows]))

    def test_fit_kernels_broken_rows_stay_alone(self, spoilt, config):
        """The others keep every bit."""
        good, bad, result = spoilt
        kept = np.r_[0:6, 6 + len(bad) : len(good) + len(bad)]
        assert leaves_equal(rows_of(result, kept), fit_kernels(good, config=config))

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_fit_kernels_scale(self, spoilt, config, scale):
        """Amplitude does not matter."""
        good, _, result = spoilt
        scaled = fit_kernels(good * np.float32(scale), config=config)
        rows = np.r_[0:6, len(result) - len(good) + 6 : len(result)]
        np.testing.assert_array_equal(scaled.family, result.family[rows])
        np.testing.assert_allclose(scaled.r2, result.r2[rows], atol=1e-5)
        np.testing.assert_allclose(scaled.rmse, result.rmse[rows] * scale, rtol=1e-3)
        assert np.all(scaled.status < Status.CONSTANT)
        residual = (good.astype(float) * scale - scaled.templates()) / scale
        assert np.all(np.isfinite(residual))
        np.testing.assert_allclose(np.sqrt(np.mean(residual**2, axis=(1, 2))), result.rmse[rows], rtol=1e-3)


def test_fit_kernels_order_and_cuts(mixed, mixed_fit, config):
    """Rows do not depend on their place."""
    order = np.random.default_rng(12).permutation(len(mixed))
    shuffled = fit_kernels(mixed[order], config=config)
    assert leaves_equal(shuffled, rows_of(mixed_fit, order))
    assert leaves_equal(fit_kernels(mixed[:3], config=config), rows_of(mixed_fit, slice(3)))
    # Beyond one call of the compiled program.
    many = fit_kernels(np.concatenate([mixed] * 21), config=config)
    assert leaves_equal(rows_of(many, slice(-len(mixed), None)), mixed_fit)


def test_fit_kernels_input_types(mixed, mixed_fit, config):
    """Lower precisions and float64 input are fitted in single."""
    for dtype in (jnp.bfloat16, np.float16):
        low = mixed[:8].astype(dtype)
        result = fit_kernels(low, config=config)
        assert result.r2.dtype == np.float32
        assert leaves_equal(result, fit_kernels(low.astype(np.float32), config=config))
    result = fit_kernels(mixed[:8].astype(np.float64), config=config)
    assert result.r2.dtype == np.float32
    assert leaves_equal(result, rows_of(mixed_fit, slice(8)))
    assert leaves_equal(fit_kernels(jnp.asarray(mixed[:8]), config=config), result)
    integers = np.round(100 * mixed[:8]).astype(np.int16)
    assert leaves_equal(
        fit_kernels(integers, config=config), fit_kernels(integers.astype(np.float32), config=config)
    )


def test_fit_kernels_memory_map(mixed, mixed_fit, config, tmp_path):
    """A memory mapped file is read as an array."""
    np.save(tmp_path / "kernels.npy", mixed)
    mapped = np.load(tmp_path / "kernels.npy", mmap_mode="r")
    assert leaves_equal(fit_kernels(mapped, config=config), mixed_fit)


def test_fit_kernels_empty(config):
    """No kernels give an empty result."""
    result = fit_kernels(np.zeros((0, SIZE, SIZE), np.float32), config=config)
    assert len(result) == 0
    assert result.r2_by_family.shape == (0, 4)
    assert result.parameters["dog"].shape == (0, 7)
    assert result.templates().shape == (0, SIZE, SIZE)
    assert result.standard_errors()["dog"].shape == (0, 7)
    assert result.evidence_ratio.shape == result.noise.shape == (0,)
    assert result.table().height == 0


class TestProgressAndIterators:
    def test_fit_kernels_progress(self, mixed):
        """Progress counts up to the end."""
        calls = []
        fit_kernels(np.concatenate([mixed] * 60), progress=lambda done, total: calls.append((done, total)))
        assert [total for _, total in calls] == [60 * len(mixed)] * len(calls)
        done = [done for done, _ in calls]
        assert len(done) > 1
        assert done == sorted(set(done))
        assert done[-1] == 60 * len(mixed)

    def test_fit_kernels_iterator(self, mixed):
        """An iterator of blocks."""
        cuts, calls = [1, 9, 9, 30], []
        blocks = np.split(mixed, cuts)
        found = fit_kernels(iter(blocks), progress=lambda done, total: calls.append((done, total)))
        assert leaves_equal(found, fit_kernels(mixed))
        done = np.cumsum([len(b) for b in blocks]).tolist()
        assert [d for d, _ in calls] == done
        assert {total for _, total in calls} == {None}

    @pytest.mark.slow
    def test_fit_kernels_generator_with_weights(self, mixed):
        """A generator and shared weights."""
        ones = np.ones((SIZE, SIZE))
        blocks = (mixed[i : i + 5] for i in range(0, 10, 5))
        found = fit_kernels(blocks, ("gaussian",), weights=ones, config=SMALL)
        whole = fit_kernels(mixed[:10], ("gaussian",), weights=ones, config=SMALL)
        assert leaves_equal(found, whole)

    def test_fit_kernels_empty_iterator(self):
        with pytest.raises(ValueError, match="iterator of kernels yielded no block"):
            fit_kernels(iter([]))

    def test_fit_kernels_bad_block(self, mixed):
        with pytest.raises(ValueError, match=r"must be \[n, h, w\], got shape \(7, 7\)"):
            fit_kernels(iter([mixed[:2], mixed[0]]))


class TestArguments:
    @pytest.mark.parametrize(
        ("shape", "told"),
        [
            ((7,), r"kernels must be \[n, h, w\], got shape \(7,\)"),
            ((7, 7), r"kernels must be \[n, h, w\], got shape \(7, 7\)"),
            ((5, 1, 7, 7), r"got shape \(5, 1, 7, 7\).*weight\[:, 0\]"),
            ((), r"got shape \(\)"),
            ((5, 2, 2), r"sides must be 3 to 51 taps, got shape \(5, 2, 2\)"),
            ((5, 52, 7), r"sides must be 3 to 51 taps, got shape \(5, 52, 7\)"),
            ((5, 7, 2), r"sides must be 3 to 51 taps, got shape \(5, 7, 2\)"),
        ],
    )
    def test_fit_kernels_shape_errors(self, shape, told):
        with pytest.raises(ValueError, match=told):
            fit_kernels(np.zeros(shape, np.float32))

    @pytest.mark.parametrize("shape", [(1, 7, 7), (7,), ()])
    def test_fit_kernel_shape_errors(self, shape):
        with pytest.raises(ValueError, match=r"must be \[h, w\], got shape"):
            fit_kernel(np.zeros(shape, np.float32))

    @pytest.mark.parametrize(
        ("families", "told"),
        [
            (("dog", "gabor"), "out of gaussian, dog, .*, got gabor"),
            ((), "families must be a sequence out of .* got none"),
            ("dog", "families must be a sequence out of .* got dog"),
        ],
    )
    def test_fit_kernels_family_errors(self, families, told):
        with pytest.raises(ValueError, match=told):
            fit_kernels(np.zeros((1, 7, 7), np.float32), families)

    def test_fit_kernels_unidentifiable_error(self):
        """No family that the size can identify."""
        with pytest.raises(ValueError, match=r"no family left to fit: dog has 7 parameters.* 9 taps"):
            fit_kernels(np.zeros((1, 3, 3), np.float32), ("dog",))

    def test_fit_config_numbers(self):
        """Numbers of a config."""
        numbers = [field.name for field in fields(FitConfig) if isinstance(field.default, int)]
        assert numbers == ["effort", "steps"]
        for name in numbers:
            with pytest.raises(ValueError, match=f"{name} must be 1 to [0-9]+, got 0"):
                FitConfig(**{name: 0})
        with pytest.raises(ValueError, match="effort must be 1 to 10, got 11"):
            FitConfig(effort=11)

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("profile", "integrated, sampled, discrete"),
            ("criterion", "bic, aicc, cv"),
            ("engine", "auto, native, xla, pallas"),
        ],
    )
    def test_fit_config_choices(self, name, options):
        """Words of a config."""
        with pytest.raises(ValueError, match=f"{name} must be one of {options}, got 'best'"):
            FitConfig(**{name: "best"})

    def test_fit_kernels_engine_errors(self):
        """An engine that cannot."""
        config = FitConfig(engine="native")
        kernels = np.random.default_rng(0).normal(size=(2, 5, 7))
        for options, told in [
            ({"weights": np.ones((5, 7))}, "weights nor bounds"),
            ({"bounds": {"sigma_px": 1.0}}, "weights nor bounds"),
            ({}, "square kernels"),
        ]:
            with pytest.raises(ValueError, match=f"engine native cannot make this fit: .*{told}"):
                fit_kernels(kernels, ("gaussian",), config=config, **options)
        sampled = FitConfig(engine="native", profile="sampled")
        with pytest.raises(ValueError, match="Gaussian families with integrated profiles"):
            fit_kernels(kernels[..., :5], ("gaussian",), config=sampled)

    def test_fit_config_is_static(self):
        assert hash(FitConfig()) == hash(FitConfig())
        assert FitConfig(effort=3) != FitConfig()
        assert THOROUGH.effort == 10
