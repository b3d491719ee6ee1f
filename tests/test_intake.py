"""Kernels of any offset, magnitude and type on their way into the fit; in NumPy alone."""

import numpy as np
import pytest

from dogfit.fitting.intake import relative_weights, take_in
from scipy_families import draw

SHAPE = draw("gaussian", 7, 0.3, -0.5, 1.2)[None]
BROKEN = np.stack([np.full((7, 7), 0.1), np.full((7, 7), np.nan), np.zeros((7, 7))])


def shape_of(intake) -> np.ndarray:
    """Kernels about their mean and of unit norm."""
    centered = intake.kernels.astype(float) - intake.kernels.mean(axis=(1, 2), keepdims=True, dtype=float)
    return centered / np.linalg.norm(centered, axis=(1, 2), keepdims=True)


def unit(kernels: np.ndarray) -> np.ndarray:
    centered = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    return centered / np.linalg.norm(centered, axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("offset", [1e3, -1e5, 1e7, 1e9])
@pytest.mark.parametrize("dtype", ["f8", ">f8", np.longdouble])
def test_take_in_offset(offset, dtype):
    """An offset costs no more digits than the numbers themselves have spent on it."""
    found = take_in((SHAPE + offset).astype(dtype), None, double=False)
    assert found.kernels.dtype == np.float32
    np.testing.assert_allclose(shape_of(found), unit(SHAPE), atol=1e-6 + 1e-14 * abs(offset))
    assert found.level is not None
    restored = found.kernels.astype(float) + found.level[:, None, None]
    np.testing.assert_allclose(restored, SHAPE + offset, rtol=1e-15, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "offset"),
    [(np.int64, 2**62), (np.int64, -(2**62)), (np.uint64, 2**63 + 2**62), (np.int32, 2**30), (">i8", 2**60)],
)
def test_take_in_wide_integers(dtype, offset):
    """Integers that float64 cannot hold are neither rounded nor wrapped."""
    steps = np.round(1000 * SHAPE / SHAPE.max()).astype(np.int64)
    kernels = (np.zeros_like(steps, dtype) + np.array(offset, dtype)) + steps.astype(dtype)
    found = take_in(kernels, None, double=False)
    np.testing.assert_array_equal(found.kernels, steps - steps.min())
    assert found.level is not None
    assert found.level[0] == float(int(offset) + int(steps.min()))


def test_take_in_integers_end_to_end():
    """From the least of a type to its greatest."""
    steps = np.linspace(-(2**63), 2**63 - 1025, 49).reshape(1, 7, 7)
    found = take_in(steps.astype(np.int64), None, double=False)
    np.testing.assert_allclose(shape_of(found), unit(steps), atol=1e-6)


@pytest.mark.parametrize("magnitude", [1e-300, 1e-60, 1e60, 1e300])
def test_take_in_magnitude(magnitude):
    """Powers of two bring kernels back to where float32 has digits: exactly."""
    found = take_in(SHAPE * magnitude, None, double=False)
    assert found.exponent is not None
    restored = np.ldexp(found.kernels.astype(float), found.exponent[0])
    np.testing.assert_allclose(restored, SHAPE * magnitude, rtol=1e-7)
    assert 0.1 < np.abs(found.kernels).max() <= 1


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i2", "?"])
def test_take_in_ordinary_kernels(dtype):
    """What float32 holds passes to the bit; float32 arrays are not even copied."""
    kernels = (100 * np.concatenate([SHAPE, -SHAPE, SHAPE - SHAPE.mean()])).astype(dtype)
    found = take_in(kernels, None, double=False)
    np.testing.assert_array_equal(found.kernels, kernels.astype(np.float32))
    assert found.level is None
    assert found.exponent is None
    assert np.shares_memory(found.kernels, kernels) == (dtype == "f4")


def test_take_in_double():
    """Where float64 is fitted it stays, less a large offset."""
    found = take_in(SHAPE + 1e5, None, double=True)
    assert found.kernels.dtype == np.float64
    np.testing.assert_allclose(shape_of(found), unit(SHAPE), atol=1e-10)
    assert take_in(SHAPE, None, double=True).kernels is not None
    assert take_in(SHAPE.astype("f4"), None, double=True).kernels.dtype == np.float32


def test_take_in_rows_alone():
    """Kernels without a shape stay what they are, and change no other."""
    good = np.concatenate([SHAPE + 1e6, SHAPE, SHAPE * 1e-80])
    whole = take_in(np.concatenate([good[:2], BROKEN, good[2:]]), None, double=False)
    np.testing.assert_array_equal(whole.kernels[[0, 1, 5]], take_in(good, None, double=False).kernels)
    np.testing.assert_array_equal(whole.kernels[2:5], BROKEN.astype(np.float32))
    noise = 1e6 * (1 + 1e-16 * np.random.default_rng(0).normal(size=(1, 7, 7)))
    assert take_in(noise, None, double=False).level is None


def test_take_in_mirrored():
    """Mirror images come in as mirror images, to the bit."""
    kernel = SHAPE + 12345.678
    for turn in (lambda k: k[:, ::-1], lambda k: k[:, :, ::-1], lambda k: np.swapaxes(k, 1, 2)):
        np.testing.assert_array_equal(
            take_in(turn(kernel), None, double=False).kernels,
            turn(take_in(kernel, None, double=False).kernels),
        )


def test_take_in_weightless_garbage():
    """Taps of weight 0 take no part in offset and magnitude."""
    weights = np.ones((7, 7))
    weights[0] = 0
    for garbage in (np.nan, np.inf, -1e300, 0.0):
        kernel = SHAPE + 1e6
        kernel[0, 0] = garbage
        found = take_in(kernel, weights, double=False)
        np.testing.assert_array_equal(
            found.kernels[0, 1:], take_in(SHAPE[:, 1:] + 1e6, None, False).kernels[0]
        )


def test_take_in_nothing():
    for dtype in (np.float32, np.float64, np.int64):
        found = take_in(np.zeros((0, 5, 6), dtype), np.zeros((0, 5, 6)), double=False)
        assert found.weights is not None
        assert found.kernels.shape == found.weights.shape == (0, 5, 6)


@pytest.mark.parametrize("magnitude", [1e-300, 1e-60, 1.0, 1e44, 1e300])
def test_relative_weights_magnitude(magnitude):
    """Only ratios count, kernel by kernel."""
    generator = np.random.default_rng(0)
    weights = generator.uniform(0.5, 2, (2, 3, 3)) * np.array([1.0, magnitude])[:, None, None]
    weights[:, 0, 0] = 0
    found = relative_weights(weights, np.dtype(np.float32)).astype(float)
    assert np.all(np.isfinite(found))
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_allclose(one / one.max(), other / other.max(), rtol=1e-6)
    np.testing.assert_array_equal(found[0], weights[0].astype(np.float32))


def test_relative_weights_types():
    for dtype in (bool, np.int64, ">f8", np.longdouble, np.float16):
        given = np.array([[0, 1], [1, 1]], dtype)
        np.testing.assert_array_equal(relative_weights(given, np.dtype(np.float32)), [[0, 1], [1, 1]])
    assert not relative_weights(np.zeros((2, 2)), np.dtype(np.float32)).any()
