"""Shares of labels: their intervals, layers that stand out, distances between models, and training runs.

A share is a fraction of kernels. Kernels of one layer are trained together and resemble each other, so an
interval over kernels says how well the share of *these layers* is known; where layers or models are compared,
whole layers are shuffled instead.
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
# Fewest layers of a model among which one can stand out from the others.
MIN_LAYERS = 4


class Interval(NamedTuple):
    """A share and the limits of its confidence interval, all in [0, 1]."""

    share: float
    low: float
    high: float


def share_intervals(
    counts: ArrayLike, total: int, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """Compute shares of `total` kernels with bootstrap intervals over kernels (percentile method).

    Drawing kernels with replacement makes the counts multinomial, so they are drawn as such. A share of 0 or
    1 is the same in every draw; there the exact limit of Clopper and Pearson (1934) is given instead.

    Args:
      counts: kernels of each label `[c]`; they may sum to less than `total`, not to more.
      total: kernels in all.
      draws: bootstrap samples.
      level: probability that the interval covers.
      seed: of the draws.

    Returns:
      An interval for each label.

    Raises:
      ValueError: the counts are negative or sum to more than `total`, or `total` is below 1.
    """
    from scipy.stats import beta

    of = np.asarray(counts, np.int64)
    if total < 1 or (of < 0).any() or of.sum() > total:
        raise ValueError(f"counts must be at least 0 and sum to at most total = {total} > 0, got {of}")
    shares = of / total
    rest = np.append(of, total - of.sum()) / total
    drawn = np.random.default_rng(seed).multinomial(total, rest, draws)[:, :-1] / total
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    of_none = beta.ppf((1 + level) / 2, 1, total)
    low = np.where(of == total, 1 - of_none, low)
    high = np.where(of == 0, of_none, high)
    return [Interval(*map(float, row)) for row in zip(shares, low, high, strict=True)]


def label_shares(
    labels: ArrayLike, names: Sequence[str], *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Compute the share of each name among some labels, with its interval.

    Args:
      labels: `[n]`.
      names: of the labels to count.
      draws, level, seed: see `share_intervals`.

    Returns:
      An interval for each name; empty when there are no labels.
    """
    given = np.asarray(labels)
    if not given.size:
        return {}
    counts = [int(np.sum(given == name)) for name in names]
    found = share_intervals(counts, given.size, draws=draws, level=level, seed=seed)
    return dict(zip(names, found, strict=True))


class Outlier(NamedTuple):
    """A layer whose share of a label its model's other layers do not explain.

    Attributes:
      layer, label: indices into the counts.
      share: of the label in the layer.
      low, high: limits that hold 95 % of the shares to expect from the other layers.
      p: adjusted for all comparisons.
    """

    layer: int
    label: int
    share: float
    low: float
    high: float
    p: float


def outlying_shares(counts: ArrayLike, totals: ArrayLike, *, rate: float = 0.05) -> list[Outlier]:
    """Find layers that stand out from the others of their model.

    For each layer and label the model's other layers give a beta-binomial distribution of the share: their
    mean, and their spread beyond counting noise, by moments (at least that of all labels together). The
    two-sided p of the layer's own count is adjusted over all layers and labels for the false discovery rate
    under any dependence (Benjamini and Yekutieli, 2001); those at most `rate` are returned.

    Args:
      counts: `[l, c]` kernels of each layer and label.
      totals: `[l]` kernels of each layer.
      rate: false discovery rate.

    Returns:
      Outliers, the smallest p first; none for fewer than four layers, which say too little of what is usual.
    """
    from scipy.stats import false_discovery_control

    of, n = np.asarray(counts, np.int64), np.asarray(totals, np.int64)
    layers = np.flatnonzero(n > 0)
    labels = np.flatnonzero(of.sum(axis=0) > 0)
    if len(layers) < MIN_LAYERS or not len(labels):
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
    """Parameters `[c]` of the beta distribution of a layer's share, by moments of the other layers."""
    total, freedom = n.sum(), len(n) - 1
    mean = (of.sum(axis=0) + 0.5) / (total + 1)
    variance = mean * (1 - mean)
    squares = (n[:, None] * (of / n[:, None] - mean) ** 2).sum(axis=0)
    # Counting alone gives `freedom`. A rare label says little about its own spread, so it is given at least
    # that of all labels together.
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
    """Distance between the label shares of two models.

    Attributes:
      distance: half the summed absolute differences (total variation), in [0, 1].
      chance: mean distance when layers are assigned to the two models at random.
      p: fraction of these assignments with at least this distance; the smaller, the more the models differ
        and not only their layers.
    """

    distance: float
    chance: float
    p: float


def share_distance(a: ArrayLike, b: ArrayLike, *, draws: int = 2000, seed: int = 0) -> Distance:
    """Compare two models' label shares, and test the difference by shuffling their layers.

    Args:
      a, b: counts `[layers, labels]` of the two models, the same labels in the same order.
      draws: random assignments of the layers.
      seed: of the draws.

    Returns:
      The distance, its mean under random assignment, and p.

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

    def distances(first: Float[np.ndarray, "d rows"]) -> Float[np.ndarray, "d"]:
        one, two = first @ rows, (1 - first) @ rows
        shares = [table / table.sum(axis=1, keepdims=True) for table in (one, two)]
        return np.abs(shares[0] - shares[1]).sum(axis=1) / 2

    distance = float(distances(np.arange(len(rows))[None] < m)[0])
    shuffled = distances(_random_subsets(len(rows), m, draws, seed))
    p = (1 + np.sum(shuffled >= distance - 1e-12)) / (1 + draws)
    return Distance(distance, float(shuffled.mean()), float(p))


@lru_cache(maxsize=256)
def _random_subsets(rows: int, m: int, draws: int, seed: int) -> Float[np.ndarray, "draws rows"]:
    """Masks of `m` of the rows, one for each draw; the same for all pairs of models of such lengths."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros((draws, rows))
    for row in chosen:
        row[rng.permutation(rows)[:m]] = 1
    return chosen


@dataclass(frozen=True)
class TrainingRun:
    """Checkpoints of one run.

    Attributes:
      name: of the models, with the time replaced by an asterisk.
      models: their names, in order of time.
      times: the numbers in their names, such as steps or epochs.
    """

    name: str
    models: tuple[str, ...]
    times: tuple[int, ...]


def training_runs(layers: Mapping[str, Hashable]) -> list[TrainingRun]:
    """Find models that are checkpoints of one run, by their names.

    They have the same layers, and their names differ only in a number that follows a word of time: step,
    epoch, iteration, checkpoint, snapshot, ... (`step-1000`, `step-2000`).

    Args:
      layers: for each model name, something that is equal within a run, such as names and shapes of layers.

    Returns:
      Runs of two or more checkpoints.
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
