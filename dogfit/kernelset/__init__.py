"""Depthwise kernels, and the layer and channel of each."""

from typing import TYPE_CHECKING

from dogfit.lazy import lazy_names

if TYPE_CHECKING:
    from dogfit.kernelset.groups import Flag, KernelGroup
    from dogfit.kernelset.kernelset import KernelSet
    from dogfit.kernelset.layers import Layer, Skipped, Source

_HOMES = {
    "Flag": "dogfit.kernelset.groups",
    "KernelGroup": "dogfit.kernelset.groups",
    "KernelSet": "dogfit.kernelset.kernelset",
    "Layer": "dogfit.kernelset.layers",
    "Skipped": "dogfit.kernelset.layers",
    "Source": "dogfit.kernelset.layers",
}
__all__ = ["Flag", "KernelGroup", "KernelSet", "Layer", "Skipped", "Source"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
