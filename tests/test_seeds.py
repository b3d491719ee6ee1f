"""Starts from the dictionary: their energies, their places, and the symmetry of both."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.kernels.model.custom import CustomModel, SearchRange
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.products import whiten
from dogfit.kernels.starts.constants import NATIVE
from dogfit.kernels.starts.dictionary import center_line, lines_of, offset_line, place_grids
from dogfit.kernels.types import Box
from dogfit.kernels.xla.seeds import find_seeds
from scipy_families import basis, bounds
from scipy_reference import Reference, orthonormal

KX, KY, ROWS, COUNT = 7, 5, 12, 3
QUICK = {"xla_backend_optimization_level": 0}
slow = pytest.mark.slow
MODELS = {
    "dog": GaussianModel(0, two_widths=True),
    "d2": GaussianModel(2),
    "dog_d1": GaussianModel(1, two_widths=True, shared_amplitude=True),
    "d1_elliptic": GaussianModel(1, elliptic=True),
}


def unit_kernels(seed: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Whitened kernels of unit energy `[ky, kx, rows]`."""
    image = jnp.asarray(np.random.default_rng(seed).normal(size=(KX, KY, ROWS)).swapaxes(0, 1))
    kernels = np.asarray(whiten(image, weights), float)
    return kernels / np.linalg.norm(kernels, axis=(0, 1))


@functools.cache
def compiled_seeds(model, count):
    return jax.jit(lambda w, v, b: find_seeds(w, model, count, v, b), compiler_options=QUICK)


def seeds_of(kernels, model, count=COUNT, weights=None, box=None):
    run = compiled_seeds(model, count)
    given = (kernels, weights) if box is None else (kernels, weights, Box(*box))
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), given)
    seeds = run(*single, *[None] * (3 - len(single)))
    return np.asarray(seeds.points, float), np.asarray(seeds.energies)


def explained(kernel: np.ndarray, family: str, point: np.ndarray, profile: str = "integrated") -> float:
    q = orthonormal(basis(family, point, (KY, KX), profile))
    return float(np.sum((q.T @ kernel.ravel()) ** 2))


@pytest.mark.parametrize("size", [3, 4, 7, 31])
def test_center_line_is_symmetric_and_spans_the_kernel(size):
    """Centres are symmetric and span the kernel."""
    for sigma in np.geomspace(0.3, 0.75 * size, 10):
        line = center_line(float(sigma), size)
        np.testing.assert_allclose(line, -line[::-1], rtol=0, atol=1e-12)
        assert line.max() == size / 2
        assert np.all(np.diff(line) > 0)
        assert np.diff(line).max() <= max(0.7 * sigma, 0.3) + 1e-12


@pytest.mark.parametrize("order", [1, 2])
def test_place_grids_widest_derivatives(order):
    """Derivatives have nodes as wide as the box, in its corners, and close ones at every width."""
    model, shape = GaussianModel(order), (KY, KX)
    places = place_grids(model, shape)
    assert max(place.sigma for place in places) == KX
    for place in places:
        for line, size in zip(lines_of(model, shape, place), (KX, KY), strict=True):
            assert np.diff(line).max() <= 0.14 * size + 1e-9
            if place.offsets is None and place.sigma > 0.4:
                np.testing.assert_allclose(line[[0, -1]], [-size / 2, size / 2])


def test_second_offsets_see_optima_at_corners():
    """Some node explains four fifths of a narrow second derivative centred anywhere beside a corner."""
    generator, log_sigma = np.random.default_rng(7), np.log(0.3)

    def functions(x: float, y: float) -> np.ndarray:
        return orthonormal(basis("d2", np.array([x, y, log_sigma]), (KY, KX), "integrated"))

    x_line, y_line = (offset_line(size, NATIVE.second_offsets) for size in (KX, KY))
    close = [line[np.abs(line - 0.5) < 0.1] for line in (x_line, y_line)]
    nodes = [functions(x, y) for x, y in itertools.product(*close)]
    for _ in range(100):
        member = functions(*(0.5 + generator.uniform(-0.006, 0.006, 2))) @ generator.normal(size=3)
        energies = [np.sum((node.T @ member) ** 2) for node in nodes]
        assert max(energies) > 0.8 * np.sum(member**2)


@pytest.mark.parametrize(
    "family", ["dog", *(pytest.param(name, marks=slow) for name in ("d2", "dog_d1", "d1_elliptic"))]
)
def test_find_seeds_energies_at_their_nodes(family):
    """Seeds carry the energy at their node best first."""
    kernels = unit_kernels(7)
    points, energies = seeds_of(kernels, MODELS[family])
    assert points.shape == (COUNT, len(bounds(family, 7)[0]), ROWS)
    assert energies.shape == (COUNT, ROWS)
    assert np.all(np.isfinite(points))
    assert np.all(np.diff(energies, axis=0) <= 0)
    assert np.all(energies[0] > 0) and np.all((energies >= 0) & (energies <= 1.001))
    # There may be fewer peaks than starts wanted.
    used = energies > 0
    assert np.mean(used) > 0.7
    for s, b in np.argwhere(used):
        point = points[s, :, b]
        if family == "dog" and point[3] < np.log(1.5):
            # Two Gaussians of nearly one width stand for one and its Laplacian.
            second = basis("d2", point[:3], (KY, KX))
            pair = np.column_stack([basis("gaussian", point[:3], (KY, KX)), second[:, 1] + second[:, 3]])
            wanted = float(np.sum((orthonormal(pair).T @ kernels[..., b].ravel()) ** 2))
        else:
            wanted = explained(kernels[..., b], family, point)
        # Coarse by design.
        assert wanted - 5e-3 <= energies[s, b] <= wanted + 1e-3
    for one, other in itertools.combinations(range(COUNT), 2):
        apart = np.abs(points[one] - points[other]).max(axis=0) > 1e-3
        assert np.all(apart | ~used[other])


@pytest.mark.parametrize("profile", [pytest.param("sampled", marks=slow), "discrete"])
def test_find_seeds_other_profiles(profile):
    """Seeds of other profiles."""
    kernels = unit_kernels(8)
    points, energies = seeds_of(kernels, GaussianModel(1, profile=profile))
    for s, b in np.argwhere(energies > 0):
        wanted = explained(kernels[..., b], "d1", points[s, :, b], profile)
        assert wanted - 5e-3 <= energies[s, b] <= wanted + 1e-3
    least = np.log(0.6 if profile == "sampled" else 0.3)
    assert points[:, 2][energies > 0].min() >= least - 1e-6
    if profile == "discrete":
        np.testing.assert_array_equal(2 * points[:, :2] % 1, 0)
        # They stay there, so each is a start of its own.
        for b in range(ROWS):
            centres = points[:, :2, b][energies[:, b] > 0]
            assert len(np.unique(centres, axis=0)) == len(centres) == len(points)


@pytest.mark.parametrize("family", ["d2", pytest.param("d2_elliptic", marks=slow)])
def test_find_seeds_weighted_taps(family):
    """Weighted taps weigh in the seeds."""
    weights = np.random.default_rng(9).uniform(0.2, 1, (KX, KY, ROWS)).swapaxes(0, 1)
    weights[1, 2] = 0
    kernels = unit_kernels(9, weights)
    model = GaussianModel(2, elliptic=family == "d2_elliptic")
    points, energies = seeds_of(kernels, model, weights=weights)
    for b in range(ROWS):
        reference = Reference(family, (KY, KX), weights=weights[..., b])
        for s in np.flatnonzero(energies[:, b] > 0):
            columns = basis(family, points[s, :, b], (KY, KX))[:, 1:]
            q, _ = np.linalg.qr(reference.centred(columns))
            wanted = np.sum((q.T @ kernels[..., b].ravel()) ** 2)
            assert wanted - 5e-3 <= energies[s, b] <= wanted + 1e-3


def test_find_seeds_mirrored_and_transposed():
    """Mirrored and transposed kernels get mirrored and transposed seeds."""
    kernels = unit_kernels(10)[:5]
    kernels -= kernels.mean(axis=(0, 1))
    points, energies = seeds_of(kernels, MODELS["d2"])
    mirrored, mirrored_energies = seeds_of(kernels[:, ::-1], MODELS["d2"])
    transposed, transposed_energies = seeds_of(kernels.swapaxes(0, 1), MODELS["d2"])
    for other in (mirrored_energies, transposed_energies):
        assert np.mean(np.abs(energies - other) < 1e-3) > 0.9
    # Where two nodes are as good to the digits that a seed has, either may be taken.
    alike = np.abs(mirrored - points * [[-1], [1], [1]]).max(axis=1) < 1e-6
    assert alike.mean() > 0.8
    alike = np.abs(transposed - points[:, [1, 0, 2]]).max(axis=1) < 1e-6
    assert alike.mean() > 0.8


@slow
@pytest.mark.parametrize("family", ["d1", "d1_elliptic"])
def test_find_seeds_near_a_box(family):
    """Seeds keep near a box."""
    low, high = (side[:, None] for side in bounds(family, (KY, KX)))
    low, high = low.copy(), high.copy()
    low[0], high[0] = 1.4, 1.6
    low[2], high[2] = np.log(0.8), np.log(2.0)
    model = GaussianModel(1, elliptic=family == "d1_elliptic")
    points, energies = seeds_of(unit_kernels(11), model, box=(low, high))
    best = points[0]
    # A node next to the box will do.
    assert np.all(np.abs(best[0] - 1.5) <= 0.1 + 0.7 * 1.7)
    assert np.all((best[2] > np.log(0.8) - 0.41) & (best[2] < np.log(2.0) + 0.41))
    assert np.all(energies[0] > 0)


@pytest.mark.parametrize("family", ["d1", pytest.param("d1_elliptic", marks=slow)])
def test_find_seeds_box_of_each_kernel(family):
    """A box of each kernel."""
    low, high = (np.repeat(side[:, None], ROWS, axis=1) for side in bounds(family, (KY, KX)))
    places = np.linspace(-2, 2, ROWS)
    low[1], high[1] = places, places
    model = GaussianModel(1, elliptic=family == "d1_elliptic")
    points, _ = seeds_of(unit_kernels(12), model, box=(low, high))
    assert np.all(np.abs(points[0, 1] - places) <= 0.85)


def bump(x, y, x0, width):
    """A ridge across x."""
    return (jnp.exp(-(((x - x0) / width) ** 2)) + 0 * y,)


RIDGE = CustomModel(bump, (("x0", SearchRange(-3, 3, 7)), ("width", SearchRange(0.5, 2, 3))), 1)


def test_search_range_nodes():
    """Nodes of a range."""
    np.testing.assert_allclose(SearchRange(-1, 1, 5).values(), [-1, -0.5, 0, 0.5, 1])
    assert SearchRange(-1, 3, 1).values() == [1.0]
    assert RIDGE.nodes.shape == (2, 21)
    for low, high, nodes in [(1, 1, 3), (2, 1, 3), (0, np.inf, 3), (np.nan, 1, 3)]:
        with pytest.raises(ValueError, match="range must be finite with low < high"):
            SearchRange(low, high, nodes)
    with pytest.raises(ValueError, match="at least 1 node, got 0"):
        SearchRange(0, 1, 0)


@pytest.mark.parametrize("boxed", [False, True])
def test_find_seeds_custom_model(boxed):
    """Seeds of a basis of ones own are the best nodes."""
    kernels = unit_kernels(13)
    box = (np.array([[-3.0], [0.7]]), np.array([[0.2], [2.0]])) if boxed else None
    points, energies = seeds_of(kernels, RIDGE, count=1, box=box)
    nodes = RIDGE.nodes if box is None else np.clip(RIDGE.nodes, *box)
    x = np.arange(KX) - (KX - 1) / 2
    for b in range(ROWS):
        best = 0.0
        for x0, width in nodes.T:
            ridge = np.repeat(np.exp(-(((x - x0) / width) ** 2))[None], KY, axis=0)
            ridge -= ridge.mean()
            best = max(best, np.sum(ridge * kernels[..., b]) ** 2 / np.sum(ridge**2))
        np.testing.assert_allclose(energies[0, b], best, atol=1e-5)
    if box is not None:
        assert np.all((points[0] >= box[0] - 1e-6) & (points[0] <= box[1] + 1e-6))


def test_custom_model_wrong_shape():
    """A basis of the wrong shape is told."""
    model = CustomModel(lambda x, y, a: (a * x, y), (("a", SearchRange(0, 1, 2)),), 1)
    with pytest.raises(ValueError, match=r"must return 1 images of shape \(5, 7\), one per gain, got .*, "):
        model.images([jnp.ones(3)], (KY, KX))
    flat = CustomModel(lambda x, y, a: (a * x[0] * y[0, 0],), (("a", SearchRange(0, 1, 2)),), 1)
    with pytest.raises(ValueError, match=r"got \(7,\)"):
        flat.images([jnp.ones(3)], (KY, KX))


def test_find_seeds_two_bumps():
    """Every bump gets a start."""
    x, y = (np.arange(size) - (size - 1) / 2 for size in (KX, KY))
    places = np.random.default_rng(14).uniform(0.0, 0.6, (2, ROWS))
    kernels = sum(
        gain * np.exp(-((x[None, :, None] - cx) ** 2 + (y[:, None, None] - cy) ** 2))
        for gain, cx, cy in ((1.0, places[0] - 2.6, places[1]), (-0.9, places[0] + 2.0, -places[1]))
    )
    kernels -= kernels.mean(axis=(0, 1))
    kernels /= np.linalg.norm(kernels, axis=(0, 1))
    points, energies = seeds_of(kernels, GaussianModel(0), count=8)
    for cx, cy in ((places[0] - 2.6, places[1]), (places[0] + 2.0, -places[1])):
        distance = np.hypot(points[:, 0] - cx, points[:, 1] - cy)
        assert np.all(np.min(np.where(energies > 0, distance, np.inf), axis=0) < 0.7)


def test_find_seeds_first_is_best_node():
    """No node explains more than the first start."""
    kernels = unit_kernels(15)[..., :2]
    _, energies = seeds_of(kernels, GaussianModel(1))
    for sigma in np.geomspace(0.3, 0.75 * KX, 6):
        lines = (center_line(float(sigma), size) for size in (KX, KY))
        for cx, cy in itertools.product(*lines):
            node = np.array([cx, cy, np.log(sigma)])
            for b in range(2):
                assert explained(kernels[..., b], "d1", node) <= energies[0, b] + 5e-3


@slow
def test_find_seeds_equal_peaks():
    """Of two equal peaks both are starts."""
    half = np.zeros((7, 5))
    half[1, 2], half[0, 2], half[1, 1] = 1.0, 0.3, 0.2
    image = jnp.asarray((half + half[::-1])[..., None])
    kernel = np.asarray(whiten(image, None), float)
    points, energies = seeds_of(kernel / np.linalg.norm(kernel), GaussianModel(0), count=2)
    assert energies[0, 0] == pytest.approx(energies[1, 0], rel=1e-3)
    assert points[0, 1, 0] == pytest.approx(-points[1, 1, 0], abs=1e-6)
    assert abs(points[0, 1, 0]) > 1


@slow
def test_find_seeds_checkerboard():
    """A kernel of which little is explained has starts."""
    # A checkerboard is hardly Gaussian anywhere.
    y, x = np.indices((7, 7))
    image = jnp.asarray((1.0 - 2.0 * ((x + y) % 2))[..., None])
    kernel = np.asarray(whiten(image, None), float)
    _, energies = seeds_of(kernel / np.linalg.norm(kernel), GaussianModel(0, two_widths=False), count=2)
    assert np.all(energies > 0)
