"""The compiled ascents of elliptic models against float64 quadrature and against themselves."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import scipy_families
from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import THOROUGH, FitConfig
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native import binding as native
from dogfit.kernels.types import Box, Effort
from scipy_families import draw

MODELS = {
    f"{name}_elliptic": GaussianModel(family.order, family.widths == 2, family.tied, elliptic=True)
    for name, family in scipy_families.PLAIN.items()
}
EFFORT = Effort(
    starts=6, steps=40, min_relative_energy=0.3, abandon_factor=32.0, min_separation=0.3, tolerance=1e-7
)

pytestmark = pytest.mark.skipif(not native.available(), reason="needs the C++ search")


def explained(kernel: np.ndarray, point: np.ndarray, name: str) -> float:
    """Energy of a kernel that a family explains, in float64."""
    matrix, _ = scipy_families.columns(name, np.asarray(point, np.float64)[None], len(kernel), slopes=False)
    matrix = matrix[0] - matrix[0].mean(axis=0)
    u, s, _ = np.linalg.svd(matrix / np.linalg.norm(matrix, axis=0), full_matrices=False)
    return float(np.sum((u[:, s > 1e-9 * s[0]].T @ kernel.ravel()) ** 2))


def noise(rows: int, size: int, seed: int = 0) -> np.ndarray:
    kernels = np.random.default_rng(seed).normal(size=(size, size, rows))
    kernels -= kernels.mean(axis=(0, 1))
    return (kernels / np.linalg.norm(kernels, axis=(0, 1))).astype(np.float32)


def random_points(rows: int, name: str, seed: int = 1) -> np.ndarray:
    low, high = scipy_families.bounds(name, 7)
    low[:3], high[:3] = (-2, -2, np.log(0.5)), (2, 2, np.log(2.0))
    uniform = np.random.default_rng(seed).uniform(low[:, None], high[:, None], (len(low), rows))
    return uniform.astype(np.float32)


def climb(kernels, points, name, energies=None, effort=EFFORT, only=""):
    low, high = scipy_families.bounds(name, kernels.shape[0])
    energies = jnp.ones((points.shape[0], points.shape[-1])) if energies is None else energies
    box = Box(*(jnp.asarray(side, jnp.float32)[:, None] for side in (low, high)))
    return native.climb(kernels, points, energies, MODELS[name], box, effort, only=only)


def starts(rows: int, name: str, count: int = 6) -> np.ndarray:
    return np.stack([random_points(rows, name, seed) for seed in range(count)])


def assert_same(one, other, rows=slice(None)) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[..., rows], np.asarray(b))


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("name", MODELS)
def test_evaluate_against_differences(name, size):
    """Energy, gradient and Hessian against differences of float64 quadrature."""
    rows, h = 6, 3e-4
    kernels, points = noise(rows, size), random_points(rows, name)
    energy, gradient, hessian = map(
        np.asarray, native.evaluate(jnp.asarray(kernels), jnp.asarray(points), MODELS[name])
    )
    p = len(points)
    for b in range(rows):
        scale = np.ones(p)
        scale[:2] = np.exp(points[2, b])
        steps = h * np.diag(scale)

        def at(*moves, b=b):
            return explained(kernels[..., b], points[:, b] + sum(moves, np.zeros(p)), name)

        assert energy[b] == pytest.approx(at(), abs=3e-6)
        # Two nearly dependent Gaussians have weights in the hundreds: float32 keeps three digits then.
        loose = 1e-3 if name == "dog_elliptic" else 1e-5
        slopes = [(at(s) - at(-s)) / (4 * h) for s in steps]
        np.testing.assert_allclose(gradient[:, b], slopes, atol=loose)
        pairs = [(a, c) for a in range(p) for c in range(a + 1)]
        for entry, (a, c) in zip(hessian[:, b], pairs, strict=True):
            s, t = steps[a], steps[c]
            curvature = (at(s, t) - at(s, -t) - at(-s, t) + at(-s, -t)) / (8 * h * h)
            assert entry == pytest.approx(curvature, abs=10 * loose, rel=10 * loose)


@pytest.mark.parametrize("ratio", [1.2, 8.0])
@pytest.mark.parametrize("sigma", [2.9, 4.0, 7.0])
def test_evaluate_wide_pairs(sigma, ratio):
    """A surround of 50 taps changes by a few thousandths over 7 taps."""
    kernels, rows = noise(12, 7), 12
    shapes = np.random.default_rng(0).uniform(-1.0, 1.0, (2, rows))
    first = np.array([[0.4], [-0.7], [np.log(sigma)], [np.log(ratio)]]) * np.ones((1, rows))
    points = np.concatenate([first, shapes]).astype(np.float32)
    energy, _, _ = native.evaluate(jnp.asarray(kernels), jnp.asarray(points), MODELS["dog_elliptic"])
    wanted = [explained(kernels[..., b], points[:, b], "dog_elliptic") for b in range(rows)]
    np.testing.assert_allclose(energy, wanted, atol=1e-4)


# An elliptic fit takes 10 to 37 s to compile: each family at 7x7, and two of them at other sizes.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [*((name, 7) for name in MODELS), ("d2_elliptic", 5), ("dog_elliptic", 9)]
)
def test_climb_finds_what_was_drawn(name, size):
    """No less energy than at the truth, under noise, in the whole fit; and the engine is the one meant."""
    rows, generator = 16, np.random.default_rng(size)
    low, high = scipy_families.bounds(name, size)
    low[:2], high[:2], low[2], high[2] = -size / 4, size / 4, np.log(0.7), np.log(size / 4)
    truth = generator.uniform(low, high, (rows, len(low)))
    functions, _ = scipy_families.columns(name, truth, size, slopes=False)
    images = np.einsum("btq,bq->bt", functions, generator.normal(size=functions[:, 0].shape))
    images /= images.std(axis=1, keepdims=True)
    kernels = (images + 0.2 * generator.normal(size=images.shape)).reshape(rows, size, size)
    result = fit_kernels(kernels.astype(np.float32), [name], config=FitConfig(engine="native"))
    centred = kernels - kernels.mean(axis=(1, 2), keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    known = [explained(unit[b], truth[b], name) for b in range(rows)]
    missed = np.asarray(result.r2_by_family)[:, 0] < np.array(known) - 1e-4
    assert missed.sum() <= (1 if MODELS[name].shared_amplitude else 0)


def test_climb_rows_are_independent():
    """A row does not depend on the others, their order or number."""
    rows, name = 600, "d1_elliptic"
    kernels, points = noise(rows, 7), starts(rows, name)
    whole = climb(jnp.asarray(kernels), jnp.asarray(points), name)
    order = np.random.default_rng(2).permutation(rows)
    assert_same(whole, climb(jnp.asarray(kernels[..., order]), jnp.asarray(points[..., order]), name), order)
    few = [3, 500, 17]
    assert_same(whole, climb(jnp.asarray(kernels[..., few]), jnp.asarray(points[..., few]), name), few)


def test_climb_starts_without_energy():
    """They are no starts; zero and spoilt rows have none."""
    rows, name = 20, "gaussian_elliptic"
    kernels, points = jnp.asarray(noise(rows, 7)), jnp.asarray(starts(rows, name))
    energies = jnp.ones((6, rows)).at[1:].set(0.0).at[0, 5].set(0.0)
    found = climb(kernels, points, name, energies)
    others = np.delete(np.arange(rows), 5)
    assert_same(found, [leaf[..., others] for leaf in climb(kernels, points[:1], name)], others)
    assert int(found.steps[5]) == int(found.n_agreeing[5]) == 0
    spoilt = kernels.at[0, 0, 7].set(jnp.nan).at[..., 9].set(0.0)
    found = climb(spoilt, points, name)
    np.testing.assert_array_equal(np.asarray(found.steps)[[7, 9]], 0)
    assert np.all(np.isfinite(found.point))


@pytest.mark.slow
def test_climb_by_other_builds():
    """Builds for other processors find the same, to rounding."""
    rows, name = 48, "d2_elliptic"
    kernels, points = noise(rows, 7, seed=5), starts(rows, name, 1)
    reached = []
    for only in native.instructions():
        found = climb(jnp.asarray(kernels), jnp.asarray(points), name, only=only)
        reached.append([explained(kernels[..., b], np.asarray(found.point)[:, b], name) for b in range(rows)])
    for one, other in itertools.combinations(np.array(reached), 2):
        assert np.mean(np.abs(one - other) < 1e-4) > 0.95


def test_climb_inside_jax():
    """Ascents inside jit, vmap and shard_map: the same as outside."""
    rows, name = 64, "dog_elliptic"
    kernels, points = jnp.asarray(noise(rows, 5)), jnp.asarray(starts(rows, name, 3))
    run = functools.partial(climb, name=name)
    plain = run(kernels, points)
    assert_same(plain, jax.jit(run)(kernels, points))
    batched = jax.vmap(run, in_axes=-1, out_axes=-1)(
        kernels.reshape(5, 5, 16, 4), points.reshape(*points.shape[:2], 16, 4)
    )
    assert_same(plain, [leaf.reshape(*leaf.shape[:-2], -1) for leaf in batched])
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec(None, None, "data")
    out = jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), "data"), plain)
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=out))
    assert_same(plain, sharded(kernels, points))


@pytest.mark.slow
def test_climb_thorough():
    """A thorough search takes as many starts as there may be."""
    kernels = np.random.default_rng(0).normal(size=(4, 5, 5)).astype(np.float32)
    usual, thorough = (
        fit_kernels(kernels, ["dog_d1_elliptic"], config=replace(config, engine="native"))
        for config in (FitConfig(), THOROUGH)
    )
    assert np.all(np.asarray(thorough.r2) >= np.asarray(usual.r2) - 1e-4)


@pytest.mark.slow
def test_climb_beside_xla():
    """Engines agree, and one fit is as good as many."""
    kernels = np.stack([draw("d1", 7, sigma=1.2, theta=0.3, e=(0.7, -0.3)) for _ in range(3)]).astype(
        np.float32
    )
    kernels += 0.05 * np.random.default_rng(0).normal(size=kernels.shape).astype(np.float32)
    results = {
        engine: fit_kernels(kernels, ["d1_elliptic"], config=FitConfig(engine=engine))
        for engine in ("native", "xla")
    }
    np.testing.assert_allclose(results["native"].r2, results["xla"].r2, atol=1e-4)
    alone = fit_kernels(kernels[1:2], ["d1_elliptic"], config=FitConfig(engine="native"))
    np.testing.assert_allclose(alone.r2, results["native"].r2[1:2], atol=1e-6)


def test_climb_broken_arguments():
    kernels, points = jnp.zeros((5, 5, 4)), jnp.zeros((3, 5, 4))
    with pytest.raises(ValueError, match="at most 128 starts"):
        climb(kernels, jnp.zeros((129, 5, 4)), "gaussian_elliptic")
    with pytest.raises(Exception, match=r"starts must be \[s, p, n\]"):
        jax.block_until_ready(climb(kernels, points, "dog_elliptic"))
    with pytest.raises(Exception, match=r"energies \[s, n\]"):
        jax.block_until_ready(climb(kernels, points, "gaussian_elliptic", jnp.ones((2, 4))))
