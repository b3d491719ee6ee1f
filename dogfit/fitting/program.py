"""The compiled pass: a block of kernels with every family, seeded, refined and selected."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dogfit.fitting.canonical import CanonicalTransform, canonical_transform
from dogfit.fitting.config import FitConfig
from dogfit.fitting.effort import budget_of
from dogfit.fitting.families import Family, to_parameters, with_profile
from dogfit.fitting.implicit import at_optimum, follow_optimum, without_derivative
from dogfit.fitting.result import FitResult, Status
from dogfit.kernels.dispatch import find_optima
from dogfit.kernels.linalg import largest_tap, leverages, materialize, project, sum_arrays, sum_taps
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.derivatives import model_jacobian
from dogfit.kernels.objective.products import mean_taps, whiten
from dogfit.kernels.problem import Problem, Search
from dogfit.kernels.tuning import resolution_of
from dogfit.kernels.types import Box, Found, Image
from dogfit.normalize import Flag, Layout, normalize

_BATCH_LAST = Layout(sum_taps, lambda x: lax.stop_gradient(largest_tap(x)), lambda x: x[None, None, :])


class _Unit(NamedTuple):
    """Kernels about their mean and of unit energy, and what undoes that; batch last, whitened by weights."""

    images: Image
    mean: Float[Array, " b"]
    amplitude: Float[Array, " b"]
    taps: Float[Array, " b"]
    status: Int[Array, " b"]

    @property
    def fitted(self) -> Bool[Array, " b"]:
        return self.status == Status.CONVERGED


class _FamilyFit(NamedTuple):
    """One family fitted to a block."""

    parameters: Float[Array, "b p"]
    unexplained: Float[Array, " b"]
    score: Float[Array, " b"]
    status: Int[Array, " b"]
    at_bound: Bool[Array, "b s"]
    found: Found


@functools.partial(jax.jit, static_argnames=("families", "unidentifiable", "config", "follow"))
def fit_block(
    kernels: Float[Array, "b h w"],
    weights: Float[Array, "b h w"] | None,
    boxes: dict[str, Box],
    families: tuple[Family, ...],
    unidentifiable: tuple[tuple[str, str], ...],
    config: FitConfig,
    follow: bool = True,
) -> FitResult:
    """Fit kernels with all families: every stage, in one compiled program.

    Its results are finite for every kernel, so that a program can be watched for NaN; see
    `FitResult.blank_unfitted`.

    Args:
      kernels: taps.
      weights: of taps, not negative; all alike if None.
      boxes: bounds narrower than the families' own, by family name.
      families: static, as are `unidentifiable`, `config` and `follow`.
      follow: whether parameters have derivatives by the kernels. R² has its first ones anyway, and takes a
        third of the time to differentiate without.

    Returns:
      FitResult with arbitrary numbers where a kernel was not fitted (`family` is -1 there).
    """
    weights = None if weights is None else without_derivative("weights", weights)
    boxes = without_derivative("bounds", boxes) if boxes else boxes
    weight = None if weights is None else lax.transpose(weights, (1, 2, 0))
    images = lax.transpose(kernels, (1, 2, 0))
    transform = None
    # Bounds and bases of a caller's own belong to the kernels as they are.
    if not boxes and all(isinstance(family.model, GaussianModel) for family in families):
        transform = materialize(canonical_transform(images, weight))
        images, weight = transform.apply(images), None if weight is None else transform.apply(weight)
    unit = materialize(_normalize(images, weight))
    weight = _relative(weight, unit)
    profiled = [with_profile(family, config.profile) for family in families]
    searches = _searches(unit.images, profiled, boxes, config)
    founds = _find_optima(Problem(lax.stop_gradient(unit.images), weight, searches), config.engine)
    fits = [
        _fit_family(unit, weight, transform, search.box, family, config, found, follow)
        for family, search, found in zip(profiled, searches, founds, strict=True)
    ]

    r2_by_family = 1.0 - jnp.stack([fit.unexplained for fit in fits], axis=1)
    score = jnp.stack([fit.score for fit in fits], axis=1)
    choice = _least_score(score, families)

    def chosen(values: Array) -> Array:
        return jnp.take_along_axis(values, choice[:, None], axis=1)[:, 0]

    statuses = jnp.stack([fit.status for fit in fits], axis=1)
    status = jnp.where(unit.fitted[:, None], statuses, unit.status[:, None])
    best_r2 = chosen(r2_by_family)
    unexplained = jnp.where(unit.fitted, 1.0 - best_r2, 1.0)
    # Of a perfect fit the root has no derivative, and the error is at its least.
    rmse = unit.amplitude * jnp.where(
        unexplained > 0, jnp.sqrt(jnp.where(unexplained > 0, unexplained, 1.0) / unit.taps), 0.0
    )
    return FitResult(
        families=families,
        unidentifiable=unidentifiable,
        shape=(kernels.shape[1], kernels.shape[2]),
        profile=config.profile,
        criterion=config.criterion,
        family=jnp.where(unit.fitted, choice, -1).astype(jnp.int8),
        r2=best_r2,
        rmse=rmse,
        status=chosen(status),
        r2_by_family=r2_by_family,
        score_by_family=score,
        status_by_family=status,
        parameters={f.name: fit.parameters for f, fit in zip(families, fits, strict=True)},
        at_bound={f.name: fit.at_bound for f, fit in zip(families, fits, strict=True)},
        predicted_gain=jnp.stack([fit.found.predicted_gain for fit in fits], axis=1),
        steps=jnp.stack([fit.found.steps for fit in fits], axis=1),
        n_agreeing=jnp.stack([fit.found.n_agreeing for fit in fits], axis=1),
        weights=weights,
        fixed={name: _fixed(box, len(kernels)) for name, box in boxes.items()},
    )


@functools.partial(jax.jit, static_argnames=("families", "unidentifiable", "config", "mesh"))
def fit_sharded(
    kernels: Float[Array, "b h w"],
    weights: Float[Array, "b h w"] | None,
    boxes: dict[str, Box],
    families: tuple[Family, ...],
    unidentifiable: tuple[tuple[str, str], ...],
    config: FitConfig,
    mesh: Mesh,
) -> FitResult:
    """`fit_block` on each device's own rows, a multiple of them in all, with no word between devices."""
    rows, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    own = PartitionSpec(None, mesh.axis_names)
    box_specs = jax.tree.map(lambda side: everywhere if side.shape[-1] == 1 else own, boxes)

    def fit(
        kernels: Float[Array, "b h w"], weights: Float[Array, "b h w"] | None, boxes: dict[str, Box]
    ) -> FitResult:
        return fit_block(kernels, weights, boxes, families, unidentifiable, config)

    specs = (rows, None if weights is None else rows, box_specs)
    return jax.shard_map(fit, mesh=mesh, in_specs=specs, out_specs=rows)(kernels, weights, boxes)


def in_working_precision(kernels: Array) -> Array:
    """Convert traced kernels to the precision they are fitted in: float64 stays, all else is float32."""
    return kernels if kernels.dtype == jnp.float64 else kernels.astype(jnp.float32)


def _normalize(kernels: Image, weights: Image | None) -> _Unit:
    found = normalize(kernels, _BATCH_LAST, weights=weights)
    used = jnp.ones_like(kernels) if weights is None else (weights > 0).astype(kernels.dtype)
    bad = jnp.where(found.flag == Flag.NONFINITE, jnp.int8(Status.NONFINITE), jnp.int8(Status.CONSTANT))
    status = jnp.where(found.flag == Flag.OK, jnp.int8(Status.CONVERGED), bad)
    return _Unit(found.taps, found.mean, found.norm, jnp.maximum(sum_taps(used), 1.0), status)


def _least_score(score: Float[Array, "b f"], families: Sequence[Family]) -> Int[Array, " b"]:
    """Index of the family of least score; of equal scores, the one with the fewest parameters."""
    order = sorted(range(len(families)), key=lambda number: len(families[number].parameters))
    return jnp.asarray(order)[jnp.argmin(score[:, jnp.asarray(order)], axis=1)]


def _fixed(box: Box, rows: int) -> Bool[Array, "b s"]:
    """Search parameters whose bounds leave them one value."""
    fixed = jnp.asarray(box.lower == box.upper)
    return jnp.broadcast_to(fixed, (fixed.shape[0], rows)).T


def _searches(
    images: Image, families: Sequence[Family], boxes: dict[str, Box], config: FitConfig
) -> tuple[Search, ...]:
    """Searches of the families' models, in the bounds given or else their own."""
    budget, shape = budget_of(config), (images.shape[0], images.shape[1])
    return tuple(
        Search(
            f.model, boxes.get(f.name) or search_box(f.model, shape, images.dtype), f.name in boxes, budget
        )
        for f in families
    )


def _find_optima(problem: Problem, engine: str) -> list[Found]:
    try:
        return find_optima(problem, engine)
    except NotImplementedError as reason:
        raise ValueError(
            f"engine {engine} cannot make this fit: {reason}; give engine='auto', which takes one that can"
        ) from reason


def _relative(weights: Image | None, unit: _Unit) -> Image | None:
    """Weights as they count: relatively, as many taps as have any."""
    if weights is None:
        return None
    # A kernel without any weight is not fitted, but must not divide by nothing.
    empty = sum_taps(weights) <= 0
    weights = jnp.where(empty[None, None, :], 1.0, weights)
    return weights * (unit.taps / sum_taps(weights))[None, None, :]


def _fit_family(
    unit: _Unit,
    weights: Image | None,
    transform: CanonicalTransform | None,
    box: Box,
    family: Family,
    config: FitConfig,
    found: Found,
    follow: bool,
) -> _FamilyFit:
    """Results that follow from a family's optimum; differentiable in the kernels, like the optimum itself."""
    model, shape = family.model, (unit.images.shape[0], unit.images.shape[1])
    optimum = found.point
    if follow:
        optimum = follow_optimum(model, optimum, unit.images, weights, box, unit.fitted)
    columns = model.varying_images(list(optimum), shape)
    solved = materialize(project(unit.images, [whiten(column, weights) for column, _ in columns]))
    unexplained, means = materialize(
        (sum_taps(solved.residual**2), [mean_taps(column, weights) + level for column, level in columns])
    )
    unexplained = at_optimum(unexplained, solved.residual, unit.images)
    offset = -sum_arrays(gain * mean for gain, mean in zip(solved.weights, means, strict=True))
    at_bound = (found.point <= box.lower) | (found.point >= box.upper)
    # A centre that only ever takes the seeds' places is at no bound.
    at_bound = at_bound & jnp.asarray(model.is_searched)[:, None]
    point, gains, at_bound_as_given = optimum, solved.weights, at_bound
    if transform is not None and isinstance(model, GaussianModel):
        point, gains = transform.undo_point(model, point), transform.undo_gains(model, gains)
        at_bound_as_given = transform.undo_at_bound(model, at_bound)
    values = to_parameters(
        model, point, unit.mean + unit.amplitude * offset, [unit.amplitude * gain for gain in gains]
    )
    done = found.predicted_gain <= resolution_of(unit.images.dtype)
    settled = jnp.where(jnp.any(at_bound, axis=0), jnp.int8(Status.AT_BOUND), jnp.int8(Status.CONVERGED))
    status = jnp.where(done, settled, jnp.int8(Status.MAX_STEPS))
    score = _score(unit, weights, family, config, optimum, unexplained, solved.residual, solved.weights)
    return _FamilyFit(values, unexplained, score, status, at_bound_as_given.T, found)


def _score(
    unit: _Unit,
    weights: Image | None,
    family: Family,
    config: FitConfig,
    point: Float[Array, "p b"],
    unexplained: Float[Array, " b"],
    residual: Image,
    gains: list[Float[Array, " b"]],
) -> Float[Array, " b"]:
    """Score that the choice among families minimizes, up to what all have in common."""
    taps, free = unit.taps, len(family.parameters)
    # A search that ends with so little left has found a member of its family: what is left says where it
    # stopped, nothing about the kernel.
    floor = resolution_of(unexplained.dtype)
    if config.criterion == "cv":
        shape = (residual.shape[0], residual.shape[1])
        changes = model_jacobian(family.model, list(point), gains, shape)
        columns = [
            jnp.ones_like(residual),
            *(image for image, _ in family.model.varying_images(list(point), shape)),
            *changes,
        ]
        root = 1.0 if weights is None else jnp.sqrt(weights)
        # A tap that a parameter is there for alone cannot be predicted from the others.
        left = jnp.maximum(1.0 - leverages([root * column for column in columns]), 1e-3)
        # Of a member of the family errors of prediction are rounding too, however leverages enlarge them.
        predicted = jnp.where(unexplained > floor, sum_taps((residual / left) ** 2), floor)
        return taps * jnp.log(jnp.maximum(predicted, floor) / taps)
    likelihood = taps * jnp.log(jnp.maximum(unexplained, floor) / taps)
    if config.criterion == "bic":
        return likelihood + free * jnp.log(taps)
    # The noise level is a parameter too (Hurvich and Tsai, 1989); more parameters than taps bear: never.
    spare = taps - free - 2
    return jnp.where(spare > 0, likelihood + 2 * (free + 1) * taps / jnp.where(spare > 0, spare, 1), jnp.inf)
