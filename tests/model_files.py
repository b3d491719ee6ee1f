"""Models of PyTorch libraries as checkpoint files, without their memory or their initialisation."""

import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "bool": "BOOL",
}


class _Anything(type):
    """A class whose every attribute is its own name, for enumerations that are only compared."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StubFinder:
    """Imports an empty `torchvision`: timm needs it to be there, not to do anything."""

    def find_spec(self, name, path=None, target=None):
        del path, target
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def anything(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Anything(name, (), {})

        module.__getattr__ = anything
        return module

    def exec_module(self, module):
        pass


@contextmanager
def stub_torchvision() -> Iterator[None]:
    """Let `import torchvision` succeed where it is not installed."""
    finder = _StubFinder()
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


@contextmanager
def no_initialization() -> Iterator[None]:
    """Models on the meta device have no values: skip the functions that would set them."""
    import torch

    skipped = [
        (torch.nn.init, name)
        for name in dir(torch.nn.init)
        if name.endswith("_") and not name.startswith("_")
    ]
    if "timm.layers.weight_init" in sys.modules:
        skipped.append((sys.modules["timm.layers.weight_init"], "_trunc_normal_"))
    kept = [(module, name, getattr(module, name)) for module, name in skipped]
    try:
        for module, name in skipped:
            setattr(module, name, lambda tensor, *_, **__: tensor)
        with torch.device("meta"):
            yield
    finally:
        for module, name, function in kept:
            setattr(module, name, function)


def depthwise_modules(model) -> dict[str, object]:
    """Module name -> the model's depthwise convolutions with square kernels, k > 1, by their own account."""
    import torch

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
        and module.groups == module.in_channels > 1
        and module.kernel_size[0] == module.kernel_size[1] > 1
    }


def write_checkpoint(path: Path, state: dict[str, object], values: dict[str, np.ndarray]) -> None:
    """Write a state dict as safetensors; only `values` take room, the rest of the file is a hole.

    Tensors lie in the order in which safetensors itself writes them: by name.
    """
    header, end = {}, 0
    for name in sorted(state):
        tensor = state[name]
        size = tensor.numel() * tensor.element_size()
        dtype = NAMES[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, array in values.items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(array).tobytes())
