"""What follows from a fit: standard errors, templates, the table, joining."""

from dataclasses import replace

import jax
import numpy as np
import polars
import pytest

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.fitting.result import Status, concatenate
from dogfit.labels import label_fits
from scipy_families import draw

SIZE = 7
CLEAR = {
    "gaussian": {"sigma": 1.2, "x0": 0.3, "y0": -0.4, "gains": (2.0,), "offset": 0.1},
    "dog": {"sigma": 0.7, "surround": 1.9, "x0": 0.2, "y0": 0.1, "gains": (1.0, -1.6)},
    "d1": {"sigma": 1.1, "x0": -0.3, "y0": 0.2, "gains": (1.0,), "theta": 0.7},
    "d2": {"sigma": 1.1, "x0": 0.1, "y0": 0.3, "gains": (-1.0, 0.3), "theta": 0.4},
}
COPIES = 400


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """One clear kernel per family, a constant, and one narrower than the bounds allow."""
    clear = [draw(family, SIZE, **arguments) for family, arguments in CLEAR.items()]
    narrow = np.zeros((SIZE, SIZE))
    narrow[3, 3] = 1.0
    noise = 0.01 * np.random.default_rng(30).normal(size=(SIZE, SIZE))
    return np.stack([*clear, np.ones((SIZE, SIZE)), narrow + noise]).astype(np.float32)


@pytest.fixture(scope="module")
def result(drawn):
    return fit_kernels(drawn)


@pytest.fixture(scope="module")
def ensemble():
    """Fits of many noisy copies of each clear kernel, in the order of `CLEAR`."""
    generator = np.random.default_rng(31)
    images = np.stack([draw(family, SIZE, **arguments) for family, arguments in CLEAR.items()])
    images = np.repeat(images, COPIES, axis=0)
    noise = 0.03 * images.std(axis=(1, 2), keepdims=True) * generator.normal(size=images.shape)
    return fit_kernels((images + noise).astype(np.float32))


@pytest.fixture(scope="module")
def ensemble_errors(ensemble):
    return ensemble.standard_errors()


@pytest.mark.parametrize("family", CLEAR)
def test_standard_errors_spread(ensemble, ensemble_errors, family):
    """Standard errors are the spread of noisy copies."""
    index = list(CLEAR).index(family)
    rows = np.arange(index * COPIES, (index + 1) * COPIES)
    rows = rows[ensemble.family[rows] == ensemble.family_names.index(family)]
    assert len(rows) > 0.9 * COPIES
    values, errors = ensemble.parameters[family][rows].astype(float), ensemble_errors[family][rows]
    assert np.all(np.isfinite(errors))
    # The spread of 400 has an error of 4 %, and three per cent of noise is not quite linear.
    np.testing.assert_allclose(errors.mean(axis=0), values.std(axis=0), rtol=0.25)


def test_standard_errors_chosen_family(result):
    """Standard errors are given for the chosen family alone."""
    errors = result.standard_errors()
    assert set(errors) == set(result.family_names)
    for index, family in enumerate(result.family_names):
        assert errors[family].shape == (len(result), len(BUILTIN_FAMILIES[family].parameters))
        assert np.all(np.isnan(errors[family][result.family != index]))
    for row, family in enumerate(CLEAR):
        assert result.family_names[result.family[row]] == family


def test_standard_errors_at_bound(result):
    """A parameter on its bound has no standard error, nor has what moves with it."""
    row = len(result) - 1
    assert result.status[row] == Status.AT_BOUND
    family = result.family_names[result.family[row]]
    names = [p.name for p in BUILTIN_FAMILIES[family].parameters]
    values = dict(zip(names, result.parameters[family][row], strict=True))
    np.testing.assert_allclose(values["sigma_px"], 0.3, rtol=1e-5)
    errors = dict(zip(names, result.standard_errors()[family][row], strict=True))
    assert np.isnan(errors["sigma_px"])
    assert all(np.isnan(error) for name, error in errors.items() if name.startswith(("amplitude", "offset")))


def test_templates_clean(drawn, result):
    """Templates are the drawings."""
    templates = result.templates()
    assert templates.dtype == np.float32
    np.testing.assert_allclose(templates[:4], drawn[:4], atol=2e-3 * np.abs(drawn[:4]).max())
    assert np.all(np.isnan(templates[4]))
    np.testing.assert_allclose(templates[5], drawn[5], atol=0.1)


def test_table_rows(result):
    """Table has a row per kernel and nulls where nothing is known."""
    table = result.table()
    assert table.height == len(result)
    families = [*CLEAR, None, result.family_names[result.family[5]]]
    assert table["family"].to_list() == families
    assert table["status"].to_list() == [Status(s).name.lower() for s in result.status]
    for name, values in [("r2", result.r2), ("rmse", result.rmse)]:
        wanted = [None if np.isnan(v) else v for v in values.tolist()]
        assert table[name].to_list() == pytest.approx(wanted)
    parameters = {p.name for f in CLEAR for p in BUILTIN_FAMILIES[f].parameters}
    scores = {"family", "r2", "rmse", "status", *(f"r2_{f}" for f in CLEAR)}
    assert set(table.columns) == scores | parameters | {f"{p}_stderr" for p in parameters}
    errors = result.standard_errors()
    for row, family in enumerate(families):
        values = table.row(row, named=True)
        if family is None:
            assert all(v is None for k, v in values.items() if k != "status")
            continue
        own = {p.name: i for i, p in enumerate(BUILTIN_FAMILIES[family].parameters)}
        for name in parameters:
            if name in own:
                assert values[name] == pytest.approx(float(result.parameters[family][row, own[name]]))
                error = float(errors[family][row, own[name]])
                assert values[f"{name}_stderr"] == (None if np.isnan(error) else pytest.approx(error))
            else:
                assert values[name] is None
                assert values[f"{name}_stderr"] is None
    assert table.schema["family"] == polars.String


def test_fit_result_selection(result):
    """Rows are selected by number, slice, mask and array of numbers, and iterated over."""
    mask = np.arange(len(result)) % 2 == 0
    for rows in (slice(1, 4), mask, [0, 2], np.array([3, 3]), []):
        chosen = result[rows]
        numbers = np.arange(len(result))[np.asarray(rows, int) if isinstance(rows, list) else rows]
        np.testing.assert_array_equal(chosen.r2, result.r2[numbers])
        np.testing.assert_array_equal(chosen.parameters["d1"], result.parameters["d1"][numbers])
        assert chosen.families == result.families
        assert len(chosen) == len(numbers)
    assert result[-1].r2 == result.r2[-1]
    assert [row.r2.shape for row in result] == [()] * len(result)
    with pytest.raises(IndexError):
        result[len(result)]
    for wrong in ("d1", 0.5, np.zeros((2, 2), int)):
        with pytest.raises(TypeError, match="a number, a slice, a mask"):
            result[wrong]


def test_fit_result_of_one(result):
    """The fit of one kernel is as usable as a batch of one."""
    one, batch = result[2], result[2:3]
    assert one.r2.shape == ()
    assert len(one) == 1
    np.testing.assert_array_equal(one.templates(), batch.templates())
    assert one.table().equals(batch.table())
    for family, errors in one.standard_errors().items():
        np.testing.assert_array_equal(errors, batch.standard_errors()[family])
    np.testing.assert_array_equal(label_fits(one), label_fits(batch))
    np.testing.assert_array_equal(one[0:1].r2, batch.r2)
    nested = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), result)
    with pytest.raises(ValueError, match=r"batch axes \[2, 6\] have no rows; flatten them first"):
        nested.table()


def test_fit_result_of_none(result):
    """Nothing in, nothing out."""
    none = result[:0]
    assert none.templates().shape == (0, SIZE, SIZE)
    assert none.table().height == len(label_fits(none)) == 0
    assert none.table().schema == result.table().schema
    assert none.standard_errors()["d2"].shape == (0, 7)


def test_concatenate_alike(result):
    """Results of one kind can be joined."""
    joined = concatenate([result, jax.tree.map(lambda leaf: leaf[:2], result)])
    assert len(joined) == len(result) + 2
    assert joined.family_names == result.family_names
    np.testing.assert_array_equal(joined.r2, np.concatenate([result.r2, result.r2[:2]]))
    np.testing.assert_array_equal(joined.parameters["d1"][-2:], result.parameters["d1"][:2])


@pytest.mark.parametrize(
    "other",
    [
        {"shape": (5, 5)},
        {"profile": "sampled"},
        {"criterion": "cv"},
        {"unidentifiable": (("d1", "small"),)},
        {"families": ()},
    ],
)
def test_concatenate_unlike(result, other):
    """Results of another kind are refused."""
    with pytest.raises(ValueError, match="share families and kernel size"):
        concatenate([result, replace(result, **other)])


def test_concatenate_nothing():
    """Nothing to join is refused."""
    with pytest.raises(ValueError, match="got 0 results"):
        concatenate([])


def test_size_rectangle(result):
    """Rectangles have a shape and no size."""
    assert (result.shape, result.size) == ((SIZE, SIZE), SIZE)
    with pytest.raises(ValueError, match=r"kernels of shape \(5, 7\) have no single size; use shape"):
        _ = replace(result, shape=(5, 7)).size


def test_fit_result_is_a_pytree(result):
    """A result is a pytree."""
    again = jax.tree.map(lambda leaf: leaf, result)
    assert again.families == result.families
    assert jax.tree.structure(again) == jax.tree.structure(result)
    assert len(jax.tree.leaves(result)) == len(jax.tree.leaves(again))
