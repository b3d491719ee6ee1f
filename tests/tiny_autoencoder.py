"""Kernels on a true one-dimensional curve, and settings that learn it in seconds."""

import numpy as np

from dogfit.autoencoder import AutoencoderConfig

CONFIG = AutoencoderConfig(
    steps=150, batch_size=50, decoder_only_batch_size=70, restarts=2, widths=(64,), frequencies=4
)


def edges(n: int, k: int = 5, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """Gaussian slopes at every orientation `[n, k, k]`."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, 2 * np.pi, n)[:, None, None]
    u = np.arange(k) - (k - 1) / 2
    window = np.exp(-(u[:, None] ** 2 + u**2) / 2)
    kernels = (np.cos(theta) * u + np.sin(theta) * u[:, None]) * window
    return (kernels + noise * rng.normal(size=kernels.shape)).astype(np.float32)


def unit_norm(kernels: np.ndarray) -> np.ndarray:
    """Reference: centered unit vectors, in float64."""
    flat = np.asarray(kernels, np.float64).reshape(len(kernels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
