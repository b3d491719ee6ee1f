"""Meshes, their shardings, and padding; and a device that is not there."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dogfit.devices import data_mesh, pad_rows, replicated, row_sharding


def test_check_devices_missing_accelerator():
    """One sentence that says what was asked for and what to do."""
    code = "import numpy, dogfit; dogfit.fit_kernels(numpy.ones((1, 5, 5)))"
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("dogfit.errors.DogfitError: JAX was told to use 'cuda' and has no such device")
    assert "unset JAX_PLATFORMS" in last


def test_data_mesh_takes_all_devices_or_those_given():
    assert data_mesh().size == len(jax.devices()) == 8
    mesh = data_mesh(jax.devices()[2:5])
    assert mesh.axis_names == ("data",)
    assert list(mesh.devices) == jax.devices()[2:5]


def test_shardings_split_rows_and_copy_constants():
    mesh = data_mesh()
    x = jax.device_put(jnp.arange(16.0).reshape(16, 1), row_sharding(mesh))
    assert sorted(shard.data.shape for shard in x.addressable_shards) == [(2, 1)] * 8
    y = jax.device_put(jnp.arange(5.0), replicated(mesh))
    assert [shard.data.shape for shard in y.addressable_shards] == [(5,)] * 8


@given(n=st.integers(0, 40), multiple=st.integers(1, 17))
@settings(max_examples=50, deadline=None)
def test_pad_rows_keeps_every_row_and_marks_the_rest(n, multiple):
    x = np.arange(1.0, 2 * n + 1).reshape(n, 2)
    padded, valid = pad_rows(x, multiple)
    assert len(padded) % multiple == 0
    assert n <= len(padded) < n + multiple + (n == 0)
    np.testing.assert_array_equal(padded[valid], x)
    assert not padded[~valid].any()


def test_pad_rows_refuses_a_multiple_below_one():
    with pytest.raises(ValueError, match="at least 1"):
        pad_rows(np.zeros((3, 2)), 0)
