"""Do intervals of one standard error cover 68.3 %? Parametric bootstrap of real 7x7 kernels.

    python benchmarks/intervals.py                      both tables, 20,000 kernels
    python benchmarks/intervals.py --kernels 4000       a trial
    python benchmarks/intervals.py --size 3             kernels of another size (the middle taps)

Kernels are fitted, the fits are taken as true, noise of the fitted level is added, and the sum is fitted
again with the same family. The first table is by parameter; the second by signal-to-noise ratio (root of the
template's energy over the noise level), pooled over the parameters of a kind, with the share of refits whose
centre is more than four errors away.
"""

import argparse
import platform
from itertools import pairwise

import fit as fitter
import jax
import numpy as np
from scipy.stats import binomtest

import dogfit
from dogfit.uncertainty import NOMINAL, Coverage, bootstrap, bootstrap_coverage

SIGNAL = (0.0, 5.0, 8.0, 12.0, 20.0, np.inf)
KINDS = {
    "offset, gains": ("offset", "amplitude"),
    "centre": ("x0_px", "y0_px"),
    "widths": ("sigma",),
    "angle": ("theta_rad",),
}


def cell(covered: np.ndarray) -> str:
    """A share with its 95 % interval."""
    known = covered[np.isfinite(covered)]
    if len(known) < 50:
        return "-"
    low, high = binomtest(int(known.sum()), len(known)).proportion_ci(0.95, method="wilson")
    return f"{100 * known.mean():.1f} ± {50 * (high - low):.1f}"


def by_signal(found: dict[str, Coverage]) -> None:
    print("| family | signal / noise | refits | " + " | ".join(KINDS) + " | centre elsewhere, % |")
    print("|---" * (4 + len(KINDS)) + "|")
    for name, coverage in found.items():
        covered = coverage.covered()
        for low, high in pairwise(SIGNAL):
            rows = (coverage.signal >= low) & (coverage.signal < high)
            if rows.sum() < 50:
                continue
            cells = []
            for starts in KINDS.values():
                columns = [i for i, p in enumerate(coverage.family.names) if p.startswith(starts)]
                cells.append(cell(covered[rows][:, columns].ravel()) if columns else "")
            columns = [coverage.family.names.index(p) for p in KINDS["centre"]]
            away = np.abs(coverage.error[rows][:, columns]) > 4 * coverage.stderr[rows][:, columns]
            cells.append(f"{100 * away.any(axis=1).mean():.1f}")
            bounds = f"{low:g} to {high:g}" if high < np.inf else f"above {low:g}"
            print(f"| {name} | {bounds} | {rows.sum():,} | {' | '.join(cells)} |")


def by_parameter(result: dogfit.FitResult, options: argparse.Namespace) -> None:
    table = bootstrap_coverage(result, sample=options.kernels, draws=options.draws, seed=options.seed)
    print(
        "| family | parameter | covered, % | with Student's factor | factor needed | intervals | at a bound |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in table.iter_rows(named=True):
        half = 50 * (row["high"] - row["low"])
        print(
            f"| {row['family']} | {row['parameter']} | {100 * row['covered']:.1f} ± {half:.1f} | "
            f"{100 * row['covered_t']:.1f} | {row['needed']:.2f} | {row['count']:,} | {row['at_bound']:,} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", type=int, default=20_000, help="kernels fitted")
    parser.add_argument("--draws", type=int, default=1, help="refits of each")
    parser.add_argument("--size", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    name, kernels = fitter.real_kernels()
    rng = np.random.default_rng(options.seed)
    kernels = kernels[rng.permutation(len(kernels))[: options.kernels]]
    cut = (kernels.shape[-1] - options.size) // 2
    kernels = np.ascontiguousarray(kernels[:, cut : cut + options.size, cut : cut + options.size])
    result = dogfit.fit_kernels(kernels)
    found, left_out = bootstrap(result, sample=options.kernels, draws=options.draws, seed=options.seed)
    print(f"{platform.machine()}; Python {platform.python_version()}, jax {jax.__version__}; ", end="")
    print(f"{len(kernels):,} {options.size}x{options.size} kernels of {name}, {left_out:,} of them left out:")
    print(f"a parameter at its bound, or not converged. Nominal: {100 * NOMINAL:.1f} %.\n")
    by_parameter(result, options)
    print()
    by_signal(found)


if __name__ == "__main__":
    main()
