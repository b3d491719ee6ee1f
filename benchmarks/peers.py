"""dogfit beside other least-squares fitters: rates at the same share of optima, in one run.

    pip install "dogfit[peers]"                          and torch, if wanted: its CPU build
    python benchmarks/peers.py > benchmarks/peers.md     whole table, under ten minutes on two idle cores
    python benchmarks/peers.py --quick                   three rounds, 40 kernels for the shares: a trial
    python benchmarks/peers.py --cores 1                 all on one core
    python benchmarks/peers.py --cpufit libCpufit.so     with the Cpufit that you built (or DOGFIT_CPUFIT=...)

The task: real 7x7 kernels, the four default families with their bounds, the least cost of each. dogfit
starts from the kernels alone. The others are given the peaks of dogfit's dictionary, best first, free of
charge, and as many of them per family as they need to reach dogfit's share of optima but for one kernel,
found beforehand; where the peaks do not suffice, up to 40 with points about the best. A fit is at the optimum
if its cost is within 1e-3 (relative, plus 1e-4 of the kernel's energy) of the best of dense float64
multi-start SciPy (`tests/scipy_reference.py`, kept in `--cache`); all costs are computed again in float64
from the points that a fitter returns.

Each fitter has a process of its own, with the same cores; they take turns, in reversed order every other
round, while the others sleep. Times include a fitter's own conversions, not the way to its process.
Progress goes to stderr. What each fitter does is said in `benchmarks/peers/`.
"""

import argparse
import importlib.util
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from peers.common import FAMILIES, Family, basis, bounds, normalised, sampled_basis
from peers.race import NUMBERS_OF_STARTS, Entry, Result, Task, run_race, say

TESTS = Path(__file__).parent.parent / "tests"


def entrants(cores: int) -> list[Entry]:
    """All of the main race; dogfit's fastest first."""
    jax_peers = ("batched_jax", 512, 1000)
    return [
        Entry("dogfit, native", "peers.own", "Dogfit", {"engine": "native"}, 16_384),
        Entry("dogfit, XLA", "peers.own", "Dogfit", {"engine": "xla"}, 8_192),
        Entry("SciPy `leastsq`", "peers.minpack", "Scipy", {}, 40, 200, ("scipy",)),
        Entry("lmfit `leastsq`", "peers.minpack", "Lmfit", {}, 10, 40, ("lmfit",)),
        Entry("optimistix", f"peers.{jax_peers[0]}", "Optimistix", {}, *jax_peers[1:], ("optimistix",)),
        Entry("jaxopt", f"peers.{jax_peers[0]}", "Jaxopt", {}, *jax_peers[1:], ("jaxopt",)),
        Entry("PyTorch, batched", "peers.batched_torch", "Torch", {"cores": cores}, 512, 1000, ("torch",)),
        Entry("Numba, scalar", "peers.scalar_numba", "Numba", {}, 2_048, packages=("numba",)),
    ]


def sampled_entrants(path: str) -> list[Entry]:
    """The race on the Gaussian alone."""
    one, cpufit = {"families": ("gaussian",)}, ("peers.cpufit", "Cpufit")
    return [
        Entry("dogfit, sampled", "peers.own", "Dogfit", one | {"profile": "sampled"}, 16_384),
        Entry("dogfit, integrated", "peers.own", "Dogfit", one, 16_384),
        Entry("Cpufit, 1e-4, 25", *cpufit, {"path": path, "tolerance": 1e-4, "iterations": 25}, 4_096),
        Entry("Cpufit, 1e-6, 50", *cpufit, {"path": path, "tolerance": 1e-6, "iterations": 50}, 4_096),
    ]


def find_starts(kernels: np.ndarray, families: Sequence[Family], profile: str) -> dict[str, np.ndarray]:
    """Peaks of dogfit's dictionary, best first, then points about the best five of them.

    `[s, n, p]` by family, as many as are ever tried.
    """
    import jax

    from dogfit.fitting.families import BUILTIN_FAMILIES, with_profile
    from dogfit.kernels.xla.seeds import find_seeds

    images = normalised(kernels).astype(np.float32).transpose(1, 2, 0)
    rng, found = np.random.default_rng(2), {}
    for family in families:
        model = with_profile(BUILTIN_FAMILIES[family.name], profile).model
        seeds = jax.jit(find_seeds, static_argnums=(1, 2))(images, model, number_of_nodes(family))
        nodes = np.asarray(seeds.points, np.float64).transpose(0, 2, 1)
        about = np.resize(nodes[:5], (max(NUMBERS_OF_STARTS), *nodes.shape[1:]))
        # In taps, and in logarithms of widths.
        about = about + rng.normal(size=about.shape) * np.array([0.3, 0.3, 0.3, 0.5][: about.shape[-1]])
        about = np.clip(about, *bounds(family))
        peaks = np.isfinite(seeds.energies)[:, :, None]
        about[: len(nodes)] = np.where(peaks, nodes, about[: len(nodes)])
        found[family.name] = about
    return found


def number_of_nodes(family: Family) -> int:
    """Peaks of the dictionary that are asked for."""
    return 20 if family.two_widths else 10


def make_tasks(options: argparse.Namespace, entries: Sequence[Entry]) -> tuple[str, dict[str, Task]]:
    """Name of the kernels' source, and the task of each profile that is raced."""
    import accuracy
    import fit

    source, kernels = fit.real_kernels()
    rng = np.random.default_rng(0)
    sample = accuracy.sample(kernels, options.reference)
    timed = kernels[rng.integers(len(kernels), size=max(entry.kernels for entry in entries))]
    started = timed[: max((entry.kernels for entry in entries if not entry.ours), default=1)]
    centred = sample - sample.mean(axis=(1, 2), keepdims=True)
    energy = (centred.astype(np.float64) ** 2).sum(axis=(1, 2))

    def task(families: tuple[Family, ...], images: Callable, profile: str, best: dict) -> Task:
        begin, timed_begin = (find_starts(rows, families, profile) for rows in (sample, started))
        nodes = {family.name: number_of_nodes(family) for family in families}
        return Task(families, images, sample, timed, begin, timed_begin, best, nodes)

    say(f"reference: {len(sample)} kernels by SciPy")

    def reference(families: tuple[Family, ...], profile: str) -> dict[str, np.ndarray]:
        costs = accuracy.reference_costs(sample, [f.name for f in families], options.cache, profile)
        return {f.name: cost / energy for f, cost in zip(families, costs.T, strict=True)}

    tasks = {"integrated": task(FAMILIES, basis, "integrated", reference(FAMILIES, "integrated"))}
    if any(entry.profile == "sampled" for entry in entries):
        best = reference(FAMILIES[:1], "sampled")
        tasks["sampled"] = task(FAMILIES[:1], lambda _, points: sampled_basis(points), "sampled", best)
    return source, tasks


def missing(entries: Sequence[Entry]) -> dict[str, str]:
    """Why an entry cannot take part, by label."""
    from dogfit.kernels.native import binding as native

    absent = {e.label: [p for p in e.packages if importlib.util.find_spec(p) is None] for e in entries}
    reasons = {label: f"pip install {' '.join(names)}" for label, names in absent.items() if names}
    try:
        native.check_available()
    except NotImplementedError as reason:
        reasons |= {e.label: str(reason) for e in entries if e.options.get("engine") == "native"}
    return reasons


def table(results: Sequence[Result]) -> str:
    """Markdown; each ratio is the first row's median rate over the row's."""
    columns = (
        "fitter | kernels/s | per core-second | × slower than the first | per core | starts | at the optimum"
    )
    columns += " | compile | memory | kernels timed, judged"
    lines = [f"| {columns} |", "|---" * columns.count("|") + "|---|"]

    def middle(values: list[float]) -> float:
        return statistics.median(values)

    for result in results:
        rates, core_rates = result.rates(), result.core_rates()
        first = results[0]
        shares = [100 * optimal.mean() for optimal in result.optimal.values()]
        judged = len(next(iter(result.optimal.values())))
        cells = [
            result.entry.label,
            f"{middle(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
            f"{middle(core_rates):,.0f}",
            f"{middle(first.rates()) / middle(rates):,.1f}",
            f"{middle(first.core_rates()) / middle(core_rates):,.1f}",
            "own" if result.entry.ours else " / ".join(map(str, result.starts.values())),
            " / ".join(f"{share:.1f}" for share in shares) + " %",
            f"{result.compile_s:.1f} s",
            f"{result.fitting_mb:.0f} MB",
            f"{result.entry.kernels:,}, {judged:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def machine(cores: int, packages: Sequence[str]) -> str:
    """Where and with what."""
    known = [f"{name} {version(name)}" for name in packages if importlib.util.find_spec(name)]
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{model}, {cores} cores; Python {platform.python_version()}, {', '.join(known)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--reference", type=int, default=200, help="kernels whose optimum is known from SciPy"
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, 40 kernels of known optimum")
    parser.add_argument("--cores", type=int, help="use so many (all)")
    parser.add_argument("--cpufit", default=os.environ.get("DOGFIT_CPUFIT"), metavar="PATH")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dogfit-benchmarks")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.reference = 3, 40
    if options.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # For the fitters' processes. Products of 49 numbers are no work for a second BLAS thread.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    os.environ |= {"NUMBA_NUM_THREADS": str(cores), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    sys.path.insert(0, str(TESTS))

    everyone = entrants(cores)
    skipped = missing(everyone)
    main_race = [entry for entry in everyone if entry.label not in skipped]
    sampled_race = sampled_entrants(options.cpufit) if options.cpufit else []
    source, tasks = make_tasks(options, [*main_race, *sampled_race])
    results, failed = run_race(main_race, tasks, options.rounds)
    sampled_results, sampled_failed = run_race(sampled_race, tasks, options.rounds)

    packages = ["numpy", "scipy", "jax", *(name for entry in everyone for name in entry.packages)]
    print(f"# Beside other fitters\n\n{(__doc__ or '').split(chr(10) * 2, 2)[2]}")
    print(f"{machine(cores, tuple(dict.fromkeys(packages)))}.")
    print(f"7x7 kernels of {source}; load {os.getloadavg()[0]:.1f} at the end.\n")
    print(f"## Four families\n\n{table(results)}\n")
    if sampled_results:
        print(f"## The Gaussian alone, beside Cpufit\n\n{table(sampled_results)}\n")
    if not options.cpufit:
        skipped["Cpufit"] = "build its library, then --cpufit PATH"
    for label, reason in (skipped | failed | sampled_failed).items():
        print(f"Left out: {label} ({reason}).")
    print(
        f"\nRates: median (range) of {options.rounds} interleaved rounds. Starts per family, and shares: in"
    )
    print(f"the order {', '.join(f.name for f in FAMILIES)}. Memory: the most while fitting, beyond what the")
    print("fitter's libraries take when loaded.")


if __name__ == "__main__":
    main()
