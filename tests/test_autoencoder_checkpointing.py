"""A run that was stopped or killed continues to the same bits, and never from half a checkpoint."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder
from dogfit.autoencoder.checkpointing import Checkpoints, fingerprint
from dogfit.autoencoder.sharding import shard_kernels
from dogfit.devices import data_mesh, replicated
from dogfit.errors import DogfitError
from tiny_autoencoder import CONFIG, edges

KILLED = AutoencoderConfig(steps=300, batch_size=64, restarts=2, widths=(32,), frequencies=4)
RUN = {"kernels": 5, "config": "{}"}


def assert_same(a: Autoencoder, b: Autoencoder):
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    np.testing.assert_array_equal(a.history, b.history)


class StopError(Exception):
    pass


def stop_at(step):
    def progress(done, total):
        assert total == CONFIG.steps
        if done >= step:
            raise StopError

    return progress


def interrupt(folder, at, **kwargs):
    """Train until a step has been done, saving every state."""
    with pytest.raises(StopError):
        train_autoencoder(
            edges(500), CONFIG, checkpoint_dir=folder, checkpoint_every_s=0, progress=stop_at(at), **kwargs
        )


def finish(folder, **kwargs):
    """Finish the run in a folder; the model and the steps it passed on the way."""
    seen = []
    model = train_autoencoder(
        edges(500), CONFIG, checkpoint_dir=folder, progress=lambda done, _: seen.append(done), **kwargs
    )
    return model, seen


def test_train_autoencoder_resumes_to_the_same_bits(tmp_path, trained):
    interrupt(tmp_path, 100)
    # Progress is reported before a state is saved, so the stop at 100 leaves the state of 50.
    model, seen = finish(tmp_path)
    assert seen == [100, 150]
    assert_same(model, trained)
    # A finished run is only read.
    model, seen = finish(tmp_path)
    assert seen == []
    assert_same(model, trained)


@pytest.mark.slow
def test_train_autoencoder_resumes_over_a_mesh(tmp_path):
    mesh = data_mesh(jax.devices()[:3])
    interrupt(tmp_path, 100, mesh=mesh)
    model, seen = finish(tmp_path, mesh=mesh)
    assert seen == [100, 150]
    assert_same(model, train_autoencoder(edges(500), CONFIG, mesh=mesh))


def state_of(step):
    """A state as small as one can be."""
    state = {"step": jnp.int32(step), "params": step * jnp.arange(3.0)}
    return jax.device_put(state, replicated(data_mesh(jax.devices()[:1])))


def checkpoints_in(folder, run=RUN):
    return closing(Checkpoints(folder, run, data_mesh(jax.devices()[:1])))


def test_checkpoints_keep_the_newest_two(tmp_path):
    with checkpoints_in(tmp_path) as checkpoints:
        assert checkpoints.restore(state_of(0))["step"] == 0
        for step in (50, 100, 150):
            checkpoints.save(state_of(step))
        restored = checkpoints.restore(state_of(0))
        np.testing.assert_array_equal(restored["params"], state_of(150)["params"])
    assert sorted(p.name for p in (tmp_path / "states").iterdir() if p.is_dir()) == ["100", "150"]


def test_checkpoints_never_read_half_a_state(tmp_path):
    """A kill during a save leaves a folder under a temporary name, here with a later step."""
    with checkpoints_in(tmp_path) as checkpoints:
        for step in (50, 100):
            checkpoints.save(state_of(step))
    states = tmp_path / "states"
    (states / "100").rename(states / "150.orbax-checkpoint-tmp")
    with checkpoints_in(tmp_path) as checkpoints:
        assert checkpoints.restore(state_of(0))["step"] == 50


def test_checkpoints_refuse_a_damaged_state(tmp_path):
    with checkpoints_in(tmp_path) as checkpoints:
        checkpoints.save(state_of(50))
    for file in (tmp_path / "states" / "50").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with (
        checkpoints_in(tmp_path) as checkpoints,
        pytest.raises(DogfitError, match=r"cannot be read.*delete the folder"),
    ):
        checkpoints.restore(state_of(0))


def test_checkpoints_refuse_another_run(tmp_path):
    with checkpoints_in(tmp_path):
        pass
    with pytest.raises(DogfitError, match=r"another training run \(config differ\)"):
        checkpoints_in(tmp_path, RUN | {"config": "[]"})
    path = tmp_path / "run.json"
    for damaged in (path.read_bytes()[:10], json.dumps([1]).encode()):
        path.write_bytes(damaged)
        with pytest.raises(DogfitError, match="damaged"):
            checkpoints_in(tmp_path)


def test_fingerprint_tells_runs_apart():
    mesh = data_mesh(jax.devices()[:1])

    def run(kernels, config=CONFIG):
        return fingerprint(shard_kernels(kernels, config, mesh), config)

    first = run(edges(100))
    assert run(edges(100)) == first
    for other, differs in (
        (run(edges(100), dataclasses.replace(CONFIG, learning_rate=1e-3)), {"config"}),
        (run(edges(100, seed=1)), {"kernels_digest"}),
        (run(edges(101)), {"kernels", "kernels_digest"}),
    ):
        assert {name for name in first if first[name] != other[name]} == differs


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
def test_train_autoencoder_after_a_kill(tmp_path):
    """SIGKILL while states are being written one after another; then the same command runs to its end."""
    steps = 1000
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(steps)]
    # The child must not inherit the eight devices of this process: one device, as in the reference below.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    random = np.random.default_rng()
    states = tmp_path / "run" / "states"
    before = 0
    for aimed in (True, False):
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
    reference = train_autoencoder(kernels, dataclasses.replace(KILLED, steps=steps), mesh=mesh)
    assert_same(Autoencoder.load(Path(tmp_path)), reference)


def is_half_written(state: Path) -> bool:
    return state.name.endswith("tmp")
