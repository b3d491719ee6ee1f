"""Shares of labels: how sure they are, which layers stand out, how models differ, and runs over training.

A share is counted over kernels. Kernels of one layer are trained together and resemble each other, so that an
interval over kernels says how well the share of *these layers* is known; where layers or models are compared,
whole layers are resampled or shuffled instead.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

# Words before a number that make it a time in training. A bare number does not: "x2" and "x4" are sizes.
_TIMES = "global_?step|steps?|epochs?|iterations?|iters?|ckpt|checkpoint|snapshot|batch"
_TIME = re.compile(rf"(?<![a-zA-Z])(?:{_TIMES})[-_=. ]?(\d+)", re.IGNORECASE)
# Layers of a model below which none can stand out from the others.
LEAST_LAYERS = 4


class Interval(NamedTuple):
    """A share and the limits of its confidence interval."""

    share: float
    low: float
    high: float


def share_intervals(
    counts: ArrayLike, total: int, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Shares of `total` kernels with bootstrap intervals over kernels (percentile method).

    Drawing kernels with replacement makes the counts multinomial, so they are drawn as such. A share of 0 or
    1 is the same in every draw; there the exact limit of Clopper and Pearson (1934) is given instead.

    Args:
      counts: `[c]` kernels of each label; they may sum to less than `total`, not to more.

    Raises:
      ValueError: the counts are negative or sum to more than `total`, or `total` is below 1.
    """
    of = np.asarray(counts, np.int64)
    if total < 1 or (of < 0).any() or of.sum() > total:
        raise ValueError(f"counts must be at least 0 and sum to at most total = {total} > 0, got {of}")
    shares = of / total
    rest = np.append(of, total - of.sum()) / total
    drawn = np.random.default_rng(seed).multinomial(total, rest, draws)[:, :-1] / total
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    reach = 1 - ((1 - level) / 2) ** (1 / total)
    low = np.where(of == total, 1 - reach, low)
    high = np.where(of == 0, reach, high)
    return [Interval(*map(float, row)) for row in zip(shares, low, high, strict=True)]


def label_shares(
    labels: ArrayLike, names: Sequence[str], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Share of each name among labels `[n]`, see `share_intervals`; empty when there are no labels."""
    given = np.asarray(labels)
    if not given.size:
        return {}
    counts = [int(np.sum(given == name)) for name in names]
    found = share_intervals(counts, given.size, draws=draws, level=level, seed=seed)
    return dict(zip(names, found, strict=True))


class Outlier(NamedTuple):
    """A layer whose share of a label its model's other layers do not explain.

    `low` and `high` hold 95 % of what the others lead one to expect; `p` is adjusted for all comparisons.
    """

    layer: int
    label: int
    share: float
    low: float
    high: float
    p: float


def outlying_shares(counts: ArrayLike, totals: ArrayLike, *, rate: float = 0.05) -> list[Outlier]:
    """Layers that stand out, by a stated rule.

    For each layer and label the model's other layers give a beta-binomial distribution of the share: their
    mean, and their spread beyond counting noise, by moments (at least that of all labels together). The
    two-sided p of the layer's own count is adjusted over all layers and labels for the false discovery rate
    under any dependence (Benjamini and Yekutieli, 2001); those at most `rate` are returned, the most striking
    first.

    Args:
      counts: `[l, c]` kernels of each layer and label.
      totals: `[l]` kernels of each layer.

    Returns:
      Nothing for fewer than four layers: too few others to say what is usual.
    """
    from scipy.stats import false_discovery_control

    of, n = np.asarray(counts, np.int64), np.asarray(totals, np.int64)
    layers = np.flatnonzero(n > 0)
    labels = np.flatnonzero(of.sum(axis=0) > 0)
    if len(layers) < LEAST_LAYERS or not len(labels):
        return []
    found = []
    for layer in layers:
        others = layers[layers != layer]
        usual = _usual(of[np.ix_(others, labels)], n[others])
        found += _compare(of[layer, labels], int(n[layer]), *usual, int(layer), labels)
    adjusted = false_discovery_control([outlier.p for outlier in found], method="by")
    named = [outlier._replace(p=float(p)) for outlier, p in zip(found, adjusted, strict=True)]
    return sorted((o for o in named if o.p <= rate), key=lambda o: o.p)


def _usual(of: Int[np.ndarray, "l c"], n: Int[np.ndarray, "l"]) -> tuple[np.ndarray, np.ndarray]:
    """Both parameters `[c]` of the beta distribution of a layer's share, by moments of the others."""
    total, freedom = n.sum(), len(n) - 1
    mean = (of.sum(axis=0) + 0.5) / (total + 1)
    variance = mean * (1 - mean)
    squares = (n[:, None] * (of / n[:, None] - mean) ** 2).sum(axis=0)
    # Counting alone gives `freedom`. A rare label says little about its spread by itself: that of all labels
    # together is the least it is given.
    spread = np.maximum(squares / variance, squares.sum() / variance.sum())
    correlation = (spread - freedom) / (total - (n**2).sum() / total - freedom)
    correlation = np.clip(correlation, 1e-6, 0.95)
    size = (1 - correlation) / correlation
    return mean * size, (1 - mean) * size


def _compare(
    of: np.ndarray, n: int, a: np.ndarray, b: np.ndarray, layer: int, labels: np.ndarray
) -> list[Outlier]:
    from scipy.stats import betabinom

    mass = betabinom.pmf(np.arange(n + 1)[:, None], n, a, b)
    below = np.cumsum(mass, axis=0)
    places = np.arange(len(of))
    at_most = below[of, places]
    at_least = np.cumsum(mass[::-1], axis=0)[n - of, places]
    p = np.minimum(2 * np.minimum(at_most, at_least), 1)
    low, high = ((below < q).sum(axis=0) / n for q in (0.025, 0.975))
    return [
        Outlier(layer, int(label), float(of[i] / n), float(low[i]), float(min(high[i], 1)), float(p[i]))
        for i, label in enumerate(labels)
    ]


class Distance(NamedTuple):
    """Half the summed differences of two models' label shares (total variation), in [0, 1].

    `chance` is the mean of the same when layers are dealt to the models at random, `p` the share of such
    deals that lie as far apart: the smaller, the more it is the model that matters and not the layer.
    """

    distance: float
    chance: float
    p: float


def share_distance(a: ArrayLike, b: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Distance:
    """How far apart two models' label shares lie, beside what shuffling their layers gives.

    Args:
      a, b: counts `[layers, labels]` of the two models, the same labels in the same order.

    Raises:
      ValueError: the label axes differ, or a model has no kernels.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"counts must be [layers, labels], got {first.shape} and {second.shape}")
    if not first.sum() or not second.sum():
        raise ValueError("both models need kernels")
    rows = np.concatenate([first, second])
    rows = rows[rows.sum(axis=1) > 0]
    m = int((first.sum(axis=1) > 0).sum())

    def apart(dealt: Float[np.ndarray, "d rows"]) -> Float[np.ndarray, "d"]:
        one, two = dealt @ rows, (1 - dealt) @ rows
        shares = [table / table.sum(axis=1, keepdims=True) for table in (one, two)]
        return np.abs(shares[0] - shares[1]).sum(axis=1) / 2

    distance = float(apart(np.arange(len(rows))[None] < m)[0])
    shuffled = apart(_deals(len(rows), m, draws, seed))
    p = (1 + np.sum(shuffled >= distance - 1e-12)) / (1 + draws)
    return Distance(distance, float(shuffled.mean()), float(p))


@lru_cache(maxsize=256)
def _deals(rows: int, m: int, draws: int, seed: int) -> Float[np.ndarray, "draws rows"]:
    """Which `m` of the rows the first model is dealt, by draw; the same for all pairs of such lengths."""
    rng = np.random.default_rng(seed)
    dealt = np.zeros((draws, rows))
    for row in dealt:
        row[rng.permutation(rows)[:m]] = 1
    return dealt


@dataclass(frozen=True)
class TrainingRun:
    """Checkpoints of one run: its name with the time left out, and models and times in order."""

    name: str
    models: tuple[str, ...]
    times: tuple[int, ...]


def training_runs(layers: Mapping[str, Hashable]) -> list[TrainingRun]:
    """Which models are checkpoints of one run, by their names.

    They have the same layers, and their names differ only in a number that follows a word of time: step,
    epoch, iteration, checkpoint, snapshot, ... (`step-1000`, `step-2000`).

    Args:
      layers: for each model name, what must be equal within a run (names and shapes of the layers, say).
    """
    groups: dict[Hashable, list[tuple[tuple[int, ...], str]]] = {}
    for model, same in layers.items():
        times = tuple(int(match) for match in _TIME.findall(model))
        if times:
            groups.setdefault((_without_times(model), same), []).append((times, model))
    runs = []
    for (name, _), members in ((key, sorted(found)) for key, found in groups.items()):  # type: ignore[misc]
        times = np.array([times for times, _ in members])
        # Of several numbers (epoch and step), the finest that tells all members apart.
        telling = [c for c in range(times.shape[1]) if len(np.unique(times[:, c])) == len(members)]
        if len(members) > 1 and telling:
            column = times[:, telling[-1]]
            order = np.argsort(column, kind="stable")
            runs.append(
                TrainingRun(name, tuple(members[i][1] for i in order), tuple(int(column[i]) for i in order))
            )
    return runs


def _without_times(model: str) -> str:
    return _TIME.sub(lambda match: match[0][: match.start(1) - match.start()] + "*", model)
