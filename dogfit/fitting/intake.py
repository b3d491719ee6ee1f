"""Intake of kernels and weights at the host: offset and magnitude are taken off before numbers are rounded.

The search works on kernels about their mean and of unit energy, so neither matters to it. But float32 has
seven digits, and a caller's numbers may have spent them on an offset, or lie where float32 has none. Kernels
whose digits float32 holds pass untouched, and so to the bit.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from dogfit.fitting.families import Family
from dogfit.fitting.result import FitResult
from dogfit.host_arrays import is_wide
from dogfit.normalize import Flag, flag_of

# Offset, in ranges of the taps, above which it is taken off; below, rounding of the whole is rounding of the
# shape.
_LARGE_OFFSET = 8.0
# Logarithm (base 2) of magnitudes, up and down, beyond which numbers are rescaled: float32 ends at twice as
# much.
MAX_EXPONENT = 60


class Intake(NamedTuple):
    """Kernels as they are fitted, and what brings the fits back to the caller's units.

    Attributes:
      kernels: taps, float32 or float64.
      weights: of taps, of the same type; None if all are alike.
      level: what was taken off each kernel; None if nothing was, of any.
      exponent: power of two by which each kernel was divided; None likewise.
      wide: whether the caller's numbers may have more digits than float32.
    """

    kernels: Float[np.ndarray, "n h w"]
    weights: Float[np.ndarray, "n h w"] | Float[np.ndarray, "h w"] | None
    level: Float[np.ndarray, " n"] | None
    exponent: Int[np.ndarray, " n"] | None
    wide: bool


class _Extent(NamedTuple):
    """Extent of the taps of each kernel.

    Attributes:
      least: least tap, in the type of the kernels.
      range: greatest less least.
      magnitude: largest absolute value.
      shaped: whether the taps differ by more than rounding.
    """

    least: Num[np.ndarray, " n"]
    range: Float[np.ndarray, " n"]
    magnitude: Float[np.ndarray, " n"]
    shaped: Bool[np.ndarray, " n"]


def take_in(
    kernels: Num[np.ndarray, "n h w"], weights: Num[np.ndarray, "..."] | None, double: bool
) -> Intake:
    """Bring kernels and weights of any real type to the type they are fitted in.

    The least tap is taken off a kernel whose offset is large beside the range of its taps. It is the same for
    all mirror images of a kernel, as a mean is not to the last bit; the mean of the rest is left to the fit.

    Args:
      kernels: taps of any real type and byte order.
      weights: of taps, `[h, w]` or `[n, h, w]`; not negative.
      double: whether float64 kernels are fitted in float64.

    Returns:
      What is handed to the compiled program.
    """
    values = _native(kernels)
    wide = is_wide(values.dtype)
    dtype = np.dtype(np.float64 if double and wide and values.dtype.kind == "f" else np.float32)
    weights = None if weights is None else relative_weights(weights, dtype)
    taps = values.reshape(len(values), values.shape[1] * values.shape[2])
    used = None if weights is None else np.broadcast_to(weights > 0, values.shape).reshape(taps.shape)
    extent = _extent(taps, used)
    large = extent.shaped & (extent.magnitude > _LARGE_OFFSET * extent.range)
    power = np.zeros(len(taps), np.int32)
    if taps.dtype.itemsize > dtype.itemsize:
        power = _far_exponent(np.where(large, extent.range, extent.magnitude))
    moved = large | (power != 0)
    with np.errstate(over="ignore"):
        out = taps.astype(dtype, copy=bool(moved.any()))
        if moved.any():
            out[moved] = _moved(taps[moved], extent.least[moved], large[moved], power[moved])
    level = np.where(large, extent.least, 0).astype(np.float64) if large.any() else None
    return Intake(out.reshape(values.shape), weights, level, power if power.any() else None, wide)


def restore(result: FitResult, intake: Intake) -> FitResult:
    """Bring fits back to the units of the kernels as they were given.

    Args:
      result: NumPy arrays, a row for each kernel.
      intake: what the kernels went through.

    Returns:
      Fits whose offset, gains and `rmse` are in the caller's units, in float64 if the caller's numbers may be
      so wide; NaN where a kernel was not fitted.
    """
    n = len(result.family)
    level = np.zeros(n) if intake.level is None else intake.level
    power = np.zeros(n, np.int32) if intake.exponent is None else intake.exponent
    parameters = {
        family.name: _in_units(family, np.asarray(result.parameters[family.name]), level, power, intake)
        for family in result.families
    }
    rmse = result.rmse
    if intake.wide:
        rmse = np.ldexp(rmse.astype(np.float64), power)
    result = replace(result, parameters=parameters, rmse=rmse)
    return result.blank_unfitted() if (result.family < 0).any() else result


def _in_units(
    family: Family,
    parameters: Float[np.ndarray, "n p"],
    level: Float[np.ndarray, " n"],
    power: Int[np.ndarray, " n"],
    intake: Intake,
) -> Float[np.ndarray, "n p"]:
    if intake.level is None and intake.exponent is None:
        return parameters.astype(np.float64, copy=False) if intake.wide else parameters
    values = parameters.astype(np.float64)
    weights = [parameter.unit == "weight" for parameter in family.parameters]
    values[:, weights] = np.ldexp(values[:, weights], power[:, None])
    values[:, family.names.index("offset")] += level
    return values if intake.wide else values.astype(parameters.dtype)


def _native(values: Num[np.ndarray, "..."]) -> Num[np.ndarray, "..."]:
    """The same numbers in this machine's byte order; those that float32 can hold in float32."""
    if is_wide(values.dtype):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.astype(np.float32, copy=False)


def _extent(taps: Num[np.ndarray, "n t"], used: Bool[np.ndarray, "n t"] | None) -> _Extent:
    whole = taps.dtype.kind in "iu"
    # Laid out so that NumPy compares kernels side by side.
    across = np.ascontiguousarray(taps.T)
    if used is None:
        least, greatest = across.min(axis=0), across.max(axis=0)
    else:
        low, high = -np.inf, np.inf
        if whole:
            low, high = np.iinfo(taps.dtype).min, np.iinfo(taps.dtype).max
        least = across.min(axis=0, initial=high, where=used.T)
        greatest = across.max(axis=0, initial=low, where=used.T)
    any_used = greatest >= least
    with np.errstate(over="ignore", invalid="ignore"):
        # In their own type. Where integers wrap around it is negative: no offset is large beside such ranges.
        extent = (greatest - least).astype(np.float64)
        magnitude = np.maximum(np.abs(least.astype(np.float64)), np.abs(greatest.astype(np.float64)))
        shaped = extent > 0 if whole else flag_of(least, greatest) == Flag.OK
    return _Extent(least, extent, magnitude, any_used & shaped & np.isfinite(extent))


def _moved(
    taps: Num[np.ndarray, "m t"],
    least: Num[np.ndarray, " m"],
    large: Bool[np.ndarray, " m"],
    power: Int[np.ndarray, " m"],
) -> Float[np.ndarray, "m t"]:
    """Taps less the least where the offset is large, divided by powers of two."""
    wider = np.promote_types(taps.dtype, np.float64) if taps.dtype.kind == "f" else taps.dtype
    taps, least = taps.astype(wider), least.astype(wider)
    with np.errstate(invalid="ignore"):
        out = np.where(large[:, None], (taps - least[:, None]).astype(np.float64), taps)
        return np.ldexp(out, -power[:, None])


def _far_exponent(magnitude: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Power of two next to a magnitude that float32 has no good place for; 0 where it has."""
    power = np.frexp(magnitude)[1]
    far = np.isfinite(magnitude) & (magnitude > 0) & (np.abs(power) > MAX_EXPONENT)
    return np.where(far, power, 0)


def relative_weights(weights: Num[np.ndarray, "..."], dtype: np.dtype) -> Float[np.ndarray, "..."]:
    """Bring weights of any size to a floating-point type: only their ratios count, kernel by kernel.

    Args:
      weights: of taps, `[h, w]` or `[n, h, w]`; not negative.
      dtype: type of the fit.

    Returns:
      The weights, divided by a power of two where their own magnitudes have no place in float32.
    """
    values = _native(weights)
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    power = _far_exponent(values.max(axis=(-2, -1), keepdims=True, initial=0).astype(np.float64))
    return (np.ldexp(values, -power) if power.any() else values).astype(dtype, copy=False)
