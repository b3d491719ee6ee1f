"""The network that `python -m dogfit.run` looks at when it is given none. See README.md beside this file."""

from pathlib import Path

PATH = Path(__file__).parent
"""Folder of the embedded model: `model.safetensors` and its model card `README.md`."""
