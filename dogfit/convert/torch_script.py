"""Script that turns a PyTorch checkpoint into safetensors. It needs these two, and nothing of dogfit.

`dogfit.convert` runs it in a process of its own. It prints one line of JSON: what it took and what it left,
or an error.
"""

import argparse
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# Keys of what a training run keeps beside the weights.
TRAINING_STATE = re.compile(
    r"optim|sched|scaler|rng|callback|loops|loss|criterion|metric|history|grad|momentum_buffer", re.IGNORECASE
)
# Words of the keys under which plain weights and their averages lie; others are modules of the network.
PLAIN = frozenset(
    "state dict model module params param parameters net network student online weights weight checkpoint "
    "best raw variables".split()
)
AVERAGE = frozenset("ema teacher shadow swa average averaged avg polyak target momentum".split())
# Less than this share of the largest part is not the network.
MIN_SHARE = 0.1


class UnusableError(Exception):
    """The file cannot be converted; the message says why."""


class Choice(NamedTuple):
    """Part of a checkpoint that holds the weights."""

    path: tuple[str, ...]
    """Keys that lead to it."""
    value: Any
    left: dict[str, str]
    """Other parts with tensors -> why they were left out."""


def choose(value: Any, average: bool, path: tuple[str, ...] = ()) -> Choice:
    """Find the weights in nested dictionaries.

    Args:
      value: content of the file.
      average: whether averages are preferred to plain weights.
      path: keys that lead to `value`.
    """
    left: dict[str, str] = {}
    children: dict[str, Any] = {}
    for key, child in items(value):
        if not is_tensor(child) and count(child):
            if TRAINING_STATE.search(key):
                left[".".join((*path, key))] = "state of the training"
            else:
                children[key] = child
    direct = sum(child.numel() for _, child in items(value) if is_tensor(child))
    sizes = {key: count(child) for key, child in children.items()}
    if not children or direct >= sum(sizes.values()):
        return Choice(path, value, left)
    averages = [key for key in children if words(key) & AVERAGE]
    plain = [key for key in children if words(key) <= PLAIN]
    preferred = (averages or plain) if average else (plain or averages)
    if len(children) == 1:
        preferred = list(children)
    taken = max(preferred, key=lambda key: sizes[key], default=None)
    if taken is None or sizes[taken] < MIN_SHARE * max(sizes.values()):
        return Choice(path, value, left)
    for key in children:
        if key != taken:
            reason = "an average of the weights; --average takes it" if key in averages else "another part"
            left[".".join((*path, key))] = "plain weights" if key in plain else reason
    chosen = choose(children[taken], average, (*path, taken))
    return Choice(chosen.path, chosen.value, left | chosen.left)


def words(key: str) -> set[str]:
    """Words of a key, in lower case."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)}


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """Members of a dictionary or list, with their keys as text."""
    if isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(index), child) for index, child in enumerate(value))


def is_tensor(value: Any) -> bool:
    """True for a tensor that has values."""
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.device.type != "meta"


def count(value: Any) -> int:
    """Number of elements of all tensors in a part of a checkpoint."""
    if is_tensor(value):
        return value.numel()
    return sum(count(child) for key, child in items(value) if not TRAINING_STATE.search(key))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of every tensor in a part of a checkpoint."""
    for key, child in items(value):
        name = f"{prefix}.{key}" if prefix else key
        if is_tensor(child):
            yield name, child
        elif not TRAINING_STATE.search(key):
            yield from flatten(child, name)


def load(path: str) -> Any:
    """Read a checkpoint; what is more than tensors and plain containers is refused.

    Raises:
      UnusableError: if PyTorch cannot read it so.
    """
    try:
        import torch
    except ImportError as error:
        raise UnusableError(
            "needs PyTorch (torch), which this Python lacks; --python names another one"
        ) from error
    try:
        # The options of a command are often kept beside the weights, in this plain container.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
            )
    except Exception as error:
        raise UnusableError(explain(path, str(error))) from error


def explain(path: str, message: str) -> str:
    """Say in one sentence why PyTorch refuses a file."""
    if zipfile.is_zipfile(path):
        names = zipfile.ZipFile(path).namelist()
        if any("/code/" in name for name in names):
            return "a TorchScript archive: load it with torch.jit.load and torch.save its state_dict()"
    if (
        (match := re.search(r"GLOBAL (\S+)", message))
        or "weights_only" in message
        or "Unsupported" in message
    ):
        named = f" ({match[1]})" if match else ""
        return (
            f"holds Python objects{named} beside tensors; they could run any code and are not loaded. Where "
            "you trust it, torch.save the model's state_dict() alone"
        )
    return f"PyTorch cannot read it: {message.splitlines()[0] if message else 'no reason given'}"


def convert(source: str, target: str, average: bool) -> dict[str, Any]:
    """Write the weights of a PyTorch checkpoint as safetensors.

    Args:
      source: the checkpoint.
      target: file to write.
      average: whether averages are preferred to plain weights.

    Returns:
      What was taken and what was left.

    Raises:
      UnusableError: if there are no weights, or PyTorch refuses the file.
    """
    content = load(source)
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise UnusableError(
            "needs safetensors, which this Python lacks; --python names another one"
        ) from error
    if is_tensor(content):
        raise UnusableError("holds a single tensor without a name")
    choice = choose(content, average)
    tensors: dict[str, Any] = {}
    for name, tensor in flatten(choice.value):
        if name in tensors:
            raise UnusableError(f"holds two tensors named {name!r}")
        tensors[name] = tensor.detach().clone().contiguous()
    if not tensors:
        raise UnusableError(
            "holds no tensors but those of the training" if choice.left else "holds no tensors"
        )
    save_file(tensors, target)
    return {"taken": ".".join(choice.path), "left": choice.left, "count": len(tensors)}


def main() -> int:
    """Convert one file; print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--average", action="store_true")
    options = parser.parse_args()
    try:
        print(json.dumps(convert(options.source, options.target, options.average)))
    except UnusableError as error:
        print(json.dumps({"error": str(error)}))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
