"""Evidence that tensors hold depthwise kernels: their names, and the channels of the layers around them.

A tensor of the right shape may also be an ordinary convolution that reads one channel, such as the first of
a network or of a branch for grey images, or one that puts out a single channel. Depthwise convolutions lie
between a layer that puts out their channels and one that takes them, nearly always a pointwise one.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from dogfit.checkpoints.naming import DEPTHWISE

# Output channels per input channel that are believed without a name that says depthwise.
MULTIPLIERS = (1, 2)
# Weights of a block that is small enough to be judged whatever the order of its layers.
MAX_BLOCK = 12
# Numbers at the end of a name that may tell the layer of a block.
MAX_KEPT = 3
# Candidates with the same name but for its numbers that make up for weaker evidence of each.
MANY = 5
# As many, none of them where a branch begins or ends, need no other evidence: some take part of the channels.
VERY_MANY = 10


class Fit(IntEnum):
    """Evidence that a candidate lies between layers of its channels, from none to the strongest."""

    NONE = 0
    LOOSE = 1
    """Some layer before puts out its channels, and some ordinary one after takes or puts out as many."""
    NEIGHBORS = 2
    """The layer right before puts out its channels; the next ordinary one, pointwise, puts out as many."""
    POINTWISE = 3
    """The same, and it takes as many."""
    BLOCK = 4
    """Two pointwise layers of the same small block put out and take its channels."""


class Weight(NamedTuple):
    """Weight of a convolution or of a linear layer."""

    name: str
    """Name in the file."""
    parts: tuple[str, ...]
    """Parts of the bare name."""
    taken: int | None
    """Input channels; None for a candidate whose shape leaves them open."""
    out: int
    """Output channels; of a candidate those that it has as a depthwise convolution."""
    is_convolution: bool
    """False for a linear layer."""
    is_pointwise: bool
    """True for a linear layer or a 1x1 convolution."""
    is_candidate: bool = False
    """True for what has the shape of depthwise kernels."""
    bias: int | None = None
    """Entries of a candidate's bias; None where the file has none."""

    @property
    def is_ordinary(self) -> bool:
        """True for layers that take several channels together."""
        return not self.is_candidate and self.taken != 1


@dataclass
class _Subtree:
    """Weights whose names begin with the same parts."""

    first: int
    last: int
    candidates: int = 0
    ordinary: int = 0
    """Number of layers that take several channels together."""
    spatial: int = 0
    """Number of those with kernels of more than one tap."""


_Subtrees = dict[tuple[str, ...], _Subtree]


def depthwise_by_name(
    candidates: Mapping[str, tuple[str, ...]], spatial: Iterable[tuple[str, ...]]
) -> set[str]:
    """Find the candidates whose names say depthwise.

    Args:
      candidates: name of each candidate -> the parts of its bare name.
      spatial: parts of the names of ordinary convolutions of more than one tap. A word does not count that is
        said of a part of the network where one of these is too.

    Returns:
      Names of the candidates that are depthwise.
    """
    mixed = {parts[:depth] for parts in spatial for depth in range(1, len(parts))}
    return {
        name
        for name, parts in candidates.items()
        if any(_is_depthwise_word(word) and parts[:end] not in mixed for end, word in enumerate(parts, 1))
    }


def depthwise_among(weights: Sequence[Weight], named: Collection[str]) -> set[str]:
    """Find the candidates that are depthwise by their neighbors, or as others of the same name are.

    Args:
      weights: all weights, in network order.
      named: names of the candidates that are depthwise for other reasons.

    Returns:
      Names of the candidates that are depthwise, `named` among them.
    """
    candidates = [index for index, weight in enumerate(weights) if weight.is_candidate]
    subtrees = _subtrees(weights, candidates)
    accepted = {i for i in candidates if weights[i].name in named}
    stem = _stem(weights, candidates, accepted, subtrees)
    judged = [i for i in candidates if i not in accepted and i != stem and _bias_fits(weights[i])]
    fits = _fits(weights, judged, subtrees)
    edges, exposed = _exposed(weights, judged, stem, subtrees)
    single = []
    for members, is_pure in _parts(weights, candidates):
        by_name = not accepted.isdisjoint(members)
        members, has_stem = [index for index in members if index in fits], stem in members
        if is_pure and len(members) > 1 and not has_stem:
            if by_name or _part_is_depthwise(members, fits, exposed):
                accepted.update(members)
        elif is_pure and by_name:
            accepted.update(members)
        elif sum(fits[index] >= Fit.POINTWISE for index in members) >= 2:
            accepted.update(index for index in members if fits[index] >= Fit.NEIGHBORS)
        # Where depthwise layers are usual, little is needed of a name that no ordinary layer has.
        enough = Fit.NEIGHBORS if not is_pure or has_stem else Fit.NONE if len(members) >= MANY else Fit.LOOSE
        single += [(index, enough) for index in members if index not in accepted]
    are_usual = len(accepted) >= MANY
    for index, enough in single:
        fit, before = fits[index], weights[index - 1]
        is_inside = fit is Fit.BLOCK or (fit is Fit.POINTWISE and before.is_pointwise)
        if index not in exposed and ((is_inside and index not in edges) or (are_usual and fit >= enough)):
            accepted.add(index)
    return {weights[index].name for index in accepted}


def _stem(
    weights: Sequence[Weight], candidates: Sequence[int], accepted: Collection[int], subtrees: _Subtrees
) -> int | None:
    """Find the first convolution; None if that is depthwise, because the names do not sort as layers run."""
    first = next((i for i, weight in enumerate(weights) if weight.is_convolution), None)
    if first is None or first in accepted:
        return None
    if not weights[first].is_candidate:
        return first
    part = _part(weights[first].parts, 0)
    same = sum(_part(weights[index].parts, 0) == part for index in candidates)
    return None if same >= MANY and _is_in_block(weights, weights[first], subtrees) else first


def _parts(weights: Sequence[Weight], candidates: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
    """Group candidates whose names differ in numbers only: the same part of several blocks.

    Where an ordinary layer has such a name too, the last one or two numbers may tell the layer of a block.

    Returns:
      The groups, and of each whether no ordinary layer has such a name.
    """
    left, rivals = list(candidates), [weight for weight in weights if not weight.is_candidate]
    for kept in range(MAX_KEPT):
        groups: dict[str, list[int]] = {}
        for index in left:
            groups.setdefault(_part(weights[index].parts, kept), []).append(index)
        if kept and len(groups) == len(left):
            break
        # Of the ordinary layers only those stay rivals that cannot be told apart so far.
        parts = [(_part(weight.parts, kept), weight) for weight in rivals]
        ordinary = {part for part, _ in parts} & groups.keys()
        rivals = [weight for part, weight in parts if part in ordinary]
        left = []
        for part, members in groups.items():
            if part not in ordinary and (len(members) > 1 or kept == 0):
                yield members, True
            else:
                left += members
    groups = {}
    for index in left:
        groups.setdefault(_part(weights[index].parts, 0), []).append(index)
    for members in groups.values():
        yield members, False


def _part_is_depthwise(members: Sequence[int], fits: Mapping[int, Fit], exposed: Collection[int]) -> bool:
    """Judge candidates that are the same part of several blocks, which no ordinary layer is."""
    inside = [index for index in members if index not in exposed]
    loose = sum(fits[index] >= Fit.LOOSE for index in members)
    return any(fits[index] >= Fit.LOOSE for index in inside) or loose >= MANY or len(inside) >= VERY_MANY


def _fits(weights: Sequence[Weight], judged: Sequence[int], subtrees: _Subtrees) -> dict[int, Fit]:
    """Fit of each candidate that is to be judged."""
    if not judged:
        return {}
    first_out: dict[int, int] = {}
    last_use: dict[int, int] = {}
    for index, weight in enumerate(weights):
        first_out.setdefault(weight.out, index)
        if not weight.is_candidate and weight.taken is not None:
            last_use[weight.taken] = last_use[weight.out] = index
    following = _next_ordinary(weights)
    fits = {}
    for index in judged:
        weight, after = weights[index], following[index]
        inputs = _inputs(weight)
        fit = Fit.NONE
        if last_use.get(weight.out, 0) > index and any(
            first_out.get(width, index) < index for width in inputs
        ):
            fit = Fit.LOOSE
        if index and after and weights[index - 1].out in inputs and after.is_pointwise:
            if after.taken == weight.out:
                fit = Fit.POINTWISE
            elif after.out == weight.out:
                fit = Fit.NEIGHBORS
        if _is_in_block(weights, weight, subtrees):
            fit = Fit.BLOCK
        fits[index] = fit
    return fits


def _is_in_block(weights: Sequence[Weight], weight: Weight, subtrees: _Subtrees) -> bool:
    """True in a small block whose pointwise layers put out and take the channels, whatever their order."""
    for depth in range(len(weight.parts) - 1, 0, -1):
        subtree = subtrees[weight.parts[:depth]]
        if subtree.ordinary:
            if subtree.spatial or subtree.last - subtree.first >= MAX_BLOCK:
                return False
            block = [w for w in weights[subtree.first : subtree.last + 1] if w.is_ordinary]
            feeding = [w for w in block if w.out in _inputs(weight)]
            taking = [w for w in block if w.taken == weight.out]
            return any(feeder is not taker for feeder in feeding for taker in taking)
    return False


def _inputs(weight: Weight) -> list[int]:
    """Input channels with which a candidate may be depthwise."""
    if weight.taken is not None:
        return [weight.taken]
    return [weight.out // m for m in MULTIPLIERS if weight.out % m == 0 and weight.out > m]


def _exposed(
    weights: Sequence[Weight], judged: Sequence[int], stem: int | None, subtrees: _Subtrees
) -> tuple[set[int], set[int]]:
    """Find the candidates where a branch of the network may begin or end, so that channels agree by accident.

    A branch for grey images begins with a candidate, beside a branch that begins with another convolution of
    an image, or before ordinary spatial convolutions. A branch that puts out one channel ends with one.

    Returns:
      Those where any part of the network begins or ends that may be a branch, and those where one does that
      probably is a branch.
    """
    parents: set[tuple[str, ...]] = set()
    for index, weight in enumerate(weights):
        if index == stem or (weight.is_convolution and not weight.is_pointwise and (weight.taken or 9) <= 4):
            for depth in range(1, len(weight.parts)):
                if index == 0 or weights[index - 1].parts[:depth] != weight.parts[:depth]:
                    parents.add(weight.parts[: depth - 1])
    following = _next_ordinary(weights)
    edges, exposed = set(), set()
    for index in judged:
        weight, after = weights[index], following[index]
        is_taken = after is not None and after.taken == weight.out
        if after is not None and is_taken and not after.is_pointwise:
            exposed.add(index)
        for depth in range(1, len(weight.parts)):
            subtree = subtrees[weight.parts[:depth]]
            if not subtree.ordinary:
                continue
            if subtree.first == index and weight.parts[: depth - 1] in parents:
                edges.add(index)
                if subtree.spatial or subtree.candidates > 1:
                    exposed.add(index)
            # With a bias for every channel it puts out more than one.
            if subtree.last == index and weight.bias != weight.out:
                edges.add(index)
                if not is_taken:
                    exposed.add(index)
    return edges, exposed


def _next_ordinary(weights: Sequence[Weight]) -> list[Weight | None]:
    """Ordinary layer that comes after each weight, None after the last."""
    following: list[Weight | None] = []
    ordinary = None
    for weight in reversed(weights):
        following.append(ordinary)
        if weight.is_ordinary:
            ordinary = weight
    return following[::-1]


def _bias_fits(weight: Weight) -> bool:
    """True if a candidate has no bias or one for every kernel."""
    return weight.bias in (None, weight.out)


@lru_cache(maxsize=1 << 14)
def _is_depthwise_word(part: str) -> bool:
    return DEPTHWISE.search(part) is not None


def _subtrees(weights: Sequence[Weight], candidates: Sequence[int]) -> _Subtrees:
    """Subtrees that hold candidates, by the parts of their names."""
    subtrees: _Subtrees = {}
    for index in candidates:
        parts = weights[index].parts
        for depth in range(1, len(parts)):
            subtrees.setdefault(parts[:depth], _Subtree(index, index))
    for index, weight in enumerate(weights):
        for depth in range(1, len(weight.parts)):
            subtree = subtrees.get(weight.parts[:depth])
            if subtree is None:
                break
            subtree.first, subtree.last = min(subtree.first, index), max(subtree.last, index)
            subtree.candidates += weight.is_candidate
            subtree.ordinary += weight.is_ordinary
            subtree.spatial += weight.is_ordinary and not weight.is_pointwise
    return subtrees


def _part(parts: tuple[str, ...], kept: int) -> str:
    """Name with every number but the last `kept` replaced."""
    masked = ".".join([_without_numbers(part) for part in parts])
    if kept == 0:
        return masked
    numbers = re.findall(r"\d+", ".".join(parts))
    pieces = masked.split("#")
    shown = ["#"] * (len(numbers) - kept) + numbers[-kept:]
    return "".join([piece + number for piece, number in zip(pieces, [*shown, ""], strict=False)])


@lru_cache(maxsize=1 << 14)
def _without_numbers(part: str) -> str:
    return re.sub(r"\d+", "#", part)
