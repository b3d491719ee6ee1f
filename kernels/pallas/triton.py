"""Launch on GPUs, through Pallas' Triton backend.

One warp is one program and one lane one kernel: lanes diverge within their warp alone, and the test for the
last one is a vote, not a barrier. Taps are read from global memory where they are used: after the first time
that is the L1 cache, and it leaves registers to the arithmetic.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.pallas.body import Plan, Tables, search_block

LANES = 32
_PARAMS = plt.CompilerParams(num_warps=1, num_stages=1)


def launch(
    taps: Float[Array, "taps n"], tables: Tables, model: GaussianModel, plan: Plan, interpret: bool
) -> tuple[Float[Array, "rows n"], Int[Array, "2 n"]]:
    """Run `search_block` on kernels whose number is a multiple of `LANES`."""
    rows, count = taps.shape
    wide = len(model.names) + 1

    def whole(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec(array.shape, lambda _: (0,) * array.ndim)

    def columns(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, LANES), lambda i: (0, i))

    # The work space is an output that nobody reads: Triton has no scratch memory.
    heights = {"found": wide, "counts": 2, "seeds": plan.seeds * wide}
    found, counts, _ = pl.pallas_call(
        functools.partial(_program, model=model, plan=plan),
        grid=(count // LANES,),
        in_specs=[columns(rows), *map(whole, tables)],
        out_specs=[columns(height) for height in heights.values()],
        out_shape=[
            jax.ShapeDtypeStruct((height, count), jnp.int32 if name == "counts" else jnp.float32)
            for name, height in heights.items()
        ],
        compiler_params=_PARAMS,
        interpret=interpret,
        name="dogfit_search",
    )(taps, *tables)
    return found, counts


def _program(taps: Any, *refs: Any, model: GaussianModel, plan: Plan) -> None:
    tables, (found, counts, seeds) = Tables(*refs[:-3]), refs[-3:]
    block = taps[...].astype(jnp.bfloat16)

    def project(nodes: Float[Array, "nodes taps"]) -> Float[Array, "nodes lanes"]:
        return jnp.dot(nodes, block, preferred_element_type=jnp.float32)

    search_block(taps, tables, found, counts, seeds, project, model, plan)
