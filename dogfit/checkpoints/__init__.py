"""Depthwise kernels from checkpoints: local safetensors files and folders, and hub repositories."""

from dogfit.checkpoints.load import load_kernels

__all__ = ["load_kernels"]
