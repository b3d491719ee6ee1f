"""Starts across the edges of taps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.starts.edge_restarts import N_EDGE_RESTARTS, move_across_edges
from dogfit.kernels.types import Effort
from dogfit.kernels.xla.search import search_optimum
from dogfit.kernels.xla.seeds import energy_at
from scipy_families import draw


@pytest.mark.parametrize(("taps", "edges"), [(7, 0.5), (6, 0.0)])
def test_move_across_edges(taps, edges):
    """Edges of taps are at halves where the number of taps is odd."""
    rng = np.random.default_rng(0)
    point = np.concatenate([rng.uniform(-2.4, 2.4, (2, 40)), rng.uniform(-1, 1, (3, 40))]).astype(np.float32)

    @jax.jit
    @jax.vmap
    def move(which):
        return move_across_edges(jnp.asarray(point), jnp.full(40, which), (taps, taps), jnp.float32(-1.2))

    moved = np.asarray(move(jnp.arange(N_EDGE_RESTARTS)))
    np.testing.assert_array_equal(moved[:, 2], np.float32(-1.2))
    np.testing.assert_array_equal(moved[:, 3:], np.broadcast_to(point[3:], moved[:, 3:].shape))
    for axis in (0, 1):
        at, x = point[axis], moved[:, axis]
        assert np.all(np.abs(x - at) <= 1.0)
        edge = np.round(at - edges) + edges
        for side in (-1, 1):
            near = np.abs(x - (edge + side * 0.006)) < 1e-5
            assert np.all(near.any(axis=0))
        middle = np.floor(at - edges) + edges + 0.5
        assert np.all((np.abs(x - (2 * middle - at)) < 1e-5).any(axis=0))
        assert np.all((np.abs(x - at) == 0).any(axis=0))
    assert np.unique(np.round(moved[:, :2], 4), axis=0).shape[0] == N_EDGE_RESTARTS


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 5), (4, 6)])
def test_search_optimum_with_edge_restarts(shape):
    """Nothing is lost, and more is found.

    Second derivatives at the narrowest width, a hundredth of a tap from an edge, under noise.
    """
    height, width = shape
    rng, rows = np.random.default_rng(0), 96
    kernels = np.stack(
        [
            draw(
                "d2",
                shape,
                x0=0.5 * (width % 2) + rng.choice([-0.01, 0.01]),
                y0=0.5 * (height % 2) + rng.choice([-0.01, 0.01]),
                sigma=0.3,
                gains=(1.0, rng.uniform(-1, 1)),
                theta=rng.uniform(-1.5, 1.5),
            )
            for _ in range(rows)
        ]
    )
    kernels += kernels.std(axis=(1, 2), keepdims=True) * rng.normal(size=kernels.shape)
    kernels -= kernels.mean(axis=(1, 2), keepdims=True)
    kernels /= np.linalg.norm(kernels, axis=(1, 2), keepdims=True)
    images = jnp.asarray(kernels.transpose(1, 2, 0), jnp.float32)
    model = BUILTIN_FAMILIES["d2"].model
    box = search_box(model, shape, jnp.float32)
    effort = Effort(
        starts=2, steps=20, min_relative_energy=0.6, abandon_factor=8.0, min_separation=0.3, tolerance=1e-7
    )

    def energies(effort):
        found = search_optimum(images, box, model, effort, block=32)
        assert np.all((found.point >= box.lower) & (found.point <= box.upper))
        return energy_at(images, list(found.point), model, None)

    restarting = effort._replace(edge_restarts=N_EDGE_RESTARTS, edge_restart_log_sigma=-0.22)
    gained = np.asarray(energies(restarting) - energies(effort))
    assert gained.min() > -1e-4
    assert np.any(gained > 1e-3)
