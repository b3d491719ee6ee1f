"""The command line: `python -m dogfit.convert FILE [OUT]`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dogfit.closed_pipe import tolerate_closed_pipe
from dogfit.errors import DogfitError

# Of more, the first ones are printed.
MAX_SHOWN = 20


@dataclass(frozen=True)
class ConvertConfig:
    """Convert the weights in a file to safetensors, which dogfit reads."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """A PyTorch file (.pth, .pt, .bin, .ckpt), or .onnx, .tflite, .h5, .keras, .npz or .msgpack."""

    out: tyro.conf.Positional[
        Annotated[Path | None, tyro.conf.arg(metavar="[OUT]", help_behavior_hint="(default: beside FILE)")]
    ] = None
    """File to write, which must not exist."""

    average: bool = False
    """Take a moving average of the weights where the file has one besides the plain weights."""

    python: Annotated[
        Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: this one)")
    ] = None
    """Python that has PyTorch and safetensors, to load PyTorch files with."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
      argv: its words, those of the process when None.

    Returns:
      The exit code: 0 done, 1 the file could not be written, 2 wrong usage or OUT exists, 3 FILE unusable.
    """
    with tolerate_closed_pipe():
        config = tyro.cli(
            ConvertConfig, prog="dogfit.convert", args=argv, config=(tyro.conf.FlagCreatePairsOff,)
        )
        return _convert(config)


def _convert(config: ConvertConfig) -> int:
    from dogfit.convert.api import convert

    try:
        done = convert(config.file, config.out, average=config.average, python=config.python)
    except DogfitError as error:
        print(f"dogfit: {error}", file=sys.stderr)
        return error.exit_code
    print(f"took {done.taken or 'all'!r}: {done.n_tensors} tensors")
    for name, reason in list(done.left.items())[:MAX_SHOWN]:
        print(f"left {name!r}: {reason}")
    if len(done.left) > MAX_SHOWN:
        print(f"left {len(done.left) - MAX_SHOWN} more")
    print(f"wrote {done.path}; now: python -m dogfit.run {done.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
