"""Stages that another run in the same folder makes again, and those that it keeps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dogfit.run import main
from job_inputs import SMALL, blobs, stages

SUMMARY = {"summary.json", "report.html"}


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Copy of the finished job."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def run_again(source: Path, out: Path, *options: str) -> None:
    assert main([str(source), "--out", str(out), "--quiet", *SMALL, *options]) == 0


def test_run_job_makes_every_stage_once(finished):
    made = stages(finished, "made")
    fits = {f"fit-{size}-{of}" for size in (5, 7) for of in ("network", "white-noise", "untrained")}
    assert {*fits, "autoencoder-7", "code-7", "kmeans-7", "universal-7", "layer-quality-7"} <= made
    assert not stages(finished, "kept")


def test_run_job_with_another_null_rate_makes_the_summary_alone(copy, source):
    before = {name: (copy / name).read_bytes() for name in ("kernels.parquet", "fits.safetensors")}
    run_again(source, copy, "--null-rate", "0.2")
    assert stages(copy, "made") == SUMMARY
    assert {name: (copy / name).read_bytes() for name in before} == before
    rows = json.loads((copy / "summary.json").read_bytes())["sizes"]["7"]["shares"]
    rates = [row["shares"][row["null"]] for row in rows if row["kind"] == "null_rate"]
    assert 0.15 < np.mean(rates) <= 0.2
    # And back again.
    run_again(source, copy)
    assert stages(copy, "made") == SUMMARY


def test_run_job_with_filters_compares_them_and_makes_nothing_else(copy, source, tmp_path):
    (tmp_path / "filters.json").write_text(json.dumps(blobs(3, 7, 9)[:, 0].tolist()))
    run_again(source, copy, "--filters", str(tmp_path / "filters.json"))
    assert stages(copy, "made") == {"given-filters-7", *SUMMARY}
    given = json.loads((copy / "summary.json").read_bytes())["sizes"]["7"]["universal"]["given"]
    assert given["filters"] == 3
    (tmp_path / "filters.json").write_text(json.dumps(blobs(2, 7, 3)[:, 0].tolist()))
    run_again(source, copy, "--filters", str(tmp_path / "filters.json"))
    assert stages(copy, "made") == {"given-filters-7", *SUMMARY}


def test_run_job_with_replace_makes_no_stage(copy, source):
    before = (copy / "run.json").read_bytes()
    run_again(source, copy, "--replace", "fits")
    assert (copy / "replaced.safetensors").exists()
    assert (copy / "run.json").read_bytes() == before
    # The fits are the same at another null rate, so the replaced kernels stay.
    run_again(source, copy, "--null-rate", "0.2")
    assert (copy / "replaced.safetensors").exists()


@pytest.mark.slow
def test_run_job_with_evidence_weighs_it_and_makes_nothing_else(copy, source):
    trained = {f"evidence-7-{of}" for of in ("network-again", "white-noise", "covariance-matched")}
    run_again(source, copy, "--evidence")
    assert stages(copy, "made") == {"evidence-7", *trained, *SUMMARY}
    run_again(source, copy)
    assert stages(copy, "made") == SUMMARY
    run_again(source, copy, "--evidence", "--null-rate", "0.2")
    assert stages(copy, "made") == SUMMARY
    assert json.loads((copy / "summary.json").read_bytes())["sizes"]["7"]["evidence"]["clusters"] > 0


def test_run_job_makes_a_lost_result_from_its_stages(copy, source, finished):
    (copy / "kernels.parquet").unlink()
    run_again(source, copy)
    assert stages(copy, "made") == {"kernels.parquet"}
    assert (copy / "kernels.parquet").read_bytes() == (finished / "kernels.parquet").read_bytes()


def test_run_job_that_is_finished_needs_no_stages(copy, source, finished):
    shutil.rmtree(copy / ".dogfit")
    run_again(source, copy)
    assert not (copy / ".dogfit").exists()
    assert (copy / "run.json").read_bytes() == (finished / "run.json").read_bytes()


@pytest.mark.slow
def test_run_job_with_overwrite_makes_every_stage_again(copy, source, finished):
    run_again(source, copy, "--overwrite")
    assert stages(copy, "made") == stages(finished, "made")
    for name in ("kernels.parquet", "summary.json", "fits.safetensors", "report.html"):
        assert (copy / name).read_bytes() == (finished / name).read_bytes()
