"""Value, gradient and exact Hessian of the explained energy of a separable model.

A model is `offset + sum_i u_i Q_(a_i)(x) Q_(b_i)(y)`: products of the scaled profiles of `profiles`, which
share one centre and one width (or two: the second `exp(log_ratio)` times the first). The weights and
the offset are solved for exactly, so that only centre and widths are searched: variable projection
(Golub and Pereyra, 1973). With `B` the centred basis, `c = B'w` and `G = B'B`, the explained energy is
`F = c' G^-1 c`, and with `u = G^-1 c`, residual `r = w - B u`, model `m = B u` for fixed `u`,
and subscripts for derivatives:

    F_a  / 2 = <r, m_a>
    F_ab / 2 = <r, m_ab> - <m_a, m_b> + v_a' G^-1 v_b,   v_a = B_a' r - B' m_a.

Kernels of trained networks are rarely fitted to within a small residual, so the second-order term
<r, m_ab>, which Gauss-Newton drops, decides how many steps are needed: with it convergence is
quadratic. Because the basis is separable and closed under differentiation, each inner product is a
product of 1-D sums.

Everything here is unrolled over orders at trace time; arrays have the batch on the last axis, the
layout in which small problems vectorise.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dogfit.kernels.linalg import Batch, cholesky_solve, project, total
from dogfit.kernels.profiles import integrated_profiles

# (width index, order along x, order along y)
Term = tuple[int, int, int]
Terms = tuple[Term, ...]
# A function of x and y: a sum of terms with per-kernel weights.
Combination = dict[Term, Batch]


class Derivatives(NamedTuple):
    """Explained energy and half its derivatives, lengths in units of the (first) width.

    Attributes:
      energy: explained energy, between 0 and the energy of the kernel.
      gradient: half of dF, along (x0 / sigma, y0 / sigma, log sigma[, log ratio]).
      hessian: half of d2F, lower triangle.
    """

    energy: Batch
    gradient: list[Batch]
    hessian: dict[tuple[int, int], Batch]


class _Products:
    """Inner products over the taps, each 1-D sum computed once."""

    def __init__(self, point: list[Batch], terms: Terms, size: int) -> None:
        sigma = jnp.exp(point[2])
        widths = [sigma, sigma * jnp.exp(point[3])] if len(point) == 4 else [sigma]
        highest = max(i + j for _, i, j in terms) + 4
        self.size = size
        # [width][axis][order] -> [k, b]
        self.profiles = [[integrated_profiles(c, w, size, highest) for c in point[:2]] for w in widths]
        self._means: dict[tuple[int, int, int], Batch] = {}
        self._grams: dict[tuple[int, tuple[int, int], tuple[int, int]], Batch] = {}
        self._inner: dict[tuple[Term, Term], Batch] = {}

    def _mean(self, axis: int, width: int, order: int) -> Batch:
        key = (axis, width, order)
        if key not in self._means:
            self._means[key] = jnp.mean(self.profiles[width][axis][order], axis=0)
        return self._means[key]

    def _gram(self, axis: int, one: tuple[int, int], other: tuple[int, int]) -> Batch:
        """Inner product of two 1-D profiles about their means."""
        low, high = sorted((one, other))
        key = (axis, low, high)
        if key not in self._grams:
            a, b = self.profiles[low[0]][axis][low[1]], self.profiles[high[0]][axis][high[1]]
            a, b = a - self._mean(axis, *low)[None, :], b - self._mean(axis, *high)[None, :]
            self._grams[key] = jnp.sum(a * b, axis=0)
        return self._grams[key]

    def mean(self, term: Term) -> Batch:
        """Mean of a term over the taps."""
        width, i, j = term
        return self._mean(0, width, i) * self._mean(1, width, j)

    def inner(self, one: Term, other: Term) -> Batch:
        """Inner product of two centred terms.

        Put together from centred 1-D profiles: subtracting the product of the means from the whole
        would cancel all digits of a Gaussian much wider than the kernel.
        """
        low, high = sorted((one, other))
        if (low, high) not in self._inner:
            (v, a, b), (w, c, d) = low, high
            x, y = self._gram(0, (v, a), (w, c)), self._gram(1, (v, b), (w, d))
            mean_x = self.size * self._mean(0, v, a) * self._mean(0, w, c)
            mean_y = self.size * self._mean(1, v, b) * self._mean(1, w, d)
            self._inner[low, high] = x * y + mean_x * y + mean_y * x
        return self._inner[low, high]

    def combine(self, one: Combination, other: Combination) -> Batch:
        """Inner product of two centred combinations."""
        return total(p * q * self.inner(a, b) for a, p in one.items() for b, q in other.items())

    def moments(self, image: Float[Array, "kx ky b"], terms: set[Term]) -> Combination:
        """Inner products of an image (x on the first axis) with terms."""
        rows: dict[tuple[int, int], Float[Array, "ky b"]] = {}
        out: Combination = {}
        for width, i, j in sorted(terms):
            if (width, i) not in rows:
                rows[width, i] = jnp.sum(self.profiles[width][0][i][:, None, :] * image, axis=0)
            out[width, i, j] = jnp.sum(rows[width, i] * self.profiles[width][1][j], axis=0)
        return out

    def image(self, term: Term) -> Float[Array, "kx ky b"]:
        """Centred image of a term."""
        width, i, j = term
        x, y = self.profiles[width][0][i], self.profiles[width][1][j]
        return x[:, None, :] * y[None, :, :] - self.mean(term)[None, None, :]


def _add(*parts: Combination) -> Combination:
    out: Combination = {}
    for part in parts:
        for term, weight in part.items():
            out[term] = out[term] + weight if term in out else weight
    return out


def _raise_order(model: Combination, along_x: int, along_y: int) -> Combination:
    return {(w, i + along_x, j + along_y): weight for (w, i, j), weight in model.items()}


def _differentiate(model: Combination, parameter: int, inverse_ratio: Batch | None) -> Combination:
    """Derivative along x0 / sigma (0), y0 / sigma (1), log sigma (2) or log ratio (3).

    A profile's derivative with respect to log width is its own Laplacian, by the heat equation.
    """
    if parameter < 2:
        shifted = _raise_order(model, 1 - parameter, parameter)
        return {
            term: -weight if term[0] == 0 or inverse_ratio is None else -weight * inverse_ratio
            for term, weight in shifted.items()
        }
    if parameter == 3:
        model = {term: weight for term, weight in model.items() if term[0] == 1}
    return _add(_raise_order(model, 2, 0), _raise_order(model, 0, 2))


def projected_derivatives(kernels: Float[Array, "kx ky b"], point: list[Batch], terms: Terms) -> Derivatives:
    """Explained energy of centred kernels at a search point, with exact derivatives.

    Args:
      kernels: centred kernels, x on the first axis, batch on the last.
      point: x0, y0 (taps from the middle), log sigma and, for models of two widths, log ratio.
      terms: basis of the model, all of one total order; static.
    """
    size, q, n = kernels.shape[0], len(terms), len(point)
    products = _Products(point, terms, size)
    inverse_ratio = jnp.exp(-point[3]) if n == 4 else None

    def derive(model: Combination, parameter: int) -> Combination:
        return _differentiate(model, parameter, inverse_ratio)

    residual, weights, factor = project(kernels, [products.image(t) for t in terms])
    energy = jnp.sum(kernels * kernels, axis=(0, 1)) - jnp.sum(residual * residual, axis=(0, 1))
    model = dict(zip(terms, weights, strict=True))
    first = [derive(model, a) for a in range(n)]
    second: dict[tuple[int, int], Combination] = {}
    for a in range(n):
        for b in range(a + 1):
            second[a, b] = derive(first[b], a)
            if b >= 2:
                # The width is searched in its logarithm: d2/dlog2 = L^2 + 2 L.
                second[a, b] = _add(second[a, b], {t: 2.0 * weight for t, weight in first[a].items()})
    one = jnp.ones_like(energy)
    basis = [[derive({t: one}, a) for t in terms] for a in range(n)]
    needed = {t for part in [*first, *second.values(), *(b for row in basis for b in row)] for t in part}
    moments = products.moments(residual, needed)

    def against_residual(part: Combination) -> Batch:
        return total((w * moments[t] for t, w in part.items())) if part else jnp.zeros_like(energy)

    coupling = [
        [against_residual(basis[a][i]) - products.combine({terms[i]: one}, first[a]) for i in range(q)]
        for a in range(n)
    ]
    solved = [cholesky_solve(factor, row) for row in coupling]
    hessian = {
        (a, b): against_residual(part)
        - products.combine(first[a], first[b])
        + total(v * g for v, g in zip(coupling[a], solved[b], strict=True))
        for (a, b), part in second.items()
    }
    return Derivatives(energy, [against_residual(part) for part in first], hessian)
