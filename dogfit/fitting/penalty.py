"""Distance of kernels from the nearest family, as a term for anybody's training loss."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dogfit.fitting.api import fit_traced
from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES, Family, resolve_families, unidentifiable
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.program import in_working_precision
from dogfit.normalize import Flag, flag_of

Reduction = Literal["mean", "energy", "none"]

QUICK = FitConfig(effort=2, steps=20)
"""Less search than a fit for its own sake needs: a miss only makes the penalty of one kernel, for one step, a
little larger than its distance."""

# Kernels without a larger tap are not pulled: the slope of R² grows as they shrink.
_LEAST_PULLED = 1e-12


def dog_penalty(
    weights: Float[ArrayLike, "n h w"] | Float[ArrayLike, "h w 1 n"] | Float[ArrayLike, "n 1 h w"],
    families: Sequence[str | Family] = FAMILIES,
    *,
    reduce: Reduction = "mean",
    config: FitConfig = QUICK,
) -> Float[Array, ""] | Float[Array, " n"]:
    """Measure the share of depthwise kernels that the nearest of the families leaves unexplained, 1 - R².

    Differentiable, and pure: for use inside `jit`, `grad`, `vmap`, `scan` and `shard_map` (where it is of the
    kernels of one device). The nearest family is the one of largest R², with no charge for parameters: its R²
    has no jumps, as that of a family chosen by BIC has. The gradient is that of the residual with the
    template held (envelope theorem), so it costs little more than the value.

    Constant, zero and non-finite kernels have penalty zero and gradient zero; without kernels the penalty is
    zero. A kernel without a tap above 1e-12 (6e-5 for float16 weights) has gradient zero.

    Args:
      weights: kernels `[n, h, w]`, or of a depthwise convolution as Flax `[h, w, 1, n]` or PyTorch
        `[n, 1, h, w]` keeps them; the place of the 1 tells.
      families: as for `fit_kernel`.
      reduce: "mean" over kernels, each counted alike whatever its norm: the gradient of a kernel grows as
        its norm shrinks. "energy": the share of the energy of all kernels (about their means) that is
        unexplained, so that faint kernels count little and are pulled gently. Neither changes when all
        kernels are scaled: no penalty is saved by shrinking. "none": 1 - R² of each kernel.
      config: of the search; static.

    Returns:
      Between 0 (all are members of a family) and 1; float32, or float64 for float64 weights.

    Raises:
      ValueError: for another shape or reduction, and as `fit_kernel`.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import dogfit
      >>> kernels = np.random.default_rng(0).normal(size=(8, 5, 5)).astype(np.float32)
      >>> step = jax.jit(jax.value_and_grad(lambda kernels: dogfit.dog_penalty(kernels, ["gaussian"])))
      >>> before, gradient = step(kernels)
      >>> after, _ = step(kernels - 2.0 * gradient)
      >>> bool(after < before)
      True
    """
    if reduce not in Reduction.__args__:
        raise ValueError(f"reduce must be one of {', '.join(Reduction.__args__)}, got {reduce!r}")
    weights = jnp.asarray(weights)
    kernels = depthwise_kernels(weights)
    wanted = _without_nested(resolve_families(families), kernels.shape[1:])
    if not len(kernels):
        return jnp.zeros((0,) if reduce == "none" else (), in_working_precision(kernels).dtype)
    least, greatest = (jax.lax.stop_gradient(f(kernels, axis=(1, 2))) for f in (jnp.min, jnp.max))
    # A gradient must have a place in the type of the weights.
    pulled = jnp.maximum(-least, greatest) > max(_LEAST_PULLED, float(jnp.finfo(weights.dtype).tiny))
    kernels = jnp.where(pulled[:, None, None], kernels, jax.lax.stop_gradient(kernels))
    kernels = in_working_precision(kernels)
    # Replaced before anything is computed from them, so that no gradient is a product with NaN.
    sound = flag_of(least.astype(kernels.dtype), greatest.astype(kernels.dtype)) == Flag.OK
    kernels = jnp.where(sound[:, None, None], kernels, 0.0)

    def r2_of(kernel: Float[Array, "h w"]) -> Float[Array, " f"]:
        return fit_traced(kernel, wanted, None, None, config, follow=False).r2_by_family

    scores = jax.vmap(r2_of)(kernels)
    # Not jnp.max: where two families tie, either one's gradient will do, their mean may not.
    nearest = jnp.argmax(scores, axis=1)[:, None]
    r2 = jnp.take_along_axis(scores, nearest, axis=1)[:, 0]
    fitted = jnp.isfinite(r2)
    share = jnp.where(fitted, 1.0 - jnp.where(fitted, r2, 1.0), 0.0)
    if reduce == "none":
        return share
    if reduce == "mean":
        return jnp.mean(share)
    return _energy_share(kernels.astype(share.dtype), share)


def depthwise_kernels(weights: Array) -> Float[Array, "n h w"]:
    """Bring depthwise weights in any of the layouts of `dog_penalty` to kernels `[n, h, w]`."""
    shape = weights.shape
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights must be real floating-point numbers, got {weights.dtype}")
    if weights.ndim == 3:
        return weights
    if weights.ndim == 4 and shape[2] == 1 != shape[1]:
        return jnp.transpose(weights[:, :, 0], (2, 0, 1))
    if weights.ndim == 4 and shape[1] == 1 != shape[2]:
        return weights[:, 0]
    raise ValueError(
        f"weights must be kernels [n, h, w], or those of a depthwise convolution [h, w, 1, n] or "
        f"[n, 1, h, w], got shape {shape}; give others as kernels, with reshape"
    )


def _without_nested(families: tuple[Family, ...], shape: tuple[int, ...]) -> tuple[Family, ...]:
    """Leave out the Gaussian beside a DoG: it is one, without a surround, and never nearer."""
    gaussian, dog = BUILTIN_FAMILIES["gaussian"], BUILTIN_FAMILIES["dog"]
    if dog in families and not unidentifiable([dog], (shape[0], shape[1])):
        return tuple(family for family in families if family != gaussian)
    return families


def _energy_share(kernels: Float[Array, "n h w"], share: Float[Array, " n"]) -> Float[Array, ""]:
    # Scaled before squaring, so that kernels of any magnitude are alike.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(kernels)))
    scaled = kernels / jnp.where(largest > 0, largest, 1.0)
    centered = scaled - jnp.mean(scaled, axis=(1, 2), keepdims=True)
    energy = jnp.sum(centered**2, axis=(1, 2))
    whole = jnp.sum(energy)
    return jnp.sum(energy * share) / jnp.where(whole > 0, whole, 1.0)
