"""Kernels of one size, and the statistics by which broken ones are recognised."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int8, Int32

ZERO_TAP = 1e-12
# A constant kernel stored in float32 keeps a centred norm of about 1e-7 of its norm.
CONSTANT_RATIO = 1e-6
# Kernels at once in float64: of millions of them, memory should hold one copy.
BLOCK = 65_536


class Flag(enum.IntEnum):
    """Condition of a kernel; only OK rows are normalised, fitted and encoded."""

    OK = 0
    ZERO = 1  # every tap below 1e-12 in absolute value
    CONSTANT = 2  # the taps differ by no more than rounding
    NONFINITE = 3  # a NaN or an infinity among the taps, or a norm beyond float32


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
            ok = (self.flag[rows] == Flag.OK)[:, None, None]
            centered = np.where(ok, self.kernels[rows], 0).astype(np.float64)
            centered -= centered.mean((1, 2), keepdims=True)
            norm = np.sqrt(np.sum(centered**2, (1, 2), keepdims=True))
            unit[rows] = centered / np.where(ok, norm, 1)
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
    with np.errstate(over="ignore", invalid="ignore"):
        taps = kernels.astype(np.float64)
        mean = taps.mean((1, 2))
        norm = np.sqrt(np.sum((taps - mean[:, None, None]) ** 2, (1, 2)))
        energy = np.sqrt(np.sum(taps**2, (1, 2)))
        mean, norm = mean.astype(np.float32), norm.astype(np.float32)
        flag = np.full(len(kernels), Flag.OK, np.int8)
        flag[norm <= CONSTANT_RATIO * energy] = Flag.CONSTANT
        flag[np.abs(kernels).max((1, 2)) < ZERO_TAP] = Flag.ZERO
        flag[~(np.isfinite(norm) & np.isfinite(mean))] = Flag.NONFINITE
    return mean, norm, flag


def _blocks(n: int) -> Iterator[slice]:
    """Slices of at most BLOCK rows that cover n rows; one empty slice for none."""
    return (slice(start, start + BLOCK) for start in range(0, max(n, 1), BLOCK))
