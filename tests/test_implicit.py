"""How an optimum follows its kernel, where both are known: kernels that a model draws without rest."""

import jax
import jax.numpy as jnp
import numpy as np

from dogfit.fitting.implicit import follow_optimum
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.products import whiten
from dogfit.kernels.types import Box

SHAPE = (5, 6)
GAUSSIAN = GaussianModel(0, profile="sampled")
# One each that is free, that is no fit, and that lies on a bound along x.
POINT = np.array([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.2], [0.1, 0.2, -0.1]])
FITTED = np.array([True, False, True])
BOX = Box(np.full((3, 1), -2.0), np.array([[0.5], [2.0], [2.0]]))


def test_follow_optimum_drawn_kernels():
    """Kernels drawn at points that move take the optimum along; on a bound, all but what is held."""

    def draw(point):
        ((image, _),) = GAUSSIAN.varying_images(list(point), SHAPE)
        return whiten(image, None)

    def follow(images):
        return follow_optimum(GAUSSIAN, jnp.asarray(POINT), images, None, BOX, jnp.asarray(FITTED))

    @jax.jit
    def moved(along):
        images, change = jax.jvp(draw, (jnp.asarray(POINT),), (along,))
        return jax.jvp(follow, (images,), (change,))

    along = np.array([[0.2, 0.3, 0.0], [-0.5, 0.1, 0.4], [0.7, -0.6, 0.3]])
    with jax.enable_x64(True):
        point, step = moved(along)
    np.testing.assert_array_equal(point, POINT)
    np.testing.assert_allclose(step, np.where(FITTED, along, 0.0), atol=1e-9)
