"""One test of "constant" from the loader to the penalty, and one way to center and scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from dogfit.fitting.penalty import dog_penalty
from dogfit.kernelset.groups import group_kernels
from dogfit.normalize import ROUNDING_UNITS, ROWS, Flag, flag_of, normalize, normalize_rows, unit_norm

SIZE, ROWS_AT_ONCE = 3, 32
EPS = float(np.finfo(np.float32).eps)
QUICK = FitConfig(effort=1, steps=4)
flag_in_jax = jax.jit(flag_of)
in_jax = jax.jit(lambda rows: normalize(rows, ROWS))
penalty = jax.jit(lambda kernels: dog_penalty(kernels, ["gaussian"], reduce="none", config=QUICK))


def takes(kernels: np.ndarray) -> dict[str, np.ndarray]:
    """Which kernels each room takes, `[n]` each."""
    return {
        "loader": group_kernels([(0, kernels)]).flag == Flag.OK,
        "fit": fit_kernels(kernels, ["gaussian"], config=QUICK).family >= 0,
        "training": normalize_rows(kernels)[1],
        "penalty": np.asarray(penalty(kernels)) > 0,
    }


@given(
    seed=st.integers(0, 2**32 - 1),
    magnitude=st.floats(-40, 38.4),
    offset=st.sampled_from([0.0, 1.0, -3.0, 1e3]),
    spread=st.floats(-8, 1),
)
def test_flag_of_every_room_agrees(seed, magnitude, offset, spread):
    """Kernels of any size about any offset, down to where float32 no longer tells their taps apart."""
    generator = np.random.default_rng(seed)
    spreads = 10.0 ** (spread - np.arange(ROWS_AT_ONCE) / 8)
    with np.errstate(over="ignore", under="ignore"):
        kernels = offset + spreads[:, None, None] * generator.normal(size=(ROWS_AT_ONCE, SIZE, SIZE))
        kernels = (kernels * 10.0**magnitude).astype(np.float32)
    loader, *others = takes(kernels).values()
    for other in others:
        np.testing.assert_array_equal(other, loader)


def test_flag_of_last_unit_of_rounding():
    """The largest difference that counts as none, and the least that counts."""
    kernels = np.ones((ROWS_AT_ONCE, SIZE, SIZE), np.float32)
    kernels[0, 1, 2] -= np.float32(ROUNDING_UNITS * EPS)
    kernels[1, 1, 2] -= np.float32((ROUNDING_UNITS + 1) * EPS)
    for scale in (1.0, -1.0, 2.0**-90, 2.0**120):
        for taken in takes(kernels * np.float32(scale)).values():
            np.testing.assert_array_equal(taken, np.arange(ROWS_AT_ONCE) == 1)


@pytest.mark.parametrize(
    ("least", "greatest", "flag"),
    [
        (0.0, 0.0, Flag.ZERO),
        (-1e-13, -1e-13, Flag.ZERO),
        (0.1, 0.1, Flag.CONSTANT),
        (-1e-33, 1e-33, Flag.ZERO),
        (-1e-13, 1e-13, Flag.OK),
        (np.nan, np.nan, Flag.NONFINITE),
        (-np.inf, 1.0, Flag.NONFINITE),
        (0.0, 3e38, Flag.NONFINITE),
        (-5e36, 5e36, Flag.OK),
    ],
)
def test_flag_of_extremes(least, greatest, flag):
    extremes = np.float32([least]), np.float32([greatest])
    for found in (flag_of(*extremes), flag_in_jax(*extremes)):
        assert found.dtype == np.int8
        assert found.tolist() == [flag]


def test_flag_of_precision():
    """Wider numbers tell more kernels from constants; the type in which they were stored decides."""
    least, greatest = np.array([1.0]), np.array([1.0 + 1e-9])
    assert flag_of(least, greatest).tolist() == [Flag.OK]
    assert flag_of(least, greatest, np.float32).tolist() == [Flag.CONSTANT]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_normalize_numpy_and_jax(scale):
    kernels = np.random.default_rng(0).normal(size=(9, 20)) + 2.0
    wanted = kernels - kernels.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(wanted, axis=1)
    taps = (kernels * scale).astype(np.float32)
    for found in (normalize(taps, ROWS), in_jax(taps)):
        np.testing.assert_allclose(found.taps, wanted / norm[:, None], atol=1e-6)
        np.testing.assert_allclose(found.mean, kernels.mean(axis=1) * scale, rtol=1e-5)
        np.testing.assert_allclose(found.norm, norm * scale, rtol=1e-5)


def test_normalize_weights():
    """Taps without weight play no part, whatever stands there, and only ratios of weights count."""
    generator = np.random.default_rng(1)
    kernels, weights = generator.normal(size=(6, 12)), generator.uniform(0.2, 2.0, (6, 12))
    weights[:, 3] = 0
    share = weights / weights.sum(axis=1, keepdims=True)
    mean = np.sum(share * kernels, axis=1)
    kept = np.delete(np.sqrt(11 * share) * (kernels - mean[:, None]), 3, axis=1)
    kernels[0, 3], kernels[1, 3] = np.nan, np.inf
    norm = np.linalg.norm(kept, axis=1)
    for factor in (1.0, 1e3):
        found = normalize(kernels, ROWS, weights=factor * weights)
        assert np.all(found.flag == Flag.OK)
        np.testing.assert_allclose(np.delete(found.taps, 3, axis=1), kept / norm[:, None])
        assert not found.taps[:, 3].any()
        np.testing.assert_allclose(found.mean, mean)
        np.testing.assert_allclose(found.norm, norm)


def test_normalize_weights_without_a_shape():
    kernels = np.random.default_rng(2).normal(size=(4, 9))
    weights = np.ones((4, 9))
    weights[0] = 0
    weights[1, 1:] = 1e-40
    weights[2, 2] = -1
    weights[3, 4] = np.nan
    found = normalize(kernels, ROWS, weights=weights)
    assert (found.flag[:2] != Flag.OK).all()
    assert (found.flag[:2] != Flag.NONFINITE).all()
    assert found.flag[2:].tolist() == [Flag.NONFINITE] * 2
    assert not found.taps.any()


def test_normalize_gradient():
    """The derivative of a unit kernel, and none of a kernel without a shape."""
    kernels = jnp.asarray(np.random.default_rng(3).normal(size=(4, 9)), jnp.float32)
    kernels = kernels.at[1].set(0.5).at[2, 3].set(jnp.nan).at[3].set(0.0)
    towards = jnp.arange(9.0)

    def score(kernels):
        layout = ROWS._replace(max=lambda x: jax.lax.stop_gradient(x.max(axis=1)))
        return jnp.sum(normalize(kernels, layout).taps * towards[None, :])

    gradient = np.asarray(jax.jit(jax.grad(score))(kernels))
    assert not gradient[1:].any()
    centered = np.asarray(kernels[0] - kernels[0].mean(), np.float64)
    norm = np.linalg.norm(centered)
    unit, pull = centered / norm, np.arange(9.0) - 4.0
    np.testing.assert_allclose(gradient[0], (pull - unit * (unit @ pull)) / norm, rtol=1e-4)


def test_normalize_rows_shape():
    with pytest.raises(ValueError, match=r"kernels must be \[n, k, k\], got shape \(2, 3, 4\)"):
        normalize_rows(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"kernels must be \[n, 5, 5\], got shape \(2, 3, 3\)"):
        normalize_rows(np.zeros((2, 3, 3)), 5)
    rows, good = normalize_rows(np.zeros((0, 3, 3)))
    assert (rows.shape, good.shape) == ((0, 9), (0,))


def test_normalize_rows_broken():
    kernels = np.random.default_rng(4).normal(size=(5, 3, 3))
    whole, _ = normalize_rows(kernels)
    kernels[1], kernels[3, 0, 0] = 2.0, np.nan
    rows, good = normalize_rows(kernels)
    np.testing.assert_array_equal(good, [True, False, True, False, True])
    np.testing.assert_array_equal(rows[good], whole[good])
    assert not rows[~good].any()


def test_unit_norm_zero_stays_zero():
    kernels = np.random.default_rng(5).normal(size=(3, 4, 5)) * 1e-200
    kernels[1] = 0
    norms = np.linalg.norm(unit_norm(kernels), axis=(1, 2))
    np.testing.assert_allclose(norms, [1, 0, 1])
