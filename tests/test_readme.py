"""The README keeps its word: its code runs, its links lead somewhere, its options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_is_short():
    assert TEXT.count("\n") < 150


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.slow
def test_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 2


def test_files_it_names_are_there():
    links = re.findall(r"\]\((?!https://)([^)]+)\)", TEXT)
    scripts = re.findall(r"^    python ([\w/]+\.py)", TEXT, re.MULTILINE)
    assert links
    for name in links + scripts:
        assert (ROOT / name).is_file(), name
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "benchmarks/figures").iterdir())


def test_options_it_names_exist():
    help_text = subprocess.run(
        [sys.executable, "-m", "dogfit.run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    without_scripts = re.sub(r"^    python [\w/]+\.py.*", "", TEXT, flags=re.MULTILINE)
    for option in set(re.findall(r"--[a-z][a-z-]+", without_scripts)):
        assert option in help_text, option
