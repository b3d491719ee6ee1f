"""Depthwise kernels among the tensors of a checkpoint."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from dogfit.checkpoints.copies import split_copies
from dogfit.checkpoints.header import FLOATS, Tensor, collector_paused
from dogfit.checkpoints.layouts import HWIO, MAX_SIZE, OHWI, OIHW, Layout, choose_layout, unread_layout
from dogfit.checkpoints.naming import DEPTHWISE, NOT_A_KERNEL, dotted, network_order
from dogfit.checkpoints.neighbors import Weight, depthwise_among, depthwise_by_name
from dogfit.checkpoints.patterns import matching_names

# Layers with kernels larger than this have more channels than a kernel has rows.
MAX_SIZE_OF_FEW = 11
# Output channels per input channel that are believed of (k, k, C, m) because of its name or its neighbors.
MAX_MULTIPLIER = 8
# Words that end the names of weights and of biases.
WEIGHT_WORD = re.compile(r"(?:depthwise_)?(?:weights?|kernel|w)(?=(?:_\d+|:0|'\])?$)|(?<=vars/)0$")
BIAS_WORDS = ("bias", "biases", "b", "1")
_AXES = {OIHW: "c1kk", HWIO: "kk1c", OHWI: "ckk1"}
_AMBIGUOUS = (
    "ambiguous, perhaps an ordinary convolution with one input or output channel; an include pattern takes it"
)


@dataclass(frozen=True)
class Depthwise:
    """A tensor that holds depthwise kernels, or has their shape."""

    tensor: Tensor
    layout: str
    """`ckk`, `c1kk` (PyTorch), `kk1c` (Flax), `kkcm` (Keras, TensorFlow) or `ckk1` (MLX)."""
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
    """Why it was left out, for people."""
    is_ambiguous: bool = False
    """True if it may be depthwise and an include pattern takes it."""


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


@collector_paused()
def find_depthwise(
    tensors: Mapping[str, Tensor],
    *,
    order: Mapping[str, int] | None = None,
    channels_first_3d: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Findings:
    """Recognise depthwise kernels by shape, layout and place in the network.

    A tensor has the shape if it holds floats and is (C m, 1, k, k) in a PyTorch file, (k, k, 1, C m) or
    (k, k, C, m) in a file with channels last, or (C, k, k, 1) in an MLX file; k > 1. An ordinary convolution
    with one input channel, such as the first of a network for grey images, has that shape too, and so may one
    with one output channel. So a tensor counts as depthwise only if

    1. its name says so (`dwconv`, `conv_dw`, `depthwise`, ...), or
    2. the layer before it puts out C channels and the one after, a pointwise one, takes C m. This counts only
       if it holds twice at least where names tell nothing, as in networks that number all their layers, and
       where a branch of the network may begin or end. Or
    3. weaker evidence of the kind holds for several tensors whose names differ in numbers only: the same part
       of several blocks. See `dogfit.checkpoints.neighbors`. Or
    4. one of these holds for a tensor whose name differs in numbers only.

    The rest is ambiguous: left out and reported. Never depthwise are the first convolution of the network,
    optimiser moments, fixed filters, position tables, integers, a single kernel and a few very large ones. If
    a weight has a moving average as well, the average is taken.

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
    layout = choose_layout(tensors[name] for name in names)
    separable, perhaps_separable = _separable(tensors, names, layout)
    candidates: dict[str, Depthwise] = {}
    reasons: dict[str, str] = {}
    undecided: set[str] = set()
    near = {shape for shape in {t.shape for t in tensors.values()} if _may_hold_kernels(shape, layout)}
    for name, tensor in tensors.items():
        if tensor.shape not in near:
            continue
        wanted = name in included
        has_multiplier = name in separable or name in perhaps_separable
        try:
            shaped = _by_shape(tensor, layout, channels_first_3d or wanted, has_multiplier)
            if shaped is None:
                if name in names and not _is_table(name):
                    _refuse_unread_layout(tensor.shape, layout)
                continue
            if name in excluded:
                raise _UnsuitableError("excluded by pattern")
            if not wanted:
                _refuse(shaped, dropped)
            candidates[name] = shaped
            if not wanted and shaped.layout != "ckk" and name not in separable:
                undecided.add(name)
        except _UnsuitableError as error:
            reasons[name] = str(error)
    spatial = [
        _name_parts(names[name])
        for name in names
        if tensors[name].shape in near and name not in candidates and _is_ordinary(tensors[name], layout)
    ]
    named = depthwise_by_name({name: _name_parts(names[name]) for name in undecided}, spatial)
    open_names = undecided - named
    placed = {name for name in [*candidates, *reasons] if name in names}
    ambiguous: set[str] = set()
    if open_names:  # only then the places of other layers matter
        placed |= {name for name in names if len(tensors[name].shape) in (2, 4)}
    ordered = sorted(placed, key=lambda name: _place(name, names[name], order))
    if open_names:
        weights = [
            _weight(tensors[name], names[name], candidates.get(name), layout, tensors)
            for name in ordered
            if len(tensors[name].shape) in (2, 4)
        ]
        ambiguous = open_names - depthwise_among(weights, named)
        reasons |= dict.fromkeys(ambiguous, _AMBIGUOUS)
    ordered += dropped
    layers = tuple(candidates[name] for name in ordered if name in candidates and name not in reasons)
    left_out = tuple(
        LeftOut(tensors[name], reasons[name], name in ambiguous) for name in ordered if name in reasons
    )
    return Findings(layers, left_out, names)


def _may_hold_kernels(shape: tuple[int, ...], layout: Layout) -> bool:
    """False for vectors, matrices and 1x1 convolutions."""
    return len(shape) > 2 and (len(shape) != 4 or max(layout.kernel(shape)) > 1)


def _is_ordinary(tensor: Tensor, layout: Layout) -> bool:
    """True for a convolution that takes several channels together, with kernels of more than one tap."""
    return len(tensor.shape) == 4 and tensor.shape[layout.taken] > 1 and max(layout.kernel(tensor.shape)) > 1


def _by_shape(tensor: Tensor, layout: Layout, allow_3d: bool, has_multiplier: bool) -> Depthwise | None:
    """Read a tensor as depthwise kernels; None if it has another shape.

    Raises:
      _UnsuitableError: if the shape is close to one, or the type cannot be read.
    """
    shape = tensor.shape
    if len(shape) == 3 and allow_3d:
        axes, (channels, height, width) = "ckk", shape
    elif len(shape) == 4 and shape[layout.taken] == 1:
        axes, channels, (height, width) = _AXES[layout], shape[layout.out], layout.kernel(shape)
    elif len(shape) == 4 and layout is HWIO and (shape[3] == 1 or has_multiplier):
        axes, channels, (height, width) = "kkcm", shape[2] * shape[3], shape[:2]
    else:
        return None
    if (height <= 1 and width <= 1) or max(height, width) > MAX_SIZE or min(height, width, channels) < 1:
        return None
    if height != width:
        raise _UnsuitableError("not square")
    if axes == "ckk1" and channels == height:
        raise _UnsuitableError("its axes cannot be told apart, as many channels as rows")
    if tensor.dtype not in FLOATS:
        raise _UnsuitableError(f"stored as {tensor.dtype}; only floating-point kernels are read")
    return Depthwise(tensor, axes, height, channels)


def _refuse_unread_layout(shape: tuple[int, ...], layout: Layout) -> None:
    """Raise for kernels that have other axes than those that are read."""
    if kind := unread_layout(shape, layout):
        raise _UnsuitableError(f"{kind}, which are not read")


def _refuse(shaped: Depthwise, dropped: Mapping[str, str]) -> None:
    """Raise for tensors that are never depthwise, unless a pattern includes them."""
    name, channels, size = shaped.tensor.name, shaped.channels, shaped.size
    if name in dropped:
        raise _UnsuitableError(dropped[name])
    if _is_table(name):
        raise _UnsuitableError("a fixed filter or a table, by its name")
    if channels == 1:
        raise _UnsuitableError("a single kernel: one channel to one channel")
    if size > max(channels, MAX_SIZE_OF_FEW) and not DEPTHWISE.search(name):
        raise _UnsuitableError(f"{channels} kernels of {size}x{size} are no depthwise layer")


def _separable(
    tensors: Mapping[str, Tensor], names: Collection[str], layout: Layout
) -> tuple[set[str], set[str]]:
    """Find tensors (k, k, C, m) that are, or may be, depthwise kernels with a multiplier m.

    Returns:
      Names of those that are: the same layer has a pointwise convolution of C m channels and nothing else, or
      the name says depthwise. Then names of those that may be: some pointwise convolution or linear layer
      takes C m channels, and no convolution m.
    """
    if layout is not HWIO:
        return set(), set()
    shapes = {name: tensors[name].shape for name in names if len(tensors[name].shape) == 4}
    beside = Counter(map(_parent, shapes))
    pointwise = {(_parent(name), shape[2]) for name, shape in shapes.items() if shape[:2] == (1, 1)}
    widths = {channels for _, channels in pointwise}
    widths |= {tensors[name].shape[0] for name in names if len(tensors[name].shape) == 2}
    taken = {shape[2] for shape in shapes.values()}
    certain, possible = set(), set()
    for name, (height, width, channels, multiplier) in shapes.items():
        if height == width > 1 and channels > 1:
            parent, product = _parent(name), channels * multiplier
            is_pair = parent and beside[parent] == 2 and (parent, product) in pointwise
            if is_pair or DEPTHWISE.search(name.removeprefix(parent)):
                certain.add(name)
            elif 1 < multiplier <= MAX_MULTIPLIER and (
                DEPTHWISE.search(name) or (product in widths and multiplier not in taken)
            ):
                possible.add(name)
    return certain, possible


def _weight(
    tensor: Tensor,
    bare: str,
    candidate: Depthwise | None,
    layout: Layout,
    tensors: Mapping[str, Tensor],
) -> Weight:
    """Weight of the network as its neighbors see it."""
    name, shape, parts = tensor.name, tensor.shape, _name_parts(bare)
    if candidate is None:
        taken, out = layout.ends(shape)
        is_convolution = len(shape) == 4 and tensor.dtype in FLOATS
        return Weight(name, parts, taken, out, is_convolution, max(layout.kernel(shape)) == 1)
    taken = shape[2] if candidate.layout == "kkcm" else None
    bias = _bias(name, tensors)
    return Weight(name, parts, taken, candidate.channels, True, False, is_candidate=True, bias=bias)


def _bias(name: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Entries of the bias beside a weight; None if the file has none."""
    if word := WEIGHT_WORD.search(name):
        for bias_word in BIAS_WORDS:
            bias = tensors.get(name[: word.start()] + bias_word + name[word.end() :])
            if bias is not None and len(bias.shape) == 1:
                return bias.shape[0]
    return None


def _name_parts(bare: str) -> tuple[str, ...]:
    return tuple(dotted(bare).split("."))


def _is_table(name: str) -> bool:
    return NOT_A_KERNEL.search(re.sub(r"[./](weight|kernel)$", "", name)) is not None


def _parent(name: str) -> str:
    """Name without its last part."""
    return name[: max(name.rfind("."), name.rfind("/"), name.rfind("["), 0)]


def _place(name: str, bare: str, order: Mapping[str, int] | None) -> str | tuple:
    """Key that sorts names by the stated order, the others after them; by name without one."""
    if order is None:
        return network_order(bare)
    return (0, order[name]) if name in order else (1, network_order(bare))
