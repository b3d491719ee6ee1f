"""Share of kernels fitted as well as dense multi-start SciPy fits them, per family, profile and size.

    python benchmarks/accuracy.py > benchmarks/accuracy.md              all profiles, both engines
    python benchmarks/accuracy.py --kernels 20 --drawn 9 --sizes 7      a quick look
    python benchmarks/accuracy.py --cache FOLDER                        where SciPy's optima are kept
    python benchmarks/accuracy.py --profiles sampled --families d1 d1_elliptic --misses
    python benchmarks/accuracy.py --engines pallas --profiles integrated    the fused search, interpreted

A kernel counts as hit when its cost (sum of squared residuals) is at most 1.001 times the reference's plus
1e-4 of the kernel's energy; the reference is `tests/scipy_reference.py`, float64, in the same bounds. It
takes an hour of processor time once; its optima are then kept by kernels, family, profile and bounds. Real
kernels come from `../shared/data/kernels`, where that size exists; drawn ones are random members of the
family itself, with noise of 0, 10 or 30 % of their standard deviation. The eight master key filters are 7x7.
"""

import argparse
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from dogfit.atomic_write import write_atomically

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from scipy_families import PROFILES, REFERENCE_FAMILIES, basis, bounds  # noqa: E402
from scipy_reference import EFFORT, Reference  # noqa: E402

if TYPE_CHECKING:
    from dogfit import FitConfig

DATA = ROOT.parent / "shared" / "data"
FAMILIES = ("gaussian", "dog", "d1", "d2", "dog_d1", "dog_d2")
SIZES = (3, 5, 7, 9, 31)
SOURCES = ("real", "drawn", "master")
# Among the master key filters are ellipses: these are fitted to them too.
ELLIPTIC = ("dog_elliptic", "d1_elliptic")
# The fused search, interpreted, where it is asked for.
ENGINES, INTERPRETED = ("native", "xla"), "pallas"
# The search of dogfit.dog_penalty, that of a fit, and dogfit.THOROUGH.
EFFORTS = ("quick", "default", "thorough")
CHOICES = ("profiles", "engines", "families", "sources", "sizes")
# Best-family R² that each of the master key filters must reach.
MASTER_R2 = (0.945, 0.935, 0.910, 0.966, 0.885, 0.910, 0.995, 0.997)
NOISES = (0.0, 0.1, 0.3)  # of drawn kernels in turn, over their standard deviation
MOST = 500  # kernels of a size
CHUNK = 10  # kernels of a task, and of a cached file


class Cell(NamedTuple):
    """One entry of the table, for each engine."""

    profile: str
    family: str
    source: str
    size: int


def real_kernels(size: int, count: int) -> np.ndarray:
    """Random kernels of trained networks `[n, k, k]`, none if there are none of that size."""
    files = sorted((DATA / "kernels").glob("*.safetensors"))
    layers = [t for file in files for t in load_file(file).values() if t.shape[1:] == (size, size)]
    kernels = np.concatenate(layers) if layers else np.zeros((0, size, size), np.float32)
    return sample(kernels[np.abs(kernels).max(axis=(1, 2)) > 1e-6], count)


def sample(kernels: np.ndarray, count: int) -> np.ndarray:
    """Random ones out of kernels; a larger count, to 500, adds some to those of a smaller one."""
    most = min(max(MOST, count), len(kernels))
    return kernels[np.random.default_rng(0).choice(len(kernels), most, replace=False)[:count]]


def drawn_kernels(family: str, profile: str, size: int, count: int) -> np.ndarray:
    """Random members of a family with noise `[n, k, k]`."""
    rng = np.random.default_rng([size, *family.encode()])
    model, out = REFERENCE_FAMILIES[family], []
    for i in range(count):
        narrow = 0.65 if profile == "sampled" else 0.4
        x = [*rng.uniform(-size / 4, size / 4, 2), rng.uniform(np.log(narrow), np.log(size / 3))]
        x += [rng.uniform(np.log(1.3), np.log(4.0))] if model.widths == 2 else []
        x += [rng.uniform(0.3, 1.0)] if model.tied else []
        x += [*rng.uniform(-0.8, 0.8, 2)] if model.elliptic else []
        if profile == "discrete":
            x[:2] = np.round(2 * np.array(x[:2])) / 2
        columns = basis(family, np.array(x), size, profile)
        columns = columns / np.linalg.norm(columns, axis=0)
        image = columns @ rng.normal(size=columns.shape[1])
        image += NOISES[i % len(NOISES)] * image.std() * rng.normal(size=image.shape)
        out.append(image.reshape(size, size))
    return np.array(out, np.float32).reshape(-1, size, size)


def master_key_filters() -> np.ndarray:
    path = DATA / "master_key_filters.json"
    if not path.exists():
        return np.zeros((0, 7, 7), np.float32)
    return np.array(json.loads(path.read_text())["filters"], np.float32)


def kernels_of(cell: Cell, options: argparse.Namespace) -> np.ndarray:
    if cell.source == "real":
        # The size and profile that the limits are stated for.
        more = 5 if (cell.size, cell.profile) == (7, "integrated") else 1
        return real_kernels(cell.size, more * options.kernels)
    if cell.source == "drawn":
        more = 3 if (cell.size, cell.profile) == (7, "integrated") else 1
        return drawn_kernels(cell.family, cell.profile, cell.size, more * options.drawn)
    return master_key_filters() if cell.size == 7 else np.zeros((0, cell.size, cell.size), np.float32)


@functools.lru_cache(maxsize=1)
def _reference(family: str, size: int, profile: str) -> Reference:
    return Reference(family, size, profile=profile)


def _reference_fits(task: tuple[Cell, np.ndarray, Path]) -> tuple[np.ndarray, np.ndarray]:
    """SciPy's cost `[n]` and search point `[n, p]` of a few kernels; the points are kept in a file."""
    cell, kernels, path = task
    reference = _reference(cell.family, cell.size, cell.profile)
    if not path.exists():
        points = [reference.fit(kernel)[1] for kernel in kernels]
        buffer = io.BytesIO()
        np.savez(buffer, x=points)
        write_atomically(path, buffer.getvalue())
    with np.load(path) as found:
        x = found["x"]
    # Costs are never taken from a file: a point found by other code may not be the best, but is no lie.
    return np.array([reference.cost_at(*pair) for pair in zip(kernels, x, strict=True)]), x


def tasks_of(cell: Cell, kernels: np.ndarray, cache: Path) -> list[tuple[Cell, np.ndarray, Path]]:
    box = np.concatenate(bounds(cell.family, cell.size, cell.profile)).round(9).tobytes()
    identity = f"{cell.family} {cell.profile} {kernels.shape[1:]} {EFFORT}".encode()
    tasks = []
    for start in range(0, len(kernels), CHUNK):
        piece = kernels[start : start + CHUNK].astype(np.float64)
        key = hashlib.sha256(b"".join([identity, box, piece.tobytes()])).hexdigest()[:20]
        tasks.append((cell, piece, cache / f"reference-{key}.npz"))
    return tasks


def reference_costs(
    kernels: np.ndarray, families: Sequence[str], cache: Path, profile: str = "integrated"
) -> np.ndarray:
    """SciPy's best cost of each kernel and family `[n, f]`, on all cores; points are kept in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    cells = [Cell(profile, family, "given", kernels.shape[-1]) for family in families]
    tasks = [task for cell in cells for task in tasks_of(cell, kernels, cache)]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        costs = np.concatenate([cost for cost, _ in pool.map(_reference_fits, tasks)])
    return costs.reshape(len(families), -1).T


class Outcome(NamedTuple):
    """Fits of one cell beside the reference's, in units of each kernel's energy."""

    hit: np.ndarray
    cost: np.ndarray
    best: np.ndarray
    x: np.ndarray


def compare(kernels: np.ndarray, cost: np.ndarray, best: np.ndarray, x: np.ndarray) -> Outcome:
    centred = kernels - kernels.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    best = best / np.sum(centred**2, axis=(1, 2))
    return Outcome(cost <= 1.001 * best + 1e-4, cost, best, x)


def identified(family: str, size: int) -> bool:
    """Whether the size leaves enough taps to test the family."""
    from dogfit.fitting.families import BUILTIN_FAMILIES, unidentifiable

    return not unidentifiable([BUILTIN_FAMILIES[family]], (size, size))


def config_of(effort: str) -> "FitConfig":
    """Settings of a fit that searches as hard as one of `EFFORTS`."""
    from dogfit import THOROUGH, FitConfig
    from dogfit.fitting.penalty import QUICK

    return {"quick": QUICK, "default": FitConfig(), "thorough": THOROUGH}[effort]


def unexplained(cell: Cell, kernels: np.ndarray, engine: str, effort: str) -> np.ndarray:
    """Share of each kernel's energy that `dogfit` leaves, `[n]`."""
    import dogfit

    config = replace(config_of(effort), profile=cell.profile, engine=engine)
    result = dogfit.fit_kernels(kernels, [cell.family], config=config)
    return 1.0 - np.asarray(result.r2_by_family[:, 0], np.float64)


def interpreted(cell: Cell, kernels: np.ndarray, effort: str) -> np.ndarray:
    """As `unexplained`, by the fused search on the CPU."""
    import jax
    import jax.numpy as jnp

    from dogfit.fitting.effort import budget_of
    from dogfit.fitting.families import BUILTIN_FAMILIES
    from dogfit.kernels.model.bounds import search_box
    from dogfit.kernels.pallas.search import search_optimum
    from dogfit.kernels.tuning import fused_effort

    model = BUILTIN_FAMILIES[cell.family].model
    hard = fused_effort(model, budget_of(config_of(effort)))
    box = search_box(model, (cell.size, cell.size), jnp.float32)
    # Unrolled code in which nothing is reused is slow to fuse, and fused no faster.
    search = jax.jit(
        lambda images: search_optimum(images, box, model, hard, interpret=True).point,
        compiler_options={"xla_disable_hlo_passes": "fusion", "xla_backend_optimization_level": 0},
    )
    unit = kernels - kernels.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    unit /= np.linalg.norm(unit, axis=(1, 2), keepdims=True)
    points = np.asarray(search(jnp.asarray(unit.transpose(1, 2, 0), jnp.float32)), np.float64)
    reference = _reference(cell.family, cell.size, cell.profile)
    return np.array([reference.cost_at(*pair) for pair in zip(unit, points.T, strict=True)])


def serves(engine: str, cell: Cell) -> bool:
    """Whether the engine has the family, profile and size."""
    if engine == INTERPRETED and (REFERENCE_FAMILIES[cell.family].elliptic or cell.size > 11):
        return False
    return engine == "xla" or cell.profile == "integrated"


def share(outcome: Outcome | None) -> str:
    if outcome is None:
        return "–"
    return f"{100 * outcome.hit.mean():.1f} ({len(outcome.hit)})"


def print_table(options: argparse.Namespace, outcomes: dict[tuple[str, Cell], Outcome]) -> None:
    """Shares of hits, in per cent, and of how many."""
    heads = [("real", k) for k in options.sizes if k <= 9] + [("drawn", k) for k in options.sizes]
    heads = [head for head in heads if head[0] in options.sources]
    print("| profile | engine | family | " + " | ".join(f"{source} {k}x{k}" for source, k in heads) + " |")
    print("|---" * (len(heads) + 3) + "|")
    for profile, engine, family in itertools.product(options.profiles, options.engines, options.families):
        row = [Cell(profile, family, *head) for head in heads]
        if not any((engine, cell) in outcomes for cell in row):
            continue
        cells = [
            share(outcomes.get((engine, cell))) if identified(family, cell.size) else "not identifiable"
            for cell in row
        ]
        print(f"| {profile} | {engine} | {family} | " + " | ".join(cells) + " |")


def print_noises(outcomes: dict[tuple[str, Cell], Outcome]) -> None:
    """Drawn kernels by how much noise is in them."""
    print("\n| drawn kernels with noise of | " + " | ".join(f"{noise:.0%}" for noise in NOISES) + " |")
    print("|---" * (len(NOISES) + 1) + "|")
    for engine in dict.fromkeys(engine for engine, _ in outcomes):
        hits = [o.hit for (other, cell), o in outcomes.items() if (other, cell.source) == (engine, "drawn")]
        if hits:
            by_noise = [np.concatenate([h[i :: len(NOISES)] for h in hits]) for i in range(len(NOISES))]
            cells = [f"{100 * hit.mean():.1f} ({len(hit)})" for hit in by_noise]
            print(f"| {engine} | " + " | ".join(cells) + " |")


def print_master(options: argparse.Namespace, outcomes: dict[tuple[str, Cell], Outcome]) -> None:
    """Best family's R² of each master key filter beside what it has to reach, and its optimum hit or not."""
    print("\n| master key filter | " + " | ".join(str(i + 1) for i in range(8)) + " | at the optimum |")
    print("|---" * 10 + "|")
    print("| to be reached | " + " | ".join(f"{r2:.3f}" for r2 in MASTER_R2) + " | |")
    for profile, engine in itertools.product(options.profiles, options.engines):
        keys = [(engine, Cell(profile, family, "master", 7)) for family in REFERENCE_FAMILIES]
        found = [outcomes[key] for key in keys if key in outcomes]
        if found:
            best = [f"{1 - cost:.3f}" for cost in np.min([o.cost for o in found], axis=0)]
            hit = np.array([o.hit for o in found])
            print(f"| {profile}, {engine} | " + " | ".join(best) + f" | {hit.sum()} of {hit.size} |")
    everything = [1 - o.cost for (_, cell), o in outcomes.items() if cell.source == "master"]
    print("| best of all | " + " | ".join(f"{r2:.3f}" for r2 in np.max(everything, axis=0)) + " | |")


def print_misses(outcomes: dict[tuple[str, Cell], Outcome]) -> None:
    for (engine, cell), outcome in outcomes.items():
        for i in np.flatnonzero(~outcome.hit):
            point = np.array2string(outcome.x[i], precision=3, suppress_small=True)
            where = f"{engine} {' '.join(map(str, cell))} #{i}"
            print(f"{where}: {outcome.cost[i]:.5f} for {outcome.best[i]:.5f} at {point}")


def print_heading(options: argparse.Namespace) -> None:
    import jax

    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    machine = models[0].split(":")[1].strip() if models else platform.machine()
    print("# Accuracy of the fitter\n")
    given = [f"--{name} {' '.join(map(str, getattr(options, name)))}" for name in CHOICES]
    given += [
        f"--kernels {options.kernels} --drawn {options.drawn}",
        *[f"--effort {options.effort}"] * (options.effort != "default"),
    ]
    print(f"    python benchmarks/accuracy.py {' '.join(given).strip()}\n")
    print((__doc__ or "").split("\n\n")[2].strip() + "\n")
    print(
        f"{machine}; Python {platform.python_version()}, jax {jax.__version__}; {time.strftime('%d %B %Y')}."
    )
    print("Shares in per cent, and in brackets of how many kernels.\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=list(REFERENCE_FAMILIES), default=FAMILIES)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=PROFILES)
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES, INTERPRETED], default=ENGINES)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument(
        "--kernels", type=int, default=100, help="real kernels of each size; of 7x7 five times"
    )
    parser.add_argument("--drawn", type=int, default=60, help="drawn kernels of each; of 7x7 three times")
    parser.add_argument("--effort", default="default", choices=EFFORTS, help="how hard to search")
    parser.add_argument("--misses", action="store_true", help="list every miss")
    parser.add_argument("--reference-only", action="store_true", help="compute and cache, compare nothing")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "dogfit-benchmarks")
    return parser.parse_args()


def main() -> None:
    import jax

    options = parse()
    options.cache.mkdir(parents=True, exist_ok=True)
    wanted = list(itertools.product(options.profiles, options.families, options.sources, options.sizes))
    if "master" in options.sources:
        wanted += itertools.product(options.profiles, ELLIPTIC, ["master"], [7])
    cells = [
        Cell(*cell)
        for cell in dict.fromkeys(wanted)
        if not (cell[0] == "discrete" and REFERENCE_FAMILIES[cell[1]].elliptic)
    ]
    kernels = {cell: kernels_of(cell, options) for cell in cells if identified(cell.family, cell.size)}
    kernels = {cell: piece for cell, piece in kernels.items() if len(piece)}
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    context, outcomes = multiprocessing.get_context("spawn"), {}
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        fits = {
            cell: [pool.submit(_reference_fits, task) for task in tasks_of(cell, piece, options.cache)]
            for cell, piece in kernels.items()
        }
        last = None
        for cell, futures in fits.items():
            if cell[:2] != last:
                # A process may map only so many pieces of memory, and compiled programs take thousands.
                jax.clear_caches()
            last, start = cell[:2], time.perf_counter()
            best, x = (np.concatenate(part) for part in zip(*(f.result() for f in futures), strict=True))
            say(f"{' '.join(map(str, cell))}: {len(best)} kernels, {time.perf_counter() - start:.0f} s")
            if options.reference_only:
                continue
            for engine in options.engines:
                if serves(engine, cell):
                    piece, effort = kernels[cell], options.effort
                    if engine == INTERPRETED:
                        cost = interpreted(cell, piece, effort)
                    else:
                        cost = unexplained(cell, piece, engine, effort)
                    outcomes[engine, cell] = compare(kernels[cell], cost, best, x)
                    say(f"  {engine}: {share(outcomes[engine, cell])}")
    if outcomes:
        print_heading(options)
        print_table(options, outcomes)
    if outcomes and "drawn" in options.sources:
        print_noises(outcomes)
    if outcomes and "master" in options.sources:
        print_master(options, outcomes)
    if options.misses:
        print_misses(outcomes)


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
