"""The fitter: every kernel, every family, seeded, refined and selected in one compiled pass.

`fit_kernel` is the pure function, for use inside `jit`, `vmap` and `grad`. `fit_kernels` streams
arrays of any length through it in blocks; `fit_stream` does the same for more kernels than memory holds.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from dogfit.fitting.bounds import Bounds, resolve_bounds
from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import BUILTIN_FAMILIES, Family, unidentifiable
from dogfit.fitting.family_names import FAMILIES
from dogfit.fitting.program import fit_block, fit_sharded, in_working_precision
from dogfit.fitting.result import FitResult, concatenate
from dogfit.fitting.search import chunk_rows
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.types import Box

MIN_SIZE, MAX_SIZE = 3, 51
Families = Sequence[str | Family]
# Lower and upper bounds, `[p, 1]` or `[p, n]`.
HostBox = tuple[np.ndarray, np.ndarray]


class _Task(NamedTuple):
    """What is fitted to every kernel of a call."""

    families: tuple[Family, ...]
    unidentifiable: tuple[tuple[str, str], ...]
    config: FitConfig
    shape: tuple[int, int]
    mesh: Mesh | None = None


def fit_kernel(
    kernel: Float[ArrayLike, "h w"],
    families: Families = FAMILIES,
    *,
    weights: Float[ArrayLike, "h w"] | None = None,
    bounds: Bounds | None = None,
    config: FitConfig = DEFAULT,
) -> FitResult:
    """Fit one kernel with every family and choose one of them.

    Pure: works inside the caller's `jit`, `vmap` (which batches the search, not merely repeats it),
    `scan`, `shard_map` and `grad`. `r2` is differentiable in the kernel; since the parameters sit at an
    optimum, they count as constant (envelope theorem).

    Args:
      kernel: taps in correlation order. float32 and float64 are fitted as such, lower
        precisions in float32.
      families: names out of `dogfit.fitting.families.BUILTIN_FAMILIES`, or families of your own; those the
        kernel's shape cannot identify are left out and listed in `FitResult.unidentifiable`.
      weights: of taps, for instance the inverse of their noise variance; 0 leaves a tap out, and
        what stands there does not matter.
      bounds: narrower bounds of parameters, or values to fix them at: `{"sigma_px": (0.5, 2.0)}`, or by
        family, `{"dog": {"x0_px": 0.0}}`. Names: x0_px, y0_px, sigma_px, surround_ratio (of the
        surround's width to the centre's), surround_weight, and the ranges of your own families.
      config: profile, criterion and search effort; static.

    Raises:
      ValueError: for another shape, a side outside 3 to 51, an unknown family, bounds or weights that
        do not fit, or an elliptic family with discrete profiles.
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
      kernels: taps in correlation order (as PyTorch stores them); for a Conv2d weight pass
        `weight[:, 0]`. A memory-mapped array is read as it goes, and an iterator of blocks as they come.
      families: see `fit_kernel`.
      weights: of taps, shared `[h, w]` or each kernel's own; see `fit_kernel`.
      bounds: see `fit_kernel`; values may be arrays `[n]`, one per kernel.
      config: profile, criterion and search effort.
      mesh: devices of this process that share the kernels, each fitting its own (see
        `dogfit.devices.data_mesh`); JAX's default device if None.
      progress: called with the kernels done so far and their number (None for an iterator).

    Returns:
      FitResult with NumPy arrays.

    Raises:
      ValueError: as `fit_kernel`; for an iterator that yields nothing.
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
    """Fit blocks of kernels as they come, one `FitResult` per block, in order and in bounded memory.

    Blocks may have any length; long ones are cut for the device, short ones padded. All blocks of one
    kernel shape share a compiled program. Weights and bounds are shared by all kernels; `mesh` as for
    `fit_kernels`.
    """

    def jobs() -> Iterator[list[_Piece]]:
        for block in blocks:
            host = np.asarray(block)
            task = _task(host.shape, "n h w", families, config)._replace(mesh=mesh)
            weight = None if weights is None else np.asarray(weights)
            _check_weights(weight, [host.shape[1:]])
            boxes = _host_boxes(bounds, task)
            if any(lower.shape[-1] != 1 for lower, _ in boxes.values()):
                raise ValueError("bounds of a stream must be numbers, shared by all kernels")
            yield _cut(_Piece(host, weight, boxes, task))

    return _run(jobs())


def _fit_array(
    host: np.ndarray,
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
    for name, (lower, _) in boxes.items():
        given = lower.shape[-1]
        if given not in (1, len(host)):
            raise ValueError(f"bounds of {name} are for {given} kernels, but there are {len(host)}")
    return _run([piece] for piece in _cut(_Piece(host, weight, boxes, task)))


class _Piece(NamedTuple):
    """Kernels with all that belongs to them, on the host."""

    kernels: np.ndarray
    weights: np.ndarray | None
    boxes: dict[str, HostBox]
    task: _Task


def _cut(whole: _Piece) -> list[_Piece]:
    """Pieces of at most one call of the compiled program."""
    rows = _chunk_rows(whole.task.mesh)

    def part(start: int) -> _Piece:
        here = slice(start, start + rows)
        weights = whole.weights if whole.weights is None or whole.weights.ndim == 2 else whole.weights[here]
        boxes = {
            name: box if box[0].shape[-1] == 1 else (box[0][:, here], box[1][:, here])
            for name, box in whole.boxes.items()
        }
        return whole._replace(kernels=whole.kernels[here], weights=weights, boxes=boxes)

    return [part(start) for start in range(0, max(len(whole.kernels), 1), rows)]


def _run(jobs: Iterable[list[_Piece]]) -> Iterator[FitResult]:
    """Fit lists of pieces on all cores, one result per list, in order."""
    workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 2
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[list[Future[FitResult]]] = deque()
        for pieces in jobs:
            x64 = bool(jax.config.read("jax_enable_x64"))
            waiting.append([pool.submit(_fit_piece, piece, x64) for piece in pieces])
            # Enough in flight to keep every worker busy, few enough to keep memory flat.
            while sum(map(len, waiting)) > 2 * workers:
                yield concatenate([future.result() for future in waiting.popleft()])
        while waiting:
            yield concatenate([future.result() for future in waiting.popleft()])


def _fit_piece(piece: _Piece, x64: bool) -> FitResult:
    rows = len(piece.kernels)
    # Zero rows end at once: constant kernels have nothing to climb.
    padding = _chunk_rows(piece.task.mesh) - rows
    # The caller's float64 setting may be local to its thread.
    with jax.enable_x64(x64):
        kernels = in_working_precision(jnp.asarray(np.pad(piece.kernels, ((0, padding), (0, 0), (0, 0)))))
        weights = piece.weights
        if weights is not None:
            whole = np.broadcast_to(weights, piece.kernels.shape)
            weights = jnp.asarray(np.pad(whole, ((0, padding), (0, 0), (0, 0))), kernels.dtype)
        boxes = {
            name: Box(*(jnp.asarray(_pad_bound(side, padding), kernels.dtype) for side in box))
            for name, box in piece.boxes.items()
        }
        mesh = piece.task.mesh
        if mesh is None:
            result = fit_block(kernels, weights, boxes, *piece.task[:3])
        else:
            result = fit_sharded(kernels, weights, boxes, *piece.task[:3], mesh)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:rows], result)


def _pad_bound(side: np.ndarray, padding: int) -> np.ndarray:
    return side if side.shape[-1] == 1 else np.pad(side, ((0, 0), (0, padding)), mode="edge")


def _host_boxes(bounds: Bounds | None, task: _Task) -> dict[str, HostBox]:
    boxes = resolve_bounds(bounds, task.families, task.shape)
    return {name: (np.asarray(box.lower), np.asarray(box.upper)) for name, box in boxes.items()}


def _task(shape: tuple[int, ...], wanted: str, families: Families, config: FitConfig) -> _Task:
    """What to fit; raises for input that cannot be fitted."""
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
    return _Task(kept, tuple(reasons.items()), config, (height, width))


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


def _chunk_rows(mesh: Mesh | None) -> int:
    """Kernels per call of the compiled program."""
    return chunk_rows() * (1 if mesh is None else mesh.size)
