"""Names, shapes and kinds of the tensors of timm's, transformers' and Keras' architectures.

    python benchmarks/architectures.py SHAPES/timm.jsonl.gz --library timm
    python benchmarks/architectures.py SHAPES/transformers.jsonl.gz --library transformers --limit 20
    python benchmarks/architectures.py SHAPES/keras.jsonl.gz --library keras

Each architecture is one line of JSON. Those of PyTorch are built on the `meta` device, without weights; those
of Keras with random ones, and saved to learn their names. A later call adds those that are not in the file
yet, so the work can be done in pieces. `detection.py` judges what is written.
"""

import argparse
import gzip
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from model_files import NAMES, no_initialization, stub_torchvision

# Models of transformers, the first that exists: some have nothing but a head of their own.
AUTO_CLASSES = (
    "AutoModelForSemanticSegmentation",
    "AutoModelForDepthEstimation",
    "AutoModelForObjectDetection",
    "AutoModelForUniversalSegmentation",
    "AutoModelForKeypointDetection",
    "AutoModelForImageToImage",
    "AutoModelForImageClassification",
    "AutoModel",
)
# An architecture that takes longer to build is left out.
BUILD_SECONDS = 60


@dataclass(frozen=True)
class Weight:
    """One tensor of an architecture."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    """Kind of the module: depthwise, conv, transposed, linear; empty for all else."""
    multiplier: int = 1
    """Output channels per input channel of a depthwise convolution."""
    is_layer: bool = False
    """True for a depthwise convolution with square kernels of more than one tap."""


@dataclass(frozen=True)
class Architecture:
    """One architecture, as its state dict lists it."""

    library: str
    name: str
    weights: tuple[Weight, ...]


def read_architectures(path: Path) -> Iterator[Architecture]:
    """Read what `main` wrote."""
    with gzip.open(path, "rt") as file:
        for line in file:
            entry = json.loads(line)
            weights = tuple(Weight(n, tuple(shape), *rest) for n, shape, *rest in entry["weights"])
            if weights:
                yield Architecture(entry["library"], entry["name"], weights)


def weights_of_keras(model: Any) -> tuple[Weight, ...]:
    """Every dataset of the model's weights file, with what the model's layers say it is."""
    import keras

    from dogfit.convert.hdf5 import read_hdf5

    random, multipliers = np.random.default_rng(0), {}
    for layer in model._flatten_layers():
        is_grouped = isinstance(layer, keras.layers.Conv2D) and layer.groups == layer.input.shape[-1] > 1
        if isinstance(layer, keras.layers.SeparableConv2D):
            kernel = layer.depthwise_kernel
        elif is_grouped or isinstance(layer, keras.layers.DepthwiseConv2D):
            kernel = layer.kernel
        else:
            continue
        # The file names layers anew: their values tell which is which.
        values = random.standard_normal(kernel.shape).astype(np.float32)
        kernel.assign(values)
        multipliers[values.tobytes()] = values.shape[-1] if values.shape[2] > 1 else 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.weights.h5"
        model.save_weights(path)
        saved = read_hdf5(path).tensors
    weights, found = [], 0
    for name, values in saved.items():
        kind = "depthwise" if (multiplier := multipliers.get(values.tobytes())) else ""
        is_layer = bool(kind) and values.shape[0] == values.shape[1] > 1
        weights.append(Weight(name, values.shape, "F32", kind, multiplier or 1, is_layer))
        found += bool(kind)
    if found != len(multipliers):
        raise ValueError(f"{found} of {len(multipliers)} depthwise kernels are in the weights file")
    return tuple(weights)


def weights_of(model: Any) -> tuple[Weight, ...]:
    """Every tensor of the state dict, with what the model's modules say it is."""
    import torch

    kinds: dict[str, tuple[str, int, bool]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Conv2d):
            if module.groups == module.in_channels > 1:
                height, width = module.kernel_size
                multiplier = module.out_channels // module.in_channels
                kinds[f"{name}.weight"] = ("depthwise", multiplier, height == width > 1)
            else:
                kinds[f"{name}.weight"] = ("conv", 1, False)
        elif isinstance(module, torch.nn.ConvTranspose2d):
            kinds[f"{name}.weight"] = ("transposed", 1, False)
        elif isinstance(module, torch.nn.Linear):
            kinds[f"{name}.weight"] = ("linear", 1, False)
    return tuple(
        Weight(
            name,
            tuple(tensor.shape),
            NAMES.get(str(tensor.dtype).removeprefix("torch."), "F32"),
            *kinds.get(name, ("", 1, False)),
        )
        for name, tensor in model.state_dict().items()
    )


def names_of(library: str) -> list[str]:
    """Architectures that the library lists."""
    if library == "timm":
        import timm

        return timm.list_models()
    if library == "keras":
        from keras import applications

        return [name for name in dir(applications) if name[0].isupper()]
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def build(library: str, name: str) -> Any:
    """Build an architecture without weights."""
    if library == "timm":
        import timm

        return timm.create_model(name)
    if library == "keras":
        from keras import applications

        return getattr(applications, name)(weights=None)
    import transformers

    config = transformers.AutoConfig.for_model(name)
    for kind in AUTO_CLASSES:
        auto = getattr(transformers, kind)
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise ValueError("no model for this configuration")


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not built in {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--library", choices=("timm", "transformers", "keras"), required=True)
    parser.add_argument("--limit", type=int, default=1_000_000, help="build at most so many")
    parser.add_argument("--every", type=int, default=1, help="build each nth of the list only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    read = weights_of_keras if arguments.library == "keras" else weights_of
    done = set()
    if arguments.out.exists():
        with gzip.open(arguments.out, "rt") as file:
            done = {json.loads(line)["name"] for line in file}
    # transformers looks at the version of torchvision
    with stub_torchvision() if arguments.library == "timm" else nullcontext():
        wanted = [n for n in names_of(arguments.library)[:: arguments.every] if n not in done]
        for name in wanted[: arguments.limit]:
            start, problem, weights = time.perf_counter(), "", ()
            try:
                with time_limit(BUILD_SECONDS), no_initialization():
                    weights = read(build(arguments.library, name))
            except Exception as error:  # whatever a library raises for a configuration without its defaults
                problem = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            entry = asdict(Architecture(arguments.library, name, weights))
            entry["weights"] = [list(weight.values()) for weight in entry["weights"]]
            with gzip.open(arguments.out, "at") as file:
                file.write(json.dumps(entry) + "\n")
            print(f"{name} {len(weights)} tensors {time.perf_counter() - start:.1f} s {problem}", flush=True)


if __name__ == "__main__":
    main()
