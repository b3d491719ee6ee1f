"""Families: rendering, parameters and bounds, against quadrature of the textbook formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.families import (
    FAMILY,
    at_bounds,
    basis_images,
    render,
    search_bounds,
    to_parameters,
    why_unidentifiable,
)
from scipy_reference import bounds, draw

# What `draw` takes for each reported parameter vector.
EXAMPLES = {
    "gaussian": ([0.3, -2.0, 0.7, -1.2, 0.8], {"gains": (-2.0,)}),
    "dog": ([0.1, 3.0, -2.5, 0.4, -0.6, 0.7, 1.9], {"gains": (3.0, -2.5), "surround": 1.9}),
    "d1": ([-0.2, 1.5, 2.2, -0.5, 0.9, 0.9], {"gains": (1.5,), "theta": 2.2}),
    "d2": ([0.0, 2.0, -0.7, -0.4, 0.2, 0.3, 1.1], {"gains": (2.0, -0.7), "theta": -0.4}),
}


def named(family: str, values: list[float]) -> dict[str, float]:
    return dict(zip((p.name for p in FAMILY[family].parameters), values, strict=True))


def in_float64(function, *args):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(*jax.tree.map(jnp.asarray, args)))


@pytest.mark.parametrize("family", EXAMPLES)
@pytest.mark.parametrize("size", [7, 8])
def test_render_draws_the_textbook_formula(family, size):
    values, drawn = EXAMPLES[family]
    names = named(family, values)
    where = {"x0": names["x0_px"], "y0": names["y0_px"], "sigma": names["sigma_px"]}
    wanted = draw(family, size, offset=names["offset"], **where, **drawn)
    image = in_float64(lambda p: render(FAMILY[family], p, size), np.array([values]))
    np.testing.assert_allclose(image[0], wanted, atol=1e-9)


@pytest.mark.parametrize("family", EXAMPLES)
def test_reported_parameters_draw_what_the_gains_draw(family):
    generator = np.random.default_rng(1)
    size, rows, model = 6, 40, FAMILY[family]
    low, high = (np.array(b)[:, None] for b in search_bounds(model, size))
    point = generator.uniform(low, high, (len(low), rows))
    gains, offset = generator.normal(size=(len(model.terms), rows)), generator.normal(size=rows)

    def both(point, gains, offset):
        columns = basis_images(model, point, size)
        parameters = to_parameters(model, point, offset, list(gains))
        return columns, parameters, render(model, parameters, size)

    columns, parameters, image = in_float64(jax.jit(both), point, gains, offset)
    assert parameters.shape == (rows, len(model.parameters))
    wanted = offset + np.einsum("qb,qyxb->yxb", gains, np.stack(columns))
    np.testing.assert_allclose(image, np.moveaxis(wanted, -1, 0), atol=1e-12)


def test_a_large_kernel_holds_the_whole_mass():
    image = in_float64(lambda p: render(FAMILY["gaussian"], p, 31), np.array([[0.0, 2.5, 1.0, -2.0, 1.5]]))
    np.testing.assert_allclose(image.sum(), 2.5, atol=1e-9)


def test_second_derivative_axes_are_eigenvectors():
    generator = np.random.default_rng(2)
    xx, xy, yy = generator.normal(size=(3, 200))
    # Ties and pure axes.
    xx[:4], xy[:4], yy[:4] = [1, -1, 0, 2], [0, 0, 1, 0], [2, 1, 0, 2]
    point = np.zeros((3, 200))
    values = in_float64(
        lambda *a: to_parameters(FAMILY["d2"], a[0], a[1], list(a[2:])), point, xx * 0, xx, xy, yy
    )
    _, first, second, theta, *_ = values.T
    eigenvalues = np.linalg.eigvalsh(np.stack([xx, xy / 2, xy / 2, yy], 1).reshape(-1, 2, 2))
    np.testing.assert_allclose(np.sort([first, second], axis=0).T, eigenvalues, atol=1e-12)
    assert np.all(np.abs(first) >= np.abs(second) - 1e-12)
    assert np.all((theta > -np.pi / 2 - 1e-12) & (theta <= np.pi / 2 + 1e-12))
    axis = np.stack([np.cos(theta), np.sin(theta)])
    turned = np.stack([xx * axis[0] + xy / 2 * axis[1], xy / 2 * axis[0] + yy * axis[1]])
    np.testing.assert_allclose(turned, first * axis, atol=1e-12)


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("size", [3, 31])
def test_bounds_are_the_documented_ones(family, size):
    np.testing.assert_allclose(search_bounds(FAMILY[family], size), bounds(family, size))


def test_which_parameters_sit_on_a_bound():
    family = FAMILY["dog"]
    inside = [0.0, 1.0, -1.0, 0.0, 0.0, 1.0, 2.0]
    columns = {p.name: i for i, p in enumerate(family.parameters)}
    cases = [("x0_px", 3.5), ("x0_px", -3.5), ("y0_px", 3.5), ("sigma_px", 7.0), ("sigma_surround_px", 1.1)]
    cases += [("sigma_surround_px", 8.0)]
    rows = np.array([inside] * (len(cases) + 1), np.float32)
    wanted = np.zeros(rows.shape, bool)
    for row, flags, (name, value) in zip(rows, wanted, cases, strict=False):
        row[columns[name]] = value
        flags[columns[name]] = True
        if name == "sigma_px":
            row[columns["sigma_surround_px"]] = 2 * value
    np.testing.assert_array_equal(at_bounds(family, rows, 7), wanted)
    narrow = np.array([[0.0, 1.0, 0.5, 0.1, 0.1, 0.3]])
    np.testing.assert_array_equal(at_bounds(FAMILY["d1"], narrow, 7)[0], [False] * 5 + [True])


@pytest.mark.parametrize("family", FAMILY)
def test_a_family_needs_taps_to_spare(family):
    parameters = len(FAMILY[family].parameters)
    for size in range(2, 8):
        reason = why_unidentifiable(FAMILY[family], size)
        assert (reason is None) == (size**2 >= parameters + 3)
        if reason is not None:
            assert family in reason
            assert str(parameters) in reason
            assert f"{size}x{size}" in reason


def test_parameters_have_units_and_unique_names():
    for family in FAMILY.values():
        names = [p.name for p in family.parameters]
        assert len(set(names)) == len(names)
        for parameter in family.parameters:
            unit = {"px": "px", "rad": "rad"}.get(parameter.name.rsplit("_", 1)[-1], "weight")
            assert parameter.unit == unit
