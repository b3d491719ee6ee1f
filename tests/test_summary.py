"""Summary and tables of a result made by hand."""

import json
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from safetensors.numpy import save_file

from dogfit.analysis.layer_metrics import layer_quality
from dogfit.analysis.results import RunResult
from dogfit.analysis.summary import summarize
from dogfit.analysis.tables import fitted_tensors, kernel_table, layer_table
from dogfit.checkpoints import load_kernels
from dogfit.clusters import paper_dissimilarity, paper_r2
from dogfit.kernelset import KernelSet
from dogfit.labels import LABELS
from dogfit.report.figures import style
from dogfit.report.figures.clusters import draw_training
from dogfit.report.html import report_page
from made_results import HOSTILE, SHOWN, K, make_result


@pytest.mark.parametrize(
    ("size", "dissimilarity", "r2"), [(5, 0.2, 0.64), (7, 0.3, 0.49), (3, 0.2, 0.64), (31, 0.3, 0.49)]
)
def test_paper_dissimilarity_and_r2(size, dissimilarity, r2):
    assert paper_dissimilarity(size) == dissimilarity
    assert paper_r2(size) == r2


def test_summarize_shares_are_counts(made, made_summary):
    found = made.sizes[K]
    summary = made_summary["sizes"][str(K)]
    for row in summary["shares"]:
        assert list(row["shares"]) == ["network", "white noise", "covariance-matched"]
        for scores in (found.own, *found.nulls):
            values = getattr(scores, row["measure"])[np.isfinite(scores.r2)]
            passed = sum(float(value) > row["threshold"] for value in values)
            assert row["shares"][scores.name] == pytest.approx(passed / len(values))
    stated = [(r["measure"], r["threshold"]) for r in summary["shares"] if "null rate" not in r["meaning"]]
    assert stated == [("r2", 0.64), ("r2", 0.8), ("cosine", 0.8)]
    for measure in ("r2", "cosine"):
        rates = {
            row["meaning"].removeprefix("null rate of "): row["shares"]
            for row in summary["shares"]
            if row["measure"] == measure and row["meaning"].startswith("null rate")
        }
        assert [shares[name] for name, shares in rates.items()] == [0.1, 0.1]


def test_summarize_flagged_kernels(made_summary):
    summary = made_summary["sizes"][str(K)]
    assert summary["kernels"] == 48
    assert summary["flagged"] == {"zero": 0, "constant": 0, "nonfinite": 1}
    assert summary["fitted"] == 47
    assert sum(count["network"] for count in summary["labels"].values()) == 47
    assert sum(summary["families"].values()) == 47


def test_summarize_parts_beside_their_nulls(made, made_summary):
    found = made.sizes[K]
    summary = made_summary["sizes"][str(K)]
    assert [part["name"] for part in summary["by_layer"]] == ["stem", HOSTILE, "body.1", "body.2"]
    for index, part in enumerate(summary["by_layer"]):
        for scores in (found.own, found.nulls[1]):
            expected = np.nanmedian(scores.r2[scores.layer == index].astype(float))
            assert part["median_r2"][scores.name] == pytest.approx(expected)
        assert part["shares"][1]["shares"]["white noise"] == summary["shares"][1]["shares"]["white noise"]
    assert [part["model"] for part in summary["by_model"]] == ["net0", "net1"]
    null = found.nulls[1]
    expected = np.mean(null.r2[np.isin(null.layer, [0, 2])].astype(float) > 0.8)
    assert summary["by_model"][0]["shares"][1]["shares"]["covariance-matched"] == pytest.approx(expected)


def test_summarize_is_json(made):
    summary = summarize(made)
    assert json.loads(json.dumps(summary, allow_nan=False)) == json.loads(json.dumps(summary))


def test_threshold_curves_go_through_the_shares(made, made_summary):
    found = made.sizes[K]
    curves = made_summary["sizes"][str(K)]["curves"]
    assert set(curves) == {"thresholds", "r2", "cosine"}
    for measure in ("r2", "cosine"):
        for scores in (found.usable, *found.nulls):
            values = getattr(scores, measure).astype(float)
            expected = [np.mean(values > t) for t in curves["thresholds"]]
            assert curves[measure][scores.name] == pytest.approx(expected)
    assert "cosine" not in summarize(make_result(("a",), coded=False))["sizes"][str(K)]["curves"]


def test_patterns_by_definition(made, made_summary):
    found = made.sizes[K]
    patterns = made_summary["sizes"][str(K)]["patterns"]
    own = found.usable
    names = np.array([found.latent_segments.names[i] for i in found.latent_segments.assign(own.code)])
    for label in SHOWN:
        by_fit = np.mean((own.label == label) & (own.r2 > 0.64))
        by_code = np.mean((names == label) & (own.cosine > 0.8))
        assert patterns["by fit"][label]["network"] == pytest.approx(by_fit)
        assert patterns["by code"][label]["network"] == pytest.approx(by_code)
    for way in patterns.values():
        for name in ("network", "white noise", "covariance-matched"):
            assert sum(shares[name] for shares in way.values()) == pytest.approx(1)


def test_share_sections_intervals_and_nulls(made, made_summary):
    found = made.sizes[K]
    sections = made_summary["sizes"][str(K)]["label_shares"]
    assert [part["model"] for part in sections["by_model"]] == ["net0", "net1"]
    assert [part["layer"] for part in sections["by_layer"]] == ["stem", "body.1", HOSTILE, "body.2"]
    # net1 holds layers 1 and 3.
    own, null = found.usable.of_layers([1, 3]), found.nulls[1].of_layers([1, 3])
    for label, values in sections["by_model"][1]["shares"].items():
        assert values["share"] == pytest.approx(np.mean(own.label == label))
        assert values["low"] <= values["share"] <= values["high"]
        assert values["covariance-matched"] == pytest.approx(np.mean(null.label == label))
    (distance,) = sections["distances"]
    assert distance["models"] == ["net0", "net1"]
    assert sections["outlying"]["layers"] == []
    assert sections["training"] == []


def test_share_sections_over_training():
    result = make_result(("a", "a", "b", "b"), models=("step-200", "step-30"))
    summary = json.loads(json.dumps(summarize(result)))
    found = result.sizes[K]
    (run,) = summary["sizes"][str(K)]["label_shares"]["training"]
    assert (run["run"], run["times"], run["models"]) == ("step-*", [30, 200], ["step-30", "step-200"])
    late = found.usable.of_layers([0, 2])
    for label in SHOWN:
        assert run["labels"][label][1][0] == pytest.approx(np.mean(late.label == label))
    fit, code = run["shares"]
    assert fit["network"][1][0] == pytest.approx(np.mean(late.r2 > 0.64))
    assert code["network"][1][0] == pytest.approx(np.mean(late.cosine > 0.8))
    null = found.nulls[1].of_layers([1, 3])
    assert fit["covariance-matched"][0] == pytest.approx(np.mean(null.r2 > 0.64))
    with mpl.rc_context(style.RC):
        figure = draw_training(summary["sizes"][str(K)]["label_shares"], K, "covariance-matched", LABELS)
        pictures = {(str(K), "training"): style.png(figure)}
    assert pictures[str(K), "training"].startswith(b"\x89PNG")
    page = report_page(summary, pictures)
    assert "Over training: step-*" in page
    assert page.count("<img") == 1


def test_share_sections_outlying_layer():
    names = ("a", "b", "c", HOSTILE, "d", "e")
    result = make_result(names, models=("net",))
    found = result.sizes[K]
    label = np.where(found.own.layer == 3, "d1-N", np.resize(SHOWN, len(found.own.label)))
    found = replace(found, own=replace(found.own, label=label))
    result = replace(result, sizes={K: found})
    summary = summarize(result)
    named = summary["sizes"][str(K)]["label_shares"]["outlying"]["layers"]
    assert named
    assert all(row["p"] <= 0.05 for row in named)
    assert {row["layer"] for row in named} == {HOSTILE}
    assert named[0]["label"] == "d1-N"
    page = report_page(json.loads(json.dumps(summary)), {})
    assert "<script" not in page
    assert "p, adjusted" in page


def test_universal_is_summed_up(made, made_summary):
    few = made.sizes[K].universal
    summary = made_summary["sizes"][str(K)]["universal"]
    assert summary["found"]["code, 6"]["explained"] == few.found[2].explained.tolist()
    assert summary["given"]["filters"] == 3
    # The filters given are the first three of these.
    assert summary["given"]["nearest_cosine"]["code, 6"] == pytest.approx([1, 1, 1], abs=1e-5)


def test_of_layers_is_a_search(made):
    found = made.sizes[K]
    for scores in (found.usable, *found.nulls):
        for layers in ([0], [3], [1, 2], [0, 2], [3, 0], [7], []):
            rows = np.isin(scores.layer, layers) | (scores.layer < 0)
            part = scores.of_layers(layers)
            np.testing.assert_array_equal(part.r2, scores.r2[rows])
            np.testing.assert_array_equal(part.kernels, scores.kernels[rows])
            assert part.label_counts == dict(
                zip(*np.unique(scores.label[rows], return_counts=True), strict=True)
            )
    mixed = replace(found.nulls[1], layer=found.nulls[1].layer[::-1])
    with pytest.raises(ValueError, match="must be ordered by layer"):
        mixed.of_layers([0])


def test_kernel_table_rows(made):
    table = kernel_table(made)
    found = made.sizes[K]
    assert table.height == made.kernelset.n
    assert table["layer"].to_list()[12:24] == [HOSTILE] * 12
    assert np.allclose(table["r2"].to_numpy()[:-1], found.own.r2[:-1])
    assert found.code_clusters is not None
    names = [found.code_clusters.names[i] for i in found.code_clusters.index[:-1]]
    assert table["cluster_name"].to_list()[:-1] == names
    last = table.row(-1, named=True)
    assert last["flag"] == "NONFINITE"
    nothing = ("r2", "code", "cluster", "cluster_name", "reconstruction_cosine", "kmeans", "family")
    assert [last[name] for name in nothing] == [None] * len(nothing)
    assert len(set(table.columns)) == len(table.columns)


def test_kernel_table_without_an_autoencoder(uncoded):
    table = kernel_table(uncoded)
    for name in ("code", "cluster", "cluster_name", "reconstruction_cosine"):
        assert table[name].null_count() == table.height
    assert table["kmeans"].null_count() == 1


def test_layer_table_rows():
    result = make_result(("a", "b", "c"))
    summary = json.loads(json.dumps(summarize(result), allow_nan=False))
    table = layer_table(summary)
    assert table["layer"].to_list() == ["a", "b", "c"]
    assert table["kernels"].sum() == 35  # one kernel is NaN
    group = result.kernelset.groups[K]
    for row, part in zip(table.iter_rows(named=True), summary["sizes"][str(K)]["by_layer"], strict=True):
        index = [layer.name for layer in result.kernelset.layers].index(row["layer"])
        expected = layer_quality(group.kernels[group.layer == index])
        assert part["quality"] == expected
        assert {name: row[name] for name in expected} == expected
        assert row["median_r2 network"] == part["median_r2"]["network"]
        assert sum(value for name, value in row.items() if name.startswith("label ")) == pytest.approx(1)


def test_fitted_tensors_names_and_unfitted_kernels(made):
    tensors = fitted_tensors(made)
    assert list(tensors) == ["net0:stem", f"net1:{HOSTILE}", "net0:body.1", "net1:body.2"]
    taps = made.kernelset.groups[K].kernels
    for index, tensor in enumerate(tensors.values()):
        assert tensor.shape == (12, 1, K, K)
        assert tensor.dtype == np.float32
        rows = taps[12 * index : 12 * index + 12]
        fitted = np.isfinite(rows).all((1, 2))
        assert np.array_equal(tensor[fitted, 0], 0.5 * rows[fitted])
        assert np.isnan(tensor[~fitted]).all()
    assert list(fitted_tensors(make_result(("a",)))) == ["a"]


@pytest.mark.parametrize(
    "shape",
    [
        (6, 1, K, K),
        (K, 1, K, K),
        (K, K, 1, 6),
        (K, K, 1, K),
        (K, K, 6, 1),
        (K, K, K, 1),
        (K, K, 6, 3),
        (6, K, K),
    ],
)
def test_fitted_tensors_layout(tmp_path, shape):
    stored = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    save_file({"block.depthwise.kernel": stored}, tmp_path / "net.safetensors")
    kernels = load_kernels(tmp_path / "net.safetensors", include=["*"])
    kernels.save(tmp_path / "set")
    for kernelset in (kernels, KernelSet.load(tmp_path / "set")):
        taps = kernelset.groups[K].kernels
        assert len(taps) == stored.size // K**2
        size = make_result(("a",)).sizes[K]
        unfitted = replace(size.own, r2=np.full(len(taps), np.nan, np.float32))
        fitted = replace(size.own, r2=np.ones(len(taps), np.float32))
        for own, expected in ((unfitted, stored), (fitted, 2 * stored)):
            found = replace(size, own=own, templates=2 * taps)
            (tensor,) = fitted_tensors(RunResult(kernelset, {K: found}, {})).values()
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, expected)
