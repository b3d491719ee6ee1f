"""The command used wrongly, interrupted, or given what it cannot use; and its help."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

import dogfit
from dogfit.autoencoder import AutoencoderConfig
from dogfit.run import main
from job_inputs import SMALL, blobs, checkpoint, exit_code
from jobs import __file__ as jobs


def truncated(folder: Path) -> Path:
    path = checkpoint(folder / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-5000])
    return path


def garbage(folder: Path) -> Path:
    path = folder / "noise.safetensors"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def pickled(folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(b"\x80\x04N.")
    return path


def without_depthwise(folder: Path) -> Path:
    path = folder / "dense.safetensors"
    save_file({"conv.weight": np.ones((8, 4, 3, 3), np.float32)}, path)
    return path


def constant(value: float):
    def make(folder: Path) -> Path:
        path = folder / "flat.safetensors"
        save_file({"stages.0.blocks.0.conv_dw.weight": np.full((16, 1, 7, 7), value, np.float32)}, path)
        return path

    return make


def zero_beside_ambiguous(folder: Path) -> Path:
    path = folder / "gray.safetensors"
    kernels = {"conv.weight": np.ones((8, 1, 5, 5), np.float32)}
    kernels["conv.weight"][:, 0, 0, 0] = np.arange(8)
    save_file(kernels | {"stages.0.blocks.0.conv_dw.weight": np.zeros((16, 1, 7, 7), np.float32)}, path)
    return path


BROKEN = {
    "missing": (lambda folder: folder / "nowhere.safetensors", "nowhere"),
    "truncated": (truncated, "cut"),
    "garbage": (garbage, "noise"),
    "pickle": (pickled, "safetensors"),
    "no depthwise": (without_depthwise, "depthwise"),
    "all zero": (constant(0.0), "none of the 16 depthwise kernels can be fitted"),
    "all zero beside what is ambiguous": (zero_beside_ambiguous, "--include conv.weight"),
    "all NaN": (constant(np.nan), "none of the 16 depthwise kernels can be fitted"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_main_with_unusable_input_exits_with_3_and_leaves_nothing(kind, tmp_path, capsys):
    make, message = BROKEN[kind]
    path = make(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "out" / "deep"), "--quiet"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dogfit: ")
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_main_skips_a_size_that_cannot_be_fitted(tmp_path, capsys):
    path = tmp_path / "wide.safetensors"
    wide = np.random.default_rng(0).standard_normal((8, 1, 53, 53)).astype(np.float32)
    save_file({"a.0.dwconv.weight": wide}, path)
    assert main([str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 3
    assert "53×53 kernels left out: sizes 3 to 51 can be fitted" in capsys.readouterr().err
    save_file({"a.0.dwconv.weight": wide, "a.1.dwconv.weight": blobs(8, 5, 0)}, path)
    assert main([str(path), "--out", str(tmp_path / "out"), "--quiet", *SMALL]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    assert list(summary["sizes"]) == ["5"]
    assert "sizes 3 to 51" in summary["skipped_sizes"]["53"]
    assert summary["skipped_sizes"]["53"] in summary["left_out"]
    assert pl.read_parquet(tmp_path / "out" / "kernels.parquet").height == 8


def test_main_without_the_hub_exits_with_4(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["nobody/nothing", "--offline", "--out", str(tmp_path / "out"), "--quiet"]) == 4
    assert "nobody/nothing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "seven"], "seven"),
        (["--sizes", "1"], "at least 2"),
        (["--families", "dog,gabor"], "gabor"),
        (["--families", "dog,dog"], "twice"),
        (["--null-rate", "1.5"], "below 1"),
        (["--seed", "-1"], "0 or more"),
        (["--steps", "0"], "1 or more"),
        (["--null-kernels", "9"], "MIN,MAX"),
        (["--training", '{"layers": 3}'], "no field"),
        (["--training", '{"restarts": 0}'], "at least 1"),
        (["--training", "fast"], "JSON object"),
        (["--replace", "dogs"], "fits"),
        (["--replace-r2", "2"], "--replace-r2"),
        (["--replace", "universal", "--no-autoencoder"], "needs the autoencoder"),
        (["--no-such-option"], "no-such-option"),
    ],
)
def test_main_used_wrongly_exits_with_2(arguments, message, tmp_path, capsys):
    assert exit_code([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_main_with_a_file_as_out_exits_with_2(source, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert main([str(source), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "is a file" in capsys.readouterr().err


def test_main_that_cannot_make_its_folder_exits_with_1(source, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main([str(source), "--out", str(tmp_path / "file" / "out"), "--quiet"]) == 1
    assert "could not write" in capsys.readouterr().err


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "writes", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 12, 20)), 28]
)
def test_main_on_a_disk_that_fills_leaves_nothing(writes, source, tmp_path, capsys, monkeypatch):
    left = writes
    fsync = os.fsync

    def fill(handle):
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fill)
    command = [str(source), "--out", str(tmp_path / "out"), "--quiet", *SMALL, "--sizes", "5"]
    assert main(command) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert listing(tmp_path) == set()
    monkeypatch.undo()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_main_interrupted_exits_with_130_and_keeps_its_stages(source, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, jobs, "command", str(source), "--out", str(out), *SMALL]
    command += ["--sizes", "7", "--families", "gaussian", "--steps", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not list((out / ".dogfit").glob("stages/fit-7-network.*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("dogfit: interrupted")
    assert {path.name for path in out.iterdir()} == {".dogfit"}


def test_main_prints_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dogfit {dogfit.__version__}\n"
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    options = "--out --sizes --families --seed --steps --null-rate --autoencoder --no-autoencoder --include "
    options += "--exclude --replace --replace-r2 --overwrite --offline --quiet --json --version "
    options += "--null-kernels --training --no-figures --evidence --filters"
    assert all(option in text for option in options.split())
    assert f"(default: {AutoencoderConfig.steps})" in " ".join(text.split())


def test_main_with_help_loads_nothing_heavy():
    program = (
        "import sys\ntry:\n import dogfit.run; dogfit.run.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('jax', 'numpy', 'polars', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
