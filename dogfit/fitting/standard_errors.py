"""Standard errors of reported parameters, from the Jacobian at the optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dogfit.fitting.families import Family, from_parameters, reported_names, to_parameters
from dogfit.fitting.padding import map_padded_rows
from dogfit.kernels.objective.derivatives import model_jacobian

# Rows whose Jacobians are in memory at once, in float64.
_ERROR_ROWS = 8_192


@functools.partial(jax.jit, static_argnames=("family", "shape"))
def _jacobians(
    parameters: Float[Array, "n p"], family: Family, shape: tuple[int, int]
) -> tuple[Float[Array, "n t q"], Float[Array, "n p q"]]:
    """Derivatives by offset, gains and search parameters: of every tap, and of the reported parameters."""
    model = family.model
    point, offset, gains = from_parameters(family, parameters)
    unit = model.scale(list(point))
    changes = model_jacobian(model, list(point), gains, shape)
    images = [change / s[None, None, :] for change, s in zip(changes, unit, strict=True)]
    columns = jnp.stack([jnp.ones_like(images[0]), *model.images(list(point), shape), *images])

    def reported(values: Float[Array, " q"]) -> Float[Array, " p"]:
        offset, *rest = values[:, None]
        return to_parameters(model, jnp.stack(rest[len(gains) :]), offset, rest[: len(gains)])[0]

    values = jnp.stack([offset, *gains, *point], axis=-1)
    of_taps = jnp.moveaxis(columns.reshape(len(columns), -1, columns.shape[-1]), (0, 1, 2), (2, 1, 0))
    return of_taps, jax.vmap(jax.jacfwd(reported))(values)


def standard_errors(
    family: Family,
    parameters: Float[np.ndarray, "n p"],
    at_bound: Bool[np.ndarray, "n s"],
    residual: Float[np.ndarray, " n"],
    shape: tuple[int, int],
    weights: Float[np.ndarray, "n h w"] | None,
) -> Float[np.ndarray, "n p"]:
    """Estimate standard errors of the reported parameters of fits by one family.

    Args:
      family: with the profile it was fitted with.
      parameters: `[n, p]`, as reported.
      at_bound: `[n, s]`, which search parameters sit on a bound: they are not free.
      residual: `[n]`, sums of squared residuals, in the square of the kernels' unit.
      shape: taps along y and x.
      weights: of taps `[n, h, w]`, as they were given to the fit.

    Returns:
      Errors float64 `[n, p]`, in the units of the parameters; NaN for those on a bound and in singular rows.
    """
    pieces = []
    for start in range(0, len(parameters), _ERROR_ROWS):
        here = slice(start, start + _ERROR_ROWS)
        weight = None if weights is None else weights[here]
        pieces.append(_errors(family, parameters[here], at_bound[here], residual[here], shape, weight))
    return np.concatenate(pieces)


def _errors(
    family: Family,
    parameters: Float[np.ndarray, "n p"],
    at_bound: Bool[np.ndarray, "n s"],
    residual: Float[np.ndarray, " n"],
    shape: tuple[int, int],
    weights: Float[np.ndarray, "n h w"] | None,
) -> Float[np.ndarray, "n p"]:
    jacobian, change = (
        array.astype(np.float64)
        for array in map_padded_rows(functools.partial(_jacobians, family=family, shape=shape), parameters)
    )
    taps = np.full(len(parameters), jacobian.shape[1])
    if weights is not None:
        flat = weights.reshape(len(weights), -1).astype(np.float64)
        taps = np.maximum((flat > 0).sum(axis=1), 1)
        # Relative weights, as in the fit.
        jacobian *= np.sqrt(flat * (taps / np.maximum(flat.sum(axis=1), 1e-300))[:, None])[:, :, None]
    is_searched = np.asarray(family.model.is_searched)
    linear = np.ones((len(at_bound), jacobian.shape[2] - at_bound.shape[1]), bool)
    free = np.concatenate([linear, ~at_bound & is_searched], axis=1)
    jacobian = np.where(free[:, None, :], jacobian, 0.0)
    norm = np.linalg.norm(jacobian, axis=1)
    norm = np.where(norm > 0, norm, 1.0)
    unit = jacobian / norm[:, None, :]
    # Parameters at a bound get a unit diagonal, so that one factorisation serves all rows.
    normal = unit.swapaxes(1, 2) @ unit + np.eye(free.shape[1]) * ~free[:, :, None]
    values, vectors = np.linalg.eigh(normal)
    regular = values[:, 0] > 1e-10
    root = vectors / np.sqrt(np.where(regular[:, None], values, 1.0))[:, None, :]
    with np.errstate(invalid="ignore"):
        spread = (np.where(free[:, None, :], change, 0.0) / norm[:, None, :]) @ root
    variance = residual / np.maximum(taps - free.sum(axis=1), 1)
    error = np.sqrt(variance[:, None] * np.sum(spread**2, axis=2))
    unknown = np.zeros(error.shape, bool)
    for column, name in enumerate(family.model.names):
        for reported in reported_names(family.model, name):
            unknown[:, family.names.index(reported)] |= ~free[:, linear.shape[1] + column]
    return np.where(~unknown & regular[:, None], error, np.nan)
