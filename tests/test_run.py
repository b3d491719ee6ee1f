"""The main job, called as a person calls it, on small checkpoints made here."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

import dogfit
from dogfit.run import main
from dogfit.runtime.workspace import RESULTS
from job_inputs import HOSTILE, blobs, checkpoint, exit_code

STEPS = ["--steps", "50"]
pytestmark = pytest.mark.usefixtures("few_nulls")


@pytest.fixture(scope="module")
def finished(few_nulls, source, tmp_path_factory) -> Path:  # noqa: ARG001
    out = tmp_path_factory.mktemp("out") / "tiny"
    assert main([str(source), "--out", str(out), "--quiet", *STEPS]) == 0
    return out


def test_every_output_is_there(finished):
    assert {path.name for path in finished.iterdir()} == set(RESULTS)
    figures = {path.name for path in (finished / "figures").iterdir()}
    drawn = "r2 gallery labels clusters intervals universal".split()
    both = {f"{name}_{k}x{k}.png" for name in drawn for k in (5, 7)}
    assert figures == {*both, "latent_segments_7x7.png", "cosine_7x7.png"}
    assert {path.name for path in (finished / "autoencoder").iterdir()} == {"7x7"}


def test_table_tells_where_each_kernel_came_from_and_what_became_of_it(finished):
    table = pl.read_parquet(finished / "kernels.parquet")
    assert table.height == 144
    promised = (
        "model layer position stage block channel size mean norm flag code cluster reconstruction_cosine "
        "family label r2 status"
    )
    assert set(promised.split()) <= set(table.columns)
    damaged = table.filter(pl.col("flag") != "OK")
    assert damaged.select("layer", "channel", "flag").rows() == [
        ("stages.0.blocks.0.conv_dw.weight", 3, "NONFINITE"),
        ("stages.0.blocks.1.conv_dw.weight", 5, "ZERO"),
    ]
    assert damaged["r2"].null_count() == 2
    good = table.filter(pl.col("flag") == "OK")
    assert good["r2"].null_count() == 0
    assert np.median(good["r2"].to_numpy()) > 0.9
    # Fewer 5x5 kernels than an autoencoder takes.
    assert good.filter(pl.col("size") == 5)["code"].null_count() == 24
    assert good.filter(pl.col("size") == 7)["code"].is_between(0, 1).all()


def test_summary_sets_the_network_beside_its_nulls(finished):
    summary = json.loads((finished / "summary.json").read_bytes())
    table = pl.read_parquet(finished / "kernels.parquet").filter(pl.col("flag") == "OK")
    for size in (5, 7):
        found = summary["sizes"][str(size)]
        r2 = table.filter(pl.col("size") == size)["r2"]
        for row in found["shares"]:
            assert list(row["shares"]) == ["network", "white noise", "untrained", "covariance-matched"]
            if row["measure"] == "r2":
                assert row["shares"]["network"] == pytest.approx(float((r2 > row["threshold"]).mean()))
        rates = {row["meaning"]: row for row in found["shares"] if row["meaning"].startswith("null rate")}
        for meaning, row in rates.items():
            assert row["shares"][meaning.removeprefix("null rate of ")] <= 0.01
        assert found["shares"][0]["shares"]["white noise"] < 0.2
    assert "too few" in summary["sizes"]["5"]["autoencoder"]["left_out"]
    assert summary["sizes"]["7"]["flagged"] == {"zero": 1, "constant": 0, "nonfinite": 1}


def test_fits_take_the_layers_own_names(finished, source):
    fits, weights = load_file(finished / "fits.safetensors"), load_file(source)
    assert set(fits) == set(weights) - {"head.fc.weight"}
    for name, fit in fits.items():
        assert fit.shape == weights[name].shape
        assert fit.dtype == np.float32
    name = "stages.1.blocks.0.conv_dw.weight"
    table = pl.read_parquet(finished / "kernels.parquet").filter(pl.col("layer") == name)
    centred = weights[name] - weights[name].mean((2, 3), keepdims=True)
    left = np.sum((weights[name] - fits[name]) ** 2, (1, 2, 3)) / np.sum(centred**2, (1, 2, 3))
    assert np.allclose(1 - left, table["r2"].to_numpy(), atol=1e-4)


def test_page_opens_without_network_and_escapes_names(finished):
    page = (finished / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    loads = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert loads
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in loads)


def test_run_file_says_how_it_was_made(finished, source):
    about = json.loads((finished / "run.json").read_bytes())
    assert about["config"]["sources"] == [str(source)]
    assert about["config"]["steps"] == 50
    assert about["versions"]["dogfit"] == dogfit.__version__
    assert about["sources"][0]["bytes_read"] <= about["sources"][0]["bytes_total"] == source.stat().st_size
    assert about["seconds"]["total"] > 0
    assert about["devices"]


def test_same_seed_same_bytes(finished, source, tmp_path):
    assert main([str(source), "--out", str(tmp_path / "again"), "--quiet", *STEPS]) == 0
    for name in ("kernels.parquet", "summary.json", "fits.safetensors", "report.html"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_finished_run_is_read(finished, source, capsys):
    before = (finished / "run.json").read_bytes()
    assert main([str(source), "--out", str(finished), *STEPS]) == 0
    assert (finished / "run.json").read_bytes() == before
    captured = capsys.readouterr()
    assert "holds this run already" in captured.err
    assert f"report: {finished / 'report.html'}" in captured.out


def test_another_run_in_the_same_folder_is_refused(finished, source, capsys):
    before = (finished / "run.json").read_bytes()
    assert main([str(source), "--out", str(finished), *STEPS, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before


def test_json_alone_on_standard_output(finished, source, capsys):
    assert main([str(source), "--out", str(finished), *STEPS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((finished / "summary.json").read_bytes())


def test_quiet_prints_nothing(finished, source, capsys):
    assert main([str(source), "--out", str(finished), *STEPS, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_ends_with_about_ten_lines(source, tmp_path, capsys):
    command = [str(source), "--out", str(tmp_path / "o"), "--sizes", "7", "--families", "gaussian"]
    how = {"profile": "sampled", "criterion": "aicc"}
    assert main([*command, "--no-autoencoder", *(f"--{name}={value}" for name, value in how.items())]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert 5 <= len(lines) <= 12
    assert all(line.count("%") != 1 for line in lines)
    assert "fit 7×7 network: 120 kernels in" in captured.err
    summary = json.loads((tmp_path / "o" / "summary.json").read_bytes())
    assert list(summary["sizes"]) == ["7"]
    assert summary["sizes"]["7"]["autoencoder"]["left_out"] == "left out on request"
    assert set(summary["sizes"]["7"]["families"]) == {"gaussian"}
    assert not (tmp_path / "o" / "autoencoder").exists()
    settings = json.loads((tmp_path / "o" / "run.json").read_bytes())["config"]
    assert {name: settings[name] for name in how} == how


def test_several_models_are_compared(source, tmp_path, capsys):
    other = checkpoint(tmp_path / "other.safetensors", seed=20)
    out = tmp_path / "both"
    assert main([str(source), str(other), "--out", str(out), "--sizes", "7", "--no-autoencoder"]) == 0
    printed = capsys.readouterr().out
    assert "tiny 7×7 R² > 0.80" in printed
    assert "other 7×7 R² > 0.80" in printed
    summary = json.loads((out / "summary.json").read_bytes())
    assert [part["model"] for part in summary["sizes"]["7"]["by_model"]] == ["tiny", "other"]
    assert (out / "figures" / "models_7x7.png").exists()
    names = set(load_file(out / "fits.safetensors"))
    assert "tiny:stages.0.blocks.0.conv_dw.weight" in names
    assert "other:stages.0.blocks.0.conv_dw.weight" in names
    assert set(pl.read_parquet(out / "kernels.parquet")["model"]) == {"tiny", "other"}


@pytest.mark.parametrize("method", ["fits", "universal", "autoencoder"])
def test_replaced_kernels_are_added_to_a_finished_run(finished, source, tmp_path, capsys, method):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    command = [str(source), "--out", str(out), *STEPS, "--replace", method, "--replace-r2", "0.3"]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {*RESULTS, "replaced.safetensors"}
    old, new = load_file(source), load_file(out / "replaced.safetensors")
    assert list(old) == list(new)
    assert np.array_equal(old["head.fc.weight"], new["head.fc.weight"])
    table = pl.read_parquet(out / "kernels.parquet")
    # There is an autoencoder for 7x7 alone.
    expected = table["r2" if method == "fits" else "reconstruction_cosine"].fill_null(np.nan).to_numpy()
    seen = np.concatenate(
        [_explained(old[name][:, 0], new[name][:, 0]) for name in table["layer"].unique(maintain_order=True)]
    )
    replaced = seen < 1
    said = re.search(r"replaced.safetensors: (\d+) of", capsys.readouterr().err)
    assert said is not None
    assert int(said[1]) == replaced.sum() > 40
    assert seen[replaced].min() >= 0.3 - 1e-3
    if method != "universal":
        expected = expected**2 if method == "autoencoder" else expected
        np.testing.assert_allclose(seen[replaced], expected[replaced], atol=1e-3)
    if method != "fits":
        return
    # Results made anew take the old replacement away.
    assert main([str(source), "--out", str(out), "--sizes", "5", "--quiet", "--overwrite"]) == 0
    assert not (out / "replaced.safetensors").exists()


def _explained(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """R² about the mean of the kernels that changed, 1 for the others."""
    same = np.array([a.tobytes() == b.tobytes() for a, b in zip(old, new, strict=True)])
    centred = old - old.mean((1, 2), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(same, 1, 1 - np.sum((old - new) ** 2, (1, 2)) / np.sum(centred**2, (1, 2)))


def test_several_models_are_replaced_each_in_a_file_of_its_own(source, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"dwconv.weight": blobs(24, 5, 50), "head.weight": np.ones((3, 24), np.float32)}, other)
    out = tmp_path / "both"
    command = [str(source), str(other), "--out", str(out), "--quiet", "--sizes", "5", "--no-autoencoder"]
    assert main([*command, "--replace", "fits"]) == 0
    assert {path.name for path in (out / "replaced").iterdir()} == {"1.safetensors", "2.safetensors"}
    fits = load_file(out / "fits.safetensors")
    new = load_file(out / "replaced" / "2.safetensors")
    np.testing.assert_allclose(new["dwconv.weight"], fits["other:dwconv.weight"], atol=1e-5)
    first = load_file(out / "replaced" / "1.safetensors")
    name = "stages.1.blocks.0.conv_dw.weight"
    np.testing.assert_allclose(first[name], fits[f"tiny:{name}"], atol=1e-5)
    wide = "stages.0.blocks.0.conv_dw.weight"
    assert first[wide].tobytes() == load_file(source)[wide].tobytes()


def test_interrupted_run_leaves_no_result_and_goes_on(finished, source, tmp_path, capsys, monkeypatch):
    from dogfit import autoencoder

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(autoencoder, "train_autoencoder", interrupt)
    assert main([str(source), "--out", str(out), *STEPS]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {".dogfit"}
    monkeypatch.undo()
    assert main([str(source), "--out", str(out), *STEPS]) == 0
    progress = capsys.readouterr().err
    assert "fit 7×7 network" not in progress
    assert "train 7×7 autoencoder" in progress
    assert {path.name for path in out.iterdir()} == set(RESULTS)
    for name in ("kernels.parquet", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_a_given_autoencoder_is_applied_and_kept_beside_the_results(finished, tmp_path, capsys):
    from dogfit.autoencoder import Autoencoder
    from dogfit.checkpoints import load_kernels

    other, out = checkpoint(tmp_path / "other.safetensors", seed=50), tmp_path / "out"
    command = [str(other), "--out", str(out), "--sizes", "7", "--families", "gaussian"]
    assert main([*command, "--autoencoder", str(finished)]) == 0
    assert "train 7×7" not in capsys.readouterr().err
    trained = finished / "autoencoder" / "7x7" / "autoencoder.safetensors"
    assert (out / "autoencoder" / "7x7" / "autoencoder.safetensors").read_bytes() == trained.read_bytes()
    group = load_kernels(other, sizes=(7,)).groups[7]
    table = pl.read_parquet(out / "kernels.parquet")
    expected = Autoencoder.load(trained).encode(group.kernels)
    code = table["code"].fill_null(np.nan).to_numpy()
    # The job encodes normalised kernels: equal to the last bits that centring leaves.
    np.testing.assert_allclose(code, expected, atol=2e-3)
    notes = json.loads((out / "summary.json").read_bytes())["sizes"]["7"]["autoencoder"]["notes"]
    assert "given with --autoencoder" in notes[0]
    # The same file under another name is the same run; another autoencoder is not.
    assert main([*command, "--autoencoder", str(trained.parent)]) == 0
    assert main(command) == 2
    assert "other inputs or settings" in capsys.readouterr().err


def test_autoencoders_that_cannot_be_used_are_refused(finished, source, tmp_path, capsys):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(source.read_bytes())
    command = [str(source), "--out", str(tmp_path / "out")]
    for path, reason in (
        (tmp_path / "absent", "no autoencoder at"),
        (tmp_path, "no autoencoder at"),
        (wrong, "not a dogfit autoencoder"),
    ):
        assert main([*command, "--autoencoder", str(path)]) == 3
        assert reason in capsys.readouterr().err
    assert main([*command, "--sizes", "5", "--autoencoder", str(finished)]) == 3
    assert "for 7×7 kernels, the input has 5×5 ones" in capsys.readouterr().err
    assert exit_code([*command, "--no-autoencoder", "--autoencoder", str(finished)]) == 2
    assert "exclude each other" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
