"""The fitter inside other JAX code: jit, vmap, grad, scan, shard_map; and as a stream."""

import functools
import os
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec
from scipy.optimize import least_squares

from dogfit.devices import data_mesh, row_sharding
from dogfit.fitting.api import fit_kernel, fit_kernels, fit_stream
from dogfit.fitting.batching import Task
from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES, render
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.program import fit_sharded
from fit_drawings import ENGINES, leaves_equal
from scipy_families import basis as reference_basis
from scipy_families import bounds, draw
from scipy_reference import orthonormal

SIZE, ONE_FAMILY = 5, ("gaussian",)
QUICK = FitConfig(effort=2)
# Compiling is what takes the time.
UNOPTIMISED = {"xla_backend_optimization_level": 0}
# Other batch shapes add in another order: a few units in the last place of the energy, and what a flat
# optimum makes of them in the parameters.
R2_APART, PARAMETERS_APART = 1e-5, 5e-3


def noisy_drawings(size: int, rows: int, families: tuple[str, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    out = []
    for row in range(rows):
        x0, y0 = generator.uniform(-0.15 * size, 0.15 * size, 2)
        family, sigma = families[row % len(families)], generator.uniform(0.6, 0.25 * size)
        out.append(draw(family, size, x0=x0, y0=y0, sigma=sigma, theta=generator.uniform(-3, 3)))
    images = np.stack(out)
    noise = 0.1 * images.std(axis=(1, 2), keepdims=True) * generator.normal(size=images.shape)
    return (images + noise).astype(np.float32)


def assert_same_fits(one, other):
    assert (one.family_names, one.unidentifiable, one.size) == (
        other.family_names,
        other.unidentifiable,
        other.size,
    )
    np.testing.assert_array_equal(one.family, other.family)
    np.testing.assert_array_equal(one.status, other.status)
    np.testing.assert_allclose(one.r2_by_family, other.r2_by_family, atol=R2_APART)
    np.testing.assert_allclose(one.rmse, other.rmse, rtol=1e-3)
    for family, values in one.parameters.items():
        np.testing.assert_allclose(
            values, other.parameters[family], rtol=PARAMETERS_APART, atol=PARAMETERS_APART
        )


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    return noisy_drawings(SIZE, 24, ONE_FAMILY, 40)


@pytest.fixture(scope="module", params=ENGINES)
def config(request) -> FitConfig:
    return replace(QUICK, engine=request.param)


@pytest.fixture(scope="module")
def plain(kernels, config):
    return fit_kernels(kernels, ONE_FAMILY, config=config)


@pytest.fixture(scope="module")
def fit(config):
    return functools.partial(fit_kernel, families=ONE_FAMILY, config=config)


def compiled(function):
    return jax.jit(function, compiler_options=UNOPTIMISED)


def test_fit_kernel_row(kernels, plain, fit):
    """One kernel equals its row."""
    one = fit(kernels[3])
    assert one.r2.shape == ()
    assert one.parameters["gaussian"].shape == (5,)
    assert_same_fits(jax.tree.map(lambda leaf: leaf[None], one), jax.tree.map(lambda leaf: leaf[3:4], plain))


def test_fit_kernel_jit(kernels, plain, fit):
    score = compiled(lambda kernel: fit(2.0 * kernel).r2)
    np.testing.assert_allclose(score(kernels[5]), plain.r2[5], atol=R2_APART)


def test_fit_kernel_vmap(kernels, plain, fit):
    """Nested, as the batch axes are merged into one block."""
    nested = compiled(jax.vmap(jax.vmap(fit)))(kernels.reshape(4, 6, SIZE, SIZE))
    assert nested.r2.shape == (4, 6)
    assert_same_fits(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), nested), plain)


@pytest.mark.slow
def test_fit_kernel_scan(kernels, plain, fit):
    """As in training: what a step finds goes on to the next."""

    def step(best, kernel):
        result = fit(kernel)
        return jnp.maximum(best, result.r2), result

    best, scanned = compiled(lambda w: lax.scan(step, jnp.float32(0), w))(kernels[:6])
    assert_same_fits(scanned, jax.tree.map(lambda leaf: leaf[:6], plain))
    assert best == np.max(scanned.r2)


def test_fit_kernel_shard_map(kernels, plain, fit):
    """Shard map over eight devices."""
    spec = PartitionSpec("data")
    fit_all = compiled(jax.shard_map(jax.vmap(fit), mesh=data_mesh(), in_specs=spec, out_specs=spec))
    program = fit_all.lower(kernels).compile()
    assert_no_collectives(program)
    sharded = program(kernels)
    assert len(sharded.r2.sharding.device_set) == 8
    assert_same_fits(sharded, plain)


def assert_no_collectives(program):
    text = program.as_text()
    assert text is not None
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective"))


def test_fit_kernels_mesh(kernels, plain, config):
    """Fit kernels over a mesh."""
    mesh = data_mesh()
    assert_same_fits(fit_kernels(kernels, ONE_FAMILY, config=config, mesh=mesh), plain)
    (streamed,) = fit_stream([kernels], ONE_FAMILY, config=config, mesh=mesh)
    assert_same_fits(streamed, plain)
    # As many as one call takes, so that it is compiled once.
    many = np.zeros((Task(plain.families, (), config, (SIZE, SIZE), mesh).rows, SIZE, SIZE), np.float32)
    program = fit_sharded.lower(many, None, {}, plain.families, (), config, mesh).compile()
    assert_no_collectives(program)
    assert program.output_shardings.r2.is_equivalent_to(row_sharding(mesh), 1)


@pytest.mark.slow
def test_fit_kernels_mesh_weights_and_bounds(kernels):
    """Those of each kernel go where it goes."""
    weights = np.random.default_rng(8).uniform(0.5, 1, kernels.shape)
    edge = np.linspace(-1, 1, len(kernels))
    given = {"weights": weights, "bounds": {"x0_px": (edge - 0.5, edge + 0.5), "sigma_px": (0.5, 2.0)}}
    plain, sharded = (
        fit_kernels(kernels, ONE_FAMILY, config=QUICK, mesh=mesh, **given) for mesh in (None, data_mesh())
    )
    assert_same_fits(sharded, plain)


@pytest.mark.slow
def test_fit_kernel_shard_map_default():
    """All default families with the default engine; devices without a kernel of their own work at padding."""
    kernels = noisy_drawings(7, 24, ("dog", "d1", "d2"), 42)
    spec = PartitionSpec("data")
    fit_all = jax.jit(jax.shard_map(jax.vmap(fit_kernel), mesh=data_mesh(), in_specs=spec, out_specs=spec))
    program = fit_all.lower(kernels).compile()
    assert_no_collectives(program)
    sharded, plain = program(kernels), fit_kernels(kernels)
    np.testing.assert_array_equal(sharded.family, plain.family)
    np.testing.assert_allclose(sharded.r2, plain.r2, atol=1e-4)
    assert np.mean(np.abs(sharded.r2_by_family - plain.r2_by_family) < 1e-4) > 0.97


@pytest.mark.slow
def test_fit_kernel_vmap_many(kernels, plain, fit):
    """Vmap over more kernels than fill whole blocks."""
    many = np.concatenate([kernels] * 4)[:83]
    repeated = jax.tree.map(lambda leaf: np.concatenate([leaf] * 4)[:83], plain)
    assert_same_fits(compiled(jax.vmap(fit))(many), repeated)


@compiled
@jax.vmap
def gradients_of(kernel):
    """((R², fit), gradient), at size 3, where of all families two are left, so that a choice is made."""

    def score(kernel):
        result = fit_kernel(kernel, FAMILIES)
        return result.r2, result

    return jax.value_and_grad(score, has_aux=True)(kernel)


@pytest.mark.slow
def test_fit_kernel_template_gradient(kernels):
    """By the envelope theorem that of the residual's energy is twice the residual; the template moves."""

    def energy(kernel):
        fit = fit_kernel(kernel, ONE_FAMILY, config=QUICK)
        (template,) = render(BUILTIN_FAMILIES["gaussian"], fit.parameters["gaussian"][None], kernel.shape)
        return jnp.sum((kernel - template) ** 2), kernel - template

    slopes, residuals = compiled(jax.vmap(jax.grad(energy, has_aux=True)))(kernels[:8])
    # What a search in float32 leaves of the slope: the root of its tolerance.
    np.testing.assert_allclose(slopes, 2 * residuals, atol=1e-7**0.5 * np.abs(kernels[:8]).max())


class TestGradient:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls):
        kernels = noisy_drawings(3, 12, ("gaussian", "d1"), 41)
        (_, result), gradient = gradients_of(kernels)
        return kernels, result, np.asarray(gradient)

    def test_fit_kernel_gradient_value(self, found):
        """Value is that of plain fits."""
        kernels, result, _ = found
        plain = fit_kernels(kernels)
        assert set(plain.family.tolist()) == {0, 1}
        assert {name for name, _ in plain.unidentifiable} == {"dog", "d2"}
        assert_same_fits(result, plain)

    def test_fit_kernel_gradient_differences(self, found):
        """The reference refits with SciPy in float64 at every displaced kernel."""
        kernels, result, gradients = found
        step = 1e-3
        for row, gradient in enumerate(gradients):
            family = result.family_names[int(result.family[row])]
            x0, y0, sigma = np.asarray(result.parameters[family], float)[row, -3:]
            low, high = bounds(family, 3)
            start = np.clip([x0, y0, np.log(sigma)], low + 1e-6, high - 1e-6)

            def r2(kernel, family=family, start=start, box=(low, high)):
                w = kernel.ravel() - kernel.mean()

                def residual(x):
                    q = orthonormal(reference_basis(family, x, 3))
                    return w - q @ (q.T @ w)

                found = least_squares(residual, start, bounds=box, xtol=1e-12, ftol=1e-14, gtol=1e-12)
                return 1 - 2 * found.cost / (w @ w)

            kernel = kernels[row].astype(float)
            assert r2(kernel) == pytest.approx(float(result.r2[row]), abs=1e-5)
            wanted = np.zeros((3, 3))
            for place in np.ndindex(3, 3):
                shift = np.zeros((3, 3))
                shift[place] = step * kernel.std()
                wanted[place] = (r2(kernel + shift) - r2(kernel - shift)) / (2 * shift[place])
            # R² does not change with gain or offset.
            assert abs(np.sum(gradient * kernel)) < 1e-4
            assert abs(np.sum(gradient)) < 1e-4 * max(1.0, np.abs(gradient).max())
            np.testing.assert_allclose(gradient, wanted, atol=0.02 * np.abs(wanted).max())

    def test_fit_kernel_gradient_broken_rows(self, found):
        """Kernels that cannot be fitted have no gradient but harm none."""
        kernels, _, gradients = found
        spoilt = kernels.copy()
        spoilt[1], spoilt[4, 0, 0] = 1.0, np.nan
        (value, _), gradient = gradients_of(spoilt)
        good = np.delete(np.arange(12), [1, 4])
        assert np.all(np.isnan(np.asarray(value)[[1, 4]]))
        np.testing.assert_allclose(gradient[good], gradients[good], rtol=1e-4, atol=1e-4)


class TestStream:
    def stream(self, blocks):
        return fit_stream(blocks, ONE_FAMILY, config=QUICK)

    def test_fit_stream_blocks(self, kernels):
        """Blocks of any length come in order."""
        many = np.concatenate([kernels * (1 + i) for i in range(70)])
        cuts = [1, 701, 701, 704, len(many) - 5]
        blocks = np.split(many, cuts)
        results = list(self.stream(iter(blocks)))
        assert [len(r) for r in results] == [len(b) for b in blocks]
        whole = fit_kernels(many, ONE_FAMILY, config=QUICK)
        edges = [0, *cuts, len(many)]
        for result, start, stop in zip(results, edges[:-1], edges[1:], strict=True):
            assert leaves_equal(result, jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], whole))

    def test_fit_stream_empty(self):
        """No blocks give nothing."""
        assert list(self.stream([])) == []

    def test_fit_stream_looks_ahead(self, kernels):
        """Looks ahead by a bounded number of blocks."""
        drawn = 0

        def endless() -> Iterator[np.ndarray]:
            nonlocal drawn
            while True:
                drawn += 1
                yield kernels[:2]

        stream = self.stream(endless())
        assert drawn == 0
        for taken in range(1, 5):
            next(stream)
            assert taken <= drawn <= taken + 2 * (os.cpu_count() or 1) + 1

    def test_fit_stream_bad_block(self, kernels):
        """A bad block is told when it comes."""
        with pytest.raises(ValueError, match=r"must be \[n, h, w\], got shape \(5, 5\)"):
            list(self.stream([kernels[:2], kernels[0]]))

    def test_fit_stream_device_arrays(self, kernels):
        """Arrays on the device are taken."""
        (result,) = self.stream([jnp.asarray(kernels)])
        assert leaves_equal(result, fit_kernels(kernels, ONE_FAMILY, config=QUICK))
