"""The embedded network: its file, what its weights do, and the pieces that trained it."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from dogfit import embedded
from dogfit.embedded import train
from dogfit.embedded.network import (
    NetworkConfig,
    denoise,
    depthwise,
    initial_parameters,
    parameter_shapes,
    psnr,
    scale_shift,
)
from tiny_checkpoints import random_tensor

FILE = embedded.PATH / "model.safetensors"
DEPTHWISE = re.compile(r"stages\.\d\.blocks\.\d\.conv_dw\.weight")
TINY = NetworkConfig(depths=(1, 1, 0, 0, 0), widths=(4, 6, 8), kernel_size=3)
run_network = jax.jit(denoise, static_argnums=2)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32) for name, value in load_file(FILE).items()}


def test_model_file_is_small_and_complete():
    assert FILE.stat().st_size <= 3_000_000
    with safe_open(FILE, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        dtypes = {file.get_slice(name).get_dtype() for name in shapes}
    assert dtypes == {"F16"}
    assert shapes == parameter_shapes(NetworkConfig())
    kernels = [shape for name, shape in shapes.items() if DEPTHWISE.fullmatch(name)]
    assert {shape[1:] for shape in kernels} == {(1, 7, 7)}
    assert sum(shape[0] for shape in kernels) >= 1000


def test_model_file_has_no_dead_kernel(weights):
    assert all(np.isfinite(value).all() for value in weights.values())
    for name, value in weights.items():
        if DEPTHWISE.fullmatch(name):
            assert value.std(axis=(1, 2, 3)).min() > 0, name


def test_model_card_belongs_to_the_file():
    card = (embedded.PATH / "README.md").read_text()
    record = json.loads((embedded.PATH / "training.json").read_text())
    assert "python -m dogfit.embedded.train" in card
    assert record["network"] == json.loads(json.dumps(vars(NetworkConfig())))
    assert record["curve"][-1]["step"] == record["config"]["steps"] == train.TrainingConfig().steps
    for photograph in train.TRAINING_PHOTOGRAPHS + train.HELD_OUT_PHOTOGRAPHS:
        assert photograph.removesuffix(".jpg") in card


def test_embedded_import_loads_nothing_heavy():
    code = (
        "import sys, dogfit.embedded; print(sorted({'jax', 'numpy', 'optax', 'sklearn'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.1, 0.2])
def test_denoise_held_out_photograph(weights, level):
    """Better than the best blur, and by its depthwise kernels."""
    assert "china.jpg" not in train.TRAINING_PHOTOGRAPHS
    clean = load_sample_image("china.jpg")[:128, :128] / np.float32(255)
    rng = np.random.default_rng(1)
    noisy = clean + level * rng.standard_normal(clean.shape, dtype=np.float32)

    def restored(weights: dict[str, np.ndarray]) -> float:
        return psnr(np.asarray(run_network(weights, noisy[None], NetworkConfig()))[0], clean)

    best_blur = max(psnr(gaussian_filter(noisy, (s, s, 0)), clean) for s in np.linspace(0.3, 3, 28))
    assert best_blur > psnr(noisy, clean) + 2
    assert restored(weights) > best_blur + 0.5
    # The depthwise kernels carry it: with their taps in another order the network fails.
    taps = rng.permutation(49)
    scrambled = {
        name: value.reshape(-1, 49)[:, taps].reshape(value.shape) if DEPTHWISE.fullmatch(name) else value
        for name, value in weights.items()
    }
    assert restored(scrambled) < best_blur


def _by_lax(x, weight):
    return jax.lax.conv_general_dilated(
        x,
        weight,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=weight.shape[0],
        precision="highest",
    )


@pytest.mark.parametrize(
    ("shape", "size"),
    [((4, 5, 6, 3), 3), pytest.param((1, 5, 9, 3), 7, marks=pytest.mark.slow)],
)
def test_depthwise_against_grouped_convolution(shape, size):
    """Values and gradients."""
    x, gradient = (random_tensor(*shape, seed=seed) for seed in (0, 1))
    weight = random_tensor(shape[-1], 1, size, size)

    def value_and_gradients(function):
        value, pull = jax.vjp(function, x, weight)
        return value, *pull(gradient)

    got, expected = (jax.jit(value_and_gradients, static_argnums=0)(f) for f in (depthwise, _by_lax))
    # Sums of up to a few hundred products of order one in float32.
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_scale_shift_gradients_against_automatic_ones():
    x, gradient = (random_tensor(2, 3, 4, 5, seed=seed) for seed in (0, 1))
    scale, shift = (random_tensor(5, seed=seed) for seed in (2, 3))

    def plain(x, scale, shift):
        return x * scale[None, None, None] + shift[None, None, None]

    def value_and_gradients(function):
        value, pull = jax.vjp(function, x, scale, shift)
        return value, *pull(gradient)

    got, expected = (jax.jit(value_and_gradients, static_argnums=0)(f) for f in (scale_shift, plain))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def _denoise_in_torch(parameters, images, config):
    """The same network written with PyTorch's own layers, from parameters of the same names."""
    torch = pytest.importorskip("torch", reason="needs PyTorch to compare with")
    functional = torch.nn.functional
    p = {name: torch.tensor(np.asarray(value)) for name, value in parameters.items()}

    def conv(name, x, **options):
        return functional.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    def norm(name, x):
        last = x.permute(0, 2, 3, 1)
        weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
        return functional.layer_norm(last, weight.shape, weight, bias, 1e-6).permute(0, 3, 1, 2)

    def linear(name, x):
        return functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    images = torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)
    x, skips = conv("stem.0", images - 0.5, stride=2), []
    for stage, depth in enumerate(config.depths):
        name = f"stages.{stage}"
        if stage in (1, 2):
            skips.append(x)
            x = conv(f"{name}.downsample.1", norm(f"{name}.downsample.0", x), stride=2)
        elif stage in (3, 4):
            x = functional.pixel_shuffle(conv(f"{name}.upsample.1", norm(f"{name}.upsample.0", x)), 2)
            x = x + skips.pop()
        for block in range(depth):
            prefix = f"{name}.blocks.{block}"
            y = conv(f"{prefix}.conv_dw", x, padding=config.kernel_size // 2, groups=x.shape[1])
            y = linear(f"{prefix}.mlp.fc1", norm(f"{prefix}.norm", y).permute(0, 2, 3, 1))
            y = linear(f"{prefix}.mlp.fc2", functional.gelu(y, approximate="tanh"))
            x = x + (p[f"{prefix}.gamma"] * y).permute(0, 3, 1, 2)
    return (images + functional.pixel_shuffle(conv("head", x), 2)).permute(0, 2, 3, 1).numpy()


@pytest.mark.slow
def test_denoise_against_torch_layers(weights):
    images = np.random.default_rng(2).uniform(size=(1, 128, 128, 3)).astype(np.float32)
    expected = _denoise_in_torch(weights, images, NetworkConfig())
    got = run_network(weights, images, NetworkConfig())
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_sample_patches_follow_the_seed():
    image = np.arange(32 * 48 * 3, dtype=np.float32).reshape(32, 48, 3)
    config = train.TrainingConfig(batch_size=5, patch_size=16)
    batch = next(train.sample_patches([image], config))
    assert batch.shape == (5, 16, 16, 3)
    np.testing.assert_array_equal(batch, next(train.sample_patches([image], config)))
    other = next(train.sample_patches([image], train.TrainingConfig(batch_size=5, patch_size=16, seed=1)))
    assert not np.array_equal(batch, other)
    # A pixel's value says where it was: neighbours differ by one step of the full or of the halved image.
    steps = {abs(float(patch[0, 1, 0] - patch[0, 0, 0])) for patch in batch}
    assert steps <= {3.0, 6.0, 144.0, 288.0}


@pytest.mark.slow
def test_train_writes_a_model_and_follows_the_seed(tmp_path):
    photograph = np.random.default_rng(4).uniform(size=(260, 270, 3)).astype(np.float32)

    def trained(name: str, seed: int):
        config = train.TrainingConfig(
            out=tmp_path / name, steps=3, batch_size=2, patch_size=16, report_every=2, seed=seed
        )
        parameters = train.train(config, TINY, [photograph], {"held out": photograph})
        return parameters, (config.out / "model.safetensors").read_bytes()

    parameters, first = trained("first", seed=0)
    written = load_file(tmp_path / "first" / "model.safetensors")
    assert written.keys() == parameter_shapes(TINY).keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(written[name], np.asarray(value, np.float16))
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert [entry["step"] for entry in record["curve"]] == [2, 3]
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["model.safetensors", "training.json"]

    untrained = initial_parameters(TINY, 0)
    assert all(not np.array_equal(value, untrained[name]) for name, value in parameters.items())
    assert trained("again", seed=0)[1] == first
    assert trained("other", seed=1)[1] != first
