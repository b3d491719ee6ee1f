"""The fused search, interpreted on the CPU, against the plain one; and that it lowers for GPU and TPU."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dogfit
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.derivatives import projected_derivatives
from dogfit.kernels.pallas.dictionary import dictionary
from dogfit.kernels.pallas.lanes import half_erf
from dogfit.kernels.pallas.lanes import projected_derivatives as lane_derivatives
from dogfit.kernels.pallas.search import check_supported, search_optimum
from dogfit.kernels.tuning import fused_effort
from dogfit.kernels.types import Box, Budget, Effort, Found
from dogfit.kernels.xla.search import search_optimum as search_plainly
from fit_drawings import real_kernels

MODELS = {
    "gaussian": GaussianModel(0),
    "dog": GaussianModel(0, two_widths=True),
    "d1": GaussianModel(1),
    "d2": GaussianModel(2),
    "dog_d1": GaussianModel(1, two_widths=True, shared_amplitude=True),
}
slow = pytest.mark.slow
# Each is a program of its own.
FOUR = tuple(pytest.param(name, marks=slow) for name in ("d1", "gaussian", "dog", "d2"))
ROWS, SIZE = 48, 5
PLATFORM = {"triton": "cuda", "tpu": "tpu"}
EFFORT = Effort(
    starts=8, steps=15, min_relative_energy=0.6, abandon_factor=12.0, min_separation=0.3, tolerance=1e-7
)
# Unrolled code in which nothing is reused is slow to fuse, and fused no faster.
QUICK = {"xla_disable_hlo_passes": "fusion", "xla_backend_optimization_level": 0}


def box(model: GaussianModel, size: int) -> Box:
    return search_box(model, (size, size), jnp.float32)


def random_points(generator: np.random.Generator, model: GaussianModel, rows: int) -> np.ndarray:
    """Search points `[p, rows]` well inside the box."""
    ranges = {"log_sigma": (math.log(0.4), math.log(3)), "log_ratio": (math.log(1.2), math.log(4))}
    ranges |= {"surround_weight": (0.1, 0.9)}
    return np.stack([generator.uniform(*ranges.get(name, (-1.5, 1.5)), rows) for name in model.names])


def unit(images: np.ndarray) -> np.ndarray:
    images = images - images.mean(axis=(0, 1))
    return images / np.linalg.norm(images, axis=(0, 1))


@functools.cache
def noisy_kernels(name: str) -> np.ndarray:
    """Members of a family with 0 to 30 % noise: centred, of unit energy, `[SIZE, SIZE, ROWS]`."""
    generator, model = np.random.default_rng(len(name)), MODELS[name]
    images = basis_images(model, random_points(generator, model, ROWS))
    images = unit((generator.normal(size=(len(images), 1, 1, ROWS)) * images).sum(axis=0))
    noise = np.linspace(0, 0.3, ROWS) / SIZE * generator.normal(size=images.shape)
    return unit(images + noise).astype(np.float32)


def basis_images(model: GaussianModel, point: np.ndarray, size: int = SIZE) -> np.ndarray:
    """In double precision, `[q, size, size, rows]`."""
    with jax.enable_x64(True):
        images = model.images(list(jnp.asarray(point, jnp.float64)), (size, size))
    return np.stack([np.asarray(image) for image in images])


def energies(kernels: np.ndarray, model: GaussianModel, point: np.ndarray) -> np.ndarray:
    """Explained energy by NumPy's least squares."""
    columns = basis_images(model, point, len(kernels))
    columns -= columns.mean(axis=(1, 2), keepdims=True)
    out = []
    for b in range(kernels.shape[-1]):
        target = kernels[..., b].ravel().astype(np.float64)
        basis, _ = np.linalg.qr(columns[..., b].reshape(len(columns), -1).T)
        out.append(((basis.T @ target) ** 2).sum())
    return np.array(out)


@functools.cache
def fused(name: str, backend: str = "triton"):
    model = MODELS[name]
    run = functools.partial(
        search_optimum,
        box=box(model, SIZE),
        model=model,
        effort=EFFORT,
        backend=backend,
        interpret=True,
    )
    return jax.jit(run, compiler_options=QUICK)


def test_half_erf_against_erf():
    """Half erf without erf."""
    z = np.linspace(-12, 12, 40001, dtype=np.float32)
    truth = np.array([0.5 * math.erf(value / math.sqrt(2)) for value in z.tolist()])
    found = np.asarray(half_erf(jnp.asarray(z)), np.float64)
    assert np.abs(found - truth).max() < 4 * 2.0**-24
    assert np.array_equal(found, -np.asarray(half_erf(jnp.asarray(-z))))


@slow
@pytest.mark.parametrize("name", ["gaussian", "dog", "d1", "d2", "dog_d1"])
def test_derivatives_against_the_plain_path(name):
    """Derivatives against the plain path in double precision."""
    model, kernels = MODELS[name], noisy_kernels(name)
    point = random_points(np.random.default_rng(0), model, ROWS)
    with jax.enable_x64(True):
        truth = projected_derivatives(
            jnp.asarray(kernels, jnp.float64), list(jnp.asarray(point, jnp.float64)), model
        )
    taps = jnp.asarray(kernels)

    def evaluate(p):
        return lane_derivatives(lambda y, x: taps[y, x], p, model, SIZE)

    found = jax.jit(evaluate, compiler_options=QUICK)(list(jnp.asarray(point, jnp.float32)))
    # Two Gaussians of nearly one width leave float32 three digits of curvature.
    tolerance = 3e-3 if name == "dog" else 3e-5
    assert np.allclose(found.energy, truth.energy, atol=tolerance / 30)
    assert np.allclose(np.stack(found.gradient), np.stack(truth.gradient), atol=tolerance)
    assert found.hessian.keys() == truth.hessian.keys()
    for pair, value in truth.hessian.items():
        assert np.allclose(found.hessian[pair], value, atol=tolerance), pair


@pytest.mark.parametrize("name", FOUR)
def test_search_optimum_against_the_plain_path(name):
    """The same optima as the plain path."""
    model, kernels = MODELS[name], noisy_kernels(name)
    found = fused(name)(jnp.asarray(kernels))

    def search(rows: jax.Array) -> Found:
        return search_plainly(rows, box(model, SIZE), model, EFFORT, block=ROWS)

    plain = jax.jit(search, compiler_options=QUICK)(jnp.asarray(kernels))
    here, there = (energies(kernels, model, np.asarray(f.point)) for f in (found, plain))
    assert np.mean(here >= there - 1e-3) >= 0.95
    lower, upper = (np.asarray(bound) for bound in box(model, SIZE))
    assert np.all((found.point >= lower) & (found.point <= upper))
    assert np.median(found.predicted_gain) < EFFORT.tolerance
    assert np.all((found.steps > 0) & (found.n_agreeing >= 1))


@slow
@pytest.mark.parametrize("name", ["d2", "dog"])
def test_search_optimum_real_kernels(name):
    """Optima of real kernels."""
    # Where a Gaussian is far narrower than a tap, each tap holds optima of its own.
    drawn, size = real_kernels(300), 7
    found = dogfit.fit_kernels(drawn, [name]).r2_by_family[:, 0]
    model, effort = MODELS[name], fused_effort(MODELS[name], Budget())
    search_fused = jax.jit(
        lambda rows: search_optimum(rows, box(model, size), model, effort, interpret=True).point,
        compiler_options=QUICK,
    )
    kernels = unit(drawn.transpose(1, 2, 0).astype(np.float64))
    here = 1 - energies(kernels, model, np.asarray(search_fused(jnp.asarray(kernels, jnp.float32))))
    assert np.mean(here <= 1.001 * (1 - found) + 1e-4) >= 0.99


@pytest.mark.parametrize("name", FOUR)
def test_search_optimum_no_worse_than_its_seed(name):
    """Never worse than its own seed."""
    model, kernels = MODELS[name], noisy_kernels(name)
    columns = dictionary(model, SIZE).columns[..., : SIZE * SIZE].astype(np.float64)
    projections = np.einsum("tqnk,kb->tqnb", columns, kernels.reshape(SIZE * SIZE, -1))
    seeds = (projections**2).sum(axis=1).max(axis=(0, 1))
    found = fused(name)(jnp.asarray(kernels))
    # Seeds are chosen in bfloat16, so that the best may be missed by its rounding.
    assert np.all(energies(kernels, model, np.asarray(found.point)) >= seeds - 5e-3)


@pytest.mark.parametrize("name", ["gaussian", pytest.param("d1", marks=slow)])
def test_search_optimum_noiseless_kernels(name):
    """Noiseless kernels are recovered."""
    model = MODELS[name]
    point = random_points(np.random.default_rng(5), model, ROWS)
    point[2] = np.clip(point[2], math.log(0.8), math.log(1.5))
    images = basis_images(model, point)
    kernels = sum(gain * image for gain, image in zip((0.6, -0.8), images, strict=False))
    found = fused(name)(jnp.asarray(unit(kernels), jnp.float32))
    assert np.allclose(found.point, point, atol=2e-3)


def test_search_optimum_broken_rows():
    """Lanes do not meet."""
    kernels = noisy_kernels("gaussian").copy()
    alone = fused("gaussian")(jnp.asarray(kernels))
    kernels[..., 3], kernels[..., 8] = np.nan, 0.0
    among = fused("gaussian")(jnp.asarray(kernels))
    others = np.delete(np.arange(ROWS), [3, 8])
    for one, other in zip(alone, among, strict=True):
        assert np.array_equal(np.asarray(one)[..., others], np.asarray(other)[..., others])
    assert np.isfinite(np.asarray(among.point)[:, 8]).all()


@slow
def test_search_optimum_both_launchers():
    """Both launchers run the same search."""
    kernels = noisy_kernels("gaussian")
    gpu, tpu = (fused("gaussian", backend)(jnp.asarray(kernels)) for backend in ("triton", "tpu"))
    one, other = (energies(kernels, MODELS["gaussian"], np.asarray(f.point)) for f in (gpu, tpu))
    assert np.allclose(one, other, atol=1e-4)
    assert gpu.point.shape == tpu.point.shape == (3, ROWS)  # blocks are of 32 and 1024


@pytest.mark.parametrize("backend", PLATFORM)
@pytest.mark.parametrize("name", FOUR)
def test_search_optimum_lowers_without_the_device(name, backend):
    """Lowers without the device."""
    if backend == "triton" and jax.__version_info__ > (0, 10, 2):
        pytest.skip("later versions compile for Triton while they lower, with the CUDA plugin")
    model, size = MODELS[name], 7
    run = functools.partial(search_optimum, box=box(model, size), model=model, effort=EFFORT, backend=backend)
    shape = jax.ShapeDtypeStruct((size, size, 2048), jnp.float32)
    lowered = jax.jit(run).trace(shape).lower(lowering_platforms=(PLATFORM[backend],))
    assert {"triton": "xla.gpu.triton", "tpu": "tpu_custom_call"}[backend] in lowered.as_text()


@pytest.mark.parametrize(
    ("shape", "model", "reason"),
    [
        ((7, 5, 4), GaussianModel(0), "square"),
        ((15, 15, 4), GaussianModel(0), "3 to 11"),
        ((7, 7, 4), GaussianModel(0, elliptic=True), "round"),
        ((7, 7, 4), GaussianModel(0, profile="sampled"), "integrated"),
    ],
)
def test_search_optimum_refusals(shape, model, reason):
    """What it cannot do it refuses."""
    kernels = jnp.zeros(shape, jnp.float32)
    limits = box(model, shape[0])
    with pytest.raises(NotImplementedError, match=reason):
        check_supported(kernels, limits, model)
    with pytest.raises(NotImplementedError, match=reason):
        search_optimum(kernels, limits, model, EFFORT)
    check_supported(jnp.zeros((7, 7, 4), jnp.float32), box(MODELS["dog"], 7), MODELS["dog"])
