"""Inputs and settings of small jobs, and the code with which the command exits."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dogfit.run import main

HOSTILE = "<script>alert(1)</script>"
TRAINING = {"batch_size": 64, "decoder_only_batch_size": 64, "restarts": 2, "widths": (32,), "frequencies": 4}
# A job of seconds: few nulls, two families, a small autoencoder trained for a moment, no figures.
SMALL = [
    *"--null-kernels 128,128 --families gaussian,d1 --steps 50 --no-figures".split(),
    *("--training", json.dumps(TRAINING)),
]


def blobs(n: int, k: int, seed: int) -> np.ndarray:
    """Gaussian blobs and edges with a little noise, as depthwise weights `[n, 1, k, k]`."""
    generator = np.random.default_rng(seed)
    u = np.arange(k) - (k - 1) / 2
    x, y = generator.uniform(-1, 1, (2, n, 1, 1))
    sigma = generator.uniform(0.6, 1.5, (n, 1, 1))
    bell = np.exp(-((u[None, None] - x) ** 2 + (u[None, :, None] - y) ** 2) / (2 * sigma**2))
    edge = (u[None, None] - x) * bell
    kernels = np.where(generator.random((n, 1, 1)) < 0.5, bell, edge) * generator.choice([-1, 1], (n, 1, 1))
    return (kernels + 0.05 * generator.standard_normal((n, k, k)))[:, None].astype(np.float32)


def checkpoint(path: Path, seed: int = 0) -> Path:
    """Three layers of 7x7, with a NaN kernel and a zero one, and 5x5 kernels too few for an autoencoder."""
    tensors = {
        "stages.0.blocks.0.conv_dw.weight": blobs(40, 7, seed),
        "stages.0.blocks.1.conv_dw.weight": blobs(40, 7, seed + 1),
        "stages.1.blocks.0.conv_dw.weight": blobs(24, 5, seed + 2),
        f"stages.1.blocks.1.{HOSTILE}.dwconv.weight": blobs(40, 7, seed + 3),
        "head.fc.weight": np.zeros((10, 40), np.float32),
    }
    tensors["stages.0.blocks.0.conv_dw.weight"][3, 0, 2, 2] = np.nan
    tensors["stages.0.blocks.1.conv_dw.weight"][5] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def exit_code(words: list[str]) -> int:
    """Run the command, and give its exit code if it returns or leaves."""
    try:
        return main(words)
    except SystemExit as leaving:
        return leaving.code


def stages(out: Path, state: str) -> set[str]:
    """Names of the stages of the last run that were "made" or "kept"."""
    record = json.loads((out / "run.json").read_bytes())
    return {name for name, found in record["stages"].items() if found == state}
