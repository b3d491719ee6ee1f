"""Universal filters: forward selection, elbows, comparison and files."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from dogfit.clusters import elbow, explained_energy, forward_selection, match_filters, read_filters
from dogfit.errors import InputError

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "master_key_filters.json"


def energy(filters, kernels):
    """Squared centred cosine `[m, n]`, by NumPy's correlation."""
    f, k = filters.reshape(len(filters), -1), kernels.reshape(len(kernels), -1)
    return np.corrcoef(np.concatenate([f, k]))[: len(f), len(f) :] ** 2


@pytest.fixture(scope="module")
def kernels():
    rng = np.random.default_rng(0)
    shapes = rng.normal(size=(5, 4, 4))
    return rng.normal(size=(40, 1, 1)) * shapes[np.arange(40) % 5] + 0.5 * rng.normal(size=(40, 4, 4))


def test_forward_selection_is_greedy(kernels):
    table = energy(kernels, kernels)
    covered, taken = np.zeros(40), []
    for _ in range(12):
        gains = np.maximum(table - covered, 0).sum(axis=1)
        taken.append(int(gains.argmax()))
        covered = np.maximum(covered, table[taken[-1]])
    found = forward_selection(kernels, 12)
    assert match_filters(kernels[taken], found.filters).index.tolist() == list(range(12))
    np.testing.assert_allclose(
        found.explained, [table[taken[:m]].max(axis=0).mean() for m in range(1, 13)], atol=1e-5
    )


def test_forward_selection_near_the_best_set(kernels):
    table = energy(kernels, kernels)
    best = max(table[list(chosen)].max(axis=0).mean() for chosen in itertools.combinations(range(40), 3))
    found = forward_selection(kernels, 3).explained[-1]
    assert (1 - 1 / np.e) * best <= found <= best + 1e-6


def test_forward_selection_stops_when_all_is_explained():
    shapes = np.random.default_rng(1).normal(size=(3, 5, 5))
    found = forward_selection(np.concatenate([shapes, -2 * shapes, shapes + 1]), 9)
    assert len(found.filters) == 3
    assert found.explained[-1] == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        forward_selection(np.ones((4, 5, 5)))


def test_explained_energy_is_that_of_least_squares(kernels):
    filters = kernels[:3]
    found = explained_energy(filters, kernels)
    for kernel, share in zip(kernels.reshape(40, -1), found, strict=True):
        best = min(
            np.linalg.lstsq(np.stack([f, np.ones_like(f)], axis=1), kernel, rcond=None)[1][0]
            for f in filters.reshape(3, -1)
        )
        assert share == pytest.approx(1 - best / np.sum((kernel - kernel.mean()) ** 2), abs=1e-5)
    assert np.isnan(explained_energy(filters, np.ones((1, 4, 4)))).all()


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (np.minimum(np.arange(1, 21), 8), 8),
        ([0.5, 0.9, 0.95, 0.97], 2),
        ([0.3], 1),
        ([0.3, 0.4], 1),
        (np.linspace(0, 1, 9), 1),
    ],
)
def test_elbow_of_curves(curve, expected):
    assert elbow(curve) == expected


def test_match_filters_ignores_sign_and_scale(kernels):
    found = match_filters(kernels, -3 * kernels[[4, 9]] + 2)
    assert found.index.tolist() == [4, 9]
    np.testing.assert_allclose(found.cosine, 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"\[n, 4, 4\]"):
        match_filters(kernels, np.ones((1, 5, 5)))


def test_read_filters_from_json_and_npy(tmp_path, kernels):
    filters = kernels[:3].astype(np.float32)
    (tmp_path / "a.json").write_text(json.dumps(filters.tolist()))
    (tmp_path / "b.json").write_text(json.dumps({"title": "x", "filters": filters.tolist()}))
    np.save(tmp_path / "c.npy", filters)
    for name in ("a.json", "b.json", "c.npy"):
        np.testing.assert_array_equal(read_filters(tmp_path / name), filters)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "holds no filters"),
        (b'{"other": 1}', "holds no filters"),
        (b"[[[1, 2], [3]]]", "holds no filters"),
        (b"[[1, 2], [3, 4]]", r"\[m, k, k\]"),
        (b"[[[1, 2], [3, NaN]]]", "not finite"),
    ],
)
def test_read_filters_refuses_other_content(tmp_path, content, match):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_filters(tmp_path / "x.json")


def test_read_filters_refuses_missing_and_pickled_files(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_filters(tmp_path / "none.json")
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="holds no filters"):
        read_filters(tmp_path / "x.npy")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="needs ../shared/data/master_key_filters.json")
def test_read_filters_of_the_published_eight():
    filters = read_filters(PUBLISHED)
    assert filters.shape == (8, 7, 7)
    np.testing.assert_allclose(explained_energy(filters, filters), 1, atol=1e-5)
    found = forward_selection(filters, 8)
    np.testing.assert_allclose(match_filters(found.filters, filters).cosine, 1, atol=1e-5)
