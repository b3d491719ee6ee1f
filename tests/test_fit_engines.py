"""One table of problems for all engines: truth, noise, images, other units and broken rows in one batch.

One family, whose program even XLA compiles in seconds; the files beside this one have all families.
"""

from dataclasses import dataclass

import numpy as np
import pytest

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from dogfit.fitting.result import FitResult, Status
from fit_drawings import ENGINES, differences, leaves_equal, noisy, parameters_of, reported, rows_of
from scipy_families import draw
from scipy_reference import Reference

pytestmark = pytest.mark.optimized

FAMILY = "d1"
DRAWN = (
    {"sigma": 0.7, "gains": (1.0,), "theta": 0.2, "x0": 0.1, "y0": -0.3, "offset": 0.3},
    {"sigma": 1.1, "gains": (2.0,), "theta": 1.3, "x0": -0.4, "y0": 0.2},
    {"sigma": 1.2, "gains": (0.5,), "theta": 2.9, "x0": 0.6, "y0": 0.4},
    {"sigma": 0.9, "gains": (3.0,), "theta": -2.3, "x0": -0.3, "y0": -0.1, "offset": -0.5},
)
ROWS = len(DRAWN)
GAIN = np.float32(2.0**-40)
# What is done to an image, and how place and angle of a first derivative change.
IMAGES = {
    "half turn": (lambda w: w[:, ::-1, ::-1], lambda x, y, t: (-x, -y, t + np.pi)),
    "mirror left and right": (lambda w: w[:, :, ::-1], lambda x, y, t: (-x, y, np.pi - t)),
    "mirror up and down": (lambda w: w[:, ::-1], lambda x, y, t: (x, -y, -t)),
    "transpose": (lambda w: w.swapaxes(1, 2), lambda x, y, t: (y, x, np.pi / 2 - t)),
}
CASES = [
    pytest.param(("native", (7, 7)), marks=ENGINES[0].marks, id="native-7x7"),
    pytest.param(("xla", (5, 5)), id="xla-5x5"),
    pytest.param(("xla", (7, 7)), id="xla-7x7", marks=pytest.mark.slow),
    pytest.param(("xla", (5, 7)), id="xla-5x7", marks=pytest.mark.slow),
]


@dataclass(frozen=True)
class Batch:
    """Kernels of one shape with names for their rows, and their fits by one engine."""

    kernels: np.ndarray
    rows: dict[str, slice]
    config: FitConfig
    fit: FitResult

    def part(self, name: str) -> FitResult:
        return rows_of(self.fit, self.rows[name])


@pytest.fixture(scope="module", params=CASES)
def batch(request) -> Batch:
    engine, shape = request.param
    clean = np.stack([draw(FAMILY, shape, **drawn) for drawn in DRAWN])
    spread = noisy(clean, 0.2, 3)
    broken = noisy(clean, 0.1, 5)
    broken[0], broken[1], broken[2, 1, 2], broken[3, 0, 0] = 0.0, 0.7, np.nan, -np.inf
    parts = {"clean": clean, "broken": broken, "noisy": spread, "negative": -spread, "scaled": GAIN * spread}
    square = shape[0] == shape[1]
    parts |= {name: turn(spread) for name, (turn, _) in IMAGES.items() if square or name != "transpose"}
    stops = np.cumsum([len(part) for part in parts.values()])
    rows = {name: slice(stop - ROWS, stop) for name, stop in zip(parts, stops, strict=True)}
    kernels = np.concatenate(list(parts.values())).astype(np.float32)
    config = FitConfig(engine=engine)
    return Batch(kernels, rows, config, fit_kernels(kernels, (FAMILY,), config=config))


def test_fit_kernels_truth(batch):
    found = batch.part("clean")
    np.testing.assert_array_less(1 - 1e-5, found.r2)
    for row, drawn in enumerate(DRAWN):
        apart = differences(FAMILY, reported(found, FAMILY, row), parameters_of(FAMILY, drawn))
        assert max(apart.values()) < 5e-3, apart


def test_fit_kernels_optimum_is_that_of_scipy(batch):
    kernels = batch.kernels[batch.rows["noisy"]].astype(float)
    reference = Reference(FAMILY, kernels.shape[1:])
    for kernel, r2 in zip(kernels, batch.part("noisy").r2, strict=True):
        cost, _ = reference.fit(kernel)
        least = cost / np.sum((kernel - kernel.mean()) ** 2)
        assert least * 0.999 - 1e-5 <= 1 - r2 <= 1.001 * least + 1e-4


def test_fit_kernels_broken_rows(batch):
    found = batch.part("broken")
    wanted = [Status.CONSTANT] * 2 + [Status.NONFINITE] * 2
    np.testing.assert_array_equal(found.status, wanted)
    assert np.all(found.family == -1)
    assert np.all(np.isnan(found.r2) & np.isnan(found.parameters[FAMILY]).all(axis=1))
    assert np.all(np.isnan(found.templates()))


def test_fit_kernels_rows_do_not_depend_on_others(batch):
    """Without the broken ones, in another order, and beyond one call of the compiled program."""
    sound = np.delete(np.arange(len(batch.kernels)), np.r_[batch.rows["broken"]])
    order = np.random.default_rng(6).permutation(sound)
    alone = fit_kernels(batch.kernels[order], (FAMILY,), config=batch.config)
    assert leaves_equal(alone, rows_of(batch.fit, order))
    repeats = 2200 // len(batch.kernels) + 1
    many = fit_kernels(np.concatenate([batch.kernels] * repeats), (FAMILY,), config=batch.config)
    assert leaves_equal(rows_of(many, slice(-len(batch.kernels), None)), batch.fit)


def test_fit_kernels_images(batch):
    """Turned and mirrored kernels have the same fits to the bit, turned and mirrored."""
    plain = batch.part("noisy")
    for name, (_, change) in IMAGES.items():
        if name not in batch.rows:
            continue
        image = batch.part(name)
        for field in ("r2", "rmse", "status", "steps", "n_agreeing"):
            np.testing.assert_array_equal(getattr(image, field), getattr(plain, field), err_msg=name)
        for row in range(ROWS):
            before = reported(plain, FAMILY, row)
            x, y, theta = change(before["x0_px"], before["y0_px"], before["theta_rad"])
            wanted = before | {"x0_px": x, "y0_px": y, "theta_rad": theta}
            apart = differences(FAMILY, reported(image, FAMILY, row), wanted)
            assert max(apart.values()) < 1e-4, (name, apart)


def test_fit_kernels_units(batch):
    """Sign and powers of two pass through to the bit."""
    plain = batch.part("noisy")
    for name, gain in (("negative", 1), ("scaled", GAIN)):
        other = batch.part(name)
        np.testing.assert_array_equal(other.r2, plain.r2)
        np.testing.assert_array_equal(other.rmse, plain.rmse * gain)
        np.testing.assert_array_equal(other.steps, plain.steps)


@pytest.mark.skipif(ENGINES[0].marks[0].args[0], reason="there is no native engine to compare with")
def test_fit_kernels_engines_agree():
    kernels = noisy(np.stack([draw(FAMILY, 5, **drawn) for drawn in DRAWN] * 5), 0.3, 7)
    native, xla = (
        fit_kernels(kernels, (FAMILY,), config=FitConfig(engine=engine)) for engine in ("native", "xla")
    )
    np.testing.assert_allclose(native.r2, xla.r2, atol=1e-5)
    np.testing.assert_array_equal(native.status, xla.status)
