"""Shuffles that are computed: permutations, different in each epoch, without a pattern."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare, kstest

from dogfit.autoencoder.shuffle import shuffled_rows

KEY = np.array([123, 456], np.uint32)
shuffle = jax.jit(shuffled_rows, static_argnames="n")


def whole(n, epoch, key=KEY):
    return np.asarray(shuffle(jnp.full(n, epoch), jnp.arange(n), key, n=n))


@pytest.mark.parametrize("n", [1, 2, 57, 64, 65])
def test_shuffled_rows_is_a_permutation(n):
    """Every row stands at exactly one position of each epoch."""
    for epoch in (0, 1, 1000):
        np.testing.assert_array_equal(np.sort(whole(n, epoch)), np.arange(n))


def test_shuffled_rows_of_a_part():
    """A part of two epochs equals that part of the whole."""
    n = 1000
    epoch, position = np.repeat([3, 4], 50), np.r_[950:1000, 0:50]
    expected = np.r_[whole(n, 3)[950:], whole(n, 4)[:50]]
    np.testing.assert_array_equal(shuffle(epoch, position, KEY, n=n), expected)


def test_shuffled_rows_of_many():
    n = 1_712_704
    rows = np.asarray(shuffle(np.zeros(4096, np.int32), np.arange(4096) * 400, KEY, n=n))
    assert rows.min() >= 0 and rows.max() < n and len(np.unique(rows)) == 4096
    assert kstest(rows / n, "uniform").pvalue > 1e-3


def test_shuffled_rows_without_pattern():
    """Each row stands at each position equally often, and neighbors are uncorrelated."""
    n = 16
    keys = np.random.default_rng(0).integers(0, 2**32, (4000, 2), np.uint32)
    one = jax.vmap(partial(shuffled_rows, n=n), (None, None, 0))
    rows = np.asarray(one(jnp.zeros(n, jnp.int32), jnp.arange(n), jnp.asarray(keys)))
    counts = np.array([np.bincount(column, minlength=n) for column in rows.T])
    assert chisquare(counts.ravel()).pvalue > 1e-4
    neighbors = np.bincount(rows[:, 0] * n + rows[:, 1], minlength=n * n).reshape(n, n)
    assert not neighbors.diagonal().any()
    assert chisquare(neighbors[~np.eye(n, dtype=bool)]).pvalue > 1e-4
    first = shuffle(jnp.arange(300), jnp.zeros(300, jnp.int32), KEY, n=n)
    assert chisquare(np.bincount(np.asarray(first), minlength=n)).pvalue > 1e-4
