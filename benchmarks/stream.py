"""Ten million kernels from a memory-mapped file into Parquet: rate and peak memory on the way.

    python benchmarks/stream.py                          10 million kernels; 2 GB of file, 1.5 GB of results
    python benchmarks/stream.py --millions 0.2           a trial
    python benchmarks/stream.py --folder /large/disk     where the temporary file and the results go

The file holds real 7x7 kernels, resampled and scaled by random gains, so that no two are alike. Memory is the
most that the process has used so far, all libraries included, and what it holds now without the pages of
files, which the system takes back when it needs them.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import fit as fitter
import jax
import numpy as np

import dogfit

MARKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def write_kernels(path: Path, count: int, piece: int = 65_536) -> str:
    """A `.npy` file of kernels, written in pieces; the name of their source."""
    name, kernels = fitter.real_kernels()
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", np.float32, (count, *kernels.shape[1:]))
    for start in range(0, count, piece):
        rows = min(piece, count - start)
        gains = rng.lognormal(size=(rows, 1, 1)).astype(np.float32)
        noise = 0.05 * kernels.std() * rng.standard_normal((rows, *kernels.shape[1:]), np.float32)
        file[start : start + rows] = gains * kernels[rng.integers(len(kernels), size=rows)] + noise
    file.flush()
    return name


def peak_mb() -> float:
    """High-water mark of this process's memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def private_mb() -> float:
    """Memory of this process that is not a page of a file."""
    text = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--millions", type=float, default=10.0, help="kernels, in millions")
    parser.add_argument("--folder", type=Path, default=None, help="for temporary files")
    options = parser.parse_args()
    count = round(1e6 * options.millions)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        path, out = Path(temporary) / "kernels.npy", Path(temporary) / "fits"
        name = write_kernels(path, count)
        marks = [round(1e6 * mark) for mark in MARKS if mark <= options.millions]
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; Python ", end=""
        )
        print(f"{platform.python_version()}, jax {jax.__version__}; 7x7 kernels of {name}\n")
        print("| kernels | time | kernels a second | peak memory | now, without pages of files |")
        print("|---|---|---|---|---|")
        start = time.perf_counter()

        def progress(done: int, _: int | None) -> None:
            while marks and done >= marks[0]:
                marks.pop(0)
                seconds = time.perf_counter() - start
                memory = f"{peak_mb():,.0f} MB | {private_mb():,.0f} MB"
                print(f"| {done:,} | {seconds:,.0f} s | {done / seconds:,.0f} | {memory} |", flush=True)

        done = dogfit.fit_parquet(np.load(path, mmap_mode="r"), out, progress=progress)
        size = sum(file.stat().st_size for file in out.iterdir()) / 1e6
        shares = ", ".join(f"{n / done.kernels:.0%} {family}" for family, n in done.families.items())
        print(f"\n{done.files} files of {size:,.0f} MB in all; {shares}")


if __name__ == "__main__":
    main()
