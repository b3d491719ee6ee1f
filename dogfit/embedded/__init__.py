"""Network that `python -m dogfit.run` analyses when it is given none; README.md here is its model card."""

from pathlib import Path

PATH = Path(__file__).parent
"""Folder of the embedded model: `model.safetensors` and its model card `README.md`."""
