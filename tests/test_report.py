"""Figures, page and terminal lines of a result made by hand."""

import re
from pathlib import Path

import pytest

from dogfit.labels import LABELS
from dogfit.report.figures.draw import draw_figures
from dogfit.report.figures.style import label_colors
from dogfit.report.html import report_page
from dogfit.report.text import summary_lines
from made_results import HOSTILE, K

DPI = 50


@pytest.fixture(scope="module")
def pictures(made, made_summary) -> dict:
    return draw_figures(made, made_summary, dpi=DPI)


def test_draw_figures_draws_all(pictures):
    assert set(pictures) == {
        (str(K), name)
        for name in (
            "r2 cosine gallery labels latent_segments clusters models intervals universal evidence".split()
        )
    }
    for png in pictures.values():
        assert png.startswith(b"\x89PNG\r\n")


@pytest.mark.slow
def test_draw_figures_twice(pictures, made, made_summary):
    assert draw_figures(made, made_summary, dpi=DPI) == pictures


def test_draw_figures_without_code_or_second_model(uncoded, uncoded_summary):
    drawn = draw_figures(uncoded, uncoded_summary, dpi=DPI)
    assert {name for _, name in drawn} == {"r2", "gallery", "labels", "clusters", "intervals"}


def test_label_colors_differ():
    colours = label_colors(LABELS)
    assert len(set(colours.values())) == len(LABELS)


def test_report_page_is_self_contained(made_summary, pictures):
    page = report_page(made_summary, pictures)
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
def test_report_states_profile_and_criterion(uncoded_summary, profile, criterion):
    said = {
        "profile": {
            "integrated": "integrated over each tap",
            "sampled": "sampled at the middle of each tap",
            "discrete": "made of discrete Gaussians",
        },
        "criterion": {"bic": "BIC", "aicc": "AICc", "cv": "cross-validated error"},
    }
    chosen = {"profile": profile, "criterion": criterion}
    summary = {**uncoded_summary, "settings": uncoded_summary["settings"] | chosen}
    intro = report_page(summary, {}).partition("<h2")[0]
    (line,) = [line for line in summary_lines(summary, Path("out")) if line.startswith("fitted: ")]
    for setting, words in said.items():
        for value, text in words.items():
            assert (text in intro) == (text in line) == (value == chosen[setting])


def test_report_page_without_an_autoencoder(uncoded_summary):
    page = report_page(uncoded_summary, {})
    assert "No autoencoder: left out on request." in page


def test_report_page_layers(made_summary):
    """The page has the measures of every layer, and escapes their names."""
    page = report_page(made_summary, {})
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>[\d.]+ %</td>\s*<td>[\d.]+ <span", page)
    assert len(rows) == 4
    assert HOSTILE not in page


def test_summary_lines_beside_nulls(one_model_summary, made_summary):
    lines = summary_lines(one_model_summary, Path("out"))
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
    several = summary_lines(made_summary, Path("out"))
    assert any(line.startswith("net1") and "its null" in line for line in several)
    # The best and worst layers are those of one network.
    assert not any("layers by median" in line for line in several)
    assert not any("\u202e" in line for line in several)
