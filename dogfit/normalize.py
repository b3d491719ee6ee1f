"""Centering, unit norm, and the one test of whether a kernel has a shape at all.

Loading, fitting, training and the penalty all decide by `flag_of`, so that a kernel which one of them takes
is taken by the others. `flag_of`, `normalize` and `unit_norm` serve NumPy and JAX arrays alike.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Float32

from dogfit.host_arrays import is_wide, unmasked_array

# Taps that differ by no more than so many units of rounding (eps) of the largest are equal: folding and
# averaging constant kernels leave a few. A power of two, so that the comparison is exact.
ROUNDING_UNITS = 32
# The same for taps with weights: the root of their weighted mean square.
WEIGHTED_UNITS = 4
# Kernels of up to 63x63 have a norm if their largest tap is so many times below the greatest number.
HEADROOM = 64
# Largest tap of a constant kernel that is called zero.
ZERO_TAP = 1e-12
# Rows at once: each step makes a copy, and of millions of kernels one copy is enough.
BLOCK_ROWS = 65_536


class Flag(enum.IntEnum):
    """Condition of a kernel; only OK kernels are normalized, fitted, encoded and penalized."""

    OK = 0
    ZERO = 1  # constant, and every tap below 1e-12 in absolute value
    CONSTANT = 2  # the taps differ by no more than rounding
    NONFINITE = 3  # a NaN or an infinity among the taps, or so large that the norm may overflow


class Layout(NamedTuple):
    """Place of the taps in an array of n kernels.

    Attributes:
      sum: sum over the taps, `[n]`.
      max: greatest tap, `[n]`; in JAX without a derivative, which scaling has none of.
      expand: axes added to an array `[n]`, to combine it with the kernels.
    """

    sum: Callable[[Any], Any]
    max: Callable[[Any], Any]
    expand: Callable[[Any], Any]


ROWS = Layout(lambda x: x.sum(axis=1), lambda x: x.max(axis=1), lambda x: x[:, None])
"""`[n, taps]`."""


class Normalized(NamedTuple):
    """Kernels about their mean and of unit norm, and what undoes that.

    Attributes:
      taps: laid out as the kernels; zero where the flag is not OK. With weights, times their roots.
      mean: of the taps, `[n]`; meaningless where the flag is NONFINITE.
      norm: Frobenius norm about the mean, `[n]`; meaningless where the flag is not OK.
      flag: int8 `[n]`, see `Flag`.
    """

    taps: Any
    mean: Any
    norm: Any
    flag: Any


def flag_of(least: Any, greatest: Any, dtype: Any = None) -> Any:
    """Decide from the least and the greatest tap of each kernel whether it has a shape.

    Neither depends on the order of the taps, and near the limits the arithmetic is exact. So all callers
    decide alike to the bit, and alike for a kernel and its mirror images.

    Args:
      least: `[n]`, NaN where a tap is NaN.
      greatest: `[n]`, likewise.
      dtype: type in which the taps were stored, if these are wider.

    Returns:
      `Flag` of each kernel, int8 `[n]`.
    """
    xp = greatest.__array_namespace__()
    limits = xp.finfo(greatest.dtype if dtype is None else dtype)
    rounding = ROUNDING_UNITS * float(limits.eps)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = xp.maximum(-least, greatest)
        # Differences below the smallest normal number are rounded away.
        equal = (greatest - least <= rounding * largest) | (largest < float(limits.tiny) / rounding)
        flag = xp.where(equal, xp.where(largest < ZERO_TAP, int(Flag.ZERO), int(Flag.CONSTANT)), int(Flag.OK))
        # NaN is not less.
        return xp.where(largest <= float(limits.max) / HEADROOM, flag, int(Flag.NONFINITE)).astype("int8")


def normalize(taps: Any, layout: Layout, *, weights: Any = None, dtype: Any = None) -> Normalized:
    """Center kernels and scale them to unit norm.

    Kernels of any magnitude are alike: they are scaled before they are squared.

    Args:
      taps: kernels in any layout, float32 or float64.
      layout: the place of the taps.
      weights: of the taps, laid out likewise. They count relatively, as many taps as have any: a tap of
        weight 0 is left out. A kernel with a weight below 0 or NaN counts as not finite.
      dtype: type in which the taps were stored, if these are wider.

    Returns:
      Taps of zero mean (with weights, of zero weighted mean) and unit norm, and the flags that say which
      kernels have any.
    """
    xp = taps.__array_namespace__()
    used: Any = None if weights is None else weights > 0

    def counted(values: Any, otherwise: float) -> Any:
        return values if used is None else xp.where(used, values, otherwise)

    with np.errstate(over="ignore", invalid="ignore"):
        greatest, least = layout.max(counted(taps, -xp.inf)), -layout.max(counted(-taps, -xp.inf))
    flag = flag_of(least, greatest, dtype)
    if weights is not None:
        flag = xp.where(layout.max(xp.where(weights >= 0, 0, 1)) > 0, xp.int8(Flag.NONFINITE), flag)
    finite = layout.expand(flag != Flag.NONFINITE)
    largest = xp.maximum(-least, greatest)
    scale = xp.where((flag != Flag.NONFINITE) & (largest > 0), largest, 1.0)
    scaled = xp.where(finite, counted(taps, 0.0), 0.0) / layout.expand(scale)
    if weights is None:
        mean = layout.sum(scaled) / (scaled.size // max(flag.size, 1))
        centered = scaled - layout.expand(mean)
        energy = layout.sum(centered**2)
    else:
        number = layout.sum(used.astype(taps.dtype))
        relevant = xp.where(finite, counted(weights, 0.0), 0.0)
        total = layout.sum(relevant)
        total = xp.where(total > 0, total, 1.0)
        mean = layout.sum(relevant * scaled) / total
        relative = relevant * layout.expand(number / total)
        centered = xp.sqrt(relative) * (scaled - layout.expand(mean))
        energy = layout.sum(centered**2)
        # Differences among taps of next to no weight are no shape.
        equal = energy <= number * (WEIGHTED_UNITS * float(xp.finfo(taps.dtype).eps)) ** 2
        flag = xp.where((flag == Flag.OK) & equal, xp.int8(Flag.CONSTANT), flag)
    ok = flag == Flag.OK
    norm = xp.sqrt(xp.where(ok, energy, 1.0))
    unit = xp.where(layout.expand(ok), centered / layout.expand(norm), 0.0)
    return Normalized(unit, mean * scale, norm * scale, flag)


def normalize_rows(
    kernels: Float[ArrayLike, "n k k"], size: int | None = None
) -> tuple[Float32[np.ndarray, "n taps"], Bool[np.ndarray, " n"]]:
    """Flatten kernels, remove their means and scale them to unit norm.

    Args:
      kernels: `[n, k, k]`.
      size: the k they must have; any if None.

    Returns:
      float32 rows `[n, k * k]`, all zero where a kernel is constant or not finite, and a mask `[n]` that is
      False there.

    Raises:
      TypeError: if they are no real numbers.
      ValueError: for another shape, or masked taps.
    """
    array = square_kernels(kernels, size)
    rows = array.reshape(len(array), array.shape[1] ** 2)
    unit, good = np.empty(rows.shape, np.float32), np.empty(len(rows), bool)
    for start in range(0, len(rows), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        # What float32 would round is centered before.
        found = normalize(rows[here].astype(np.float64 if is_wide(rows.dtype) else np.float32), ROWS)
        unit[here], good[here] = found.taps, found.flag == Flag.OK
    return unit, good


def normalize_kernels(kernels: Float[np.ndarray, "n h w"]) -> Float[np.ndarray, "n h w"]:
    """Center kernels and scale them to unit norm, in their own precision.

    Args:
      kernels: `[n, h, w]`, float32 or float64.

    Returns:
      Kernels `[n, h, w]`; zero where a kernel is constant or not finite.
    """
    rows = kernels.reshape(len(kernels), kernels.shape[1] * kernels.shape[2])
    return normalize(rows, ROWS).taps.reshape(kernels.shape)


def square_kernels(kernels: Float[ArrayLike, "n k k"], size: int | None = None) -> Float[np.ndarray, "n k k"]:
    """Check that kernels are `[n, k, k]`.

    Args:
      kernels: any array.
      size: the k they must have; any if None.

    Returns:
      The kernels as a NumPy array.

    Raises:
      TypeError: if they are no real numbers.
      ValueError: for another shape, or masked taps.
    """
    array = unmasked_array(kernels, "kernels")
    if array.ndim != 3 or array.shape[1] != array.shape[2] or (size and array.shape[1] != size):
        k = size or "k"
        raise ValueError(f"kernels must be [n, {k}, {k}], got shape {array.shape}")
    return array


def unit_norm(kernels: Any) -> Any:
    """Scale kernels to unit norm about zero.

    Args:
      kernels: `[n, h, w]`, NumPy or JAX.

    Returns:
      Kernels `[n, h, w]`; those that are zero stay zero.
    """
    xp = kernels.__array_namespace__()
    largest = xp.abs(kernels).max(axis=(1, 2), keepdims=True)
    scaled = kernels / xp.where(largest > 0, largest, 1.0)
    norm = xp.sqrt((scaled**2).sum(axis=(1, 2), keepdims=True))
    return scaled / xp.where(norm > 0, norm, 1.0)
