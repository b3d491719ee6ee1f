"""Kernels of all sizes, even and odd, and rectangles."""

import numpy as np
import pytest

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from dogfit.fitting.family_names import FAMILIES
from fit_drawings import differences, fit_unoptimised, noisy, parameters_of, reported
from scipy_families import draw
from scipy_reference import Reference

SMALL = FitConfig(effort=2)


class TestThree:
    """Nine taps: what they cannot identify is left out, and said."""

    def test_fit_kernels_3x3(self):
        edges = np.stack([draw("d1", 3, sigma=0.8, theta=t, x0=0.1) for t in (0.0, 1.0)])
        result = fit_kernels(np.concatenate([edges, [draw("gaussian", 3, sigma=0.7, y0=-0.3)]]))
        assert result.family_names == ("gaussian", "d1")
        unidentifiable = dict(result.unidentifiable)
        assert set(unidentifiable) == {"dog", "d2"}
        for name, reason in unidentifiable.items():
            assert name in reason
            assert "9 taps" in reason
        best = result.r2_by_family[[0, 1, 2], [1, 1, 0]]
        assert np.all(best > 1 - 1e-4)

    @pytest.mark.slow
    def test_fit_kernels_3x4(self):
        """A three by four kernel."""
        kernel = draw("d2", (3, 4), sigma=0.8, gains=(1.0, 0.3), theta=0.4, x0=0.2)
        result = fit_unoptimised(kernel[None].astype(np.float32), ("d2", "dog_d2_elliptic"), SMALL)
        assert result.family_names == ("d2",)
        assert dict(result.unidentifiable).keys() == {"dog_d2_elliptic"}
        assert result.r2[0] > 1 - 1e-3


@pytest.mark.parametrize(
    ("size", "family"),
    [
        (4, "gaussian"),
        pytest.param(6, "d1", marks=pytest.mark.slow),
        pytest.param(8, "d2", marks=pytest.mark.slow),
        pytest.param(9, "dog", marks=pytest.mark.slow),
        pytest.param(31, "d1", marks=pytest.mark.slow),
        pytest.param(51, "gaussian", marks=pytest.mark.slow),
    ],
)
def test_fit_kernels_sizes(size, family):
    drawn = {"x0": 0.1 * size, "y0": -0.05 * size, "sigma": 0.15 * size, "gains": (2.0,)}
    drawn |= {"theta": 0.6} if family in ("d1", "d2") else {}
    drawn |= {"gains": (2.0, 0.4)} if family == "d2" else {}
    drawn |= {"gains": (2.0, -1.8), "sigma": 0.1 * size, "surround": 0.25 * size} if family == "dog" else {}
    kernel = noisy(draw(family, size, **drawn)[None], 0.01, 13)
    result = fit_kernels(kernel, (family,))
    assert result.size == size
    assert result.r2[0] > 0.999
    apart = differences(family, reported(result, family, 0), parameters_of(family, drawn))
    assert max(apart.values()) < 0.03 * size, apart


@pytest.mark.slow
class TestRectangles:
    SHAPE = (5, 9)
    DRAWN = (
        ("gaussian", {"x0": 2.7, "y0": -0.8, "sigma": 1.1, "gains": (2.0,), "offset": 0.3}),
        ("gaussian", {"x0": -1.4, "y0": 1.1, "sigma": 0.7, "gains": (-1.0,)}),
        ("d1", {"x0": -2.1, "y0": 0.4, "sigma": 1.2, "gains": (1.5,), "theta": 0.7}),
        ("d1", {"x0": 1.2, "y0": -0.6, "sigma": 0.8, "gains": (1.0,), "theta": -2.0, "offset": -0.4}),
    )
    FAMILIES = ("gaussian", "d1")

    @pytest.fixture(scope="class")
    @classmethod
    def kernels(cls):
        clean = np.stack([draw(family, cls.SHAPE, **drawn) for family, drawn in cls.DRAWN])
        return np.concatenate([clean, noisy(clean, 0.2, 14)]).astype(np.float32)

    @pytest.fixture(scope="class")
    @classmethod
    def result(cls, kernels):
        return fit_kernels(kernels, cls.FAMILIES, config=SMALL)

    def test_fit_kernels_rectangle_truth(self, result):
        assert result.shape == self.SHAPE
        for row, (family, drawn) in enumerate(self.DRAWN):
            assert result.family_names[result.family[row]] == family
            assert result.r2[row] > 1 - 1e-5
            apart = differences(family, reported(result, family, row), parameters_of(family, drawn))
            assert max(apart.values()) < 0.01, apart

    def test_fit_kernels_rectangle_optimum(self, kernels, result):
        """Optima are those of SciPy."""
        for column, family in enumerate(self.FAMILIES):
            reference = Reference(family, self.SHAPE, starts=8)
            reached = []
            for row in range(4, 8):
                energy = np.sum((kernels[row] - kernels[row].mean()) ** 2)
                cost, _ = reference.fit(kernels[row].astype(float))
                left = 1 - result.r2_by_family[row, column]
                assert left >= cost / energy - 1e-5
                reached.append(left <= cost / energy * 1.001 + 1e-4)
            assert sum(reached) >= 3

    def test_fit_kernels_rectangle_templates(self, kernels, result):
        """Templates residuals and errors."""
        templates = result.templates()
        assert templates.shape == kernels.shape
        np.testing.assert_allclose(templates[:4], kernels[:4], atol=2e-3)
        residual = np.sqrt(np.mean((kernels - templates) ** 2, axis=(1, 2)))
        np.testing.assert_allclose(result.rmse[4:], residual[4:], rtol=1e-3)
        rows = np.flatnonzero(result.family == 1)
        assert np.all(np.isfinite(result.standard_errors()["d1"][rows]))
        assert result.table().height == 8

    def test_fit_kernels_rectangle_transposed(self, kernels, result):
        """Transposing swaps x and y."""
        turned = fit_unoptimised(kernels.swapaxes(1, 2).copy(), self.FAMILIES, SMALL)
        assert turned.shape == (9, 5)
        clear = np.abs(turned.r2_by_family - result.r2_by_family) < 1e-5
        assert np.all(clear[np.arange(8), result.family])
        np.testing.assert_array_equal(turned.family, result.family)
        for row, index in enumerate(result.family):
            family = self.FAMILIES[index]
            before = reported(result, family, row)
            wanted = before | {"x0_px": before["y0_px"], "y0_px": before["x0_px"]}
            if family == "d1":
                wanted["theta_rad"] = np.pi / 2 - before["theta_rad"]
            apart = differences(family, reported(turned, family, row), wanted)
            assert max(apart.values()) < 0.01, apart


@pytest.mark.slow
def test_fit_kernels_mixed_shapes():
    """Streams of one shape cannot be joined with another."""
    blocks = [np.random.default_rng(0).normal(size=(2, size, size)) for size in (4, 5)]
    with pytest.raises(ValueError, match="must share families and kernel size"):
        fit_kernels(iter(blocks), FAMILIES[:1], config=SMALL)
