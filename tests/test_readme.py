"""The README keeps its word: its code runs, its links lead somewhere, its options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND_PAGE = (ROOT / "dogfit/docs/command.md").read_text()
TEXT = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_readme_is_short():
    assert len(TEXT.split()) < 700


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
@pytest.mark.slow
def test_readme_example_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_readme_has_an_example():
    assert len(EXAMPLES) == 1


def test_readme_links_lead_to_files():
    links = re.findall(r"\]\((?!https://)([^)]+)\)", TEXT)
    assert links
    for name in links:
        assert (ROOT / name).is_file(), name
    assert all(path.stat().st_size < 200_000 for path in (ROOT / "benchmarks/figures").iterdir())


def test_readme_options_exist():
    help_text = "".join(
        subprocess.run(
            [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for module in ("dogfit.run", "dogfit.convert")
    )
    for option in set(re.findall(r"--[a-z][a-z-]+", TEXT + COMMAND_PAGE)):
        assert option in help_text, option
