"""Initial kernels: shapes, moments, families told by the fitter, and distributions of a fit reproduced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn.initializers import lecun_normal, variance_scaling

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.families import BUILTIN_FAMILIES, render
from dogfit.initializers import Fitted, Shapes, dog_derivative
from dogfit.labels import label_fits

KEY = jax.random.key(0)
# One family compiles in a third of the time of four.
EDGES = Shapes({"d1": 1.0})


def kernels_of(init, count: int, size: int = 7, key=KEY) -> np.ndarray:
    return np.moveaxis(np.asarray(init(key, (size, size, 1, count)))[:, :, 0], -1, 0)


def norms(kernels) -> np.ndarray:
    return np.sqrt((np.asarray(kernels) ** 2).sum(axis=(0, 1, 2)))


@pytest.fixture(scope="module")
def fit():
    """Fits of drawings of known shares: half edges, a third blobs, the others bars."""
    generator = np.random.default_rng(5)

    def drawings(name: str, rows: int, gains: dict) -> np.ndarray:
        family = BUILTIN_FAMILIES[name]
        columns = {
            "offset": np.zeros(rows),
            "x0_px": generator.uniform(-0.3, 0.3, rows),
            "y0_px": generator.uniform(-0.3, 0.3, rows),
            "sigma_px": generator.uniform(0.8, 1.3, rows),
            **gains,
        }
        return np.asarray(
            render(family, jnp.asarray(np.stack([columns[n] for n in family.names], 1)), (7, 7))
        )

    edges = {"amplitude": np.ones(60), "theta_rad": generator.uniform(-3, 3, 60)}
    blobs = {"amplitude": np.where(np.arange(40) < 30, -1.0, 1.0)}
    bars = {"amplitude_1": -np.ones(20), "amplitude_2": np.zeros(20), "theta_rad": np.linspace(-1, 1, 20)}
    images = np.concatenate(
        [drawings("d1", 60, edges), drawings("gaussian", 40, blobs), drawings("d2", 20, bars)]
    )
    images /= np.linalg.norm(images, axis=(1, 2), keepdims=True)
    noise = generator.normal(size=(20, 7, 7))
    return fit_kernels(np.concatenate([images, noise]).astype(np.float32))


class TestContract:
    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [
            ((4, 9, 1, 3), jnp.bfloat16),
            *(
                pytest.param((*size, 1, 2), dtype, marks=pytest.mark.slow)
                for size in ((3, 3), (7, 7), (1, 5), (31, 31))
                for dtype in (jnp.float32, jnp.bfloat16)
            ),
        ],
    )
    def test_dog_derivative_shape_and_dtype(self, shape, dtype):
        kernel = dog_derivative()(KEY, shape, dtype)
        assert (kernel.shape, kernel.dtype) == (shape, dtype)
        assert np.isfinite(np.asarray(kernel, np.float32)).all()

    @pytest.mark.slow
    def test_dog_derivative_float64(self):
        with jax.enable_x64(True):
            kernel = dog_derivative(EDGES)(KEY, (5, 5, 1, 8), jnp.float64)
            assert kernel.dtype == jnp.float64
            wanted = lecun_normal()(jax.random.split(KEY, 3)[2], (5, 5, 1, 8), jnp.float64)
            np.testing.assert_allclose(norms(kernel), norms(wanted), rtol=1e-13)

    def test_dog_derivative_pure(self):
        """Is a pure function of the key."""
        init = dog_derivative(EDGES, noise=0.1)
        one = init(KEY, (5, 5, 1, 6))
        np.testing.assert_array_equal(one, init(KEY, (5, 5, 1, 6)))
        assert not np.array_equal(one, init(jax.random.key(1), (5, 5, 1, 6)))

    @pytest.mark.slow
    def test_dog_derivative_vmap(self):
        init = dog_derivative(EDGES, noise=0.1)
        several = jax.jit(jax.vmap(lambda key: init(key, (5, 5, 1, 6))))(jax.random.split(KEY, 3))
        assert several.shape == (3, 5, 5, 1, 6)
        np.testing.assert_allclose(several[1], init(jax.random.split(KEY, 3)[1], (5, 5, 1, 6)), atol=1e-6)

    @pytest.mark.slow
    def test_dog_derivative_flax(self):
        conv = nnx.Conv(6, 12, (7, 5), feature_group_count=6, kernel_init=dog_derivative(), rngs=nnx.Rngs(0))
        assert conv.kernel[...].shape == (7, 5, 1, 12)
        with pytest.raises(ValueError, match=r"\[h, w, 1, n\].*got \(3, 3, 6, 12\); set feature_group_count"):
            nnx.Conv(6, 12, (3, 3), kernel_init=dog_derivative(), rngs=nnx.Rngs(0))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (lambda: Shapes({"blob": 1.0}), "no family is called 'blob'"),
            (lambda: Shapes({"dog": 0.0}), "not all 0"),
            (lambda: Shapes(sigma_px=(2.0, 1.0)), "sigma_px must be a range within 0.3"),
            (lambda: Shapes(second=(-2.0, 1.0)), "second must be a range within -1 to 1"),
            (lambda: Shapes(center_px=-1.0), "center_px must be 0 or more"),
            (lambda: dog_derivative(noise=-0.1), "noise must be 0 or more"),
        ],
    )
    def test_dog_derivative_errors(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            wrong()


class TestNorms:
    def test_dog_derivative_norms(self):
        """Are those of Flax by default."""
        count, size = 4000, 5
        found = norms(dog_derivative(EDGES)(KEY, (size, size, 1, count))) ** 2
        usual = norms(lecun_normal()(jax.random.key(9), (size, size, 1, count))) ** 2
        # Variance 1/25 on each of 25 taps: the energy is 1 on average.
        assert found.mean() == pytest.approx(1, abs=4 * float(found.std()) / count**0.5)
        quantiles = np.linspace(0.05, 0.95, 10)
        np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(usual, quantiles), rtol=0.05)

    @pytest.mark.slow
    def test_dog_derivative_lent_norms(self):
        """Are lent by any initializer."""
        lender = variance_scaling(2.0, "fan_out", "uniform")
        found = norms(dog_derivative(EDGES, norm_of=lender)(KEY, (7, 7, 1, 50)))
        np.testing.assert_allclose(
            found, norms(lender(jax.random.split(KEY, 3)[2], (7, 7, 1, 50))), rtol=1e-5
        )


class TestShapes:
    def test_shapes_families(self):
        """With the shares of the default; the fitter need not find one family where two say the same."""
        fit = fit_kernels(kernels_of(dog_derivative(), 400))
        assert np.median(fit.r2) > 0.99999
        assert fit.r2.min() > 0.99
        shares = np.bincount(fit.family, minlength=4) / 400
        assert np.all(np.abs(shares - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5), shares

    @pytest.mark.slow
    def test_shapes_parameters(self):
        """Parameters lie where they were asked for."""
        shapes = Shapes({"d1": 1.0}, sigma_px=(0.8, 1.4), center_px=0.3)
        found = fit_kernels(kernels_of(dog_derivative(shapes), 300), ["d1"]).parameters["d1"].T
        _, _, theta, x0, y0, sigma = found
        assert 0.79 < sigma.min() < 0.85 and 1.33 < sigma.max() < 1.41
        for center in (x0, y0):
            assert -0.31 < center.min() < -0.27 and 0.27 < center.max() < 0.31
        # Uniform: log sigma over its range, and the angle over the circle, four standard errors wide.
        assert np.log(sigma).mean() == pytest.approx(np.log(0.8 * 1.4) / 2, abs=4 * 0.56 / 12**0.5 / 300**0.5)
        assert abs(np.exp(1j * theta).mean()) < 4 / 600**0.5 * 2**0.5

    def test_shapes_weights(self):
        """Families come in their shares."""
        kernels = kernels_of(dog_derivative(Shapes({"gaussian": 3.0, "d1": 1.0})), 3000)
        # A Gaussian is far from zero on average, a derivative within half a tap and truncation is not.
        mean = np.abs(kernels.mean(axis=(1, 2))) / np.linalg.norm(kernels, axis=(1, 2))
        share = np.mean(mean > 0.03)
        assert share == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 3000) ** 0.5 + 0.01)

    def test_shapes_signs(self):
        kernels = kernels_of(dog_derivative(Shapes({"gaussian": 1.0})), 2000)
        assert np.mean(kernels.mean(axis=(1, 2)) > 0) == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)

    @pytest.mark.slow
    def test_shapes_all_families(self):
        """Every family can be drawn."""
        kernels = kernels_of(dog_derivative(Shapes(dict.fromkeys(BUILTIN_FAMILIES, 1.0))), 200)
        assert np.isfinite(kernels).all()
        assert np.all(norms(np.moveaxis(kernels, 0, -1)[:, :, None]) > 0)

    @pytest.mark.slow
    def test_dog_derivative_noise(self):
        """Noise is relative to the kernel."""
        plain, noisy = (kernels_of(dog_derivative(EDGES, noise=share), 2000) for share in (0.0, 0.5))
        cosine = np.sum(plain * noisy, axis=(1, 2)) / np.sum(plain**2, axis=(1, 2))
        # Of the same key only the noise differs: the kernel keeps 1 of 1 + 0.5² of the energy.
        assert np.mean(cosine**2) == pytest.approx(1 / 1.25, abs=0.02)


class TestFitted:
    @pytest.mark.slow
    def test_fitted_labels(self, fit):
        """Keeps the shares of labels."""
        count = 600
        good = np.flatnonzero(fit.r2 >= 0.8)
        assert 110 < len(good) < 125
        templates = fit.templates()[good].reshape(len(good), -1)
        templates /= np.linalg.norm(templates, axis=1, keepdims=True)
        drawn = kernels_of(dog_derivative(fit), count).reshape(count, -1)
        cosine = drawn @ templates.T / np.linalg.norm(drawn, axis=1, keepdims=True)
        assert cosine.max(axis=1).min() > 0.99999  # each is one of the fitted
        labels = label_fits(fit)[good]
        found = labels[cosine.argmax(axis=1)]
        for label in np.unique(labels):
            share = np.mean(labels == label)
            slack = 4 * (share * (1 - share) / count) ** 0.5
            assert np.mean(found == label) == pytest.approx(share, abs=slack), label

    @pytest.mark.slow
    def test_fitted_refit(self, fit):
        """The fitter finds the same labels again."""
        again = label_fits(fit_kernels(kernels_of(dog_derivative(Fitted(fit, jitter=0.02)), 300)))
        wanted = label_fits(fit)[fit.r2 >= 0.8]
        for start in ("d1", "on", "off"):
            share = np.mean([label.startswith(start) for label in wanted])
            found = np.mean([label.startswith(start) for label in again])
            assert found == pytest.approx(share, abs=4 * (share * (1 - share) / 300) ** 0.5)

    def test_fitted_jitter(self):
        """Jitter moves the parameters by as much."""
        families = ("gaussian", "d1")
        edge = fit_kernels(
            kernels_of(dog_derivative(Shapes({"d1": 1.0}, sigma_px=(0.8, 1.0))), 1, 5), families
        )
        jittered = kernels_of(dog_derivative(Fitted(edge, jitter=0.1)), 400, 5)
        _, _, theta, x0, y0, sigma = fit_kernels(jittered, families).parameters["d1"].T
        _, _, theta0, x00, y00, sigma0 = edge.parameters["d1"][0]
        for error in (np.angle(np.exp(1j * (theta - theta0))), x0 - x00, y0 - y00, np.log(sigma / sigma0)):
            assert error.std() == pytest.approx(0.1, rel=0.15)
            assert abs(error.mean()) < 0.02

    @pytest.mark.slow
    def test_fitted_other_size(self, fit):
        edges = jax.tree.map(lambda leaf: leaf[:60], fit)
        larger = kernels_of(dog_derivative(edges), 20, size=9)
        assert fit_kernels(larger, ["d1"]).r2.min() > 0.999

    @pytest.mark.slow
    def test_fitted_none_good(self, fit):
        """No kernel good enough."""
        with pytest.raises(ValueError, match=r"none of the 140 fitted kernels has an R² of 1.1"):
            Fitted(fit, least_r2=1.1)
