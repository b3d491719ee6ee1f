"""A run that was stopped or killed continues to the same bits, and never from half a checkpoint."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
from dogfit.devices import data_mesh
from dogfit.errors import DogfitError

CONFIG = AutoencoderConfig(steps=300, batch_size=64, restarts=2, widths=(32,), frequencies=4)


def noise(n=200, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 5, 5)).astype(np.float32)


def assert_same(a: Autoencoder, b: Autoencoder):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    np.testing.assert_array_equal(a.history, b.history)


class StopError(Exception):
    pass


def stop_at(step):
    def progress(done, *_):
        if done >= step:
            raise StopError

    return progress


def interrupted(folder, at, **kwargs):
    with pytest.raises(StopError):
        train_autoencoder(
            noise(), CONFIG, checkpoint_dir=folder, checkpoint_every_s=0, progress=stop_at(at), **kwargs
        )


def steps_seen(folder, **kwargs):
    """Finish the run in `folder`; the model and the steps it passed on the way."""
    seen = []
    model = train_autoencoder(
        noise(), CONFIG, checkpoint_dir=folder, progress=lambda done, *_: seen.append(done), **kwargs
    )
    return model, seen


@pytest.fixture(scope="module")
def uninterrupted():
    return train_autoencoder(noise(), CONFIG)


def test_a_stopped_run_continues_to_the_same_bits(tmp_path, uninterrupted):
    interrupted(tmp_path, 150)
    # Progress is reported before a state is saved, so the stop at 150 leaves the state of 100.
    model, seen = steps_seen(tmp_path)
    assert seen == [150, 200, 250, 300]
    assert_same(model, uninterrupted)
    # A finished run is only read.
    model, seen = steps_seen(tmp_path)
    assert seen == []
    assert_same(model, uninterrupted)


def test_a_run_over_a_mesh_continues_to_the_same_bits(tmp_path):
    mesh = data_mesh(jax.devices()[:3])
    interrupted(tmp_path, 250, mesh=mesh)
    model, seen = steps_seen(tmp_path, mesh=mesh)
    assert seen == [250, 300]
    assert_same(model, train_autoencoder(noise(), CONFIG, mesh=mesh))


def test_half_written_states_are_never_picked_up(tmp_path, uninterrupted):
    interrupted(tmp_path, 200)
    states = tmp_path / "states"
    assert sorted(p.name for p in states.iterdir() if p.is_dir()) == ["100", "150"]
    # What a kill during a save leaves: a folder under a temporary name, here with a later step.
    (states / "150").rename(states / "250.orbax-checkpoint-tmp")
    model, seen = steps_seen(tmp_path)
    assert seen == [150, 200, 250, 300]
    assert_same(model, uninterrupted)


def test_a_damaged_state_is_a_plain_error(tmp_path):
    interrupted(tmp_path, 150)
    for file in (tmp_path / "states" / "100").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(DogfitError, match=r"cannot be read.*delete the folder"):
        steps_seen(tmp_path)


@pytest.mark.parametrize(
    ("kernels", "config", "differs"),
    [
        (noise(), dataclasses.replace(CONFIG, learning_rate=1e-3), "config"),
        (noise(seed=1), CONFIG, "kernels_digest"),
        (noise(201), CONFIG, "kernels, kernels_digest"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, kernels, config, differs):
    interrupted(tmp_path, 100)
    with pytest.raises(DogfitError, match=f"another training run \\({differs} differ\\)"):
        train_autoencoder(kernels, config, checkpoint_dir=tmp_path)


def test_a_damaged_description_is_refused(tmp_path):
    interrupted(tmp_path, 100)
    path = tmp_path / "run.json"
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(DogfitError, match="damaged"):
        steps_seen(tmp_path)
    path.write_text(json.dumps([1]))
    with pytest.raises(DogfitError, match="damaged"):
        steps_seen(tmp_path)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
kernels = np.random.default_rng(0).normal(size=(200, 5, 5)).astype(np.float32)
config = AutoencoderConfig(steps=int(sys.argv[2]), batch_size=64, restarts=2, widths=(32,), frequencies=4)
model = train_autoencoder(kernels, config, checkpoint_dir=Path(sys.argv[1]) / "run", checkpoint_every_s=0,
                          progress=lambda *a: print(*a, flush=True))
model.save(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_process_continues_to_the_same_bits(tmp_path):
    """SIGKILL while states are being written one after another; then the same command runs to its end."""
    steps = 1500
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(steps)]
    # The child must not inherit the eight devices of this process: one device, as in the reference below.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    random = np.random.default_rng()
    states = tmp_path / "run" / "states"
    before = 0
    for aimed in (True, False, True, False):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            first = int(child.stdout.readline().split()[0])
            assert first > before, "the second run did not continue the first"
            # The state before a reported chunk has been saved.
            for _ in range(2):
                before = int(child.stdout.readline().split()[0]) - 50
            # Either in the middle of a save, or at any moment.
            until = time.monotonic() + (60 if aimed else random.uniform(0.0, 0.1))
            while time.monotonic() < until and not (aimed and any(map(is_half_written, states.iterdir()))):
                pass
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert child.returncode == -signal.SIGKILL, "the run ended before it was killed; raise steps"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    assert not any(map(is_half_written, states.iterdir()))
    kernels = np.random.default_rng(0).normal(size=(200, 5, 5)).astype(np.float32)
    mesh = data_mesh(jax.devices()[:1])
    reference = train_autoencoder(kernels, dataclasses.replace(CONFIG, steps=steps), mesh=mesh)
    assert_same(Autoencoder.load(Path(tmp_path)), reference)


def is_half_written(state: Path) -> bool:
    return state.name.endswith("tmp")
