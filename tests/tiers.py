"""Tiers of tests: the default one is quick, `--all` is everything.

A pytest plugin that `conftest.py` loads: which tests run, and how long one may take.
"""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

MAPS = Path("/proc/self/maps")
# Each compiled program keeps dozens of memory maps; where a process runs out of them (65,530 is Linux's usual
# limit), LLVM crashes in the next compilation.
MOST_MAPS = 40_000

hypothesis.settings.register_profile("default", max_examples=10, deadline=None, derandomize=True)
hypothesis.settings.register_profile("all", max_examples=50, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption(
        "--limit",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="longest time for a test of the default tier; 0: no limit (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("all" if config.getoption("all") else "default")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(TimeLimit(config), "time-limit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out slow tests, unless all are wanted."""
    if not config.getoption("all"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]


class TimeLimit:
    """Failure of a run in which a test of the default tier took too long."""

    def __init__(self, config: pytest.Config) -> None:
        self.limit_s = 0.0 if config.getoption("all") else config.getoption("limit")
        self.late: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and 0 < self.limit_s < report.duration:
            self.late.append(f"{report.nodeid}: {report.duration:.1f} s")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.late and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test in self.late:
            terminalreporter.write_line(
                f"LATE {test}, over the {self.limit_s:g} s of the default tier; speed it up or mark it slow",
                red=True,
            )


@pytest.fixture(scope="module", autouse=True)
def optimization(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile as users do, under `--all`, in modules marked `optimized`; see `conftest.py` for the others."""
    wanted = request.config.getoption("all") and request.node.get_closest_marker("optimized") is not None
    if wanted:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    if wanted:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def memory_maps() -> Iterator[None]:
    """Drop compiled programs when the process comes near its limit of memory maps."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
