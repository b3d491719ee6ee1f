"""The compiled search against float64 formulas of its own, SciPy, and itself in other arrangements."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from scipy.special import erf

from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.fitting.family_names import ROUND_FAMILIES
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native import binding as native
from dogfit.kernels.tuning import native_effort
from dogfit.kernels.types import Box, Budget
from scipy_reference import Reference

MODELS = {name: BUILTIN_FAMILIES[name].model for name in ROUND_FAMILIES}
SINGLE = ("gaussian", "dog", "d1", "d2")

needs_build = pytest.mark.skipif(not native.available(), reason="needs the C++ search")


def box(model: GaussianModel, size: int) -> tuple[np.ndarray, np.ndarray]:
    low = [-size / 2, -size / 2, np.log(0.3), np.log(1.5 if model.shared_amplitude else 1.1), 0.0]
    high = [size / 2, size / 2, np.log(size), np.log(8.0), 1.0]
    return np.array(low[: len(model.names)], np.float32), np.array(high[: len(model.names)], np.float32)


def columns(point: np.ndarray, model: GaussianModel, size: int) -> np.ndarray:
    """Centred basis `[size * size, q]` in float64: sigma**n times integrals of derivatives."""

    def profile(order, center, sigma):
        z = (np.arange(size + 1) - size / 2 - center) / sigma
        density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        return np.diff([erf(z / np.sqrt(2)) / 2, density, -z * density][order])

    def image(ratio, i, j):
        sigma = np.exp(point[2]) * ratio
        return np.outer(profile(j, point[1], sigma), profile(i, point[0], sigma)).ravel()

    orders = [(model.order - j, j) for j in range(model.order + 1)]
    out = [image(1.0, *o) for o in orders]
    if model.two_widths:
        wide = [image(np.exp(point[3]), *o) for o in orders]
        out = (
            [a - point[4] * b for a, b in zip(out, wide, strict=True)]
            if model.shared_amplitude
            else out + wide
        )
    return np.stack([c - c.mean() for c in out], axis=1)


def explained(kernel: np.ndarray, point: np.ndarray, model: GaussianModel) -> float:
    """Energy of a kernel that the model explains, in float64."""
    point = np.asarray(point, np.float64)
    matrix = columns(point, model, len(kernel))
    scale = np.linalg.norm(matrix, axis=0)
    u, s, _ = np.linalg.svd(matrix / np.where(scale > 0, scale, 1.0), full_matrices=False)
    return float(np.sum((u[:, s > 1e-9 * s[0]].T @ kernel.ravel()) ** 2))


def unit(kernels: np.ndarray) -> np.ndarray:
    """Centred, of unit energy, float32; batch last."""
    kernels = kernels - kernels.mean(axis=(0, 1))
    return (kernels / np.linalg.norm(kernels, axis=(0, 1))).astype(np.float32)


def noise(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(size, size, rows)))


def search(kernels, names=tuple(MODELS), only="", **changes):
    """Search with the usual effort, changed."""
    models = tuple(MODELS[name] for name in names)
    boxes = [search_box(model, kernels.shape[:2], jnp.float32) for model in models]
    efforts = [native_effort(model, Budget())._replace(**changes) for model in models]
    return native.search_families(kernels, models, boxes, efforts, only=only)


def assert_same(one, other, rows=slice(None)) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[..., rows], np.asarray(b))


def random_points(rows: int, model: GaussianModel, seed: int = 1) -> np.ndarray:
    low, high = (
        np.array([-2, -2, np.log(0.5), np.log(1.4), 0.1]),
        np.array([2, 2, np.log(2.0), np.log(6), 0.9]),
    )
    p = len(model.names)
    uniform = np.random.default_rng(seed).uniform(low[:p, None], high[:p, None], (p, rows))
    return uniform.astype(np.float32)


@needs_build
@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("name", MODELS)
def test_evaluate_against_differences(name, size):
    """Energy, gradient and Hessian against differences of float64 least squares."""
    model, rows, h = MODELS[name], 20, 3e-4
    kernels, points = noise(rows, size), random_points(rows, MODELS[name])
    energy, gradient, hessian = map(
        np.asarray, native.evaluate(jnp.asarray(kernels), jnp.asarray(points), model)
    )
    for b in range(rows):
        scale = np.ones(len(model.names))
        scale[:2] = np.exp(points[2, b])
        steps = h * np.diag(scale)

        def at(*moves, b=b):
            return explained(kernels[..., b], points[:, b] + sum(moves, np.zeros(len(model.names))), model)

        assert energy[b] == pytest.approx(at(), abs=3e-6)
        # Two nearly dependent Gaussians have weights in the hundreds: float32 keeps three digits then.
        loose = 1e-3 if name == "dog" else 1e-5
        slopes = [(at(s) - at(-s)) / (4 * h) for s in steps]
        np.testing.assert_allclose(gradient[:, b], slopes, atol=loose)
        pairs = [(a, c) for a in range(len(model.names)) for c in range(a + 1)]
        for entry, (a, c) in zip(hessian[:, b], pairs, strict=True):
            s, t = steps[a], steps[c]
            curvature = (at(s, t) - at(s, -t) - at(-s, t) + at(-s, -t)) / (8 * h * h)
            assert entry == pytest.approx(curvature, abs=10 * loose, rel=10 * loose)


@needs_build
def test_evaluate_wide_pairs():
    """Far wider than the kernel, all but 1e-3 of a Gaussian is constant."""
    size, model = 7, MODELS["dog"]
    kernels = noise(12, size)
    points = np.array([[0.4], [-0.7], [np.log(6.5)], [np.log(7.5)]], np.float32) * np.ones(
        (1, 12), np.float32
    )
    energy = np.asarray(native.evaluate(jnp.asarray(kernels), jnp.asarray(points), model)[0])
    wanted = [explained(kernels[..., b], points[:, b], model) for b in range(12)]
    np.testing.assert_allclose(energy, wanted, atol=2e-4)


@needs_build
@pytest.mark.parametrize("size", [3, 7, *(pytest.param(k, marks=pytest.mark.slow) for k in (5, 9, 15))])
def test_search_families_finds_what_was_drawn(size):
    """No less energy than at the truth, for each family, under noise; points inside the box."""
    rows, generator = 24, np.random.default_rng(size)
    names = [n for n in MODELS if size > 3 or n in ("gaussian", "d1")]
    for name in names:
        model = MODELS[name]
        low, high = box(model, size)
        low[:2], high[:2], low[2], high[2] = -size / 3, size / 3, np.log(0.6), np.log(size / 3)
        truth = generator.uniform(low[:, None], high[:, None], (len(model.names), rows))
        images = np.empty((size, size, rows))
        for b in range(rows):
            basis = columns(truth[:, b], model, size)
            image = basis @ generator.normal(size=basis.shape[1])
            images[..., b] = (image / np.linalg.norm(image)).reshape(size, size)
        images += 0.2 / size * generator.normal(size=images.shape)
        kernels = unit(images)
        (found,) = search(jnp.asarray(kernels), [name])
        low, high = box(model, size)
        point = np.asarray(found.point)
        assert np.all((point >= low[:, None]) & (point <= high[:, None]))
        reached = np.array([explained(kernels[..., b], point[:, b], model) for b in range(rows)])
        known = np.array([explained(kernels[..., b], truth[:, b], model) for b in range(rows)])
        assert np.mean(reached >= known - 1e-4) >= (0.95 if model.shared_amplitude else 1.0), name
        assert np.all(np.asarray(found.steps) > 0)
        assert np.all(np.asarray(found.n_agreeing) > 0)


@needs_build
@pytest.mark.parametrize("name", [pytest.param("gaussian", marks=pytest.mark.slow), "d1"])
def test_search_families_against_scipy(name):
    """No more is left than dense multi-start SciPy leaves."""
    size, rows = 5, 4
    kernels = noise(rows, size, seed=3)
    (found,) = search(jnp.asarray(kernels), [name])
    reference = Reference(name, size)
    for b in range(rows):
        cost = reference.fit(kernels[..., b])[0]
        reached = 1 - explained(kernels[..., b], np.asarray(found.point)[:, b], MODELS[name])
        assert reached <= 1.001 * cost + 1e-4


@needs_build
def test_search_families_rows_are_independent():
    """A row does not depend on the others, their order or number, and a family not on its neighbors."""
    rows = 600  # more than one piece, more than one chunk
    kernels, run = noise(rows, 7), functools.partial(search, names=SINGLE)
    whole = run(jnp.asarray(kernels))
    order = np.random.default_rng(2).permutation(rows)
    assert_same(whole, run(jnp.asarray(kernels[..., order])), order)
    few = [3, 500, 17]
    assert_same(whole, run(jnp.asarray(kernels[..., few])), few)
    padded = np.concatenate([kernels[..., :40], np.zeros((7, 7, 9), np.float32)], axis=-1)
    assert_same(run(jnp.asarray(padded)), jax.tree.map(lambda x: x[..., :40], whole), slice(40))
    # One family alone, or beside others.
    for i, name in enumerate(SINGLE):
        (alone,) = search(jnp.asarray(kernels[..., :40]), [name])
        assert_same(alone, jax.tree.map(lambda x: x[..., :40], whole[i]))


@needs_build
def test_search_families_zero_and_spoilt_rows():
    """They end at once, and spoil no other."""
    kernels = noise(20, 7)
    clean = search(jnp.asarray(kernels))
    kernels[..., 4] = 0.0
    kernels[..., 11] = np.nan
    kernels[0, 0, 13] = np.inf
    found = search(jnp.asarray(kernels))
    good = np.delete(np.arange(20), [4, 11, 13])
    assert_same(found, jax.tree.map(lambda x: x[..., good], clean), good)
    for one in found:
        assert np.all(np.isfinite(one.point))
        np.testing.assert_array_equal(np.asarray(one.steps)[[4, 11, 13]], 0)
        np.testing.assert_array_equal(np.asarray(one.predicted_gain)[[4, 11, 13]], 0)


@needs_build
@pytest.mark.slow
def test_search_families_by_other_builds():
    """Builds for other processors find the same, to rounding."""
    kernels = noise(48, 7, seed=5)
    reached = {}
    for only in native.instructions():
        found = search(jnp.asarray(kernels), SINGLE, only=only)
        reached[only] = np.array(
            [
                [explained(kernels[..., b], np.asarray(f.point)[:, b], MODELS[n]) for b in range(48)]
                for n, f in zip(SINGLE, found, strict=True)
            ]
        )
    for one, other in itertools.combinations(reached.values(), 2):
        # Rounding decides between starts now and then, and where a valley is flat.
        assert np.mean(np.abs(one - other) < 1e-4) > 0.98
    with pytest.raises(Exception, match="lacks the instructions"):
        jax.block_until_ready(search(jnp.asarray(kernels), ["gaussian"], only="none"))


@needs_build
@pytest.mark.slow
def test_search_families_turned_and_mirrored():
    """Turned and mirrored kernels are explained as well."""
    kernels = noise(40, 7, seed=6)

    def energies(images):
        found = search(jnp.asarray(np.ascontiguousarray(images)), SINGLE)
        return [
            [explained(images[..., b], np.asarray(f.point)[:, b], MODELS[n]) for b in range(40)]
            for n, f in zip(SINGLE, found, strict=True)
        ]

    plain = np.array(energies(kernels))
    for moved in (kernels[::-1], kernels[:, ::-1], kernels.swapaxes(0, 1), -kernels, np.rot90(kernels)):
        change = np.array(energies(moved)) - plain
        # Rounding decides now and then which of two basins an ascent ends in.
        assert np.mean(np.abs(change) < 2e-4) > 0.98
        assert abs(np.mean(change)) < 1e-4


@needs_build
def test_search_families_narrow_box():
    """Bounds hold to the bit, and so do values that are fixed; what pushes against them has converged."""
    kernels = noise(32, 7)
    low, high = box(MODELS["d1"], 7)
    low[2], high[2] = np.log(0.8), np.log(0.9)
    low[0] = high[0] = 0.25
    model, narrow = MODELS["d1"], Box(jnp.asarray(low)[:, None], jnp.asarray(high)[:, None])
    effort = native_effort(model, Budget())
    (found,) = native.search_families(jnp.asarray(kernels), (model,), [narrow], [effort])
    point = np.asarray(found.point)
    assert np.all((point >= low[:, None]) & (point <= high[:, None]))
    assert np.ptp(point[1]) > 1
    for bound in (low, high):
        assert np.any(point[2] == bound[2])
    assert np.all(found.predicted_gain <= effort.tolerance)


@needs_build
def test_search_families_inside_jax():
    """Search inside jit, float64, vmap and shard_map: the same as outside."""
    kernels = noise(64, 5)
    run = functools.partial(search, names=("d1", "dog"))
    plain = run(jnp.asarray(kernels))
    assert_same(plain, jax.jit(run)(jnp.asarray(kernels)))
    with jax.enable_x64(True):
        assert_same(plain, jax.jit(run)(jnp.asarray(kernels)))
    batched = jax.vmap(run, in_axes=-1, out_axes=-1)(jnp.asarray(kernels.reshape(5, 5, 16, 4)))
    merged = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), batched)
    assert_same(plain, merged)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec(None, None, "data")
    out = jax.tree.map(lambda x: PartitionSpec(*[None] * (x.ndim - 1), "data"), plain)
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=out))
    assert_same(plain, sharded(jnp.asarray(kernels)))


@needs_build
def test_search_families_broken_arguments():
    with pytest.raises(ValueError, match="starts must be 1 to"):
        search(jnp.zeros((5, 5, 4)), ["gaussian"], starts=0)
    with pytest.raises(Exception, match=r"\[k, k, n\]"):
        native.evaluate(jnp.zeros((5, 4, 4)), jnp.zeros((3, 4)), MODELS["gaussian"])[0].block_until_ready()
