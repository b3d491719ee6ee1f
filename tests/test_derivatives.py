"""Derivatives of the explained energy and of images, against SciPy's independent models in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.kernels.linalg import project
from dogfit.kernels.model.custom import CustomModel, SearchRange
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.derivatives import model_jacobian, projected_derivatives
from dogfit.kernels.objective.products import whiten
from scipy_families import columns
from scipy_reference import Problem, Reference

KX, KY, ROWS = 7, 6, 4
QUICK = {"xla_backend_optimization_level": 0}  # run once: compiling is what takes the time
STEP = 1e-5

# Family, profile, whether taps are weighted; each compiles for seconds, so most are for `--all`.
DEFAULT_CASES = [("d2", "integrated", False), ("dog_d1", "integrated", False), ("d1", "sampled", True)]
CASES = [
    ("gaussian", "integrated", False),
    ("dog", "integrated", False),
    ("d2", "integrated", False),
    ("dog_d1", "integrated", False),
    ("dog_d2", "sampled", False),
    ("d1", "sampled", True),
    ("dog", "discrete", False),
    ("dog_d2", "discrete", True),
    ("gaussian_elliptic", "integrated", False),
    ("d2_elliptic", "sampled", False),
    ("dog_d1_elliptic", "integrated", True),
]


def model_of(family: str, profile: str) -> GaussianModel:
    name = family.removesuffix("_elliptic")
    order = {"gaussian": 0, "dog": 0, "d1": 1, "d2": 2, "dog_d1": 1, "dog_d2": 2}[name]
    two, tied = name.startswith("dog"), name.startswith("dog_")
    return GaussianModel(order, two, tied, family.endswith("_elliptic"), profile)


def random_points(generator: np.random.Generator, names: tuple[str, ...], profile: str) -> np.ndarray:
    """Search points `[p, rows]`, away from widths at which a basis nearly vanishes."""
    ranges = {
        "x0": (-2, 2), "y0": (-2, 2), "log_sigma": np.log((0.6, 2.5)), "log_ratio": np.log((1.3, 3)),
        "surround_weight": (0.2, 0.9), "e1": (-0.8, 0.8), "e2": (-0.8, 0.8),
    }  # fmt: skip
    points = np.stack([generator.uniform(*ranges[name], ROWS) for name in names])
    if profile == "discrete":
        points[:2] = np.round(2 * points[:2]) / 2
    # Where an ellipse is a circle, formulas that divide by its eccentricity fail.
    if "e1" in names:
        points[-2:, 0] = 0.0
    return points


def unit_kernels(generator: np.random.Generator, weights: np.ndarray | None) -> np.ndarray:
    """Whitened kernels of unit energy `[ky, kx, rows]`."""
    with jax.enable_x64(True):
        image = jnp.asarray(generator.normal(size=(KY, KX, ROWS)))
        kernels = np.asarray(whiten(image, None if weights is None else jnp.asarray(weights)))
    return kernels / np.linalg.norm(kernels, axis=(0, 1))


def reference_derivatives(problem: Problem, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Explained energy, half its gradient and half its Hessian, of one kernel."""

    def slope(x):
        return -problem.jacobian(x).T @ problem.residual(x)

    moves = STEP * np.eye(len(x))
    hessian = np.stack([(slope(x + m) - slope(x - m)) / (2 * STEP) for m in moves])
    return 1 - np.sum(problem.residual(x) ** 2), slope(x), hessian


@pytest.mark.parametrize(
    ("family", "profile", "weighted"),
    [case if case in DEFAULT_CASES else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_projected_derivatives_against_scipy(family, profile, weighted):
    """Energy, gradient and Hessian."""
    generator = np.random.default_rng(5)
    model = model_of(family, profile)
    weights = generator.uniform(0, 1, (KY, KX, ROWS)) if weighted else None
    if weights is not None:
        weights[0] = 0.0
    kernels, points = unit_kernels(generator, weights), random_points(generator, model.names, profile)

    def run(kernels, points, weights):
        return projected_derivatives(kernels, list(points), model, weights), model.scale(list(points))

    with jax.enable_x64(True):
        found, scale = jax.jit(run, compiler_options=QUICK)(kernels, points, weights)
        found, scale = jax.tree.map(np.asarray, (found, scale))
    pairs = [(a, b) for a in range(len(points)) for b in range(a + 1)]
    assert set(found.hessian) == set(pairs)
    assert len(found.gradient) == len(points)
    movable = [a for a, can in enumerate(model.is_searched) if can]
    assert len(movable) == len(points) - 2 * (profile == "discrete")
    for row in range(ROWS):
        mine = None if weights is None else weights[..., row]
        problem = Problem(
            Reference(family, (KY, KX), profile=profile, weights=mine), kernels[..., row].ravel()
        )
        if profile == "discrete":
            problem = fixed_centre(problem, points[:2, row])
        x = points[2:, row] if profile == "discrete" else points[:, row]
        energy, gradient, hessian = reference_derivatives(problem, x)
        unit = np.array([scale[a][row] for a in movable])
        np.testing.assert_allclose(found.energy[row], energy, atol=1e-10)
        mine = np.array([found.gradient[a][row] for a in movable])
        np.testing.assert_allclose(mine, gradient * unit, atol=1e-9)
        for i, a in enumerate(movable):
            for j, b in enumerate(movable[: i + 1]):
                wanted = hessian[i, j] * unit[i] * unit[j]
                np.testing.assert_allclose(found.hessian[a, b][row], wanted, atol=1e-6 * (1 + abs(wanted)))


class fixed_centre:  # noqa: N801
    """A problem of the parameters after the centre."""

    def __init__(self, problem: Problem, centre: np.ndarray):
        self.problem, self.centre = problem, centre

    def residual(self, x):
        return self.problem.residual(np.append(self.centre, x))

    def jacobian(self, x):
        return self.problem.jacobian(np.append(self.centre, x))[:, 2:]


def gabor(x, y, x0, y0, sigma, frequency, theta):
    """Even and odd wave under a Gaussian."""
    envelope = jnp.exp(-((x - x0) ** 2 + (y - y0) ** 2) / (2 * sigma**2))
    phase = frequency * ((x - x0) * jnp.cos(theta) + (y - y0) * jnp.sin(theta))
    return envelope * jnp.cos(phase), envelope * jnp.sin(phase)


GABOR = CustomModel(
    gabor,
    (
        ("x0_px", SearchRange(-3, 3, 5)),
        ("y0_px", SearchRange(-3, 3, 1)),
        ("sigma_px", SearchRange(0.7, 3, 4)),
        ("frequency", SearchRange(0.5, 3, 4)),
        ("theta_rad", SearchRange(0, np.pi, 4)),
    ),
    2,
)
# x0, y0, sigma, frequency, theta
GABOR_POINTS = np.array([[0.3, -1.0], [1.2, 0.4], [1.1, 1.7], [1.4, 0.8], [0.5, 2.2]])


def gabor_columns(x: np.ndarray) -> np.ndarray:
    """Both waves `[taps, 2]` in NumPy, rows first."""
    across, down = np.meshgrid(np.arange(KX) - (KX - 1) / 2 - x[0], np.arange(KY) - (KY - 1) / 2 - x[1])
    phase = x[3] * (across * np.cos(x[4]) + down * np.sin(x[4]))
    envelope = np.exp(-(across**2 + down**2) / (2 * x[2] ** 2))
    return np.stack([(envelope * np.cos(phase)).ravel(), (envelope * np.sin(phase)).ravel()], axis=1)


def gabor_energy(kernel: np.ndarray, weights: np.ndarray, x: np.ndarray) -> float:
    """Explained energy of a whitened kernel `[taps]`."""
    value = gabor_columns(x)
    q, _ = np.linalg.qr(np.sqrt(weights)[:, None] * (value - weights @ value / weights.sum()))
    return float(np.sum((q.T @ kernel) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_projected_derivatives_of_a_custom_model(weighted):
    generator = np.random.default_rng(6)
    weights = generator.uniform(0, 1, (KY, KX, ROWS)) if weighted else None
    kernels = unit_kernels(generator, weights)[..., :2]
    weights = None if weights is None else weights[..., :2]
    points = GABOR_POINTS

    def run(kernels, points, weights):
        return projected_derivatives(kernels, list(points), GABOR, weights), GABOR.scale(list(points))

    with jax.enable_x64(True):
        found, scale = jax.tree.map(
            np.asarray, jax.jit(run, compiler_options=QUICK)(kernels, points, weights)
        )
    for row in range(2):
        taps = np.ones(KX * KY) if weights is None else weights[..., row].ravel()
        energy = functools.partial(gabor_energy, kernels[..., row].ravel(), taps)
        x, step = points[:, row], 1e-4
        moves = step * np.eye(len(x))
        unit = np.array([s[row] for s in scale])
        np.testing.assert_allclose(found.energy[row], energy(x), atol=1e-12)
        for a, one in enumerate(moves):
            wanted = (energy(x + one) - energy(x - one)) / (4 * step) * unit[a]
            np.testing.assert_allclose(found.gradient[a][row], wanted, atol=1e-7)
            for b, other in enumerate(moves[: a + 1]):
                mixed = energy(x + one + other) - energy(x + one - other)
                mixed += energy(x - one - other) - energy(x - one + other)
                wanted = mixed / (8 * step**2) * unit[a] * unit[b]
                np.testing.assert_allclose(found.hessian[a, b][row], wanted, atol=1e-5)


def test_scale_of_a_custom_model():
    """The unit of a parameter is the spacing of its nodes."""
    scale = [float(s[0]) for s in GABOR.scale([jnp.zeros(1)] * 5)]
    np.testing.assert_allclose(scale, [6 / 5, 6 / 4, 2.3 / 4, 2.5 / 4, np.pi / 4], rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "profile"),
    [
        ("d1", "integrated"),
        pytest.param("d2", "sampled", marks=pytest.mark.slow),
        pytest.param("dog", "integrated", marks=pytest.mark.slow),
        ("dog_d2", "integrated"),
        pytest.param("dog_d1_elliptic", "integrated", marks=pytest.mark.slow),
        pytest.param("d2_elliptic", "sampled", marks=pytest.mark.slow),
    ],
)
def test_model_jacobian_against_scipy(family, profile):
    generator = np.random.default_rng(7)
    model = model_of(family, profile)
    points = random_points(generator, model.names, profile)
    gains = generator.normal(size=(len(model.terms), ROWS))

    def run(points, gains):
        return model_jacobian(model, list(points), list(gains), (KY, KX)), model.scale(list(points))

    with jax.enable_x64(True):
        found, scale = jax.tree.map(np.asarray, jax.jit(run, compiler_options=QUICK)(points, gains))
    for row in range(ROWS):
        by = columns(family, points[:, row][None], (KY, KX), profile)[1][0]
        for a, change in enumerate(found):
            wanted = by[a] @ gains[:, row] * scale[a][row]
            np.testing.assert_allclose(change[..., row].ravel(), wanted, atol=1e-10, err_msg=model.names[a])


def test_model_jacobian_of_a_custom_model():
    gains = np.random.default_rng(8).normal(size=(2, 2))
    with jax.enable_x64(True):
        points = [jnp.asarray(p) for p in GABOR_POINTS]
        run = jax.jit(lambda p, g: model_jacobian(GABOR, p, g, (KY, KX)), compiler_options=QUICK)
        found = run(points, [jnp.asarray(g) for g in gains])
        found, scale = jax.tree.map(np.asarray, (found, GABOR.scale(points)))
    for row in range(2):
        for a, change in enumerate(found):
            move = STEP * np.eye(5)[a]
            x = GABOR_POINTS[:, row]
            wanted = (gabor_columns(x + move) - gabor_columns(x - move)) @ gains[:, row] / (2 * STEP)
            np.testing.assert_allclose(change[..., row].ravel(), wanted * scale[a][row], atol=1e-8)


@functools.partial(jax.jit, static_argnums=1)
def _energy(points, model, kernels):
    residual = project(kernels, [whiten(i, None) for i in model.images(list(points), (KY, KX))]).residual
    return 1.0 - jnp.sum(residual**2, axis=(0, 1))


@pytest.mark.parametrize(
    "profile",
    ["integrated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sampled", "discrete"))],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_projected_derivatives_in_float32(profile, weighted):
    """The energy decides between starts, so float32 must hold it at every width."""
    generator = np.random.default_rng(9)
    model = model_of("dog", profile)
    kernels, points = unit_kernels(generator, None), random_points(generator, model.names, profile)
    # Two Gaussians narrower than a tap and of nearly one width, and such as are far wider than the kernel.
    points[2:, :3] = np.log([[model.min_sigma, 7.0, 4.0], [1.1, 8.0, 8.0]])
    weights = np.ones((KY, KX, ROWS)) if weighted else None

    def energy(kernels, points, weights):
        return projected_derivatives(kernels, list(points), model, weights).energy

    run = jax.jit(energy, compiler_options=QUICK)
    single = run(*(None if a is None else a.astype(np.float32) for a in (kernels, points, weights)))
    with jax.enable_x64(True):
        exact = [a.astype(np.float32).astype(float) for a in (kernels, points)]
        double = _energy(jnp.asarray(exact[1]), model, jnp.asarray(exact[0]))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, double, atol=2e-5)
