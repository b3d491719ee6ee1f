"""Intervals, layers that stand out, distances between models, and runs over training."""

import itertools
import re

import numpy as np
import pytest
from scipy import stats

from dogfit.clusters import (
    PAPER_PATTERNS,
    label_shares,
    outlying_shares,
    paper_pattern,
    share_above,
    share_distance,
    share_intervals,
    threshold_curve,
    training_runs,
)
from dogfit.labels import LABELS


def test_share_intervals_are_scipys_bootstrap():
    counts, total = [18, 33, 5], 60
    found = share_intervals(counts, total, draws=20_000)
    for count, interval in zip(counts, found, strict=True):
        rows = np.arange(total) < count
        reference = stats.bootstrap(
            (rows,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
        ).confidence_interval
        assert interval.share == count / total
        # Both are Monte Carlo: a step of the share is 1/60.
        assert interval.low == pytest.approx(reference.low, abs=1.1 / total)
        assert interval.high == pytest.approx(reference.high, abs=1.1 / total)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_share_intervals_of_none_and_all(level):
    none, every = share_intervals([0, 40], 40, level=level)
    exact = stats.binomtest(0, 40).proportion_ci(level, method="exact")
    assert none == pytest.approx((0, 0, exact.high))
    assert every == pytest.approx((1, 1 - exact.high, 1))


def test_share_intervals_refuse_impossible_counts():
    for counts, total in (([3, 4], 6), ([-1], 5), ([0], 0)):
        with pytest.raises(ValueError, match="total"):
            share_intervals(counts, total)


def test_label_shares_count_names():
    found = label_shares(np.array(["a", "b", "a", "c"]), ["a", "b", "z"])
    assert {name: interval.share for name, interval in found.items()} == {"a": 0.5, "b": 0.25, "z": 0.0}
    assert label_shares(np.array([], dtype=str), ["a"]) == {}


def test_outlying_shares_p_is_binomial_when_others_agree():
    counts = np.array([[30, 70], *[[10, 90]] * 5])
    found = outlying_shares(counts, counts.sum(axis=1), rate=1.0)
    p = {}
    for layer, label in itertools.product(range(6), range(2)):
        others = np.delete(counts, layer, axis=0).sum(axis=0)
        mean = (others[label] + 0.5) / 501
        x = counts[layer, label]
        tails = stats.binom.cdf(x, 100, mean), stats.binom.sf(x - 1, 100, mean)
        p[layer, label] = min(1.0, 2 * min(tails))
    # Layers beside the odd one see its spread among their others; only the odd one's others agree.
    odd = {outlier.label: outlier for outlier in found if outlier.layer == 0}
    every = stats.false_discovery_control([p[0, 0], p[0, 1], *[1.0] * 10], method="by")
    for label in (0, 1):
        assert odd[label].share == counts[0, label] / 100
        assert odd[label].p == pytest.approx(every[label], rel=0.02)
    assert odd[0].low < 0.1 < odd[0].high < 0.3
    assert 0.7 < odd[1].low < 0.9 < odd[1].high
    assert found[0].layer == 0


def test_outlying_shares_find_a_planted_layer():
    rng = np.random.default_rng(0)
    false, caught = 0, 0
    for _ in range(40):
        usual = rng.dirichlet(np.full(8, 0.5))
        n = rng.choice([40, 80, 160], 12)
        counts = np.array(
            [rng.multinomial(m, p) for m, p in zip(n, rng.dirichlet(30 * usual + 1e-3, 12), strict=True)]
        )
        false += bool(outlying_shares(counts, n))
        label = int(np.argmin(np.abs(usual - 0.05)))
        moved = int(0.7 * n[3])
        counts[3] = rng.multinomial(n[3] - moved, usual)
        counts[3, label] += moved
        caught += any((o.layer, o.label) == (3, label) for o in outlying_shares(counts, n))
    # The rate asked for is 5 %; three more families than that in 40 has a chance of 5 %.
    assert false <= 5
    assert caught >= 36


def test_outlying_shares_of_three_layers():
    assert outlying_shares([[30, 0], [0, 30], [0, 30]], [30, 30, 30]) == []
    assert outlying_shares(np.zeros((6, 2), int), np.full(6, 10)) == []


def test_share_distance_over_all_assignments():
    a, b = np.array([[9, 1], [6, 4]]), np.array([[1, 9], [5, 5], [2, 8]])
    rows = np.concatenate([a, b])
    deals = []
    for chosen in itertools.combinations(range(5), 2):
        rest = [i for i in range(5) if i not in chosen]
        one, two = rows[list(chosen)].sum(axis=0), rows[rest].sum(axis=0)
        deals.append(abs(one[0] / one.sum() - two[0] / two.sum()))
    found = share_distance(a, b, draws=4000)
    assert found.distance == pytest.approx(15 / 20 - 8 / 30)
    assert found.chance == pytest.approx(np.mean(deals), abs=0.02)
    assert found.p == pytest.approx(np.mean(np.array(deals) >= deals[0] - 1e-9), abs=0.03)
    assert share_distance(a, a).distance == 0
    assert share_distance(a, a).p == 1
    with pytest.raises(ValueError, match="labels"):
        share_distance(a, np.ones((2, 3)))
    with pytest.raises(ValueError, match="kernels"):
        share_distance(a, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["step-1000", "step-200", "step-30"], [("step-*", (30, 200, 1000))]),
        (["checkpoint_5", "checkpoint_10"], [("checkpoint_*", (5, 10))]),
        (
            ["net.epoch1.step10", "net.epoch1.step20", "net.epoch2.step30"],
            [("net.epoch*.step*", (10, 20, 30))],
        ),
        (["a-step1", "a-step2", "b-step1", "b-step3"], [("a-step*", (1, 2)), ("b-step*", (1, 3))]),
        (["cfsr-x2", "cfsr-x4"], []),
        (["resnet18", "resnet34"], []),
        (["misstep1", "misstep2"], []),
        (["step-7"], []),
        (["step-01", "step-1"], []),
    ],
)
def test_training_runs_by_name(names, expected):
    found = training_runs(dict.fromkeys(names, "same layers"))
    assert [(run.name, run.times) for run in found] == expected
    for run in found:
        assert [int(re.findall(r"\d+", model)[-1]) for model in run.models] == list(run.times)


def test_training_runs_need_the_same_layers():
    assert training_runs({"step-1": "small", "step-2": "large"}) == []


def test_threshold_curve_is_the_share_above():
    values = np.array([0.1, 0.5, 0.5, 0.9, np.nan])
    grid = np.linspace(0, 1, 21)
    np.testing.assert_allclose(threshold_curve(values, grid), [share_above(values, t) for t in grid])
    assert np.isnan(threshold_curve([], grid)).all()


def test_paper_pattern_of_every_label():
    assert {paper_pattern(label) for label in (*LABELS, "unnamed", "gabor")} == set(PAPER_PATTERNS)
    for label, pattern in {
        "on-square": "on-square",
        "off-cross": "off-cross",
        "d1-NE": "first derivative",
        "off-bar-H": "second derivative",
        "saddle-axis": "second derivative",
        "on-margin": "other",
        "unclear": "none",
    }.items():
        assert paper_pattern(label) == pattern
