"""Several processes: shares and messages, and the same results as one process; real ones on the loopback."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dogfit
from dogfit import distributed
from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
from dogfit.devices import data_mesh
from process_group import free_port, start_process
from test_run import checkpoint, exit_code

# Nobody waits this long: it ends a test that hangs.
PATIENCE_S = 300


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@given(n=st.integers(0, 1000), count=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_shares_are_even_and_cover_every_row_once(n, count):
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for index in range(count):
            state = SimpleNamespace(process_id=index, num_processes=count)
            patch.setattr(distributed, "_state", lambda state=state: state)
            shares.append(np.arange(n)[distributed.own_rows(n)])
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_process_alone_has_everything_and_waits_for_nobody():
    assert (distributed.process_index(), distributed.process_count()) == (0, 1)
    assert distributed.own_rows(7) == slice(0, 7)
    assert distributed.broadcast(b"said") == b"said"
    rows = {"a": np.arange(3)}
    assert distributed.gather_rows(rows) is rows
    distributed.wait_for_all()
    assert not distributed.is_loss(RuntimeError("UNAVAILABLE"))


def test_auto_outside_of_a_cluster_says_what_to_do():
    program = (
        "from dogfit import distributed\nfrom dogfit.errors import DogfitError\n"
        "try: distributed.start('auto')\nexcept DogfitError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "no cluster was recognised" in done.stdout, done.stderr
    assert "--coordinator HOST:PORT --processes N --process-id I" in done.stdout


def test_only_the_loopback_is_taken_for_the_loopback():
    assert distributed._is_loopback("127.0.0.1:1234")
    assert distributed._is_loopback("localhost:1234")
    assert not distributed._is_loopback("192.0.2.1:1234")
    assert not distributed._is_loopback("[::]:1234")


KERNELS = np.random.default_rng(0).normal(size=(203, 5, 5)).astype(np.float32)
CONFIG = AutoencoderConfig(steps=150, batch_size=64, restarts=2, widths=(32,), frequencies=4)
MEMBER = """
import sys
from pathlib import Path
import numpy as np
from dogfit import distributed
index, count, port, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
distributed.start(f"127.0.0.1:{port}", count, index)
import jax
import dogfit
from dogfit.autoencoder import train_autoencoder
from dogfit.devices import data_mesh
from test_distributed import CONFIG, KERNELS, Stop

assert (jax.process_index(), jax.process_count()) == (index, count)
assert distributed.broadcast(f"from {index}".encode()) == b"from 0"
mine = distributed.own_rows(len(KERNELS))
part = dogfit.fit_kernels(KERNELS[mine], ["gaussian"])
fit = distributed.gather_rows(part)
to_first = distributed.gather_rows(np.arange(203.0)[mine], everywhere=False)
assert len(to_first) == (203 if index == 0 else mine.stop - mine.start)

seen = []
def stop(done, *_):
    seen.append(done)
    if len(seen) == 2:
        raise Stop
how = {"mesh": data_mesh(), "checkpoint_dir": folder / "training", "checkpoint_every_s": 0}
try:
    train_autoencoder(KERNELS, CONFIG, **how, progress=stop)
except Stop:
    pass
model = train_autoencoder(KERNELS, CONFIG, **how, progress=lambda done, *_: seen.append(done))
try:
    train_autoencoder(KERNELS, CONFIG, checkpoint_dir=folder / f"alone-{index}")
except ValueError as error:
    assert f"spans 1 of {count} processes" in str(error)
else:
    raise AssertionError("a folder for one process of several was taken")
np.savez(folder / f"{index}.npz", *jax.tree.leaves((fit, model.params)), history=model.history, seen=seen)
distributed.finish()
"""


class Stop(Exception):  # noqa: N818 - ends a run on purpose
    pass


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_find_what_one_finds(count, tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    port = str(free_port())
    group = [
        start_process(["-c", MEMBER, str(i), str(count), port, str(tmp_path)], tmp_path / f"{i}.log", cache)
        for i in range(count)
    ]
    try:
        for process, log in zip(group, sorted(tmp_path.glob("*.log")), strict=True):
            assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        for process in group:
            process.kill()
            process.wait()
    fit = dogfit.fit_kernels(KERNELS, ["gaussian"])
    one = train_autoencoder(KERNELS, CONFIG, mesh=data_mesh(jax.devices()[:count]))
    for index in range(count):
        found = np.load(tmp_path / f"{index}.npz")
        # Stopped at 100, where the state of 50 was the last one saved.
        np.testing.assert_array_equal(found["seen"], [50, 100, 100, 150])
        arrays = [found[f"arr_{i}"] for i in range(len(found.files) - 2)]
        fitted = jax.tree.leaves(fit)
        for ours, theirs in zip(arrays[: len(fitted)], fitted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        # The sums of gradients are taken in another order.
        for ours, theirs in zip(arrays[len(fitted) :], jax.tree.leaves(one.params), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found["history"], one.history, rtol=1e-4)


def command(source, out, port, index):
    words = f"--steps 50 --families gaussian --sizes 7 --lost-after 5 --coordinator 127.0.0.1:{port} "
    words += f"--processes 2 --process-id {index} --json"
    return ["-m", "dogfit.run", str(source), "--out", str(out), *words.split()]


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_lost_process_ends_the_others_and_the_same_command_goes_on(tmp_path, cache):
    source, out = checkpoint(tmp_path / "in" / "tiny.safetensors"), tmp_path / "out"
    training = out / ".dogfit" / "training-7"

    def run(attempt):
        port = free_port()
        logs = [tmp_path / f"{attempt}-{i}.log" for i in (0, 1)]
        return [start_process(command(source, out, port, i), logs[i], cache) for i in (0, 1)], logs

    for victim in (1, 0):
        group, logs = run(f"lose-{victim}")
        try:
            wait_for(training / "run.json", group[0])
            group[victim].send_signal(signal.SIGKILL)
            # 5 s as asked on the command line; the rest is for a machine that has other things to do.
            assert group[1 - victim].wait(65) == 1
        finally:
            for process in group:
                process.kill()
                process.wait()
        said = logs[1 - victim].read_text().splitlines()[-1]
        assert said.startswith("dogfit: another process of this job did not come, was lost or has failed")
        assert "the same command" in said
        assert not (out / "run.json").exists()
        shutil.rmtree(training)

    group, logs = run("again")
    try:
        for process, log in zip(group, logs, strict=True):
            assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        for process in group:
            process.kill()
            process.wait()
    # Fitted before the first loss.
    assert "fit 7×7 network" not in logs[0].read_text()
    assert json.loads((out / "run.json").read_bytes())["processes"] == 2
    fit = dogfit.fit_kernels(dogfit.load_kernels(source, sizes=(7,)).groups[7].kernels, ["gaussian"])
    table = pl.read_parquet(out / "kernels.parquet")
    assert table.height == len(fit) == 120
    np.testing.assert_array_equal(table["r2"].fill_null(np.nan).to_numpy(), fit.r2)
    assert table["code"].null_count() == 2  # the damaged kernels


def test_wrong_use_of_processes_is_said(tmp_path, capsys):
    for words, message in [
        ("--processes 2", "need --coordinator"),
        ("--coordinator here:1", "needs --processes N and --process-id I"),
        ("--coordinator here --processes 2 --process-id 0", "is HOST:PORT, or auto; got here"),
        ("--coordinator here:99999 --processes 2 --process-id 0", "is HOST:PORT, or auto"),
        ("--coordinator here:1 --processes 0 --process-id 0", "must be 1 or more"),
        ("--coordinator here:1 --processes 2 --process-id 2", "counts from 0 to 1, got 2"),
        ("--coordinator auto --lost-after 0", "1 second or more"),
    ]:
        assert exit_code([*words.split(), "--out", str(tmp_path / "out")]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
