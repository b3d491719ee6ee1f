"""Operations and bytes of the fused search, counted from its own program, and the floors that follow.

    python benchmarks/roofline.py                  the tables of benchmarks/roofline.md (a few minutes)
    python benchmarks/roofline.py --kernels 2048   evaluations measured on more kernels

Counts are of the jaxpr of one turn of the search loop, per lane, after dead code is removed; evaluations are
those of the search itself on real 7x7 kernels, interpreted on the CPU. Nothing here is timed.
"""

import argparse
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from fit import real_kernels
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.pallas import body
from dogfit.kernels.pallas.dictionary import dictionary, padded_taps
from dogfit.kernels.pallas.search import search_optimum
from dogfit.kernels.pallas.triton import LANES
from dogfit.kernels.tuning import fused_effort
from dogfit.kernels.types import Budget, Effort

FAMILIES = ("gaussian", "dog", "d1", "d2")
SIZE = 7
# An H200: float32 by its datasheet, 132 multiprocessors of 128 lanes, 16 special functions a clock each at
# 1.98 GHz; copy and bfloat16 matrix rates as measured on one.
H200_FLOPS, H200_SPECIAL, H200_BYTES, H200_MATRIX = 67e12, 132 * 16 * 1.98e9, 4.3e12, 780e12
ARITHMETIC = {"add", "sub", "mul", "neg", "max", "min", "abs", "integer_pow", "square"}
SPECIAL = {"exp", "log", "rsqrt", "sqrt", "div", "floor"}


class Count(NamedTuple):
    """Per lane.

    Attributes:
      flops: additions, multiplications and divisions.
      instructions: all instructions, if every product with one use that is added fuses with its addition.
      special: of those, exponentials, roots and reciprocals.
    """

    flops: int
    instructions: int
    special: int

    def plus(self, other: "Count", times: int = 1) -> "Count":
        return Count(*(a + times * b for a, b in zip(self, other, strict=True)))


def count(jaxpr: core.Jaxpr) -> Count:
    """Operations on lanes in a jaxpr, loops of known length included; scalars are not counted."""
    uses = Counter(v for e in jaxpr.eqns for v in e.invars if isinstance(v, core.Var))
    uses.update(v for v in jaxpr.outvars if isinstance(v, core.Var))
    products = {v for e in jaxpr.eqns if e.primitive.name == "mul" for v in e.outvars if uses[v] == 1}
    out = Count(0, 0, 0)
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("jit", "pjit", "closed_call", "custom_jvp_call"):
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            out = out.plus(count(inner.jaxpr))
        elif name == "scan":
            out = out.plus(count(equation.params["jaxpr"].jaxpr), equation.params["length"])
        elif name == "while":
            raise ValueError("a loop of unknown length has no count")
        elif not equation.outvars[0].aval.shape:
            continue
        elif name in SPECIAL:
            out = out.plus(Count(int(name == "div"), 1 + (name == "div"), 1))
        elif name in ARITHMETIC:
            fused = name in ("add", "sub") and any(
                isinstance(v, core.Var) and v in products for v in equation.invars
            )
            out = out.plus(Count(int(name not in ("max", "min", "abs", "neg")), 1 - fused, 0))
        elif name in ("select_n", "and", "or", "not", "ge", "gt", "le", "lt", "eq", "get", "clamp"):
            out = out.plus(Count(0, 1, 0))
    return out


def one_turn(model: GaussianModel, plan: body.Plan) -> Count:
    """A turn of the search loop: one evaluation of the model, the step that follows, and the next start."""
    lanes, n = jnp.zeros(1), len(model.names)
    bounds = [(-1.0, 1.0)] * n

    def turn(taps: jax.Array, seeds: jax.Array, state: body.SearchState) -> body.SearchState:
        return body.advance_lanes(lambda y, x: taps[y * plan.size + x], seeds, state, bounds, model, plan)

    state = body.initial_state(lanes, n)
    seeds = jnp.zeros((plan.seeds * (n + 1), 1))
    traced = jax.make_jaxpr(turn)(jnp.zeros((padded_taps(plan.size), 1)), seeds, state)
    live, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return count(live)


def evaluations(kernels: np.ndarray, model: GaussianModel, effort: Effort) -> np.ndarray:
    """Evaluations per kernel of the search itself."""
    box = search_box(model, (SIZE, SIZE), jnp.float32)
    search = jax.jit(
        lambda k: search_optimum(k, box, model, effort, interpret=True),
        compiler_options={"xla_disable_hlo_passes": "fusion"},
    )
    return np.asarray(search(jnp.asarray(kernels)).steps)


def real_rows(rows: int) -> tuple[str, np.ndarray]:
    """Real kernels, centred and of unit energy, `[7, 7, rows]`."""
    name, kernels = real_kernels()
    chosen = kernels[np.random.default_rng(0).permutation(len(kernels))[:rows]].astype(np.float64)
    chosen -= chosen.mean(axis=(1, 2), keepdims=True)
    chosen /= np.linalg.norm(chosen, axis=(1, 2), keepdims=True)
    return name, chosen.transpose(1, 2, 0).astype(np.float32)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kernels", type=int, default=1024, help="how many measure the evaluations")
    parser.add_argument("--clock", type=float, default=3.0, help="of a CPU core, GHz")
    parser.add_argument("--width", type=int, default=64, help="float32 operations of a CPU core per clock")
    options = parser.parse_args()
    source, kernels = real_rows(options.kernels)
    print(f"evaluations: {kernels.shape[-1]} kernels of {source}\n")

    print(
        "| family | flops | instructions | special | nodes | matrix flops | evaluations | lockstep | bytes |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    flops = issue = special = matrix = traffic = shared = 0.0
    for name in FAMILIES:
        model = BUILTIN_FAMILIES[name].model
        table = dictionary(model, SIZE)
        effort = fused_effort(model, Budget())
        plan = body.Plan(SIZE, table.slots, table.bits, effort.starts, effort.steps, effort.tolerance)
        turn = one_turn(model, plan)
        steps = evaluations(kernels, model, effort)
        together = steps[: len(steps) // LANES * LANES].reshape(-1, LANES).max(axis=1).mean()
        tiles, q, tile, depth = table.columns.shape
        nodes = tiles * tile
        products = 2 * nodes * q * depth
        rows = len(model.names) + 1
        # Taps, point and predicted_gain, two counts, and the seeds, which Triton can only keep in memory.
        moved = 4 * (depth + rows + 2 + plan.seeds * rows)
        # A square and a sum per column, and packing, comparing: per node beside the matrix unit. Then the
        # centre of each grid's best is read off its line, and the best are put in order.
        scoring = nodes * (q + 3) + 5 * table.length.sum() + plan.starts * plan.slots * (2 * rows + 3)
        flops += steps.mean() * turn.flops + nodes * 2 * q
        issue += together * turn.instructions + scoring
        special += together * turn.special
        matrix += products
        traffic += moved
        # Every warp reads the dictionary, in bfloat16, from the second-level cache.
        shared += 2 * table.columns.size / LANES
        print(
            f"| {name} | {turn.flops} | {turn.instructions} | {turn.special} | {nodes} "
            f"| {products / 1e6:.2f}M | {steps.mean():.1f} | {together:.1f} | {moved} |"
        )
    print(
        f"\nthrough {len(FAMILIES)} families: {flops / 1e3:.0f} kflop, "
        f"{matrix / 1e6:.1f} Mflop in matrix units,"
    )
    print(f"{issue / 1e3:.0f} k instructions per lane in lockstep, {traffic:.0f} bytes of memory,")
    print(f"{shared / 1e3:.0f} kB of dictionary through the second-level cache\n")
    limits = {
        "useful float32 operations": H200_FLOPS / flops,
        "instructions, warps in lockstep": H200_FLOPS / 2 / issue,
        "special functions, in lockstep": H200_SPECIAL / special,
        "matrix units (seeds)": H200_MATRIX / matrix,
        "memory": H200_BYTES / traffic,
        "matrix units, then instructions": 1 / (issue / (H200_FLOPS / 2) + matrix / H200_MATRIX),
        f"one CPU core, {options.clock} GHz x {options.width}": options.clock * 1e9 * options.width / flops,
    }
    print("| limit | kernels/s through four families |\n|---|---:|")
    for name, rate in limits.items():
        print(f"| {name} | {rate:.3g} |")


if __name__ == "__main__":
    main()
