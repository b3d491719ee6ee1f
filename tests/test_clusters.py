"""Segments of a code, partitions and their scores, and universal filters by backward elimination."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from dogfit.clusters import (
    UNNAMED,
    Segment,
    agreement,
    backward_elimination,
    kmeans,
    merge_short_runs,
    paper_share,
    segment_code,
    silhouette,
)
from examples import run_example


def unit(kernels):
    flat = np.asarray(kernels, float).reshape(len(kernels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


class Curve:
    """Stands for a trained autoencoder: its decoder paints the code into the kernel."""

    def __init__(self, code_dim=1):
        self.config = SimpleNamespace(code_dim=code_dim)

    def decode(self, code):
        return np.broadcast_to(np.asarray(code)[:, None, None], (len(code), 3, 3))


def segments_of(names, r2=None, **kwargs):
    """Run `segment_code` with a fit that reads the code back out of the kernels."""
    names = np.asarray(names)
    r2 = np.ones(len(names)) if r2 is None else np.asarray(r2)

    def fit(kernels):
        place = np.floor(kernels[:, 1, 1] * len(names)).astype(int)
        return SimpleNamespace(r2=r2[place], place=place)

    return segment_code(Curve(), fit, lambda result: names[result.place], samples=len(names), **kwargs)


def test_segment_code_joins_equal_names():
    segmented = segments_of(["on"] * 8 + ["d1"] * 4 + ["on"] * 4)
    assert segmented.segments == (
        Segment(0.0, 0.5, "on"),
        Segment(0.5, 0.75, "d1"),
        Segment(0.75, 1.0, "on"),
    )
    assert segmented.names == ("on", "d1")
    np.testing.assert_allclose(segmented.code, (np.arange(16) + 0.5) / 16)
    assert segmented.kernels.shape == (16, 3, 3)


def test_assign_finds_the_segment():
    segmented = segments_of(["on"] * 8 + ["d1"] * 4 + ["on"] * 4)
    codes = [0.0, 0.499, 0.5, 0.7499, 0.75, 1.0, np.nan]
    np.testing.assert_array_equal(segmented.assign(codes), [0, 0, 1, 1, 0, 0, -1])
    # Every sample is in the cluster its own name says.
    for name, code in zip(["on"] * 8 + ["d1"] * 4 + ["on"] * 4, segmented.code, strict=True):
        assert segmented.names[segmented.assign([code])[0]] == name


def test_segment_code_leaves_poor_fits_unnamed():
    r2 = np.ones(16)
    r2[4:8], r2[8:12] = 0.69, np.nan
    segmented = segments_of(["on"] * 16, r2, min_r2=0.7)
    assert [s.name for s in segmented.segments] == ["on", UNNAMED, "on"]
    assert segmented.segments[1][:2] == (0.25, 0.75)
    assert set(segmented.label) == {"on"}


def test_segment_code_merges_short_segments():
    names = ["on"] * 6 + ["x"] * 3 + ["off"] * 7
    assert segments_of(names, min_samples=4).segments == (
        Segment(0.0, 6 / 16, "on"),
        Segment(6 / 16, 1.0, "off"),
    )
    assert len(segments_of(names, min_samples=3).segments) == 3


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 9))
def test_merge_short_runs_keeps_the_length(names, shortest):
    runs = merge_short_runs(names, shortest)
    assert sum(length for _, length in runs) == len(names)
    assert all(a[0] != b[0] for a, b in itertools.pairwise(runs))
    assert len(runs) == 1 or min(length for _, length in runs) >= shortest
    assert {name for name, _ in runs} <= set(names)
    if shortest == 1:
        assert "".join(name * length for name, length in runs) == "".join(names)


def test_segment_code_refuses_several_numbers():
    with pytest.raises(ValueError, match="one number"):
        segment_code(Curve(code_dim=2), lambda k: k, lambda r: r)


def test_paper_share_at_the_papers_thresholds():
    cosine = np.array([0.69, 0.71, 0.79, 0.81, np.nan])
    assert paper_share(cosine, 7) == pytest.approx(3 / 5)
    assert paper_share(cosine, 5) == pytest.approx(1 / 5)
    assert paper_share(cosine, 3) is None
    assert paper_share([], 7) is None


def groups(n=60, seed=0):
    """Three shapes and the negative of the first, with noise; and which is which."""
    rng = np.random.default_rng(seed)
    shapes = rng.normal(size=(3, 5, 5))
    shapes = np.concatenate([shapes, -shapes[:1]])
    member = np.arange(n) % 4
    gain = rng.uniform(0.5, 5, n)[:, None, None]
    return gain * (shapes[member] + 0.1 * rng.normal(size=(n, 5, 5))) + rng.normal(size=(n, 1, 1)), member


def test_kmeans_finds_groups_at_any_gain():
    kernels, member = groups()
    result = kmeans(kernels, 4)
    assert agreement(result.labels, member) == pytest.approx((1.0, 1.0))
    rows = unit(kernels)
    np.testing.assert_allclose(
        result.inertia, np.sum((rows - result.centroids[result.labels]) ** 2), rtol=1e-4
    )
    for c in range(4):
        np.testing.assert_allclose(result.centroids[c], rows[result.labels == c].mean(axis=0), atol=1e-5)


def test_kmeans_leaves_constant_kernels_out():
    kernels, member = groups()
    kernels[4], kernels[9] = 1.0, np.inf
    labels = kmeans(kernels, 4).labels
    assert labels[4] == labels[9] == -1
    rest = labels >= 0
    assert rest.sum() == 58
    assert agreement(labels[rest], member[rest]).ari == pytest.approx(1.0)
    for k in (0, 59):
        with pytest.raises(ValueError, match="58 usable kernels"):
            kmeans(kernels, k)


def test_silhouette_equals_its_definition():
    kernels, member = groups()
    rows = unit(kernels)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    scores = []
    for i in range(len(rows)):
        own = [j for j in np.flatnonzero(member == member[i]) if j != i]
        other = min(distance[i, member == c].mean() for c in set(member) - {member[i]})
        a = distance[i, own].mean()
        scores.append((other - a) / max(a, other))
    assert silhouette(kernels, member) == pytest.approx(np.mean(scores), abs=1e-4)
    labels = np.where(np.arange(60) < 20, -1, member)
    assert silhouette(kernels, labels) == pytest.approx(
        silhouette_samples(rows[20:], member[20:]).mean(), abs=1e-4
    )
    assert np.isnan(silhouette(kernels, np.zeros(60)))
    assert np.isnan(silhouette(kernels, np.arange(60)))
    assert 0 < silhouette(kernels, member, sample=30) <= 1


def test_agreement_of_other_names():
    a = np.array([0, 0, 1, 1, 2, 2])
    assert agreement(a, np.array(list("ccaabb"))) == pytest.approx((1.0, 1.0))
    # ARI by pair counting: of 15 pairs, 3 + 6 together, 2 in both.
    b = np.array([0, 0, 0, 1, 1, 1])
    expected = 3 * 6 / 15
    assert agreement(a, b).ari == pytest.approx((2 - expected) / ((3 + 6) / 2 - expected))
    with pytest.raises(ValueError, match="one length"):
        agreement(a, b[:-1])


def explained_energy(filters, kernels):
    """Best least-squares a·x + b over the filters, per kernel, by lstsq."""
    shares = []
    for kernel in kernels.reshape(len(kernels), -1):
        total = np.sum((kernel - kernel.mean()) ** 2)
        residuals = [
            np.linalg.lstsq(np.stack([f, np.ones_like(f)], axis=1), kernel, rcond=None)[1][0]
            for f in filters.reshape(len(filters), -1)
        ]
        shares.append(1 - min(residuals) / total)
    return np.mean(shares)


def test_backward_elimination_is_greedy():
    rng = np.random.default_rng(0)
    candidates, (kernels, _) = rng.normal(size=(6, 5, 5)), groups(40)
    result = backward_elimination(candidates, kernels)
    for count in range(1, 7):
        assert result.explained[count - 1] == pytest.approx(
            explained_energy(result.filters[:count], kernels), abs=1e-4
        )
    # Greedy: no other filter could have been dropped at a smaller cost.
    for count in range(2, 7):
        kept = result.filters[:count]
        others = [explained_energy(np.delete(kept, i, axis=0), kernels) for i in range(count)]
        assert result.explained[count - 2] == pytest.approx(max(others), abs=1e-4)


def test_backward_elimination_ignores_sign():
    kernels, _ = groups(40)
    shapes = np.stack([kernels[i] for i in range(3)])
    result = backward_elimination(shapes, kernels)
    assert result.explained[-1] > 0.9
    assert (np.diff(result.explained) > 0).all()


def test_backward_elimination_refuses_constant_kernels():
    kernels, _ = groups(8)
    with pytest.raises(ValueError, match="at least one"):
        backward_elimination(np.ones((3, 5, 5)), kernels)
    with pytest.raises(ValueError, match=r"\[n, 5, 5\]"):
        backward_elimination(kernels, np.ones((3, 7, 7)))


@pytest.mark.parametrize("function", [kmeans, agreement, backward_elimination])
def test_examples(function):
    run_example(function)
