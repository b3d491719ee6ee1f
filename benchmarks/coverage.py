"""Do intervals of one standard error cover a known truth in 68.3 % of cases, beside bounds too?

    python benchmarks/coverage.py                                the table
    python benchmarks/coverage.py --members 500 --families dog   a trial

Members of each family are drawn, noise is added, and the sum is fitted with the same family. Unlike
`intervals.py`, which takes fitted kernels for true and leaves out what ends at a bound, this counts every
fit, by whether one of its search parameters ended at a bound. A parameter whose error nobody knows there
reports none (`FitResult.standard_errors`); "without" is the share of those.
"""

import argparse
import platform

import jax
import numpy as np
from exact_families import draw_parameters, render_members
from intervals import cell

import dogfit
from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.fitting.family_names import ROUND_FAMILIES
from dogfit.uncertainty import NOMINAL, parameter_errors


def measure(name: str, options: argparse.Namespace) -> None:
    """Print the lines of one family."""
    family, generator = BUILTIN_FAMILIES[name], np.random.default_rng(options.seed)
    truth = draw_parameters(name, options.members, generator)
    exact = render_members(name, truth, options.size)
    energy = ((exact - exact.mean(axis=(1, 2), keepdims=True)) ** 2).sum(axis=(1, 2), keepdims=True)
    noise = np.sqrt(energy) / options.signal * generator.normal(size=exact.shape)
    fit = dogfit.fit_kernels((exact + noise).astype(np.float32), [family])
    stderr = fit.standard_errors()[name]
    error = parameter_errors(family, np.asarray(fit.parameters[name], float), truth)
    covered = np.where(np.isfinite(stderr), np.abs(error) <= stderr, np.nan)
    beside = fit.at_bound[name].any(axis=1)
    for column, parameter in enumerate(family.names):
        cells = [cell(covered[~beside, column]), cell(covered[beside, column])]
        without = 100 * np.isnan(covered[beside, column]).mean() if beside.any() else 0.0
        print(
            f"| {name} | {100 * beside.mean():.0f} % | {parameter} | {' | '.join(cells)} | {without:.0f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=4000, help="kernels of each family")
    parser.add_argument("--families", nargs="+", default=ROUND_FAMILIES, choices=ROUND_FAMILIES)
    parser.add_argument("--signal", type=float, default=15.0, help="root of the energy over the noise level")
    parser.add_argument("--size", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{platform.machine()}; Python {platform.python_version()}, jax {jax.__version__}; ", end="")
    print(
        f"{options.members:,} members of each family, {options.size}x{options.size}, signal to noise ", end=""
    )
    print(f"{options.signal:g}. Nominal: {100 * NOMINAL:.1f} %.\n")
    print("| family | at a bound | parameter | covered inside, % | covered at a bound, % | without there |")
    print("|---|---|---|---|---|---|")
    for name in options.families:
        measure(name, options)


if __name__ == "__main__":
    main()
