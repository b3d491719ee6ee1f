"""Shards of a checkpoint's kernels: together they are the whole, and little else of a file is read."""

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from dogfit.checkpoints import load_each
from dogfit.checkpoints.load_shard import load_shard
from dogfit.errors import InputError
from dogfit.kernelset import KernelSet
from tiny_checkpoints import convnext_tensors, random_tensor


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three networks: one as it is, one with a tied layer, one channels last and of another size."""
    folder = tmp_path_factory.mktemp("in")
    first = convnext_tensors()
    tied = convnext_tensors(seed=1)
    tied["stages.1.3.dwconv.weight"] = tied["stages.0.1.dwconv.weight"]
    last = {"conv/kernel": random_tensor(3, 3, 3, 16)}
    for number in range(3):
        last[f"block{number}/depthwise/kernel"] = random_tensor(5, 5, 1, 16, seed=number)
        last[f"block{number}/pointwise/kernel"] = random_tensor(1, 1, 16, 16, seed=number)
    paths = [folder / name / "model.safetensors" for name in ("a", "b", "c")]
    for path, tensors in zip(paths, (first, tied, last), strict=True):
        path.parent.mkdir()
        save_file(tensors, path)
    return paths


def rows_of(index, count, n):
    return slice(n * index // count, n * (index + 1) // count)


@pytest.mark.parametrize("count", [1, 3, pytest.param(200, marks=pytest.mark.slow)])
def test_load_shard_joins_to_the_whole(sources, count):
    sets = load_each(sources)
    whole = KernelSet.concatenate(sets)
    assert any("tied" in note for note in whole.notes)
    layers = [[layer.name for layer in one.layers] for one in sets]
    shards = [load_shard(sources, layers, partial(rows_of, index, count)) for index in range(count)]
    assert whole.sizes == (5, 7)
    for size, group in whole.groups.items():
        for name in ("kernels", "flag", "norm"):
            joined = np.concatenate([getattr(shard.groups[size], name) for shard in shards])
            np.testing.assert_array_equal(joined, getattr(group, name))


def test_load_shard_reads_no_other_tensors(sources):
    (whole,) = load_each(sources[:1])
    shard = load_shard(sources[:1], [[layer.name for layer in whole.layers]], partial(rows_of, 1, 4))
    headers = 8 + int.from_bytes(sources[0].read_bytes()[:8], "little")
    everything, read = whole.sources[0].bytes_read - headers, shard.sources[0].bytes_read - headers
    # A quarter, and up to two layers that it cuts, of thirteen.
    assert 0 < read <= everything * (1 / 4 + 2 / 13)


def test_load_shard_names_a_missing_layer(sources):
    with pytest.raises(InputError, match="no depthwise layer 'elsewhere', which another process has read"):
        load_shard(sources[:1], [["elsewhere"]], slice)
