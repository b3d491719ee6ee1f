"""Evidence for and against clusters, on groups that are there and on noise."""

import numpy as np
import pytest

from dogfit.clusters import gap_statistic, mixture, representations, stability, validate_clusters
from dogfit.nulls import white_noise


@pytest.fixture(scope="module")
def groups():
    """Four well parted shapes of 5x5, 50 kernels each, and which is which."""
    rng = np.random.default_rng(3)
    shapes = np.linalg.qr(rng.normal(size=(25, 4)))[0].T.reshape(4, 5, 5)
    member = np.arange(200) % 4
    return shapes[member] + 0.05 * rng.normal(size=(200, 5, 5)), member


def test_representations_are_those_of_the_svd(groups):
    kernels, _ = groups
    spaces = representations(kernels, np.arange(200))
    rows = spaces["kernels"]
    np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, atol=1e-5)
    u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    kept = spaces["PCA"].shape[1]
    assert kept == int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.9)) + 1
    np.testing.assert_allclose(np.abs(spaces["PCA"]), np.abs(u * s)[:, :kept], atol=1e-6)
    assert spaces["code"].shape == (200, 1)
    assert "code" not in representations(kernels)


def test_mixture_finds_and_counts_groups(groups):
    kernels, member = groups
    kernels = kernels.copy()
    kernels[7] = 0
    found = mixture(kernels, 4)
    assert found.labels[7] == -1
    table = np.zeros((4, 4), int)
    np.add.at(table, (member[found.labels >= 0], found.labels[found.labels >= 0]), 1)
    assert (np.sort(table.max(axis=1)) == [49, 50, 50, 50]).all()
    bics = {k: mixture(kernels, k).bic for k in (2, 3, 4, 5, 6)}
    assert min(bics, key=bics.__getitem__) == 4
    with pytest.raises(ValueError, match="199 usable"):
        mixture(kernels, 200)


def test_stability_of_groups_and_noise(groups):
    rows = representations(groups[0])["PCA"]
    noise = representations(white_noise(200, 5, 0))["kernels"]
    for resample in (False, True):
        assert stability(noise, 6, resample=resample) < 0.4
    assert stability(rows, 4, "mixture", resample=True) > 0.9
    assert np.isnan(stability(rows, 2, resample=False, repeats=1))  # one run has none to agree with


def test_validate_clusters_tells_groups_from_noise(groups):
    kernels, member = groups
    kernels = np.concatenate([kernels, np.ones((1, 5, 5))])
    code = np.append((member + 0.5) / 4 + 0.001 * np.arange(200) / 200, np.nan)
    truth = np.append(member, 0)
    found = validate_clusters(
        kernels, code, clusters=4, given={"truth": truth}, counts=(2, 4, 6, 99), repeats=3
    )
    assert found.kernels == 200
    by = {(score.space, score.method): score for score in found.scores}
    assert set(by) == {
        ("truth", "given"),
        *((space, method) for space in ("kernels", "PCA", "code") for method in ("k-means", "mixture")),
    }
    for score in by.values():
        if score.method != "given":
            assert score.agreement["truth"]["ari"] == pytest.approx(1)
            assert score.silhouette > 0.7
    assert by["truth", "given"].silhouette_kernels == pytest.approx(
        by["kernels", "k-means"].silhouette_kernels
    )
    for curve in found.curves:
        assert curve.counts == (2, 4, 6)
    assert found.curves[0].supported["silhouette"] == 4
    assert found.curves[1].supported["bic"] == 4
    noise = validate_clusters(white_noise(200, 5, 1), clusters=4, counts=(), repeats=3)
    assert noise.curves == ()
    assert {score.space for score in noise.scores} == {"kernels", "PCA"}
    for score in noise.scores:
        assert score.silhouette < 0.25
        assert score.bootstrap_ari < 0.5
        assert score.agreement == {}


def test_validate_clusters_refuses_few_kernels():
    with pytest.raises(ValueError, match="7 kernels are too few"):
        validate_clusters(white_noise(7, 5, 0))


def test_gap_statistic_of_groups_and_noise(groups):
    references = [white_noise(200, 5, seed) for seed in range(1, 5)]
    counts = (1, 2, 3, 4, 5, 6)
    found = gap_statistic(groups[0], references, counts=counts)
    assert found.supported == 4
    assert found.gap[3] > 1
    none = gap_statistic(white_noise(200, 5, 9), references, counts=counts)
    assert none.supported == 1
    assert np.abs(none.gap).max() < 0.05
    with pytest.raises(ValueError, match="two references"):
        gap_statistic(groups[0], references[:1], counts=counts)
    with pytest.raises(ValueError, match="more kernels than clusters"):
        gap_statistic(groups[0][:4], references, counts=counts)
