"""Order of the axes in which a checkpoint stores its convolutions."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from dogfit.checkpoints.header import Tensor

# Beyond every kernel in use; (64, 64, 3, 1) is an ordinary 3x1 convolution.
MAX_SIZE = 63
# No tensor counts more than this against a layout, whatever it is.
MAX_VOTE = 2.0
# Where shapes do not tell: names that weights have in Keras and Flax.
CHANNELS_LAST_NAMES = ("kernel", "kernel:0", "kernel']", "vars/0")


class Layout(NamedTuple):
    """Place of each axis of a convolution among the four of its tensor."""

    name: str
    out: int
    """Output channels."""
    taken: int
    """Input channels, those of one group where the convolution has several."""
    height: int
    width: int

    def ends(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Channels that a layer takes and puts out.

        Args:
          shape: of a convolution, or of a linear layer, whose axes are in the same order.
        """
        if len(shape) == 2:
            return (shape[0], shape[1]) if self is HWIO else (shape[1], shape[0])
        return shape[self.taken], shape[self.out]

    def kernel(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of a convolution's kernels; (1, 1) for a linear layer."""
        return (shape[self.height], shape[self.width]) if len(shape) == 4 else (1, 1)


# PyTorch, Paddle, ONNX
OIHW = Layout("OIHW", out=0, taken=1, height=2, width=3)
# TensorFlow, Keras, Flax
HWIO = Layout("HWIO", out=3, taken=2, height=0, width=1)
# MLX; TFLite too, but for its depthwise kernels
OHWI = Layout("OHWI", out=0, taken=3, height=1, width=2)


def choose_layout(tensors: Iterable[Tensor]) -> Layout:
    """Choose the layout in which the tensors make the likeliest convolutions.

    Each tensor of four axes is read in every layout. One reading of (24, 24, 1, 3) is an ordinary 1x3
    convolution, the other 24x24 kernels; the likelier one counts, by how much likelier it is.

    Args:
      tensors: tensors of the network.

    Returns:
      The layout; where shapes do not tell, by the names of the weights.
    """
    network = list(tensors)
    unlikely = dict.fromkeys((OIHW, HWIO, OHWI), 0.0)
    for shape, count in Counter(tensor.shape for tensor in network).items():
        # With three axes of 1, such as a scale of channels, in any layout.
        if len(shape) == 4 and sorted(shape)[2] > 1:
            costs = {layout: _implausibility(layout, shape) for layout in unlikely}
            least = min(costs.values())
            for layout, cost in costs.items():
                unlikely[layout] += count * min(cost - least, MAX_VOTE)
    least = min(unlikely.values())
    likely = [layout for layout, cost in unlikely.items() if cost <= least]
    if HWIO in likely and any(tensor.name.endswith(CHANNELS_LAST_NAMES) for tensor in network):
        return HWIO
    return likely[0]


def _implausibility(layout: Layout, shape: tuple[int, ...]) -> float:
    """Measure of how unlike the convolutions of real networks a shape is, read in one layout."""
    (height, width), ends = layout.kernel(shape), layout.ends(shape)
    longest = max(height, width)
    if longest > MAX_SIZE or min(shape) < 1:
        return 4.0
    cost = math.log2(longest) / 4 + 0.5 * any(size > 4 and size % 2 == 0 for size in (height, width))
    if height != width:
        # Factorised kernels are 1xk and kx1.
        cost += 1.5 if min(height, width) == 1 else 2.0
    if height * width > 4 * ends[0] * ends[1]:
        cost += 1.0
    # Channels are one, three, or a round number.
    return cost + sum(channels > 3 and channels % 2 for channels in ends)


def unread_layout(shape: tuple[int, ...], layout: Layout) -> str | None:
    """Name what the shape of a tensor is in a layout or with axes that are not read as kernels.

    Args:
      shape: any shape.
      layout: layout of the checkpoint's convolutions.

    Returns:
      The kind of kernels; None for every other tensor.
    """
    rank = len(shape)
    if rank == 5 and shape[1:3] == (1, 1) and _is_kernel(shape[3:]):
        return "kernels in the layout (C, 1, 1, k, k) of OpenVINO"
    if rank == 4 and layout is not HWIO and shape[0] == 1 and shape[1] == shape[2] and _is_kernel(shape[1:3]):
        return "kernels in the layout (1, k, k, C) of TFLite" if shape[3] > 1 else None
    if rank not in (3, 5):
        return None
    # Channels and the single channel of a group, then the other axes.
    if layout is OIHW:
        channels, single, kernel = shape[0], shape[1], shape[2:]
    elif layout is OHWI:
        channels, single, kernel = shape[0], shape[-1], shape[1:-1]
    else:
        channels, single, kernel = max(shape[-2:]), min(shape[-2:]), shape[:-2]
    if single == 1 and channels > 1 and _is_kernel(kernel):
        return "one-dimensional kernels" if rank == 3 else "three-dimensional kernels"
    return None


def _is_kernel(sizes: tuple[int, ...]) -> bool:
    return 1 < max(sizes) <= MAX_SIZE and min(sizes) >= 1
