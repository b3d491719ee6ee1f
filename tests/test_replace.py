"""Replaced checkpoints: what changes, what must not, and that they load where the original did."""

import json
import os
import tracemalloc
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save, save_file

from dogfit.autoencoder import AutoencoderConfig
from dogfit.checkpoints import load_kernels, patch
from dogfit.errors import DogfitError, InputError, OutputError
from dogfit.export import match_gain_and_mean, nearest_filter, reconstruction, replace_kernels
from dogfit.export.methods import METHODS
from dogfit.fitting.api import fit_kernels
from examples import run_example
from model_files import stub_torchvision, write_checkpoint
from tiny_checkpoints import convnext_tensors, random_tensor

KERNELS = "stages.0.0.dwconv.weight"
DTYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}


def tensor_bytes(path):
    """Bytes of each tensor by name and all bytes before them, read without dogfit or safetensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    first = 8 + length
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: data[first + a : first + b] for name, (a, b) in places.items()}, data[:first]


def changed(before, after):
    """Names of tensors that differ; the header must not."""
    (old, head), (new, new_head) = tensor_bytes(before), tensor_bytes(after)
    assert head == new_head
    assert before.stat().st_size == after.stat().st_size
    return {name for name in old if old[name] != new[name]}


def halved(kernels):
    """Kernels with one half of each mirrored from the other: a replacement that is easy to recompute."""
    return (kernels + kernels[:, :, ::-1]) / 2


def by_hand(kernels, shapes):
    """The nearest a x + b of each shape and its R², by NumPy's least squares."""
    made, r2 = [], []
    for kernel, shape in zip(kernels.astype(float), shapes.astype(float), strict=True):
        design = np.stack([shape.ravel(), np.ones(shape.size)], axis=1)
        solution, *_ = np.linalg.lstsq(design, kernel.ravel(), rcond=None)
        made.append((design @ solution).reshape(kernel.shape))
        r2.append(1 - np.sum((kernel - made[-1]) ** 2) / np.sum((kernel - kernel.mean()) ** 2))
    return np.array(made), np.array(r2)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(convnext_tensors(), path, {"format": "pt", "note": "日本"})
    return path


@pytest.mark.parametrize("layout", ["c1kk", "kk1c", "kkcm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_replace_kernels_every_type_and_layout(tmp_path, dtype, layout):
    kernels = random_tensor(12, 5, 5).astype(DTYPES[dtype])
    shape = {"c1kk": (12, 1, 5, 5), "kk1c": (5, 5, 1, 12), "kkcm": (5, 5, 6, 2)}[layout]
    stored = kernels if layout == "c1kk" else np.moveaxis(kernels, 0, 2)
    stored = np.ascontiguousarray(stored.reshape(shape))
    dense = random_tensor(3, 3, 7, 12) if layout != "c1kk" else random_tensor(12, 7, 3, 3)
    header, data = {}, b""
    for name, array in {"dense/kernel": dense, "a/depthwise_kernel": stored, "b": dense[0]}.items():
        kind = dtype if array is stored else "F32"
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)

    # Half of the kernels are to keep their own bytes.
    values = kernels.astype(np.float32)
    _, r2 = by_hand(values, halved(values))
    limit = float(np.median(r2))
    done = replace_kernels(path, out, halved, min_r2=limit)
    assert changed(path, out) == {"a/depthwise_kernel"}
    made = np.frombuffer(tensor_bytes(out)[0]["a/depthwise_kernel"], DTYPES[dtype]).reshape(shape)
    made = made.reshape(12, 5, 5) if layout == "c1kk" else np.moveaxis(made.reshape(5, 5, 12), 2, 0)
    rows = done.replaced["a/depthwise_kernel"]
    assert rows.tolist() == (r2 >= limit).tolist()
    assert rows.sum() == done.n_replaced == 6
    assert done.n_kernels == 12
    assert made[~rows].tobytes() == kernels[~rows].tobytes()
    expected = by_hand(values, halved(values))[0][rows]
    step = (
        float(np.finfo("f4").eps) if dtype in ("F32", "F64") else {"F16": 1e-3, "BF16": 8e-3}.get(dtype, 0.13)
    )
    np.testing.assert_allclose(made[rows].astype(float), expected, rtol=step, atol=20 * step**1.5 + 2e-6)
    # What is said to be explained is what the stored kernels explain.
    error = ((values - made.astype(np.float64)) ** 2).sum((1, 2))
    r2[rows] = (1 - error / ((values - values.mean((1, 2), keepdims=True)) ** 2).sum((1, 2)))[rows]
    np.testing.assert_allclose(done.r2["a/depthwise_kernel"], r2, atol=1e-5)


@pytest.mark.slow
def test_replace_kernels_timm_model_loads(tmp_path):
    torch = pytest.importorskip("torch", reason="loads a PyTorch model")
    if find_spec("timm") is None:
        pytest.skip("loads a model of timm")
    with stub_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        torch.manual_seed(0)
        model = timm.create_model("convnext_atto", num_classes=3)
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    source, out = tmp_path / "model.safetensors", tmp_path / "out" / "model.safetensors"
    save_torch(model.state_dict(), source, {"format": "pt"})
    done = replace_kernels(source, out.parent, "fits")
    assert done.path == out
    assert done.n_replaced == done.n_kernels == 40 * 2 + 80 * 2 + 160 * 6 + 320 * 2
    weights = {name for name in model.state_dict() if name.endswith("conv_dw.weight")}
    assert changed(source, out) == weights
    state = load_torch(out)
    model.load_state_dict(state, strict=True)
    for name, value in load_torch(source).items():
        if name not in weights:
            assert torch.equal(value, model.state_dict()[name]), name
    # What stands there now is a fit: R² as reported, and the kernel's own mean.
    name = "stages.0.blocks.1.conv_dw.weight"
    old, new = load_torch(source)[name].numpy()[:, 0], model.state_dict()[name].numpy()[:, 0]
    left = np.sum((old - new) ** 2, (1, 2)) / np.sum((old - old.mean((1, 2), keepdims=True)) ** 2, (1, 2))
    np.testing.assert_allclose(1 - left, done.r2[name], atol=1e-4)
    np.testing.assert_allclose(new.mean((1, 2)), old.mean((1, 2)), atol=1e-6)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.slow
def test_replace_kernels_sharded_transformers_model_loads(tmp_path):
    torch = pytest.importorskip("torch", reason="loads a PyTorch model")
    transformers = pytest.importorskip("transformers", reason="loads a model of transformers")
    config = transformers.ConvNextV2Config(hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 2, 1])
    torch.manual_seed(0)
    model = transformers.ConvNextV2Model(config).to(torch.bfloat16).eval()
    source, out = tmp_path / "in", tmp_path / "out"
    model.save_pretrained(source, max_shard_size="60KB")
    index = "model.safetensors.index.json"
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 1

    done = replace_kernels(source, out, halved)
    assert done.path == out / index
    assert sorted(path.name for path in out.iterdir()) == sorted([*shards, index])
    assert (out / index).read_bytes() == (source / index).read_bytes()
    names = {name for shard in shards for name in changed(source / shard, out / shard)}
    assert names == set(done.replaced) == {n for n in model.state_dict() if n.endswith("dwconv.weight")}
    assert done.n_replaced == 16 + 32 + 2 * 64 + 64

    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    again, about = transformers.ConvNextV2Model.from_pretrained(
        out, output_loading_info=True, dtype=torch.bfloat16
    )
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]) == (name not in names), name


def test_replace_kernels_broken_ones_stay_bit_for_bit(tmp_path):
    tensors = convnext_tensors()
    tensors[KERNELS][0] = 0
    tensors[KERNELS][1] = 0.25
    tensors[KERNELS][2, 0, 3, 3] = np.nan
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)

    def but_one(kernels):
        made = halved(kernels)
        made[0] = np.nan
        return made

    done = replace_kernels(path, out, but_one, include=["stages.0.0.*"], exclude=["stages.1.*", "*.0.1.*"])
    assert done.replaced[KERNELS].tolist() == [False] * 4 + [True] * 4
    assert np.isnan(done.r2[KERNELS][:4]).all()
    new = load_file(out)[KERNELS]
    assert new[:4].tobytes() == tensors[KERNELS][:4].tobytes()
    assert set(done.replaced) == {KERNELS}
    assert any("excluded by pattern" in note for note in done.notes)


def test_replace_kernels_puts_gain_and_mean_back(tiny, tmp_path):
    old = load_kernels(tiny).groups[7].kernels

    def shifted(kernels):
        return -3 * kernels + 7

    replace_kernels(tiny, tmp_path / "a.safetensors", shifted)
    new = load_kernels(tmp_path / "a.safetensors").groups[7].kernels
    np.testing.assert_allclose(new, old, atol=1e-5)
    done = replace_kernels(tiny, tmp_path / "b.safetensors", shifted, match=False, min_r2=-np.inf)
    new = load_kernels(tmp_path / "b.safetensors").groups[7].kernels
    np.testing.assert_allclose(new, -3 * old + 7, rtol=1e-6)
    assert max(r2.max() for r2 in done.r2.values()) < 0


def test_match_gain_and_mean_against_least_squares():
    kernels, shapes = random_tensor(40, 7, 7), random_tensor(40, 7, 7, seed=1)
    made, r2 = match_gain_and_mean(kernels, shapes)
    expected, expected_r2 = by_hand(kernels, shapes)
    np.testing.assert_allclose(made, expected, atol=1e-5)
    np.testing.assert_allclose(r2, expected_r2, atol=1e-6)
    flat, none = match_gain_and_mean(kernels, np.ones_like(shapes))
    np.testing.assert_allclose(
        flat, np.broadcast_to(kernels.mean((1, 2), keepdims=True), flat.shape), atol=1e-6
    )
    np.testing.assert_allclose(none, 0, atol=1e-6)


def test_replace_kernels_with_arrays_and_mappings(tiny, tmp_path):
    kernelset = load_kernels(tiny)
    group = kernelset.groups[7]
    wanted = halved(group.kernels)
    stored = {
        layer.name: layer.to_stored(wanted[group.layer == index])
        for index, layer in enumerate(kernelset.layers)
    }
    ways = {
        "array": wanted,
        "by size": {7: halved},
        "as stored": stored,
        "plain": {n: t[:, 0] for n, t in stored.items()},
    }
    contents = {}
    for name, way in ways.items():
        out = tmp_path / f"{name}.safetensors"
        assert replace_kernels(tiny, out, way).n_replaced == group.kernels.shape[0]
        contents[name] = out.read_bytes()
    assert len(set(contents.values())) == 1
    done = replace_kernels(tiny, tmp_path / "one.safetensors", {KERNELS: stored[KERNELS]})
    assert changed(tiny, done.path) == {KERNELS}
    none = replace_kernels(tiny, tmp_path / "none.safetensors", {5: halved})
    assert none.path.read_bytes() == tiny.read_bytes()
    assert none.n_replaced == none.n_kernels == 0
    assert "104 7×7 kernels kept" in none.notes[0]


def test_replace_kernels_tied_tensors_change_together(tmp_path):
    shared = random_tensor(8, 1, 7, 7)
    tensors = convnext_tensors() | {KERNELS: shared, "stages.0.1.dwconv.weight": shared.copy()}
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    replace_kernels(path, out, halved)
    new = load_file(out)
    np.testing.assert_array_equal(new[KERNELS], new["stages.0.1.dwconv.weight"])
    assert not np.array_equal(new[KERNELS], shared)


def test_replace_kernels_takes_the_moving_average_alone(tmp_path):
    tensors = convnext_tensors("model_ema.", seed=1) | convnext_tensors("model.")
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    done = replace_kernels(path, out, halved)
    assert changed(path, out) == {n for n in tensors if n.startswith("model_ema.") and "dwconv.weight" in n}
    assert any("moving average" in note for note in done.notes)


def test_nearest_filter_explains_most():
    filters, kernels = random_tensor(8, 7, 7), random_tensor(30, 7, 7, seed=1)
    shapes = nearest_filter(filters)(kernels)
    scores = np.stack([by_hand(kernels, np.broadcast_to(f, kernels.shape))[1] for f in filters], axis=1)
    np.testing.assert_allclose(match_gain_and_mean(kernels, shapes)[1], scores.max(axis=1), atol=1e-5)
    with pytest.raises(ValueError, match="all of the 1 filters are constant or not finite"):
        nearest_filter(np.ones((1, 7, 7)))


def test_reconstruction_keeps_kernels_without_a_code():
    """An autoencoder of one shape with a free code gives that shape back."""
    kernels, wave = random_tensor(5, 7, 7), np.cos(np.arange(49)).reshape(7, 7)
    model = SimpleNamespace(
        encode=lambda k: np.where(np.arange(len(k)) == 1, np.nan, 0.5),
        decode=lambda code: np.broadcast_to(wave, (len(code), 7, 7)),
    )
    made = reconstruction(model)(kernels)
    assert np.isnan(made[1]).all()
    np.testing.assert_allclose(np.delete(made, 1, axis=0), np.broadcast_to(wave, (4, 7, 7)), rtol=1e-6)


@pytest.mark.slow
def test_replace_kernels_methods_train_what_they_need(tiny, tmp_path):
    config = AutoencoderConfig(steps=20, restarts=1, widths=(16,))
    old = load_kernels(tiny).groups[7].normalized()
    done = replace_kernels(tiny, tmp_path / "a.safetensors", "autoencoder", autoencoder=config)
    new = load_kernels(done.path).groups[7].normalized()
    cosine = np.einsum("nij,nij->n", old, new)
    np.testing.assert_allclose(np.concatenate(list(done.r2.values())), cosine**2, atol=1e-4)
    done = replace_kernels(tiny, tmp_path / "u.safetensors", "universal", autoencoder=config)
    shapes = np.round(np.abs(load_kernels(done.path).groups[7].normalized()), 3)
    assert done.n_replaced == len(shapes)
    assert len(np.unique(shapes, axis=0)) <= 8


def test_replace_kernels_too_few_for_an_autoencoder(tiny, tmp_path):
    few = replace_kernels(tiny, tmp_path / "f.safetensors", "universal", exclude=["stages.1.*"])
    assert few.n_replaced == 0
    assert "16 7×7 kernels kept" in few.notes[0]
    assert "at least 64 are needed" in few.notes[0]


@pytest.fixture(scope="module")
def fitted():
    """Kernels and their fits."""
    kernels = random_tensor(8, 1, 7, 7)
    return kernels, fit_kernels(kernels[:, 0])


def test_replace_kernels_with_fits(fitted, tmp_path):
    """Replacements are the templates of the fits of each layer's kernels."""
    kernels, fit = fitted
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"dwconv.weight": kernels}, path)
    done = replace_kernels(path, out, "fits")
    assert done.n_replaced == 8
    np.testing.assert_allclose(done.r2["dwconv.weight"], fit.r2, atol=1e-4)
    np.testing.assert_allclose(load_file(out)["dwconv.weight"][:, 0], fit.templates(), atol=1e-4)
    large = {"dwconv.weight": random_tensor(2, 1, 53, 53)}
    save_file(large, path)
    done = replace_kernels(path, out, "fits", overwrite=True)
    assert done.notes[0] == "2 53×53 kernels kept: sizes 3 to 51 can be fitted"


def test_replace_kernels_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(replace_kernels)


def test_replace_kernels_memory_holds_kernels_only(tmp_path):
    size = 96_000_000
    state = {"big.weight": (1000, size // 4000), KERNELS: (8, 1, 7, 7)}
    state = {
        name: SimpleNamespace(
            numel=lambda s=shape: int(np.prod(s)), element_size=lambda: 4, dtype="torch.float32", shape=shape
        )
        for name, shape in state.items()
    }
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_checkpoint(path, state, {KERNELS: random_tensor(8, 1, 7, 7)})
    tracemalloc.start()
    replace_kernels(path, out, halved)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.stat().st_size == path.stat().st_size > size
    assert peak < size / 20


def test_replace_kernels_refuses_a_taken_place(tiny, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists; give another place, or overwrite=True"):
        replace_kernels(tiny, out, halved)
    assert out.read_bytes() == b"mine"
    replace_kernels(tiny, out, halved, overwrite=True)
    assert changed(tiny, out)
    for itself in (tiny, tmp_path):
        with pytest.raises(OutputError, match="is the checkpoint itself"):
            replace_kernels(tiny, itself, halved, overwrite=True)
    text = tmp_path / "text"
    text.write_text("mine")
    with pytest.raises(OutputError, match=r"is a file; give a folder, or a file that ends in \.safetensors"):
        replace_kernels(tiny, text, halved)
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a.safetensors").write_bytes(tiny.read_bytes())
    weight_map = dict.fromkeys(load_file(tiny), "a.safetensors")
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(OutputError, match="has 1 files; give a folder"):
        replace_kernels(shards, tmp_path / "new.safetensors", halved)


@pytest.mark.parametrize("step", ["copyfile", "fsync", "replace"])
def test_replace_kernels_failure_leaves_nothing(tiny, tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr({"copyfile": patch.shutil, "fsync": os, "replace": Path}[step], step, fail)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DogfitError, match="No space left on device"):
        replace_kernels(tiny, tmp_path / "deep" / "out.safetensors", halved)
    assert set(tmp_path.rglob("*")) == before


def test_replace_kernels_refuses_what_does_not_fit(tiny, tmp_path):
    out = tmp_path / "out.safetensors"
    for with_, message in {
        "fit": "no replacement is called 'fit'; choose from fits, universal, autoencoder",
        (lambda k: k[:3]): r"must have shape \(104, 7, 7\), got \(3, 7, 7\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            replace_kernels(tiny, out, with_)
    with pytest.raises(ValueError, match=r"must have shape \(104, 7, 7\), got \(7, 7\)"):
        replace_kernels(tiny, out, np.zeros((7, 7)))
    with pytest.raises(ValueError, match=r"layer 'stages.0.0.dwconv.weight': expected shape \(8, 7, 7\)"):
        replace_kernels(tiny, out, {KERNELS: np.zeros((8, 5, 5), np.float32)})
    with pytest.raises(InputError, match=r"no depthwise kernels of sizes \(5,\) to replace"):
        replace_kernels(tiny, out, halved, sizes=[5])
    assert not out.exists()


def test_replace_kernels_keeps_kernels_beyond_the_type(tmp_path):
    weights = random_tensor(8, 1, 7, 7).astype(np.float16)
    path, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    path.write_bytes(save({"dwconv.weight": weights}))

    def large(kernels):
        made = halved(kernels)
        made[2] *= 1e6
        return made

    done = replace_kernels(path, out, large, match=False, min_r2=-np.inf)
    assert done.replaced["dwconv.weight"].tolist() == [True, True, False] + [True] * 5
    with safe_open(out, "numpy") as file:
        assert file.get_tensor("dwconv.weight")[2].tobytes() == weights[2].tobytes()


def test_methods_are_those_of_the_command_line():
    from typing import get_args, get_type_hints

    from dogfit.job.config import RunConfig

    offered = get_args(get_type_hints(RunConfig)["replace"])
    assert set(get_args(offered[0])) == set(METHODS)
