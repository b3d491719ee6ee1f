"""Which tensors are depthwise: the loader's rule judged as a classifier over whole libraries of networks.

    python benchmarks/architectures.py SHAPES/timm.jsonl.gz --library timm
    python benchmarks/architectures.py SHAPES/transformers.jsonl.gz --library transformers
    python benchmarks/detection.py SHAPES/*.jsonl.gz [--spellings saved flat ...] [--details]

The rule sees names, shapes and types alone; the truth is what the modules say: `Conv2d` with as many groups
as input channels and square kernels of more than one tap. Other spellings of the same networks are made by
renaming and transposing, since files from other frameworks differ in just that. The table counts layers:

- found: depthwise and taken; missed: depthwise and neither taken nor listed as ambiguous;
- ambiguous: listed as such, with how many of them are depthwise;
- wrong: taken and no depthwise convolution.

Precision is found / (found + wrong), recall is found / all depthwise layers.
"""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from architectures import Architecture, Weight, read_architectures

from dogfit.checkpoints.detect import find_depthwise
from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.naming import DEPTHWISE

CONVOLUTIONS = ("conv", "depthwise", "transposed")


def saved(network: Architecture) -> Architecture:
    """The state dict as the library saves it."""
    return network


def unnamed(network: Architecture) -> Architecture:
    """Names without the words that say depthwise."""
    return _renamed(network, [DEPTHWISE.sub(".conv_op.", w.name) for w in network.weights])


def flat(network: Architecture) -> Architecture:
    """Modules numbered as they are defined, all directly below the root: `12.weight`."""
    numbers: dict[str, int] = {}
    names = []
    for weight in network.weights:
        module, _, part = weight.name.rpartition(".")
        names.append(f"{numbers.setdefault(module, len(numbers))}.{part}")
    return _renamed(network, names)


def paddle(network: Architecture) -> Architecture:
    """Modules numbered by type, as Paddle names them: `conv2d_7.w_0`, `linear_2.b_0`."""
    of_module = {w.name.rpartition(".")[0]: w.kind for w in network.weights if w.kind}
    types = {"conv": "conv2d", "depthwise": "conv2d", "transposed": "conv2d_transpose", "linear": "linear"}
    numbers: Counter[str] = Counter()
    modules: dict[str, str] = {}
    names = []
    for weight in network.weights:
        module, _, part = weight.name.rpartition(".")
        if module not in modules:
            kind = types.get(of_module.get(module, ""), "layer")
            modules[module] = f"{kind}_{numbers[kind]}"
            numbers[kind] += 1
        letter = {"weight": "w_0", "bias": "b_0"}.get(part, part)
        names.append(f"{modules[module]}.{letter}")
    return _renamed(network, names)


def keras(network: Architecture) -> Architecture:
    """Channels last as Keras and TensorFlow store them, depthwise (k, k, C, m)."""

    def transpose(weight: Weight) -> tuple[int, ...]:
        out, taken, *kernel = weight.shape
        if weight.kind == "depthwise":
            return (*kernel, out // weight.multiplier, weight.multiplier)
        return (*kernel, taken, out)

    return _slashes(_transposed(network, transpose, linear=True))


def flax(network: Architecture) -> Architecture:
    """Channels last as Flax stores them, depthwise (k, k, 1, C m)."""

    def transpose(weight: Weight) -> tuple[int, ...]:
        out, taken, *kernel = weight.shape
        return (*kernel, taken, out)

    return _slashes(_transposed(network, transpose, linear=True))


def mlx(network: Architecture) -> Architecture:
    """Output channels first and input channels last, depthwise (C, k, k, 1)."""

    def transpose(weight: Weight) -> tuple[int, ...]:
        out, taken, *kernel = weight.shape
        return (taken, *kernel, out) if weight.kind == "transposed" else (out, *kernel, taken)

    return _transposed(network, transpose, linear=False)


SPELLINGS: dict[str, Callable[[Architecture], Architecture]] = {
    "saved": saved,
    "without words": unnamed,
    "flat": flat,
    "Paddle": paddle,
    "Keras": keras,
    "flat Keras": lambda network: keras(flat(network)),
    "Flax": flax,
    "flat Flax": lambda network: flax(flat(network)),
    "MLX": mlx,
    "flat MLX": lambda network: mlx(flat(network)),
}


def _renamed(network: Architecture, names: Iterable[str]) -> Architecture:
    unique: dict[str, Weight] = {}
    for weight, name in zip(network.weights, names, strict=True):
        while name in unique:
            name += "_"
        unique[name] = replace(weight, name=name)
    return replace(network, weights=tuple(unique.values()))


def _transposed(
    network: Architecture, transpose: Callable[[Weight], tuple[int, ...]], *, linear: bool
) -> Architecture:
    def change(weight: Weight) -> Weight:
        if weight.kind in CONVOLUTIONS:
            return replace(weight, shape=transpose(weight))
        if weight.kind == "linear" and linear:
            return replace(weight, shape=weight.shape[::-1])
        return weight

    return replace(network, weights=tuple(map(change, network.weights)))


def _slashes(network: Architecture) -> Architecture:
    """Names with slashes, weights of convolutions and linear layers called kernel."""

    def rename(weight: Weight) -> str:
        name = re.sub(r"weight$", "kernel", weight.name) if weight.kind else weight.name
        return name.replace(".", "/")

    return _renamed(network, map(rename, network.weights))


@dataclass
class Counts:
    """Layers of several networks, by verdict."""

    networks: int = 0
    depthwise: int = 0
    found: int = 0
    wrong: int = 0
    ambiguous: int = 0
    ambiguous_depthwise: int = 0
    missed: int = 0
    details: list[str] = field(default_factory=list)

    def add(self, network: Architecture) -> None:
        """Judge one network."""
        tensors = {w.name: Tensor(w.name, w.dtype, w.shape, 0, 0) for w in network.weights}
        truth = {w.name for w in network.weights if w.is_layer}
        findings = find_depthwise(tensors)
        found = {layer.tensor.name for layer in findings.layers}
        ambiguous = {item.tensor.name for item in findings.left_out if item.is_ambiguous}
        self.networks += 1
        self.depthwise += len(truth)
        self.found += len(truth & found)
        self.wrong += len(found - truth)
        self.ambiguous += len(ambiguous)
        self.ambiguous_depthwise += len(ambiguous & truth)
        self.missed += len(truth - found - ambiguous)
        for verdict, names in (
            ("wrong", found - truth),
            ("missed", truth - found - ambiguous),
            ("ambiguous depthwise", truth & ambiguous),
            ("ambiguous other", ambiguous - truth),
        ):
            for name in sorted(names):
                shape = list(tensors[name].shape)
                self.details.append(f"{verdict}: {network.library} {network.name} {name} {shape}")

    def row(self) -> str:
        precision = self.found / max(self.found + self.wrong, 1)
        recall = self.found / max(self.depthwise, 1)
        return (
            f"{self.networks:,} | {self.depthwise:,} | {self.found:,} | {self.missed:,} "
            f"| {self.ambiguous:,} ({self.ambiguous_depthwise:,}) | {self.wrong:,} "
            f"| {100 * precision:.2f} % | {100 * recall:.2f} %"
        )


def distinct(paths: Iterable[Path]) -> Iterator[Architecture]:
    """Networks whose names and shapes differ; variants of the same network count once."""
    seen = set()
    for path in paths:
        for network in read_architectures(path):
            if (key := hash(network.weights)) not in seen:
                seen.add(key)
                yield network


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shapes", type=Path, nargs="+", help="what architectures.py wrote")
    parser.add_argument("--spellings", nargs="+", choices=SPELLINGS, default=list(SPELLINGS))
    parser.add_argument("--every", type=int, default=1, help="judge each nth network only")
    parser.add_argument("--details", action="store_true", help="list every layer that is not found")
    arguments = parser.parse_args()
    counts = {
        (path.name.split(".")[0], spelling): Counts()
        for spelling in arguments.spellings
        for path in arguments.shapes
    }
    for path in arguments.shapes:
        for number, network in enumerate(distinct([path])):
            if number % arguments.every == 0:
                for spelling in arguments.spellings:
                    counts[path.name.split(".")[0], spelling].add(SPELLINGS[spelling](network))
    print("| networks of | spelling | networks | depthwise | found | missed | ambiguous (depthwise) | wrong "
          "| precision | recall |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for (library, spelling), count in counts.items():
        print(f"| {library} | {spelling} | {count.row()} |")
    if arguments.details:
        for (library, spelling), count in counts.items():
            print(f"\n{library}, {spelling}:")
            print("\n".join(count.details))


if __name__ == "__main__":
    main()
