"""How good the kernels of a layer are as a set: sparsity, entropy, orthogonality, covariance.

The first three are those of CNN Filter DB (Gavrikov and Keuper, CVPR 2022), there for 3x3, here for any
size. The covariance is what Trockman, Willmott and Kolter (ICLR 2023) saw to be structured in depthwise
layers. Each measure comes with what it is for random kernels. None depends on the scale of the layer or on
the order of its kernels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import ArrayLike, Bool, Float

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
# Lengths and envelopes tried, as factors between neighbours, coarse then finer about the best.
_NODES, _ZOOMS = 16, 3


def usable(kernels: ArrayLike) -> Float[np.ndarray, "m taps"]:
    """Finite kernels of `[n, k, k]` as rows, scaled so that the largest tap is 1, in float64.

    Raises:
      ValueError: if the shape is not `[n, k, k]`.
    """
    array = np.asarray(kernels, np.float64)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"kernels must be [n, k, k], got shape {array.shape}")
    rows = array.reshape(len(array), array.shape[1] ** 2)
    rows = rows[np.isfinite(rows).all(axis=1)]
    largest = np.abs(rows).max(initial=0)
    return rows / largest if largest > 0 else rows


def sparse(kernels: ArrayLike) -> Bool[np.ndarray, "m"]:
    """Which finite kernels of `[n, k, k]` have no tap of 1 % of the layer's largest or more."""
    rows = usable(kernels)
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
    return _entropy(usable(kernels))


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
    rows = usable(kernels)
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


def covariance(kernels: ArrayLike) -> Float[np.ndarray, "taps taps"]:
    """Unbiased covariance of the taps of a layer `[n, k, k]`, in the units of the layer's largest tap.

    Raises:
      ValueError: for fewer than two finite kernels.
    """
    rows = usable(kernels)
    if len(rows) < 2:
        raise ValueError(f"a covariance needs two finite kernels, got {len(rows)}")
    centred = rows - rows.mean(axis=0)
    return centred.T @ centred / (len(rows) - 1)


@dataclass(frozen=True)
class GaussianProcess:
    """A closed form of a layer's covariance: smooth within an envelope, and white noise.

    For taps at p and q from the kernel's middle (in taps),

        cov(p, q) = smooth exp(-(|p|² + |q|²) / 4w²) exp(-|p - q|² / 2l²) + noise [p = q]

    This is dogfit's own form: a squared-exponential Gaussian process under a Gaussian envelope. Trockman,
    Willmott and Kolter build theirs from shifted Gaussians, which it resembles and does not copy.
    """

    length_px: float
    """l: how far neighbouring taps go together."""
    envelope_px: float
    """w: standard deviation over the kernel of the smooth part's variance."""
    smooth: float
    """Variance of the smooth part in the middle."""
    noise: float
    """Variance of the white part."""
    distance: float
    """Frobenius norm of what the form misses, as a share of the covariance's: 0 exact, 1 nothing alike."""

    def matrix(self, k: int) -> Float[np.ndarray, "taps taps"]:
        """The covariance of k x k kernels, taps in row-major order."""
        line = _line(k, np.array([self.length_px]), np.array([self.envelope_px]))[:, 0].reshape(k, k)
        return self.smooth * np.kron(line, line) + self.noise * np.eye(k * k)

    def chance_distance(self, n: int, k: int) -> float:
        """Distance to expect when n kernels are drawn from this very process.

        The root of the mean squared error of a Gaussian sample covariance, `(|S|² + tr² S) / (n - 1)`, as a
        share of its mean squared norm.
        """
        if n < 2:
            return math.nan
        matrix = self.matrix(k)
        energy = float(np.sum(matrix**2))
        error = (energy + float(np.trace(matrix)) ** 2) / (n - 1)
        return math.sqrt(error / (energy + error)) if error > 0 else math.nan


def fit_gaussian_process(matrix: Float[ArrayLike, "taps taps"]) -> GaussianProcess:
    """The closed form nearest to a covariance in the Frobenius norm.

    Length and envelope are searched on a logarithmic grid that closes in on the best node; the two variances
    follow from non-negative least squares at each node. The form is separable, so a node costs no more than a
    product with one rearranged matrix (Van Loan and Pitsianis, 1993).

    Args:
      matrix: `[k², k²]`, taps in row-major order.

    Raises:
      ValueError: if the shape is not that of a covariance of square kernels.
    """
    matrix = np.asarray(matrix, np.float64)
    k = math.isqrt(len(matrix))
    if matrix.shape != (k * k, k * k):
        raise ValueError(f"a covariance of k x k kernels must be [k², k²], got shape {matrix.shape}")
    energy = float(np.sum(matrix**2))
    if not energy > 0:
        return GaussianProcess(math.nan, math.nan, 0.0, 0.0, math.nan)
    # <C, A ⊗ A> = vec(A)' R vec(A): rows (y, y'), columns (x, x').
    folded = matrix.reshape(k, k, k, k).transpose(0, 2, 1, 3).reshape(k * k, k * k)
    trace = float(np.trace(matrix))
    lengths, envelopes, nodes = *_coarse(k), _coarse_lines(k)
    for zoom in range(_ZOOMS + 1):
        smooth, noise, explained = _variances(folded, trace, nodes, k)
        best = int(np.argmax(explained))
        if zoom == _ZOOMS:
            break
        # One step of the grid just searched, to either side.
        step = [float(np.max(v) / np.min(v)) ** (1 / (_NODES - 1)) for v in (lengths, envelopes)]
        around = [
            np.geomspace(v[best] / s, v[best] * s, _NODES)
            for v, s in zip((lengths, envelopes), step, strict=True)
        ]
        lengths, envelopes = (v.ravel() for v in np.meshgrid(*around))
        nodes = _line(k, lengths, envelopes)
    missed = max(energy - float(explained[best]), 0.0)
    length, envelope, variance, white = (float(v[best]) for v in (lengths, envelopes, smooth, noise))
    return GaussianProcess(length, envelope, variance, white, math.sqrt(missed / energy))


def _coarse(k: int) -> tuple[np.ndarray, np.ndarray]:
    grids = np.geomspace(0.3, 2 * k, _NODES), np.geomspace(0.3, 4 * k, _NODES)
    length, envelope = np.meshgrid(*grids)
    return length.ravel(), envelope.ravel()


@lru_cache(maxsize=16)
def _coarse_lines(k: int) -> Float[np.ndarray, "kk nodes"]:
    return _line(k, *_coarse(k))


def _line(
    k: int, length: Float[np.ndarray, "nodes"], envelope: Float[np.ndarray, "nodes"]
) -> Float[np.ndarray, "kk nodes"]:
    """The form's smooth part along one axis, tap pairs flattened."""
    u = np.arange(k) - (k - 1) / 2
    far, apart = (u[:, None] ** 2 + u**2).ravel()[:, None], ((u[:, None] - u) ** 2).ravel()[:, None]
    return np.exp(-far / (4 * envelope**2) - apart / (2 * length**2))


def _variances(
    folded: Float[np.ndarray, "kk kk"], trace: float, lines: Float[np.ndarray, "kk nodes"], k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of both parts at every node, none negative, and the squared norm they explain."""
    with_smooth = np.sum(lines * (folded @ lines), axis=0)
    of_smooth = np.sum(lines**2, axis=0) ** 2
    between = np.sum(lines.reshape(k, k, -1)[np.arange(k), np.arange(k)], axis=0) ** 2
    of_noise = float(k * k)
    determinant = of_smooth * of_noise - between**2
    safe = np.where(determinant > 1e-12 * of_smooth * of_noise, determinant, np.inf)
    smooth = (of_noise * with_smooth - between * trace) / safe
    noise = (of_smooth * trace - between * with_smooth) / safe
    both = (smooth >= 0) & (noise >= 0) & np.isfinite(safe)
    alone = np.maximum(with_smooth, 0) / of_smooth
    smooth_better = alone * with_smooth >= trace**2 / of_noise
    smooth = np.where(both, smooth, np.where(smooth_better, alone, 0))
    noise = np.where(both, noise, np.where(smooth_better, 0, trace / of_noise))
    explained = 2 * (smooth * with_smooth + noise * trace)
    explained -= smooth**2 * of_smooth + 2 * smooth * noise * between + noise**2 * of_noise
    return smooth, noise, explained


def layer_quality(kernels: ArrayLike) -> dict[str, float | None]:
    """Every measure of one layer `[n, k, k]`; None where it has no value.

    Keys: sparsity; variance_entropy, `_norm` (as a share of `entropy_threshold`), `_random` (to expect of a
    random layer); variance_entropy_clean and `_norm`, without sparse kernels; orthogonality and `_random`;
    of the covariance's closed form gp_length_px, gp_envelope_px, gp_noise (white share of the variance in the
    middle), gp_distance, and gp_distance_chance for as many kernels drawn from the form itself.
    """
    rows = usable(kernels)
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
