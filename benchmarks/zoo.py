"""Does the whole job manage every 7x7 kernel of the timm ConvNeXt zoo at once, and in how much memory?

    python benchmarks/zoo.py                       1.7 million kernels (about 15 minutes on two cores)
    python benchmarks/zoo.py --kernels 100000      fewer, to see how each stage grows
    python benchmarks/zoo.py -- --no-autoencoder   options of the job after two dashes

Checkpoints of the ConvNeXt sizes, atto to huge, are made in a temporary folder until they hold that many
kernels. Each layer resamples the kernels of one real 7x7 layer of `../shared/data/kernels` (without that
folder, of the embedded network), with replacement, and jitters them: noise of 5 % of the kernel's norm and a
gain of its own, so that no two kernels and no two layers are equal. Then `dogfit.run` is timed as a person
would run it, in a process of its own. Memory is the largest resident set the system saw of that process.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from dogfit.embedded import PATH

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "kernels"
NOISE, GAIN = 0.05, 0.3
# Channels of the first stage (they double at each) and blocks per stage.
SIZES = {
    "atto": (40, (2, 2, 6, 2)),
    "femto": (48, (2, 2, 6, 2)),
    "pico": (64, (2, 2, 6, 2)),
    "nano": (80, (2, 2, 8, 2)),
    "tiny": (96, (3, 3, 9, 3)),
    "small": (96, (3, 3, 27, 3)),
    "base": (128, (3, 3, 27, 3)),
    "large": (192, (3, 3, 27, 3)),
    "xlarge": (256, (3, 3, 27, 3)),
    "huge": (352, (3, 3, 27, 3)),
}


def real_layers() -> list[np.ndarray]:
    """Usable 7x7 kernels of each real layer, `[c, 7, 7]`."""
    files = sorted(SHARED.glob("*.safetensors")) or sorted(PATH.glob("*.safetensors"))
    tensors = [
        t.reshape(-1, 7, 7) for file in files for t in load_file(file).values() if t.shape[-2:] == (7, 7)
    ]
    usable = [t[np.ptp(t, axis=(1, 2)) > 1e-6] for t in tensors]
    return [t for t in usable if len(t) >= 16]


def write_zoo(folder: Path, kernels: int, seed: int = 0) -> tuple[int, int]:
    """Make checkpoints that hold at least `kernels` kernels; return their kernels and layers."""
    generator, real = np.random.default_rng(seed), real_layers()
    made = layers = 0
    for number, (name, (width, depths)) in enumerate(cycle(SIZES.items())):
        if made >= kernels:
            return made, layers
        tensors = {"stem.0.weight": np.zeros((width, 3, 4, 4), np.float32)}
        for stage, depth in enumerate(depths):
            channels = width << stage
            for block in range(depth):
                chosen = real[generator.integers(len(real))]
                taps = chosen[generator.integers(len(chosen), size=channels)]
                spread = NOISE * np.linalg.norm(taps, axis=(1, 2), keepdims=True) / 7
                noisy = taps + spread * generator.standard_normal(taps.shape, dtype=np.float32)
                gain = np.exp(GAIN * generator.standard_normal((channels, 1, 1)))
                weight = (gain * noisy).astype(np.float32)[:, None]
                tensors[f"stages.{stage}.blocks.{block}.conv_dw.weight"] = weight
                made, layers = made + channels, layers + 1
        save_file(tensors, folder / f"convnext_{name}_{number}.safetensors")
    raise AssertionError("cycle never ends")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", type=int, default=1_700_000)
    parser.add_argument("options", nargs="*", help="passed on to dogfit.run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        sources, out = Path(scratch, "zoo"), Path(scratch, "out")
        sources.mkdir()
        made, layers = write_zoo(sources, arguments.kernels)
        files = sorted(sources.iterdir())
        command = [sys.executable, "-m", "dogfit.run", *map(str, files), "--out", str(out)]
        start = time.perf_counter()
        subprocess.run([*command, *arguments.options], check=True)
        seconds = time.perf_counter() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        about = json.loads((out / "run.json").read_bytes())
        sizes = {
            path.name: path.stat().st_size for path in islice(sorted(out.iterdir()), 50) if path.is_file()
        }
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "jax", "scikit-learn"))
    print(f"{made:,} kernels in {layers:,} layers of {len(files)} checkpoints")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions}\n")
    print("| stage | seconds | kernels/s |\n|---|---|---|")
    stages = {**about["seconds"], "whole command": seconds}
    stages["elsewhere"] = stages["total"] - sum(t for name, t in about["seconds"].items() if name != "total")
    for name, value in stages.items():
        print(f"| {name} | {value:.1f} | {made / max(value, 1e-3):,.0f} |")
    # Linux gives kilobytes, macOS bytes.
    peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"\npeak memory {peak / 1e9:.2f} GB; processor time {used.ru_utime + used.ru_stime:.0f} s")
    print("files: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
