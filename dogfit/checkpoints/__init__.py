"""Depthwise kernels from checkpoints: local safetensors files and folders, and hub repositories."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.checkpoints.load import load_each, load_kernels

_HOMES = {"load_each": "dogfit.checkpoints.load", "load_kernels": "dogfit.checkpoints.load"}
__all__ = ["load_each", "load_kernels"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
