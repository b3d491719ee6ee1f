"""Quality of the kernels of a layer as a set: sparsity, entropy, orthogonality, covariance.

The first three are those of CNN Filter DB (Gavrikov and Keuper, CVPR 2022), there for 3x3, here for any
size. The covariance is what Trockman, Willmott and Kolter (ICLR 2023) saw to be structured in depthwise
layers. Each measure comes with what it is for random kernels. None depends on the scale of the layer or on
the order of its kernels.
"""

import math

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from dogfit.analysis.layer_covariance import covariance, fit_gaussian_process, rescaled_rows

SPARSE_SHARE = 0.01
# Height, midpoint, rate and offset of T_k(n) by kernel side k. 3x3 as published; the others by
# benchmarks/entropy.py.
THRESHOLDS: dict[int, tuple[float, float, float, float]] = {
    2: (0.75373, 2.5141, 0.92624, -0.15789),
    3: (1.2618047, 2.30436435, 0.88767525, -0.31050834),
    4: (1.6561, 2.1638, 0.84429, -0.45811),
    5: (2.1745, 1.8558, 0.68485, -0.77276),
    6: (2.46, 1.8518, 0.64197, -0.89684),
    7: (2.7538, 1.8, 0.58687, -1.0488),
    8: (2.8058, 2.0578, 0.57106, -0.98092),
    9: (3.06, 1.9987, 0.52547, -1.1213),
    10: (3.1597, 2.1231, 0.50735, -1.1227),
    11: (3.3177, 2.1525, 0.48145, -1.1869),
    13: (3.6049, 2.2091, 0.44021, -1.3052),
    15: (3.8629, 2.2604, 0.40828, -1.413),
    19: (4.4067, 2.2559, 0.35403, -1.685),
    25: (5.3012, 2.0593, 0.29106, -2.2051),
    31: (6.4984, 1.4973, 0.23819, -3.0171),
    51: (56.167, -26.342, 0.077503, -50.111),
}
# Kernels whose cosines with others are held at once.
_ROWS = 512


def sparse(kernels: ArrayLike) -> Bool[np.ndarray, "m"]:
    """Find the finite kernels of `[n, k, k]` that have no tap of 1 % of the layer's largest or more."""
    rows = rescaled_rows(kernels)
    return np.abs(rows).max(axis=1, initial=0) < SPARSE_SHARE


def sparsity(kernels: ArrayLike) -> float:
    """Share of `sparse` kernels; NaN for a layer without finite kernels."""
    mask = sparse(kernels)
    return float(mask.mean()) if mask.size else math.nan


def variance_entropy(kernels: ArrayLike) -> float:
    """Entropy, to base 10, of how a layer's variance is spread over its principal components.

    0 when all kernels `[n, k, k]` lie on a line, at most `log10(k²)`. NaN for fewer than two finite kernels,
    and 0 for a layer of equal ones.
    """
    return _entropy(rescaled_rows(kernels))


def _entropy(rows: Float[np.ndarray, "m taps"]) -> float:
    if len(rows) < 2:
        return math.nan
    centred = rows - rows.mean(axis=0)
    gram = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    variance = np.maximum(np.linalg.eigvalsh(gram), 0)
    # Below this only rounding is left of the variance.
    if variance.sum() <= 1e-24 * np.sum(rows**2):
        return 0.0
    share = variance[variance > 0] / variance.sum()
    return max(float(-np.sum(share * np.log10(share))), 0.0)


def random_entropy(n: int, k: int) -> float:
    """Variance entropy to expect of a random layer of n independent normal k x k kernels.

    The mean under the Marchenko-Pastur law, `ln m - m / 2M` for m the lesser and M the larger of k² and n - 1
    (the form of Page's mean entropy, Phys. Rev. Lett. 71, 1291, 1993). Within 0.01 of simulated means from
    n = 4 on, and much closer for large layers.
    """
    if n < 2:
        return math.nan
    lesser, larger = sorted((k * k, n - 1))
    return max(math.log(lesser) - lesser / (2 * larger), 0.0) / math.log(10)


def logistic(x: ArrayLike, height: float, midpoint: float, rate: float, offset: float) -> np.ndarray:
    """`height / (1 + exp(-rate (x - midpoint))) + offset`."""
    return height / (1 + np.exp(-rate * (np.asarray(x, np.float64) - midpoint))) + offset


def entropy_threshold(n: int, k: int) -> float:
    """CNN Filter DB's T(n), the least variance entropy of random layers of n kernels, for side k.

    A logistic curve in log2 n: the published one for 3x3, refitted for other sides (`benchmarks/entropy.py`).
    Between the sides of the table it is interpolated in log k, and beyond them it is that of the nearest. NaN
    below n = 4, where the curve crosses zero.
    """
    if n < 4:
        return math.nan
    sides = sorted(THRESHOLDS)
    values = [float(logistic(math.log2(n), *THRESHOLDS[side])) for side in sides]
    return float(np.interp(math.log(k), np.log(sides), values))


def orthogonality(kernels: ArrayLike) -> float:
    """One less the mean |cosine| between two kernels of a layer `[n, k, k]`, raw taps.

    1 when all are orthogonal, 0 when all are parallel. In a depthwise layer n usually exceeds k², so that 1
    cannot be reached: read it against `random_orthogonality`. All-zero kernels, which have no direction, are
    left out (CNN Filter DB counts them as orthogonal). NaN for fewer than two kernels.
    """
    rows = rescaled_rows(kernels)
    norm = np.linalg.norm(rows, axis=1)
    unit = (rows[norm > 0] / norm[norm > 0, None]).astype(np.float32)
    n = len(unit)
    if n < 2:
        return math.nan
    total = 0.0
    for start in range(0, n, _ROWS):
        # Pairs above the diagonal of this block and beside it, each once.
        block = unit[start : start + _ROWS]
        cosines = np.abs(block @ unit[start:].T)
        within = cosines[:, : len(block)]
        total += (
            float(cosines.sum(dtype=np.float64)) - float(within.sum(dtype=np.float64)) / 2 - len(block) / 2
        )
    return 1 - total / (n * (n - 1) / 2)


def random_orthogonality(k: int) -> float:
    """Orthogonality to expect of independent normal k x k kernels, whatever their number.

    The mean |cosine| of random directions in p dimensions is `Γ(p/2) / (√π Γ((p + 1)/2))`.
    """
    p = k * k
    return 1 - math.exp(math.lgamma(p / 2) - math.lgamma((p + 1) / 2)) / math.sqrt(math.pi)


def layer_quality(kernels: ArrayLike) -> dict[str, float | None]:
    """Measure one layer in every way.

    Args:
      kernels: raw taps of the layer `[n, k, k]`.

    Returns:
      Measures by name, None where one has no value: sparsity; variance_entropy, `_norm` (relative to
      `entropy_threshold`), `_random` (to expect of a random layer); variance_entropy_clean and `_norm`,
      without sparse kernels; orthogonality and `_random`; of the covariance's closed form gp_length_px and
      gp_envelope_px (taps), gp_noise (white fraction of the variance in the middle), gp_distance, and
      gp_distance_chance for as many kernels drawn from the form itself.

    Raises:
      ValueError: if the shape is not `[n, k, k]`.

    Example:
      >>> import numpy as np
      >>> from dogfit import layer_quality
      >>> layer_quality(np.eye(9).reshape(9, 3, 3))["orthogonality"]
      1.0
    """
    rows = rescaled_rows(kernels)
    k = math.isqrt(rows.shape[1])
    n = len(rows)
    clean = rows[np.abs(rows).max(axis=1, initial=0) >= SPARSE_SHARE]
    entropy, clean_entropy = _entropy(rows), _entropy(clean)
    found = {
        "sparsity": 1 - len(clean) / n if n else math.nan,
        "variance_entropy": entropy,
        "variance_entropy_norm": entropy / entropy_threshold(n, k),
        "variance_entropy_random": random_entropy(n, k),
        "variance_entropy_clean": clean_entropy,
        "variance_entropy_clean_norm": clean_entropy / entropy_threshold(len(clean), k),
        "orthogonality": orthogonality(kernels),
        "orthogonality_random": random_orthogonality(k),
    }
    names = ("gp_length_px", "gp_envelope_px", "gp_noise", "gp_distance", "gp_distance_chance")
    found |= dict.fromkeys(names, math.nan)
    if n > 1:
        form = fit_gaussian_process(covariance(kernels))
        noise = form.noise / total if (total := form.smooth + form.noise) else math.nan
        values = (form.length_px, form.envelope_px, noise, form.distance, form.chance_distance(n, k))
        found |= dict(zip(names, values, strict=True))
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
