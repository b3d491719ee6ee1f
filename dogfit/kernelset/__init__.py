"""Kernels and where each came from."""

from dogfit.kernelset.kernelset import Flag, KernelGroup, KernelSet, Layer, Skipped, Source

__all__ = ["Flag", "KernelGroup", "KernelSet", "Layer", "Skipped", "Source"]
