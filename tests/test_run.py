"""The command as a person calls it, on small checkpoints made here."""

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
from job_inputs import HOSTILE, SMALL, blobs, checkpoint, exit_code, stages

FITS = [*SMALL, "--no-autoencoder"]


def shown(out: Path) -> set[str]:
    """Names a person sees."""
    return {path.name for path in out.iterdir() if path.name != ".dogfit"}


def test_main_writes_every_result(finished):
    assert shown(finished) == {*RESULTS} - {"figures"}
    assert {path.name for path in (finished / "autoencoder").iterdir()} == {"7x7"}


@pytest.mark.slow
def test_main_draws_every_figure(source, tmp_path):
    options = [option for option in SMALL if option != "--no-figures"]
    assert main([str(source), "--out", str(tmp_path / "out"), "--quiet", *options]) == 0
    assert shown(tmp_path / "out") == set(RESULTS)
    figures = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    drawn = "r2 gallery labels clusters intervals universal".split()
    both = {f"{name}_{k}x{k}.png" for name in drawn for k in (5, 7)}
    assert figures == {*both, "latent_segments_7x7.png", "cosine_7x7.png"}
    page = (tmp_path / "out" / "report.html").read_text()
    loads = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert loads
    assert all(target.startswith(("data:image/png;base64,", "#")) for target in loads)


def test_main_writes_a_table_of_kernels(finished):
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


def test_main_sums_up_the_network_beside_its_nulls(finished):
    summary = json.loads((finished / "summary.json").read_bytes())
    table = pl.read_parquet(finished / "kernels.parquet").filter(pl.col("flag") == "OK")
    for size in (5, 7):
        found = summary["sizes"][str(size)]
        r2 = table.filter(pl.col("size") == size)["r2"]
        for row in found["shares"]:
            assert list(row["shares"]) == ["network", "white noise", "untrained", "covariance-matched"]
            if row["measure"] == "r2":
                assert row["shares"]["network"] == pytest.approx(float((r2 > row["threshold"]).mean()))
        assert found["hardest_null"] == "covariance-matched"
        rates = [row for row in found["shares"] if row["kind"] == "null_rate"]
        assert len(rates) == 3 * (1 + (size == 7))
        assert all(row["shares"][row["null"]] <= 0.01 for row in rates)
        assert found["shares"][0]["shares"]["white noise"] < 0.2
    assert "too few" in summary["sizes"]["5"]["autoencoder"]["left_out"]
    assert summary["sizes"]["7"]["flagged"] == {"zero": 1, "constant": 0, "nonfinite": 1}


def test_main_writes_fits_under_the_names_of_the_layers(finished, source):
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


def test_main_escapes_names_in_the_report(finished):
    page = (finished / "report.html").read_text()
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    assert "http" not in re.sub(r"https?://www.w3.org", "", "".join(re.findall(r"src=.{60}", page)))


def test_main_records_how_results_were_made(finished, source):
    about = json.loads((finished / "run.json").read_bytes())
    assert about["config"]["sources"] == [str(source)]
    assert about["config"]["steps"] == 50
    assert about["stages"]["fit-7-network"] == "made"
    assert about["versions"]["dogfit"] == dogfit.__version__
    assert about["sources"][0]["bytes_read"] <= about["sources"][0]["bytes_total"] == source.stat().st_size
    assert about["seconds"]["total"] > 0
    assert about["devices"]


def test_main_reads_a_finished_run(finished, source, capsys):
    before = (finished / "run.json").read_bytes()
    assert main([str(source), "--out", str(finished), *SMALL]) == 0
    assert (finished / "run.json").read_bytes() == before
    captured = capsys.readouterr()
    assert "already holds this run" in captured.err
    assert f"report: {finished / 'report.html'}" in captured.out


def test_main_refuses_another_run_in_the_same_folder(finished, source, capsys):
    before = (finished / "run.json").read_bytes()
    assert main([str(source), "--out", str(finished), *SMALL, "--seed", "1"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (finished / "run.json").read_bytes() == before


def test_main_with_json_prints_the_summary_alone(finished, source, capsys):
    assert main([str(source), "--out", str(finished), *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((finished / "summary.json").read_bytes())


def test_main_with_quiet_prints_nothing(finished, source, capsys):
    assert main([str(source), "--out", str(finished), *SMALL, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize(
    "how",
    [
        {"profile": "integrated", "criterion": "bic"},
        pytest.param({"profile": "sampled", "criterion": "aicc"}, marks=pytest.mark.slow),
    ],
)
def test_main_ends_with_about_ten_lines(how, source, tmp_path, capsys):
    command = [str(source), "--out", str(tmp_path / "o"), *FITS, "--sizes", "7"]
    assert main([*command, *(f"--{name}={value}" for name, value in how.items())]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert 5 <= len(lines) <= 12
    assert all(line.count("%") != 1 for line in lines)
    assert "fit 7×7 network: 120 kernels in" in captured.err
    summary = json.loads((tmp_path / "o" / "summary.json").read_bytes())
    assert list(summary["sizes"]) == ["7"]
    assert summary["sizes"]["7"]["autoencoder"]["left_out"] == "left out on request"
    assert set(summary["sizes"]["7"]["families"]) == {"gaussian", "d1"}
    assert not (tmp_path / "o" / "autoencoder").exists()
    settings = json.loads((tmp_path / "o" / "run.json").read_bytes())["config"]
    assert {name: settings[name] for name in how} == how == {name: summary["settings"][name] for name in how}


def test_main_compares_several_models(source, tmp_path, capsys):
    other = checkpoint(tmp_path / "other.safetensors", seed=20)
    out = tmp_path / "both"
    assert main([str(source), str(other), "--out", str(out), "--sizes", "7", *FITS]) == 0
    printed = capsys.readouterr().out
    assert "tiny 7×7 R² > 0.80" in printed
    assert "other 7×7 R² > 0.80" in printed
    summary = json.loads((out / "summary.json").read_bytes())
    assert [part["model"] for part in summary["sizes"]["7"]["by_model"]] == ["tiny", "other"]
    names = set(load_file(out / "fits.safetensors"))
    assert "tiny:stages.0.blocks.0.conv_dw.weight" in names
    assert "other:stages.0.blocks.0.conv_dw.weight" in names
    assert set(pl.read_parquet(out / "kernels.parquet")["model"]) == {"tiny", "other"}


@pytest.mark.parametrize("method", ["fits", "universal", "autoencoder"])
def test_main_adds_replaced_kernels_to_a_finished_run(finished, source, tmp_path, capsys, method):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    command = [str(source), "--out", str(out), *SMALL, "--replace", method, "--replace-r2", "0.3"]
    assert main(command) == 0
    assert shown(out) == {*RESULTS, "replaced.safetensors"} - {"figures"}
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
    # Results of another run take the old replacement away.
    assert main([str(source), "--out", str(out), *SMALL, "--sizes", "5", "--quiet", "--overwrite"]) == 0
    assert not (out / "replaced.safetensors").exists()


def _explained(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """R² about the mean of the kernels that changed, 1 for the others."""
    same = np.array([a.tobytes() == b.tobytes() for a, b in zip(old, new, strict=True)])
    centred = old - old.mean((1, 2), keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(same, 1, 1 - np.sum((old - new) ** 2, (1, 2)) / np.sum(centred**2, (1, 2)))


def test_main_replaces_several_models_each_in_a_file(source, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"dwconv.weight": blobs(24, 5, 50), "head.weight": np.ones((3, 24), np.float32)}, other)
    out = tmp_path / "both"
    command = [str(source), str(other), "--out", str(out), "--quiet", "--sizes", "5", *FITS]
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


def test_main_resumes_an_interrupted_run_to_the_same_bytes(finished, source, tmp_path, capsys, monkeypatch):
    from dogfit.runtime import tasks

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_train_on_shard", interrupt)
        assert main([str(source), "--out", str(out), *SMALL]) == 130
    said = "interrupted; run the same command again to resume from the last completed stage"
    assert said in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {".dogfit"}
    assert main([str(source), "--out", str(out), *SMALL]) == 0
    progress = capsys.readouterr().err
    assert "fit 7×7 network" not in progress
    assert "train 7×7 autoencoder" in progress
    kept = stages(out, "kept")
    assert {"fit-5-network", "fit-7-network", "universal-5"} <= kept
    assert "autoencoder-7" not in kept
    for name in ("kernels.parquet", "summary.json", "fits.safetensors", "report.html"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_main_applies_a_given_autoencoder_and_writes_it_with_the_results(finished, tmp_path, capsys):
    from dogfit.autoencoder import Autoencoder
    from dogfit.checkpoints import load_kernels

    other, out = checkpoint(tmp_path / "other.safetensors", seed=50), tmp_path / "out"
    command = [str(other), "--out", str(out), *SMALL, "--sizes", "7", "--families", "gaussian"]
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


def test_main_refuses_autoencoders_that_cannot_be_used(finished, source, tmp_path, capsys):
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(source.read_bytes())
    command = [str(source), "--out", str(tmp_path / "out"), *SMALL]
    for path, reason in (
        (tmp_path / "absent", "no autoencoder at"),
        (tmp_path, "no autoencoder at"),
        (wrong, "dogfit autoencoder"),
    ):
        assert main([*command, "--autoencoder", str(path)]) == 3
        assert reason in capsys.readouterr().err
    assert main([*command, "--sizes", "5", "--autoencoder", str(finished)]) == 3
    assert "for 7×7 kernels, the input has 5×5 ones" in capsys.readouterr().err
    assert exit_code([*command, "--no-autoencoder", "--autoencoder", str(finished)]) == 2
    assert "exclude each other" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
