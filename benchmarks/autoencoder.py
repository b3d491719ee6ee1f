"""How fast does the autoencoder train, beside the same network in PyTorch, and what does it reach?

    python benchmarks/autoencoder.py                 both tables
    python benchmarks/autoencoder.py --cores 1       all on one core
    python benchmarks/autoencoder.py --resampled 1700000     training and encoding of that many kernels alone

PyTorch (where it is installed; its CPU build) trains one restart after another, eager and through
`torch.compile`, with the same losses, schedules and batches (`autoencoder_torch.py`). The contestants take
turns in one process: a round is 50 steps of each, and rates are medians over rounds. A kernel of a batch
counts once per restart. "Time to loss" is that of one restart, without compilation, until 2,048 held-out
kernels reach the loss at the nearest of 1,024 points of the decoder's curve.

Real 7x7 kernels are read from ../shared/data/kernels where it exists; otherwise synthetic ones are made:
Gaussian derivatives of random order, place, width and direction, with noise.
"""

import argparse
import dataclasses
import importlib.util
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"
HELD, TARGET = 2048, 0.25


def real(k: int) -> np.ndarray:
    from safetensors import safe_open

    found = []
    for path in sorted(SHARED.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a dict
        found += [t for t in tensors if t.shape[1:] == (k, k)]
    kernels = np.concatenate(found).astype(np.float32)
    return kernels[(np.abs(kernels).max(axis=(1, 2)) > 1e-6) & (np.ptp(kernels, axis=(1, 2)) > 0)]


def synthetic(n: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    u = np.arange(k) - (k - 1) / 2
    y, x = (u[None, :, None] - rng.normal(0, 0.5, (n, 1, 1))), (u[None, None] - rng.normal(0, 0.5, (n, 1, 1)))
    theta, sigma = rng.uniform(0, 2 * np.pi, (n, 1, 1)), rng.uniform(0.5, 1.5, (n, 1, 1))
    along = (np.cos(theta) * x + np.sin(theta) * y) / sigma
    shape = np.choose(rng.integers(0, 3, (n, 1, 1)), [np.ones_like(along), along, along**2 - 1])
    kernels = rng.choice([-1, 1], (n, 1, 1)) * shape * np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return (kernels + 0.05 * rng.normal(size=kernels.shape)).astype(np.float32)


def resampled(kernels: np.ndarray, n: int) -> np.ndarray:
    """`n` kernels drawn from real ones, each with a little noise of its own, so that no two are equal."""
    rng = np.random.default_rng(0)
    drawn = kernels[rng.integers(0, len(kernels), n)]
    scale = np.sqrt(np.mean(drawn**2, axis=(1, 2), keepdims=True))
    return drawn + 0.05 * scale * rng.standard_normal(drawn.shape, np.float32)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Contestant:
    """Advances by 50 steps a call; keeps the times of both parts."""

    def __init__(self, name: str, advance: Callable[[], None], score: Callable[[], float], per_step: int):
        self.name, self.advance, self.score, self.per_step = name, advance, score, per_step
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.reached: tuple[float, float] | None = None

    def turn(self) -> None:
        wall, cpu = time.perf_counter(), cpu_seconds()
        self.advance()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(cpu_seconds() - cpu)
        if self.reached is None and self.score() <= TARGET:
            self.reached = sum(self.wall), sum(self.cpu)


def ours(training: np.ndarray, heldout: np.ndarray, config, name: str) -> Contestant:
    import jax

    from dogfit.autoencoder import training_step
    from dogfit.devices import data_mesh, row_layout, row_sharding

    mesh = data_mesh(jax.devices()[:1])
    n, taps = training.shape
    data = jax.device_put(training, row_sharding(mesh))
    compiled = training_step.train_chunk.lower(
        training_step.initial_state(config, taps),
        data,
        config=config,
        layout=row_layout([n], mesh),
        sharding=row_sharding(mesh),
    ).compile()
    state = training_step.initial_state(config, taps)

    def advance() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state, data))

    def score() -> float:
        first = jax.tree.map(lambda a: a[0], state["params"])
        return float(1 - training_step.encode_block(first, heldout, config)[1].mean())

    return Contestant(name, advance, score, config.restarts)


def theirs(training: np.ndarray, heldout: np.ndarray, config, *, compiled: bool) -> Contestant:
    from autoencoder_torch import TorchAutoencoder

    from dogfit.autoencoder.training_step import SEARCH_POINTS

    if compiled:  # on another one, so that training starts at its beginning
        for decoder_only_fraction in (1.0, 0.0):
            TorchAutoencoder(
                training,
                dataclasses.replace(config, decoder_only_fraction=decoder_only_fraction),
                compiled=True,
            ).step()
    peer = TorchAutoencoder(training, config, compiled=compiled)

    def advance() -> None:
        for _ in range(50):
            peer.step()

    name = "PyTorch, torch.compile" if compiled else "PyTorch, eager"
    return Contestant(name, advance, lambda: peer.heldout_loss(heldout, SEARCH_POINTS), 1)


def race(kernels: np.ndarray, cores: int, restarts: int) -> None:
    from dogfit.autoencoder import AutoencoderConfig
    from dogfit.autoencoder.training_step import training_schedule
    from dogfit.normalize import normalize_rows

    taps = np.random.default_rng(0).permutation(normalize_rows(kernels)[0])
    heldout, training = taps[:HELD], taps[HELD:]
    config = AutoencoderConfig(restarts=1)
    many = dataclasses.replace(config, restarts=restarts)
    entrants = [
        ours(training, heldout, many, f"dogfit, {restarts} restarts"),
        ours(training, heldout, config, "dogfit, 1 restart"),
    ]
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(cores)
        entrants += [theirs(training, heldout, config, compiled=c) for c in (False, True)]
    schedule = training_schedule(config)
    for number in range(schedule.total // 50):
        for entrant in entrants if number % 2 else entrants[::-1]:
            entrant.turn()

    print("| | curve alone, kernels/s | per CPU-second | with encoder, kernels/s | per CPU-second ", end="")
    print(f"| to loss {TARGET}: s | CPU-s | held-out loss at the end |\n" + "|---" * 8 + "|")
    for entrant in entrants:
        cells = []
        for size, chosen in (
            (config.decoder_only_batch_size, slice(0, schedule.decoder_only // 50)),
            (config.batch_size, slice(-(-schedule.decoder_only // 50), None)),
        ):
            kernels_a_turn = 50 * size * entrant.per_step
            cells += [
                f"{kernels_a_turn / statistics.median(t[chosen]):,.0f}" for t in (entrant.wall, entrant.cpu)
            ]
        cells += [f"{t:.1f}" for t in entrant.reached] if entrant.reached else ["not reached"] * 2
        print(f"| {entrant.name} | " + " | ".join(cells) + f" | {entrant.score():.3f} |", flush=True)


def reached(kernels: np.ndarray, noise: np.ndarray, step_counts: list[int]) -> None:
    """Losses on all kernels, by length of training."""
    from dogfit.autoencoder import AutoencoderConfig, train_autoencoder

    columns = (
        "steps",
        "restarts",
        "seconds",
        "CPU-s",
        "held-out, nearest (spread)",
        "all, nearest",
        "all, encoder",
        "above cosine 0.7",
        "covariance-matched noise above",
    )
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for count in step_counts:
        config = AutoencoderConfig(steps=count)
        wall, cpu = time.perf_counter(), cpu_seconds()
        model = train_autoencoder(kernels, config)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        cosine, own = (model.reconstruction_cosine(kernels, search=search) for search in (True, False))
        passed = (model.reconstruction_cosine(noise) > 0.7).mean()
        low, high = model.heldout_losses.min(), model.heldout_losses.max()
        print(
            f"| {count} | {config.restarts} | {wall:.0f} | {cpu:.0f} "
            f"| {model.heldout_loss:.3f} ({low:.3f}-{high:.3f}) | {1 - cosine.mean():.3f} "
            f"| {1 - own.mean():.3f} | {(cosine > 0.7).mean():.0%} | {passed:.0%} |",
            flush=True,
        )


def covariance_matched(kernels: np.ndarray, n: int) -> np.ndarray:
    """Gaussian kernels with the mean and covariance of all kernels, each brought to unit norm first."""
    from dogfit.normalize import normalize_rows

    taps = normalize_rows(kernels)[0].astype(np.float64)
    rng = np.random.default_rng(1)
    drawn = rng.multivariate_normal(taps.mean(axis=0), np.cov(taps.T), n, method="eigh")
    return drawn.reshape(n, *kernels.shape[1:]).astype(np.float32)


def large(kernels: np.ndarray, n: int) -> None:
    from dogfit.autoencoder import train_autoencoder

    kernels = resampled(kernels, n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        "\n| kernels | training, s | CPU-s | codes of all, s | CPU-s | peak memory | of it the kernels' own |"
    )
    print("|---" * 7 + "|")
    times = [(time.perf_counter(), cpu_seconds())]
    model = train_autoencoder(kernels)
    times.append((time.perf_counter(), cpu_seconds()))
    model.encode_and_score(kernels)
    times.append((time.perf_counter(), cpu_seconds()))
    spent = [b - a for begin, end in pairwise(times) for a, b in zip(begin, end, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"| {n:,} | "
        + " | ".join(f"{s:.0f}" for s in spent)
        + f" | {peak / 1e6:.1f} GB | {kernels.nbytes / 1e9:.2f} GB |"
        f"\n\nPeak before training: {before / 1e6:.1f} GB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="*", default=[400, 800, 1600])
    parser.add_argument("--limit", type=int, help="use this many kernels, drawn at random")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--resampled", type=int, metavar="N")
    parser.add_argument("--no-race", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # before the libraries count the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])

    import jax

    source, kernels = ("real", real(7)) if SHARED.is_dir() else ("synthetic", synthetic(20_000, 7))
    kernels = np.random.default_rng(0).permutation(kernels)[: arguments.limit]
    device = jax.devices()[0]
    print(f"{len(kernels)} {source} 7x7 kernels; {device.device_kind} x {jax.device_count()}, ", end="")
    print(f"{arguments.cores} cores, Python {platform.python_version()}, jax {jax.__version__}, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}\n")
    if arguments.resampled:
        large(kernels, arguments.resampled)
        return
    if not arguments.no_race:
        race(kernels, arguments.cores, arguments.restarts)
    if arguments.steps:
        reached(kernels, covariance_matched(kernels, 4096), arguments.steps)


if __name__ == "__main__":
    main()
