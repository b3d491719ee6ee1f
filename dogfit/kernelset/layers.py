"""Layers that kernels belong to, and the checkpoints they were read from."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True)
class Layer:
    """One depthwise layer of a checkpoint."""

    name: str
    """Tensor name, as in the file."""
    model: str
    """Model the layer belongs to."""
    position: int
    """Order in the network, from 0 within the model."""
    stage: int | None
    """Stage number as the checkpoint counts it; None where names do not say."""
    block: int | None
    """Block number within the stage, as the checkpoint counts it; None where names do not say."""
    size: int
    """Kernel size k, in taps."""
    channels: int
    """Number of kernels."""
    dtype: str
    """Type in the file, as safetensors names it: F32, F16, BF16, ..."""
    stride: int | None = None
    """Stride of the convolution; None where unknown, since checkpoints do not store it."""
    dilation: int | None = None
    """Dilation of the convolution; None where unknown, since checkpoints do not store it."""
    shape: tuple[int, ...] = ()
    """Shape in the file, which tells the layout too: (C, k, k), (C m, 1, k, k), (k, k, 1, C m), (k, k, C, m)
    or (C, k, k, 1). Output channel c m + j is the j-th of input channel c. PyTorch's if not given."""

    def __post_init__(self) -> None:
        shape = tuple(self.shape) or (self.channels, 1, self.size, self.size)
        if math.prod(shape) != self.channels * self.size**2:
            kernels = f"{self.channels} kernels of {self.size}x{self.size}"
            raise ValueError(f"layer {self.name!r}: {kernels} cannot have shape {shape}")
        object.__setattr__(self, "shape", shape)

    def to_stored(self, kernels: Float32[np.ndarray, "c k k"]) -> Float32[np.ndarray, "..."]:
        """Arrange kernels of this layer in the shape and layout of the file.

        Args:
          kernels: taps `[channels, size, size]`.

        Returns:
          The same taps, of shape `shape`.
        """
        # Channels-last tensors begin (k, k, ...); the others begin with all channels.
        if self._channels_last:
            kernels = np.moveaxis(kernels, 0, 2)
        return np.ascontiguousarray(kernels.reshape(self.shape))

    def from_stored(self, values: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "c k k"]:
        """Arrange the values of the file's tensor as kernels, output channels first.

        Args:
          values: an array of shape `shape`, or kernels `[channels, size, size]`, which are returned as
            they are.

        Returns:
          Taps `[channels, size, size]`.

        Raises:
          ValueError: if `values` has another shape.
        """
        expected = (self.channels, self.size, self.size)
        if values.shape == expected:
            return values
        if values.shape != self.shape:
            raise ValueError(
                f"layer {self.name!r}: expected shape {expected} or {self.shape}, got {values.shape}"
            )
        if self._channels_last:
            values = np.moveaxis(values.reshape(self.size, self.size, self.channels), 2, 0)
        return np.ascontiguousarray(values.reshape(expected))

    @property
    def _channels_last(self) -> bool:
        return len(self.shape) == 4 and self.shape[:2] == (self.size, self.size)


@dataclass(frozen=True)
class Source:
    """One checkpoint that was read, and how much of it."""

    name: str
    """Model name, equal to `Layer.model`."""
    revision: str | None
    """Commit on the hub; None for local files."""
    bytes_read: int
    """Bytes that were read."""
    bytes_total: int
    """Bytes of the checkpoint's files."""
    license: str | None = None
    """Licence that the hub or the file's metadata names; None where neither does."""


@dataclass(frozen=True)
class Skipped:
    """A tensor that resembles a depthwise kernel and was left out."""

    model: str
    """Model the tensor belongs to."""
    name: str
    """Tensor name, as in the file."""
    shape: tuple[int, ...]
    """Shape in the file."""
    reason: str
    """Why it was left out, for people."""
    is_ambiguous: bool = False
    """True if it may be depthwise and an include pattern takes it."""
