"""Fits of kernels: one inside JAX code, arrays of any length, and streams of blocks.

Every kernel is fitted with every family, seeded, refined and selected in one compiled pass. `fit_kernel` is
the pure function, for use inside `jit`, `vmap` and `grad`. `fit_kernels` streams arrays of any length through
it in blocks; `fit_stream` does the same for more kernels than memory holds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Num

from dogfit.devices import check_devices
from dogfit.fitting.batching import Piece, Task, cut_pieces, fit_pieces
from dogfit.fitting.bounds import Bounds, resolve_bounds
from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import Family, resolve_families, unidentifiable
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.intake import MAX_EXPONENT, relative_weights, restore, take_in
from dogfit.fitting.program import fit_block, in_working_precision
from dogfit.fitting.result import FitResult, concatenate
from dogfit.host_arrays import check_real, fold_masks, host_array
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.types import Box

MIN_SIZE, MAX_SIZE = 3, 51
Families = Sequence[str | Family]


def fit_kernel(
    kernel: Float[ArrayLike, "h w"],
    families: Families = FAMILIES,
    *,
    weights: Float[ArrayLike, "h w"] | None = None,
    bounds: Bounds | None = None,
    config: FitConfig = DEFAULT,
) -> FitResult:
    """Fit one kernel with every family and choose one of them.

    Pure: works inside the caller's `jit`, `vmap` (which batches the search, not merely repeats it), `scan`,
    `shard_map` and `grad`. All results that are not whole numbers are differentiable in the kernel, as often
    as you like: the optimum follows the kernel (implicit differentiation) while the family, the optimum and
    the parameters on a bound stay which they are. Where a search was out of steps (`Status.MAX_STEPS`) its
    derivatives are approximate. There are none by weights and bounds.

    Args:
      kernel: taps `[h, w]` in correlation order, in any unit, of any real type; a mask counts as weight 0.
        Fitted in float32, or in float64 if JAX is set to it and the kernel is float64. Outside of JAX's
        transformations its offset and magnitude may be larger than float32 has digits for.
      families: names out of `dogfit.fitting.family_names.ALL_FAMILIES`, or families of your own; those that
        the kernel's shape cannot identify are left out and listed in `FitResult.unidentifiable`.
      weights: of taps `[h, w]`, for instance the inverse of their noise variance; 0 leaves a tap out, and
        what stands there does not matter.
      bounds: narrower bounds of parameters, or values to fix them at: `{"sigma_px": (0.5, 2.0)}`, or by
        family, `{"dog": {"x0_px": 0.0}}`. Names: x0_px, y0_px, sigma_px (taps), surround_ratio (of the
        surround's width to the center's), surround_weight, and the ranges of your own families.
      config: profile, criterion and search effort; static.

    Returns:
      FitResult whose arrays lack the first axis; of NumPy outside of JAX's transformations.

    Raises:
      TypeError: for taps or weights that are no real numbers, and for a config that is no `FitConfig`.
      ValueError: for another shape, a side outside 3 to 51, an unknown family, bounds or weights that do not
        fit, an elliptic family with discrete profiles, or an engine that cannot make the fit.
      NotImplementedError: for derivatives by weights or bounds.

    Example:
      >>> import jax
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-((x - 0.3) ** 2 + y**2) / 2)
      >>> fit = jax.jit(lambda kernel: dogfit.fit_kernel(kernel, ["gaussian"]))(blob)
      >>> print(f"R² {fit.r2:.2f}, status {dogfit.Status(int(fit.status)).name}")
      R² 1.00, status CONVERGED
    """
    chosen = resolve_families(families)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((kernel, weights, bounds))):
        return fit_traced(kernel, chosen, weights, bounds, config)
    host = host_array(kernel, "kernels")
    task = _task(host.shape, "h w", chosen, config)
    weight = _host_weights(weights, [host.shape])
    boxes = _boxes_of_one(bounds, task)
    host, weight = fold_masks(host[None], None if weight is None else weight[None])
    intake = take_in(host, weight, _double())
    # Constants of the caller's program are fitted while it is traced.
    with jax.ensure_compile_time_eval():
        boxes = jax.tree.map(lambda side: jnp.asarray(side, intake.kernels.dtype), boxes)
        result = fit_block(intake.kernels, intake.weights, boxes, *task[:3])
        result = restore(jax.tree.map(np.asarray, result), intake)
    return jax.tree.map(lambda leaf: leaf[0], result)


def fit_kernels(
    kernels: Float[ArrayLike, "n h w"] | Iterator[Float[ArrayLike, "n h w"]],
    families: Families = FAMILIES,
    *,
    weights: Float[ArrayLike, "h w"] | Float[ArrayLike, "n h w"] | None = None,
    bounds: Bounds | None = None,
    config: FitConfig = DEFAULT,
    mesh: Mesh | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> FitResult:
    """Fit every kernel with every family and choose one family each.

    Streams the kernels in blocks through one compiled program per kernel shape, on all cores of a CPU. A
    kernel that is constant or not finite gets a status, and affects no other.

    Args:
      kernels: taps `[n, h, w]` in correlation order (as PyTorch stores them); for a Conv2d weight pass
        `weight[:, 0]`. Arrays of any library and any real type; masked taps have weight 0. A memory-mapped
        array is read as it goes, and an iterator of blocks as they come.
      families: see `fit_kernel`.
      weights: of taps, shared `[h, w]` or each kernel's own `[n, h, w]`; see `fit_kernel`.
      bounds: see `fit_kernel`; values may be arrays `[n]`, one per kernel.
      config: profile, criterion and search effort.
      mesh: devices of this process that share the kernels, each fitting its own (see
        `dogfit.devices.data_mesh`); JAX's default device if None.
      progress: called with the kernels done so far and their number (None for an iterator).

    Returns:
      FitResult with NumPy arrays, a row for each kernel.

    Raises:
      TypeError: as `fit_kernel`; inside `jit`, `vmap` and `grad`, which take `fit_kernel`.
      ValueError: as `fit_kernel`; for an iterator that yields nothing.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-(x**2 + y**2) / 2)
      >>> fit = dogfit.fit_kernels(np.stack([blob, x * blob, 0 * blob]), ["gaussian", "d1"])
      >>> fit.table()["family"].to_list()
      ['gaussian', 'd1', None]
      >>> fit.table()["status"].to_list()
      ['converged', 'converged', 'constant']
    """
    if isinstance(kernels, Iterator):
        results = fit_stream(kernels, families, weights=weights, bounds=bounds, config=config, mesh=mesh)
        total = None
    else:
        host = _host_kernels(kernels, "fit_kernels")
        # The shape is checked first.
        results, total = _fit_array(host, families, weights, bounds, config, mesh), len(host)
    parts: list[FitResult] = []
    done = 0
    for part in results:
        parts.append(part)
        done += len(part)
        if progress is not None:
            progress(done, total)
    if not parts:
        raise ValueError("the iterator of kernels yielded no block")
    return concatenate(parts)


def fit_stream(
    blocks: Iterable[Float[ArrayLike, "n h w"]],
    families: Families = FAMILIES,
    *,
    weights: Float[ArrayLike, "h w"] | None = None,
    bounds: Bounds | None = None,
    config: FitConfig = DEFAULT,
    mesh: Mesh | None = None,
) -> Iterator[FitResult]:
    """Fit blocks of kernels as they come, in order and in bounded memory.

    Blocks may have any length; long ones are cut for the device, short ones padded. All blocks of one kernel
    shape share a compiled program.

    Args:
      blocks: arrays `[n, h, w]`; see `fit_kernels`.
      families: see `fit_kernel`.
      weights: of taps `[h, w]`, shared by all kernels; see `fit_kernel`.
      bounds: see `fit_kernel`; shared by all kernels.
      config: profile, criterion and search effort.
      mesh: see `fit_kernels`.

    Yields:
      A FitResult with NumPy arrays for each block.

    Raises:
      TypeError: as `fit_kernels`, when the block in question is reached; so are errors of values.
      ValueError: as `fit_kernel`.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-(x**2 + y**2) / 2)
      >>> blocks = (np.stack([x * blob] * count) for count in (3, 1))
      >>> [len(fit) for fit in dogfit.fit_stream(blocks, ["gaussian", "d1"])]
      [3, 1]
    """

    chosen = resolve_families(families)

    def jobs() -> Iterator[list[Piece]]:
        for block in blocks:
            host = _host_kernels(block, "fit_stream")
            task = _task(host.shape, "n h w", chosen, config)._replace(mesh=mesh)
            weight = _host_weights(weights, [host.shape[1:]])
            boxes = resolve_bounds(bounds, task.families, task.shape)
            if any(box.lower.shape[-1] != 1 for box in boxes.values()):
                raise ValueError("bounds of a stream must be numbers, shared by all kernels")
            yield cut_pieces(Piece(*fold_masks(host, weight), boxes, task))

    return fit_pieces(jobs())


def _fit_array(
    host: Num[np.ndarray, "n h w"],
    families: Families,
    weights: ArrayLike | None,
    bounds: Bounds | None,
    config: FitConfig,
    mesh: Mesh | None,
) -> Iterator[FitResult]:
    task = _task(host.shape, "n h w", resolve_families(families), config)._replace(mesh=mesh)
    weight = _host_weights(weights, [host.shape[1:], host.shape])
    boxes = resolve_bounds(bounds, task.families, task.shape)
    for name, box in boxes.items():
        given = box.lower.shape[-1]
        if given not in (1, len(host)):
            raise ValueError(f"bounds of {name} are for {given} kernels, but there are {len(host)}")
    return fit_pieces([piece] for piece in cut_pieces(Piece(*fold_masks(host, weight), boxes, task)))


def fit_traced(
    kernel: ArrayLike,
    families: tuple[Family, ...],
    weights: ArrayLike | None,
    bounds: Bounds | None,
    config: FitConfig,
    *,
    follow: bool = True,
) -> FitResult:
    """Fit a kernel whose taps, weights or bounds are known when the caller's program runs.

    Args:
      kernel: as for `fit_kernel`, and so are the others.
      families: those to fit.
      weights: of taps.
      bounds: of parameters.
      config: static.
      follow: whether parameters have derivatives by the kernel; see `dogfit.fitting.program.fit_block`.

    Returns:
      FitResult whose arrays lack the first axis.
    """
    taps = kernel if isinstance(kernel, Tracer) else host_array(kernel, "kernels")
    check_real(taps.dtype, "kernels")
    task = _task(taps.shape, "h w", families, config)
    if isinstance(weights, Tracer):
        check_real(weights.dtype, "weights")
        _check_weight_shape(weights.shape, [taps.shape])
        weight = weights
        if isinstance(taps, np.ma.MaskedArray):
            taps, weight = taps.data, jnp.where(~np.ma.getmaskarray(taps), weight, 0)
    else:
        weight = _host_weights(weights, [taps.shape])
        taps, weight = (taps, weight) if isinstance(taps, Tracer) else fold_masks(taps, weight)
    kernel = in_working_precision(jnp.asarray(taps))
    if isinstance(weight, np.ndarray):
        weight = relative_weights(weight, np.dtype(kernel.dtype))
    elif weight is not None:
        weight = _traced_relative(weight, kernel.dtype)
    boxes = jax.tree.map(lambda side: jnp.asarray(side, kernel.dtype), _boxes_of_one(bounds, task))
    weight = None if weight is None else weight[None]
    result = fit_block(kernel[None], weight, boxes, *task[:3], follow=follow)
    return jax.tree.map(lambda leaf: leaf[0], result.blank_unfitted(jnp))


def _traced_relative(weights: Array, dtype: np.dtype) -> Array:
    """Weights of any size in the type of the fit; see `relative_weights`."""
    weights = weights.astype(jnp.promote_types(weights.dtype, dtype))
    largest = jnp.max(weights)
    far = (largest > 0) & ((largest < 2.0**-MAX_EXPONENT) | (largest > 2.0**MAX_EXPONENT))
    return (weights / jnp.where(far, largest, 1)).astype(dtype)


def _host_kernels(kernels: Any, caller: str) -> Num[np.ndarray, "..."]:
    if isinstance(kernels, Tracer):
        raise TypeError(
            f"{caller} runs on the host and cannot be traced; inside jit, vmap, grad and scan use "
            "fit_kernel, which takes one kernel: jax.vmap(fit_kernel)(kernels)"
        )
    return host_array(kernels, "kernels")


def _host_weights(weights: Any, shapes: Sequence[tuple[int, ...]]) -> Num[np.ndarray, "..."] | None:
    """Weights on the host, checked; those that are masked are 0."""
    if weights is None:
        return None
    host = host_array(weights, "weights")
    _check_weight_shape(host.shape, shapes)
    host = host.filled(0) if isinstance(host, np.ma.MaskedArray) else host
    if not (np.isfinite(host) & (host >= 0)).all():
        raise ValueError("weights must be finite and not negative; 0 leaves a tap out")
    return host


def _check_weight_shape(shape: tuple[int, ...], shapes: Sequence[tuple[int, ...]]) -> None:
    if shape not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"weights must have shape {wanted}, got {shape}")


def _boxes_of_one(bounds: Bounds | None, task: Task) -> dict[str, Box]:
    boxes = resolve_bounds(bounds, task.families, task.shape)
    if any(box.lower.shape[-1] != 1 for box in boxes.values()):
        raise ValueError("bounds of one kernel must be numbers; use vmap for a bound per kernel")
    return boxes


def _double() -> bool:
    """Tell whether JAX is set to float64."""
    return bool(jax.config.read("jax_enable_x64"))


def _task(shape: tuple[int, ...], wanted: str, families: tuple[Family, ...], config: FitConfig) -> Task:
    """Decide what to fit; raise for input that cannot be fitted."""
    check_devices()
    if not isinstance(config, FitConfig):
        raise TypeError(f"config must be a dogfit.FitConfig, such as FitConfig(effort=8), got {config!r}")
    if len(shape) != len(wanted.split()):
        raise ValueError(
            f"kernels must be [{', '.join(wanted.split())}], got shape {tuple(shape)}; "
            "for a depthwise Conv2d weight pass weight[:, 0]"
        )
    height, width = shape[-2:]
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in (height, width)):
        raise ValueError(f"kernel sides must be {MIN_SIZE} to {MAX_SIZE} taps, got shape {tuple(shape)}")
    ellipses = [f.name for f in families if isinstance(f.model, GaussianModel) and f.model.elliptic]
    if ellipses and config.profile == "discrete":
        raise ValueError(f"there are no discrete ellipses: {', '.join(ellipses)} need another profile")
    reasons = unidentifiable(families, (height, width))
    kept = tuple(family for family in families if family.name not in reasons)
    if not kept:
        raise ValueError(f"no family left to fit: {'; '.join(reasons.values())}")
    return Task(kept, tuple(reasons.items()), config, (height, width))
