"""Builds the compiled search of dogfit.kernels.native where there is a C++ compiler; what else there is to
say about the package is in pyproject.toml. Without a compiler dogfit installs all the same.
"""

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = Path("kernels", "native", "csrc")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-Wall",
    "-Wextra",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# One source, compiled per instruction set and chosen when it runs: a wheel must run on any processor.
INSTRUCTIONS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTIONS["avx2"] = ["-mavx2", "-mfma"]
    INSTRUCTIONS["avx512"] = ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"]


class BuildNative(build_ext):
    """Compiles the instruction sets side by side, each with its own flags."""

    def build_extension(self, ext: Extension) -> None:
        def compile_one(name: str) -> list[str]:
            source = (FOLDER / f"build_{name}.cc").as_posix()
            flags = [*FLAGS, *INSTRUCTIONS[name]]
            return self.compiler.compile(
                [source], output_dir=self.build_temp, extra_postargs=flags, depends=ext.depends
            )

        with ThreadPoolExecutor() as pool:
            ext.extra_objects = [path for paths in pool.map(compile_one, INSTRUCTIONS) for path in paths]
        super().build_extension(ext)


def extensions() -> list[Extension]:
    try:
        # XLA's headers, which a handler is compiled against, come with jaxlib.
        import jax.ffi
    except ImportError:
        return []
    return [
        Extension(
            # No Python module: a library that dogfit.kernels.native loads.
            "dogfit.kernels.native._native",
            [(FOLDER / "ffi.cc").as_posix()],
            depends=[path.as_posix() for path in sorted(FOLDER.iterdir())],
            # A system's headers: their warnings are not ours.
            extra_compile_args=[*FLAGS, "-isystem", jax.ffi.include_dir()],
            language="c++",
            optional=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
