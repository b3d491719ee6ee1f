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
    place = jnp.arange(n)
    return np.asarray(shuffle(jnp.full(n, epoch), place, key, n=n))


@pytest.mark.parametrize("n", [1, 2, 3, 57, 64, 65, 1000])
def test_every_row_stands_at_one_place(n):
    for epoch in (0, 1, 1000):
        np.testing.assert_array_equal(np.sort(whole(n, epoch)), np.arange(n))


def test_a_part_equals_that_part_of_the_whole_and_may_span_epochs():
    n = 1000
    epoch, place = np.repeat([3, 4], 50), np.r_[950:1000, 0:50]
    expected = np.r_[whole(n, 3)[950:], whole(n, 4)[:50]]
    np.testing.assert_array_equal(shuffle(epoch, place, KEY, n=n), expected)


def test_the_number_of_rows_may_be_large():
    n = 1_712_704
    rows = np.asarray(shuffle(np.zeros(4096, np.int32), np.arange(4096) * 400, KEY, n=n))
    assert rows.min() >= 0 and rows.max() < n and len(np.unique(rows)) == 4096
    assert kstest(rows / n, "uniform").pvalue > 1e-3


def test_shuffles_have_no_pattern():
    n = 16
    keys = np.random.default_rng(0).integers(0, 2**32, (4000, 2), np.uint32)
    one = jax.vmap(partial(shuffled_rows, n=n), (None, None, 0))
    rows = np.asarray(one(jnp.zeros(n, jnp.int32), jnp.arange(n), jnp.asarray(keys)))
    # Each row at each place equally often, and neighbours uncorrelated, as for NumPy's own permutations.
    counts = np.array([np.bincount(column, minlength=n) for column in rows.T])
    assert chisquare(counts.ravel()).pvalue > 1e-4
    neighbours = np.bincount(rows[:, 0] * n + rows[:, 1], minlength=n * n).reshape(n, n)
    assert not neighbours.diagonal().any()
    assert chisquare(neighbours[~np.eye(n, dtype=bool)]).pvalue > 1e-4
    epochs = np.array([whole(n, epoch) for epoch in range(300)])
    assert chisquare(np.bincount(epochs[:, 0], minlength=n)).pvalue > 1e-4
