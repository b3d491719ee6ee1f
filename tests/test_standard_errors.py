"""Standard errors of every family against numeric Jacobians of the textbook formulas, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.families import BUILTIN_FAMILIES, custom_family, with_profile
from dogfit.fitting.standard_errors import standard_errors
from dogfit.kernels.model.custom import SearchRange
from scipy_families import basis
from test_families import EXAMPLES, textbook

SHAPE = (6, 7)
TAPS = SHAPE[0] * SHAPE[1]
STEP = 1e-4


def numeric_jacobian(image, values: np.ndarray) -> np.ndarray:
    """Of an image `[h, w]` by its parameters, `[taps, p]`."""
    moves = STEP * np.eye(len(values))
    return np.stack([(image(values + m) - image(values - m)).ravel() / (2 * STEP) for m in moves], axis=1)


def errors_of(family, values, at_bound=None, norm=1.0, weights=None) -> np.ndarray:
    at_bound = np.zeros((1, len(family.model.names)), bool) if at_bound is None else np.array([at_bound])
    with jax.enable_x64(True):
        found = standard_errors(
            family, np.array([values]), at_bound, np.array([norm]), SHAPE,
            None if weights is None else weights[None],
        )  # fmt: skip
    return found[0]


def wanted_errors(jacobian: np.ndarray, residual: float = 1.0) -> np.ndarray:
    spare = TAPS - jacobian.shape[1]
    return np.sqrt(residual / spare * np.diag(np.linalg.inv(jacobian.T @ jacobian)))


@pytest.mark.parametrize(
    "family",
    [name if name in ("d1", "dog_d2") else pytest.param(name, marks=pytest.mark.slow) for name in EXAMPLES],
)
def test_standard_errors_families(family):
    names, values = list(EXAMPLES[family]), np.array(list(EXAMPLES[family].values()))
    jacobian = numeric_jacobian(lambda p: textbook(family, SHAPE, dict(zip(names, p, strict=True))), values)
    found = errors_of(BUILTIN_FAMILIES[family], values, norm=np.sqrt(0.3))
    np.testing.assert_allclose(found, wanted_errors(jacobian, 0.3), rtol=1e-4)


@pytest.mark.parametrize("at_bound", ["log_sigma", "surround_weight"])
def test_standard_errors_at_bound(at_bound):
    """A parameter on its bound has no error, nor has what moves with it; the others have fewer rivals."""
    family = BUILTIN_FAMILIES["dog_d1"]
    names, values = list(EXAMPLES["dog_d1"]), np.array(list(EXAMPLES["dog_d1"].values()))
    found = errors_of(family, values, [name == at_bound for name in family.model.names])
    held = names.index({"log_sigma": "sigma_px"}.get(at_bound, at_bound))
    jacobian = numeric_jacobian(lambda p: textbook("dog_d1", SHAPE, dict(zip(names, p, strict=True))), values)
    free = np.delete(np.arange(len(names)), held)
    known = wanted_errors(jacobian[:, free])
    # Were the bound not there: more rivals, and one degree of freedom less, which is not what is compared.
    spare = TAPS - len(names)
    freed = wanted_errors(jacobian)[free] * np.sqrt(spare / (spare + 1))
    place = np.isin(np.array(names)[free], ["x0_px", "y0_px", "theta_rad"])
    unknown = ~place | (freed**2 > 1.1 * known**2)
    assert not unknown.all()
    np.testing.assert_allclose(found[free], np.where(unknown, np.nan, known), rtol=1e-4)
    assert np.isnan(found[held])


def test_standard_errors_center_at_bound():
    """Beside a center on its bound only what moves with it has no error."""
    family = BUILTIN_FAMILIES["d1"]
    names, values = list(EXAMPLES["d1"]), np.array(list(EXAMPLES["d1"].values()))
    found = errors_of(family, values, [name == "x0" for name in family.model.names])
    held = names.index("x0_px")
    jacobian = numeric_jacobian(lambda p: textbook("d1", SHAPE, dict(zip(names, p, strict=True))), values)
    free = np.delete(np.arange(len(names)), held)
    known, spare = wanted_errors(jacobian[:, free]), TAPS - len(names)
    freed = wanted_errors(jacobian)[free] * np.sqrt(spare / (spare + 1))
    unknown = freed**2 > 1.1 * known**2
    assert 0 < unknown.sum() < len(free)
    np.testing.assert_allclose(found[free], np.where(unknown, np.nan, known), rtol=1e-4)


def test_standard_errors_fixed():
    """A parameter that the caller fixed is known: it has no error, and the others have theirs."""
    family = BUILTIN_FAMILIES["dog_d1"]
    names, values = list(EXAMPLES["dog_d1"]), np.array(list(EXAMPLES["dog_d1"].values()))
    flags = np.array([[name == "surround_weight" for name in family.model.names]])
    with jax.enable_x64(True):
        found = standard_errors(family, values[None], flags, np.ones(1), SHAPE, None, flags)[0]
    jacobian = numeric_jacobian(lambda p: textbook("dog_d1", SHAPE, dict(zip(names, p, strict=True))), values)
    held = names.index("surround_weight")
    wanted = np.insert(wanted_errors(np.delete(jacobian, held, axis=1)), held, np.nan)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-200, 1e-60, 1e60])
def test_standard_errors_scale(scale):
    """Kernels of any magnitude have the errors of their shape."""
    family = BUILTIN_FAMILIES["d1"]
    values = np.array(list(EXAMPLES["d1"].values()))
    units = np.array([scale if parameter.unit == "weight" else 1.0 for parameter in family.parameters])
    found = errors_of(family, values * units, norm=scale)
    np.testing.assert_allclose(found / units, errors_of(family, values), rtol=1e-10)


def test_standard_errors_weights():
    values = np.array(list(EXAMPLES["d1"].values()))
    weights = np.random.default_rng(0).uniform(0, 2, SHAPE)
    weights[2] = 0
    names = list(EXAMPLES["d1"])
    jacobian = numeric_jacobian(lambda p: textbook("d1", SHAPE, dict(zip(names, p, strict=True))), values)
    used = weights.ravel() > 0
    scaled = weights.ravel() * used.sum() / weights.sum()
    normal = jacobian.T @ (scaled[:, None] * jacobian)
    wanted = np.sqrt(1 / (used.sum() - 6) * np.diag(np.linalg.inv(normal)))
    for factor in (1.0, 1e-3):
        np.testing.assert_allclose(
            errors_of(BUILTIN_FAMILIES["d1"], values, weights=factor * weights), wanted, rtol=1e-4
        )


@pytest.mark.parametrize("profile", ["sampled", pytest.param("discrete", marks=pytest.mark.slow)])
def test_standard_errors_profiles(profile):
    """Of a DoG, whose gains are the reported ones; a discrete centre is not searched, so it has none."""
    family = with_profile(BUILTIN_FAMILIES["dog"], profile)
    values = np.array([0.1, 3.0, -2.5, 0.5, -0.5, 0.9, 1.9])

    def image(p):
        point = np.array([p[3], p[4], np.log(p[5]), np.log(p[6] / p[5])])
        return basis("dog", point, SHAPE, profile) @ p[:3]

    found = errors_of(family, values)
    free = np.arange(7)
    if profile == "discrete":
        assert np.all(np.isnan(found[3:5]))
        free = np.delete(free, [3, 4])
    moves = STEP * np.eye(7)[free]
    jacobian = np.stack([(image(values + m) - image(values - m)) / (2 * STEP) for m in moves], axis=1)
    np.testing.assert_allclose(found[free], wanted_errors(jacobian), rtol=1e-4)


@pytest.mark.slow
def test_standard_errors_custom():
    """Of a family of ones own."""

    def ridge(x, y, place, width, tilt):
        return (jnp.exp(-(((x + tilt * y - place) / width) ** 2)),)

    ranges = {"place": SearchRange(-3, 3, 5), "width": SearchRange(0.5, 3, 3), "tilt": SearchRange(-1, 1, 3)}
    family = custom_family("ridge", ridge, ranges, ("gain",))
    values = np.array([0.2, 1.5, 0.4, 1.3, -0.3])
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] - (np.array(SHAPE)[:, None, None] - 1) / 2

    def image(p):
        return p[0] + p[1] * np.exp(-(((x + p[4] * y - p[2]) / p[3]) ** 2))

    np.testing.assert_allclose(
        errors_of(family, values), wanted_errors(numeric_jacobian(image, values)), rtol=1e-4
    )
    # With the width on its bound there is none of the width, nor of what would have a larger one without.
    jacobian, held = numeric_jacobian(image, values).astype(float), 3
    alone = np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    others = np.delete(jacobian, held, axis=1)
    beside = np.insert(np.sqrt(np.diag(np.linalg.inv(others.T @ others))), held, 0.0)
    found = errors_of(family, values, [False, True, False])
    np.testing.assert_array_equal(np.isnan(found), alone**2 > 1.1 * beside**2)


def test_standard_errors_singular():
    """A singular problem has none."""
    values = np.array(list((EXAMPLES["d1"] | {"amplitude": 0.0}).values()))
    assert np.all(np.isnan(errors_of(BUILTIN_FAMILIES["d1"], values)))


@pytest.mark.parametrize(
    "family", ["d1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dog", "d2", "d1_elliptic"))]
)
def test_standard_errors_single_precision(family):
    """Single precision keeps two digits."""
    values = np.array([list(EXAMPLES[family].values())])
    at_bound = np.zeros((1, len(BUILTIN_FAMILIES[family].model.names)), bool)
    single = standard_errors(
        BUILTIN_FAMILIES[family], values.astype(np.float32), at_bound, np.ones(1), SHAPE, None
    )[0]
    np.testing.assert_allclose(single, errors_of(BUILTIN_FAMILIES[family], values[0]), rtol=0.02)
