"""Files, folders and several sources; damaged, foreign and real checkpoints."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save, save_file

from dogfit.checkpoints import load_kernels
from dogfit.errors import InputError
from tiny_checkpoints import convnext_tensors, layer_names, load_tensors, random_tensor

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the shared kernels are not beside the checkout"
)


def test_load_kernels_folder_and_model_name(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    save_file(convnext_tensors(), folder / "model.safetensors")
    (folder / "other.safetensors").write_text("never looked at")
    for path in (folder, folder / "model.safetensors", str(folder)):
        assert load_kernels(path).models == ("my-model",)
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    (folder / "other.safetensors").unlink()
    assert load_kernels(folder).models == ("my-model",)
    assert load_kernels(folder / "open_clip_model.safetensors").models == ("open_clip_model",)


def test_load_kernels_several_sources(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file(convnext_tensors(seed=ord(name)), tmp_path / name / "model.safetensors")
    kernels = load_kernels(tmp_path / "a", tmp_path / "b", tmp_path / "a")
    assert kernels.models == ("a", "b", "a (2)")
    assert len(kernels.sources) == 3


def _sharded(folder, index="model.safetensors.index.json"):
    folder.mkdir()
    tensors, weight_map = convnext_tensors(), {}
    for number in range(3):
        part = dict(list(tensors.items())[number::3])
        file = f"model-{number + 1:05}-of-00003.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "weights.index.json"])
def test_load_kernels_sharded_folder(tmp_path, index):
    _sharded(tmp_path / "sharded", index)
    kernels = load_kernels(tmp_path / "sharded")
    assert kernels.models == ("sharded",)
    assert [layer.block for layer in kernels.layers] == [0, 1, *range(11)]
    total = sum(path.stat().st_size for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert kernels.sources[0].bytes_total == total
    assert load_kernels(tmp_path / "sharded" / index).layers == kernels.layers


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../outside.safetensors", "refused: shard '../outside.safetensors' lies outside"),
        ("/etc/passwd", "refused: shard '/etc/passwd' lies outside"),
        ("a/../../outside.safetensors", "refused"),
        ("..\\outside.safetensors", "refused"),
        ("C:\\outside.safetensors", "refused"),
        ("model-00001-of-00002.bin", "is a pickle"),
        ("model.txt", "is not a safetensors file"),
        ("absent.safetensors", "1 of 4 shards are missing: 'absent.safetensors'"),
        (7, "weight_map must map strings to strings"),
    ],
)
def test_load_kernels_index_that_points_elsewhere(tmp_path, shard, message):
    weight_map = _sharded(tmp_path / "s")
    save_file(convnext_tensors(), tmp_path / "outside.safetensors")
    weight_map["stages.0.0.dwconv.weight"] = shard
    (tmp_path / "s" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=message.replace("\\", "\\\\")):
        load_kernels(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_load_kernels_damaged_index(tmp_path, text):
    _sharded(tmp_path / "s")
    (tmp_path / "s" / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="index"):
        load_kernels(tmp_path / "s")


def test_load_kernels_index_that_promises_too_much(tmp_path):
    weight_map = _sharded(tmp_path / "s")
    weight_map["absent"] = "model-00001-of-00003.safetensors"
    (tmp_path / "s" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="promises 1 tensors its shards do not hold, such as 'absent'"):
        load_kernels(tmp_path / "s")


def test_load_kernels_missing_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("nothing", "./no/such", "../up", "a/b/c", "x/y.safetensors", "x/model.pth", tmp_path / "z"):
        with pytest.raises(InputError, match="no such file or folder"):
            load_kernels(path)
    with pytest.raises(InputError, match="no source given"):
        load_kernels()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".PT"])
def test_load_kernels_refuses_pickles_unread(tmp_path, suffix):
    path = tmp_path / f"my model{suffix}"
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(InputError, match=r"hold Python pickles.*python -m dogfit.convert") as caught:
        load_kernels(path)
    assert f"'{path}'" in str(caught.value)
    with pytest.raises(
        InputError, match="no safetensors file" if suffix == ".PT" else "only pickles"
    ) as caught:
        load_kernels(tmp_path)
    assert suffix == ".PT" or str(caught.value).endswith(f"python -m dogfit.convert '{path}'")


@pytest.mark.parametrize(
    "name", ["model.h5", "model.keras", "flax_model.msgpack", "m.onnx", "m.gguf", "m.npz"]
)
def test_load_kernels_other_formats(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match="safetensors") as caught:
            load_kernels(path)
        assert name in str(caught.value)


def test_load_kernels_other_folders(tmp_path):
    with pytest.raises(InputError, match="no safetensors file; found nothing"):
        load_kernels(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"found 'notes\.txt'"):
        load_kernels(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError, match="a TensorFlow SavedModel"):
        load_kernels(tmp_path)
    for name in ("a", "b"):
        save_file(convnext_tensors(), tmp_path / f"{name}.safetensors")
    (tmp_path / "saved_model.pb").unlink()
    with pytest.raises(InputError, match=r"2 candidates .* 'a.safetensors', 'b.safetensors'; pass the path"):
        load_kernels(tmp_path)


def test_load_kernels_truncated_anywhere(tmp_path):
    content = save(convnext_tensors())
    path = tmp_path / "cut.safetensors"
    for length in [*range(20), *range(20, len(content), 4999), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            load_kernels(path)


def test_load_kernels_says_what_is_there(tmp_path):
    with pytest.raises(InputError, match=r"among 2 tensors \(1 of F32 \[8, 3, 3, 3\]\)") as caught:
        load_tensors(tmp_path, {"conv.weight": random_tensor(8, 3, 3, 3), "fc.weight": random_tensor(10, 8)})
    assert caught.value.exit_code == 3
    with pytest.raises(InputError, match=r"1 not square .such as 'dwconv.weight'"):
        load_tensors(tmp_path, {"dwconv.weight": random_tensor(8, 1, 3, 5)})


@needs_shared
def test_load_kernels_convnextpose():
    path = SHARED / "checkpoints" / "convnextpose-xs"
    kernels = load_kernels(path)
    depths = (2, 2, 6, 2)
    expected = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    assert [(layer.stage, layer.block) for layer in kernels.layers] == expected
    assert (kernels.n, kernels.sizes, kernels.models) == (1840, (7,), ("convnextpose-xs",))
    assert [layer.position for layer in kernels.layers] == list(range(12))
    with safe_open(path / "model.safetensors", framework="numpy") as file:
        for layer, taps in kernels.pairs():
            np.testing.assert_array_equal(taps, file.get_tensor(layer.name)[:, 0])
    assert kernels.sources[0].bytes_read < 0.03 * kernels.sources[0].bytes_total


@needs_shared
def test_load_kernels_every_shared_file():
    paths = sorted((SHARED / "kernels").glob("*.safetensors"))
    everything = load_kernels(*paths, include=["*"])
    assert (len(paths), everything.n) == (37, 130_364)
    counts = {size: len(group.kernels) for size, group in everything.groups.items()}
    assert counts == {3: 62_604, 5: 45_768, 7: 21_248, 9: 744}
    for path in paths:
        with safe_open(path, framework="numpy") as file:
            order = json.loads(file.metadata()["layer_order"])
        kernels = load_kernels(path)
        averaged = {item.name for item in kernels.skipped}
        assert layer_names(kernels) == [name for name in order if name not in averaged]
        # Three files hold the weights twice, as trained and averaged.
        reason = "its moving average is taken instead: 'params_ema'"
        assert {item.reason for item in kernels.skipped} <= {reason}
        assert all(f"params_ema.{name}" in order for name in averaged)
