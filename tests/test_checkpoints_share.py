"""A share of a checkpoint's kernels is what slicing the whole gives, and little else of the file is read."""

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from dogfit.checkpoints import load_kernels
from dogfit.checkpoints.files import LocalFile
from dogfit.checkpoints.load import load_each
from dogfit.checkpoints.load_shard import load_shard
from dogfit.errors import InputError
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


@pytest.mark.parametrize("count", [1, 2, 3, 200])
def test_shares_join_to_the_whole(sources, count):
    whole = load_kernels(*sources)
    assert any("tied" in note for note in whole.notes)
    layers = [[layer.name for layer in one.layers] for one in load_each(sources)]
    shares = [load_shard(sources, layers, partial(rows_of, index, count)) for index in range(count)]
    assert whole.sizes == (5, 7)
    for size, group in whole.groups.items():
        for name in ("kernels", "flag", "norm"):
            joined = np.concatenate([getattr(share.groups[size], name) for share in shares])
            np.testing.assert_array_equal(joined, getattr(group, name))


def test_tensors_without_a_row_of_the_share_are_not_read(sources, monkeypatch):
    read = 0
    original = LocalFile._range

    def counted(self, file, start, stop):
        nonlocal read
        read += stop - start
        return original(self, file, start, stop)

    monkeypatch.setattr(LocalFile, "_range", counted)
    layers = [[layer.name for layer in one.layers] for one in load_each(sources[:1])]
    everything, read = read, 0
    load_shard(sources[:1], layers, partial(rows_of, 1, 4))
    headers = 8 + int.from_bytes(sources[0].read_bytes()[:8], "little")
    # A quarter, and up to two layers that it cuts, of thirteen.
    assert read - headers <= (everything - headers) * (1 / 4 + 2 / 13)


def test_a_layer_that_is_not_there_is_named(sources):
    with pytest.raises(InputError, match="no depthwise layer 'elsewhere', which another process has read"):
        load_shard(sources[:1], [["elsewhere"]], slice)
