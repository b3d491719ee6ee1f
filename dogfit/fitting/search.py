"""Which engine searches, how hard, and how the search behaves under `vmap`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.fitting.families import search_bounds
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native import binding as native
from dogfit.kernels.objective.derivatives import Model
from dogfit.kernels.objective.products import are_separable
from dogfit.kernels.types import Box, Effort, Found
from dogfit.kernels.xla.search import search_optimum, seed_all

Images = Float[Array, "h w b"]


class Search(NamedTuple):
    """One model to search, and bounds narrower than its own, if any."""

    model: Model
    narrowed: Box | None

    def bounds(self, images: Images) -> Box:
        """The bounds that hold."""
        if self.narrowed is not None:
            return self.narrowed
        own = search_bounds(self.model, (images.shape[0], images.shape[1]))
        return Box(*(jnp.asarray(side, images.dtype)[:, None] for side in own))


def block_rows() -> int:
    """Kernels that step together: cache-sized on a CPU, enough to fill an accelerator elsewhere."""
    return 128 if jax.default_backend() == "cpu" else 8192


def chunk_rows() -> int:
    """Kernels per call of the compiled program on a device: so many blocks that few lanes idle at its end."""
    return block_rows() * (16 if jax.default_backend() == "cpu" else 8)


def _rows_in_step(model: Model, weights: Images | None) -> int:
    """As `block_rows`, for a model; fewer where every image is made in full."""
    lean = isinstance(model, GaussianModel) and are_separable(model, weights)
    return block_rows() if lean or jax.default_backend() != "cpu" else block_rows() // 2


def tolerance_of(dtype: Any) -> float:
    """Energy (of 1) below which a further step is not worth taking."""
    return 1e-7 if dtype == jnp.float32 else 1e-14


def search_models(
    images: Images, weights: Images | None, searches: Sequence[Search], config: FitConfig
) -> list[Found]:
    """Optima of models for a block of unit kernels; `vmap` widens the block instead of nesting loops.

    Raises:
      ValueError: if the engine asked for cannot do what is asked of it, with the reason.
    """
    if config.engine == "pallas":
        return [_search_pallas(images, weights, search, config) for search in searches]
    compiled = [_native_model(search, images, weights, config) for search in searches]
    together = tuple(model for model in compiled if model is not None and not model.elliptic)
    found = iter(_search_native(images, together, config)) if together else iter(())

    def search(given: Search, model: native.NativeModel | None) -> Found:
        if model is None:
            return _search_xla(images, weights, given, config)
        return _climb_native(images, given, model, config) if model.elliptic else next(found)

    return [search(given, model) for given, model in zip(searches, compiled, strict=True)]


def _native_model(
    search: Search, images: Images, weights: Images | None, config: FitConfig
) -> native.NativeModel | None:
    """The model as the compiled search knows it, or None if that is not to be used."""
    if config.engine == "xla":
        return None
    reason = _why_not_native(search, images, weights)
    if reason is None:
        assert isinstance(search.model, GaussianModel)
        model = search.model
        return native.NativeModel(model.order, model.two_widths, model.shared_amplitude, model.elliptic)
    if config.engine == "native":
        raise ValueError(f"engine native cannot make this fit: {reason}")
    return None


def _why_not_native(search: Search, images: Images, weights: Images | None) -> str | None:
    model = search.model
    if jax.default_backend() != "cpu":
        return "it is for CPUs"
    if not isinstance(model, GaussianModel) or model.profile != "integrated":
        return "it knows Gaussian families with integrated profiles only"
    if weights is not None or search.narrowed is not None:
        return "it knows neither weights nor bounds"
    if images.dtype != jnp.float32 or images.shape[0] != images.shape[1]:
        return f"it fits square kernels in float32, not {images.shape[:2]} in {images.dtype}"
    return native.why_not()


def _search_native(
    images: Images, models: tuple[native.NativeModel, ...], config: FitConfig
) -> tuple[Found, ...]:
    usual = native.DEFAULT_EFFORT
    harder = config.effort / DEFAULT.effort
    effort = usual._replace(
        starts=min(4 * config.effort + 4, native.MAX_STARTS),
        steps=config.steps,
        min_separation=usual.min_separation / harder**0.5,
        min_relative_energy=usual.min_relative_energy**harder,
        abandon_factor=usual.abandon_factor * harder,
    )

    def search(images: Images) -> tuple[Found, ...]:
        bounds = [
            search_bounds(GaussianModel(*model), (images.shape[0], images.shape[1])) for model in models
        ]
        lower, upper = ([jnp.asarray(b[side], images.dtype) for b in bounds] for side in (0, 1))
        return native.search_families(lax.transpose(images, (1, 0, 2)), models, lower, upper, effort)

    return flatten_vmap(search)(images)


def _climb_native(images: Images, given: Search, model: native.NativeModel, config: FitConfig) -> Found:
    """Starts of an elliptic model as XLA finds them, and compiled ascents from there."""
    effort = _effort(given.model, config, tolerance_of(images.dtype))
    # Steps are cheap here.
    effort = effort._replace(
        starts=min(effort.starts, native.MAX_GIVEN_STARTS), abandon_factor=4 * effort.abandon_factor
    )

    def search(images: Images) -> Found:
        kernels = lax.transpose(images, (1, 0, 2))
        lower, upper = (jnp.asarray(side)[:, 0] for side in given.bounds(images))
        starts = seed_all(kernels, None, None, given.model, effort, block_rows())
        return native.climb(kernels, *starts, model, lower, upper, effort)

    return flatten_vmap(search)(images)


def _search_pallas(images: Images, weights: Images | None, given: Search, config: FitConfig) -> Found:
    # Loaded when asked for: Pallas is heavy, and on trial.
    from dogfit.kernels import pallas

    box, backend = given.bounds(images), pallas.default_backend()
    reason = pallas.unsupported(images, box, given.model, weights)
    if given.narrowed is not None:
        reason = "it knows no bounds"
    if backend is None:
        reason = f"it is for accelerators, and this process has {jax.default_backend()} devices"
    if reason is not None or backend is None:
        raise ValueError(f"engine pallas cannot make this fit: {reason}")
    model = given.model
    assert isinstance(model, GaussianModel)
    effort = fused_effort(model, config)

    def search(images: Images, box: Box) -> Found:
        return pallas.search_optimum(lax.transpose(images, (1, 0, 2)), box, model, effort, backend=backend)

    return flatten_vmap(search)(images, box)


def fused_effort(model: GaussianModel, config: FitConfig) -> Effort:
    """How hard the fused search tries: its starts are taken up one by one while they may win."""
    effort = _effort(model, config, tolerance_of(jnp.float32))
    if model.shared_amplitude:
        return effort._replace(starts=5 * config.effort, steps=config.steps)
    return effort._replace(starts=5 * config.effort // 2, steps=(config.steps + 6) // 2)


def _search_xla(images: Images, weights: Images | None, given: Search, config: FitConfig) -> Found:
    effort = _effort(given.model, config, tolerance_of(images.dtype))
    x_first = (1, 0, 2)

    def search(images: Images, weights: Images | None, box: Box) -> Found:
        return search_optimum(
            lax.transpose(images, x_first),
            box,
            given.model,
            effort,
            block=min(_rows_in_step(given.model, weights), images.shape[-1]),
            weights=None if weights is None else lax.transpose(weights, x_first),
            narrowed=given.narrowed is not None,
        )

    return flatten_vmap(search)(images, weights, given.bounds(images))


def flatten_vmap(search: Any) -> Any:
    """A search that `vmap` gives more kernels at once: all its arrays have the batch last."""
    batched = jax.custom_batching.custom_vmap(search)

    @batched.def_vmap
    def _(axis_size: int, in_batched: Any, images: Array, *others: Any):
        rows = images.shape[-1]

        def widen(array: Array, is_batched: bool) -> Array:
            if not is_batched:
                if array.shape[-1] == 1 != rows:
                    return array
                array = jnp.broadcast_to(array[None], (axis_size, *array.shape))
            array = jnp.broadcast_to(array, (*array.shape[:-1], rows))
            wide = jnp.moveaxis(array, 0, -2)
            return wide.reshape(*wide.shape[:-2], -1)

        wide = jax.tree.map(widen, (images, *others), tuple(in_batched))
        found = batched(*wide)
        split = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(*leaf.shape[:-1], axis_size, -1), -2, 0), found
        )
        return split, jax.tree.map(lambda _: True, split)

    return batched


# Share of the best energy known below which a seed is no start, by order and number of widths: the lower, the
# more a family's shape varies from node to node, and an ascent adds.
_SHARES = {(0, 1): 0.85, (1, 1): 0.75, (2, 1): 0.65, (0, 2): 0.65, (1, 2): 0.6, (2, 2): 0.6}


def _effort(model: Model, config: FitConfig, tolerance: float) -> Effort:
    harder = config.effort / DEFAULT.effort
    share, starts = 0.5, 12
    # What has not arrived by half the steps is in a narrow valley; the best of a kernel gets to its end.
    steps, abandon_factor, min_separation, edge_restarts = (config.steps + 1) // 2, 8.0, 0.3, False
    if isinstance(model, GaussianModel):
        share = _SHARES[model.order, 1 + model.two_widths]
        edge_restarts = (
            model.profile == "integrated" and model.shared_amplitude and (model.elliptic or model.order == 2)
        )
        sampled_derivative = model.profile == "sampled" and model.order > 0
        # Ellipses, tied surrounds and values at single points have more optima; centres of a discrete profile
        # are starts of their own, of which an edge has many.
        if model.shared_amplitude and model.order == 2:
            starts, steps = 30, config.steps
        elif model.profile == "discrete" and model.order == 1 and not model.shared_amplitude:
            starts = 60
        elif model.shared_amplitude or model.elliptic or model.profile == "discrete" or sampled_derivative:
            starts = 24
        if model.elliptic and (model.order or model.two_widths):
            # Many optima, and valleys that bend.
            starts = 96 if model.shared_amplitude or sampled_derivative else 64
            min_separation = 0.3 if model.shared_amplitude else 0.2
            steps, abandon_factor, share = config.steps, 32.0, 0.85 * share
    return Effort(
        starts=max(round(harder * starts), 1),
        steps=steps,
        min_relative_energy=share**harder,
        abandon_factor=abandon_factor * harder,
        min_separation=min_separation / harder**0.5,
        tolerance=tolerance,
        edge_restarts=edge_restarts,
    )
