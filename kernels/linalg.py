"""Tiny symmetric solves, unrolled, with the batch in every entry.

Batched library factorisations loop over matrices of this size; unrolled arithmetic on whole batches
does not. Matrices are dictionaries of their lower triangle, `{(row, column): Float[Array, "b"]}`.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

from dogfit.kernels.types import Batch

Symmetric = Mapping[tuple[int, int], Batch]


@jax.jit
def _same(values: Any) -> Any:
    return lax.optimization_barrier(values)


def materialize(values: Any) -> Any:
    """The values, computed once: fusing for CPUs, XLA would repeat them in each operation that needs them.

    It drops an optimisation barrier before it fuses, but a call that is not to be inlined stands. Equal
    operations on settled values are also compiled once.
    """
    if jax.default_backend() != "cpu":
        return values
    with set_xla_metadata(inlineable="false"):
        return _same(values)


def sum_arrays(values: Iterable[Any]) -> Any:
    """Sum of a non-empty sequence of arrays."""
    return functools.reduce(operator.add, values)


def sum_taps(images: Float[Array, "h w b"]) -> Batch:
    """Sum over the taps, term by term: XLA's reductions for CPUs are many times slower, and not always right.

    (Over a large batch, with a factor broadcast along an axis that is not summed over; jax 0.10.2.)
    """
    return _reduce_taps(operator.add, images)


def largest_tap(images: Float[Array, "h w b"]) -> Batch:
    """Largest of the taps."""
    return _reduce_taps(jnp.maximum, images)


def _reduce_taps(operation: Callable[[Array, Array], Array], images: Float[Array, "h w b"]) -> Batch:
    rows = materialize(functools.reduce(operation, list(images)))
    return functools.reduce(operation, list(rows))


def inverse_root(square: Batch, least: Batch | float) -> Batch:
    """One over the root of a square, 0 where that is not above the least which counts."""
    usable = square > least
    return jnp.where(usable, lax.rsqrt(jnp.where(usable, square, 1.0)), 0.0)


def map_chunks(function: Callable[[Any], Any], arrays: Any, size: int) -> Any:
    """A function applied to parts of a batch, one after the other, and the results joined.

    Args:
      function: takes and returns pytrees of arrays with the batch on the last axis.
      arrays: the batch; those of batch 1 but the first are for all. Where the first is nothing but zeros in
        a part, the results are too.
      size: batch of a part, which divides the whole.
    """
    # Traced once, for the shapes of its results and to be applied.
    function = jax.jit(function)
    rows = jax.tree.leaves(arrays)[0].shape[-1]

    def cut(array: Array) -> Array:
        array = jnp.broadcast_to(array, (*array.shape[:-1], rows))
        return jnp.moveaxis(array.reshape(*array.shape[:-1], -1, size), -2, 0)

    def join(parts: Array) -> Array:
        return jnp.moveaxis(parts, 0, -2).reshape(*parts.shape[1:-1], -1)

    def apply(part: Any) -> Any:
        first = jax.tree.leaves(part)[0]
        # Made from the data, so that under shard_map it varies over the mesh as results do.
        zero = 0.0 * first.reshape(-1, size)[0]

        def nothing() -> Any:
            return jax.tree.map(
                lambda leaf: jnp.broadcast_to(zero.astype(leaf.dtype), leaf.shape),
                jax.eval_shape(function, part),
            )

        return lax.cond(jnp.any(first != 0), lambda: function(part), nothing)

    return jax.tree.map(join, lax.map(apply, jax.tree.map(cut, arrays)))


class Projection(NamedTuple):
    """Least-squares solution of `columns @ weights = image`, per item of the batch.

    Attributes:
      residual: what the columns leave of the image.
      weights: one per column.
      factor: Cholesky factor of the Gram matrix: entries below the diagonal, and the inverse diagonal.
    """

    residual: Float[Array, "h w b"]
    weights: list[Batch]
    factor: tuple[dict[tuple[int, int], Batch], list[Batch]]


class _Direction(NamedTuple):
    """One step of Gram-Schmidt: a column's unit direction, and its row of the Cholesky factor."""

    direction: Float[Array, "h w b"]
    lower: list[Batch]
    inverse_diagonal: Batch


def _directions(columns: Sequence[Float[Array, "h w b"]]) -> list[_Direction]:
    """Orthonormal directions of columns, in order; zero where a column depends on earlier ones."""
    out: list[_Direction] = []
    for column in columns:
        least = 16 * float(jnp.finfo(column.dtype).eps)
        before = sum_taps(column * column)
        lower: list[Batch] = []
        for earlier in out:
            lower.append(sum_taps(earlier.direction * column))
            column = column - lower[-1][None, None, :] * earlier.direction
        square = sum_taps(column * column)
        inverse = inverse_root(square, least**2 * before)
        out.append(_Direction(materialize(column * inverse[None, None, :]), lower, inverse))
    return out


def project(image: Float[Array, "h w b"], columns: Sequence[Float[Array, "h w b"]]) -> Projection:
    """Project images on columns by modified Gram-Schmidt; differentiable in `image`.

    The normal equations would lose twice the digits, and two Gaussians of nearly one width have none to
    spare in float32. A column that depends on earlier ones to rounding is given no weight.
    """
    steps = _directions(columns)
    projections: list[Batch] = []
    for step in steps:
        projections.append(sum_taps(step.direction * image))
        image = image - projections[-1][None, None, :] * step.direction
    lower = {(i, j): value for i, step in enumerate(steps) for j, value in enumerate(step.lower)}
    inverse_diagonal = [step.inverse_diagonal for step in steps]
    weights = back_substitute(lower, inverse_diagonal, projections)
    return Projection(image, weights, (lower, inverse_diagonal))


class Solution(NamedTuple):
    """Least-squares solution from inner products alone, per item of the batch.

    Attributes:
      energy: what the columns explain.
      weights: one per column.
      factor: as of a `Projection`.
    """

    energy: Batch
    weights: list[Batch]
    factor: tuple[dict[tuple[int, int], Batch], list[Batch]]


def solve_gram(gram: Symmetric, right: Sequence[Batch]) -> Solution:
    """Solve the normal equations; for columns far from dependent, which lose no digits by it.

    Args:
      gram: inner products of the columns, lower triangle.
      right: inner products of the columns with the images.
    """
    least = 16 * float(jnp.finfo(right[0].dtype).eps)
    lower: dict[tuple[int, int], Batch] = {}
    inverse_diagonal: list[Batch] = []
    solved: list[Batch] = []
    for i in range(len(right)):
        for j in range(i):
            value = gram[i, j] - sum_arrays([lower[i, p] * lower[j, p] for p in range(j)] or [0.0])
            lower[i, j] = value * inverse_diagonal[j]
        square = gram[i, i] - sum_arrays([lower[i, p] * lower[i, p] for p in range(i)] or [0.0])
        inverse_diagonal.append(inverse_root(square, least * gram[i, i]))
        value = right[i] - sum_arrays([lower[i, p] * solved[p] for p in range(i)] or [0.0])
        solved.append(value * inverse_diagonal[i])
    return solve_factored((lower, inverse_diagonal), solved)


def solve_factored(
    factor: tuple[dict[tuple[int, int], Batch], list[Batch]], projections: list[Batch]
) -> Solution:
    """Solution by the Cholesky factor and the inner products of the images with orthonormal directions."""
    energy = sum_arrays(value * value for value in projections)
    return Solution(energy, back_substitute(*factor, projections), factor)


def orthonormal_columns(columns: Sequence[Float[Array, "h w b"]]) -> list[Float[Array, "h w b"]]:
    """Orthonormal basis of the columns, zero where one depends on earlier ones."""
    return [step.direction for step in _directions(columns)]


def leverages(columns: Sequence[Float[Array, "h w b"]]) -> Float[Array, "h w b"]:
    """Leverage of each tap: the diagonal of the projection on the columns, between 0 and 1."""
    return sum_arrays(step.direction**2 for step in _directions(columns))


def back_substitute(
    lower: dict[tuple[int, int], Batch], inverse_diagonal: Sequence[Batch], right: Sequence[Batch]
) -> list[Batch]:
    """Solve `L' x = right`."""
    x = list(right)
    for i in reversed(range(len(x))):
        for p in range(i + 1, len(x)):
            x[i] = x[i] - lower[p, i] * x[p]
        x[i] = x[i] * inverse_diagonal[i]
    return x


def cholesky_solve(
    factor: tuple[dict[tuple[int, int], Batch], list[Batch]], right: Sequence[Batch]
) -> list[Batch]:
    """Solve `L L' x = right` with the factor of a `Projection`."""
    lower, inverse_diagonal = factor
    y: list[Batch] = []
    for i in range(len(right)):
        value = right[i]
        for p in range(i):
            value = value - lower[i, p] * y[p]
        y.append(value * inverse_diagonal[i])
    return back_substitute(lower, inverse_diagonal, y)


def descent_solve(matrix: Symmetric, right: Sequence[Batch], shift: Batch, floor: float) -> list[Batch]:
    """Solve `(matrix + shift I) x = right` with every pivot of LDL^T replaced by max(|pivot|, floor).

    The matrix used is always positive, so `x` keeps a positive product with `right` (an ascent
    direction of a function with gradient `right`) where `matrix` is indefinite, and is the exact
    solution where it is positive.
    """
    n = len(right)
    unit: dict[tuple[int, int], Batch] = {}
    pivots: list[Batch] = []
    for j in range(n):
        pivot = matrix[j, j] + shift
        for p in range(j):
            pivot = pivot - unit[j, p] * unit[j, p] * pivots[p]
        pivots.append(jnp.maximum(jnp.abs(pivot), floor))
        for i in range(j + 1, n):
            value = matrix[i, j]
            for p in range(j):
                value = value - unit[i, p] * unit[j, p] * pivots[p]
            unit[i, j] = value / pivots[j]
    y: list[Batch] = []
    for i in range(n):
        value = right[i]
        for p in range(i):
            value = value - unit[i, p] * y[p]
        y.append(value)
    x = [value / pivot for value, pivot in zip(y, pivots, strict=True)]
    for i in reversed(range(n)):
        for p in range(i + 1, n):
            x[i] = x[i] - unit[p, i] * x[p]
    return x
