"""Several processes: shards and messages, and the same results as one process; real ones on the loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import dogfit
from dogfit import distributed
from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
from dogfit.devices import data_mesh
from dogfit.errors import LostProcessError
from dogfit.runtime.supervisor import LOST
from job_inputs import SMALL, TRAINING, checkpoint, exit_code, stages
from jobs import KERNELS
from process_group import (
    JOBS,
    LOST_WITHIN_S,
    PATIENCE_S,
    all_end_well,
    free_port,
    kill,
    process_group,
    start_process,
    two_of_a_job,
    wait_until,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@given(n=st.integers(0, 1000), count=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_own_rows_are_even_and_cover_every_row_once(n, count):
    with pytest.MonkeyPatch.context() as patch:
        shares = []
        for index in range(count):
            state = SimpleNamespace(process_id=index, num_processes=count)
            patch.setattr(distributed, "_state", lambda state=state: state)
            shares.append(np.arange(n)[distributed.own_rows(n)])
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_messages_of_a_process_alone_wait_for_nobody():
    assert (distributed.process_index(), distributed.process_count()) == (0, 1)
    assert distributed.own_rows(7) == slice(0, 7)
    assert distributed.broadcast(b"said") == b"said"
    rows = {"a": np.arange(3)}
    assert distributed.gather_rows(rows) is rows
    np.testing.assert_array_equal(distributed.scatter_rows(rows["a"]), rows["a"])
    with pytest.raises(ValueError, match="must give the rows to scatter"):
        distributed.scatter_rows()
    distributed.wait_for_all()
    assert not distributed.caused_by_loss(RuntimeError("UNAVAILABLE"))


class Answer(jax.errors.JaxRuntimeError):
    """What the coordination service answers; only its code counts."""

    def __init__(self, error_code: int) -> None:
        super().__init__("any words: UNAVAILABLE, heartbeat, barrier")
        self.code = error_code

    @property
    def error_code(self) -> int:
        return self.code


class Service:
    """Coordination service that answers every wait with an error code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def wait_at_barrier(self, *_: object) -> None:
        raise Answer(self.code)

    blocking_key_value_get = wait_at_barrier


def two_processes(monkeypatch, code: int) -> None:
    state = SimpleNamespace(process_id=0, num_processes=2, client=Service(code))
    monkeypatch.setattr(distributed, "_state", lambda: state)


@pytest.mark.parametrize(("code", "lost"), [(14, True), (13, True), (10, True), (3, False), (8, False)])
def test_waits_report_a_lost_process_by_its_type(monkeypatch, code, lost):
    two_processes(monkeypatch, code)
    for wait in (distributed.wait_for_all, lambda: distributed._receive("key")):
        with pytest.raises(LostProcessError if lost else Answer):
            wait()


@pytest.mark.parametrize(("code", "lost"), [(13, True), (14, True), (4, False)])
def test_caused_by_loss_asks_the_service_and_reads_no_words(monkeypatch, code, lost):
    """A barrier that times out (4) means that all others live: the error is this process's own."""
    two_processes(monkeypatch, code)
    for error in (ValueError("UNKNOWN: Gloo all-reduce failed"), TypeError("heartbeat UNAVAILABLE barrier")):
        assert distributed.caused_by_loss(error, 1) is lost


def test_caused_by_loss_finds_it_behind_what_a_library_makes_of_it(monkeypatch):
    two_processes(monkeypatch, 4)
    try:
        try:
            raise LostProcessError("gone")
        except LostProcessError as error:
            raise TimeoutError("ChainedFuture completed 2/3 futures but timed out") from error
    except TimeoutError as error:
        assert distributed.caused_by_loss(error, 1)


def test_start_outside_of_a_cluster_says_what_to_do():
    program = (
        "from dogfit import distributed\nfrom dogfit.errors import DogfitError\n"
        "try: distributed.start('auto')\nexcept DogfitError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    assert "no cluster was recognized" in done.stdout, done.stderr
    assert "--coordinator HOST:PORT --processes N --process-id I" in done.stdout


def test_is_loopback_takes_only_the_loopback_for_it():
    assert distributed._is_loopback("127.0.0.1:1234")
    assert distributed._is_loopback("localhost:1234")
    assert not distributed._is_loopback("192.0.2.1:1234")
    assert not distributed._is_loopback("[::]:1234")


@pytest.fixture
def two_ended(request, tmp_path, cache) -> tuple[list[int], list[str]]:
    """Exit codes and messages of a job of two real processes, of which one or both fail."""
    logs = [tmp_path / f"{index}.log" for index in (0, 1)]
    with process_group(two_of_a_job(request.param), logs, cache) as group:
        codes = [process.wait(PATIENCE_S) for process in group]
    return codes, [log.read_text() for log in logs]


@pytest.mark.parametrize("two_ended", ["exchange"], indirect=True)
def test_processes_exchange_rows_and_notice_a_loss(two_ended):
    codes, said = two_ended
    assert all("messages arrived" in text for text in said)
    assert codes == [1, 1]
    assert said[0].splitlines()[-1] == f"dogfit: {LOST}"
    assert said[1].splitlines()[-1] == "dogfit: ended by signal 9; run the same command again to resume"


@pytest.mark.slow
@pytest.mark.parametrize("two_ended", ["broken"], indirect=True)
def test_processes_keep_the_traceback_of_a_fault_of_their_own(two_ended):
    codes, said = two_ended
    assert codes == [1, 1]
    assert "TypeError: a fault of its own" in said[0]
    assert "Traceback" in said[0]
    assert LOST not in said[0]
    assert said[1].splitlines()[-1] == f"dogfit: {LOST}"


CONFIG = AutoencoderConfig(steps=150, **TRAINING)
# Uneven shares, an empty one among them.
CUTS = (0, 20, 20, 203)
COUNT = len(CUTS) - 1
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
from jobs import KERNELS
from test_distributed import CONFIG, CUTS, Stop, stop_at

assert (jax.process_index(), jax.process_count()) == (index, count)
assert distributed.broadcast(f"from {index}".encode()) == b"from 0"
mine = distributed.own_rows(len(KERNELS))
part = dogfit.fit_kernels(KERNELS[mine], ["gaussian"])
fit = distributed.gather_rows(part)
to_first = distributed.gather_rows(np.arange(203.0)[mine], everywhere=False)
assert len(to_first) == (203 if index == 0 else mine.stop - mine.start)
sent = distributed.scatter_rows(KERNELS if index == 0 else None)
np.testing.assert_array_equal(sent, KERNELS[mine])

share = KERNELS[CUTS[index] : CUTS[index + 1]]
def train(name, progress):
    return train_autoencoder(
        share, CONFIG, mesh=data_mesh(), checkpoint_dir=folder / name, checkpoint_every_s=0, progress=progress
    )
seen = []
for name in ("training", "to-one"):
    try:
        train(name, stop_at(100))
    except Stop:
        pass
model = train("training", lambda done, *_: seen.append(done))
from_one = train("from-one", lambda done, *_: seen.append(done))

def refused(message, kernels, **how):
    try:
        train_autoencoder(kernels, CONFIG, **how)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"not refused: {message}")
refused(f"spans 1 of {count} processes", share, checkpoint_dir=folder / f"alone-{index}")
refused(f"all {count} processes give the same 203 kernels", KERNELS, mesh=data_mesh())
refused("of one size in all processes", KERNELS[:, : 5 - index % 2, : 5 - index % 2], mesh=data_mesh())
leaves = jax.tree.leaves((fit, model.params, from_one.params))
np.savez(folder / f"{index}.npz", *leaves, history=model.history, seen=seen)
distributed.finish()
"""


class Stop(Exception):  # noqa: N818 - ends a run on purpose
    pass


def stop_at(step):
    """Progress that ends a run before the state of this step is saved."""

    def progress(done, *_):
        if done >= step:
            raise Stop

    return progress


@pytest.mark.slow
def test_processes_compute_what_one_computes(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    alone = {"mesh": data_mesh(jax.devices()[:1]), "checkpoint_every_s": 0}
    with pytest.raises(Stop):
        train_autoencoder(
            KERNELS, CONFIG, checkpoint_dir=tmp_path / "from-one", progress=stop_at(100), **alone
        )
    port = str(free_port())
    logs = [tmp_path / f"{i}.log" for i in range(COUNT)]
    commands = [["-c", MEMBER, str(i), str(COUNT), port, str(tmp_path)] for i in range(COUNT)]
    with process_group(commands, logs, cache) as group:
        all_end_well(group, logs)
    fit = dogfit.fit_kernels(KERNELS, ["gaussian"])
    one = train_autoencoder(KERNELS, CONFIG, mesh=data_mesh(jax.devices()[:COUNT]))

    # The sums of gradients are taken in another order.
    def assert_close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)

    for index in range(COUNT):
        found = np.load(tmp_path / f"{index}.npz")
        # Stopped at 100, where the state of 50 was the last one saved; by this many processes, and by one.
        np.testing.assert_array_equal(found["seen"], [100, 150, 100, 150])
        arrays = [found[f"arr_{i}"] for i in range(len(found.files) - 2)]
        fitted, params = jax.tree.leaves(fit), jax.tree.leaves(one.params)
        for ours, theirs in zip(arrays[: len(fitted)], fitted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        for ours, theirs in zip(arrays[len(fitted) :], [*params, *params], strict=True):
            assert_close(ours, theirs)
        np.testing.assert_allclose(found["history"], one.history, rtol=1e-5)
    seen = []
    to_one = train_autoencoder(
        KERNELS,
        CONFIG,
        checkpoint_dir=tmp_path / "to-one",
        progress=lambda done, *_: seen.append(done),
        **alone,
    )
    assert seen == [100, 150]
    jax.tree.map(assert_close, to_one.params, one.params)


@pytest.mark.slow
def test_main_of_two_processes_survives_a_loss_and_computes_what_one_computes(tmp_path, cache):
    """With evidence, whose autoencoders are trained together too."""
    source, out, alone = checkpoint(tmp_path / "in" / "tiny.safetensors"), tmp_path / "out", tmp_path / "one"
    words = [str(source), *SMALL, *"--sizes 7 --evidence".split()]
    logs = {attempt: [tmp_path / f"{attempt}-{i}.log" for i in (0, 1)] for attempt in ("lost", "again")}
    with process_group(two_of_a_job("command", *words, "--out", str(out)), logs["lost"], cache) as group:
        wait_until(lambda: list((out / ".dogfit").glob("checkpoints/autoencoder-7.*/run.json")), group)
        kill(group[1])
        assert group[0].wait(LOST_WITHIN_S) == 1
    said = logs["lost"][0].read_text().splitlines()[-1]
    assert said.startswith("dogfit: another process of this job never started, was lost or failed")
    assert not (out / "run.json").exists()

    with process_group(two_of_a_job("command", *words, "--out", str(out)), logs["again"], cache) as group:
        all_end_well(group, logs["again"])
    # Fitted before the loss.
    assert "fit 7×7 network" in logs["lost"][0].read_text()
    assert "fit 7×7 network" not in logs["again"][0].read_text()
    assert json.loads((out / "run.json").read_bytes())["processes"] == 2
    # With every stage kept there is no task for the other process.
    kept = Path(shutil.copytree(out, tmp_path / "kept"))
    rate = [*words, "--null-rate", "0.2", "--out", str(kept)]
    logs["rate"] = [tmp_path / f"rate-{i}.log" for i in (0, 1)]
    with process_group(two_of_a_job("command", *rate), logs["rate"], cache) as group:
        all_end_well(group, logs["rate"])
    assert stages(kept, "made") == {"summary.json", "report.html"}

    log = tmp_path / "one.log"
    process = start_process([str(JOBS), "command", *words, "--out", str(alone)], log, cache, devices=2)
    all_end_well([process], [log])
    ours, theirs = (pl.read_parquet(folder / "kernels.parquet") for folder in (out, alone))
    assert ours.height == 120
    assert_frame_equal(ours, theirs, rel_tol=1e-3, abs_tol=1e-3)
    # What is fitted is the same to the last bit.
    coded = ["code", "reconstruction_cosine", "cluster", "kmeans"]
    assert_frame_equal(ours.drop(coded, strict=False), theirs.drop(coded, strict=False), check_exact=True)
    summaries = [json.loads((folder / "summary.json").read_bytes()) for folder in (out, alone)]
    mine, other = (summary["sizes"]["7"] for summary in summaries)
    assert mine["label_shares"] == other["label_shares"]
    assert mine["evidence"] == approximately(other["evidence"])


def approximately(value):
    """The same structure, whose numbers may differ by rounding."""
    if isinstance(value, dict):
        return {name: approximately(item) for name, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, rel=1e-2, abs=1e-2) if isinstance(value, float) else value


def test_main_with_wrong_processes_exits_with_2(tmp_path, capsys):
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
