"""Families: rendering, parameters and bounds, against quadrature of the textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.families import (
    BUILTIN_FAMILIES,
    custom_family,
    from_parameters,
    render,
    reported_names,
    to_parameters,
    unidentifiable,
    with_profile,
)
from dogfit.fitting.family_names import ALL_FAMILIES, FAMILIES
from dogfit.kernels.model.bounds import search_bounds
from dogfit.kernels.model.custom import SearchRange
from scipy_families import PROFILES, basis, bounds, draw

QUICK = {"xla_backend_optimization_level": 0}
ELLIPSE = {"aspect": 1.8, "phi_rad": 0.9}
# Reported parameters, in words of `draw` below.
EXAMPLES = {
    "gaussian": {"offset": 0.3, "amplitude": -2.0, "x0_px": 0.7, "y0_px": -1.2, "sigma_px": 0.8},
    "dog": {
        "offset": 0.1, "amplitude_center": 3.0, "amplitude_surround": -2.5, "x0_px": 0.4, "y0_px": -0.6,
        "sigma_px": 0.7, "sigma_surround_px": 1.9,
    },
    "d1": {
        "offset": -0.2, "amplitude": 1.5, "theta_rad": 2.2, "x0_px": -0.5, "y0_px": 0.9, "sigma_px": 0.9,
    },
    "d2": {
        "offset": 0.0, "amplitude_1": 2.0, "amplitude_2": -0.7, "theta_rad": -0.4, "x0_px": 0.2,
        "y0_px": 0.3, "sigma_px": 1.1,
    },
    "dog_d1": {
        "offset": 0.4, "amplitude": 2.5, "theta_rad": -1.1, "x0_px": 0.4, "y0_px": 0.2, "sigma_px": 0.8,
        "sigma_surround_px": 1.6, "surround_weight": 0.7,
    },
    "dog_d2": {
        "offset": -0.1, "amplitude_1": -1.4, "amplitude_2": -0.9, "theta_rad": 1.2, "x0_px": -0.2,
        "y0_px": 0.5, "sigma_px": 0.9, "sigma_surround_px": 2.2, "surround_weight": 0.4,
    },
}  # fmt: skip
EXAMPLES |= {f"{name}_elliptic": values | ELLIPSE for name, values in EXAMPLES.items()}
# Each family is a program of its own; those of the default tier have all that the others have.
FEW = [
    name
    if name in ("dog", "d1", "dog_d2", "gaussian_elliptic")
    else pytest.param(name, marks=pytest.mark.slow)
    for name in EXAMPLES
]


def textbook(family: str, shape: int | tuple[int, int], p: dict[str, float]) -> np.ndarray:
    """The drawing of reported parameters."""
    log_aspect, phi = np.log(p.get("aspect", 1.0)), p.get("phi_rad", 0.0)
    return draw(
        family,
        shape,
        x0=p["x0_px"],
        y0=p["y0_px"],
        sigma=p["sigma_px"],
        gains=tuple(v for k, v in p.items() if k.startswith("amplitude")),
        theta=p.get("theta_rad", 0.0),
        offset=p["offset"],
        surround=p.get("sigma_surround_px"),
        surround_weight=p.get("surround_weight", 0.0),
        e=(log_aspect * np.cos(2 * phi), log_aspect * np.sin(2 * phi)),
    )


def in_float64(function, *args):
    with jax.enable_x64(True):
        run = jax.jit(function, compiler_options=QUICK)
        return jax.tree.map(np.asarray, run(*jax.tree.map(lambda a: jnp.asarray(a, float), args)))


def test_builtin_families_names():
    """The twelve families and the default ones."""
    assert set(BUILTIN_FAMILIES) == set(EXAMPLES)
    assert tuple(BUILTIN_FAMILIES) == ALL_FAMILIES
    assert set(FAMILIES) <= set(BUILTIN_FAMILIES)
    for name, family in BUILTIN_FAMILIES.items():
        assert family.name == name
        assert family.names == tuple(EXAMPLES[name])


@pytest.mark.parametrize("family", FEW)
@pytest.mark.parametrize("shape", [pytest.param((7, 7), marks=pytest.mark.slow), (6, 9)])
def test_render_textbook(family, shape):
    """Render draws the textbook formula."""
    values = np.array([list(EXAMPLES[family].values())])
    image = in_float64(lambda p: render(BUILTIN_FAMILIES[family], p, shape), values)
    np.testing.assert_allclose(image[0], textbook(family, shape, EXAMPLES[family]), atol=1e-9)


@pytest.mark.parametrize(
    ("family", "profile"),
    [
        pytest.param("dog", "sampled", marks=pytest.mark.slow),
        ("dog_d2", "sampled"),
        pytest.param("d1_elliptic", "sampled", marks=pytest.mark.slow),
        ("dog", "discrete"),
        pytest.param("dog_d2", "discrete", marks=pytest.mark.slow),
    ],
)
def test_render_profiles(family, profile):
    """Render with another profile."""
    model = with_profile(BUILTIN_FAMILIES[family], profile)
    values = EXAMPLES[family] | {"x0_px": 0.5, "y0_px": -1.0}
    point, offset, gains = in_float64(lambda p: from_parameters(model, p), np.array([list(values.values())]))
    image = in_float64(lambda p: render(model, p, (5, 7)), np.array([list(values.values())]))
    wanted = basis(family, point[:, 0], (5, 7), profile) @ [offset[0], *(g[0] for g in gains)]
    np.testing.assert_allclose(image[0].ravel(), wanted, atol=1e-10)


@pytest.mark.parametrize("family", FEW)
def test_to_parameters_round_trip(family):
    """Search points to reported parameters and back, and what both draw."""
    generator = np.random.default_rng(1)
    shape, rows, model = (6, 5), 40, BUILTIN_FAMILIES[family].model
    low, high = (np.array(b)[:, None] for b in search_bounds(model, shape))
    point = generator.uniform(low, high, (len(low), rows))
    gains, offset = generator.normal(size=(len(model.terms), rows)), generator.normal(size=rows)

    def there_and_back(point, gains, offset):
        columns = model.images(list(point), shape)
        parameters = to_parameters(model, point, offset, list(gains))
        image = render(BUILTIN_FAMILIES[family], parameters, shape)
        return columns, parameters, image, from_parameters(BUILTIN_FAMILIES[family], parameters)

    columns, parameters, image, back = in_float64(there_and_back, point, gains, offset)
    assert parameters.shape == (rows, len(BUILTIN_FAMILIES[family].parameters))
    wanted = offset + np.einsum("qb,qyxb->yxb", gains, np.stack(columns))
    np.testing.assert_allclose(image, np.moveaxis(wanted, -1, 0), atol=1e-10)
    np.testing.assert_allclose(back[0], point, atol=1e-12)
    np.testing.assert_allclose(back[1], offset, atol=1e-12)
    np.testing.assert_allclose(back[2], gains, atol=1e-12)
    named = dict(zip(BUILTIN_FAMILIES[family].names, parameters.T, strict=True))
    if "aspect" in named:
        assert np.all(named["aspect"] >= 1)
        assert np.all(np.abs(named["phi_rad"]) <= np.pi / 2 + 1e-12)
    if "amplitude" in named and "theta_rad" in named:
        assert np.all(named["amplitude"] >= 0)


def test_render_mass():
    """A large kernel holds the whole mass."""
    for family, shape in (("gaussian", ()), ("gaussian_elliptic", (2.5, 0.4))):
        values = np.array([[0.0, 2.5, 1.0, -2.0, 1.5, *shape]])
        image = in_float64(lambda p, f=family: render(BUILTIN_FAMILIES[f], p, (31, 29)), values)
        np.testing.assert_allclose(image.sum(), 2.5, atol=1e-9)


@pytest.mark.parametrize(
    "aspect", [pytest.param(2.0, marks=pytest.mark.slow), pytest.param(3.0, marks=pytest.mark.slow), 4.7]
)
def test_render_single_precision(aspect):
    """Up to log 3 along both axes of shape, where the longer axis is 4.7 times the shorter."""
    draw_narrow = jax.jit(lambda p: render(BUILTIN_FAMILIES["gaussian_elliptic"], p, (9, 9)))
    for phi in (0.0, np.pi / 8, np.pi / 3):
        values = EXAMPLES["gaussian_elliptic"] | {"aspect": aspect, "phi_rad": phi, "sigma_px": 0.8}
        image = draw_narrow(jnp.array([list(values.values())], jnp.float32))
        wanted = textbook("gaussian_elliptic", 9, values)
        error = np.linalg.norm(image[0] - wanted) / np.linalg.norm(wanted - wanted.mean())
        assert error < 3e-6


def test_to_parameters_principal_axes():
    """Second derivative axes are eigenvectors."""
    generator = np.random.default_rng(2)
    xx, xy, yy = generator.normal(size=(3, 200))
    # Ties and pure axes.
    xx[:4], xy[:4], yy[:4] = [1, -1, 0, 2], [0, 0, 1, 0], [2, 1, 0, 2]
    values = in_float64(
        lambda *a: to_parameters(BUILTIN_FAMILIES["d2"].model, a[0], a[1], list(a[2:])),
        np.zeros((3, 200)), xx * 0, xx, xy, yy,
    )  # fmt: skip
    _, first, second, theta, *_ = values.T
    eigenvalues = np.linalg.eigvalsh(np.stack([xx, xy / 2, xy / 2, yy], 1).reshape(-1, 2, 2))
    np.testing.assert_allclose(np.sort([first, second], axis=0).T, eigenvalues, atol=1e-12)
    assert np.all(np.abs(first) >= np.abs(second) - 1e-12)
    assert np.all((theta > -np.pi / 2 - 1e-12) & (theta <= np.pi / 2 + 1e-12))
    axis = np.stack([np.cos(theta), np.sin(theta)])
    turned = np.stack([xx * axis[0] + xy / 2 * axis[1], xy / 2 * axis[0] + yy * axis[1]])
    np.testing.assert_allclose(turned, first * axis, atol=1e-12)


@pytest.mark.parametrize("family", BUILTIN_FAMILIES)
@pytest.mark.parametrize("profile", PROFILES)
def test_search_bounds_documented(family, profile):
    """Bounds are the documented ones."""
    for shape in ((3, 3), (5, 9), (31, 31)):
        model = with_profile(BUILTIN_FAMILIES[family], profile).model
        np.testing.assert_allclose(search_bounds(model, shape), bounds(family, shape, profile))


def test_reported_names_complete():
    """Every search parameter is reported."""
    for family in BUILTIN_FAMILIES.values():
        for name in family.model.names:
            assert set(reported_names(family.model, name)) <= set(family.names)
    ranges = {"x0": SearchRange(-1, 1, 2), "kappa": SearchRange(0, 1, 2)}
    family = custom_family("ridge", lambda x, y, x0, kappa: (x - x0 + kappa * y,), ranges, ("gain",))
    assert [reported_names(family.model, name) for name in ranges] == [("x0",), ("kappa",)]


@pytest.mark.parametrize("family", BUILTIN_FAMILIES)
def test_unidentifiable_few_taps(family):
    """A family needs taps to spare."""
    parameters = len(BUILTIN_FAMILIES[family].parameters)
    for height, width in [(2, 2), (3, 3), (3, 4), (3, 5), (4, 4), (5, 3), (7, 7)]:
        reason = unidentifiable([BUILTIN_FAMILIES[family]], (height, width)).get(family)
        assert (reason is None) == (height * width >= parameters + 3)
        if reason is not None:
            assert family in reason
            assert f"{parameters} parameters" in reason
            assert f"{height}x{width}" in reason


def test_parameters_units():
    """Parameters have units and unique names."""
    for family in BUILTIN_FAMILIES.values():
        assert len(set(family.names)) == len(family.names)
        for parameter in family.parameters:
            unit = {"px": "px", "rad": "rad"}.get(parameter.name.rsplit("_", 1)[-1], "weight")
            unit = "ratio" if parameter.name in ("surround_weight", "aspect") else unit
            assert parameter.unit == unit


def ramp(x, y, slope_px, turn_rad, mix):
    return (slope_px * x * jnp.cos(turn_rad), mix * y)


RANGES = {"slope_px": SearchRange(-1, 1, 3), "turn_rad": SearchRange(0, 3, 3), "mix": SearchRange(0, 1, 2)}


class TestCustom:
    def test_custom_family_round_trip(self):
        """Parameters units and round trip."""
        family = custom_family("ramp", ramp, RANGES, ("a", "b"))
        assert family.names == ("offset", "a", "b", "slope_px", "turn_rad", "mix")
        assert [p.unit for p in family.parameters] == ["weight"] * 3 + ["px", "rad", "ratio"]
        assert search_bounds(family.model, (5, 5)) == ([-1, 0, 0], [1, 3, 1])
        values = np.array([[0.5, 2.0, -1.0, 0.7, 1.0, 0.3]])
        point, offset, gains = in_float64(lambda p: from_parameters(family, p), values)
        back = in_float64(lambda p, o, g: to_parameters(family.model, p, o, g), point, offset, gains)
        np.testing.assert_array_equal(back, values)
        x, y = np.meshgrid(np.arange(4) - 1.5, np.arange(3) - 1)
        wanted = 0.5 + 2.0 * 0.7 * np.cos(1.0) * x - 0.3 * y
        np.testing.assert_allclose(in_float64(lambda p: render(family, p, (3, 4)), values)[0], wanted)
        assert with_profile(family, "sampled") is family

    @pytest.mark.parametrize(
        ("name", "ranges", "gains", "told"),
        [
            ("d1", RANGES, ("a",), "d1 is the name of a family built in"),
            ("ramp", {}, ("a",), "ramp needs at least one range and one gain"),
            ("ramp", RANGES, (), "ramp needs at least one range and one gain"),
            ("ramp", RANGES, ("a", "a"), "ramp names a parameter twice: offset, a, a"),
            ("ramp", RANGES, ("mix",), "ramp names a parameter twice"),
            ("ramp", {"offset": SearchRange(0, 1, 2)}, ("a",), "ramp names a parameter twice"),
        ],
    )
    def test_custom_family_errors(self, name, ranges, gains, told):
        with pytest.raises(ValueError, match=told):
            custom_family(name, ramp, ranges, gains)

    def test_custom_family_hash(self):
        """Is hashable and equal to itself."""
        one, other = (custom_family("ramp", ramp, RANGES, ("a", "b")) for _ in range(2))
        assert one == other
        assert hash(one) == hash(other)
