"""How fast does the autoencoder train, and how well does it reconstruct kernels it has not seen?

Prints a table: kernels per second (each kernel of a batch counts once per restart), seconds in all with
compilation, and the mean cosine dissimilarity of held-out kernels at the best code and at the encoder's
own. The k-means lines say what that many unordered centroids reach.

    python benchmarks/autoencoder.py [--steps N ...] [--limit N]

Real 7x7 kernels are read from ../shared/data/kernels where it exists; otherwise synthetic ones are made:
Gaussian derivatives of random order, place, width and direction, with noise.
"""

import argparse
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np
from safetensors import safe_open

from dogfit.autoencoder import AutoencoderConfig, train_autoencoder
from dogfit.autoencoder.trained import unit_rows
from dogfit.clusters import kmeans

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"


def real(k: int) -> np.ndarray:
    found = []
    for path in sorted(SHARED.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
        found += [t for t in tensors if t.shape[1:] == (k, k)]
    kernels = np.concatenate(found).astype(np.float32)
    return kernels[unit_rows(kernels)[1] & (np.abs(kernels).max(axis=(1, 2)) > 1e-6)]


def synthetic(n: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    u = np.arange(k) - (k - 1) / 2
    y, x = (u[None, :, None] - rng.normal(0, 0.5, (n, 1, 1))), (u[None, None] - rng.normal(0, 0.5, (n, 1, 1)))
    theta, sigma = rng.uniform(0, 2 * np.pi, (n, 1, 1)), rng.uniform(0.5, 1.5, (n, 1, 1))
    along = (np.cos(theta) * x + np.sin(theta) * y) / sigma
    shape = np.choose(rng.integers(0, 3, (n, 1, 1)), [np.ones_like(along), along, along**2 - 1])
    kernels = rng.choice([-1, 1], (n, 1, 1)) * shape * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return (kernels + 0.05 * rng.normal(size=kernels.shape)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 800, 1600])
    parser.add_argument("--limit", type=int, help="use this many kernels, drawn at random")
    parser.add_argument("--batch-size", type=int, default=AutoencoderConfig().batch_size)
    arguments = parser.parse_args()

    source, kernels = ("real", real(7)) if SHARED.is_dir() else ("synthetic", synthetic(20_000, 7))
    kernels = np.random.default_rng(0).permutation(kernels)[: arguments.limit]
    device = jax.devices()[0]
    print(f"{len(kernels)} {source} 7x7 kernels; {device.device_kind} x {jax.device_count()}, ", end="")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, jax {jax.__version__}")

    held = len(kernels) // 10
    for k in (16, 64):
        centroids = unit_rows(kmeans(kernels[held:], k).centroids.reshape(k, 7, 7))[0]
        loss = 1 - (unit_rows(kernels[:held])[0] @ centroids.T).max(axis=1).mean()
        print(f"k-means, {k} centroids: held-out loss {loss:.3f}")

    columns = ("steps", "epochs", "restarts", "kernels/s", "seconds", "held-out (spread)", "encoder", "notes")
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for steps in arguments.steps:
        config = AutoencoderConfig(steps=steps, batch_size=arguments.batch_size)
        times: list[tuple[int, float]] = []
        start = time.perf_counter()
        model = train_autoencoder(
            kernels, config, progress=lambda step, *_, t=times: t.append((step, time.perf_counter()))
        )
        seconds = time.perf_counter() - start
        # The first chunk includes compilation.
        (first, begun), (last, ended) = times[0], times[-1]
        rate = (last - first) * config.batch_size * config.restarts / (ended - begun)
        low, high = model.heldout_losses.min(), model.heldout_losses.max()
        epochs = last * config.batch_size / (len(kernels) * (1 - config.holdout))
        print(
            f"| {last} | {epochs:.0f} | {config.restarts} | {rate:,.0f} | {seconds:.0f} "
            f"| {model.heldout_loss:.3f} ({low:.3f}-{high:.3f}) | {model.encoder_loss:.3f} "
            f"| {'; '.join(model.notes) or '-'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
