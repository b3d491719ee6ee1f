"""Kernels of any number through a compiled program of fixed size: cut, padded, on all cores, in order."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Num

from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import Family
from dogfit.fitting.intake import restore, take_in
from dogfit.fitting.program import fit_block, fit_sharded
from dogfit.fitting.result import FitResult, concatenate
from dogfit.kernels.tuning import rows_per_call
from dogfit.kernels.types import Box


class Task(NamedTuple):
    """Families and settings that every kernel of a call is fitted with.

    Attributes:
      families: those fitted.
      unidentifiable: those asked for that the kernel's shape cannot identify, each with the reason.
      config: static.
      shape: taps along y and x.
      mesh: devices that share the kernels; JAX's default device if None.
    """

    families: tuple[Family, ...]
    unidentifiable: tuple[tuple[str, str], ...]
    config: FitConfig
    shape: tuple[int, int]
    mesh: Mesh | None = None

    @property
    def rows(self) -> int:
        """Kernels in each call of the compiled program."""
        return rows_per_call() * (1 if self.mesh is None else self.mesh.size)


class Piece(NamedTuple):
    """Kernels with all that belongs to them, on the host.

    Attributes:
      kernels: `[n, h, w]`, of any real type.
      weights: shared `[h, w]`, or each kernel's own `[n, h, w]`.
      boxes: NumPy bounds by family, `[p, 1]` or `[p, n]`.
      task: what is fitted to them.
    """

    kernels: Num[np.ndarray, "n h w"]
    weights: Num[np.ndarray, "..."] | None
    boxes: dict[str, Box]
    task: Task


def cut_pieces(whole: Piece) -> list[Piece]:
    """Cut kernels into pieces of at most one call of the compiled program; one empty piece for none."""
    rows = whole.task.rows

    def part(start: int) -> Piece:
        here = slice(start, start + rows)
        weights = whole.weights if whole.weights is None or whole.weights.ndim == 2 else whole.weights[here]
        boxes = {
            name: box if box.lower.shape[-1] == 1 else Box(box.lower[:, here], box.upper[:, here])
            for name, box in whole.boxes.items()
        }
        return whole._replace(kernels=whole.kernels[here], weights=weights, boxes=boxes)

    return [part(start) for start in range(0, max(len(whole.kernels), 1), rows)]


def fit_pieces(jobs: Iterable[list[Piece]]) -> Iterator[FitResult]:
    """Fit lists of pieces on all cores, one result per list, in order and in bounded memory."""
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


def _fit_piece(piece: Piece, x64: bool) -> FitResult:
    rows, task = len(piece.kernels), piece.task
    intake = take_in(piece.kernels, piece.weights, x64)
    # Zero rows end at once: constant kernels have nothing to climb.
    padding = task.rows - rows
    # The caller's float64 setting may be local to its thread.
    with jax.enable_x64(x64):
        kernels = jnp.asarray(_pad_rows(intake.kernels, padding))
        weights = intake.weights
        if weights is not None:
            weights = jnp.asarray(_pad_rows(np.broadcast_to(weights, piece.kernels.shape), padding))
        boxes = {
            name: Box(*(jnp.asarray(_pad_bound(np.asarray(side), padding), kernels.dtype) for side in box))
            for name, box in piece.boxes.items()
        }
        arguments = (kernels, weights, boxes, task.families, task.unidentifiable, task.config)
        result = fit_block(*arguments) if task.mesh is None else fit_sharded(*arguments, task.mesh)
    return restore(jax.tree.map(lambda leaf: np.asarray(leaf)[:rows], result), intake)


def _pad_rows(rows: Float[np.ndarray, "n h w"], padding: int) -> Float[np.ndarray, "m h w"]:
    return np.pad(rows, ((0, padding), (0, 0), (0, 0)))


def _pad_bound(side: np.ndarray, padding: int) -> np.ndarray:
    if side.shape[-1] == 1:
        return side
    return np.pad(side, ((0, 0), (0, padding)), mode="edge" if side.shape[-1] else "constant")
