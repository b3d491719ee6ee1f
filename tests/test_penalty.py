"""The penalty against fits, finite differences and NumPy; inside jit, vmap, shard_map and a training step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from dogfit.devices import data_mesh
from dogfit.fitting.api import fit_kernels
from dogfit.fitting.penalty import QUICK, depthwise_kernels, dog_penalty
from scipy_families import draw

SIZE, FAMILIES = 5, ("gaussian", "d1")


def noisy_drawings(rows: int, noise: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    images = np.stack(
        [
            draw(
                FAMILIES[row % 2],
                SIZE,
                x0=generator.uniform(-0.7, 0.7),
                y0=generator.uniform(-0.7, 0.7),
                sigma=generator.uniform(0.6, 1.2),
                theta=generator.uniform(-3, 3),
            )
            for row in range(rows)
        ]
    )
    images /= np.linalg.norm(images, axis=(1, 2), keepdims=True)
    return images + noise / SIZE * generator.normal(size=images.shape)


penalty = functools.partial(dog_penalty, families=FAMILIES)
compiled = jax.jit(penalty, static_argnames="reduce")
with_gradient = jax.jit(jax.value_and_grad(penalty), static_argnames="reduce")


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    return noisy_drawings(16, 0.4).astype(np.float32)


@pytest.fixture(scope="module")
def shares(kernels) -> np.ndarray:
    return np.asarray(compiled(kernels, reduce="none"))


class TestValue:
    def test_dog_penalty_of_full_fit(self, kernels, shares):
        """Is the least unexplained share of a full fit."""
        fit = fit_kernels(kernels, FAMILIES)
        np.testing.assert_allclose(shares, 1 - fit.r2_by_family.max(axis=1), atol=1e-5)
        assert with_gradient(kernels)[0] == pytest.approx(shares.mean(), abs=1e-6)
        # The choice by BIC is another: it charges for parameters.
        assert np.all(shares <= 1 - fit.r2 + 1e-5)

    @pytest.mark.slow
    def test_dog_penalty_energy(self, kernels, shares):
        """Energy counts kernels by their energy."""
        scaled = kernels * np.geomspace(0.01, 10, len(kernels), dtype=np.float32)[:, None, None]
        energy = ((scaled - scaled.mean(axis=(1, 2), keepdims=True)) ** 2).sum(axis=(1, 2))
        wanted = np.sum(energy * shares) / energy.sum()
        assert compiled(scaled, reduce="energy") == pytest.approx(wanted, abs=1e-5)
        assert compiled(1e-8 * scaled, reduce="energy") == pytest.approx(wanted, abs=1e-5)

    def test_dog_penalty_members(self):
        """Members of a family have none."""
        members = noisy_drawings(16, 0.0).astype(np.float32)
        assert np.mean(compiled(members, reduce="none")) < 1e-5

    @pytest.mark.parametrize(
        "turn",
        [
            lambda w: np.rot90(w, axes=(1, 2)),
            lambda w: w.swapaxes(1, 2),
            lambda w: w[:, ::-1],
            lambda w: 3.0 - 1e3 * w,
        ],
        ids=["turned", "transposed", "mirrored", "of other gain and offset"],
    )
    def test_dog_penalty_images(self, kernels, shares, turn):
        """Is the same for kernels."""
        np.testing.assert_allclose(compiled(turn(kernels).copy(), reduce="none"), shares, atol=2e-4)

    def test_depthwise_kernels_layouts(self, kernels):
        """Layouts are told by their one."""
        flax, torch = np.moveaxis(kernels, 0, -1)[:, :, None], kernels[:, None]
        for layout in (kernels, flax, torch):
            np.testing.assert_array_equal(depthwise_kernels(jnp.asarray(layout)), kernels)
        for oblong in (np.ones((6, 5, 1, 2)), np.ones((2, 1, 6, 5)), np.ones((2, 6, 5))):
            assert depthwise_kernels(jnp.asarray(oblong)).shape == (2, 6, 5)

    @pytest.mark.slow
    def test_dog_penalty_low_precision(self, kernels):
        """Low precision is fitted in float32."""
        value, gradient = with_gradient(jnp.asarray(kernels, jnp.bfloat16))
        assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
        assert value == pytest.approx(float(compiled(kernels)), abs=5e-3)


class TestGradient:
    @pytest.mark.slow
    def test_dog_penalty_gradient_differences(self):
        """Displaced kernels are fitted anew: that templates may count as constant is what is tested."""
        step, rows, ways = 1e-5, 3, 3

        @jax.jit
        def shares_and_gradient(kernels):
            def summed(kernels):
                each = dog_penalty(kernels, ["d1"], reduce="none")
                return jnp.sum(each), each

            gradient, each = jax.grad(summed, has_aux=True)(kernels)
            return each, gradient

        kernels = noisy_drawings(2 * rows, 0.4)[1::2]
        directions = np.random.default_rng(1).normal(size=(ways, *kernels.shape))
        moved = [kernels + sign * step * way for sign in (1, -1) for way in directions]
        with jax.enable_x64(True):
            shares, gradient = map(np.asarray, shares_and_gradient(np.concatenate([kernels, *moved])))
        assert gradient.dtype == np.float64
        ahead, behind = shares[rows:].reshape(2, ways, rows)
        wanted = np.einsum("dnhw,nhw->dn", directions, gradient[:rows])
        np.testing.assert_allclose((ahead - behind) / (2 * step), wanted, rtol=1e-5, atol=1e-7)
        assert np.abs(wanted).max() > 0.1

    @pytest.mark.parametrize("reduce", ["mean", pytest.param("energy", marks=pytest.mark.slow)])
    def test_dog_penalty_gradient_scale_and_offset(self, kernels, reduce):
        """Saves nothing by scale or offset."""
        gradient = np.asarray(with_gradient(kernels, reduce=reduce)[1])
        assert abs(np.sum(gradient * kernels)) < 1e-4 * np.abs(gradient).max()
        assert np.abs(gradient.sum(axis=(1, 2))).max() < 1e-4 * np.abs(gradient).max()

    @pytest.mark.slow
    def test_dog_penalty_gradient_faint(self, kernels):
        """Faint kernels are pulled gently by energy."""
        faint = kernels.copy()
        faint[0] *= 1e-3
        pull = {r: np.linalg.norm(with_gradient(faint, reduce=r)[1][0]) for r in ("mean", "energy")}
        usual = {r: np.linalg.norm(with_gradient(kernels, reduce=r)[1][0]) for r in ("mean", "energy")}
        assert pull["mean"] == pytest.approx(1e3 * usual["mean"], rel=1e-2)
        assert pull["energy"] < 1e-2 * usual["energy"]

    @pytest.mark.parametrize("reduce", ["mean", pytest.param("energy", marks=pytest.mark.slow)])
    def test_dog_penalty_broken_kernels(self, kernels, reduce):
        """Kernels without a shape have none and harm none."""
        sound_value, sound = with_gradient(kernels, reduce=reduce)
        spoilt = kernels.copy()
        spoilt[:6] = 0.0
        spoilt[1], spoilt[2, 1, 1], spoilt[3, 0, 0], spoilt[4, 2] = 0.7, np.nan, -np.inf, 1e-30
        spoilt[5] = 1e-13 * kernels[5]
        value, gradient = with_gradient(spoilt, reduce=reduce)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert np.all(np.asarray(gradient)[:6] == 0)
        if reduce == "mean":
            assert value < sound_value
            np.testing.assert_allclose(gradient[6:], sound[6:], atol=1e-5)

    def test_dog_penalty_gradient_one_search(self, kernels):
        """Loops and foreign calls are the search; the gradient has those of the value and no others."""

        def searches(function) -> list[int]:
            program = str(jax.make_jaxpr(function)(kernels))
            return [program.count(word) for word in ("while[", "ffi_call[")]

        assert sum(searches(penalty)) > 0
        assert searches(jax.value_and_grad(penalty)) == searches(penalty)


class TestInside:
    @pytest.mark.slow
    def test_dog_penalty_vmap(self, kernels, shares):
        values = jax.jit(jax.vmap(penalty))(kernels.reshape(4, 4, SIZE, SIZE))
        np.testing.assert_allclose(values, shares.reshape(4, 4).mean(axis=1), atol=1e-5)

    @pytest.mark.slow
    def test_dog_penalty_shard_map(self, kernels):
        def mean(own):
            return lax.pmean(penalty(own), "data")

        split = PartitionSpec("data")
        sharded = jax.shard_map(mean, mesh=data_mesh(), in_specs=split, out_specs=PartitionSpec())
        value, gradient = jax.jit(jax.value_and_grad(sharded))(kernels)
        wanted_value, wanted = with_gradient(kernels)
        assert value == pytest.approx(float(wanted_value), abs=1e-5)
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)

    @pytest.mark.slow
    def test_dog_penalty_training(self):
        """Training by it alone makes members of noise."""
        noise = np.random.default_rng(2).normal(size=(SIZE, SIZE, 1, 8)).astype(np.float32)
        optimiser = optax.adam(0.05)

        def step(state, _):
            weights, moments = state
            value, gradient = jax.value_and_grad(penalty)(weights)
            updates, moments = optimiser.update(gradient, moments)
            return (optax.apply_updates(weights, updates), moments), value

        _, values = jax.jit(lambda w: lax.scan(step, (w, optimiser.init(w)), length=60))(noise)
        assert values[0] > 0.6
        assert values[-1] < 0.1
        assert np.isfinite(values).all()


class TestErrors:
    @pytest.mark.parametrize(
        "shape", [(5, 5), (5, 5, 3, 8), (5, 5, 1, 1, 8), (1, 5, 5, 8)], ids=lambda shape: str(len(shape))
    )
    def test_dog_penalty_shape_errors(self, shape):
        """Shapes that are not depthwise."""
        with pytest.raises(ValueError, match=r"\[h, w, 1, n\] or \[n, 1, h, w\], got shape"):
            dog_penalty(jnp.zeros(shape))

    def test_dog_penalty_no_kernels(self):
        """Nothing has nothing unexplained, and no gradient."""
        nothing = jnp.zeros((0, 5, 5))
        for reduce in ("mean", "energy"):
            value, gradient = with_gradient(nothing, reduce=reduce)
            assert value == 0
            assert gradient.shape == (0, 5, 5)
        assert compiled(nothing, reduce="none").shape == (0,)

    def test_dog_penalty_errors(self):
        with pytest.raises(ValueError, match="reduce must be one of mean, energy, none, got 'sum'"):
            dog_penalty(jnp.zeros((2, 5, 5)), reduce="sum")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="floating-point numbers, got int32"):
            dog_penalty(jnp.zeros((2, 5, 5), jnp.int32))
        with pytest.raises(ValueError, match="kernel sides must be 3 to 51"):
            dog_penalty(jnp.zeros((2, 2, 2)))


@pytest.mark.slow
def test_dog_penalty_nested_families():
    """What lets the Gaussian be left out of the search."""
    kernels = noisy_drawings(12, 0.3, seed=3).astype(np.float32)
    scores = fit_kernels(kernels, ("gaussian", "dog"), config=QUICK).r2_by_family
    assert np.all(scores[:, 1] >= scores[:, 0] - 1e-3)
