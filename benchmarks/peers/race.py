"""The race: each fitter in its process, prepared one after another, then timed in turns."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peers.common import Family, cost, normalised
from peers.worker import FitterError, Run, Worker

NUMBERS_OF_STARTS = (1, 2, 3, 5, 8, 10, 15, 20, 30, 40)


@dataclass(frozen=True)
class Entry:
    """A fitter in the race."""

    label: str
    module: str
    fitter: str
    options: Mapping[str, Any]
    kernels: int
    """Timed per round."""
    judged: int = 10_000
    """At most so many kernels decide its share and its number of starts."""
    packages: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether it is dogfit, which needs no starts."""
        return self.module == "peers.own"

    @property
    def profile(self) -> str:
        """Of the Gaussians it fits."""
        return "sampled" if self.module == "peers.cpufit" else self.options.get("profile", "integrated")


@dataclass
class Result:
    """Measurements of an entry."""

    entry: Entry
    starts: dict[str, int]
    optimal: dict[str, np.ndarray]
    """Which of the judged kernels are at the optimum `[n]`, by family."""
    compile_s: float
    runs: list[Run] = field(default_factory=list)
    fitting_mb: float = 0.0

    def rates(self) -> list[float]:
        """Kernels a second."""
        return [self.entry.kernels / run.seconds for run in self.runs]

    def core_rates(self) -> list[float]:
        """Kernels per second of processor time."""
        return [self.entry.kernels / run.cpu_seconds for run in self.runs]


@dataclass(frozen=True)
class Task:
    """Kernels, starts and best costs of one profile."""

    families: tuple[Family, ...]
    images: Callable[[Family, np.ndarray], np.ndarray]
    """Basis images at points."""
    sample: np.ndarray
    timed: np.ndarray
    sample_starts: dict[str, np.ndarray]
    timed_starts: dict[str, np.ndarray]
    best: dict[str, np.ndarray]
    """Costs of the sample, of an energy of 1."""
    nodes: dict[str, int]
    """How many of the starts are dictionary nodes, by family; the rest is for who needs more."""

    def optimal(self, points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Which kernels are at the optimum by the first start, the first two, ...: `[s, n]` by family."""
        found = {}
        for family in self.families:
            if family.name not in points:
                continue
            mine = points[family.name]
            unit = normalised(self.sample[: mine.shape[1]])
            costs = np.stack([cost(unit, self.images(family, start)) for start in mine])
            costs = np.minimum.accumulate(np.where(np.isfinite(costs), costs, 1.0))
            found[family.name] = costs <= 1.001 * self.best[family.name][: len(unit)] + 1e-4
        return found


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def _prepare(entry: Entry, worker: Worker, task: Task, target: Result | None) -> Result:
    """Compile; find how many starts per family reach the target's share of the same kernels."""
    few = {name: starts[:1, :8] for name, starts in task.sample_starts.items()}
    first, second = (worker.fit(task.sample[:8], few).seconds for _ in range(2))
    judged = min(entry.judged, len(task.sample))
    sample = task.sample[:judged]
    # One kernel less than dogfit: nobody is to pay with tens of starts for a single hard one.
    wanted = {
        name: 1.0 if target is None else target.optimal[name][:judged].mean() - 1.0 / judged
        for name in task.best
    }
    begin = {name: starts[: task.nodes[name], :judged] for name, starts in task.sample_starts.items()}
    points = worker.fit(sample, begin).points
    optimal = task.optimal(points)
    short = [name for name, found in optimal.items() if found[-1].mean() < wanted[name] - 1e-9]
    if short and not entry.ours:
        say(f"{entry.label}: more starts for {', '.join(short)}")
        rest = {
            name: starts[task.nodes[name] :, :judged] if name in short else starts[:1, :judged]
            for name, starts in task.sample_starts.items()
        }
        more = worker.fit(sample, rest).points
        optimal |= task.optimal({name: np.concatenate([points[name], more[name]]) for name in short})
    result = Result(entry, {}, {}, max(first - second, 0.0))
    for name, by_starts in optimal.items():
        shares = {s: by_starts[s - 1].mean() for s in NUMBERS_OF_STARTS if s <= len(by_starts)}
        least = min(wanted[name], max(shares.values()))
        result.starts[name] = min(s for s, share in shares.items() if share >= least - 1e-9)
        result.optimal[name] = by_starts[result.starts[name] - 1]
    return result


def run_race(
    entries: Sequence[Entry], tasks: Mapping[str, Task], rounds: int
) -> tuple[list[Result], dict[str, str]]:
    """Results in the order of entries, and why the others have none.

    The first of dogfit's entries of a profile sets the share that the rest try to reach.
    """
    results: dict[str, Result] = {}
    workers: dict[str, Worker] = {}
    failed: dict[str, str] = {}
    targets: dict[str, Result] = {}

    def drop(entry: Entry, error: FitterError) -> None:
        say(f"{entry.label}: {error}")
        failed[entry.label] = str(error)
        results.pop(entry.label, None)

    for entry in entries:
        try:
            worker = Worker(entry.module, entry.fitter, entry.options)
            workers[entry.label] = worker
            task = tasks[entry.profile]
            result = _prepare(entry, worker, task, targets.get(entry.profile))
        except FitterError as error:
            drop(entry, error)
            continue
        results[entry.label] = result
        if entry.ours:
            targets.setdefault(entry.profile, result)
        say(f"{entry.label}: compiled in {result.compile_s:.1f} s, starts {tuple(result.starts.values())}")
    for turn in range(rounds):
        order = list(results.values())
        for result in order if turn % 2 == 0 else reversed(order):
            entry, task = result.entry, tasks[result.entry.profile]
            starts = {n: task.timed_starts[n][:s, : entry.kernels] for n, s in result.starts.items()}
            try:
                run = workers[entry.label].fit(task.timed[: entry.kernels], starts)
                result.fitting_mb = workers[entry.label].fitting_mb()
            except FitterError as error:
                drop(entry, error)
                continue
            result.runs.append(run)
            say(f"round {turn + 1}, {entry.label}: {result.rates()[-1]:,.0f} kernels/s")
    for worker in workers.values():
        worker.stop()
    return list(results.values()), failed
