"""The fitter: every kernel, every family, seeded, refined and selected in one compiled pass.

`fit_kernel` is the pure function, for use inside `jit`, `vmap` and `grad`. `fit_kernels` streams
arrays of any length through it in blocks; `fit_stream` does the same for more kernels than memory holds.
"""

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from dogfit.families import FAMILY, Family, basis_images, search_bounds, to_parameters, why_unidentifiable
from dogfit.fit_result import FitResult, Status, concatenate
from dogfit.kernels.linalg import project, total
from dogfit.kernels.search import Effort, Found, search_optimum
from dogfit.kernels.seeds import MAX_STARTS

FAMILIES = tuple(FAMILY)
MIN_SIZE, MAX_SIZE = 3, 31


@dataclass(frozen=True)
class FitConfig:
    """How hard to search; twice the starts and finalists for two widths, one dimension more.

    The defaults are the ones whose accuracy `benchmarks/fit.py` reports.
    """

    starts: int = 5
    """Dictionary nodes, of as many widths, that are refined."""
    first_steps: int = 5
    """Evaluations for each start."""
    finalists: int = 2
    """Starts that get a second round."""
    second_steps: int = 5
    """Evaluations for each finalist."""
    polish_steps: int = 3
    """Evaluations for the best start, with its block."""
    last_steps: int = 40
    """Evaluations for the few kernels that have not converged then."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"{item.name} must be at least 1, got {getattr(self, item.name)}")
        if not self.finalists <= self.starts <= MAX_STARTS:
            raise ValueError(
                f"starts must be from finalists ({self.finalists}) to {MAX_STARTS}, got {self.starts}"
            )


THOROUGH = FitConfig(starts=10, first_steps=6, finalists=4, second_steps=8, polish_steps=8, last_steps=60)
"""For when each optimum counts more than the time: every width is a start."""


def fit_kernel(
    kernel: Float[ArrayLike, "k k"],
    families: Sequence[str] = FAMILIES,
    *,
    config: FitConfig = FitConfig(),
) -> FitResult:
    """Fit one kernel with every family and choose one by BIC.

    Pure: works inside the caller's `jit`, `vmap` (which batches the search, not merely repeats it) and
    `grad`. `r2` is differentiable in the kernel; since the parameters sit at an optimum, they count as
    constant (envelope theorem).

    Args:
      kernel: taps in correlation order. float32 and float64 are fitted as such, lower
        precisions in float32.
      families: names out of `FAMILIES`; those the size cannot identify are left out and listed
        in `FitResult.omitted`.
      config: search effort; static.

    Raises:
      ValueError: for another shape, a size outside 3 to 31, or an unknown family.
    """
    kernel = jnp.asarray(kernel)
    kept, omitted = _check(kernel.shape, "k k", families)
    result = _fit_block(_working_dtype(kernel)[None], kept, omitted, config)
    return jax.tree.map(lambda leaf: leaf[0], result)


def fit_kernels(
    kernels: Float[ArrayLike, "n k k"],
    families: Sequence[str] = FAMILIES,
    *,
    config: FitConfig = FitConfig(),
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    """Fit every kernel with every family and choose one family each by BIC.

    Streams the kernels in blocks through one compiled program per kernel size, on all cores of a CPU. A
    kernel that is constant or not finite gets a status, and affects no other.

    Args:
      kernels: taps in correlation order (as PyTorch stores them); for a Conv2d weight pass `weight[:, 0]`.
      families: names out of `FAMILIES`; see `fit_kernel`.
      config: search effort.
      progress: called with the kernels done so far and their number.

    Returns:
      FitResult with NumPy arrays.

    Raises:
      ValueError: for another shape, a size outside 3 to 31, or an unknown family.
    """
    host = np.asarray(kernels)
    _check(host.shape, "n k k", families)
    step = _chunk_rows()
    parts: list[FitResult] = []
    done = 0
    for part in fit_stream(
        (host[i : i + step] for i in range(0, max(len(host), 1), step)), families, config=config
    ):
        parts.append(part)
        done += len(part)
        if progress is not None:
            progress(done, len(host))
    return concatenate(parts)


def fit_stream(
    blocks: Iterable[Float[ArrayLike, "n k k"]],
    families: Sequence[str] = FAMILIES,
    *,
    config: FitConfig = FitConfig(),
) -> Iterator[FitResult]:
    """Fit blocks of kernels as they come, one `FitResult` per block, in order and in bounded memory.

    Blocks may have any length; long ones are cut for the device, short ones padded. All blocks of one
    kernel size share a compiled program.
    """
    workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 2
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[list[Future[FitResult]]] = deque()
        for block in blocks:
            block = np.asarray(block)
            kept, omitted = _check(block.shape, "n k k", families)
            step = _chunk_rows()
            pieces = [block[i : i + step] for i in range(0, max(len(block), 1), step)]
            x64 = bool(jax.config.read("jax_enable_x64"))
            waiting.append([pool.submit(_fit_piece, piece, kept, omitted, config, x64) for piece in pieces])
            # Enough in flight to keep every worker busy, few enough to keep memory flat.
            if sum(map(len, waiting)) > 2 * workers:
                yield concatenate([future.result() for future in waiting.popleft()])
        while waiting:
            yield concatenate([future.result() for future in waiting.popleft()])


def _check(
    shape: tuple[int, ...], wanted: str, families: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Families to fit and those omitted with the reason; raises for input that cannot be fitted."""
    if len(shape) != len(wanted.split()) or shape[-1] != shape[-2]:
        raise ValueError(
            f"kernels must be [{', '.join(wanted.split())}], got shape {tuple(shape)}; "
            "for a depthwise Conv2d weight pass weight[:, 0]"
        )
    if not MIN_SIZE <= shape[-1] <= MAX_SIZE:
        raise ValueError(f"kernel size must be {MIN_SIZE} to {MAX_SIZE}, got {shape[-1]}")
    unknown = [name for name in families if name not in FAMILY]
    if unknown or not families:
        raise ValueError(f"families must be out of {', '.join(FAMILIES)}, got {', '.join(unknown) or 'none'}")
    reasons = {name: why_unidentifiable(FAMILY[name], shape[-1]) for name in dict.fromkeys(families)}
    kept = tuple(name for name, reason in reasons.items() if reason is None)
    omitted = tuple((name, reason) for name, reason in reasons.items() if reason is not None)
    if not kept:
        raise ValueError(f"no family left to fit: {'; '.join(reason for _, reason in omitted)}")
    return kept, omitted


def _working_dtype(kernels: Array) -> Array:
    """float64 stays, everything else is fitted in float32."""
    return kernels if kernels.dtype == jnp.float64 else kernels.astype(jnp.float32)


def _block_rows() -> int:
    """Kernels per compiled block: cache-sized on a CPU, enough to fill an accelerator elsewhere."""
    return 64 if jax.default_backend() == "cpu" else 8192


def _chunk_rows() -> int:
    """Kernels per call of the compiled program."""
    return 16 * _block_rows()


def _fit_piece(
    piece: np.ndarray,
    families: tuple[str, ...],
    omitted: tuple[tuple[str, str], ...],
    config: FitConfig,
    x64: bool,
) -> FitResult:
    # Zero rows end at once: constant kernels have nothing to climb.
    padding = _chunk_rows() - len(piece)
    padded = np.pad(piece, ((0, padding), (0, 0), (0, 0)))
    # The caller's float64 setting may be local to its thread.
    with jax.enable_x64(x64):
        result = _fit_block(_working_dtype(jnp.asarray(padded)), families, omitted, config)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[: len(piece)], result)


@functools.partial(jax.jit, static_argnames=("families", "omitted", "config"))
def _fit_block(
    kernels: Float[Array, "b k k"],
    families: tuple[str, ...],
    omitted: tuple[tuple[str, str], ...],
    config: FitConfig,
) -> FitResult:
    """Fit kernels with all families: every stage, in one compiled program."""
    size = kernels.shape[-1]
    taps = size * size
    finite = jnp.all(jnp.isfinite(kernels), axis=(1, 2))
    safe = jnp.where(finite[:, None, None], kernels, 0.0)
    # Scaled before squaring, so that kernels of any magnitude are alike.
    largest = jnp.max(jnp.abs(safe), axis=(1, 2))
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1.0))
    scaled = safe / scale[:, None, None]
    mean = jnp.mean(scaled, axis=(1, 2))
    centred = scaled - mean[:, None, None]
    energy = jnp.sum(centred**2, axis=(1, 2))
    # Equal up to rounding.
    varied = energy > taps * (4 * float(jnp.finfo(kernels.dtype).eps)) ** 2
    fitted = finite & varied
    energy = jnp.where(fitted, energy, 1.0)
    unit = jnp.where(fitted[:, None, None], centred / jnp.sqrt(energy)[:, None, None], 0.0)
    unit = lax.transpose(unit, (1, 2, 0))

    r2, status, parameters, steps, agreeing = [], [], {}, [], []
    for name in families:
        family = FAMILY[name]
        found = _search(lax.stop_gradient(unit), family, config)
        unexplained, offset, gains = _solve_linear(unit, basis_images(family, found.point, size))
        amplitude = scale * jnp.sqrt(energy)
        values = to_parameters(
            family, found.point, mean * scale + amplitude * offset, [amplitude * gain for gain in gains]
        )
        parameters[name] = jnp.where(fitted[:, None], values, jnp.nan)
        r2.append(1.0 - unexplained)
        status.append(_status(found, family, size, _tolerance(kernels.dtype)))
        steps.append(found.steps)
        agreeing.append(found.agreeing)

    r2_by_family = jnp.where(fitted[:, None], jnp.stack(r2, axis=1), jnp.nan)
    # A perfect fit has no finite likelihood; below rounding one fit is as good as another.
    noise_floor = float(jnp.finfo(kernels.dtype).eps) ** 2 * taps
    free = jnp.asarray([len(FAMILY[name].parameters) for name in families], kernels.dtype)
    residual = jnp.maximum(1.0 - r2_by_family, noise_floor)
    bic = taps * jnp.log(residual / taps) + (free * math.log(taps))[None, :]
    choice = jnp.argmin(jnp.where(fitted[:, None], bic, 0.0), axis=1)

    def chosen(values: Array) -> Array:
        return jnp.take_along_axis(values, choice[:, None], axis=1)[:, 0]

    bad = jnp.where(finite, jnp.int8(Status.CONSTANT), jnp.int8(Status.NONFINITE))
    status_by_family = jnp.where(fitted[:, None], jnp.stack(status, axis=1), bad[:, None])
    best_r2 = chosen(r2_by_family)
    unexplained = jnp.where(fitted, jnp.maximum(1.0 - best_r2, 0.0), 1.0)
    rmse = scale * jnp.sqrt(lax.stop_gradient(energy * unexplained) / taps)
    return FitResult(
        families=families,
        omitted=omitted,
        size=size,
        family=jnp.where(fitted, choice, -1).astype(jnp.int8),
        r2=best_r2,
        rmse=jnp.where(fitted, rmse, jnp.nan),
        status=chosen(status_by_family),
        r2_by_family=r2_by_family,
        bic_by_family=bic,
        status_by_family=status_by_family,
        parameters=parameters,
        steps=jnp.stack(steps, axis=1),
        agreeing=jnp.stack(agreeing, axis=1),
    )


def _tolerance(dtype: Any) -> float:
    """Energy (of 1) below which a further step is not worth taking."""
    return 1e-7 if dtype == jnp.float32 else 1e-14


def _search(unit: Float[Array, "k k b"], family: Family, config: FitConfig) -> Found:
    """Optimum of one family for a block; `vmap` widens the block instead of nesting loops."""

    effort = asdict(config)
    if family.two_widths:
        effort |= {"starts": 2 * config.starts, "finalists": 2 * config.finalists}

    def search(kernels: Float[Array, "k k b"]) -> Found:
        lower, upper = (jnp.asarray(b, kernels.dtype) for b in search_bounds(family, kernels.shape[0]))
        return search_optimum(
            lax.transpose(kernels, (1, 0, 2)),
            lower,
            upper,
            family.terms,
            Effort(**effort, tolerance=_tolerance(kernels.dtype)),
            block=min(_block_rows(), kernels.shape[-1]),
        )

    batched = jax.custom_batching.custom_vmap(search)

    @batched.def_vmap
    def _(axis_size: int, in_batched: list[bool], kernels: Float[Array, "v k k b"]):
        del in_batched
        wide = jnp.moveaxis(kernels, 0, -2)
        found = batched(wide.reshape(*wide.shape[:2], -1))
        split = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], axis_size, -1), -2, 0), found
        )
        return split, jax.tree.map(lambda _: True, split)

    return batched(unit)


def _solve_linear(
    unit: Float[Array, "k k b"], columns: list[Float[Array, "k k b"]]
) -> tuple[Float[Array, " b"], Float[Array, " b"], list[Float[Array, " b"]]]:
    """Unexplained energy, offset and gains of centred kernels on a basis; differentiable in `unit`."""
    means = [jnp.mean(c, axis=(0, 1)) for c in columns]
    found = project(unit, [c - m[None, None, :] for c, m in zip(columns, means, strict=True)])
    offset = -total(gain * mean for gain, mean in zip(found.weights, means, strict=True))
    return jnp.sum(found.residual**2, axis=(0, 1)), offset, found.weights


def _status(found: Found, family: Family, size: int, tolerance: float) -> Int[Array, " b"]:
    lower, upper = (jnp.asarray(b, found.point.dtype)[:, None] for b in search_bounds(family, size))
    at_bound = jnp.any((found.point <= lower) | (found.point >= upper), axis=0)
    settled = jnp.where(at_bound, jnp.int8(Status.AT_BOUND), jnp.int8(Status.CONVERGED))
    # Ten times the tolerance: rows stop one step after it is met, or when rounding stops the ascent.
    return jnp.where(found.promise <= 10 * tolerance, settled, jnp.int8(Status.MAX_STEPS))
