"""Architecture of the embedded network: a small ConvNeXt-shaped pyramid that removes noise from photographs.

Parameters are one flat dictionary, named as timm names a ConvNeXt's and in PyTorch's layouts, so the
checkpoint file is the parameter dictionary itself. Images are [n, height, width, 3] in [0, 1], both sides
a multiple of 8.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Parameters = dict[str, Array]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the five stages: three downwards (at 1/2, 1/4, 1/8 of the image's resolution), two upwards."""

    depths: tuple[int, int, int, int, int] = (3, 3, 1, 2, 3)
    """Blocks of each stage."""
    widths: tuple[int, int, int] = (64, 96, 160)
    """Channels at 1/2, 1/4 and 1/8 of the resolution."""
    kernel_size: int = 7
    """Side of the depthwise kernels, in taps."""
    mlp_ratio: int = 2
    """Hidden channels of a block over its channels."""

    def stage_widths(self) -> tuple[int, ...]:
        """Channels of each of the five stages; the way up mirrors the way down."""
        low, middle, high = self.widths
        return (low, middle, high, middle, low)


def _padded(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n hp wp c"]:
    before, after = (size - 1) // 2, size // 2
    return jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))


def _sum_positions(x: Float[Array, "... c"]) -> Float[Array, "c"]:
    # As a product with ones: a plain reduction to [c] strides through memory and is many times slower.
    rows = x.reshape(-1, x.shape[-1])
    return jnp.matmul(jnp.ones(rows.shape[0], x.dtype), rows, precision="highest")


@jax.custom_vjp
def depthwise(x: Float[Array, "n h w c"], weight: Float[Array, "c 1 k k"]) -> Float[Array, "n h w c"]:
    """Correlate each channel with its kernel: PyTorch's `Conv2d(c, c, k, padding=k // 2, groups=c)`.

    Grouped convolution is slow on a CPU. A sum of k*k shifted products is one fused loop, and its gradients
    written the same way are about ten times faster than those that automatic differentiation finds.

    Args:
      x: features `[n, h, w, c]`.
      weight: kernels `[c, 1, k, k]`, k odd.

    Returns:
      Features of the same shape; the border is padded with zeros.
    """
    size, (height, width) = weight.shape[-1], x.shape[1:3]
    padded = _padded(x, size)
    shifted = (
        padded[:, i : i + height, j : j + width] * weight[None, None, None, :, 0, i, j]
        for i in range(size)
        for j in range(size)
    )
    return functools.reduce(jnp.add, shifted)


def _depthwise_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return depthwise(x, weight), (x, weight)


def _depthwise_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = saved
    (n, height, width, _), size = x.shape, weight.shape[-1]
    padded = _padded(x, size)
    # Adding parts of the batch first keeps the loop over channels innermost (vectorised) and leaves a small
    # array for the sum over positions.
    parts = math.gcd(n, 8)
    rows = [slice(part * n // parts, (part + 1) * n // parts) for part in range(parts)]
    gradients = [gradient[row] for row in rows]

    def tap(i: int, j: int) -> Array:
        products = (
            padded[row, i : i + height, j : j + width] * g for row, g in zip(rows, gradients, strict=True)
        )
        return _sum_positions(functools.reduce(jnp.add, products))

    taps = jnp.stack([tap(i, j) for i in range(size) for j in range(size)], axis=-1)
    return depthwise(gradient, weight[:, :, ::-1, ::-1]), taps.reshape(weight.shape)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def parameter_shapes(config: NetworkConfig) -> dict[str, tuple[int, ...]]:
    """List the name and shape of every parameter.

    Args:
      config: sizes of the network.

    Returns:
      Name -> shape, in network order.
    """
    low, widths, size = config.widths[0], config.stage_widths(), config.kernel_size
    shapes: dict[str, tuple[int, ...]] = {"stem.0.weight": (low, 3, 2, 2), "stem.0.bias": (low,)}
    for stage, (depth, width) in enumerate(zip(config.depths, widths, strict=True)):
        if stage > 0:
            before = widths[stage - 1]
            name, out, taps = (
                ("downsample", width, (2, 2)) if width > before else ("upsample", 4 * width, (1, 1))
            )
            prefix = f"stages.{stage}.{name}"
            shapes |= {f"{prefix}.0.weight": (before,), f"{prefix}.0.bias": (before,)}
            shapes |= {f"{prefix}.1.weight": (out, before, *taps), f"{prefix}.1.bias": (out,)}
        hidden = config.mlp_ratio * width
        for block in range(depth):
            prefix = f"stages.{stage}.blocks.{block}"
            shapes |= {
                f"{prefix}.gamma": (width,),
                f"{prefix}.conv_dw.weight": (width, 1, size, size),
                f"{prefix}.conv_dw.bias": (width,),
                f"{prefix}.norm.weight": (width,),
                f"{prefix}.norm.bias": (width,),
                f"{prefix}.mlp.fc1.weight": (hidden, width),
                f"{prefix}.mlp.fc1.bias": (hidden,),
                f"{prefix}.mlp.fc2.weight": (width, hidden),
                f"{prefix}.mlp.fc2.bias": (width,),
            }
    return shapes | {"head.weight": (12, low, 1, 1), "head.bias": (12,)}


def initial_parameters(config: NetworkConfig, seed: int) -> Parameters:
    """Draw parameters as ConvNeXt does: truncated normal weights of 0.02, biases 0, norms 1, layer scale 0.1.

    Args:
      config: sizes of the network.
      seed: seed of the weights.

    Returns:
      Name -> float32 array.
    """
    shapes = parameter_shapes(config)
    sizes = [math.prod(shape) for shape in shapes.values()]
    drawn = 0.02 * jax.random.truncated_normal(jax.random.key(seed), -2.0, 2.0, (sum(sizes),), jnp.float32)
    pieces = np.split(np.asarray(drawn), np.cumsum(sizes)[:-1])

    def initial(name: str, piece: np.ndarray, shape: tuple[int, ...]) -> Array:
        if len(shape) > 1:
            return jnp.asarray(piece.reshape(shape))
        constant = 0.1 if name.endswith("gamma") else float(name.endswith(".weight"))
        # An array that knows its dtype: a weakly typed one would have the training step compiled twice.
        return jnp.asarray(np.full(shape, constant, np.float32))

    return {
        name: initial(name, piece, shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


@jax.custom_vjp
def scale_shift(x: Float[Array, "n h w c"], scale: Float[Array, "c"], shift: Float[Array, "c"]) -> Array:
    """Compute `x * scale + shift` in each channel, with gradients that are fast on a CPU.

    Args:
      x: features `[n, h, w, c]`.
      scale: factors `[c]`.
      shift: summands `[c]`.

    Returns:
      Features of the same shape.
    """
    return x * scale[None, None, None] + shift[None, None, None]


def _scale_shift_forward(x: Array, scale: Array, shift: Array) -> tuple[Array, tuple[Array, Array]]:
    return scale_shift(x, scale, shift), (x, scale)


def _scale_shift_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, scale = saved
    return gradient * scale[None, None, None], _sum_positions(gradient * x), _sum_positions(gradient)


scale_shift.defvjp(_scale_shift_forward, _scale_shift_backward)


def _linear(parameters: Parameters, name: str, x: Array) -> Array:
    weight = parameters[f"{name}.weight"]
    bias = parameters[f"{name}.bias"]
    return scale_shift(x @ weight.T, jnp.ones_like(bias), bias)


def _downsample(parameters: Parameters, name: str, x: Float[Array, "n h w c"]) -> Array:
    """2x2 convolution of stride 2."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    # The weight's axes are permuted, not the image's: channels stay contiguous.
    weight = parameters[f"{name}.weight"].transpose(2, 3, 1, 0).reshape(4 * channels, -1)
    bias = parameters[f"{name}.bias"]
    x = x.reshape(n, height // 2, width // 2, 4 * channels) @ weight
    return scale_shift(x, jnp.ones_like(bias), bias)


def _upsample(parameters: Parameters, name: str, x: Float[Array, "n h w c"]) -> Array:
    """1x1 convolution to four times the channels, then PyTorch's `PixelShuffle(2)`."""
    n, height, width, channels = x.shape
    weight = parameters[f"{name}.weight"].reshape(-1, 2, 2, channels).transpose(3, 1, 2, 0)
    bias = parameters[f"{name}.bias"].reshape(-1, 2, 2).transpose(1, 2, 0).reshape(-1)
    x = scale_shift(x @ weight.reshape(channels, -1), jnp.ones_like(bias), bias)
    x = x.reshape(n, height, width, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * height, 2 * width, -1)


def _norm(parameters: Parameters, name: str, x: Array) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-6)
    return scale_shift(centered * scale, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def _block(parameters: Parameters, name: str, x: Array) -> Array:
    bias, gamma = parameters[f"{name}.conv_dw.bias"], parameters[f"{name}.gamma"]
    y = scale_shift(depthwise(x, parameters[f"{name}.conv_dw.weight"]), jnp.ones_like(bias), bias)
    y = _linear(parameters, f"{name}.mlp.fc1", _norm(parameters, f"{name}.norm", y))
    y = _linear(parameters, f"{name}.mlp.fc2", jax.nn.gelu(y))
    return x + scale_shift(y, gamma, jnp.zeros_like(gamma))


def denoise(
    parameters: Parameters, images: Float[Array, "n h w 3"], config: NetworkConfig
) -> Float[Array, "n h w 3"]:
    """Estimate the clean images behind noisy ones; the network is not told the level of the noise.

    Args:
      parameters: as `initial_parameters` returns them or the checkpoint file holds them.
      images: values about [0, 1], `[n, h, w, 3]`, h and w multiples of 8.
      config: sizes that the parameters were made for.

    Returns:
      Images of the same shape.
    """
    x = _downsample(parameters, "stem.0", images - 0.5)
    skips = []
    for stage, depth in enumerate(config.depths):
        if f"stages.{stage}.downsample.1.weight" in parameters:
            skips.append(x)
            name = f"stages.{stage}.downsample"
            x = _downsample(parameters, f"{name}.1", _norm(parameters, f"{name}.0", x))
        elif stage > 0:
            name = f"stages.{stage}.upsample"
            x = skips.pop() + _upsample(parameters, f"{name}.1", _norm(parameters, f"{name}.0", x))
        for block in range(depth):
            x = _block(parameters, f"stages.{stage}.blocks.{block}", x)
    return images + _upsample(parameters, "head", x)


def psnr(image: Float[np.ndarray, "..."], clean: Float[np.ndarray, "..."]) -> float:
    """Compute the peak signal-to-noise ratio of an image.

    Args:
      image: values, clipped to [0, 1].
      clean: the values behind it, in [0, 1], of the same shape.

    Returns:
      The ratio in dB.
    """
    return float(-10 * np.log10(np.mean((np.clip(image, 0, 1) - clean) ** 2)))
