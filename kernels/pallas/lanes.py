"""Explained energy with exact derivatives for a block of kernels, one kernel per lane, tap by tap.

The same mathematics as `derivatives`, laid out for the inside of a kernel: every number is a block-shaped
array (a register per lane), taps are read from a reference when they are needed, and nothing is sliced,
stacked or gathered, so that it lowers wherever elementwise arithmetic does.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dogfit.kernels.linalg import cholesky_solve, sum_arrays
from dogfit.kernels.model.gaussian import Calculus, Combination, GaussianModel
from dogfit.kernels.objective.derivatives import Derivatives
from dogfit.kernels.objective.products import ORDER_INCREASE

Lanes = Float[Array, "..."]
# Row and column of a tap to its value.
Taps = Callable[[int, Any], Lanes]
# Width index and order of a 1-D profile.
Key = tuple[int, int]
# A profile along x times one along y, and a function of x and y: a sum of those, with weights.
Pair = tuple[Key, Key]
Products = dict[Pair, Lanes | float]

_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
# (Phi(z) - 1/2) / z by z^2, numerator and denominator: within 6e-9 of it up to _FARTHEST, where it is flat.
_FARTHEST = 5.4
_NUMERATOR = (0.398942246, 0.0333701139, 0.00465071719, 0.000164299523, 6.35981072e-06, 2.3388058e-08)
_DENOMINATOR = (1.0, 0.250312562, 0.0283774652, 0.001858857, 7.23927569e-05, 1.21661404e-06)
# Share of a column's energy below which it counts as a combination of those before it: by Gram matrix and
# by taps.
_LEAST_PIVOT = 1e-6
_LEAST_REST = 4e-12
_SMALLEST = 1e-30
Factor = tuple[dict[tuple[int, int], Lanes], list[Lanes]]


def _polynomial(coefficients: tuple[float, ...], x: Lanes) -> Lanes:
    value = jnp.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


def half_erf(z: Lanes) -> Lanes:
    """Phi(z) - 1/2. Triton has no erf."""
    z = jnp.clip(z, -_FARTHEST, _FARTHEST)
    square = z * z
    return z * _polynomial(_NUMERATOR, square) / _polynomial(_DENOMINATOR, square)


def _antiderivatives(z: Lanes, highest: int) -> list[Lanes]:
    """Antiderivatives whose differences over a tap are the profiles of orders 0 to `highest` (at least 2)."""
    density = _INV_SQRT_2PI * jnp.exp(-0.5 * z * z)
    out = [half_erf(z), density, -z * density]
    for n in range(2, highest):
        out.append(-z * out[n] - (n - 1) * out[n - 1])
    return out


class _Axis:
    """Means of the 1-D profiles along one axis, and their inner products about the means."""

    def __init__(self, means: dict[Key, Lanes], grams: dict[tuple[Key, Key], Lanes]) -> None:
        self.means, self._grams = means, grams

    def gram(self, one: Key, other: Key) -> Lanes:
        return self._grams[min(one, other), max(one, other)]


class _Products:
    """Inner products, about their means, of functions that are sums of products of profiles."""

    def __init__(self, x: _Axis, y: _Axis, size: int) -> None:
        self._x, self._y, self._size = x, y, size
        self._known: dict[tuple[Pair, Pair], Lanes] = {}

    def _of_pairs(self, one: Pair, other: Pair) -> Lanes:
        (a, b), (c, d) = low, high = min(one, other), max(one, other)
        if (low, high) not in self._known:
            # From centred profiles, since the mean of a wide Gaussian is all but a few of its digits.
            x, y = self._x.gram(a, c), self._y.gram(b, d)
            mean_x, mean_y = self._x.means[a] * self._x.means[c], self._y.means[b] * self._y.means[d]
            self._known[low, high] = x * y + self._size * (mean_x * y + mean_y * x)
        return self._known[low, high]

    def inner(self, one: Products, other: Products) -> Lanes:
        """Inner product of two functions."""
        return sum_arrays(
            p * sum_arrays(q * self._of_pairs(a, b) for b, q in other.items()) for a, p in one.items()
        )


def _needed_keys(model: GaussianModel) -> tuple[list[Key], list[tuple[Key, Key]], list[Pair]]:
    """Profiles, their inner products, and products with the taps, that the derivatives are made of.

    Derivatives of the model raise orders by two, second ones, and what meets only the basis, by four.
    """
    keys = [
        (w, order) for w in range(1 + model.two_widths) for order in range(model.order + ORDER_INCREASE + 1)
    ]
    grams = [
        (a, b)
        for a in keys
        for b in keys
        if a <= b
        and min(a[1], b[1]) <= (model.order if max(a[1], b[1]) > model.order + 2 else model.order + 2)
    ]
    pairs = [
        (a, b)
        for a in keys
        for b in keys
        if a[0] == b[0] and 0 <= a[1] + b[1] - model.order <= ORDER_INCREASE
    ]
    return keys, grams, pairs


def _along_y(
    center: Lanes, inverse: list[Lanes], model: GaussianModel, size: int
) -> tuple[dict[Key, list[Lanes]], _Axis]:
    """Profiles along y, by tap, and their sums."""
    keys, grams, _ = _needed_keys(model)
    edges = [
        [_antiderivatives((e - size / 2 - center) * w, model.order + ORDER_INCREASE) for w in inverse]
        for e in range(size + 1)
    ]
    profiles = {(w, o): [edges[v + 1][w][o] - edges[v][w][o] for v in range(size)] for w, o in keys}
    means = {key: sum_arrays(values) * (1.0 / size) for key, values in profiles.items()}
    centred = {key: [value - means[key] for value in values] for key, values in profiles.items()}
    sums = {(a, b): sum_arrays(p * q for p, q in zip(centred[a], centred[b], strict=True)) for a, b in grams}
    return profiles, _Axis(means, sums)


def _along_x(
    taps: Taps,
    center: Lanes,
    inverse: list[Lanes],
    model: GaussianModel,
    along_y: dict[Key, list[Lanes]],
    size: int,
) -> tuple[_Axis, dict[Pair, Lanes]]:
    """Sums of the profiles along x, and inner products of the taps with products of profiles.

    One column of taps after the other, so that only sums, and no profiles along x, occupy registers, and the
    program stays short.
    """
    keys, grams, pairs = _needed_keys(model)
    zero = jnp.zeros_like(center)

    def edge(u: Any) -> list[list[Lanes]]:
        return [_antiderivatives((u - size / 2 - center) * w, model.order + ORDER_INCREASE) for w in inverse]

    def between(low: list[list[Lanes]], high: list[list[Lanes]]) -> dict[Key, Lanes]:
        return {(w, o): high[w][o] - low[w][o] for w, o in keys}

    # Sums about a value near the mean, which is not known yet.
    about = between(edge(size // 2), edge(size // 2 + 1))

    def column(u: Int[Array, ""], carry: tuple) -> tuple:
        before, sums, squares, moments = carry
        after = edge((u + 1).astype(center.dtype))
        here = between(before, after)
        values = [taps(v, u) for v in range(size)]
        across = {y: sum_arrays(a * b for a, b in zip(along_y[y], values, strict=True)) for y in keys}
        rest = {key: here[key] - about[key] for key in keys}
        return (
            after,
            [old + rest[key] for key, old in zip(keys, sums, strict=True)],
            [old + rest[a] * rest[b] for (a, b), old in zip(grams, squares, strict=True)],
            [old + here[x] * across[y] for (x, y), old in zip(pairs, moments, strict=True)],
        )

    start = edge(0.0), [zero for _ in keys], [zero for _ in grams], [zero for _ in pairs]
    _, sums, squares, moments = lax.fori_loop(0, size, column, start)
    shifts = {key: value * (1.0 / size) for key, value in zip(keys, sums, strict=True)}
    means = {key: about[key] + shifts[key] for key in keys}
    products = {
        (a, b): value - size * shifts[a] * shifts[b] for (a, b), value in zip(grams, squares, strict=True)
    }
    return _Axis(means, products), dict(zip(pairs, moments, strict=True))


def _as_products(function: Combination) -> Products:
    return {((w, i), (w, j)): weight for (w, i, j), weight in function.items()}


def _inverse_root(square: Lanes, least: Lanes | float) -> Lanes:
    """1 / sqrt, or 0 where there is nothing to divide by: a dependent column gets no weight."""
    usable = square > least
    return jnp.where(usable, lax.rsqrt(jnp.where(usable, square, 1.0)), 0.0)


def _factor(products: _Products, columns: list[Products]) -> Factor:
    """Cholesky factor of the columns' Gram matrix, as `linalg.cholesky_solve` takes it."""
    lower: dict[tuple[int, int], Lanes] = {}
    inverse_diagonal: list[Lanes] = []
    for j, column in enumerate(columns):
        square = products.inner(column, column)
        pivot = square
        for p in range(j):
            pivot = pivot - lower[j, p] * lower[j, p]
        inverse_diagonal.append(_inverse_root(pivot, _LEAST_PIVOT * square))
        for i in range(j + 1, len(columns)):
            value = products.inner(columns[i], column)
            for p in range(j):
                value = value - lower[i, p] * lower[j, p]
            lower[i, j] = value * inverse_diagonal[j]
    return lower, inverse_diagonal


def _factor_of_pair(
    products: _Products,
    columns: list[Products],
    center: Lanes,
    inverse: list[Lanes],
    y: dict[Key, list[Lanes]],
    size: int,
) -> Factor:
    """Cholesky factor of two Gaussians, which are too much alike for a Gram matrix in float32.

    What the second adds to the first is formed tap by tap, before it is squared.
    """
    square = products.inner(columns[0], columns[0])
    share = products.inner(columns[0], columns[1]) / jnp.maximum(square, _SMALLEST)
    edges = [[half_erf((e - size / 2 - center) * w) for w in inverse] for e in range(size + 1)]
    x = [[high - low for low, high in zip(*pair, strict=True)] for pair in itertools.pairwise(edges)]
    scaled = [share * value for value in y[0, 0]]
    rest = [wide * y[1, 0][v] - narrow * scaled[v] for narrow, wide in x for v in range(size)]
    mean = sum_arrays(rest) * (1.0 / size**2)
    pivot = sum_arrays((value - mean) * (value - mean) for value in rest)
    whole = products.inner(columns[1], columns[1])
    first = _inverse_root(square, 0.0)
    return {(1, 0): share * square * first}, [first, _inverse_root(pivot, _LEAST_REST * whole)]


def projected_derivatives(taps: Taps, point: list[Lanes], model: GaussianModel, size: int) -> Derivatives:
    """Explained energy of centred kernels of unit energy at a search point, with exact derivatives.

    Args:
      taps: taps of square kernels.
      point: search parameters, as `model.names` says.
      model: round, of integrated profiles; static.
      size: taps along a side.
    """
    names, n = model.names, len(point)
    calculus = Calculus(model, point)
    inverse = [jnp.exp(-point[2])]
    if model.two_widths:
        inverse.append(inverse[0] * calculus.inverse_ratio)
    along_y, y = _along_y(point[1], inverse, model, size)
    x, of_taps = _along_x(taps, point[0], inverse, model, along_y, size)
    products = _Products(x, y, size)
    basis = model.basis(point)
    columns = [_as_products(b) for b in basis]
    if model.two_widths and not model.shared_amplitude:
        factor = _factor_of_pair(products, columns, point[0], inverse, along_y, size)
    else:
        factor = _factor(products, columns)
    explained = [sum_arrays(weight * of_taps[pair] for pair, weight in column.items()) for column in columns]
    gains = cholesky_solve(factor, explained)

    def weighted(functions: list[Combination]) -> Combination:
        return {t: u * w for u, f in zip(gains, functions, strict=True) for t, w in f.items()}

    one = jnp.ones_like(gains[0])
    by_weight = [{term: -one for term in b if term[0] == 1} for b in basis]
    whole, whole_by_weight = weighted(basis), weighted(by_weight)

    def derive(name: str, function: Combination, own: Combination) -> Combination:
        return own if name == "surround_weight" else calculus.first(function, name)

    def twice(one: str, other: str) -> Combination:
        rest = [name for name in (one, other) if name != "surround_weight"]
        if len(rest) == 2:
            return calculus.second(whole, *rest)
        return calculus.first(whole_by_weight, rest[0]) if rest else {}

    first = [_as_products(derive(name, whole, whole_by_weight)) for name in names]
    basis_first = [
        [_as_products(derive(name, b, k)) for b, k in zip(basis, by_weight, strict=True)] for name in names
    ]
    second = {(a, b): _as_products(twice(names[b], names[a])) for a in range(n) for b in range(a + 1)}
    fitted = _as_products(whole)
    moments: dict[Pair, Lanes] = {}

    def against(part: Products) -> Lanes:
        """Inner product with the residual."""
        for pair in part:
            if pair not in moments:
                moments[pair] = of_taps[pair] - products.inner(fitted, {pair: 1.0})
        return sum_arrays(w * moments[p] for p, w in part.items()) if part else jnp.zeros_like(one)

    coupling = []
    for a in range(n):
        row = [
            against(d) - products.inner(_as_products(b), first[a])
            for d, b in zip(basis_first[a], basis, strict=True)
        ]
        coupling.append(row)
    solved = [cholesky_solve(factor, row) for row in coupling]
    hessian = {
        (a, b): against(part)
        - products.inner(first[a], first[b])
        + sum_arrays(v * g for v, g in zip(coupling[a], solved[b], strict=True))
        for (a, b), part in second.items()
    }
    energy = sum_arrays(u * c for u, c in zip(gains, explained, strict=True))
    return Derivatives(energy, [against(part) for part in first], hessian)
