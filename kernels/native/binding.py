"""The search of `dogfit.kernels.xla.search` in C++ (`csrc/`), through `jax.ffi`.

All round models of a kernel are searched in one call; of elliptic models it makes the ascents alone. float32,
square kernels, integrated profiles. It is compiled when dogfit is installed, where there is a compiler. A
plain shared library loaded with ctypes: nothing of Python's interface is needed in it, and nothing is
registered before first use.
"""

import ctypes
import functools
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native.tables import seed_tables
from dogfit.kernels.tuning import NATIVE_MAX_GIVEN_STARTS, NATIVE_MAX_STARTS
from dogfit.kernels.types import Box, Effort, Found

_SEARCH, _CLIMB, _EVALUATE = "dogfit_search", "dogfit_climb", "dogfit_evaluate"
# As in csrc/api.h; the first stands for what is handed over, and in which order.
_INTERFACE = 3
_MAX_SIZE, _MAX_PARAMETERS = 51, 7
# As `Pairing` in csrc/api.h.
_SINGLE, _FREE, _SHARED = range(3)


def available() -> bool:
    """Tell whether the compiled search can be used here."""
    try:
        check_available()
    except NotImplementedError:
        return False
    return True


def check_available() -> None:
    """Check that the compiled search can be used here.

    Raises:
      NotImplementedError: with what is in the way.
    """
    _library()


def instructions() -> tuple[str, ...]:
    """Names of the builds that run on this processor, fastest first."""
    library = _library()
    library.dogfit_instructions.restype = ctypes.c_char_p
    return tuple(library.dogfit_instructions().decode().split())


@functools.cache
def _library() -> ctypes.CDLL:
    """The library, with its handlers registered."""
    folder = Path(__file__).parent
    paths = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise NotImplementedError(
            "the C++ search is missing: there was no C++ compiler when dogfit was installed"
        )
    try:
        library = ctypes.CDLL(str(path))
        if not hasattr(library, "dogfit_interface") or library.dogfit_interface() != _INTERFACE:
            raise NotImplementedError(
                f"the C++ search {path.name} was built from other sources; install dogfit again"
            )
        for name in (_SEARCH, _CLIMB, _EVALUATE):
            handler = getattr(library, name.title().replace("_", ""))
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    # Built for another processor or against headers that this jaxlib does not know.
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, NotImplementedError):
            raise
        raise NotImplementedError(f"the C++ search {path.name} cannot be used: {error}") from error
    return library


def _like(kernels: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of this shape that varies over a mesh as the kernels do, as shard_map demands of operands
    and results alike."""
    return jnp.zeros(shape, dtype) + jnp.sum(kernels[:0]).astype(dtype)


def _bounds(kernels: Array, boxes: Sequence[Box], side: int) -> Float[Array, "m 7"]:
    rows = [jnp.asarray(box[side], jnp.float32)[:, 0] for box in boxes]
    padded = [jnp.pad(row, (0, _MAX_PARAMETERS - row.shape[0])) for row in rows]
    return jnp.stack(padded) + _like(kernels, (1, 1), jnp.float32)


def _pairing(model: GaussianModel) -> int:
    return _SHARED if model.shared_amplitude else _FREE if model.two_widths else _SINGLE


def _results(kernels: Array, point: tuple[int, ...], rest: tuple[int, ...]) -> tuple[Array, ...]:
    """Arrays that a search is to return, for points and for the rest of these leading axes."""
    rows = kernels.shape[-1:]
    kinds = (jnp.float32, jnp.int32, jnp.int32)
    return _like(kernels, point + rows, jnp.float32), *(_like(kernels, rest + rows, kind) for kind in kinds)


def _efforts(efforts: Sequence[Effort]) -> dict[str, np.ndarray]:
    """Attributes of a call: of each field of `Effort` an array, with an entry per model."""
    whole = {"starts", "steps", "edge_restarts"}
    return {
        name: np.array(
            [getattr(effort, name) for effort in efforts], np.int32 if name in whole else np.float32
        )
        for name in Effort._fields
    }


def search_families(
    kernels: Float[Array, "k k n"],
    models: tuple[GaussianModel, ...],
    boxes: Sequence[Box],
    efforts: Sequence[Effort],
    *,
    only: str = "",
) -> tuple[Found, ...]:
    """Find the largest explained energy of round models, all in one call.

    Rows of zeros are answered with a point and no steps. What is found for a row does not depend on the
    others, their order or number, or the number of threads.

    Args:
      kernels: centred, of unit energy; float32, finite.
      models: round, of integrated profiles; pairs of Gaussians have an amplitude each, pairs of derivatives
        share one; static.
      boxes: bounds `[p, 1]` of each model's parameters; may be traced.
      efforts: of each model; static.
      only: name of the build to use, out of `instructions()`; the fastest if empty.

    Returns:
      One `Found` per model.

    Raises:
      NotImplementedError: as `check_available`.
      ValueError: for more starts than there may be.
    """
    check_available()
    count = len(models)
    for effort in efforts:
        if not 1 <= effort.starts <= 2 * NATIVE_MAX_STARTS:
            raise ValueError(f"starts must be 1 to {2 * NATIVE_MAX_STARTS}, got {effort.starts}")
    tables = seed_tables(models, kernels.shape[0])
    call = jax.ffi.ffi_call(
        _SEARCH,
        _results(kernels, (count, _MAX_PARAMETERS), (count,)),
        # A caller that merges the new axis with the batch is faster.
        vmap_method="sequential",
    )
    point, predicted_gain, steps, n_agreeing = call(
        kernels,
        _bounds(kernels, boxes, 0),
        _bounds(kernels, boxes, 1),
        *(table + _like(kernels, (), table.dtype) for table in tables),
        orders=np.array([m.order for m in models], np.int32),
        pairings=np.array([_pairing(m) for m in models], np.int32),
        **_efforts(efforts),
        instructions=only,
    )
    return tuple(
        Found(point[i, : len(model.names)], predicted_gain[i], steps[i], n_agreeing[i])
        for i, model in enumerate(models)
    )


def climb(
    kernels: Float[Array, "k k n"],
    points: Float[Array, "s p n"],
    energies: Float[Array, "s n"],
    model: GaussianModel,
    box: Box,
    effort: Effort,
    *,
    only: str = "",
) -> Found:
    """Find the largest explained energy of an elliptic model that ascents from given starts reach.

    Args:
      kernels: as of `search_families`.
      points: starts, best first.
      energies: explained energy at each; 0 or less where there are no more.
      model: static.
      box: bounds `[p, 1]` of the parameters; may be traced.
      effort: static; what it says of the choice of starts has no meaning here.
      only: as of `search_families`.

    Raises:
      NotImplementedError: as `check_available`.
      ValueError: for a round model, or more starts than there may be.
    """
    check_available()
    if not model.elliptic or points.shape[0] > NATIVE_MAX_GIVEN_STARTS:
        raise ValueError(
            f"climb takes elliptic models and at most {NATIVE_MAX_GIVEN_STARTS} starts, "
            f"got {model}, {points.shape}"
        )
    call = jax.ffi.ffi_call(_CLIMB, _results(kernels, (len(model.names),), ()), vmap_method="sequential")
    return Found(
        *call(
            kernels,
            points,
            energies,
            _bounds(kernels, [box], 0),
            _bounds(kernels, [box], 1),
            order=np.int32(model.order),
            pairing=np.int32(_pairing(model)),
            **_efforts([effort]),
            instructions=only,
        )
    )


def evaluate(
    kernels: Float[Array, "k k n"], points: Float[Array, "p n"], model: GaussianModel, *, only: str = ""
) -> tuple[Float[Array, " n"], Float[Array, "p n"], Float[Array, "t n"]]:
    """Evaluate a model at search points, as `dogfit.kernels.objective.derivatives.projected_derivatives`.

    Args:
      kernels: as of `search_families`.
      points: search parameters.
      model: static.
      only: as of `search_families`.

    Returns:
      Explained energy, half its gradient, and half its Hessian's lower triangle by rows.

    Raises:
      NotImplementedError: as `check_available`.
    """
    check_available()
    p = len(model.names)
    entries = 1 + p + p * (p + 1) // 2
    out = jax.ffi.ffi_call(_EVALUATE, _like(kernels, (entries, kernels.shape[-1]), jnp.float32))(
        kernels,
        points,
        order=np.int32(model.order),
        pairing=np.int32(_pairing(model)),
        elliptic=model.elliptic,
        instructions=only,
    )
    return out[0], out[1 : 1 + p], out[1 + p :]
