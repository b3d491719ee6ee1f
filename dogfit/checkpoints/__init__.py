"""Depthwise kernels from checkpoints: local safetensors files and folders, and hub repositories."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.checkpoints.hub_config import HubConfig, hub_from_environment
    from dogfit.checkpoints.load import load_each, load_kernels

_HOMES = {
    "HubConfig": "dogfit.checkpoints.hub_config",
    "hub_from_environment": "dogfit.checkpoints.hub_config",
    "load_each": "dogfit.checkpoints.load",
    "load_kernels": "dogfit.checkpoints.load",
}
__all__ = ["HubConfig", "hub_from_environment", "load_each", "load_kernels"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
