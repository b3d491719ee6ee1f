"""Summary, tables, figures, page and terminal lines of a result made by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path

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
from dogfit.report.figures.draw import draw_figures
from dogfit.report.figures.style import label_colors
from dogfit.report.html import report_page
from dogfit.report.text import summary_lines
from made_results import HOSTILE, K, make_result


@pytest.fixture(scope="module")
def result() -> RunResult:
    return make_result(("stem", HOSTILE, "body.1", "body.2"))


@pytest.fixture(scope="module")
def plain_summary() -> dict:
    """Summary of one layer without an autoencoder."""
    return json.loads(json.dumps(summarize(make_result(("a",), coded=False))))


@pytest.fixture(scope="module")
def pictures(result) -> dict:
    return draw_figures(result, summarize(result))


@pytest.mark.parametrize(
    ("size", "dissimilarity", "r2"), [(5, 0.2, 0.64), (7, 0.3, 0.49), (3, 0.2, 0.64), (31, 0.3, 0.49)]
)
def test_paper_thresholds(size, dissimilarity, r2):
    assert paper_dissimilarity(size) == dissimilarity
    assert paper_r2(size) == r2


def test_shares_are_counts_over_kernels(result):
    found = result.sizes[K]
    summary = summarize(result)["sizes"][str(K)]
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


def test_flagged_kernels_are_counted_apart(result):
    summary = summarize(result)["sizes"][str(K)]
    assert summary["kernels"] == 48
    assert summary["flagged"] == {"zero": 0, "constant": 0, "nonfinite": 1}
    assert summary["fitted"] == 47
    assert sum(count["network"] for count in summary["labels"].values()) == 47
    assert sum(summary["families"].values()) == 47


def test_parts_stand_beside_the_null_drawn_for_them(result):
    found = result.sizes[K]
    summary = summarize(result)["sizes"][str(K)]
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


def test_summary_is_json(result):
    summary = summarize(result)
    assert json.loads(json.dumps(summary, allow_nan=False)) == json.loads(json.dumps(summary))


def test_kernel_table_has_a_row_for_each_kernel(result):
    table = kernel_table(result)
    found = result.sizes[K]
    assert table.height == result.kernelset.n
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


def test_without_an_autoencoder_its_columns_are_null():
    table = kernel_table(make_result(("a",), coded=False))
    for name in ("code", "cluster", "cluster_name", "reconstruction_cosine"):
        assert table[name].null_count() == table.height
    assert table["kmeans"].null_count() == 1


def test_fitted_tensors_keep_names_and_the_taps_of_unfitted_kernels(result):
    tensors = fitted_tensors(result)
    assert list(tensors) == ["net0:stem", f"net1:{HOSTILE}", "net0:body.1", "net1:body.2"]
    taps = result.kernelset.groups[K].kernels
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
def test_fitted_tensors_have_the_layout_of_the_file(tmp_path, shape):
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


def test_every_figure_is_drawn(pictures):
    assert set(pictures) == {
        (str(K), name)
        for name in (
            "r2 cosine gallery labels latent_segments clusters models intervals universal evidence".split()
        )
    }
    for png in pictures.values():
        assert png.startswith(b"\x89PNG\r\n")


@pytest.mark.slow
def test_figures_are_the_same_twice(pictures, result):
    assert draw_figures(result, summarize(result)) == pictures


def test_figures_without_code_or_second_model():
    result = make_result(("a",), coded=False)
    drawn = draw_figures(result, summarize(result))
    assert {name for _, name in drawn} == {"r2", "gallery", "labels", "clusters", "intervals"}


def test_page_is_self_contained_and_escapes_names(result, pictures):
    page = report_page(json.loads(json.dumps(summarize(result))), pictures)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    loads = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert len(loads) >= len(pictures)
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in loads)
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in page
    for text in (
        "2 left out: quantised",
        "The family d2 was not fitted: as many parameters as taps",
        "1 is nonfinite",
        "Are there clusters?",
        "The 3 given filters explain 50.0 %",
    ):
        assert text in page


@pytest.mark.parametrize("criterion", ["bic", "aicc", "cv"])
@pytest.mark.parametrize("profile", ["integrated", "sampled", "discrete"])
def test_report_says_which_profile_and_criterion_were_used(plain_summary, profile, criterion):
    said = {
        "profile": {
            "integrated": "integrated over each tap",
            "sampled": "sampled at the middle of each tap",
            "discrete": "made of discrete Gaussians",
        },
        "criterion": {"bic": "BIC", "aicc": "AICc", "cv": "cross-validated error"},
    }
    chosen = {"profile": profile, "criterion": criterion}
    summary = {**plain_summary, "settings": plain_summary["settings"] | chosen}
    intro = report_page(summary, {}).partition("<h2")[0]
    (line,) = [line for line in summary_lines(summary, Path("out")) if line.startswith("fitted: ")]
    for setting, words in said.items():
        for value, text in words.items():
            assert (text in intro) == (text in line) == (value == chosen[setting])


def test_page_says_why_there_is_no_autoencoder(plain_summary):
    page = report_page(plain_summary, {})
    assert "No autoencoder: left out on request." in page


def test_terminal_lines_put_each_share_beside_its_nulls(result):
    lines = summary_lines(summarize(make_result(("a",))), Path("out"))
    assert len(lines) <= 12
    header = next(line for line in lines if line.startswith("share of kernels"))
    assert re.findall(r"network|white noise|covariance-matched", header) == [
        "network",
        "white noise",
        "covariance-matched",
    ]
    for line in lines:
        # A share without its nulls' would be one percentage alone.
        assert line.count("%") != 1
    assert lines[-1] == f"report: {Path('out') / 'report.html'}"
    several = summary_lines(summarize(result), Path("out"))
    assert any(line.startswith("net1") and "its null" in line for line in several)
    # The best and worst layers are those of one network.
    assert not any("layers by median" in line for line in several)
    assert not any("\u202e" in line for line in several)


def test_colours_tell_labels_apart():
    colours = label_colors(LABELS)
    assert len(set(colours.values())) == len(LABELS)


def test_layers_are_picked_as_a_search_would():
    result = make_result(("a", "b", "c", "d"))
    found = result.sizes[K]
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


def test_layer_table_holds_what_the_summary_says_of_each_layer():
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


def test_page_shows_the_quality_of_layers():
    page = report_page(json.loads(json.dumps(summarize(make_result(("a", HOSTILE))))), {})
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>[\d.]+ %</td>\s*<td>[\d.]+ <span", page)
    assert len(rows) == 2
    assert HOSTILE not in page
