"""Kernels of one training run in the shards of several processes."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogfit.autoencoder import AutoencoderConfig, TooFewKernels
from dogfit.autoencoder.sharding import KernelShard, digest_shard, shard_kernels
from dogfit.devices import data_mesh, row_layout
from dogfit.errors import DogfitError, InputError

CONFIG = AutoencoderConfig()
TAPS = np.random.default_rng(0).normal(size=(5000, 9)).astype(np.float32)


@given(cuts=st.lists(st.integers(0, len(TAPS)), max_size=4).map(sorted))
def test_digest_shard_adds_up(cuts):
    """Digests of shards add up to that of the whole, wherever it is cut."""
    ends = [0, *cuts, len(TAPS)]
    parts = [digest_shard(TAPS[a:b], a) for a, b in pairwise(ends)]
    assert sum(parts) % 2**64 == digest_shard(TAPS, 0)


def test_digest_shard_notices_a_bit_a_swap_and_a_shift():
    whole = digest_shard(TAPS, 0)
    one_bit, swapped = TAPS.copy(), TAPS.copy()
    one_bit.view(np.uint32)[4321, 5] ^= 1
    swapped[[17, 4500]] = swapped[[4500, 17]]
    others = [digest_shard(TAPS, 1), digest_shard(one_bit, 0), digest_shard(swapped, 0)]
    others += [digest_shard(TAPS[:-1], 0), digest_shard(TAPS[:, ::-1], 0)]
    assert len({whole, *others}) == 6


def fake_mesh(processes):
    """As much of a mesh over several processes as laying out rows looks at."""
    return SimpleNamespace(
        devices=np.array([SimpleNamespace(process_index=p) for p in processes]),
        size=len(processes),
        is_multi_process=len(set(processes)) > 1,
    )


@given(data=st.data())
def test_row_layout_puts_each_row_on_a_device_of_its_process(data):
    processes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    names = sorted(set(processes))
    counts = data.draw(st.lists(st.integers(0, 20), min_size=len(names), max_size=len(names)))
    n = sum(counts)
    layout = row_layout(counts, fake_mesh(processes))
    # Of one length, so that JAX compiles little.
    row = np.arange(n)
    position = np.asarray(layout.places(np.arange(100)))[:n]
    assert len(set(position.tolist())) == n
    owner = np.repeat(names, counts)
    assert [processes[at // layout.block] for at in position] == owner.tolist()
    # What a device begins with is what `places` says lies there.
    begins = {at: first for first, at in zip(layout.first, layout.place, strict=True)}
    for at, number in zip(position.tolist(), row.tolist(), strict=True):
        assert begins[at - at % layout.block] + at % layout.block == number
    assert layout.even == (position == row).all()


def test_row_layout_of_one_process_is_even():
    for n in (1, 7, 8, 9, 203):
        assert row_layout([n], data_mesh()).even


@pytest.mark.parametrize("counts", [(100, 103), (0, 203), (203, 0), (20, 183)])
def test_split_holds_out_the_same_kernels_in_any_shards(counts):
    taps = TAPS[:203]
    heldout, training = KernelShard(taps, (203,), 0, lambda rows: rows).split(CONFIG)
    ends = np.cumsum([0, *counts])
    parts = [
        KernelShard(taps[ends[rank] : ends[rank + 1]], counts, rank, lambda rows: rows).split(CONFIG)
        for rank in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate([held for held, _ in parts]), heldout)
    np.testing.assert_array_equal(np.concatenate([left.taps for _, left in parts]), training.taps)
    for _, left in parts:
        assert left.counts == tuple(len(other.taps) for _, other in parts)


def test_shard_kernels_refuses_what_does_not_fit_together():
    """Errors are raised by what the other process says, so in all processes alike."""
    other = {"count": 40, "bad": 0, "width": 9, "settings": None, "ends": 1}

    def shard(change):
        def gather(mine):
            said = {name: mine[name][0] if value is None else value for name, value in other.items()}
            said |= {name: mine[name][0] if value is None else value for name, value in change.items()}
            return {name: np.array([mine[name][0], said[name]]) for name in mine}

        return shard_kernels(TAPS.reshape(-1, 3, 3)[:50], CONFIG, fake_mesh([0, 1]), gather=gather)

    assert (shard({}).counts, shard({}).rank, shard({}).start) == ((50, 40), 0, 0)
    with pytest.raises(ValueError, match=r"one size in all processes, got \[3, 5\]"):
        shard({"width": 25})
    with pytest.raises(DogfitError, match="process 1 trains with other settings than process 0"):
        shard({"settings": 5})
    with pytest.raises(ValueError, match=r"all 2 processes give the same 50 kernels; each gives its own"):
        shard({"count": None, "ends": None})
    with pytest.raises(InputError, match="3 of 90 kernels are constant or not finite"):
        shard({"bad": 3})
    with pytest.raises(TooFewKernels, match="63 kernels of 3x3 are too few"):
        shard({"count": 13})
