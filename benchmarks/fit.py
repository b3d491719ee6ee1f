"""Speed of the fitter with its accuracy beside it.

    python benchmarks/fit.py                     rate, compile time, and accuracy against SciPy on 40 kernels
    python benchmarks/fit.py --reference 500     accuracy on 500 kernels (about half an hour, then cached)
    python benchmarks/fit.py --engine xla        the same without the compiled C++ search
    python benchmarks/fit.py --families dog_d1   other families than the default ones
    python benchmarks/fit.py --profile discrete  other profiles
    python benchmarks/fit.py --effort quick      the search of dogfit.dog_penalty

Kernels are the real 7x7 ones of `../shared/data/kernels`; without that folder, those of the embedded
network. Accurate means a cost (sum of squared residuals) within 1e-3, relative, plus 1e-4 of the kernel's
energy, of the best that dense float64 multi-start SciPy finds in the same bounds
(`tests/scipy_reference.py`).
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accuracy import EFFORTS, PROFILES, config_of, reference_costs, sample
from safetensors.numpy import load_file

import dogfit
from dogfit.embedded import PATH
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.dispatch import check_fastest

SHARED = Path(__file__).parents[2] / "shared" / "data" / "kernels"


def real_kernels() -> tuple[str, np.ndarray]:
    """Name of the source and all its usable 7x7 kernels, `[n, 7, 7]`."""
    if SHARED.is_dir():
        files = sorted(SHARED.glob("*.safetensors"))
        tensors = [t for file in files for t in load_file(file).values() if t.shape[1:] == (7, 7)]
        name, kernels = f"{len(files)} trained networks", np.concatenate(tensors)
    else:
        name, kernels = "the embedded network", dogfit.load_kernels(PATH).groups[7].kernels
    return name, kernels[np.abs(kernels).max(axis=(1, 2)) > 1e-6]


def accuracy(
    kernels: np.ndarray, families: Sequence[str], config: dogfit.FitConfig, cache: Path
) -> np.ndarray:
    """Share of kernels at SciPy's optimum or below, per family."""
    energy = ((kernels - kernels.mean(axis=(1, 2), keepdims=True)) ** 2).sum(axis=(1, 2), dtype=np.float64)
    costs = (1.0 - dogfit.fit_kernels(kernels, families, config=config).r2_by_family) * energy[:, None]
    best = reference_costs(kernels, families, cache, config.profile)
    return (costs <= 1.001 * best + 1e-4 * energy[:, None]).mean(axis=0)


def rates(
    kernels: np.ndarray, families: Sequence[str], config: dogfit.FitConfig, repeats: int
) -> tuple[float, list[float]]:
    """Seconds of the first call beyond a later one, and kernels a second of each later one."""
    start = time.perf_counter()
    dogfit.fit_kernels(kernels, families, config=config)
    first = time.perf_counter() - start
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        dogfit.fit_kernels(kernels, families, config=config)
        seconds.append(time.perf_counter() - start)
    return first - min(seconds), [len(kernels) / s for s in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", type=int, default=16_384, help="kernels per timed call")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--families", nargs="+", choices=list(BUILTIN_FAMILIES), default=dogfit.FAMILIES)
    parser.add_argument("--reference", type=int, default=40, help="kernels compared with SciPy")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dogfit-benchmarks")
    parser.add_argument("--effort", default="default", choices=EFFORTS, help="how hard to search")
    parser.add_argument("--profile", default="integrated", choices=PROFILES)
    parser.add_argument("--engine", default="auto", choices=("auto", "native", "xla", "pallas"))
    options = parser.parse_args()
    config = replace(config_of(options.effort), engine=options.engine, profile=options.profile)

    import jax

    name, kernels = real_kernels()
    rng = np.random.default_rng(0)
    judged = sample(kernels, options.reference)
    timed = kernels[rng.integers(len(kernels), size=options.kernels)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}; Python ", end="")
    print(f"{platform.python_version()}, jax {jax.__version__}; 7x7 kernels of {name}\n")
    compile_s, found = rates(timed, options.families, config, options.repeats)
    load = os.getloadavg()[0]
    shares = accuracy(judged, options.families, config, options.cache)
    middle, low, high = statistics.median(found), min(found), max(found)
    cells = [f"{middle:,.0f} ({low:,.0f} to {high:,.0f})", f"{compile_s:.1f} s"]
    cells += [f"{100 * share:.1f} %" for share in [*shares, shares.mean()]]
    print(f"| kernels a second, all families | compile | {' | '.join(options.families)} | all |")
    print("|---" * len(cells) + "|")
    print("| " + " | ".join(cells) + " |")
    engine = options.engine
    if engine == "auto" and options.profile != "integrated":
        engine += " (xla: integrated profiles alone are in C++)"
    elif engine == "auto":
        try:
            check_fastest()
            engine += " (native)"
        except NotImplementedError as missing:
            engine += f" (xla: {missing})"
    print(f"\nEngine: {engine}. Profile: {options.profile}. ", end="")
    print(f"Rates: median (range) of {options.repeats} calls on {len(timed):,} kernels; load {load:.1f}.")
    print(f"Shares: {len(judged)} kernels at the optimum that SciPy finds, or below.")


if __name__ == "__main__":
    main()
