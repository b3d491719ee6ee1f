"""Is an exact member of a family named as one? Members of each family, without noise and with very little.

    python benchmarks/exact_families.py                   the table, float32 and float64
    python benchmarks/exact_families.py --members 40      a trial
    python benchmarks/exact_families.py --dtypes float32  one precision

Parameters are drawn as `dogfit.initializers.Shapes` draws them, images are made in float64, and noise has
the given size relative to the kernel about its mean. All families compete. A family holds others as limits (a
DoG the Gaussian, its derivatives the plain ones): right is the one with the fewest parameters that leaves
nothing.
"""

import argparse
import platform
from typing import Any

import jax
import numpy as np

import dogfit
from dogfit.fitting.families import BUILTIN_FAMILIES, render
from dogfit.fitting.family_names import ROUND_FAMILIES

NOISE = (0.0, 1e-6, 1e-3)
SIZE = 7


def draw_parameters(name: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """Parameters of members of a family, `[n, p]`."""
    sign = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    sigma = np.exp(generator.uniform(np.log(0.5), np.log(1.5), count))
    surround = generator.uniform(0.5, 1.0, count)
    values = {
        "offset": generator.normal(size=count),
        "amplitude": sign,
        "amplitude_center": sign,
        "amplitude_surround": -sign * surround,
        "amplitude_1": sign,
        "amplitude_2": sign * generator.uniform(-1.0, 1.0, count),
        "theta_rad": generator.uniform(-np.pi, np.pi, count),
        "x0_px": generator.uniform(-0.5, 0.5, count),
        "y0_px": generator.uniform(-0.5, 0.5, count),
        "sigma_px": sigma,
        "sigma_surround_px": sigma * np.exp(generator.uniform(np.log(1.5), np.log(3.0), count)),
        "surround_weight": surround,
    }
    if name.endswith("d1"):
        # Of a first derivative the direction has the sign.
        values["amplitude"] = np.abs(sign)
    return np.stack([values[parameter] for parameter in BUILTIN_FAMILIES[name].names], axis=1)


def render_members(name: str, parameters: np.ndarray, size: int) -> np.ndarray:
    """Exact members of a family, float64 `[n, size, size]`."""
    with jax.enable_x64(True):
        return np.asarray(render(BUILTIN_FAMILIES[name], jax.numpy.asarray(parameters), (size, size)))


def add_noise(kernels: np.ndarray, level: float, generator: np.random.Generator) -> np.ndarray:
    """Kernels with white noise of a size relative to theirs about the mean."""
    spread = kernels.std(axis=(1, 2), keepdims=True)
    return kernels + level * spread * generator.normal(size=kernels.shape)


def choose(kernels: np.ndarray, dtype: str, engine: Any) -> tuple[np.ndarray, dogfit.FitResult]:
    """Name chosen for each kernel, and the fits."""
    with jax.enable_x64(dtype == "float64"):
        config = dogfit.FitConfig(engine=engine)
        fit = dogfit.fit_kernels(kernels.astype(dtype), ROUND_FAMILIES, config=config)
    return np.array(fit.family_names)[fit.family], fit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=200, help="kernels of each family")
    parser.add_argument("--dtypes", nargs="+", default=("float32", "float64"), choices=("float32", "float64"))
    parser.add_argument("--engine", default="auto", choices=("auto", "native", "xla"))
    options = parser.parse_args()
    print(f"{platform.machine()}; Python {platform.python_version()}, jax {jax.__version__}; ", end="")
    print(f"{options.members} members of each family, {SIZE}x{SIZE}; engine: {options.engine}\n")
    print(f"| type | noise | {' | '.join(ROUND_FAMILIES)} | largest evidence against the truth |")
    print("|---" * (3 + len(ROUND_FAMILIES)) + "|")
    for dtype in options.dtypes:
        for level in NOISE:
            generator = np.random.default_rng(0)
            members = [
                render_members(name, draw_parameters(name, options.members, generator), SIZE)
                for name in ROUND_FAMILIES
            ]
            kernels = add_noise(np.concatenate(members), level, generator)
            found, fit = choose(kernels, dtype, options.engine)
            right = found == np.repeat(ROUND_FAMILIES, options.members)
            shares = [f"{100 * share.mean():.1f} %" for share in np.split(right, len(ROUND_FAMILIES))]
            wrong = fit.evidence_ratio[~right]
            most = f"{wrong.max():.0f}" if wrong.size else "-"
            print(f"| {dtype} | {level:g} | {' | '.join(shares)} | {most} |")


if __name__ == "__main__":
    main()
