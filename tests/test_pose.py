"""The pose of a kernel: the same numbers for all its mirror images, and undone in the parameters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dogfit.fitting.canonical import Pose, pose_of
from dogfit.fitting.families import FAMILY, basis_images, search_bounds

IMAGES_OF_A_SQUARE = [
    lambda w, turns=turns, swap=swap: np.rot90(w.swapaxes(0, 1) if swap else w, turns)
    for turns, swap in itertools.product(range(4), (False, True))
]


def posed(kernels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    batch = jnp.asarray(kernels, jnp.float32)
    pose = pose_of(batch, None if weights is None else jnp.asarray(weights, jnp.float32))
    return np.asarray(pose.apply(batch))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 6))
def test_all_images_of_a_kernel_take_the_same_pose(seed, size):
    kernels = np.random.default_rng(seed).normal(size=(size, size, 5))
    wanted = posed(kernels)
    for image in IMAGES_OF_A_SQUARE:
        np.testing.assert_array_equal(posed(image(kernels)), wanted)
    np.testing.assert_array_equal(posed(-kernels), -wanted)
    np.testing.assert_array_equal(posed(wanted), wanted)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_turn_with_their_kernels(seed):
    generator = np.random.default_rng(seed)
    kernels, weights = generator.normal(size=(5, 5, 4)), generator.uniform(0, 1, (5, 5, 4))
    weights[0, 3] = 0
    kernels[0, 3] = np.nan
    wanted = posed(kernels, weights)
    for image in IMAGES_OF_A_SQUARE:
        np.testing.assert_array_equal(posed(image(kernels), image(weights)), wanted)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rectangles_are_mirrored_alone(seed):
    kernels = np.random.default_rng(seed).normal(size=(4, 7, 5))
    wanted = posed(kernels)
    for down, along in itertools.product((1, -1), (1, -1)):
        np.testing.assert_array_equal(posed(kernels[::down, ::along]), wanted)


def test_kernels_without_a_pose_do_no_harm():
    kernels = np.ones((5, 5, 4))
    kernels[..., 1] = 0
    kernels[2, 2, 2] = np.nan
    assert posed(kernels).shape == kernels.shape
    np.testing.assert_array_equal(posed(kernels)[..., :2], kernels[..., :2])


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("shape", [(6, 6), (5, 7)])
def test_what_is_found_in_the_pose_is_undone(family, shape):
    """Both draw the same, in the pose and out of it."""
    generator = np.random.default_rng(3)
    model = FAMILY[family].model
    low, high = (np.array(side)[:, None] for side in search_bounds(model, shape))
    flags = np.array(list(itertools.product((False, True), repeat=3))).T
    if shape[0] != shape[1]:
        flags[2] = False
    point = generator.uniform(low, high, (len(low), flags.shape[1]))
    gains = generator.normal(size=(len(model.terms), flags.shape[1]))

    def draw(point, gains):
        columns = basis_images(model, point, shape)
        return sum(gain[None, None, :] * c for gain, c in zip(gains, columns, strict=True))

    def both(point, gains, flags):
        pose = Pose(*flags)
        undone = draw(pose.undo_point(model, point), pose.undo_gains(model, list(gains)))
        return draw(point, list(gains)), pose.apply(undone)

    with jax.enable_x64(True):
        run = jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})
        in_pose, undone = run(jnp.asarray(point), jnp.asarray(gains), jnp.asarray(flags))
    np.testing.assert_allclose(undone, in_pose, atol=1e-12)


def test_bounds_turn_with_the_centre():
    held = jnp.array([[True], [False], [True], [False]])
    for swap in (False, True):
        pose = Pose(*(jnp.array([flag]) for flag in (True, False, swap)))
        found = pose.undo_held(FAMILY["dog"].model, held)[:, 0]
        np.testing.assert_array_equal(found, [not swap, swap, True, False])
