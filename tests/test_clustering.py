"""K-means, universal filters and evidence of one kernel size."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from dogfit.analysis.clustering import add_universal_filters, assign_by_kmeans
from dogfit.analysis.evidence import add_evidence
from dogfit.analysis.results import Scores, SizeResult
from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
from dogfit.clusters import LatentSegments, segment_code
from dogfit.kernelset import KernelSet, Layer
from dogfit.normalize import normalize_kernels
from dogfit.nulls import covariance_matched, white_noise
from dogfit.run import main
from dogfit.runtime.progress import Progress
from dogfit.runtime.workspace import Workspace


def edges(n: int, k: int, seed: int) -> np.ndarray:
    """Blobs and edges with noise, as depthwise weights `[n, 1, k, k]`."""
    rng = np.random.default_rng(seed)
    u = np.arange(k) - (k - 1) / 2
    bell = np.exp(-(u**2 + u[:, None] ** 2) / 2)
    shapes = np.stack([bell, u * bell, u[:, None] * bell])[np.arange(n) % 3]
    signed = rng.choice([-1, 1], (n, 1, 1)) * shapes
    return (signed + 0.05 * rng.standard_normal((n, k, k)))[:, None].astype(np.float32)


@pytest.fixture(scope="module")
def scored() -> SizeResult:
    """120 kernels of three shapes up to sign, white noise, and a null that has their covariance."""
    kernelset = KernelSet.from_layers(
        [(Layer(f"{i}", "net", i, 0, i, 5, 40, "F32"), edges(40, 5, i)[:, 0]) for i in range(3)]
    )
    group = kernelset.groups[5]

    def scores(name: str, kernels: np.ndarray, difficulty: int | None = None) -> Scores:
        n = len(kernels)
        unit, label = normalize_kernels(kernels).astype(np.float32), np.resize(["a", "b"], n)
        return Scores(name, unit, np.zeros(n, int), np.ones(n), label, difficulty=difficulty)

    nulls = (
        scores("white noise", white_noise(150, 5, 0), 0),
        scores("covariance-matched", covariance_matched(group, 0, 160)[0], 1),
    )
    return SizeResult(
        own=scores("network", group.kernels),
        good=np.ones(120, bool),
        nulls=nulls,
        null_rate=0.01,
        fits=pl.DataFrame(),
        templates=group.kernels,
        families=("gaussian",),
        unidentifiable={},
    )


@pytest.fixture(scope="module")
def trained(scored) -> Autoencoder:
    small = AutoencoderConfig(steps=50, restarts=1, widths=(16,), frequencies=4, batch_size=64)
    return train_autoencoder(scored.own.kernels, small)


@pytest.mark.slow
def test_add_evidence_sets_the_network_beside_nulls_with_autoencoders_of_their_own(scored, trained, tmp_path):
    def name(autoencoder: Autoencoder) -> LatentSegments:
        return segment_code(
            autoencoder,
            lambda kernels: SimpleNamespace(r2=np.ones(len(kernels)), kernels=kernels),
            lambda fit: np.where(fit.kernels[:, 2, 2] > 0, "on-centre", "off-centre"),
        )

    def fail(_: Autoencoder) -> LatentSegments:
        raise AssertionError("the evidence is made again")

    with Workspace(tmp_path, "x", "y") as work:
        settings = {"depends_on": ["names"], "seed": 0, "work": work, "progress": Progress()}
        evidence = add_evidence(scored, trained, name, counts=(2, 4, 6, 8), **settings).evidence
        assert json.loads(json.dumps(evidence, allow_nan=False)) == evidence
        again = add_evidence(scored, trained, fail, counts=(2, 4, 6, 8), **settings)
        assert again.evidence == evidence
    assert list(evidence["sets"]) == ["network", "white noise", "covariance-matched"]
    for part in evidence["sets"].values():
        assert part["kernels"] == 120
        assert {(s["space"], s["method"]) for s in part["scores"]} == {
            *((space, how) for space in ("kernels", "PCA", "code") for how in ("k-means", "mixture")),
            ("name along the code", "given"),
            ("label of the fit", "given"),
        }
        assert 0 < part["autoencoder"]["heldout_dissimilarity"] < 1.2
        assert part["autoencoder"]["named"] == 1
    own, noise = (
        {(s["space"], s["method"]): s for s in evidence["sets"][name]["scores"]}["kernels", "k-means"]
        for name in ("network", "white noise")
    )
    assert own["silhouette"] > noise["silhouette"] + 0.2
    assert own["bootstrap_ari"] > noise["bootstrap_ari"]
    assert set(evidence["sets"]["network"]["autoencoder"]["retrained"]) == {
        "heldout_dissimilarity", "ari", "nmi",
    }  # fmt: skip
    # The network's kernels fall into six groups; the null with their covariance into none.
    assert evidence["gap"]["supported"] >= 6
    assert max(evidence["gap"]["gap"]) > 0.5


class Decoder:
    """An autoencoder whose code runs through blob, edges and their negatives."""

    config = SimpleNamespace(code_dim=1)

    def decode(self, code: np.ndarray) -> np.ndarray:
        shapes = normalize_kernels(edges(3, 5, 1)[:, 0])
        return np.concatenate([shapes, -shapes])[np.minimum((6 * code).astype(int), 5)]

    def to_bytes(self) -> bytes:
        return b"decoder"


def test_add_universal_filters_finds_them_in_three_ways_beside_controls(scored, tmp_path):
    given = edges(3, 5, 9)[:, 0]
    with Workspace(tmp_path, "x", "y") as work:
        few = add_universal_filters(scored, Decoder(), given, 0, work, Progress()).universal
        assert work.stages == {"universal-5": "made", "given-filters-5": "made"}
        again = add_universal_filters(scored, Decoder(), None, 0, work, Progress()).universal
        other = add_universal_filters(scored, None, np.ones((2, 7, 7)), 0, work, Progress()).universal
    for ours, theirs in zip(few.found, again.found, strict=True):
        assert (ours.name, ours.candidates) == (theirs.name, theirs.candidates)
        np.testing.assert_array_equal(ours.filters, theirs.filters)
    assert again.given is None
    found = {search.name: search for search in few.found}
    assert set(found) == {
        "forward, network", "forward, covariance-matched", "code, 50", "code, 25", "code, 10",
    }  # fmt: skip
    # Three shapes up to sign, and the filters given are these.
    assert found["forward, network"].explained[2] > 0.8
    assert few.given_explained > 0.8
    for curve in few.controls.values():
        assert curve[2] < found["forward, network"].explained[2]
        assert (np.diff(curve) >= 0).all()
    assert other.given is None
    assert [search.candidates for search in other.found] == ["network", "null"]


@pytest.mark.slow
def test_main_weighs_evidence_where_there_are_kernels_enough(tmp_path):
    few = edges(6, 3, 0)
    few[4] = 0
    tensors = {f"blocks.{i}.conv_dw.weight": edges(20, 5, i) for i in range(2)}
    tensors |= {"blocks.2.conv_dw.weight": few, "blocks.3.conv_dw.weight": np.zeros((6, 1, 3, 3), "f4")}
    save_file(tensors, tmp_path / "net.safetensors")
    out = tmp_path / "out"
    options = ["--quiet", "--families", "gaussian", "--no-autoencoder", "--evidence"]
    options += ["--null-kernels", "128,128"]
    assert main([str(tmp_path / "net.safetensors"), "--out", str(out), *options]) == 0
    sizes = json.loads((out / "summary.json").read_bytes())["sizes"]
    assert sizes["3"]["evidence"] is None
    assert sizes["3"]["universal"]["found"]["forward, network"]["explained"][-1] == pytest.approx(1, abs=1e-4)
    assert sizes["3"]["label_shares"]["by_model"][0]["kernels"] == 5
    assert [p["layer"] for p in sizes["3"]["label_shares"]["by_layer"]] == ["blocks.2.conv_dw.weight"]
    spaces = {s["space"] for s in sizes["5"]["evidence"]["sets"]["network"]["scores"]}
    assert spaces == {"kernels", "PCA", "label of the fit"}
    drawn = {path.name for path in (out / "figures").iterdir()}
    assert {"evidence_5x5.png", "universal_5x5.png", "universal_3x3.png"} <= drawn
    assert not drawn & {"evidence_3x3.png", "cosine_5x5.png", "training_5x5.png"}
    assert (out / "report.html").read_text().count("Are there clusters?") == 1


def test_main_with_filters_that_cannot_be_read_ends_before_it_begins(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--out", str(out), "--quiet", "--filters", str(tmp_path / "none.json")]) == 3
    assert "none.json" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("[1, 2]")
    assert main(["--out", str(out), "--quiet", "--filters", str(tmp_path / "bad.json")]) == 3
    assert "[m, k, k]" in capsys.readouterr().err


@pytest.mark.parametrize("sample", [1000, 120])
def test_assign_by_kmeans_puts_every_kernel_to_its_nearest_center(sample):
    """Also those outside of the sample that finds the centers."""
    generator = np.random.default_rng(0)
    shapes = generator.standard_normal((4, 5, 5))
    truth = generator.integers(4, size=700)
    noisy = shapes[truth] + 0.2 * generator.standard_normal((700, 5, 5))
    kernels = normalize_kernels(noisy).astype(np.float32)
    labels, centers = assign_by_kmeans(kernels, 4, seed=0, sample=sample)
    distance = np.linalg.norm(kernels[:, None] - centers, axis=(2, 3))
    np.testing.assert_array_equal(labels, distance.argmin(axis=1))
    assert len({(a, b) for a, b in zip(truth.tolist(), labels.tolist(), strict=True)}) == 4
    again, _ = assign_by_kmeans(kernels, 4, seed=0, sample=sample)
    np.testing.assert_array_equal(labels, again)
