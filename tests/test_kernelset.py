"""Kernel sets: origin of each kernel, statistics, selection, and their file."""

import errno
import json
import math
from pathlib import Path

import numpy as np
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save_file

from dogfit.errors import DogfitError, InputError
from dogfit.kernelset import Flag, KernelSet, Layer, Skipped, Source
from examples import run_example


def _layer(name="a", model="m", position=0, size=3, channels=2, **more):
    return Layer(name, model, position, more.get("stage"), more.get("block"), size, channels, "F32")


def _kernels(channels, size, seed=0):
    return np.random.default_rng(seed).normal(size=(channels, size, size)).astype(np.float32)


def _set(model="m"):
    pairs = [
        (_layer("first", model, 0, 7, 4, stage=0, block=0), _kernels(4, 7, 1)),
        (_layer("second", model, 1, 3, 2, stage=0, block=1), _kernels(2, 3, 2)),
        (Layer("third", model, 2, 1, 0, 7, 3, "F32", shape=(7, 7, 3, 1)), _kernels(3, 7, 3)),
    ]
    return KernelSet.from_layers(
        pairs,
        sources=[Source(model, "0123", 10, 100, "mit")],
        skipped=[Skipped(model, "stem", (8, 1, 4, 4), "ambiguous")],
        notes=[f"{model}: a note"],
    )


def _same(a, b):
    assert (a.layers, a.sources, a.skipped, a.notes) == (b.layers, b.sources, b.skipped, b.notes)
    assert a.sizes == b.sizes
    for size, group in a.groups.items():
        for name in ("kernels", "layer", "channel", "mean", "norm", "flag"):
            one, other = getattr(group, name), getattr(b.groups[size], name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


def test_from_layers_groups_by_size():
    kernels = _set()
    assert (kernels.n, kernels.sizes, kernels.models) == (9, (3, 7), ("m",))
    group = kernels.groups[7]
    np.testing.assert_array_equal(group.layer, [0, 0, 0, 0, 2, 2, 2])
    np.testing.assert_array_equal(group.channel, [0, 1, 2, 3, 0, 1, 2])
    np.testing.assert_array_equal(group.kernels, np.concatenate([_kernels(4, 7, 1), _kernels(3, 7, 3)]))
    np.testing.assert_array_equal(kernels.kernels_of(kernels.layers[2]), _kernels(3, 7, 3))


@given(hnp.arrays(np.float32, (5, 4, 4), elements=st.floats(-1e3, 1e3, width=32)))
def test_group_statistics_against_plain_arithmetic(taps):
    group = KernelSet.from_layers([(_layer(size=4, channels=5), taps)]).groups[4]
    rows = group.normalized()
    for kernel, mean, norm, flag, row in zip(taps, group.mean, group.norm, group.flag, rows, strict=True):
        values = [float(value) for value in kernel.ravel()]
        exact = math.fsum(values) / 16
        centred = [value - exact for value in values]
        exact_norm = math.sqrt(math.fsum(value**2 for value in centred))
        assert mean == pytest.approx(exact, rel=1e-6, abs=1e-6 * max(map(abs, values), default=0))
        if flag == Flag.OK:
            assert norm == pytest.approx(exact_norm, rel=1e-5)
            np.testing.assert_allclose(row.ravel(), np.array(centred) / exact_norm, atol=1e-6)
            assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)
        else:
            assert not row.any()


@pytest.mark.parametrize(
    ("kernel", "flag"),
    [
        (np.zeros((3, 3)), Flag.ZERO),
        (np.full((3, 3), 1e-14), Flag.ZERO),
        (np.full((3, 3), 0.1), Flag.CONSTANT),
        (np.full((3, 3), -7e20), Flag.CONSTANT),
        (np.where(np.eye(3) > 0, np.nan, 0.5), Flag.NONFINITE),
        (np.where(np.eye(3) > 0, -np.inf, 0.5), Flag.NONFINITE),
        (np.eye(3) * 3e38, Flag.NONFINITE),
        (np.eye(3) * 1e-9, Flag.OK),
        (np.eye(3) + 100, Flag.OK),
    ],
)
def test_group_flags_stay_in_their_row(kernel, flag):
    good = _kernels(2, 3)
    taps = np.stack([good[0], kernel.astype(np.float32), good[1]])
    group = KernelSet.from_layers([(_layer(channels=3), taps)]).groups[3]
    assert group.flag.tolist() == [Flag.OK, flag, Flag.OK]
    alone = KernelSet.from_layers([(_layer(channels=2), good)]).groups[3]
    np.testing.assert_array_equal(group.normalized()[[0, 2]], alone.normalized())
    assert np.isfinite(group.normalized()).all()
    assert group.normalized()[1].any() == (flag == Flag.OK)


def test_from_layers_refuses_another_shape():
    with pytest.raises(ValueError, match=r"layer 'a': kernels must be \(2, 3, 3\), got \(2, 5, 5\)"):
        KernelSet.from_layers([(_layer(), _kernels(2, 5))])


def test_layer_refuses_a_shape_without_room():
    assert _layer().shape == (2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"layer 'a': 2 kernels of 3x3 cannot have shape \(3, 3, 3, 1\)"):
        Layer("a", "m", 0, None, None, 3, 2, "F32", shape=(3, 3, 3, 1))


def test_select_by_every_condition():
    kernels = KernelSet.concatenate([_set("m"), _set("other")])
    assert [layer.name for layer in kernels.select(model="oth*").layers] == ["first", "second", "third"]
    picked = kernels.select(model="m", size=7, stage=1)
    assert [layer.name for layer in picked.layers] == ["third"]
    np.testing.assert_array_equal(picked.groups[7].kernels, _kernels(3, 7, 3))
    np.testing.assert_array_equal(picked.groups[7].layer, [0, 0, 0])
    assert [source.name for source in picked.sources] == ["m"]
    assert [item.model for item in picked.skipped] == ["m"]
    assert kernels.select(layer="[ft]*", size=7).n == 14
    with pytest.raises(InputError, match=r"no layer matches .*size=5.*sizes \(3, 7\) in m, other"):
        kernels.select(size=5)


def test_concatenate_selected_parts():
    kernels = _set()
    parts = [kernels.select(layer=layer.name) for layer in kernels.layers]
    _same(KernelSet.concatenate(parts), kernels)


def test_concatenate_keeps_copies_apart():
    both = KernelSet.concatenate([_set(), _set(), _set()])
    assert both.models == ("m", "m (2)", "m (3)")
    assert [source.name for source in both.sources] == ["m", "m (2)", "m (3)"]
    assert both.n == 27
    np.testing.assert_array_equal(both.groups[3].layer, [1, 1, 4, 4, 7, 7])


def test_table_columns():
    kernels = _set()
    table = kernels.table()
    columns = ["model", "layer", "position", "stage", "block", "channel", "size", "mean", "norm", "flag"]
    assert table.columns == columns
    assert table["size"].to_list() == [3] * 2 + [7] * 7
    assert table["layer"].to_list() == ["second"] * 2 + ["first"] * 4 + ["third"] * 3
    assert table["channel"].to_list() == [0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert table["stage"].to_list() == [0] * 6 + [1] * 3
    assert set(table["flag"]) == {"OK"}
    np.testing.assert_array_equal(table["norm"][2:], kernels.groups[7].norm)
    unknown = KernelSet.from_layers([(_layer(), _kernels(2, 3))]).table()
    assert unknown["stage"].to_list() == [None, None]
    assert unknown.schema["stage"] == polars.Int32


def test_table_of_nothing():
    assert KernelSet.from_layers([]).table().schema == _set().table().schema


def test_save_load(tmp_path):
    kernels = KernelSet.concatenate([_set("m"), _set("ü/other\n")])
    path = tmp_path / "kernels.safetensors"
    kernels.save(path)
    _same(KernelSet.load(path), kernels)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_save_load_nonfinite(tmp_path):
    taps = np.array([[[np.nan, 1], [2, 3]], [[np.inf, 0], [0, 0]], [[0, 0], [0, 0]]], np.float32)
    kernels = KernelSet.from_layers([(_layer(size=2, channels=3), taps)])
    kernels.save(tmp_path / "k.safetensors")
    _same(KernelSet.load(tmp_path / "k.safetensors"), kernels)


@pytest.mark.parametrize("method", [KernelSet.select, KernelSet.save, KernelSet.load])
def test_examples(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(method)


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "kernels.safetensors"
    _set().save(path)
    before = path.read_bytes()

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DogfitError, match="could not write the kernels: No space left on device"):
        _set("another").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        KernelSet.load(tmp_path / "none")
    save_file({"x": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a saved kernel set"):
        KernelSet.load(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(InputError, match="damaged kernel set"):
        KernelSet.load(tmp_path / "text")


def test_load_refuses_kernels_without_a_layer(tmp_path):
    record = {"layers": [], "sources": [], "skipped": [], "notes": []}
    metadata = {"format": "dogfit-kernelset-1", "record": json.dumps(record)}
    save_file({"kernels.3": _kernels(2, 3)}, tmp_path / "k.safetensors", metadata)
    with pytest.raises(InputError, match="do not account for every kernel"):
        KernelSet.load(tmp_path / "k.safetensors")
