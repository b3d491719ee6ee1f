"""Value, gradient and exact Hessian of the explained energy of a model, as a function of its search point.

Weights and offset are solved for exactly, so that only centre, widths and shape are searched: variable
projection (Golub and Pereyra, 1973). With `B` the centred basis, `c = B'w` and `G = B'B`, the explained
energy is `F = c' G^-1 c`, and with `u = G^-1 c`, residual `r = w - B u`, model `m = B u` for fixed `u`, and
subscripts for derivatives:

    F_a  / 2 = <r, m_a>
    F_ab / 2 = <r, m_ab> - <m_a, m_b> + v_a' G^-1 v_b,   v_a = B_a' r - B' m_a.

Kernels of trained networks are rarely fitted to within a small residual, so the second-order term
<r, m_ab>, which Gauss-Newton drops, decides how many steps are needed: with it convergence is
quadratic. The terms of a model are closed under differentiation, so nothing is differentiated but symbols.

Everything here is unrolled at trace time; arrays have the batch on the last axis, the layout in which
small problems vectorise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dogfit.kernels.linalg import cholesky_solve, materialize, project, sum_arrays, sum_taps
from dogfit.kernels.model.custom import CustomModel
from dogfit.kernels.model.gaussian import Calculus, Combination, GaussianModel, TermImages, add, add_weighted
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.objective.products import products_of, whiten
from dogfit.kernels.types import Batch, Image


class Derivatives(NamedTuple):
    """Explained energy and half its derivatives, in the model's units (`scale`) of the parameters.

    Attributes:
      energy: explained energy, between 0 and the energy of the kernel.
      gradient: half of dF, along the model's search parameters.
      hessian: half of d2F, lower triangle.
    """

    energy: Batch
    gradient: list[Batch]
    hessian: dict[tuple[int, int], Batch]


def projected_derivatives(
    kernels: Image, point: list[Batch], model: Model, weights: Image | None = None
) -> Derivatives:
    """Explained energy at a search point, with exact derivatives.

    Args:
      kernels: centred kernels; with weights, whitened
        (`products.whiten`).
      point: search parameters, as `model.names` says.
      model: static.
      weights: of each tap; all alike if None.
    """
    if isinstance(model, CustomModel):
        return _by_differentiation(kernels, point, model, weights)
    return _by_calculus(kernels, point, model, weights)


class _Parts(NamedTuple):
    """A model and its basis, differentiated along each search parameter."""

    basis: list[Combination]
    by_weight: list[Combination]
    whole: Combination
    whole_by_weight: Combination


def _parts(basis: list[Combination], gains: list[Batch]) -> _Parts:
    minus = -jnp.ones_like(gains[0])
    by_weight = [{term: minus for term in function if term[0] == 1} for function in basis]
    return _Parts(basis, by_weight, add_weighted(basis, gains), add_weighted(by_weight, gains))


def _by_calculus(
    kernels: Image, point: list[Batch], model: GaussianModel, weights: Image | None
) -> Derivatives:
    names, n = model.names, len(point)
    products = products_of(model, point, (kernels.shape[0], kernels.shape[1]), weights)
    calculus = Calculus(model, point)
    basis = model.basis(point)
    energy, gains, factor = products.project(kernels, basis)
    _, by_weight, whole, whole_by_weight = _parts(basis, gains)

    def derive(name: str, function: Combination, own: Combination) -> Combination:
        """First derivative of a function, whose own derivative by the surround's weight is given."""
        return own if name == "surround_weight" else calculus.first(function, name)

    first = [derive(name, whole, whole_by_weight) for name in names]
    basis_first = [[derive(name, b, k) for b, k in zip(basis, by_weight, strict=True)] for name in names]
    second: dict[tuple[int, int], Combination] = {}
    for a in range(n):
        for b in range(a + 1):
            rest = [name for name in (names[b], names[a]) if name != "surround_weight"]
            if len(rest) == 2:
                second[a, b] = calculus.second(whole, *rest)
            else:
                # Linear in the surround's weight: the second derivative by it alone is nothing.
                second[a, b] = calculus.first(whole_by_weight, rest[0]) if rest else {}
    parts = [*first, *second.values(), *(b for row in basis_first for b in row)]
    moments = products.residual_moments({term for part in parts for term in part})

    def against_residual(part: Combination) -> Batch:
        return sum_arrays(w * moments[t] for t, w in part.items()) if part else jnp.zeros_like(energy)

    coupling = materialize(
        [
            [
                against_residual(derived) - products.inner(b, first[a])
                for derived, b in zip(basis_first[a], basis, strict=True)
            ]
            for a in range(n)
        ]
    )
    solved = [cholesky_solve(factor, row) for row in coupling]
    hessian = {
        (a, b): against_residual(part)
        - products.inner(first[a], first[b])
        + sum_arrays(v * g for v, g in zip(coupling[a], solved[b], strict=True))
        for (a, b), part in second.items()
    }
    return Derivatives(energy, [against_residual(part) for part in first], hessian)


def model_jacobian(
    model: Model, point: list[Batch], gains: list[Batch], shape: tuple[int, int]
) -> list[Image]:
    """Derivative of the model's image by each search parameter, in the model's units, for fixed gains."""
    if isinstance(model, GaussianModel):
        calculus = Calculus(model, point)
        parts = _parts(model.basis(point), gains)
        images = TermImages(model, point, shape, model.order + 2)
        # The scale of the derivatives, which the search leaves to the gains.
        own = {term: model.order * weight for term, weight in parts.whole.items()}

        def change(name: str) -> Combination:
            if name == "surround_weight":
                return parts.whole_by_weight
            slope = calculus.first(parts.whole, name)
            return add(slope, own) if name == "log_sigma" and model.order else slope

        return [images.combine(change(name)) for name in model.names]

    def image(*position: Batch) -> Image:
        functions = model.images(list(position), shape)
        return sum_arrays(u[None, None, :] * f for u, f in zip(gains, functions, strict=True))

    zero, scale = jnp.zeros_like(point[0]), model.scale(point)
    return [
        jax.jvp(image, point, [s if a == b else zero for b in range(len(point))])[1]
        for a, s in enumerate(scale)
    ]


def _by_differentiation(
    kernels: Image, point: list[Batch], model: CustomModel, weights: Image | None
) -> Derivatives:
    """Derivatives of a basis of which nothing is known but how to compute it."""
    n, shape = len(point), (kernels.shape[0], kernels.shape[1])
    scale = model.scale(point)

    def basis(position: Float[Array, "p b"]) -> list[Image]:
        return [whiten(image, weights) for image in model.images(list(position), shape)]

    at = jnp.stack(point)
    residual, gains, factor = project(kernels, basis(at))
    energy = sum_taps(kernels * kernels) - sum_taps(residual * residual)

    def moments(position: Float[Array, "p b"]) -> list[Batch]:
        return [sum_taps(residual * image) for image in basis(position)]

    def against(position: Float[Array, "p b"]) -> Array:
        return jnp.sum(sum_arrays(u * m for u, m in zip(gains, moments(position), strict=True)))

    def along(a: int) -> Float[Array, "p b"]:
        return jnp.zeros_like(at).at[a].set(scale[a])

    images, columns, couplings, curvature = [], basis(at), [], []
    for a in range(n):
        _, changes = jax.jvp(basis, (at,), (along(a),))
        images.append(sum_arrays(u[None, None, :] * change for u, change in zip(gains, changes, strict=True)))
        couplings.append(
            [
                sum_taps(residual * change) - sum_taps(column * images[a])
                for change, column in zip(changes, columns, strict=True)
            ]
        )
        curvature.append(jax.jvp(jax.grad(against), (at,), (along(a),))[1])
    solved = [cholesky_solve(factor, row) for row in couplings]
    hessian = {
        (a, b): curvature[a][b] * scale[b]
        - sum_taps(images[a] * images[b])
        + sum_arrays(v * g for v, g in zip(couplings[a], solved[b], strict=True))
        for a in range(n)
        for b in range(a + 1)
    }
    return Derivatives(energy, [sum_taps(residual * image) for image in images], hessian)
