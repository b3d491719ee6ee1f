"""Does the default tier of tests catch defects? Small wrong changes to the code, one at a time.

    python benchmarks/mutants.py                  every mutant (an hour and more on two cores)
    python benchmarks/mutants.py --only atomic    those whose file or description matches
    python benchmarks/mutants.py --near           only the tests nearest to each: a quick look
    python benchmarks/mutants.py --check          only that every mutant still applies to the code

Each mutant of `mutants/*.toml` replaces one piece of text in a copy of the checkout. The tests nearest to it
run first; where none of them fails, the whole default tier does. A mutant that no test fails on has survived,
and is named. The whole tier runs once before, on an unchanged copy: what fails there would catch everything.

The mutants are written by hand: the operators of mutmut and cosmic-ray make thousands of syntactic changes,
each of which would cost a run of the tests, and know nothing of a lost fsync or a dropped mask.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
MUTANTS = Path(__file__).parent / "mutants"
# Its tests fail on every mutant: the text to be replaced is gone.
OWN_TESTS = "tests/test_mutants.py"
# Nobody waits longer for a run of tests; a mutant that makes one hang is caught by it.
PATIENCE_S = 1800
# Exit code of pytest, also where all tests nearest to a mutant are slow ones.
NO_TESTS_RAN = 5
# A mutant changes few of the programs that the tests compile: all runs share the others.
COMPILE_CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}


@dataclass(frozen=True)
class Mutant:
    """One wrong change.

    Attributes:
      room: part of the code that it is in, the name of its file of mutants.
      what: defect, in words.
      file: file that is changed, relative to the checkout.
      before: text to be replaced, which stands in the file once.
      after: what takes its place.
      tests: test files, or globs of them, that run first.
    """

    room: str
    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def apply(self, root: Path) -> str:
        """Make the change and return the text as it was.

        Raises:
          ValueError: if the text to be replaced does not stand in the file exactly once.
        """
        if fault := misfit(root, self):
            raise ValueError(fault)
        path = root / self.file
        text = path.read_text()
        path.write_text(text.replace(self.before, self.after))
        return text


@dataclass(frozen=True)
class Outcome:
    """Verdict of the tests on a mutant: the first that failed, or None where all passed."""

    mutant: Mutant
    caught_by: str | None
    seconds: float


def misfit(root: Path, mutant: Mutant) -> str:
    """Why a mutant does not apply to a checkout; empty if it does."""
    path = root / mutant.file
    count = path.read_text().count(mutant.before) if path.is_file() else 0
    return (
        ""
        if count == 1
        else f"{mutant.file} holds {mutant.before!r} {count} times, not once; mend the mutant"
    )


def read_mutants(folder: Path = MUTANTS) -> list[Mutant]:
    """Every mutant of the files in a folder."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        content = tomllib.loads(path.read_text())
        for entry in content["mutant"]:
            tests = tuple(entry.pop("tests", content["tests"]))
            found.append(Mutant(path.stem, tests=tests, **entry))
    return found


def copy_checkout(target: Path) -> Path:
    """Copy what git knows, and the compiled search; `shared/` beside it stays in reach."""
    copy = target / "dogfit"
    copy.mkdir(parents=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    pack = subprocess.Popen(
        ["tar", "--create", "--null", "--files-from=-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert pack.stdin is not None
    with subprocess.Popen(["tar", "--extract"], cwd=copy, stdin=pack.stdout):
        pack.stdin.write(listed)
        pack.stdin.close()
    for library in ROOT.glob("kernels/native/*.so"):
        (copy / "kernels/native" / library.name).write_bytes(library.read_bytes())
    if (ROOT.parent / "shared").is_dir():
        (target / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return copy


def first_failure(copy: Path, tests: Sequence[str], processes: str = "0") -> str | None:
    """The first test of the default tier that fails, or None; a run that hangs counts as a failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-n",
        processes,
        "--limit",
        "0",
        "-p",
        "no:cacheprovider",
        f"--ignore={copy / OWN_TESTS}",
        *tests,
    ]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= COMPILE_CACHE | {"JAX_COMPILATION_CACHE_DIR": str(copy.parents[1] / "compiled")}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        return f"no end within {PATIENCE_S} s"
    if done.returncode in (0, NO_TESTS_RAN):
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    return failed.group(1) if failed else f"exit code {done.returncode}: {done.stdout.strip()[-200:]}"


def build_native(copy: Path) -> None:
    """Compile the C++ search of a copy in place."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=copy,
        check=True,
        capture_output=True,
    )


def try_mutant(copy: Path, mutant: Mutant, near_only: bool) -> Outcome:
    """Run the nearest tests on a copy with the change made, then, if wanted, all of the default tier."""
    start = time.perf_counter()
    compiled = "csrc" in mutant.file
    text = mutant.apply(copy)
    try:
        if compiled:
            build_native(copy)
        near = [str(path) for pattern in mutant.tests for path in sorted(copy.glob(f"tests/{pattern}"))]
        caught_by = first_failure(copy, near) if near else None
        if caught_by is None and not near_only:
            caught_by = first_failure(copy, [])
    except subprocess.CalledProcessError:
        caught_by = "the compiler"
    finally:
        (copy / mutant.file).write_text(text)
        if compiled:
            build_native(copy)
    return Outcome(mutant, caught_by, time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression for file or description")
    parser.add_argument("--near", action="store_true", help="run only the tests nearest to each mutant")
    parser.add_argument("--check", action="store_true", help="only check that every mutant applies")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    arguments = parser.parse_args()
    mutants = [m for m in read_mutants() if re.search(arguments.only, f"{m.file} {m.what}")]
    with tempfile.TemporaryDirectory(prefix="dogfit-mutants-") as folder:
        copies: Queue[Path] = Queue()
        for number in range(arguments.jobs):
            copies.put(copy_checkout(Path(folder) / str(number)))
        if arguments.check:
            copy = copies.get()
            faults = [fault for mutant in mutants if (fault := misfit(copy, mutant))]
            print("\n".join([*faults, f"{len(mutants) - len(faults)} of {len(mutants)} mutants apply"]))
            return int(bool(faults))

        if failed := first_failure(copies.queue[0], [], processes="auto"):
            print(f"nothing is changed and {failed} fails: mend that first", file=sys.stderr)
            return 1

        def run(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                outcome = try_mutant(copy, mutant, arguments.near)
            finally:
                copies.put(copy)
            print(
                f"{mutant.room}: {mutant.what}: {outcome.caught_by or 'SURVIVED'}",
                file=sys.stderr,
                flush=True,
            )
            return outcome

        with ThreadPoolExecutor(arguments.jobs) as pool:
            outcomes = list(pool.map(run, mutants))
    caught = sum(outcome.caught_by is not None for outcome in outcomes)
    print("| room | defect | caught by |\n|---|---|---|")
    for outcome in outcomes:
        print(f"| {outcome.mutant.room} | {outcome.mutant.what} | {outcome.caught_by or '**survived**'} |")
    print(f"\n{caught} of {len(outcomes)} caught ({caught / max(len(outcomes), 1):.0%}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
