"""Fits of kernels: one inside JAX code, arrays of any length, and streams of blocks.

Every kernel is fitted with every family, seeded, refined and selected in one compiled pass. `fit_kernel` is
the pure function, for use inside `jit`, `vmap` and `grad`. `fit_kernels` streams arrays of any length through
it in blocks; `fit_stream` does the same for more kernels than memory holds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from dogfit.fitting.batching import Piece, Task, cut_pieces, fit_pieces
from dogfit.fitting.bounds import Bounds, resolve_bounds
from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES, Family, unidentifiable
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.program import fit_block, in_working_precision
from dogfit.fitting.result import FitResult, concatenate
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
    `shard_map` and `grad`. `r2` is differentiable in the kernel; since the parameters sit at an optimum, they
    count as constant (envelope theorem).

    Args:
      kernel: taps `[h, w]` in correlation order, in any unit. float32 and float64 are fitted as such, other
        types in float32.
      families: names out of `dogfit.fitting.family_names.ALL_FAMILIES`, or families of your own; those that
        the kernel's shape cannot identify are left out and listed in `FitResult.unidentifiable`.
      weights: of taps `[h, w]`, for instance the inverse of their noise variance; 0 leaves a tap out, and
        what stands there does not matter.
      bounds: narrower bounds of parameters, or values to fix them at: `{"sigma_px": (0.5, 2.0)}`, or by
        family, `{"dog": {"x0_px": 0.0}}`. Names: x0_px, y0_px, sigma_px (taps), surround_ratio (of the
        surround's width to the center's), surround_weight, and the ranges of your own families.
      config: profile, criterion and search effort; static.

    Returns:
      FitResult whose arrays lack the first axis.

    Raises:
      ValueError: for another shape, a side outside 3 to 51, an unknown family, bounds or weights that do not
        fit, an elliptic family with discrete profiles, or an engine that cannot make the fit.

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
    kernel = jnp.asarray(kernel)
    task = _task(kernel.shape, "h w", families, config)
    kernel = in_working_precision(kernel)
    weight = None if weights is None else jnp.asarray(weights, kernel.dtype)
    _check_weights(weight, [kernel.shape])
    boxes = resolve_bounds(bounds, task.families, task.shape)
    if any(box.lower.shape[-1] != 1 for box in boxes.values()):
        raise ValueError("bounds of one kernel must be numbers; use vmap for a bound per kernel")
    boxes = jax.tree.map(lambda side: jnp.asarray(side, kernel.dtype), boxes)
    result = fit_block(kernel[None], None if weight is None else weight[None], boxes, *task[:3])
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
        `weight[:, 0]`. A memory-mapped array is read as it goes, and an iterator of blocks as they come.
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
        host = kernels if isinstance(kernels, np.ndarray) else np.asarray(kernels)
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
      ValueError: as `fit_kernel`, when the block in question is reached.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> y, x = np.mgrid[-2:3, -2:3]
      >>> blob = np.exp(-(x**2 + y**2) / 2)
      >>> blocks = (np.stack([x * blob] * count) for count in (3, 1))
      >>> [len(fit) for fit in dogfit.fit_stream(blocks, ["gaussian", "d1"])]
      [3, 1]
    """

    def jobs() -> Iterator[list[Piece]]:
        for block in blocks:
            host = np.asarray(block)
            task = _task(host.shape, "n h w", families, config)._replace(mesh=mesh)
            weight = None if weights is None else np.asarray(weights)
            _check_weights(weight, [host.shape[1:]])
            boxes = _host_boxes(bounds, task)
            if any(box.lower.shape[-1] != 1 for box in boxes.values()):
                raise ValueError("bounds of a stream must be numbers, shared by all kernels")
            yield cut_pieces(Piece(host, weight, boxes, task))

    return fit_pieces(jobs())


def _fit_array(
    host: Float[np.ndarray, "n h w"],
    families: Families,
    weights: ArrayLike | None,
    bounds: Bounds | None,
    config: FitConfig,
    mesh: Mesh | None,
) -> Iterator[FitResult]:
    task = _task(host.shape, "n h w", families, config)._replace(mesh=mesh)
    weight = None if weights is None else np.asarray(weights)
    _check_weights(weight, [host.shape[1:], host.shape])
    boxes = _host_boxes(bounds, task)
    for name, box in boxes.items():
        given = box.lower.shape[-1]
        if given not in (1, len(host)):
            raise ValueError(f"bounds of {name} are for {given} kernels, but there are {len(host)}")
    return fit_pieces([piece] for piece in cut_pieces(Piece(host, weight, boxes, task)))


def _host_boxes(bounds: Bounds | None, task: Task) -> dict[str, Box]:
    boxes = resolve_bounds(bounds, task.families, task.shape)
    return {name: Box(np.asarray(box.lower), np.asarray(box.upper)) for name, box in boxes.items()}


def _task(shape: tuple[int, ...], wanted: str, families: Families, config: FitConfig) -> Task:
    """Decide what to fit; raise for input that cannot be fitted."""
    if len(shape) != len(wanted.split()):
        raise ValueError(
            f"kernels must be [{', '.join(wanted.split())}], got shape {tuple(shape)}; "
            "for a depthwise Conv2d weight pass weight[:, 0]"
        )
    height, width = shape[-2:]
    if not all(MIN_SIZE <= side <= MAX_SIZE for side in (height, width)):
        raise ValueError(f"kernel sides must be {MIN_SIZE} to {MAX_SIZE} taps, got shape {tuple(shape)}")
    unknown = [name for name in families if isinstance(name, str) and name not in BUILTIN_FAMILIES]
    if unknown or not families or isinstance(families, str):
        given = families if isinstance(families, str) else ", ".join(map(str, unknown)) or "none"
        raise ValueError(f"families must be a sequence out of {', '.join(BUILTIN_FAMILIES)}, got {given}")
    distinct = dict.fromkeys(BUILTIN_FAMILIES[f] if isinstance(f, str) else f for f in families)
    if len({family.name for family in distinct}) < len(distinct):
        raise ValueError(f"two families share a name: {', '.join(f.name for f in distinct)}")
    ellipses = [f.name for f in distinct if isinstance(f.model, GaussianModel) and f.model.elliptic]
    if ellipses and config.profile == "discrete":
        raise ValueError(f"there are no discrete ellipses: {', '.join(ellipses)} need another profile")
    reasons = unidentifiable(distinct, (height, width))
    kept = tuple(family for family in distinct if family.name not in reasons)
    if not kept:
        raise ValueError(f"no family left to fit: {'; '.join(reasons.values())}")
    return Task(kept, tuple(reasons.items()), config, (height, width))


def _check_weights(weights: ArrayLike | None, shapes: Sequence[tuple[int, ...]]) -> None:
    if weights is None:
        return
    if np.shape(weights) not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"weights must have shape {wanted}, got {np.shape(weights)}")
    if not isinstance(weights, Tracer):
        host = np.asarray(weights)
        if not (np.isfinite(host) & (host >= 0)).all():
            raise ValueError("weights must be finite and not negative; 0 leaves a tap out")
