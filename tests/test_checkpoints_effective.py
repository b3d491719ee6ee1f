"""Weights that a network computes from several tensors are read, and written, as the network uses them."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dogfit.checkpoints import load_kernels
from dogfit.errors import InputError
from dogfit.export import replace_kernels
from tiny_checkpoints import convnext_tensors, layer_names, load_tensors, random_tensor, skip_reasons

MODULE = "stages.0.1.dwconv"
NAME = f"{MODULE}.weight"


def network(module):
    """Tensors of a ConvNeXt of which one depthwise layer is this PyTorch module."""
    tensors = {name: values for name, values in convnext_tensors().items() if not name.startswith(MODULE)}
    state = {f"{MODULE}.{name}": value.numpy().copy() for name, value in module.state_dict().items()}
    return tensors | state


def weight_normed():
    """Tensors of a ConvNeXt of which one depthwise layer is under weight norm, and the kernels it uses."""
    tensors = {name: values for name, values in convnext_tensors().items() if not name.startswith(MODULE)}
    direction, length = random_tensor(8, 1, 7, 7, seed=4), np.abs(random_tensor(8, 1, 1, 1)) + np.float32(0.5)
    used = length * direction / np.sqrt((direction**2).sum((1, 2, 3), keepdims=True))
    return tensors | {f"{NAME}_g": length, f"{NAME}_v": direction}, used[:, 0]


def reparametrized(kind):
    """A depthwise layer of PyTorch under one of its utilities, trained for a step, in evaluation mode."""
    torch = pytest.importorskip("torch")
    from torch.nn.utils import parametrizations, prune

    torch.manual_seed(1)
    conv = torch.nn.Conv2d(8, 8, 7, groups=8)
    make = {
        "weight norm": lambda: torch.nn.utils.weight_norm(conv),
        "weight norm of the whole": lambda: torch.nn.utils.weight_norm(conv, dim=None),
        "weight norm, parametrized": lambda: parametrizations.weight_norm(conv),
        "spectral norm": lambda: torch.nn.utils.spectral_norm(conv),
        "spectral norm, parametrized": lambda: parametrizations.spectral_norm(conv),
        "pruned": lambda: prune.l1_unstructured(conv, "weight", 0.4),
        "pruned by channels": lambda: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    }[kind]
    with pytest.warns(FutureWarning) if kind in ("weight norm", "weight norm of the whole") else nothing():
        layer = make()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 8, 9, 9)).square().sum().backward()
    optimizer.step()
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(1, 8, 9, 9))  # the utilities compute the weight when the layer runs
    return layer


def nothing():
    import contextlib

    return contextlib.nullcontext()


KINDS = (
    "weight norm",
    "weight norm of the whole",
    "weight norm, parametrized",
    "spectral norm",
    "spectral norm, parametrized",
    "pruned",
    "pruned by channels",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_load_kernels_as_pytorch_computes_them(tmp_path, kind):
    layer = reparametrized(kind)
    kernels = load_tensors(tmp_path, network(layer))
    assert len(kernels.layers) == 13
    assert kernels.layers[1].name == NAME
    got = kernels.kernels_of(kernels.layers[1])
    np.testing.assert_allclose(got, layer.weight.detach().numpy()[:, 0], rtol=2e-6, atol=1e-8)
    assert any("as the network computes them" in note for note in kernels.notes)
    assert not any(MODULE in name for name in skip_reasons(kernels))


@pytest.mark.parametrize("vectors", ["u", "uv"])
def test_load_kernels_spectral_norm(tmp_path, vectors):
    """The weight over its norm by the stored vectors; before PyTorch 1.1, v was made of the weight."""
    tensors = {name: values for name, values in convnext_tensors().items() if not name.startswith(MODULE)}
    weight, u, v = random_tensor(8, 1, 7, 7), random_tensor(8), random_tensor(49)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    stored = {f"{NAME}_orig": weight, f"{NAME}_u": u} | ({f"{NAME}_v": v} if "v" in vectors else {})
    kernels = load_tensors(tmp_path, tensors | stored)
    matrix = weight.reshape(8, 49).astype(np.float64)
    norm = u @ matrix @ v if "v" in vectors else np.linalg.norm(matrix.T @ u)
    np.testing.assert_allclose(
        kernels.kernels_of(kernels.layers[1]), (matrix / norm).reshape(8, 7, 7), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_load_kernels_pruned_and_normalized(tmp_path):
    """A mask on one half of a weight norm counts first."""
    torch = pytest.importorskip("torch")
    with pytest.warns(FutureWarning):
        layer = torch.nn.utils.weight_norm(torch.nn.Conv2d(8, 8, 7, groups=8))
    torch.nn.utils.prune.random_unstructured(layer, "weight_v", 0.3)
    with torch.no_grad():
        layer(torch.randn(1, 8, 9, 9))
    kernels = load_tensors(tmp_path, network(layer))
    np.testing.assert_allclose(
        kernels.kernels_of(kernels.layers[1]), layer.weight.detach().numpy()[:, 0], rtol=2e-6, atol=1e-8
    )


@pytest.mark.slow
def test_load_kernels_of_unknown_parametrization(tmp_path):
    """A weight that the file does not determine is left out with the reason, never read as it is stored."""
    torch = pytest.importorskip("torch")

    class Doubled(torch.nn.Module):
        def forward(self, weight):
            return 2 * weight

    layer = torch.nn.Conv2d(8, 8, 7, groups=8)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    kernels = load_tensors(tmp_path, network(layer))
    assert len(kernels.layers) == 12
    reason = skip_reasons(kernels)[f"{MODULE}.parametrizations.weight.original"]
    assert "parametrized in a way that the file does not tell" in reason


def test_load_kernels_whose_parts_lie_in_two_files(tmp_path):
    tensors, used = weight_normed()
    files = {name: f"{int(name.endswith('_g'))}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: t for name, t in tensors.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    kernels = load_kernels(tmp_path)
    np.testing.assert_allclose(kernels.kernels_of(kernels.layers[1]), used, rtol=2e-6)
    done = replace_kernels(tmp_path, tmp_path / "out", lambda k: k[:, ::-1])
    again = load_kernels(done.path.parent)
    np.testing.assert_allclose(
        again.kernels_of(again.layers[0]).mean((1, 2)), kernels.groups[7].mean[:8], atol=1e-6
    )


F4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FLOAT8 = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}


def low_bit_file(path, dtype, content, shape, companions):
    """A network with one depthwise layer of a type that safetensors' NumPy writer does not know."""
    header, data = {}, b""
    entries = [("stem.weight", "F32", random_tensor(8, 3, 3, 3)), (NAME, dtype, content), *companions]
    for name, kind, values in entries:
        own = shape if name == NAME else values.shape
        raw = values if isinstance(values, bytes) else values.tobytes()
        header[name] = {"dtype": kind, "shape": list(own), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "weight.scale", "scale_weight"])
@pytest.mark.parametrize("shape", [(), (1,), (8,), (8, 1, 1, 1), (4, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [*FLOAT8, "I8"])
def test_load_kernels_times_their_scale(tmp_path, name, shape, dtype):
    """Numbers of 8 bits mean something with their scale alone; one that is called inverse multiplies too."""
    scale = np.abs(random_tensor(*shape, seed=5)) + np.float32(0.1)
    stored = random_tensor(8, 1, 7, 7)
    stored = (stored * 20).astype(np.int8) if dtype == "I8" else stored.astype(FLOAT8[dtype])
    path = tmp_path / "low.safetensors"
    low_bit_file(path, dtype, stored, stored.shape, [(f"{MODULE}.{name}", "F32", scale)])
    kernels = load_kernels(path)
    (layer,) = kernels.layers
    factor = np.repeat(scale, 2, 0) if shape == (4, 1, 1, 1) else scale.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        kernels.groups[7].kernels, (stored.astype(np.float64) * factor)[:, 0], rtol=1e-6
    )
    assert (layer.name, layer.dtype) == (NAME, dtype)


def test_load_kernels_of_bytes_with_a_zero_point(tmp_path):
    stored = np.random.default_rng(2).integers(0, 256, (8, 1, 7, 7), np.uint8)
    scale, zero = np.abs(random_tensor(8)), np.arange(120, 128, dtype=np.int32)
    path = tmp_path / "low.safetensors"
    low_bit_file(
        path,
        "U8",
        stored,
        stored.shape,
        [(f"{NAME}_scale", "F32", scale), (f"{NAME}_zero_point", "I32", zero)],
    )
    expected = (stored[:, 0] - zero.astype(float)[:, None, None]) * scale[:, None, None]
    np.testing.assert_allclose(load_kernels(path).groups[7].kernels, expected, rtol=1e-6)


@pytest.mark.parametrize("scale_type", ["F32", "F8_E4M3", "F8_E8M0"])
def test_load_kernels_of_four_bits(tmp_path, scale_type):
    """Two numbers lie in a byte, the first in its lower half."""
    codes = np.random.default_rng(3).integers(0, 16, (8, 1, 4, 4), np.uint8)
    packed = (codes.reshape(-1, 2) @ np.array([1, 16], np.uint8)).astype(np.uint8).tobytes()
    scale = np.array([0.5, 1, 2, 4, 0.25, 8, 1, 2], np.float32).reshape(8, 1, 1, 1)
    types = {"F32": np.float32, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": ml_dtypes.float8_e8m0fnu}
    path = tmp_path / "low.safetensors"
    low_bit_file(
        path, "F4", packed, (8, 1, 4, 4), [(f"{NAME}_scale", scale_type, scale.astype(types[scale_type]))]
    )
    np.testing.assert_array_equal(load_kernels(path).groups[4].kernels, (F4[codes] * scale)[:, 0])


def test_load_kernels_with_a_scale_of_unknown_meaning(tmp_path):
    stored = random_tensor(8, 1, 7, 7).astype(ml_dtypes.float8_e4m3fn)
    path = tmp_path / "low.safetensors"
    low_bit_file(path, "F8_E4M3", stored, stored.shape, [(f"{NAME}_scale", "F32", random_tensor(5, 3))])
    with pytest.raises(InputError, match=r"F8_E4M3 with a scale of shape \[5, 3\]"):
        load_kernels(path)


def mixed(kernels):
    return kernels + 0.3 * kernels[:, ::-1]


def r2_by_hand(old, new):
    return 1 - ((old - new) ** 2).sum((1, 2)) / ((old - old.mean((1, 2), keepdims=True)) ** 2).sum((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weight norm", "weight norm, parametrized"])
def test_replace_kernels_under_weight_norm(tmp_path, kind):
    """PyTorch computes the new kernels from the written file, with the stated R² and the old means."""
    torch = pytest.importorskip("torch")
    layer = reparametrized(kind)
    old = layer.weight.detach().numpy()[:, 0].astype(np.float64)
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = network(layer)
    save_file(tensors, source)
    limit = float(np.median(replace_kernels(source, out, mixed).r2[NAME]))
    done = replace_kernels(source, out, mixed, min_r2=limit, overwrite=True)
    rows = done.replaced[NAME]
    assert 0 < rows.sum() < 8
    new_tensors = load_file(out)
    state = {n.removeprefix(f"{MODULE}."): torch.from_numpy(t) for n, t in new_tensors.items() if MODULE in n}
    layer.load_state_dict(state)
    with torch.no_grad():
        layer(torch.randn(1, 8, 9, 9))
    new = layer.weight.detach().numpy()[:, 0].astype(np.float64)
    np.testing.assert_allclose(done.r2[NAME][rows], r2_by_hand(old, new)[rows], atol=1e-5)
    np.testing.assert_allclose(new.mean((1, 2)), old.mean((1, 2)), atol=1e-7)
    for name, values in new_tensors.items():
        if MODULE in name and values.ndim == 4:
            assert values[~rows].tobytes() == tensors[name][~rows].tobytes()
            assert (values[rows] != tensors[name][rows]).any()


def test_replace_kernels_pruned(tmp_path):
    """A kernel of which a mask holds taps at zero is kept: no mean could be."""
    tensors = convnext_tensors()
    weight, mask = tensors.pop(NAME), np.ones((8, 1, 7, 7), np.float32)
    mask[:3, 0, 2, 2] = 0
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors | {f"{NAME}_orig": weight, f"{NAME}_mask": mask}, source)
    done = replace_kernels(source, out, mixed)
    assert done.replaced[NAME].tolist() == [False] * 3 + [True] * 5
    new = load_file(out)
    np.testing.assert_array_equal(new[f"{NAME}_mask"], mask)
    np.testing.assert_array_equal(new[f"{NAME}_orig"][:3], weight[:3])
    np.testing.assert_allclose(new[f"{NAME}_orig"].mean((1, 2, 3)), weight.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(
        done.r2[NAME][3:], r2_by_hand(weight[3:, 0], new[f"{NAME}_orig"][3:, 0]), atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["spectral norm", "spectral norm, parametrized", "weight norm of the whole"])
def test_replace_kernels_that_share_a_norm(tmp_path, kind):
    """A layer where a new kernel would change all others is kept, and the reason is said."""
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    tensors = network(reparametrized(kind))
    save_file(tensors, source)

    def every_second(kernels):
        return np.where(np.arange(len(kernels))[:, None, None] % 2, mixed(kernels), np.nan)

    done = replace_kernels(source, out, every_second)
    assert NAME not in done.replaced
    assert any("1 layers kept:" in note and "norm" in note for note in done.notes)
    new = load_file(out)
    assert all(new[name].tobytes() == t.tobytes() for name, t in tensors.items() if MODULE in name)
    assert len(layer_names(load_kernels(out))) == 13


def test_replace_kernels_with_scales_alone(tmp_path):
    stored = random_tensor(8, 1, 7, 7).astype(ml_dtypes.float8_e4m3fn)
    path = tmp_path / "low.safetensors"
    low_bit_file(path, "F8_E4M3", stored, stored.shape, [(f"{NAME}_scale", "F32", np.float32([0.1]))])
    with pytest.raises(InputError, match="nothing can be replaced: F8_E4M3 times scale"):
        replace_kernels(path, tmp_path / "out.safetensors", lambda k: k[:, ::-1])
    assert not (tmp_path / "out.safetensors").exists()
