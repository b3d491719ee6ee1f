"""What summary, figures and page say of clusters: both definitions, intervals, runs, universal filters."""

import json
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest

from dogfit.analysis.results import RunResult
from dogfit.analysis.summary import summarize
from dogfit.labels import LABELS
from dogfit.report.figures import style
from dogfit.report.figures.clusters import draw_training
from dogfit.report.html import report_page
from made_results import HOSTILE, SHOWN, K, make_result


@pytest.fixture(scope="module")
def result() -> RunResult:
    return make_result(("stem", HOSTILE, "body.1", "body.2"))


def test_curves_of_both_definitions_go_through_the_shares(result):
    found = result.sizes[K]
    curves = summarize(result)["sizes"][str(K)]["curves"]
    assert set(curves) == {"thresholds", "r2", "cosine"}
    for measure in ("r2", "cosine"):
        for scores in (found.usable, *found.nulls):
            values = getattr(scores, measure).astype(float)
            expected = [np.mean(values > t) for t in curves["thresholds"]]
            assert curves[measure][scores.name] == pytest.approx(expected)
    assert "cosine" not in summarize(make_result(("a",), coded=False))["sizes"][str(K)]["curves"]


def test_patterns_are_counted_under_each_definition_alone(result):
    found = result.sizes[K]
    patterns = summarize(result)["sizes"][str(K)]["patterns"]
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


def test_label_shares_have_intervals_and_nulls(result):
    found = result.sizes[K]
    sections = summarize(result)["sizes"][str(K)]["label_shares"]
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


def test_checkpoints_of_one_run_are_set_out_over_time():
    result = make_result(("a", "a", "b", "b"), models=("step-200", "step-30"))
    found = result.sizes[K]
    (run,) = summarize(result)["sizes"][str(K)]["label_shares"]["training"]
    assert (run["run"], run["times"], run["models"]) == ("step-*", [30, 200], ["step-30", "step-200"])
    late = found.usable.of_layers([0, 2])
    for label in SHOWN:
        assert run["labels"][label][1][0] == pytest.approx(np.mean(late.label == label))
    fit, code = run["shares"]
    assert fit["network"][1][0] == pytest.approx(np.mean(late.r2 > 0.64))
    assert code["network"][1][0] == pytest.approx(np.mean(late.cosine > 0.8))
    null = found.nulls[1].of_layers([1, 3])
    assert fit["covariance-matched"][0] == pytest.approx(np.mean(null.r2 > 0.64))
    summary = json.loads(json.dumps(summarize(result)))
    with mpl.rc_context(style.RC):
        figure = draw_training(summary["sizes"][str(K)]["label_shares"], K, "covariance-matched", LABELS)
        pictures = {(str(K), "training"): style.png(figure)}
    assert pictures[str(K), "training"].startswith(b"\x89PNG")
    page = report_page(summary, pictures)
    assert "Over training: step-*" in page
    assert page.count("<img") == 1


def test_a_layer_that_stands_out_is_named_and_escaped():
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


def test_universal_filters_are_summed_up_and_compared(result):
    few = result.sizes[K].universal
    summary = summarize(result)["sizes"][str(K)]["universal"]
    assert summary["found"]["code, 6"]["explained"] == few.found[2].explained.tolist()
    assert summary["given"]["filters"] == 3
    # The filters given are the first three of these.
    assert summary["given"]["nearest_cosine"]["code, 6"] == pytest.approx([1, 1, 1], abs=1e-5)
