"""Files of other formats become safetensors with the same values, and what was taken is said."""

import argparse
import json
import shlex
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from dogfit.checkpoints import load_kernels
from dogfit.convert import convert
from dogfit.convert.__main__ import main
from dogfit.errors import InputError, OutputError
from tiny_checkpoints import convnext_tensors, random_tensor


def state_dict(seed=0, channels=8):
    torch = pytest.importorskip("torch", reason="writes PyTorch files")
    return {name: torch.from_numpy(v) for name, v in convnext_tensors(seed=seed, channels=channels).items()}


def saved(path, content):
    import torch

    torch.save(content, path)
    return path


def same_as(path, tensors, prefix=""):
    got = load_file(path)
    assert set(got) == {prefix + name for name in tensors}
    assert all(np.array_equal(got[prefix + name], v.numpy()) for name, v in tensors.items())


OPTIMIZER = {"state": {0: {"exp_avg": "TENSOR", "step": 3}}, "param_groups": [{"lr": 0.1}]}


def with_training(weights):
    """A checkpoint of a training run: weights at some keys, and what else such a run keeps."""
    import torch

    moments = {"state": {0: {"exp_avg": torch.ones(50, 50)}}, "param_groups": [{"lr": 0.1}]}
    return weights | {
        "optimizer": moments,
        "epoch": 7,
        "args": argparse.Namespace(lr=0.1),
        "best": torch.ones(()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        (),
        ("state_dict",),
        ("params",),
        ("net",),
        ("weights",),
        ("checkpoint", "model_state_dict"),
        ("a", "b", "module"),
    ],
)
def test_convert_finds_weights_in_nested_dictionaries(tmp_path, keys):
    state = content = state_dict()
    for key in reversed(keys):
        content = {key: content}
    path = saved(tmp_path / "run.pth", with_training(content) if keys else content)
    done = convert(path)
    assert done.path == tmp_path / "run.safetensors"
    assert (done.taken, done.n_tensors) == (".".join(keys), len(state))
    assert done.left == ({"optimizer": "state of the training"} if keys else {})
    same_as(done.path, state)


@pytest.mark.slow
def test_torch_script_choose():
    """Plain weights are taken, averages where asked for, and all where keys are modules of one network."""
    torch = pytest.importorskip("torch", reason="chooses among PyTorch tensors")
    from dogfit.convert.torch_script import choose, count, flatten

    def weights(seed):
        return {"stem.weight": torch.full((4, 3, 3, 3), seed), "dw.weight": torch.full((4, 1, 3, 3), seed)}

    def taken(content, average=False):
        return ".".join(choose(content, average).path)

    for plain, mean in (
        ("params", "params_ema"),
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("student", "teacher"),
        ("net", "averaged_net"),
        ("weights", "ema"),
    ):
        content = with_training({plain: weights(1), mean: weights(2)})
        assert (taken(content), taken(content, average=True)) == (plain, mean)
        assert choose(content, False).left[mean] == "an average of the weights; --average takes it"
        assert taken({mean: weights(2)}) == mean
    assert taken({"ema": {"decay": 0.9, "module": weights(1)}}) == "ema.module"
    modules = with_training({"encoder": weights(1), "decoder": weights(2)})
    assert taken(modules) == ""
    assert {name for name, _ in flatten(choose(modules, False).value)} >= {
        "encoder.dw.weight",
        "decoder.dw.weight",
    }
    # A tiny part under a usual name is not the network.
    assert taken({"weights": torch.ones(4), "model": {"a": torch.ones(1)}, "trunk": weights(1)}) == ""
    assert count({"optimizer": weights(1)}) == 0


@pytest.mark.slow
def test_convert_pickle_by_the_line_that_is_printed(tmp_path):
    """The refusal of a pickle ends with a command that converts it; the result is read."""
    state = state_dict()
    path = saved(tmp_path / "my run.pth.tar", with_training({"params": state, "params_ema": state_dict(1)}))
    with pytest.raises(InputError, match="hold Python pickles") as caught:
        load_kernels(path)
    line = shlex.split(str(caught.value).split("trust: ")[1])
    assert line[:3] == ["python", "-m", "dogfit.convert"]
    done = subprocess.run(
        [sys.executable, *line[1:], "--average"], capture_output=True, text=True, check=True
    )
    assert "took 'params_ema'" in done.stdout
    assert "left 'params': plain weights" in done.stdout
    same_as(tmp_path / "my run.safetensors", state_dict(1))
    assert len(load_kernels(tmp_path / "my run.safetensors").layers) == 13


@pytest.mark.slow
def test_convert_fails_where_there_are_no_weights(tmp_path, capsys):
    pytest.importorskip("torch", reason="writes PyTorch files")
    path = saved(tmp_path / "run.pt", with_training({}))
    path = saved(path, {"optimizer": with_training({})["optimizer"], "epoch": 3})
    assert main([str(path)]) == 3
    assert "holds no tensors but those of the training" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_convert_refuses_objects(tmp_path):
    """Whole modules and other objects could run any code; nothing of them is loaded."""
    torch = pytest.importorskip("torch", reason="writes PyTorch files")

    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    path = saved(tmp_path / "run.pt", {"model": state_dict(), "extra": Bomb()})
    with pytest.raises(InputError, match=r"holds Python objects \(\S*print\)") as caught:
        convert(path)
    assert "boom" not in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer releases of PyTorch call it deprecated
        torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 1, 1)), tmp_path / "script.pt")
    with pytest.raises(InputError, match="TorchScript"):
        convert(tmp_path / "script.pt")


def test_convert_without_pytorch(tmp_path):
    """PyTorch is needed in the other process alone, which says so where it lacks it."""
    path = tmp_path / "run.pth"
    path.write_bytes(b"\x80\x02}q\x00.")
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = next(bare.glob("[bS]*/python*"))
    with pytest.raises(InputError, match="needs PyTorch"):
        convert(path, python=python)
    with pytest.raises(InputError, match="cannot run"):
        convert(path, python=tmp_path / "no-python")


def test_convert_numpy_file(tmp_path):
    tensors = convnext_tensors() | {
        "half": random_tensor(3).astype(np.float16),
        "big": np.arange(3, dtype=">f4"),
    }
    path = tmp_path / "weights.npz"
    np.savez(path, **tensors, objects=np.array([{}], object), words=np.array(["a"]))
    done = convert(path)
    assert set(done.left) == {"objects", "words"}
    got = load_file(done.path)
    assert set(got) == set(tensors)
    assert all(np.array_equal(got[name], values) for name, values in tensors.items())
    assert len(load_kernels(done.path).layers) == 13


def test_convert_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py", reason="writes HDF5")
    kernel = random_tensor(5, 5, 16, 1)
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/depthwise_conv2d/vars/0"] = kernel
        file["layers/conv2d/vars/0"] = random_tensor(3, 3, 3, 16)
        file["layers/dense/vars/0"] = random_tensor(16, 10)
        file["note"] = "text"
    done = convert(path)
    assert done.path.name == "model.weights.safetensors"
    assert list(done.left) == ["note"]
    np.testing.assert_array_equal(load_file(done.path)["layers/depthwise_conv2d/vars/0"], kernel)


def test_convert_keras_archive(tmp_path):
    h5py = pytest.importorskip("h5py", reason="writes HDF5")
    import io
    import zipfile

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/depthwise_conv2d/vars/0"] = random_tensor(5, 5, 16, 1)
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", content.getvalue())
    assert convert(path).n_tensors == 1


def test_convert_onnx(tmp_path):
    """Weights that the exporter renamed are named after their node; the graph's order is kept."""
    onnx = pytest.importorskip("onnx", reason="writes ONNX")
    from onnx import TensorProto, helper, numpy_helper

    weights = {
        "onnx::Conv_9": random_tensor(8, 1, 7, 7),
        "stem.weight": random_tensor(8, 3, 3, 3),
        "onnx::Conv_7": random_tensor(16, 8, 1, 1),
    }
    constant = numpy_helper.from_array(random_tensor(16, 1, 3, 3), "constant")
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight"], ["a"], name="/stem/Conv"),
        helper.make_node("Conv", ["a", "onnx::Conv_9"], ["b"], name="/stages.0/conv_dw/Conv", group=8),
        helper.make_node("Conv", ["b", "onnx::Conv_7"], ["c"], name="/stages.0/conv_pw/Conv"),
        helper.make_node("Constant", [], ["k"], value=constant),
        helper.make_node("Conv", ["c", "k"], ["y"], name="/stages.1/conv_dw/Conv", group=16),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    path = tmp_path / "network.onnx"
    onnx.save(helper.make_model(graph), str(path))
    done = convert(path)
    with safe_open(done.path, "numpy") as file:
        order = json.loads(file.metadata()["layer_order"])
        np.testing.assert_array_equal(file.get_tensor("stages.0/conv_dw/weight"), weights["onnx::Conv_9"])
        np.testing.assert_array_equal(file.get_tensor("k"), numpy_helper.to_array(constant))
    assert order == ["stem.weight", "stages.0/conv_dw/weight", "stages.0/conv_pw/weight", "k"]
    assert "stages.0/conv_dw/weight" in [layer.name for layer in load_kernels(done.path).layers]


def test_convert_flax_msgpack(tmp_path):
    from flax.serialization import msgpack_serialize

    params = {
        "params": {
            "stem": {"kernel": random_tensor(3, 3, 3, 8)},
            "dwconv": {"kernel": random_tensor(7, 7, 1, 8)},
        }
    }
    params["params"]["low"] = random_tensor(4).astype(ml_dtypes.bfloat16)
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack_serialize(params))
    done = convert(path)
    got = load_kernels(done.path)
    assert [layer.name for layer in got.layers] == ["params/dwconv/kernel"]
    assert done.n_tensors == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", b"PK\x03\x04 no archive", "damaged NumPy file"),
        ("a.msgpack", b"\xc1", "damaged msgpack file"),
        ("a.pb", b"\x0a\x04anything", "not of a format that is converted .a TensorFlow graph."),
        ("a.txt", b"hello", "not of a format that is converted"),
        ("a.pt", (2).to_bytes(8, "little") + b"{}", "holds safetensors already"),
        ("a.npz", None, "no such file"),
        (".", None, "a folder; give a file in it"),
    ],
)
def test_convert_refuses_other_files(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        convert(path)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"),
    [("a.h5", "h5py"), ("a.onnx", "onnx"), ("a.tflite", "ai_edge_litert")],
)
def test_convert_says_which_extra_is_missing(tmp_path, name, module):
    script = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from dogfit.convert.__main__ import main\nsys.exit(main([sys.argv[1]]))"
    )
    (tmp_path / name).write_bytes(b"anything, 16 bytes")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / name), module],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert f"needs {module}, which is missing; pip install 'dogfit[" in done.stderr


def test_convert_overwrites_nothing(tmp_path, capsys):
    path, taken = tmp_path / "a.npz", tmp_path / "a.safetensors"
    np.savez(path, w=random_tensor(3))
    save_file({"x": random_tensor(2)}, taken)
    before = taken.read_bytes()
    with pytest.raises(OutputError, match="exists"):
        convert(path)
    assert main([str(path)]) == 2
    assert "exists; give another place" in capsys.readouterr().err
    assert taken.read_bytes() == before
    assert main([str(path), str(tmp_path / "b.safetensors")]) == 0
    assert "took 'all': 1 tensors" in capsys.readouterr().out
