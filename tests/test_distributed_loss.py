"""kill -9 of one of two real processes: the other ends with a sentence, and the same command goes on."""

import random
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dogfit.autoencoder import Autoencoder
from process_group import (
    LOST_WITHIN_S,
    PATIENCE_S,
    all_end_well,
    kill,
    process_group,
    two_of_a_job,
    wait_until,
)

STEPS = 800


def command(out: Path) -> list[list[str]]:
    return two_of_a_job("training", "--out", str(out), "--steps", str(STEPS))


def states(out: Path) -> list[Path]:
    folder = out / "training" / "states"
    return list(folder.iterdir()) if folder.is_dir() else []


def half_written(out: Path) -> list[Path]:
    return [state for state in states(out) if state.name.endswith("tmp")]


def newest(out: Path) -> int:
    return max((int(state.name) for state in states(out) if state.name.isdecimal()), default=0)


def first_step(log: Path) -> int:
    return next(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("step "))


def run_until_killed(out: Path, attempt: int, victim: int, cache: Path, *, amid_a_save: bool) -> None:
    """Go on from the newest state, kill one process, and see the other end."""
    before = newest(out)
    logs = [out.parent / f"{attempt}-{index}.log" for index in (0, 1)]
    with process_group(command(out), logs, cache) as group:
        wait_until(lambda: newest(out) > before, group)
        if amid_a_save:
            wait_until(lambda: half_written(out), group)
        else:
            time.sleep(random.uniform(0, 1))
        kill(group[victim])
        killed = time.monotonic()
        assert group[1 - victim].wait(PATIENCE_S) == 1, logs[1 - victim].read_text()
        assert time.monotonic() - killed < LOST_WITHIN_S
    assert first_step(logs[1 - victim]) == before + 50
    last = logs[1 - victim].read_text().splitlines()[-1]
    assert last.startswith("dogfit: another process of this job never started, was lost or failed")
    assert "the same command" in last
    assert 0 < newest(out) < STEPS


@pytest.mark.slow
def test_training_resumes_to_the_same_bits_whenever_a_process_is_killed(tmp_path, tmp_path_factory):
    cache, out = tmp_path_factory.mktemp("compiled"), tmp_path / "killed"
    run_until_killed(out, 0, 0, cache, amid_a_save=True)
    run_until_killed(out, 1, 1, cache, amid_a_save=True)
    run_until_killed(out, 2, random.randrange(2), cache, amid_a_save=False)
    # Half of a state that would be the newest, under the name that a kill leaves it.
    whole = newest(out)
    folder = out / "training" / "states"
    shutil.copytree(folder / str(whole), folder / f"{STEPS - 50}.orbax-checkpoint-tmp")
    for run in (out, tmp_path / "undisturbed"):
        logs = [tmp_path / f"{run.name}-{index}.log" for index in (0, 1)]
        with process_group(command(run), logs, cache) as group:
            all_end_well(group, logs)
    assert first_step(tmp_path / "killed-0.log") == whole + 50
    assert not half_written(out)
    found, expected = Autoencoder.load(out), Autoencoder.load(tmp_path / "undisturbed")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    np.testing.assert_array_equal(found.history, expected.history)
