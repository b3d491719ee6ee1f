from pathlib import Path

import jax
import pytest

from job_inputs import NULLS, checkpoint

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Compiled programs end with the module that used them: each keeps dozens of the memory maps that a
    process may have (65,530 on Linux), and where those run out, LLVM crashes in the next compilation."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def few_nulls():
    """A job draws few of them, for the tests of a module."""
    from dogfit.analysis import size as analyse

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyse, "NULL_KERNELS", NULLS)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("in") / "tiny.safetensors")
