"""Kernels of known parameters for tests of the fitter, and what a fit says about them."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from dogfit.fitting.api import fit_kernel
from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.native import binding as native
from scipy_families import draw

DATA = Path(__file__).parents[2] / "shared" / "data"
SIZE = 7
ENGINES = [
    # "auto" takes it, and other tests fit by the program that this compiles.
    pytest.param(
        "auto",
        marks=pytest.mark.skipif(not native.available(), reason="needs the C++ search"),
        id="native",
    ),
    # XLA takes half a minute to compile four families; `test_fit_engines.py` has one for the default tier.
    pytest.param("xla", marks=pytest.mark.slow),
]

# Clear kernels: keyword arguments of `draw`.
TRUTH = [
    ("gaussian", {"x0": 0.3, "y0": -0.6, "sigma": 1.3, "gains": (2.0,), "offset": 0.1}),
    ("gaussian", {"x0": -1.4, "y0": 1.1, "sigma": 0.8, "gains": (-0.7,)}),
    ("gaussian", {"x0": 0.5, "y0": 0.5, "sigma": 1.8, "gains": (5.0,), "offset": -1.0}),
    ("dog", {"sigma": 0.7, "surround": 1.7, "gains": (2.0, -1.8), "x0": 0.1, "y0": -0.2}),
    ("dog", {"sigma": 0.9, "surround": 2.0, "gains": (-3.0, 3.3), "x0": -0.4, "y0": 0.5, "offset": 0.2}),
    ("dog", {"sigma": 0.6, "surround": 1.6, "gains": (1.0, -1.5), "x0": 0.8, "y0": 0.0}),
    ("d1", {"sigma": 0.7, "gains": (1.0,), "theta": 0.2, "x0": 0.1, "y0": -0.3, "offset": 0.3}),
    ("d1", {"sigma": 1.1, "gains": (2.0,), "theta": 1.3, "x0": -0.4, "y0": 0.2}),
    ("d1", {"sigma": 1.5, "gains": (0.5,), "theta": 2.9, "x0": 0.1, "y0": 0.4}),
    ("d1", {"sigma": 0.9, "gains": (1.0,), "theta": -0.8, "x0": 0.5, "y0": -0.5}),
    ("d1", {"sigma": 1.2, "gains": (3.0,), "theta": -2.3, "x0": -0.3, "y0": -0.1, "offset": -0.5}),
    ("d2", {"sigma": 1.1, "gains": (2.0, 0.1), "theta": 0.3, "x0": 0.2, "y0": 0.3}),
    ("d2", {"sigma": 0.9, "gains": (-1.0, 0.4), "theta": 1.2, "x0": -0.5, "y0": 0.1, "offset": 0.5}),
    ("d2", {"sigma": 1.3, "gains": (3.0, -1.0), "theta": -0.9, "x0": 0.0, "y0": -0.4}),
    ("d2", {"sigma": 1.0, "gains": (-1.5, -0.3), "theta": -0.2, "x0": 0.3, "y0": 0.0}),
]
NAMES = [name for name, _ in TRUTH]


def drawings() -> np.ndarray:
    """The clear kernels `[n, 7, 7]`."""
    return np.stack([draw(name, SIZE, **drawn) for name, drawn in TRUTH])


def noisy(kernels: np.ndarray, level: float, seed: int) -> np.ndarray:
    """Add white noise whose norm is `level` times that of the centred kernel."""
    noise = np.random.default_rng(seed).normal(size=kernels.shape)
    spread = kernels.std(axis=(1, 2), keepdims=True)
    return kernels + level * spread * noise


def ellipse(aspect: float, phi: float) -> tuple[float, float]:
    """Shape parameters of `draw`."""
    return np.log(aspect) * np.cos(2 * phi), np.log(aspect) * np.sin(2 * phi)


def parameters_of(family: str, drawn: dict) -> dict[str, float]:
    """Reported parameters of a drawing."""
    names = [p.name for p in BUILTIN_FAMILIES[family].parameters if p.name.startswith("amplitude")]
    gains = dict(zip(names, drawn["gains"], strict=True))
    out = {"offset": drawn.get("offset", 0.0), **gains}
    out |= {"x0_px": drawn.get("x0", 0.0), "y0_px": drawn.get("y0", 0.0), "sigma_px": drawn["sigma"]}
    renamed = {"theta": "theta_rad", "surround": "sigma_surround_px", "surround_weight": "surround_weight"}
    out |= {new: drawn[old] for old, new in renamed.items() if old in drawn}
    if "e" in drawn:
        e1, e2 = drawn["e"]
        out |= {"aspect": np.exp(np.hypot(e1, e2)), "phi_rad": np.arctan2(e2, e1) / 2}
    return out


def reported(result, family: str, row: int) -> dict[str, float]:
    """Parameters of one fit by name."""
    return dict(zip(BUILTIN_FAMILIES[family].names, map(float, result.parameters[family][row]), strict=True))


def differences(family: str, found: dict[str, float], wanted: dict[str, float]) -> dict[str, float]:
    """Differences; gains relative to the largest, angles on their circle (axes: half a circle)."""
    assert found.keys() == wanted.keys()
    largest = max(abs(v) for k, v in wanted.items() if k.startswith("amp"))
    out = {}
    for name, value in found.items():
        difference = value - wanted[name]
        if name.endswith("_rad"):
            period = 2 * np.pi if name == "theta_rad" and BUILTIN_FAMILIES[family].model.order == 1 else np.pi
            difference = (difference + period / 2) % period - period / 2
        elif name == "offset" or name.startswith("amp"):
            difference /= largest
        out[name] = abs(difference)
    return out


def leaves_equal(one, other) -> bool:
    """Whether two results are the same to the bit."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def rows_of(result, rows):
    """Some rows of a result."""
    return jax.tree.map(lambda leaf: leaf[rows], result)


def master_key_filters() -> np.ndarray:
    """The eight published filters `[8, 7, 7]`."""
    path = DATA / "master_key_filters.json"
    if not path.is_file():
        pytest.skip("the shared data folder is not there: no master key filters")
    return np.array(json.loads(path.read_text())["filters"])


def real_kernels(count: int) -> np.ndarray:
    """Random 7x7 kernels of trained networks, all of unit norm about their mean."""
    folder = DATA / "kernels"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not there: no kernels of trained networks")
    layers = [w for path in sorted(folder.glob("*.safetensors")) for w in load_file(path).values()]
    kernels = np.concatenate([w for w in layers if w.shape[1:] == (SIZE, SIZE)]).astype(np.float64)
    kernels -= kernels.mean(axis=(1, 2), keepdims=True)
    norm = np.linalg.norm(kernels, axis=(1, 2), keepdims=True)
    kernels = (kernels / np.maximum(norm, 1e-30))[norm[:, 0, 0] > 1e-6]
    return kernels[np.random.default_rng(11).choice(len(kernels), count, replace=False)]


@functools.cache
def _program(families: tuple, config: FitConfig):
    def fit(kernel):
        return fit_kernel(kernel, families, config=config)

    return jax.jit(jax.vmap(fit), compiler_options={"xla_backend_optimization_level": 0})


def fit_unoptimised(kernels: np.ndarray, families: tuple, config: FitConfig):
    """Fit in a program compiled in half the time, for families that few kernels are fitted with."""
    return jax.tree.map(np.asarray, _program(families, config)(kernels))
