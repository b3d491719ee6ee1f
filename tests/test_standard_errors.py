"""Standard errors of every family against numeric Jacobians of the textbook formulas, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.families import BUILTIN_FAMILIES, custom_family, with_profile
from dogfit.fitting.standard_errors import standard_errors
from dogfit.kernels.model.custom import SearchRange
from scipy_reference import basis
from test_families import EXAMPLES, textbook

SHAPE = (6, 7)
TAPS = SHAPE[0] * SHAPE[1]
STEP = 1e-4


def numeric_jacobian(image, values: np.ndarray) -> np.ndarray:
    """Of an image `[h, w]` by its parameters, `[taps, p]`."""
    moves = STEP * np.eye(len(values))
    return np.stack([(image(values + m) - image(values - m)).ravel() / (2 * STEP) for m in moves], axis=1)


def errors_of(family, values, at_bound=None, residual=1.0, weights=None) -> np.ndarray:
    at_bound = np.zeros((1, len(family.model.names)), bool) if at_bound is None else np.array([at_bound])
    with jax.enable_x64(True):
        found = standard_errors(
            family, np.array([values]), at_bound, np.array([residual]), SHAPE,
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
    found = errors_of(BUILTIN_FAMILIES[family], values, residual=0.3)
    np.testing.assert_allclose(found, wanted_errors(jacobian, 0.3), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "at_bound"),
    [
        ("dog_d1", "log_sigma"),
        ("dog_d1", "surround_weight"),
        pytest.param("dog_d1_elliptic", "e1", marks=pytest.mark.slow),
    ],
)
def test_standard_errors_at_bound(name, at_bound):
    """A parameter on its bound has no error, and is no rival to the others."""
    family = BUILTIN_FAMILIES[name]
    names, values = list(EXAMPLES[family.name]), np.array(list(EXAMPLES[family.name].values()))
    flags = [name == at_bound for name in family.model.names]
    found = dict(zip(names, errors_of(family, values, flags), strict=True))
    unknown = {
        "log_sigma": {"sigma_px"},
        "surround_weight": {"surround_weight"},
        "e1": {"aspect", "phi_rad"},
    }[at_bound]
    assert {name for name, error in found.items() if np.isnan(error)} == unknown

    def image(p):
        p = dict(zip(names, p, strict=True))
        if at_bound == "log_sigma":
            # The other width is found as a ratio.
            p["sigma_surround_px"] *= EXAMPLES[family.name]["sigma_px"] / p["sigma_px"]
            p["sigma_px"] = EXAMPLES[family.name]["sigma_px"]
        return textbook(family.name, SHAPE, p)

    if at_bound == "e1":
        return
    jacobian = numeric_jacobian(image, values)
    free = [i for i, name in enumerate(names) if name not in unknown]
    wanted = wanted_errors(jacobian[:, free])
    np.testing.assert_allclose([found[names[i]] for i in free], wanted, rtol=1e-4)


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
    found = errors_of(family, values, [False, True, False])
    np.testing.assert_array_equal(np.isnan(found), [False, False, False, True, False])


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
