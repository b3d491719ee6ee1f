"""Tiny checkpoints for the tests of reading."""

import numpy as np
from safetensors.numpy import save_file

from dogfit.checkpoints import load_kernels


def random_tensor(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def convnext_tensors(prefix="", channels=8, seed=0):
    """Tensors of a two-stage ConvNeXt, as the original release names them."""
    tensors = {"downsample_layers.0.0.weight": random_tensor(channels, 3, 4, 4, seed=seed)}
    for stage in range(2):
        for block in range(11 if stage else 2):
            name = f"stages.{stage}.{block}"
            tensors[f"{name}.dwconv.weight"] = random_tensor(
                channels, 1, 7, 7, seed=1000 * seed + 100 * stage + block
            )
            tensors[f"{name}.dwconv.bias"] = random_tensor(channels)
            tensors[f"{name}.pwconv1.weight"] = random_tensor(4 * channels, channels)
            tensors[f"{name}.pwconv2.weight"] = random_tensor(channels, 4 * channels)
    return {prefix + name: values for name, values in tensors.items()}


def load_tensors(tmp_path, tensors, metadata=None, **options):
    path = tmp_path / "tiny.safetensors"
    save_file(tensors, path, metadata)
    return load_kernels(path, **options)


def layer_names(kernels):
    return [layer.name for layer in kernels.layers]


def skip_reasons(kernels):
    return {item.name: item.reason for item in kernels.skipped}
