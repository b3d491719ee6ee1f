"""The search of `dogfit.kernels.xla.search` as one fused kernel for an accelerator.

A block of kernels stays on the chip from seeds to result: taps are read from memory once, results written
once. `body` and `lanes` are what runs, whatever the device; `triton` and `tpu` say how it is cut into blocks
and launched there.
"""

from types import ModuleType

import jax.numpy as jnp

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.model.kinds import Model
from dogfit.kernels.pallas import tpu, triton
from dogfit.kernels.pallas.body import Plan, Tables
from dogfit.kernels.pallas.dictionary import dictionary, padded_taps
from dogfit.kernels.types import Box, Effort, Found, Image

BACKENDS: dict[str, ModuleType] = {"triton": triton, "tpu": tpu}
MAX_SIZE = 11


def check_supported(kernels: Image, box: Box, model: Model, weights: Image | None = None) -> None:
    """Check that the fused search can do what the plain one is asked to.

    Raises:
      NotImplementedError: with the reason, where it cannot.
    """
    if not isinstance(model, GaussianModel) or model.elliptic or model.profile != "integrated":
        raise NotImplementedError("the fused search has round models of integrated profiles only")
    if weights is not None:
        raise NotImplementedError("the fused search weighs all taps alike")
    if kernels.shape[0] != kernels.shape[1] or not 3 <= kernels.shape[0] <= MAX_SIZE:
        raise NotImplementedError(
            f"the fused search takes square kernels of 3 to {MAX_SIZE} taps a side, got {kernels.shape[:2]}"
        )
    if kernels.dtype != jnp.float32:
        raise NotImplementedError(f"the fused search computes in float32, got {kernels.dtype}")
    if any(bound.shape[-1] != 1 for bound in box):
        raise NotImplementedError("the fused search has one box for all kernels")


def search_optimum(
    kernels: Image,
    box: Box,
    model: GaussianModel,
    effort: Effort,
    *,
    backend: str = "triton",
    interpret: bool = False,
) -> Found:
    """Largest explained energy of centred kernels of unit energy inside a box.

    The same as `dogfit.kernels.xla.search.search_optimum` where `check_supported` has no objection. Starts
    are taken up one after the other, each until it converges or cannot win; of `effort`, the number of
    starts, their evaluations and the tolerance count.

    Args:
      kernels: float32.
      box: bounds shared by all kernels, `[p, 1]`.
      model: static.
      effort: numbers of starts and steps; static.
      backend: "triton" (NVIDIA and AMD) or "tpu".
      interpret: run on any device, for tests: slow.

    Raises:
      NotImplementedError: as `check_supported`.
    """
    check_supported(kernels, box, model)
    size, _, count = kernels.shape
    table = dictionary(model, size)
    plan = Plan(
        size=size,
        slots=table.slots,
        bits=table.bits,
        starts=min(effort.starts, table.slots),
        steps=effort.steps,
        tolerance=effort.tolerance,
    )
    launcher = BACKENDS[backend]
    rows = padded_taps(size)
    # Zero kernels explain nothing and end at once.
    taps = jnp.pad(
        kernels.reshape(size * size, count), ((0, rows - size * size), (0, -count % launcher.LANES))
    )
    tables = Tables(
        box.lower[:, 0],
        box.upper[:, 0],
        jnp.asarray(table.columns, jnp.bfloat16),
        *map(jnp.asarray, table[1:7]),
    )
    found, counts = launcher.launch(taps, tables, model, plan, interpret)
    found, counts = found[:, :count], counts[:, :count]
    return Found(found[:-1], found[-1], counts[0], counts[1])
