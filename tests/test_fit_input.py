"""What callers hand over: kernels of any type and magnitude, none at all, wrong arguments."""

import jax
import numpy as np
import pytest

from dogfit.fitting.api import fit_kernel, fit_kernels, fit_stream
from dogfit.fitting.config import FitConfig
from dogfit.fitting.result import Status
from fit_drawings import NAMES, SIZE, drawings, leaves_equal, noisy

KERNELS = noisy(drawings(), 0.1, 9)


@pytest.fixture(scope="module")
def plain():
    return fit_kernels(KERNELS.astype(np.float32))


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble])
def test_fit_kernels_byte_orders_and_widths(plain, dtype):
    assert leaves_equal(fit_kernels(KERNELS.astype(np.float32).astype(dtype)), plain)


@pytest.mark.parametrize("offset", [1e5, -1e7])
def test_fit_kernels_large_offset(plain, offset):
    """A large offset is reported, and changes nothing else."""
    result = fit_kernels(KERNELS + offset)
    assert [result.family_names[i] for i in result.family] == NAMES
    np.testing.assert_allclose(result.r2, plain.r2, atol=1e-5)
    np.testing.assert_allclose(result.rmse, plain.rmse, rtol=1e-3)
    for family in result.family_names:
        assert result.parameters[family].dtype == np.float64
    edges, wanted = (fit[fit.family == fit.family_names.index("d1")] for fit in (result, plain))
    np.testing.assert_allclose(edges.templates() - offset, wanted.templates(), atol=5e-3)
    assert np.all(np.abs(edges.parameters["d1"][:, 0] - offset - wanted.parameters["d1"][:, 0]) < 5e-3)
    np.testing.assert_allclose(edges.standard_errors()["d1"], wanted.standard_errors()["d1"], rtol=0.05)


@pytest.mark.slow
def test_fit_kernel_large_offset():
    """One kernel on the host, and as a constant of a traced program."""
    plain = fit_kernel(KERNELS[0].astype(np.float32), ["gaussian"])
    one = fit_kernel(KERNELS[0] + 1e7, ["gaussian"])
    assert one.rmse.dtype == np.float64
    np.testing.assert_allclose(one.rmse, plain.rmse, rtol=1e-3)
    wanted = plain.parameters["gaussian"] + np.array([1e7, 0, 0, 0, 0])
    np.testing.assert_allclose(one.parameters["gaussian"], wanted, rtol=0, atol=5e-3)
    traced = jax.jit(lambda x: x * fit_kernel(KERNELS[0] + 1e7, ["gaussian"]).r2)(1.0)
    np.testing.assert_allclose(traced, plain.r2, atol=1e-5)


@pytest.mark.parametrize("scale", [2.0**-400, 2.0**300])
def test_fit_kernels_magnitude(plain, scale):
    """Magnitudes that float32 has not got: results are scaled with the kernels, to the bit."""
    result = fit_kernels(KERNELS.astype(np.float32).astype(float) * scale)
    for name in ("family", "r2", "status", "score_by_family"):
        np.testing.assert_array_equal(getattr(result, name), getattr(plain, name))
    np.testing.assert_array_equal(result.rmse / scale, plain.rmse)
    edges, wanted = (fit[fit.family == fit.family_names.index("d1")] for fit in (result, plain))
    np.testing.assert_allclose(edges.templates() / scale, wanted.templates(), rtol=1e-5, atol=1e-5)
    errors, known = (fit.standard_errors()["d1"][:, 1] for fit in (edges, wanted))
    np.testing.assert_allclose(errors / scale, known, rtol=1e-4)


def test_fit_kernels_refused_types():
    for kind, told in ((complex, "complex128: fit kernels.real"), (object, "object"), (str, "<U")):
        with pytest.raises(TypeError, match=f"kernels must be real numbers, got dtype {told}"):
            fit_kernels(KERNELS.astype(kind))
    with pytest.raises(TypeError, match="weights must be real numbers, got dtype complex"):
        fit_kernels(KERNELS, weights=np.ones((SIZE, SIZE), complex))
    with pytest.raises(TypeError, match="kernels must be real numbers, got dtype complex64"):
        jax.eval_shape(fit_kernel, jax.ShapeDtypeStruct((SIZE, SIZE), np.complex64))


def test_fit_kernels_debug_nans(plain):
    """A program that is watched for NaN runs, broken rows or not."""
    spoilt = KERNELS.astype(np.float32)
    spoilt[2], spoilt[4, 1, 1] = 1.0, np.nan
    with jax.debug_nans(True):
        result = fit_kernels(spoilt)
    assert result.status[[2, 4]].tolist() == [Status.CONSTANT, Status.NONFINITE]
    assert np.all(np.isnan(result.r2[[2, 4]]))
    kept = np.delete(np.arange(len(spoilt)), [2, 4])
    assert leaves_equal(result[kept], plain[kept])


def test_fit_kernel_vmap_over_nothing():
    result = jax.vmap(lambda kernel: fit_kernel(kernel, ["d1"]))(KERNELS[:0].astype(np.float32))
    assert result.r2.shape == (0,)
    assert result.parameters["d1"].shape == (0, 6)


def test_fit_stream_empty_blocks():
    sizes = [len(part) for part in fit_stream([KERNELS[:0], KERNELS[:2], KERNELS[:0]])]
    assert sizes == [0, 2, 0]


class TestArguments:
    @pytest.mark.parametrize(
        ("families", "shown"),
        [
            (None, "None"),
            ([0], "0"),
            ((), "none"),
            (["dog", None], "None"),
            (7, "7"),
            ([["dog"]], r"\['dog'\]"),
        ],
    )
    def test_fit_kernels_families(self, families, shown):
        for call in (lambda: fit_kernels(KERNELS, families), lambda: fit_kernel(KERNELS[0], families)):
            with pytest.raises(
                ValueError, match=f"families must be a sequence out of gaussian, .* got {shown}"
            ):
                call()

    @pytest.mark.parametrize("config", [None, {"effort": 3}, "bic"])
    def test_fit_kernels_config(self, config):
        for call in (
            lambda: fit_kernels(KERNELS, config=config),
            lambda: fit_kernel(KERNELS[0], config=config),
            lambda: list(fit_stream([KERNELS], config=config)),
        ):
            with pytest.raises(TypeError, match=r"config must be a dogfit\.FitConfig, such as"):
                call()

    @pytest.mark.parametrize("value", [2.5, "3", None, True, float("nan")])
    def test_fit_config_whole_numbers(self, value):
        for name in ("steps", "effort"):
            with pytest.raises(ValueError, match=f"{name} must be 1 to 1.*, got .*; it is a whole number"):
                FitConfig(**{name: value})
        assert FitConfig(steps=np.int64(20)).steps == 20  # pyright: ignore[reportArgumentType]

    def test_fit_kernels_traced(self):
        with pytest.raises(TypeError, match=r"runs on the host .* use fit_kernel, which takes one"):
            jax.jit(lambda kernels: fit_kernels(kernels).r2)(KERNELS)

    def test_fit_kernels_bounds_type(self):
        with pytest.raises(TypeError, match=r"bounds must be a dictionary of parameters, .* got list"):
            fit_kernels(KERNELS, bounds=[0.5, 2.0])  # pyright: ignore[reportArgumentType]
