"""Kernels of one size, and the statistics by which broken ones are recognized."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, Int32

from dogfit.normalize import BLOCK_ROWS, ROWS, Flag, Normalized, normalize

__all__ = ["Flag", "KernelGroup", "group_kernels"]


@dataclass(frozen=True)
class KernelGroup:
    """All kernels of one size, ordered by layer, then channel."""

    kernels: Float32[np.ndarray, "n k k"]
    """Raw taps in correlation order: rows are y (down), columns x (to the right)."""
    layer: Int32[np.ndarray, "n"]
    """Index into `KernelSet.layers`."""
    channel: Int32[np.ndarray, "n"]
    """Output channel within the layer."""
    mean: Float32[np.ndarray, "n"]
    """Mean of the taps."""
    norm: Float32[np.ndarray, "n"]
    """Frobenius norm of the centred kernel."""
    flag: Int8[np.ndarray, "n"]
    """Condition of the kernel, see `Flag`."""

    def normalized(self) -> Float32[np.ndarray, "n k k"]:
        """Centre the kernels and scale them to unit norm.

        Returns:
          Taps `[n, k, k]`; rows whose flag is not OK are zero.
        """
        unit = np.empty_like(self.kernels)
        for rows in _blocks(len(unit)):
            unit[rows] = _normalize(self.kernels[rows]).taps.reshape(unit[rows].shape)
        return unit


def group_kernels(layers: Sequence[tuple[int, Float32[np.ndarray, "c k k"]]]) -> KernelGroup:
    """Join the kernels of layers of one kernel size.

    Args:
      layers: index of each layer and its taps `[channels, size, size]`, at least one.

    Returns:
      The kernels in the order given, with their statistics.
    """
    kernels = np.concatenate([np.asarray(taps, np.float32) for _, taps in layers])
    blocks = [_statistics(kernels[rows]) for rows in _blocks(len(kernels))]
    mean, norm, flag = (np.concatenate(column) for column in zip(*blocks, strict=True))
    counts = [len(taps) for _, taps in layers]
    layer = np.repeat(np.array([index for index, _ in layers], np.int32), counts)
    channel = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    return KernelGroup(kernels, layer, channel, mean, norm, flag)


def _statistics(kernels: Float32[np.ndarray, "n k k"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, norm about the mean, and flag of each kernel."""
    _, mean, norm, flag = _normalize(kernels)
    lost = flag == Flag.NONFINITE
    mean, norm = np.where(lost, np.nan, mean), np.where(lost, np.nan, np.where(flag == Flag.OK, norm, 0))
    return mean.astype(np.float32), norm.astype(np.float32), flag


def _normalize(kernels: Float32[np.ndarray, "n k k"]) -> Normalized:
    rows = kernels.reshape(len(kernels), kernels.shape[-1] ** 2).astype(np.float64)
    return normalize(rows, ROWS, dtype=kernels.dtype)


def _blocks(n: int) -> Iterator[slice]:
    """Slices of at most `BLOCK_ROWS` rows that cover n rows; one empty slice for none."""
    return (slice(start, start + BLOCK_ROWS) for start in range(0, max(n, 1), BLOCK_ROWS))
