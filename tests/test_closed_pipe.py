"""Output that nobody reads any more ends no command."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from dogfit.closed_pipe import tolerate_closed_pipe
with tolerate_closed_pipe():
    for number in range(20_000):
        print("line", number)
        print("line", number, file=sys.stderr)
open(sys.argv[1], "w").write("done")
"""


def first_line(*words):
    """Start a command, read one line of its output, close the pipe, and wait for the end."""
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.stdout.close()
    _, errors = process.communicate(timeout=120)
    return line, errors, process.returncode


def test_tolerate_closed_pipe_goes_on(tmp_path):
    line, errors, code = first_line("-c", SCRIPT, str(tmp_path / "end"))
    assert (line, code) == ("line 0\n", 0)
    assert "Error" not in errors
    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.slow
def test_tolerate_closed_pipe_on_both_streams(tmp_path):
    """Standard error may be that pipe too, as under `2>&1 | head -1`."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "end")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["dogfit.run", "dogfit.convert"])
def test_help_into_a_closed_pipe(module):
    """`--help | head -1` prints a line and no traceback."""
    line, errors, code = first_line("-m", module, "--help")
    assert line.strip() != "" or line == "\n"
    assert (errors, code) == ("", 0)
