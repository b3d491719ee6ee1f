"""Derivatives of an optimum by the kernel, which the search itself does not have: implicit differentiation.

At an optimum the slope of the explained energy is zero along every free parameter, and stays zero while the
kernel changes; from that follows how the optimum moves. Parameters on a bound are held there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from dogfit.kernels.linalg import project, sum_taps
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.objective.derivatives import model_jacobian, projected_derivatives
from dogfit.kernels.objective.products import whiten
from dogfit.kernels.types import Box, Image


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def follow_optimum(
    model: Model,
    point: Float[Array, "p b"],
    images: Image,
    weights: Image | None,
    box: Box,
    fitted: Bool[Array, " b"],
) -> Float[Array, "p b"]:
    """Pass search points on, and give them their derivatives by the images.

    Args:
      model: static.
      point: optimum of each kernel, which has no derivative of its own.
      images: centered kernels of unit energy, whitened.
      weights: of each tap; all alike if None.
      box: bounds.
      fitted: whether a kernel has an optimum at all.

    Returns:
      The points.
    """
    del model, images, weights, box, fitted  # for the derivative alone
    return point


@follow_optimum.defjvp
def _follow(model: Model, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    _, images, weights, box, fitted = primals
    # Followed once more, so that derivatives of the derivative are right too.
    point = follow_optimum(model, *primals)
    shape = (images.shape[0], images.shape[1])
    searched = jnp.asarray(model.is_searched)[:, None]
    held = (point <= box.lower) | (point >= box.upper) | ~searched | ~fitted[None, :]

    def slopes(images: Image) -> Float[Array, "p b"]:
        columns = [whiten(column, weights) for column, _ in model.varying_images(list(point), shape)]
        solved = project(images, columns)
        changes = model_jacobian(model, list(point), solved.weights, shape)
        return jnp.stack([sum_taps(solved.residual * whiten(change, weights)) for change in changes])

    change = jax.jvp(slopes, (images,), (tangents[1],))[1]
    hessian = projected_derivatives(images, list(point), model, weights).hessian
    n = len(point)
    rows = [[-hessian[max(a, b), min(a, b)] for b in range(n)] for a in range(n)]
    curvature = jnp.stack([jnp.stack(row) for row in rows])
    free = ~(held[:, None] | held[None, :])
    curvature = jnp.where(free, curvature, jnp.eye(n, dtype=point.dtype)[:, :, None])
    right = jnp.where(held, 0.0, change)
    step = jnp.linalg.solve(jnp.moveaxis(curvature, -1, 0), right.T[:, :, None])[:, :, 0].T
    return point, step * jnp.stack(model.scale(list(point)))


@jax.custom_jvp
def at_optimum(energy: Float[Array, " b"], residual: Image, images: Image) -> Float[Array, " b"]:
    """Pass the energy of a residual on, with its derivative by the images as it is at an optimum.

    There the energy does not change with the parameters (envelope theorem), so that the derivative needs none
    of theirs.

    Args:
      energy: sum of the squares of the residual.
      residual: what the best fit leaves.
      images: what was fitted.

    Returns:
      The energy.
    """
    del residual, images  # for the derivative alone
    return energy


@at_optimum.defjvp
def _at_optimum(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> Any:
    energy, residual, _ = primals
    return energy, 2.0 * sum_taps(residual * tangents[2])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_derivative(what: str, values: Any) -> Any:
    """Pass values on, and refuse to differentiate by them.

    Args:
      what: their name in the message.
      values: any arrays.

    Returns:
      The values.
    """
    del what  # for the derivative alone
    return values


def _refuse(what: str, primals: tuple[Any], tangents: tuple[Any]) -> Any:
    if any(not isinstance(tangent, SymbolicZero) for tangent in jax.tree.leaves(tangents)):
        raise NotImplementedError(
            f"fits have derivatives by the kernel, not by {what}; keep {what} out of the derivative with "
            "jax.lax.stop_gradient"
        )
    return primals[0], jax.tree.map(jnp.zeros_like, primals[0])


without_derivative.defjvp(_refuse, symbolic_zeros=True)
