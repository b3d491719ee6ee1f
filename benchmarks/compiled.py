"""Fused search as Triton compiles it: registers, spills and machine instructions, without a GPU.

    pip install triton==3.9.0
    python benchmarks/compiled.py

The module that JAX lowers for CUDA is compiled to sm_90a by the stand-alone Triton; its own tools count.
"""

import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.extend.mlir import ir
from jaxlib.triton import dialect

from dogfit.fitting.families import BUILTIN_FAMILIES
from dogfit.kernels.model.bounds import search_box
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.pallas.search import search_optimum
from dogfit.kernels.pallas.triton import LANES
from dogfit.kernels.tuning import fused_effort
from dogfit.kernels.types import Budget

FAMILIES, SIZE = ("gaussian", "d1", "d2", "dog"), 7
# Registers of a multiprocessor, and what they are given out in, per thread.
REGISTERS, GRAIN = 65536, 8


def triton_module(model: GaussianModel) -> str:
    """The search as a Triton module in text."""
    effort, box = fused_effort(model, Budget()), search_box(model, (SIZE, SIZE), jnp.float32)

    def search(kernels: jax.Array) -> tuple:
        return search_optimum(kernels, box, model, effort)

    shape = jax.ShapeDtypeStruct((SIZE, SIZE, 2 * LANES), jnp.float32)
    lowered = jax.jit(search).trace(shape).lower(lowering_platforms=("cuda",)).compiler_ir()
    found: list[bytes] = []

    def visit(operation: ir.Operation) -> ir.WalkResult:
        if operation.name == "stablehlo.custom_call" and "triton" in str(
            operation.attributes["call_target_name"]
        ):
            found.append(operation.attributes["mhlo.backend_config"]["ir"].value_bytes)
        return ir.WalkResult.ADVANCE

    lowered.operation.walk(visit)
    with ir.Context() as context:
        dialect.register_dialect(context)
        return ir.Module.parse(found[0]).operation.get_asm()


def compiled(module: str) -> tuple[int, int, int, float]:
    """Registers, bytes of stack, machine instructions and CPU seconds of a module."""
    import triton
    from triton.backends.compiler import GPUTarget

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "search.ttir", Path(folder) / "search.cubin"
        source.write_text(module)
        start = time.process_time()
        made = triton.compile(
            str(source), target=GPUTarget("cuda", 90, 32), options={"num_warps": 1, "num_stages": 1}
        )
        seconds = time.process_time() - start
        program.write_bytes(made.asm["cubin"])
        usage, code = (
            subprocess.run(
                [tools / "cuobjdump", option, program], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    return registers, stack, len(re.findall(r"/\*[0-9a-f]{4,5}\*/\s+\S", code)), seconds


def main() -> None:
    """Print the table."""
    # What was compiled before costs nothing.
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"
    print("| family | registers | bytes of stack | warps that fit | machine instructions | CPU seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in FAMILIES:
        registers, stack, instructions, seconds = compiled(triton_module(BUILTIN_FAMILIES[name].model))
        warps = REGISTERS // (32 * -(-registers // GRAIN) * GRAIN)
        print(f"| {name} | {registers} | {stack} | {warps} | {instructions} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
