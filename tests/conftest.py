"""One environment for all tests: eight virtual devices, strict broadcasting, a compile cache."""

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

# Compiling is most of the time of many tests, and optimization a third of that. Processes that tests start
# compile alike, so that their results are the same to the bit.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="dogfit-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
# Read by JAX when it is imported; the test processes and what they start inherit it. With a bound on its
# size JAX locks the cache, so that no process reads what another is still writing.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(8 * 2**30))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax

from dogfit.run import main
from job_inputs import SMALL, checkpoint

pytest_plugins = ["tiers"]
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Folder of this test session that all its processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def trained():
    """An autoencoder of 500 edges, trained on one device as `tiny_autoencoder.CONFIG` says."""
    from dogfit.autoencoder import train_autoencoder
    from tiny_autoencoder import CONFIG, edges

    return train_autoencoder(edges(500), CONFIG)


@pytest.fixture(scope="session")
def made():
    """Results of two models, made by hand, with evidence about clusters."""
    from made_results import HOSTILE, make_result

    return make_result(("stem", HOSTILE, "body.1", "body.2"), evident=True)


@pytest.fixture(scope="session")
def uncoded():
    """Results of one layer without an autoencoder, made by hand."""
    from made_results import make_result

    return make_result(("a",), coded=False)


@pytest.fixture(scope="session")
def made_summary(made):
    return summary_as_read(made)


@pytest.fixture(scope="session")
def uncoded_summary(uncoded):
    return summary_as_read(uncoded)


@pytest.fixture(scope="session")
def one_model_summary():
    from made_results import make_result

    return summary_as_read(make_result(("a",)))


def summary_as_read(result):
    """The summary of a run as it is read from `summary.json`."""
    from dogfit.analysis.summary import summarize

    return json.loads(json.dumps(summarize(result)))


@pytest.fixture(scope="session")
def source(shared) -> Path:
    """Small checkpoint."""
    return once(shared / "tiny.safetensors", checkpoint)


@pytest.fixture(scope="session")
def finished(shared, source) -> Path:
    """Results of a small job on that checkpoint. Tests that change them work on a copy."""

    def run(out: Path) -> None:
        assert main([str(source), "--out", str(out), "--quiet", *SMALL]) == 0

    return once(shared / "finished", run)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Have one process of the session make a file or folder, and the others wait for it."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        with suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            make(path)
    return path
