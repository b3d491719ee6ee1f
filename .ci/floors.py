"""Print the lowest releases that pyproject.toml allows, as pins: `python .ci/floors.py > floors.txt`."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
    if not re.fullmatch(r"[\w.-]+>=[\w.]+", requirement):
        sys.exit(f"{requirement!r} has no plain lower bound; write it as name>=version")
    print(requirement.replace(">=", "=="))
