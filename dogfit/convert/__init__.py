"""Checkpoints of other formats, converted to safetensors: `python -m dogfit.convert FILE [OUT]`."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.convert.api import Converted, convert

_HOMES = {"Converted": "dogfit.convert.api", "convert": "dogfit.convert.api"}
__all__ = ["Converted", "convert"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
