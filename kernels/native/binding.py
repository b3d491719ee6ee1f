"""The search of `search.py` in C++ (`csrc/`), for CPUs, through `jax.ffi`: all round models of a kernel
in one call; of elliptic models the ascents alone.

float32, square kernels, integrated profiles. It is compiled when dogfit is installed, where
there is a compiler; `available` says whether it was, `why_not` what is in the way. A plain shared library
loaded with ctypes: nothing of Python's interface is needed in it, and nothing is registered before first use.
"""

import ctypes
import functools
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native.tables import seed_tables
from dogfit.kernels.types import Effort, Found

_SEARCH, _CLIMB, _EVALUATE = "dogfit_search", "dogfit_climb", "dogfit_evaluate"
# As in csrc/api.h; the first stands for what is handed over, and in which order.
_INTERFACE = 2
_MAX_SIZE, _MAX_PARAMETERS = 51, 7
MAX_STARTS = 24
MAX_GIVEN_STARTS = 128


class NativeModel(NamedTuple):
    """Derivatives of one total order of one Gaussian, or of two.

    Attributes:
      order: 0 to 2.
      two_widths: whether there is a second, wider Gaussian with the same centre.
      shared_amplitude: whether it is subtracted, `surround_weight` times, from each derivative of the first
        (else each has an amplitude of its own).
      elliptic: whether the Gaussians may be elliptic, all alike.
    """

    order: int
    two_widths: bool = False
    shared_amplitude: bool = False
    elliptic: bool = False

    @property
    def parameters(self) -> int:
        """Number of search parameters: x0, y0, log sigma[, log ratio[, surround weight]][, e1, e2]."""
        return 3 + self.two_widths + self.shared_amplitude + 2 * self.elliptic

    @property
    def pairing(self) -> int:
        """As `Pairing` in csrc/api.h."""
        return 2 if self.shared_amplitude else int(self.two_widths)


class NativeEffort(NamedTuple):
    """How hard to search; static.

    Attributes:
      starts: most seeds that are refined, at most `MAX_STARTS`; twice as many for models that share an
        amplitude.
      steps: most evaluations for a start.
      min_separation: widths within which a seed stands for those of neighbouring widths.
      min_relative_energy: share of the best energy known below which a seed is no start; closer to 1 for
        families whose seeds tell more.
      abandon_factor: a start is given up where so many times the predicted gain of its next step is less
        than it lacks.
      tolerance: energy (of 1) promised by a further step below which a start has converged.
    """

    starts: int = 24
    steps: int = 40
    min_separation: float = 0.3
    min_relative_energy: float = 0.66
    abandon_factor: float = 12.0
    tolerance: float = 1e-7


DEFAULT_EFFORT = NativeEffort()


def available() -> bool:
    """Whether the compiled search can be used here."""
    return why_not() is None


def why_not() -> str | None:
    """What keeps the compiled search from being used, or None."""
    library = _library()
    return library if isinstance(library, str) else None


def instructions() -> tuple[str, ...]:
    """Names of the builds that run on this processor, fastest first."""
    library = _loaded()
    library.dogfit_instructions.restype = ctypes.c_char_p
    return tuple(library.dogfit_instructions().decode().split())


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library with its handlers registered, or why there is none."""
    folder = Path(__file__).parent
    paths = [folder / f"_native{suffix}" for suffix in EXTENSION_SUFFIXES]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return "the compiled search was not built: a C++ compiler was missing when dogfit was installed"
    try:
        library = ctypes.CDLL(str(path))
        if not hasattr(library, "dogfit_interface") or library.dogfit_interface() != _INTERFACE:
            return f"the compiled search {path.name} was built from other sources; install dogfit again"
        for name in (_SEARCH, _CLIMB, _EVALUATE):
            handler = getattr(library, name.title().replace("_", ""))
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    # Built for another processor or against headers that this jaxlib does not know.
    except (OSError, AttributeError, RuntimeError, ValueError) as error:
        return f"the compiled search {path.name} cannot be used: {error}"
    return library


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library


def _like(kernels: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of this shape that varies over a mesh as the kernels do, as shard_map demands of operands
    and results alike."""
    return jnp.zeros(shape, dtype) + jnp.sum(kernels[:0]).astype(dtype)


def _bounds(kernels: Array, values: list[Array]) -> Float[Array, "m 7"]:
    rows = [jnp.pad(v.astype(jnp.float32), (0, _MAX_PARAMETERS - v.shape[0])) for v in values]
    return jnp.stack(rows) + _like(kernels, (1, 1), jnp.float32)


def _results(kernels: Array, point: tuple[int, ...], rest: tuple[int, ...]) -> tuple[Array, ...]:
    """What a search is to return, for points and for the rest of these leading axes."""
    rows = kernels.shape[-1:]
    kinds = (jnp.float32, jnp.int32, jnp.int32)
    return _like(kernels, point + rows, jnp.float32), *(_like(kernels, rest + rows, kind) for kind in kinds)


def _ascents(effort: Effort | NativeEffort) -> dict[str, Any]:
    """Attributes of a call that say how hard to climb."""
    numbers = {
        name: np.float32(getattr(effort, name))
        for name in ("min_relative_energy", "abandon_factor", "tolerance")
    }
    return {"steps": np.int32(effort.steps), **numbers}


def search_families(
    kernels: Float[Array, "kx ky n"],
    models: tuple[NativeModel, ...],
    lower: list[Float[Array, " p"]],
    upper: list[Float[Array, " p"]],
    effort: NativeEffort = DEFAULT_EFFORT,
    *,
    only: str = "",
) -> tuple[Found, ...]:
    """Largest explained energy of centred kernels of unit energy inside a box, model by model.

    Rows of zeros are answered with a point and no steps. What is found for a row does not depend on the
    others, their order or number, or the number of threads.

    Args:
      kernels: float32, x on the first axis, batch last; finite.
      models: round ones; pairs of Gaussians have an amplitude each, pairs of derivatives share one; static.
      lower: lower bounds of each model's parameters; may be traced.
      upper: upper bounds.
      effort: static.
      only: name of the build to use, out of `instructions()`; the fastest if empty.

    Returns:
      One `Found` per model.
    """
    _loaded()
    count = len(models)
    if not 1 <= effort.starts <= MAX_STARTS:
        raise ValueError(f"starts must be 1 to {MAX_STARTS}, got {effort.starts}")
    tables = seed_tables(tuple(GaussianModel(*model) for model in models), kernels.shape[0])
    call = jax.ffi.ffi_call(
        _SEARCH,
        _results(kernels, (count, _MAX_PARAMETERS), (count,)),
        # A caller that merges the new axis with the batch is faster.
        vmap_method="sequential",
    )
    point, predicted_gain, steps, n_agreeing = call(
        kernels,
        _bounds(kernels, lower),
        _bounds(kernels, upper),
        *(table + _like(kernels, (), table.dtype) for table in tables),
        orders=np.array([m.order for m in models], np.int32),
        pairings=np.array([m.pairing for m in models], np.int32),
        starts=np.int32(effort.starts),
        min_separation=np.float32(effort.min_separation),
        **_ascents(effort),
        instructions=only,
    )
    return tuple(
        Found(point[i, : model.parameters], predicted_gain[i], steps[i], n_agreeing[i])
        for i, model in enumerate(models)
    )


def climb(
    kernels: Float[Array, "kx ky n"],
    points: Float[Array, "s p n"],
    energies: Float[Array, "s n"],
    model: NativeModel,
    lower: Float[Array, " p"],
    upper: Float[Array, " p"],
    effort: Effort,
    *,
    only: str = "",
) -> Found:
    """Largest explained energy of an elliptic model that ascents from given starts reach.

    Args:
      kernels: as of `search_families`.
      points: starts, best first, at most `MAX_GIVEN_STARTS`.
      energies: explained energy at each; 0 or less where there are no more.
      model: static.
      lower: lower bounds of the parameters; may be traced.
      upper: upper bounds.
      effort: static; what it says of the choice of starts has no meaning here.
      only: as of `search_families`.
    """
    _loaded()
    if not model.elliptic or points.shape[0] > MAX_GIVEN_STARTS:
        raise ValueError(
            f"climb takes elliptic models and at most {MAX_GIVEN_STARTS} starts, got {model}, {points.shape}"
        )
    call = jax.ffi.ffi_call(_CLIMB, _results(kernels, (model.parameters,), ()), vmap_method="sequential")
    return Found(
        *call(
            kernels,
            points,
            energies,
            *(side.astype(jnp.float32) + _like(kernels, (1,), jnp.float32) for side in (lower, upper)),
            order=np.int32(model.order),
            pairing=np.int32(model.pairing),
            **_ascents(effort),
            instructions=only,
        )
    )


def evaluate(
    kernels: Float[Array, "kx ky n"], points: Float[Array, "p n"], model: NativeModel, *, only: str = ""
) -> tuple[Float[Array, " n"], Float[Array, "p n"], Float[Array, "t n"]]:
    """Explained energy at search points, half its gradient, and half its Hessian's lower triangle by rows.

    As `derivatives.projected_derivatives`, in the same units.
    """
    _loaded()
    p = model.parameters
    entries = 1 + p + p * (p + 1) // 2
    out = jax.ffi.ffi_call(_EVALUATE, _like(kernels, (entries, kernels.shape[-1]), jnp.float32))(
        kernels,
        points,
        order=np.int32(model.order),
        pairing=np.int32(model.pairing),
        elliptic=model.elliptic,
        instructions=only,
    )
    return out[0], out[1 : 1 + p], out[1 + p :]
