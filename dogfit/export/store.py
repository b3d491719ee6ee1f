"""New kernels put into the bytes of a layer, and how much of the old ones they explain as they are stored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from dogfit.checkpoints.detect import Depthwise
from dogfit.checkpoints.effective import EffectiveTensor
from dogfit.checkpoints.header import Tensor
from dogfit.export.match import match_gain_and_mean
from dogfit.export.methods import NotReplaceableError

# Types that hold kernels, which are float32, as they are.
_EXACT = ("F32", "F64")
# Rounding errors of a weight that is computed from its parts, in units of its type's precision.
_ROUNDINGS = 8


class Stored(NamedTuple):
    """A layer with new kernels."""

    contents: list[bytes]
    """New bytes of each part of the layer's tensor."""
    rows: Bool[np.ndarray, "c"]
    """Kernels that were put in; the others are the same to the bit."""
    r2: Float32[np.ndarray, "c"]
    """R² of each kernel that was put in, as the network will use it, about the old one's mean."""


def store_kernels(
    layer: Depthwise,
    contents: Sequence[bytes],
    kernels: Float32[np.ndarray, "c k k"],
    r2: Float32[np.ndarray, "c"],
    min_r2: float,
) -> Stored:
    """Put kernels into the bytes of a layer.

    Args:
      layer: the layer.
      contents: all bytes of each part of its tensor.
      kernels: the new kernels.
      r2: R² of each; NaN keeps the old kernel.
      min_r2: kernels that explain less than this are kept.

    Returns:
      The new bytes. A kernel that the layer's type, mask or norm cannot hold is kept.

    Raises:
      NotReplaceableError: if the layer's kernels cannot be written one by one.
    """
    with np.errstate(invalid="ignore"):
        rows = np.isfinite(r2) & (r2 >= min_r2)
    new, rows = _put(layer, contents, rows, kernels)
    if layer.tensor.stored_dtype in _EXACT and not isinstance(layer.tensor, EffectiveTensor):
        return Stored(new, rows, r2)
    # Rounding to few bits costs some of what is explained.
    old = layer.kernels(*contents)
    _, stored_r2 = match_gain_and_mean(old, layer.kernels(*new), match=False)
    with np.errstate(invalid="ignore"):
        enough = rows & (stored_r2 >= min_r2)
    if (enough != rows).any():
        new, rows = _put(layer, contents, enough, kernels)
    return Stored(new, rows, np.where(rows, stored_r2, r2).astype(np.float32))


def _put(
    layer: Depthwise,
    contents: Sequence[bytes],
    rows: Bool[np.ndarray, "c"],
    kernels: Float32[np.ndarray, "c k k"],
) -> tuple[list[bytes], Bool[np.ndarray, "c"]]:
    """Write kernels in the layer's type; also the rows that could be written."""
    tensor = layer.tensor
    if not isinstance(tensor, EffectiveTensor):
        (content,) = contents
        content, rows = layer.with_kernels(content, rows, kernels)
        return [content], rows
    values = tensor.decode(*contents)
    plain = replace(layer, tensor=Tensor(tensor.name, "F32", tensor.shape, 0, values.nbytes))
    old, tolerance = layer.kernels(*contents), _ROUNDINGS * _precision(tensor)
    while True:
        wanted, rows = plain.with_kernels(values.tobytes(), rows, kernels)
        try:
            new = tensor.encode(contents, plain.tensor.decode(wanted))
        except NotImplementedError as error:
            raise NotReplaceableError(f"{error}: its kernels cannot be written one by one") from error
        after = layer.kernels(*new)
        if not np.array_equal(after[~rows], old[~rows], equal_nan=True) or any(
            _changes(replace(layer, tensor=part), content, put, ~rows)
            for part, content, put in zip(tensor.parts, contents, new, strict=True)
        ):
            raise NotReplaceableError(f"{tensor.rule}: its kernels share what is stored")
        largest = np.abs(kernels).max(axis=(1, 2), keepdims=True)
        held = rows & (np.abs(after - kernels) <= tolerance * largest).all(axis=(1, 2))
        if (held == rows).all():
            return new, rows
        rows = held


def _changes(layer: Depthwise, content: bytes, new: bytes, rows: Bool[np.ndarray, "c"]) -> bool:
    """True if a part that has the kernels' shape differs in these rows."""
    if len(content) == 0 or np.prod(layer.tensor.shape) != layer.channels * layer.size**2:
        return False
    return not np.array_equal(layer.kernels(content)[rows], layer.kernels(new)[rows], equal_nan=True)


def _precision(tensor: EffectiveTensor) -> float:
    """Largest relative rounding error of the stored parts."""
    import ml_dtypes

    return max(float(ml_dtypes.finfo(part.numpy_dtype).eps) for part in tensor.parts if part.dtype[0] in "FB")
