"""Standard errors of reported parameters, from the Jacobian at the optimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dogfit.fitting.families import Family, from_parameters, reported_names, split_units, to_parameters
from dogfit.fitting.padding import map_padded_rows
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.derivatives import model_jacobian

# Rows whose Jacobians are in memory at once, in float64.
_ERROR_ROWS = 8_192
# Share of its variance that a parameter on its bound may add to another's unsaid: coverage falls from 68 to
# 66 %.
_TOLERATED = 0.1
# Search parameters of the profile of a Gaussian family, and reported ones that do not depend on that.
_RADIAL = ("log_sigma", "log_ratio", "surround_weight", "e1", "e2")
_PLACE = ("x0_px", "y0_px", "theta_rad", "phi_rad")
# What float32 Jacobians leave of a column that the others make up for.
_LEAST_LEFT = 1e-10


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
    fixed: Bool[np.ndarray, "n s"] | None = None,
) -> Float[np.ndarray, "n p"]:
    """Estimate standard errors of the reported parameters of fits by one family.

    Args:
      family: with the profile it was fitted with.
      parameters: `[n, p]`, as reported.
      at_bound: `[n, s]`, which search parameters sit on a bound: they are not free.
      residual: `[n]`, norms of the residuals, in the kernels' unit.
      shape: taps along y and x.
      weights: of taps `[n, h, w]`, as they were given to the fit.
      fixed: `[n, s]`, which of those on a bound are known because the caller gave their values; none if None.

    Returns:
      Errors float64 `[n, p]`, in the units of the parameters. NaN in singular rows; for parameters on a
      bound; for all others but the place and the angles beside a width, a weight or an aspect on its bound;
      and for whatever else would move by a part of its error if those on a bound could.
    """
    pieces = [np.empty((0, len(family.parameters)))]
    fixed = np.zeros_like(at_bound) if fixed is None else fixed
    for start in range(0, len(parameters), _ERROR_ROWS):
        here = slice(start, start + _ERROR_ROWS)
        weight = None if weights is None else weights[here]
        rows = (parameters[here], at_bound[here], fixed[here], residual[here])
        pieces.append(_errors(family, *rows, shape, weight))
    return np.concatenate(pieces)


def _errors(
    family: Family,
    parameters: Float[np.ndarray, "n p"],
    at_bound: Bool[np.ndarray, "n s"],
    fixed: Bool[np.ndarray, "n s"],
    residual: Float[np.ndarray, " n"],
    shape: tuple[int, int],
    weights: Float[np.ndarray, "n h w"] | None,
) -> Float[np.ndarray, "n p"]:
    plain, _, power = split_units(family, parameters)
    jacobian, change = (
        array.astype(np.float64)
        for array in map_padded_rows(
            functools.partial(_jacobians, family=family, shape=shape), plain.astype(parameters.dtype)
        )
    )
    taps = np.full(len(parameters), jacobian.shape[1])
    if weights is not None:
        flat = weights.reshape(len(weights), -1).astype(np.float64)
        taps = np.maximum((flat > 0).sum(axis=1), 1)
        # Relative weights, as in the fit.
        jacobian *= np.sqrt(flat * (taps / np.maximum(flat.sum(axis=1), 1e-300))[:, None])[:, :, None]
    linear = np.ones((len(at_bound), jacobian.shape[2] - at_bound.shape[1]), bool)
    searched = np.asarray(family.model.is_searched) & ~fixed
    free = np.concatenate([linear, ~at_bound & searched], axis=1)
    held = np.concatenate([~linear, at_bound & searched], axis=1)
    norm = np.linalg.norm(jacobian, axis=1)
    norm = np.where(norm > 0, norm, 1.0)
    unit, change = jacobian / norm[:, None, :], change / norm[:, None, :]
    normal = unit.swapaxes(1, 2) @ unit
    both = free[:, :, None] & free[:, None, :]
    # Parameters that are not free get a unit diagonal, so that one factorization serves all rows.
    values, vectors = np.linalg.eigh(np.where(both, normal, np.eye(free.shape[1])))
    regular = values[:, 0] > 1e-10
    root = vectors / np.sqrt(np.where(regular[:, None], values, 1.0))[:, None, :]
    spread = (np.where(free[:, None, :], change, 0.0)) @ root
    variance = np.sum(spread**2, axis=2)
    moved = _moved_by_bounds(root, normal, change, free, held, variance)
    freedom = np.maximum(taps - free.sum(axis=1), 1)
    error = (np.ldexp(residual, -power) / np.sqrt(freedom))[:, None] * np.sqrt(variance)
    weighted = [parameter.unit == "weight" for parameter in family.parameters]
    error[:, weighted] = np.ldexp(error[:, weighted], power[:, None])
    unknown = moved
    for column, name in enumerate(family.model.names):
        at = linear.shape[1] + column
        for reported in reported_names(family.model, name):
            unknown[:, family.names.index(reported)] |= ~free[:, at]
        if name in _RADIAL and isinstance(family.model, GaussianModel):
            # The truth may lie far from a width on its bound, where no linear error reaches.
            rest = [reported not in _PLACE for reported in family.names]
            unknown[:, rest] |= held[:, at, None]
    return np.where(~unknown & regular[:, None], error, np.nan)


def _moved_by_bounds(
    root: Float[np.ndarray, "n q q"],
    normal: Float[np.ndarray, "n q q"],
    change: Float[np.ndarray, "n p q"],
    free: Bool[np.ndarray, "n q"],
    held: Bool[np.ndarray, "n q"],
    variance: Float[np.ndarray, "n p"],
) -> Bool[np.ndarray, "n p"]:
    """Reported parameters whose error leaves out what a search parameter on its bound would add.

    Errors of the free parameters are right if those on a bound are known to be there. They are not: the truth
    lies inside, as far as the noise reaches. So each is let go by itself, and what moves with it by more than
    a share of its own error has an error that nobody knows.

    Args:
      root: root of the inverse normal matrix of the free parameters.
      normal: normal matrix of all parameters, in units of the Jacobian's columns.
      change: derivatives of the reported parameters, in the same units.
      free: which parameters are free.
      held: which are on a bound and not known.
      variance: of the reported parameters, in units of the noise.
    """
    moved = np.zeros(variance.shape, bool)
    for column in np.flatnonzero(held.any(axis=0)):
        coupling = np.where(free, normal[:, :, column], 0.0)[:, :, None]
        # How the free parameters follow this one, and what of it they cannot make up for.
        followers = root @ (root.swapaxes(1, 2) @ coupling)
        left = np.maximum(normal[:, column, column] - (coupling * followers).sum(axis=1)[:, 0], _LEAST_LEFT)
        own = np.where(free[:, None, :], change, 0.0) @ followers
        shift = change[:, :, column] - own[:, :, 0]
        moved |= held[:, column, None] & (shift**2 > _TOLERATED * left[:, None] * variance)
    return moved
