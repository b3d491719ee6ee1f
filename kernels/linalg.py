"""Tiny symmetric solves, unrolled, with the batch in every entry.

Batched library factorisations loop over matrices of this size; unrolled arithmetic on whole batches
does not. Matrices are dictionaries of their lower triangle, `{(row, column): Float[Array, "b"]}`.
"""

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Batch = Float[Array, " b"]
Symmetric = Mapping[tuple[int, int], Batch]


def total(values: Iterable[Batch]) -> Batch:
    """Sum of a non-empty sequence of arrays."""
    return functools.reduce(operator.add, values)


def cholesky_factor(matrix: Symmetric, n: int) -> tuple[dict[tuple[int, int], Batch], list[Batch]]:
    """Lower factor below the diagonal, and the inverse of its diagonal, of a positive matrix."""
    lower: dict[tuple[int, int], Batch] = {}
    inverse_diagonal: list[Batch] = []
    for j in range(n):
        pivot = matrix[j, j]
        for p in range(j):
            pivot = pivot - lower[j, p] * lower[j, p]
        tiny = jnp.finfo(pivot.dtype).tiny
        inverse_diagonal.append(lax.rsqrt(jnp.maximum(pivot, tiny)))
        for i in range(j + 1, n):
            value = matrix[i, j]
            for p in range(j):
                value = value - lower[i, p] * lower[j, p]
            lower[i, j] = value * inverse_diagonal[j]
    return lower, inverse_diagonal


def cholesky_solve(
    factor: tuple[dict[tuple[int, int], Batch], list[Batch]], right: Sequence[Batch]
) -> list[Batch]:
    """Solve with a factor of `cholesky_factor`."""
    lower, inverse_diagonal = factor
    n = len(right)
    y: list[Batch] = []
    for i in range(n):
        value = right[i]
        for p in range(i):
            value = value - lower[i, p] * y[p]
        y.append(value * inverse_diagonal[i])
    x = list(y)
    for i in reversed(range(n)):
        value = y[i]
        for p in range(i + 1, n):
            value = value - lower[p, i] * x[p]
        x[i] = value * inverse_diagonal[i]
    return x


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
