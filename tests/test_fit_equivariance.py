"""Turning, mirroring, negating or scaling a kernel does to the fit what it should, and no more."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from fit_drawings import (
    ENGINES,
    SIZE,
    TRUTH,
    differences,
    drawings,
    noisy,
    real_kernels,
    reported,
)

CLEAR = slice(2 * len(TRUTH))


@pytest.fixture(scope="module", params=ENGINES)
def config(request) -> FitConfig:
    return FitConfig(engine=request.param)


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    """Clear ones, noisy ones, and white noise."""
    clean, noise = drawings(), np.random.default_rng(50).normal(size=(60, SIZE, SIZE))
    return np.concatenate([noisy(clean, 0.1, 51), noisy(clean, 0.3, 52), noise]).astype(np.float32)


@pytest.fixture(scope="module")
def fit(kernels, config):
    return fit_kernels(kernels, config=config)


def moved(place, angle_sign: int, angle_shift: float):
    """How reported parameters change when the image is turned or mirrored."""

    def change(p: dict[str, float]) -> dict[str, float]:
        x, y = place(p["x0_px"], p["y0_px"])
        out = {**p, "x0_px": x, "y0_px": y}
        if "theta_rad" in p:
            out["theta_rad"] = angle_sign * p["theta_rad"] + angle_shift
        return out

    return change


# What is done to the image, and to a place (x right, y down) and to an angle (sign and shift).
SYMMETRIES = {
    "nothing": (lambda w: w, moved(lambda x, y: (x, y), 1, 0)),
    "quarter turn": (lambda w: np.rot90(w, 1, (1, 2)), moved(lambda x, y: (y, -x), 1, -np.pi / 2)),
    "half turn": (lambda w: np.rot90(w, 2, (1, 2)), moved(lambda x, y: (-x, -y), 1, np.pi)),
    "quarter turn back": (lambda w: np.rot90(w, 3, (1, 2)), moved(lambda x, y: (-y, x), 1, np.pi / 2)),
    "mirror left and right": (lambda w: w[:, :, ::-1], moved(lambda x, y: (-x, y), -1, np.pi)),
    "mirror up and down": (lambda w: w[:, ::-1], moved(lambda x, y: (x, -y), -1, 0)),
    "transpose": (lambda w: w.swapaxes(1, 2), moved(lambda x, y: (y, x), -1, np.pi / 2)),
    "transpose across": (
        lambda w: w[:, ::-1, ::-1].swapaxes(1, 2),
        moved(lambda x, y: (-y, -x), -1, -np.pi / 2),
    ),
}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_fit_kernels_image(kernels, fit, config, name):
    """An image of the kernel is an image of the fit."""
    transform, change = SYMMETRIES[name]
    after = fit_kernels(np.ascontiguousarray(transform(kernels)), config=config)
    for field in ("family", "r2", "rmse", "status", "r2_by_family", "score_by_family", "status_by_family"):
        np.testing.assert_array_equal(getattr(after, field), getattr(fit, field), err_msg=field)
    np.testing.assert_array_equal(after.steps, fit.steps)
    for row, index in itertools.product(range(len(kernels)), range(len(fit.family_names))):
        family = fit.family_names[index]
        before = reported(fit, family, row)
        apart = differences(family, reported(after, family, row), change(before))
        # A round blob has no axis: the angle between two alike is rounding.
        if family == "d2" and abs(before["amplitude_1"] - before["amplitude_2"]) < 1e-3 * abs(
            before["amplitude_1"]
        ):
            del apart["theta_rad"]
        assert max(apart.values()) < 1e-4, (row, family, apart)
    wanted = transform(fit.templates())
    np.testing.assert_allclose(after.templates(), wanted, atol=1e-5 * np.abs(kernels).max())


def test_fit_kernels_negated(kernels, fit, config):
    """Negated kernels have negated fits to the bit."""
    after = fit_kernels(-kernels, config=config)
    np.testing.assert_array_equal(after.r2_by_family, fit.r2_by_family)
    np.testing.assert_array_equal(after.family, fit.family)
    for family in ("gaussian", "dog"):
        sign = np.array([-1 if n == "offset" or n.startswith("amp") else 1 for n in reported(fit, family, 0)])
        np.testing.assert_array_equal(after.parameters[family], sign * fit.parameters[family])
    np.testing.assert_allclose(after.templates(), -fit.templates(), atol=1e-5 * np.abs(kernels).max())


@pytest.mark.parametrize("gain", [2.0**-40, 4.0])
def test_fit_kernels_power_of_two(kernels, fit, config, gain):
    """Powers of two pass through to the bit."""
    after = fit_kernels(kernels * np.float32(gain), config=config)
    np.testing.assert_array_equal(after.r2_by_family, fit.r2_by_family)
    np.testing.assert_array_equal(after.rmse, fit.rmse * np.float32(gain))
    np.testing.assert_array_equal(
        after.parameters["dog"][:, 1], fit.parameters["dog"][:, 1] * np.float32(gain)
    )


@given(gain=st.floats(0.01, 100), negative=st.booleans(), offset=st.floats(-1, 1))
def test_fit_kernels_gain_and_offset(kernels, fit, config, gain, negative, offset):
    """Gain and offset pass through."""
    gain = np.float32(-gain if negative else gain)
    # Offsets in units of the kernel: one far larger would cost its digits.
    after = fit_kernels(gain * (kernels + np.float32(offset)), config=config)
    np.testing.assert_array_equal(after.family, fit.family)
    np.testing.assert_allclose(after.r2[CLEAR], fit.r2[CLEAR], atol=1e-4)
    # Rounding may decide between two optima of white noise.
    assert np.mean(np.abs(after.r2 - fit.r2) < 1e-4) > 0.97
    for row, index in enumerate(fit.family[CLEAR]):
        family = fit.family_names[index]
        before = reported(fit, family, row)
        wanted = {k: gain * v if k.startswith("amp") else v for k, v in before.items()}
        wanted["offset"] = gain * (before["offset"] + offset)
        if family == "d1" and gain < 0:
            # The gain of a first derivative is a length: its sign is half a turn.
            wanted["amplitude"], wanted["theta_rad"] = -wanted["amplitude"], before["theta_rad"] + np.pi
        apart = differences(family, reported(after, family, row), wanted)
        # A flat optimum leaves the two weights of a DoG open to 1e-6 of energy.
        assert max(apart.values()) < (0.1 if family == "dog" else 0.02), (family, apart)


@pytest.mark.slow
def test_fit_kernels_real_images(config):
    """Real kernels keep their families."""
    kernels = real_kernels(300).astype(np.float32)
    before = fit_kernels(kernels, config=config)
    for name, (transform, _) in SYMMETRIES.items():
        after = fit_kernels(np.ascontiguousarray(transform(kernels)), config=config)
        np.testing.assert_array_equal(after.family, before.family, err_msg=name)
        np.testing.assert_array_equal(after.r2, before.r2, err_msg=name)
    after = fit_kernels(-0.3 * kernels + 0.1 * kernels.std(axis=(1, 2), keepdims=True), config=config)
    np.testing.assert_array_equal(after.family, before.family)
    assert np.mean(np.abs(after.r2 - before.r2) < 1e-4) > 0.98


@pytest.mark.slow
def test_fit_kernels_weighted_images():
    """Weights turn with their kernels."""
    generator = np.random.default_rng(53)
    kernels, weights = generator.normal(size=(2, 12, 5, 5))
    weights = weights**2
    weights[:, 0, 1] = 0
    kernels[:, 0, 1] = np.nan
    quick = FitConfig(effort=3)
    before = fit_kernels(kernels, ("d1",), weights=weights, config=quick)
    for name, (transform, _) in SYMMETRIES.items():
        turned = [np.ascontiguousarray(transform(a)) for a in (kernels, weights)]
        after = fit_kernels(turned[0], ("d1",), weights=turned[1], config=quick)
        np.testing.assert_array_equal(after.r2, before.r2, err_msg=name)
        np.testing.assert_array_equal(after.status, before.status, err_msg=name)
