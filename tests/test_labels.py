"""Labels of kernels drawn from the textbook formulas; where it matters, against what the image shows."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.labels import LABELS, label_fits
from scipy_families import draw

SIZE = 7
COMPASS = {
    "E": (1, 0), "NE": (1, -1), "N": (0, -1), "NW": (-1, -1),
    "W": (-1, 0), "SW": (-1, 1), "S": (0, 1), "SE": (1, 1),
}  # fmt: skip
"""Unit steps (x right, y down)."""


def towards(direction: str) -> float:
    """Angle `theta` at which a first derivative's positive lobe lies in a compass direction."""
    x, y = COMPASS[direction]
    # A Gaussian rises towards its centre: the lobe lies against the derivative's direction.
    return float(np.arctan2(-y, -x))


# label -> family and keyword arguments of `draw`
EXAMPLES = {
    "on-centre": ("dog", {"sigma": 0.7, "surround": 1.7, "gains": (2.0, -1.8)}),
    "off-centre": ("dog", {"sigma": 0.7, "surround": 1.7, "gains": (-2.0, 1.8), "x0": 0.1}),
    "on-square": ("gaussian", {"sigma": 0.7, "x0": 0.5, "y0": -0.5}),
    "off-square": ("gaussian", {"sigma": 0.7, "x0": 0.5, "y0": 0.5, "gains": (-1.0,)}),
    "on-margin": ("gaussian", {"sigma": 1.5, "x0": 3.3, "y0": 0.5}),
    "off-margin": ("gaussian", {"sigma": 1.5, "x0": 0.3, "y0": -3.3, "gains": (-1.0,)}),
    "on-bar-H": ("d2", {"sigma": 1.1, "theta": np.pi / 2, "gains": (-1.0, 0.05)}),
    "on-bar-V": ("d2", {"sigma": 1.1, "theta": 0.05, "gains": (-1.0, 0.05)}),
    "on-bar-D": ("d2", {"sigma": 1.1, "theta": -np.pi / 4, "gains": (-1.0, 0.05)}),
    "on-bar-A": ("d2", {"sigma": 1.1, "theta": np.pi / 4, "gains": (-1.0, 0.05)}),
    "off-bar-H": ("d2", {"sigma": 1.1, "theta": -1.5, "gains": (1.0, 0.05)}),
    "off-bar-V": ("d2", {"sigma": 1.1, "theta": 3.1, "gains": (1.0, -0.05)}),
    "off-bar-D": ("d2", {"sigma": 1.1, "theta": -0.7, "gains": (1.0, 0.05)}),
    "off-bar-A": ("d2", {"sigma": 1.1, "theta": 0.7, "gains": (1.0, 0.05)}),
    "on-cross": ("d2", {"sigma": 0.45, "theta": 0.0, "gains": (-1.0, -0.8)}),
    "off-cross": ("d2", {"sigma": 0.45, "theta": 0.0, "gains": (1.0, 0.8)}),
    "on-ring": ("d2", {"sigma": 1.2, "theta": 0.3, "gains": (-1.0, -0.7)}),
    "off-ring": ("d2", {"sigma": 1.2, "theta": 0.3, "gains": (1.0, 0.7)}),
    "saddle-axis": ("d2", {"sigma": 1.1, "theta": 0.0, "gains": (1.0, -0.9)}),
    "saddle-diagonal": ("d2", {"sigma": 1.1, "theta": np.pi / 4, "gains": (1.0, -0.9)}),
    **{f"d1-{d}": ("d1", {"sigma": 1.0, "theta": towards(d), "x0": 0.2, "y0": -0.1}) for d in COMPASS},
}
# More pictures of what one label covers.
VARIANTS = [
    ("on-centre", ("gaussian", {"sigma": 1.2, "x0": 0.1, "gains": (3.0,), "offset": -4.0})),
    ("off-centre", ("gaussian", {"sigma": 1.5, "x0": 0.5, "y0": 0.5, "gains": (-3.0,), "offset": 4.0})),
    # At half a tap along one axis only.
    ("on-centre", ("gaussian", {"sigma": 0.8, "x0": 0.5, "y0": 0.0})),
    ("on-square", ("dog", {"sigma": 0.7, "surround": 1.8, "gains": (2.0, -1.8), "x0": -1.5, "y0": 0.5})),
    *((f"d1-{d}", ("d1", {"sigma": 0.8, "theta": towards(d) + a})) for d in COMPASS for a in (-0.3, 0.3)),
]
CASES = [*EXAMPLES.items(), *VARIANTS]


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    """One drawing per case with three per cent of noise, then noise, then what cannot be fitted."""
    generator = np.random.default_rng(20)
    images = np.stack([draw(family, SIZE, **arguments) for _, (family, arguments) in CASES])
    images += 0.03 * images.std(axis=(1, 2), keepdims=True) * generator.normal(size=images.shape)
    rest = np.stack(
        [generator.choice([-1.0, 1.0], (SIZE, SIZE)), np.ones((SIZE, SIZE)), np.full((SIZE, SIZE), np.nan)]
    )
    return np.concatenate([images, rest]).astype(np.float32)


@pytest.fixture(scope="module")
def result(drawn):
    return fit_kernels(drawn)


@pytest.fixture(scope="module")
def labels(result) -> np.ndarray:
    return label_fits(result)


@pytest.mark.parametrize("row", range(len(CASES)), ids=[label for label, _ in CASES])
def test_label_fits_drawings(labels, row):
    """Drawn kernels get their name."""
    assert labels[row] == CASES[row][0]


def test_label_fits_noise_and_constant(labels):
    """Noise is unclear and a constant unfitted."""
    assert list(labels[len(CASES) :]) == ["unclear", "unfitted", "unfitted"]


def test_labels_complete(labels):
    """Labels are listed once and every one is drawn."""
    assert len(set(LABELS)) == len(LABELS)
    assert set(labels) == set(LABELS)


def lobe(image: np.ndarray) -> np.ndarray:
    """Where the bright side lies (x right, y down): centre of mass of the bright less that of the dark."""
    centred = image.astype(float) - np.median(image)
    place = (np.arange(SIZE) - (SIZE - 1) / 2) * np.ones((SIZE, SIZE))
    x, y = place, place.T
    bright, dark = np.maximum(centred, 0), np.maximum(-centred, 0)
    return np.array([np.average(axis, weights=bright) - np.average(axis, weights=dark) for axis in (x, y)])


def test_label_fits_compass(drawn, labels):
    """Compass points where the bright lobe is seen."""
    seen = 0
    for image, label in zip(drawn, labels, strict=True):
        if label.startswith("d1-"):
            step = np.array(COMPASS[label.removeprefix("d1-")], float)
            where = lobe(image)
            cosine = step @ where / np.linalg.norm(step) / np.linalg.norm(where)
            # Half a compass step, and some for the noise.
            assert cosine > np.cos(np.deg2rad(22.5 + 8)), label
            seen += 1
    assert seen == 24


def test_label_fits_bars(drawn, labels):
    """Along its own direction a bar keeps its colour: compare the middle's neighbours on the four lines."""
    steps = {"H": (0, 1), "V": (1, 0), "D": (1, 1), "A": (1, -1)}
    middle, seen = SIZE // 2, set()
    for image, label in zip(drawn, labels, strict=True):
        if "-bar-" in label:
            sign = 1 if label.startswith("on-") else -1
            along = {
                name: sign * (image[middle + dy, middle + dx] + image[middle - dy, middle - dx])
                for name, (dy, dx) in steps.items()
            }
            name = label[-1]
            across = {"H": "V", "V": "H", "D": "A", "A": "D"}[name]
            assert along[name] > along[across], label
            assert sign * (image[middle, middle] - np.median(image)) > 0
            seen.add(label)
    assert len(seen) == 8


def test_label_fits_polarity(drawn, result, labels):
    """Polarity is the colour of the middle."""
    for image, label in zip(drawn, labels, strict=True):
        if label.endswith(("-centre", "-cross", "-ring")):
            middle = image[SIZE // 2, SIZE // 2] - np.median(image)
            assert (middle > 0) == label.startswith("on-"), label
    assert len(labels) == len(result)


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_label_fits_threshold(result, threshold):
    """The threshold decides what is unclear."""
    labels = label_fits(result, least_r2=threshold)
    np.testing.assert_array_equal(labels == "unclear", result.r2 < threshold)
    np.testing.assert_array_equal(labels == "unfitted", np.isnan(result.r2))


def relabelled(result, family: str, more: dict[str, float]) -> np.ndarray:
    """Labels if the kernels of one family had been fitted by another that extends it."""
    base = family.removesuffix("_elliptic").removeprefix("dog_") if family != "dog_elliptic" else "dog"
    index, wide = result.family_names.index(base), BUILTIN_FAMILIES[family]
    values = dict(zip(BUILTIN_FAMILIES[base].names, result.parameters[base].T, strict=True))
    values |= {name: np.full(len(result), value) for name, value in more.items()}
    extended = np.stack([values[name] for name in wide.names], axis=1)
    families = tuple(wide if i == index else old for i, old in enumerate(result.families))
    parameters = {**result.parameters, family: extended}
    return label_fits(replace(result, families=families, parameters=parameters))


@pytest.mark.parametrize(
    "family", [name for name in BUILTIN_FAMILIES if name not in ("gaussian", "dog", "d1", "d2")]
)
def test_label_fits_extended_families(result, labels, family):
    """Extended families go by the rules of those they extend."""
    more = {"sigma_surround_px": 2.0, "surround_weight": 0.5} if family.startswith("dog_d") else {}
    more |= {"aspect": 1.5, "phi_rad": 0.4} if family.endswith("_elliptic") else {}
    np.testing.assert_array_equal(relabelled(result, family, more), labels)


def test_label_fits_margins_and_corners(result):
    """Places in x and y, and the shape; the first Gaussian of the examples stands for all."""
    row = int(np.flatnonzero(result.family == result.family_names.index("gaussian"))[0])
    cases = [
        ((5, 9), 3.6, 0.0, "on-centre"),
        ((5, 9), 4.2, 0.0, "on-margin"),
        ((5, 9), 0.0, 2.2, "on-margin"),
        ((9, 5), 0.0, 2.2, "on-centre"),
        ((6, 6), 0.0, 1.0, "on-square"),
        ((6, 6), 0.5, 0.5, "on-centre"),
        ((6, 7), 0.5, 0.0, "on-square"),
        ((7, 7), 0.0, 0.0, "on-centre"),
    ]
    for shape, x, y, wanted in cases:
        one = jax.tree.map(lambda leaf: leaf[row : row + 1].copy(), replace(result, shape=shape))
        one.parameters["gaussian"][:] = [0.0, 1.0, x, y, 0.7]
        assert label_fits(one, least_r2=0.0) == [wanted], (shape, x, y)
