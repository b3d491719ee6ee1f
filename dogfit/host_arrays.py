"""Arrays of a caller as NumPy arrays of real numbers, whatever library holds them and in whatever type."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num

# What a library raises that cannot hand over its memory: on another device, or of a type that NumPy lacks.
_REFUSALS = (TypeError, ValueError, RuntimeError, BufferError, AttributeError, NotImplementedError)


def host_array(values: Any, what: str) -> Num[np.ndarray, "..."]:
    """Read an array of real numbers from any library.

    Args:
      values: a NumPy array (memory-mapped and masked ones stay what they are, and are not copied), nested
        lists, or an array of another library, by `__array__` or `__dlpack__`. Tensors of PyTorch that
        require a gradient are detached.
      what: its name in messages, a plural.

    Returns:
      A NumPy array in the type of the values: real numbers of any width and byte order, or truth values.

    Raises:
      TypeError: for complex numbers, objects, text and whatever else is no real number; for an array that
        cannot be read on the host.
    """
    array = _as_numpy(values, what)
    check_real(array.dtype, what)
    return array


def fold_masks(
    values: Num[np.ndarray, "n h w"], weights: Num[np.ndarray, "..."] | None
) -> tuple[Num[np.ndarray, "n h w"], Num[np.ndarray, "..."] | None]:
    """Express the masks of masked arrays as weights of 0.

    Args:
      values: kernels, masked or not.
      weights: of taps, masked or not; `[h, w]`, or as the kernels.

    Returns:
      Plain arrays; no weights where there were none and nothing is masked.
    """
    if isinstance(weights, np.ma.MaskedArray):
        weights = weights.filled(0)
    if not isinstance(values, np.ma.MaskedArray):
        return values, weights
    if np.ma.is_masked(values):
        seen = ~np.ma.getmaskarray(values)
        weights = (
            seen.astype(np.float32) if weights is None else np.where(seen, weights, weights.dtype.type(0))
        )
    return values.data, weights


def unmasked_array(values: Any, what: str) -> Num[np.ndarray, "..."]:
    """Read an array as `host_array` does, for a use that has no weights.

    Args:
      values: see `host_array`.
      what: its name in messages, a plural.

    Returns:
      A plain NumPy array.

    Raises:
      TypeError: as `host_array`.
      ValueError: if taps are masked.
    """
    array = host_array(values, what)
    if np.ma.is_masked(array):
        raise ValueError(
            f"masked {what} can only be fitted by fit_kernel, fit_kernels, fit_stream and fit_parquet, where "
            "a mask is a weight of 0; fill the masked taps first, for instance from FitResult.templates()"
        )
    return np.asarray(array)


def is_wide(dtype: np.dtype) -> bool:
    """Tell whether a type holds numbers that float32 rounds: float64, and integers of 32 bits, or longer."""
    return dtype.itemsize > 4 if dtype.kind == "f" else dtype.kind in "iu" and dtype.itemsize >= 4


def _as_numpy(values: Any, what: str) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, list | tuple):
        return _from_sequence(values, what)
    if hasattr(values, "detach"):
        values = values.detach()
    attempts: list[tuple[str, Callable[[Any], np.ndarray]]] = [
        ("__array__", np.asarray),
        ("__dlpack__", _from_dlpack),
        ("__dlpack__", _from_dlpack_by_jax),
    ]
    reasons = []
    for method, convert in attempts:
        if hasattr(values, method):
            try:
                return convert(values)
            except _REFUSALS as error:
                reasons.append(str(error))
    if reasons:
        raise TypeError(
            f"{what} of type {_name(values)} cannot be read on the host: {reasons[0]}; "
            "copy them there first, as a NumPy array"
        )
    return np.asarray(values)


def _from_sequence(values: list | tuple, what: str) -> np.ndarray:
    if any(isinstance(value, np.ma.MaskedArray) for value in values):
        return np.ma.stack([np.ma.asarray(value) for value in values])
    if any(hasattr(value, "__array__") or hasattr(value, "__dlpack__") for value in values):
        values = [_as_numpy(value, what) for value in values]
    try:
        return np.asarray(values)
    except ValueError as error:
        raise TypeError(f"{what} must be an array of numbers; the list given is none: {error}") from error


def _from_dlpack(values: Any) -> np.ndarray:
    return np.from_dlpack(values, device="cpu")


def _from_dlpack_by_jax(values: Any) -> np.ndarray:
    """Read types that NumPy's own reader refuses, such as bfloat16."""
    import jax

    return np.asarray(jax.dlpack.from_dlpack(values))


def check_real(dtype: Any, what: str) -> None:
    """Check that a type is of real numbers.

    Args:
      dtype: NumPy's name for it.
      what: what is of this type, in messages, a plural.

    Raises:
      TypeError: if it is not, with what to do.
    """
    # bfloat16, float8 and int4 are no types of NumPy's own.
    small = dtype.kind == "V" and dtype.fields is None and np.can_cast(dtype, np.float32)
    if dtype.kind in "biuf" or small:
        return
    advice = {
        "c": f"fit {what}.real and {what}.imag each, or their absolute value",
        "O": f"convert them, for instance by np.array({what}.tolist(), np.float64)",
        "S": f"convert the text, for instance by {what}.astype(np.float64)",
        "U": f"convert the text, for instance by {what}.astype(np.float64)",
    }.get(dtype.kind, "give an array of floating-point numbers or integers")
    raise TypeError(f"{what} must be real numbers, got dtype {dtype}: {advice}")


def _name(values: Any) -> str:
    kind = type(values)
    return f"{kind.__module__}.{kind.__qualname__}"
