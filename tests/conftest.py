"""One environment for all tests: eight virtual devices, strict broadcasting, a compile cache."""

import json
import os
import tempfile
from pathlib import Path

import pytest

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Read by JAX when it is imported; the test processes and what they start inherit it. With a bound on its
    # size JAX locks the cache, so that no process reads what another is still writing.
    _compiled = tempfile.TemporaryDirectory(prefix="dogfit-compiled-")
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _compiled.name,
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 2**30),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

import jax

from job_inputs import NULLS, checkpoint

pytest_plugins = ["tiers"]
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def few_nulls():
    """A job draws few of them, for the tests of a module."""
    from dogfit.analysis import size as analyse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyse, "NULL_KERNELS", NULLS)
        yield


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


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("in") / "tiny.safetensors")
