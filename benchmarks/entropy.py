"""Refit of the random-layer threshold of variance entropy, `THRESHOLDS` of `dogfit.analysis.layer_metrics`.

    python benchmarks/entropy.py                 every side of the table (some minutes)
    python benchmarks/entropy.py --sides 5 7     a few

For each kernel side k and each n of 2, 4, ... 4096, random layers of n normal kernels are drawn and their
least variance entropy is kept, as CNN Filter DB does (its published threshold for 3x3 lies on the minima of
such a simulation, not on the means). A logistic curve in log2 n is fitted to them. Large kernels need few
draws: the entropy of a large random layer hardly varies.
"""

import argparse

import numpy as np
from scipy.optimize import curve_fit

from dogfit.analysis.layer_metrics import logistic, random_entropy, variance_entropy

SIDES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 19, 25, 31, 51)
COUNTS = tuple(2**power for power in range(1, 13))


def least_entropy(k: int, n: int, draws: int, seed: int = 0) -> float:
    """Least variance entropy of `draws` random layers of n normal k x k kernels."""
    generator = np.random.default_rng([seed, k, n])
    return min(variance_entropy(generator.standard_normal((n, k, k), dtype=np.float32)) for _ in range(draws))


def refit(k: int, least: dict[int, float]) -> tuple[float, float, float, float]:
    """Height, midpoint, rate and offset of the logistic curve through the least entropies by n."""
    start = (2 * np.log10(k) + 1.3, np.log2(k), 0.6, -1.3)
    n = np.array(list(least), float)
    found, _ = curve_fit(logistic, np.log2(n), np.array(list(least.values())), p0=start, maxfev=100_000)
    return tuple(float(f"{value:.5g}") for value in found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument(
        "--draws", type=int, help="random layers for each n (by default 200, 3 for large ones)"
    )
    arguments = parser.parse_args()
    print(
        "    # side: height, midpoint, rate, offset; largest miss of the minima; of the mean by closed form"
    )
    for k in arguments.sides:
        draws = {n: arguments.draws or int(np.clip(3e6 / (n * k * k), 3, 200)) for n in COUNTS}
        least = {n: least_entropy(k, n, draws[n]) for n in COUNTS}
        found = refit(k, least)
        n = np.array(COUNTS)
        miss = np.abs(logistic(np.log2(n), *found) - np.array(list(least.values()))).max()
        mean = np.abs(np.array([random_entropy(m, k) for m in COUNTS]) - np.array(list(least.values()))).max()
        print(f"    {k}: {found},  # {miss:.3f} {mean:.3f}", flush=True)


if __name__ == "__main__":
    main()
