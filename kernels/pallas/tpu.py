"""Launch on TPUs, through Pallas' Mosaic backend.

A block is a grid of 8 x 128 kernels, so that each number of the search is one vector register. What all
blocks share and is read one number at a time lies in scalar memory.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.pallas.body import Plan, Tables, search_block

SUBLANES, _WIDTH = 8, 128
LANES = SUBLANES * _WIDTH


def launch(
    taps: Float[Array, "taps n"], tables: Tables, model: GaussianModel, plan: Plan, interpret: bool
) -> tuple[Float[Array, "rows n"], Int[Array, "2 n"]]:
    """Run `search_block` on kernels whose number is a multiple of `LANES`."""
    rows, count = taps.shape
    wide = len(model.names) + 1

    def columns(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((height, SUBLANES, _WIDTH), lambda i: (0, i, 0))

    shared = [pl.BlockSpec(memory_space=pltpu.SMEM) for _ in tables]
    shared[Tables._fields.index("columns")] = pl.BlockSpec(tables.columns.shape, lambda _: (0,) * 4)
    tall = count // _WIDTH
    found, counts = pl.pallas_call(
        functools.partial(_program, model=model, plan=plan),
        grid=(count // LANES,),
        in_specs=[columns(rows), *shared],
        out_specs=[columns(wide), columns(2)],
        out_shape=[
            jax.ShapeDtypeStruct((wide, tall, _WIDTH), jnp.float32),
            jax.ShapeDtypeStruct((2, tall, _WIDTH), jnp.int32),
        ],
        scratch_shapes=[pltpu.VMEM((plan.seeds * wide, SUBLANES, _WIDTH), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="dogfit_search",
    )(taps.reshape(rows, tall, _WIDTH), *tables)
    return found.reshape(wide, count), counts.reshape(2, count)


def _program(taps: Any, *refs: Any, model: GaussianModel, plan: Plan) -> None:
    tables, (found, counts, seeds) = Tables(*refs[:-3]), refs[-3:]
    blocks = [taps[:, s, :].astype(jnp.bfloat16) for s in range(SUBLANES)]

    def project(nodes: Float[Array, "nodes taps"]) -> Float[Array, "nodes sublanes lanes"]:
        parts = [jnp.dot(nodes, block, preferred_element_type=jnp.float32) for block in blocks]
        return jnp.stack(parts, axis=1)

    search_block(taps, tables, found, counts, seeds, project, model, plan)
