"""The door of `kernels/`: finds the optima of models, by whichever engine can.

An engine is a module with `check`, which refuses by `NotImplementedError`, and `search`. To add one, write
it, name it in `_ENGINES`, and list it in `tuning.Device.engines` where "auto" is to try it.
"""

import importlib
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dogfit.kernels import tuning
from dogfit.kernels.problem import Problem, Search
from dogfit.kernels.types import Box, Found, Image


class Engine(Protocol):
    """Functions that a module must have to be an engine."""

    def check_available(self) -> None:
        """Check that the engine can run in this process.

        Raises:
          NotImplementedError: with the reason, where it cannot.
        """

    def check(self, problem: Problem, search: Search) -> None:
        """Check that the engine can make one search of a problem.

        Raises:
          NotImplementedError: with the reason, where it cannot.
        """

    def search(self, problem: Problem) -> list[Found]:
        """Optima of all searches of a problem, each of which passes `check`; traceable by JAX."""
        ...


# Modules are loaded when they are first tried: Pallas is heavy.
_ENGINES = {
    "native": "dogfit.kernels.native.engine",
    "xla": "dogfit.kernels.xla.engine",
    "pallas": "dogfit.kernels.pallas.engine",
}


def find_optima(problem: Problem, engine: str = "auto") -> list[Found]:
    """Find the largest explained energy of each model for each kernel.

    Under `vmap` the batch gets longer, and the searches are not nested.

    Args:
      problem: kernels and models.
      engine: "auto" for the first of the device's engines that can make a search, or the name of the one that
        is to make them all.

    Returns:
      One `Found` per search, in their order.

    Raises:
      NotImplementedError: if the engine named cannot make one of the searches, with the reason.
    """
    names = tuning.device().engines if engine == "auto" else (engine,)
    chosen = [_first_able(names, problem, search) for search in problem.searches]
    founds: dict[int, Found] = {}
    # One call per engine: C++ shares work between models.
    for name in dict.fromkeys(chosen):
        mine = [number for number, other in enumerate(chosen) if other == name]
        part = problem._replace(searches=tuple(problem.searches[number] for number in mine))
        founds |= zip(mine, _search_batched(_load(name), part), strict=True)
    return [founds[number] for number in range(len(chosen))]


def check_fastest() -> None:
    """Check that the engine which is fastest on this kind of device can be used.

    Raises:
      NotImplementedError: with what is missing and what that costs.
    """
    try:
        _load(tuning.device().engines[0]).check_available()
    except NotImplementedError as missing:
        raise NotImplementedError(
            f"{missing}; fits run in plain XLA instead: about 4 times fewer kernels a second, and 8 to 34 s "
            "of compilation instead of 2"
        ) from missing


def _load(name: str) -> Engine:
    return cast(Engine, importlib.import_module(_ENGINES[name]))


def _first_able(names: tuple[str, ...], problem: Problem, search: Search) -> str:
    """Name of the first engine that can make a search."""
    for name in names:
        try:
            _load(name).check(problem, search)
        except NotImplementedError:
            if name == names[-1]:
                raise
        else:
            return name
    raise NotImplementedError("no engine is listed for this kind of device")


def _search_batched(engine: Engine, problem: Problem) -> list[Found]:
    def search(images: Image, weights: Image | None, boxes: tuple[Box, ...]) -> list[Found]:
        boxed = zip(problem.searches, boxes, strict=True)
        return engine.search(Problem(images, weights, tuple(s._replace(box=box) for s, box in boxed)))

    boxes = tuple(search.box for search in problem.searches)
    return flatten_vmap(search)(problem.images, problem.weights, boxes)


def flatten_vmap(function: Any) -> Any:
    """Make a function to which `vmap` gives a longer batch instead of one more axis.

    Args:
      function: takes and returns pytrees of arrays with the batch on the last axis, or, for arguments that
        all kernels share, an axis of length one; the first argument has the whole batch.

    Returns:
      The function, with the same signature.
    """
    batched = jax.custom_batching.custom_vmap(function)

    @batched.def_vmap
    def _(axis_size: int, in_batched: Any, images: Array, *others: Any):
        rows = images.shape[-1]
        if not axis_size:
            shapes = jax.eval_shape(function, *jax.tree.map(_unbatched, (images, *others), tuple(in_batched)))
            nothing = jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), shapes)
            return nothing, jax.tree.map(lambda _: True, nothing)

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


def _unbatched(array: Array, is_batched: bool) -> jax.ShapeDtypeStruct:
    """Shape and type of an array without the axis that `vmap` has put first."""
    return jax.ShapeDtypeStruct(array.shape[1:] if is_batched else array.shape, array.dtype)
