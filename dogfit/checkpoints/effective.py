"""Weights that a network computes from several tensors: the kernels it uses are these, not what is stored.

PyTorch's weight norm, spectral norm and pruning, in both spellings, and numbers of few bits with scales.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dogfit.checkpoints.header import LOW_BIT, Tensor

Formula = Callable[..., np.ndarray]
"""Function of the values of the parts, float64, to those of the weight."""
Inverse = Callable[..., Sequence[np.ndarray | None]]
"""Function of the wanted weight, of what changed in it, and of the parts' values, to new values of the parts:
None for a part that stays, NaN where a part cannot hold what is wanted."""


@dataclass(frozen=True)
class EffectiveTensor(Tensor):
    """A weight that the network computes when it runs.

    `dtype` is F32, and `start` and `stop` are those of the first part.
    """

    rule: str
    """How it is computed, in words."""
    children: tuple[Tensor, ...]
    """Tensors it is computed from, the one of the weight's shape first."""
    formula: Formula
    inverse: Inverse | None
    """None where kernels cannot be written one by one."""

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Tensors of the file that the weight is computed from."""
        return tuple(part for child in self.children for part in child.parts)

    @property
    def stored_dtype(self) -> str:
        """Type of the first part in the file."""
        return self.children[0].stored_dtype

    def decode(self, *contents: bytes) -> Float32[np.ndarray, "..."]:
        """Compute the weight.

        Args:
          contents: all bytes of each of `parts`.

        Returns:
          An array of shape `shape`.
        """
        values = [child.decode(*own).astype(np.float64) for child, own in self._children_of(contents)]
        with np.errstate(all="ignore"):
            return self.formula(*values).astype(np.float32)

    def encode(self, contents: Sequence[bytes], values: Float32[np.ndarray, "..."]) -> list[bytes]:
        """Store another weight; what stays the same keeps its bytes, as does what the parts cannot hold.

        Args:
          contents: all bytes of each of `parts`.
          values: the weight, of shape `shape`.

        Returns:
          New bytes of each part.

        Raises:
          NotImplementedError: if the weight's kernels cannot be written one by one.
        """
        if self.inverse is None:
            raise NotImplementedError(self.rule)
        own = list(self._children_of(contents))
        before = [child.decode(*parts).astype(np.float64) for child, parts in own]
        changed = values != self.decode(*contents)
        with np.errstate(all="ignore"):
            after = self.inverse(values.astype(np.float64), changed, *before)
        result: list[bytes] = []
        for (child, parts), old, new in zip(own, before, after, strict=True):
            wanted = old if new is None else np.where(np.isnan(new), old, new)
            result += child.encode(parts, wanted.astype(np.float32))
        return result

    def _children_of(self, contents: Sequence[bytes]) -> Iterator[tuple[Tensor, Sequence[bytes]]]:
        """Each child with the contents of its parts."""
        start = 0
        for child in self.children:
            stop = start + len(child.parts)
            yield child, contents[start:stop]
            start = stop


class UnknownWeight(NamedTuple):
    """A tensor from which a weight is computed in a way that the file does not tell."""

    tensor: Tensor
    reason: str


class _UnknownError(Exception):
    """The file does not tell how a weight is computed; the message says why."""


def effective_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[UnknownWeight]]:
    """Put the weights that a network computes in the place of the tensors that it computes them from.

    Args:
      tensors: all tensors of the checkpoint, by name.

    Returns:
      All tensors as the network uses them, in the same order; and those whose weight cannot be known, which
      are left out.
    """
    found = dict(tensors)
    unknown: list[UnknownWeight] = []
    if not any(map(_tells_of_parts, tensors.values())):
        return found, unknown
    # Inner ones first: scales belong to stored numbers, and a pruned tensor may be one half of a weight norm.
    for rule in (_scaled, _masked, _weight_norm, _spectral_norm, _parametrized):
        made: dict[str, EffectiveTensor | None] = {}
        for name, tensor in found.items():
            try:
                weight = rule(tensor, found)
            except _UnknownError as error:
                unknown.append(UnknownWeight(tensor, str(error)))
                made[name] = None
                continue
            if weight is not None:
                made |= dict.fromkeys((child.name for child in weight.children), None)
                made[name] = weight
        if made:
            replaced = ((made.get(name, tensor)) for name, tensor in found.items())
            found = {tensor.name: tensor for tensor in replaced if tensor is not None}
    return found, unknown


def _tells_of_parts(tensor: Tensor) -> bool:
    """True for a tensor that may be a part of a weight, by its type or the end of its name."""
    return (
        tensor.dtype in LOW_BIT
        or tensor.name.endswith(("_orig", "_v", "mask"))
        or "parametrizations." in tensor.name
    )


def _effective(
    name: str, rule: str, formula: Formula, inverse: Inverse | None, children: Sequence[Tensor]
) -> EffectiveTensor:
    first = children[0]
    return EffectiveTensor(
        name, "F32", first.shape, first.start, first.stop, rule, tuple(children), formula, inverse
    )


def _masked(tensor: Tensor, tensors: Mapping[str, Tensor]) -> EffectiveTensor | None:
    """Pruned weight of `torch.nn.utils.prune`, or one with a mask of its shape beside it."""
    pruned = tensor.name.endswith("_orig")
    name = tensor.name.removesuffix("_orig")
    if not pruned and not name.endswith(("weight", "kernel")):
        return None
    mask = _companion(name, ("{}_mask",) if pruned else ("{}_mask", "{}.mask"), tensors)
    if mask is None and not pruned:
        mask = tensors.get(name.removesuffix("weight").removesuffix("kernel") + "mask")
    if mask is None or mask.shape != tensor.shape:
        return None
    if f"{name}_u" in tensors:
        raise _UnknownError("pruned and spectrally normalized: the file does not tell in which order")

    def inverse(values: np.ndarray, changed: np.ndarray, _: np.ndarray, mask: np.ndarray) -> list:
        held = (mask != 0) | (values == 0)
        return [np.where(changed & held, values / np.where(mask == 0, 1, mask), np.nan), None]

    return _effective(name, "weights times pruning mask", np.multiply, inverse, (tensor, mask))


def _weight_norm(tensor: Tensor, tensors: Mapping[str, Tensor]) -> EffectiveTensor | None:
    """`torch.nn.utils.weight_norm`: weight_g and weight_v."""
    if not tensor.name.endswith("_v"):
        return None
    name = tensor.name.removesuffix("_v")
    length = tensors.get(f"{name}_g")
    return None if length is None else _direction_and_length(name, tensor, length)


def _direction_and_length(name: str, direction: Tensor, length: Tensor) -> EffectiveTensor | None:
    """Weight g v / |v|, the norm taken over the axes along which g has one entry."""
    whole = length.shape in ((), (1,))
    fits = len(length.shape) == len(direction.shape) and all(
        own in (1, of) for own, of in zip(length.shape, direction.shape, strict=True)
    )
    if not whole and not fits:
        return None
    axes = tuple(
        axis for axis in range(len(direction.shape)) if whole or length.shape[axis] == 1
    )  # fmt: skip

    def norm(values: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(values**2, axis=axes, keepdims=True))

    def formula(v: np.ndarray, g: np.ndarray) -> np.ndarray:
        return g * v / norm(v)

    def inverse(values: np.ndarray, changed: np.ndarray, v: np.ndarray, g: np.ndarray) -> list:
        touched = changed.any(axis=axes, keepdims=True)
        return [np.where(touched, values, v), np.where(touched, norm(values), g).reshape(g.shape)]

    return _effective(name, "weight norm, g v / |v|", formula, inverse, (direction, length))


def _spectral_norm(tensor: Tensor, tensors: Mapping[str, Tensor]) -> EffectiveTensor | None:
    """`torch.nn.utils.spectral_norm`: weight_orig, weight_u and, in all but old files, weight_v."""
    if not tensor.name.endswith("_orig"):
        return None
    name = tensor.name.removesuffix("_orig")
    left, right = tensors.get(f"{name}_u"), tensors.get(f"{name}_v")
    return None if left is None else _over_spectral_norm(name, tensor, left, right)


def _over_spectral_norm(
    name: str, tensor: Tensor, left: Tensor, right: Tensor | None
) -> EffectiveTensor | None:
    """Weight W / (u · W v) with the vectors of the last power iteration, as the network uses it."""
    if len(left.shape) != 1 or left.shape[0] not in tensor.shape[:2]:
        raise _UnknownError(f"spectrally normalized with a vector of another shape, {list(left.shape)}")
    # Transposed convolutions have their output channels on the second axis.
    axis = 0 if left.shape[0] == tensor.shape[0] else 1

    def formula(weight: np.ndarray, u: np.ndarray, v: np.ndarray | None = None) -> np.ndarray:
        matrix = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        if v is None:
            v = matrix.T @ u
            v = v / np.linalg.norm(v)
        return weight / (u @ matrix @ v)

    parts = (tensor, left) if right is None else (tensor, left, right)
    return _effective(name, "spectral norm, W / (u · W v)", formula, None, parts)


_PARAMETRIZED = re.compile(
    r"(?P<list>(?P<module>.*?)parametrizations\.(?P<weight>[^.]+)\.)original(?P<number>0?)"
)


def _parametrized(tensor: Tensor, tensors: Mapping[str, Tensor]) -> EffectiveTensor | None:
    """`torch.nn.utils.parametrizations`: weight norm, spectral norm, and those of unknown kinds."""
    match = _PARAMETRIZED.fullmatch(tensor.name) if "parametrizations." in tensor.name else None
    if match is None:
        return None
    prefix, name = match["list"], match["module"] + match["weight"]
    if match["number"]:
        direction, more = tensors.get(f"{prefix}original1"), f"{prefix}original2" in tensors
        weight = None if direction is None or more else _direction_and_length(name, direction, tensor)
        if weight is not None:
            return weight
    elif (left := tensors.get(f"{prefix}0._u")) is not None:
        return _over_spectral_norm(name, tensor, left, tensors.get(f"{prefix}0._v"))
    raise _UnknownError("parametrized in a way that the file does not tell; save the weights of the modules")


# Companions by which a weight's stored numbers are multiplied, after the weight's name.
_SCALES = ("{}_scale", "{}_scale_inv", "{}.scale", "{}._scale", "{}_scales")
_DIVISORS = ("{}_global_scale",)
_SECOND_SCALES = ("{}_scale_2",)
_ZERO_POINTS = ("{}_zero_point", "{}_zero_points", "{}.zero_point")


def _scaled(tensor: Tensor, tensors: Mapping[str, Tensor]) -> EffectiveTensor | None:
    """Numbers of 8 or 4 bits with a scale, for all or for each channel or block."""
    if tensor.dtype not in LOW_BIT or len(tensor.shape) < 2:
        return None
    scale = _companion(tensor.name, _SCALES, tensors)
    if scale is None and "." in tensor.name:
        module, _, own = tensor.name.rpartition(".")
        scale = tensors.get(f"{module}.scale_{own}")
        if scale is None and tensor.dtype == "I8" and (scale := tensors.get(f"{module}.SCB")) is not None:
            return _times(tensor, scale, unit=1 / 127)
    if scale is None:
        return None
    return _times(
        tensor,
        scale,
        zero_point=_companion(tensor.name, _ZERO_POINTS, tensors),
        factor=_companion(tensor.name, _SECOND_SCALES, tensors),
        divisor=_companion(tensor.name, _DIVISORS, tensors),
    )


def _companion(name: str, spellings: Sequence[str], tensors: Mapping[str, Tensor]) -> Tensor | None:
    return next((tensors[s.format(name)] for s in spellings if s.format(name) in tensors), None)


def _times(
    tensor: Tensor,
    scale: Tensor,
    *,
    unit: float = 1.0,
    zero_point: Tensor | None = None,
    factor: Tensor | None = None,
    divisor: Tensor | None = None,
) -> EffectiveTensor:
    companions = [c for c in (scale, zero_point, factor, divisor) if c is not None]
    for companion in companions:
        _spread_shape(companion.shape, tensor)

    def formula(stored: np.ndarray, *values: np.ndarray) -> np.ndarray:
        given = iter([_spread(value, tensor) for value in values])
        scales = next(given)
        if zero_point is not None:
            stored = stored - next(given)
        if factor is not None:
            scales = scales * next(given)
        if divisor is not None:
            scales = scales / next(given)
        return stored * scales * unit

    rule = f"{tensor.dtype} times scale"
    return _effective(tensor.name, rule, formula, None, (tensor, *companions))


def _spread_shape(shape: Sequence[int], tensor: Tensor) -> tuple[int, ...]:
    """Shape of a scale with as many axes as the tensor.

    Raises:
      _UnknownError: if the scale does not divide the tensor into equal blocks.
    """
    own, axes = tuple(shape), len(tensor.shape)
    if len(own) == 1 and own[0] > 1:
        # A scale for each channel: the first axis, or the last one where channels are last.
        order = (0, axes - 1, axes - 2)
        if tensor.name.endswith("kernel"):
            order = order[1:] + order[:1]
        place = next((axis for axis in order if tensor.shape[axis] == own[0]), None)
        own = () if place is None else tuple(own[0] if axis == place else 1 for axis in range(axes))
        if place is None:
            raise _UnknownError(f"{tensor.dtype} with a scale of shape {list(shape)}, which fits no axis")
    own = own + (1,) * (axes - len(own))
    divides = len(own) == axes and all(n and size % n == 0 for n, size in zip(own, tensor.shape, strict=True))
    if not divides or own == tensor.shape:
        raise _UnknownError(
            f"{tensor.dtype} with a scale of shape {list(shape)}, which does not divide it into equal blocks"
        )
    return own


def _spread(scale: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Entry of a scale for each element of the tensor, or along axes of length 1 for all."""
    scale = scale.reshape(_spread_shape(scale.shape, tensor))
    for axis, size in enumerate(tensor.shape):
        if scale.shape[axis] > 1:
            scale = np.repeat(scale, size // scale.shape[axis], axis)
    return scale
