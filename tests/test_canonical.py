"""The canonical form of a kernel: the same numbers for all its mirror images, undone in the parameters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogfit.fitting.canonical import CanonicalTransform, canonical_transform
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.model.bounds import search_bounds

IMAGES_OF_A_SQUARE = [
    lambda w, turns=turns, swap=swap: np.rot90(w.swapaxes(0, 1) if swap else w, turns)
    for turns, swap in itertools.product(range(4), (False, True))
]


@jax.jit
def transformed(kernels, weights):
    return canonical_transform(kernels, weights).apply(kernels)


def in_canonical_form(kernels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    weights = None if weights is None else np.ascontiguousarray(weights, np.float32)
    return np.asarray(transformed(np.ascontiguousarray(kernels, np.float32), weights))


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([4, 5]))
def test_canonical_transform_symmetric_images(seed, size):
    kernels = np.random.default_rng(seed).normal(size=(size, size, 5))
    wanted = in_canonical_form(kernels)
    for image in IMAGES_OF_A_SQUARE:
        np.testing.assert_array_equal(in_canonical_form(image(kernels)), wanted)
    np.testing.assert_array_equal(in_canonical_form(-kernels), -wanted)
    np.testing.assert_array_equal(in_canonical_form(wanted), wanted)


@given(seed=st.integers(0, 2**32 - 1))
def test_canonical_transform_weights(seed):
    generator = np.random.default_rng(seed)
    kernels, weights = generator.normal(size=(5, 5, 4)), generator.uniform(0, 1, (5, 5, 4))
    weights[0, 3] = 0
    kernels[0, 3] = np.nan
    wanted = in_canonical_form(kernels, weights)
    for image in IMAGES_OF_A_SQUARE:
        np.testing.assert_array_equal(in_canonical_form(image(kernels), image(weights)), wanted)


@given(seed=st.integers(0, 2**32 - 1))
def test_canonical_transform_rectangle(seed):
    kernels = np.random.default_rng(seed).normal(size=(4, 7, 5))
    wanted = in_canonical_form(kernels)
    for down, along in itertools.product((1, -1), (1, -1)):
        np.testing.assert_array_equal(in_canonical_form(kernels[::down, ::along]), wanted)


def test_canonical_transform_constant_or_broken():
    kernels = np.ones((5, 5, 4))
    kernels[..., 1] = 0
    kernels[2, 2, 2] = np.nan
    assert in_canonical_form(kernels).shape == kernels.shape
    np.testing.assert_array_equal(in_canonical_form(kernels)[..., :2], kernels[..., :2])


@pytest.mark.parametrize("shape", [(6, 6), (5, 7)])
@pytest.mark.parametrize(
    "family",
    [
        name if name in ("dog", "d1", "d2") else pytest.param(name, marks=pytest.mark.slow)
        for name in BUILTIN_FAMILIES
    ],
)
def test_undo_point_and_gains_render_the_same(family, shape):
    """Both draw the same, in the canonical form and out of it."""
    generator = np.random.default_rng(3)
    model = BUILTIN_FAMILIES[family].model
    low, high = (np.array(side)[:, None] for side in search_bounds(model, shape))
    flags = np.array(list(itertools.product((False, True), repeat=3))).T
    if shape[0] != shape[1]:
        flags[2] = False
    point = generator.uniform(low, high, (len(low), flags.shape[1]))
    gains = generator.normal(size=(len(model.terms), flags.shape[1]))

    def draw(point, gains):
        columns = model.images(list(point), shape)
        return sum(gain[None, None, :] * c for gain, c in zip(gains, columns, strict=True))

    def both(point, gains, flags):
        transform = CanonicalTransform(*flags)
        undone = draw(transform.undo_point(model, point), transform.undo_gains(model, list(gains)))
        return draw(point, list(gains)), transform.apply(undone)

    with jax.enable_x64(True):
        run = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})
        canonical, undone = run(jnp.asarray(point), jnp.asarray(gains), jnp.asarray(flags))
    np.testing.assert_allclose(undone, canonical, atol=1e-12)


def test_undo_point_ellipse():
    """The shape of an ellipse turns as a symmetric matrix of trace zero does."""
    model = BUILTIN_FAMILIES["gaussian_elliptic"].model
    point = {"x0": 0.0, "y0": 0.0, "log_sigma": 0.0, "e1": 0.4, "e2": 0.7}
    for mirror_x, mirror_y, swap in itertools.product((False, True), repeat=3):
        transform = CanonicalTransform(*(jnp.array([flag]) for flag in (mirror_x, mirror_y, swap)))
        undone = transform.undo_point(model, jnp.array([[point[name]] for name in model.names]))[:, 0]
        turn = np.diag([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0])
        if swap:
            turn = turn[::-1]
        shape = turn @ [[point["e1"], point["e2"]], [point["e2"], -point["e1"]]] @ turn.T
        found = [undone[model.names.index(name)] for name in ("e1", "e2")]
        np.testing.assert_allclose(found, shape[0], atol=1e-7)


def test_undo_at_bound_turns_with_the_center():
    at_bound = jnp.array([[True], [False], [True], [False]])
    for swap in (False, True):
        transform = CanonicalTransform(*(jnp.array([flag]) for flag in (True, False, swap)))
        found = transform.undo_at_bound(BUILTIN_FAMILIES["dog"].model, at_bound)[:, 0]
        np.testing.assert_array_equal(found, [not swap, swap, True, False])
