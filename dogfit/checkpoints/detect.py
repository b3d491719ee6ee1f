"""Depthwise kernels among the tensors of a checkpoint."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from dogfit.checkpoints.copies import split_copies
from dogfit.checkpoints.header import FLOATS, Tensor
from dogfit.checkpoints.naming import DEPTHWISE, NOT_A_KERNEL, network_order
from dogfit.checkpoints.patterns import matching_names

# Beyond every kernel in use; (64, 64, 3, 1) is an ordinary 3x1 convolution.
MAX_SIZE = 63
# Output channels per input channel that are believed without a name that says depthwise.
MULTIPLIERS = (1, 2)
AMBIGUOUS = "ambiguous, perhaps an ordinary convolution with one input channel; an include pattern takes it"


@dataclass(frozen=True)
class Depthwise:
    """A tensor that holds depthwise kernels, or has their shape."""

    tensor: Tensor
    layout: str
    """`ckk`, `c1kk` (PyTorch), `kk1c` (Flax) or `kkcm` (Keras, TensorFlow)."""
    size: int
    """Kernel size k, in taps."""
    channels: int
    """Number of kernels."""

    def kernels(self, *contents: bytes) -> Float32[np.ndarray, "c k k"]:
        """Convert the tensor's bytes to kernels.

        Args:
          contents: all bytes of each of the tensor's parts.

        Returns:
          Taps `[channels, size, size]`, output channels in the order of the framework.
        """
        taps = self.tensor.decode(*contents)
        if self.layout.startswith("kk"):
            taps = np.moveaxis(taps.reshape(self.size, self.size, self.channels), 2, 0)
        return np.ascontiguousarray(taps.reshape(self.channels, self.size, self.size))

    def with_kernels(
        self, content: bytes, rows: Bool[np.ndarray, "c"], kernels: Float32[np.ndarray, "c k k"]
    ) -> tuple[bytes, Bool[np.ndarray, "c"]]:
        """Put kernels into the tensor's bytes; rows that are not chosen keep theirs bit for bit.

        Args:
          content: all bytes of the tensor.
          rows: which kernels to put in.
          kernels: taps `[channels, size, size]`.

        Returns:
          The new bytes, and the rows that were put in: a kernel that the tensor's type cannot hold is left
          out.
        """
        dtype = self.tensor.numpy_dtype
        with np.errstate(over="ignore"):
            rounded = kernels.astype(dtype)
        rows = rows & np.isfinite(rounded.astype(np.float32)).all(axis=(1, 2))
        stored = np.frombuffer(content, dtype).copy()
        if self.layout.startswith("kk"):
            view = stored.reshape(self.size, self.size, self.channels)
            view[:, :, rows] = np.moveaxis(rounded[rows], 0, 2)
        else:
            stored.reshape(self.channels, self.size, self.size)[rows] = rounded[rows]
        return stored.tobytes(), rows


class LeftOut(NamedTuple):
    """A tensor that resembles a depthwise kernel and is none, or is not wanted."""

    tensor: Tensor
    reason: str


@dataclass(frozen=True)
class Findings:
    """Depthwise layers of a checkpoint."""

    layers: tuple[Depthwise, ...]
    """Layers in network order."""
    left_out: tuple[LeftOut, ...]
    """Tensors that were left out, with the reason."""
    bare_names: Mapping[str, str]
    """Tensor name -> name without wrappers, which tells stage and block."""


class _UnsuitableError(Exception):
    """A tensor comes close to a depthwise kernel; the message says why it is none."""


def find_depthwise(
    tensors: Mapping[str, Tensor],
    *,
    order: Mapping[str, int] | None = None,
    channels_first_3d: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Findings:
    """Recognise depthwise kernels by shape, layout and place in the network.

    A tensor has the shape if it holds floats and is (C m, 1, k, k) in a PyTorch file, or (k, k, 1, C m) or
    (k, k, C, m) in a file with channels last; k > 1. An ordinary convolution with one input channel, such as
    the first of a network for grey images, has that shape too. So a tensor counts as depthwise only if

    1. its name says so (`dwconv`, `conv_dw`, `depthwise`, ...), or
    2. it is not the first convolution of the network or of a branch, an earlier layer puts out C channels
       and a later one takes or puts out C m. Where the network's first convolution has one input channel, the
       layers right before and right after must fit. Or
    3. 1 or 2 holds for a tensor whose name differs in numbers only: the same part of another block.

    The rest is ambiguous: left out and reported. Never depthwise are optimiser moments, fixed filters,
    position tables, integers and a single kernel. If a weight has a moving average as well, the average is
    taken.

    Args:
      tensors: all tensors of the checkpoint, by name.
      order: place of each name in the network where the file states it; otherwise names decide.
      channels_first_3d: whether tensors of shape (C, k, k) are kernels, as the file's metadata may state.
      include: patterns of names to accept whenever the shape allows, (C, k, k) included.
      exclude: patterns of names to leave out; overrules `include`.

    Returns:
      The layers found, and what was left out.
    """
    included, excluded = matching_names(tensors, include), matching_names(tensors, exclude)
    copies = split_copies(tensors, excluded)
    names, dropped = copies.names, copies.dropped
    ordered = sorted(names, key=lambda name: _place(name, names[name], order))
    network = [tensors[name] for name in ordered]
    channels_last = _channels_last(network)
    candidates: dict[str, Depthwise] = {}
    left_out: list[LeftOut] = []
    for tensor in [*network, *(tensors[name] for name in dropped)]:
        wanted = tensor.name in included
        try:
            shaped = _by_shape(tensor, channels_last, channels_first_3d or wanted)
            if shaped is None:
                continue
            if tensor.name in excluded:
                raise _UnsuitableError("excluded by pattern")
            if not wanted:
                _refuse(shaped, dropped)
            candidates[tensor.name] = shaped
        except _UnsuitableError as error:
            left_out.append(LeftOut(tensor, str(error)))
    accepted = _inside_network(network, candidates, channels_last)
    for name, candidate in candidates.items():
        if candidate.layout == "ckk" or name in included:
            accepted.add(name)
        elif name not in accepted:
            left_out.append(LeftOut(candidate.tensor, AMBIGUOUS))
    layers = tuple(candidates[name] for name in candidates if name in accepted)
    return Findings(layers, tuple(left_out), names)


def _by_shape(tensor: Tensor, channels_last: bool, allow_3d: bool) -> Depthwise | None:
    """Read a tensor as depthwise kernels; None if it has another shape.

    Raises:
      _UnsuitableError: if the shape is close to one, or the type cannot be read.
    """
    shape = tensor.shape
    if len(shape) == 3 and allow_3d:
        layout, (channels, height, width) = "ckk", shape
    elif len(shape) != 4:
        return None
    elif not channels_last and shape[1] == 1:
        layout, (channels, _, height, width) = "c1kk", shape
    elif channels_last and shape[2] == 1:
        layout, (height, width, _, channels) = "kk1c", shape
    elif channels_last and (shape[3] == 1 or DEPTHWISE.search(tensor.name)):
        layout, (height, width, channels) = "kkcm", (*shape[:2], shape[2] * shape[3])
    else:
        return None
    if (height <= 1 and width <= 1) or max(height, width) > MAX_SIZE or min(height, width, channels) < 1:
        return None
    if height != width:
        raise _UnsuitableError("not square")
    if tensor.dtype not in FLOATS:
        raise _UnsuitableError(f"stored as {tensor.dtype}; only floating-point kernels are read")
    return Depthwise(tensor, layout, height, channels)


def _refuse(shaped: Depthwise, dropped: Mapping[str, str]) -> None:
    """Raise for tensors that are never depthwise, unless a pattern includes them."""
    name = shaped.tensor.name
    if name in dropped:
        raise _UnsuitableError(dropped[name])
    if NOT_A_KERNEL.search(re.sub(r"[./](weight|kernel)$", "", name)):
        raise _UnsuitableError("a fixed filter or a table, by its name")
    if shaped.channels == 1:
        raise _UnsuitableError("a single kernel: one channel to one channel")


def _channels_last(network: Sequence[Tensor]) -> bool:
    """Decide by majority whether convolutions are stored (height, width, in, out)."""
    votes = 0
    for tensor in network:
        # (1, 1, 1, C) scales channels, in either layout.
        if len(tensor.shape) == 4 and tensor.shape[:3] != (1, 1, 1):
            first, second, third, fourth = tensor.shape
            leading, trailing = first == second <= MAX_SIZE, third == fourth <= MAX_SIZE
            votes += int(leading and not trailing) - int(trailing and not leading)
    if votes == 0:
        votes = sum(tensor.name.endswith("kernel") for tensor in network)
    return votes > 0


def _inside_network(
    network: Sequence[Tensor], candidates: Mapping[str, Depthwise], channels_last: bool
) -> set[str]:
    """Names of candidates that are depthwise by rules 1 to 3 of `find_depthwise`."""
    weights = [tensor for tensor in network if len(tensor.shape) in (2, 4)]
    convolutions = [t.name for t in weights if len(t.shape) == 4 and t.dtype in FLOATS]
    named = {name for name in candidates if DEPTHWISE.search(name)}
    stem = convolutions[0] if convolutions and convolutions[0] in candidates.keys() - named else None
    ordinary = {_without_first_part(name) for name in convolutions if name not in candidates}
    # (in, out) of every layer; a depthwise one counts as (1, out).
    ends = [(t.shape[-2], t.shape[-1]) if channels_last else (t.shape[1], t.shape[0]) for t in weights]
    fitting_places = _between_neighbors if stem else _between_layers
    accepted = named | {
        weights[index].name
        for index in fitting_places(ends, [candidates.get(t.name) for t in weights])
        if weights[index].name != stem and _without_first_part(weights[index].name) not in ordinary
    }
    parts = {_without_numbers(name) for name in accepted} - {_without_numbers(stem or "")}
    return accepted | {name for name in candidates if _without_numbers(name) in parts}


def _between_layers(ends: Sequence[tuple[int, int]], layers: Sequence[Depthwise | None]) -> Iterator[int]:
    """Places of candidates that any layer before feeds, and whose output any layer after takes."""
    first_out: dict[int, int] = {}
    last_use: dict[int, int] = {}
    for index, (taken, put_out) in enumerate(ends):
        first_out.setdefault(put_out, index)
        last_use[taken] = last_use[put_out] = index
    for index, layer in enumerate(layers):
        if layer and last_use.get(layer.channels, 0) > index:
            inputs = [layer.channels // m for m in MULTIPLIERS if layer.channels % m == 0]
            if any(first_out.get(width, index) < index for width in inputs):
                yield index


def _between_neighbors(ends: Sequence[tuple[int, int]], layers: Sequence[Depthwise | None]) -> Iterator[int]:
    """Places of candidates that the layer right before feeds, and the next ordinary one after takes from."""
    following: tuple[int, int] = (0, 0)
    for index in range(len(ends) - 1, 0, -1):
        layer = layers[index]
        if layer is None:
            following = ends[index]
        elif layer.channels in following and layer.channels in [m * ends[index - 1][1] for m in MULTIPLIERS]:
            yield index


def _without_first_part(name: str) -> str:
    """Rest of a name after its first part, in which alone two branches of a network often differ."""
    return re.split(r"[./]", name, maxsplit=1)[-1]


def _without_numbers(name: str) -> str:
    """Name with every number replaced, the same for the same part of all blocks."""
    return re.sub(r"\d+", "#", name)


def _place(name: str, bare: str, order: Mapping[str, int] | None) -> tuple:
    """Key that sorts names by the stated order, the others after them; by name without one."""
    if order is None:
        return network_order(bare)
    return (0, order[name]) if name in order else (1, network_order(bare))
