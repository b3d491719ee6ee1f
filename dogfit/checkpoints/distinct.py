"""Layers of a checkpoint that count, judged by kernels: no repetition, no near copy, no fixed filter."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations

import numpy as np
from jaxtyping import Float32

from dogfit.checkpoints.copies import bare_name, copy_reason, differing_part, role_of
from dogfit.checkpoints.naming import dotted

Kernels = Mapping[str, Float32[np.ndarray, "c k k"]]
"""Tensor name -> taps `[channels, size, size]`."""

# Averages of a network's weights correlate with them by more than this, networks of different initialization
# by about 0 (1/20 for eight kernels 7x7, 1/8 for eight kernels 3x3).
MIN_CORRELATION = 0.8
# Kernels that resemble each other resemble their neighbors in a copy too: those tell nothing.
MIN_ADVANTAGE = 0.3
# More names than this in one place are parts of a network, not copies.
MAX_COPIES = 16


@dataclass(frozen=True)
class DistinctLayers:
    """Layers that do not count, with the reason; all others do."""

    tied: Mapping[str, str]
    """Name of a layer whose kernels are those of another one -> the name that is kept."""
    left_out: Mapping[str, str]
    """Name of a near copy or fixed filter -> why it is left out."""


def distinct_layers(kernels: Kernels, included: Collection[str] = ()) -> DistinctLayers:
    """Find the layers that count once, though a checkpoint holds them several times.

    Args:
      kernels: the kernels of all layers that were found.
      included: names that are taken though they are copies or fixed.

    Returns:
      What does not count.
    """
    tied = tied_names(kernels)
    left_out = {
        name: "no trained layer: all its kernels are equal; an include pattern takes it"
        for name, taps in kernels.items()
        if name not in included and name not in tied and _all_equal(taps)
    }
    rest = {name: taps for name, taps in kernels.items() if name not in tied and name not in left_out}
    left_out |= {
        name: copy_reason(name, taken) for name, taken in _near_copies(rest).items() if name not in included
    }
    return DistinctLayers(tied, left_out)


def tied_names(kernels: Kernels) -> dict[str, str]:
    """Find layers whose kernels are repeated: a layer used at several places is saved under each name.

    Args:
      kernels: the kernels of layers.

    Returns:
      Name that repeats -> name that is kept, the deepest one, since it tells the place best.
    """
    same: dict[bytes, list[str]] = {}
    for name, taps in kernels.items():
        # Layers may be equal without being tied while they are untouched: all zero, or all ones.
        if np.ptp(taps) > 0:
            same.setdefault(sha256(str(taps.shape).encode() + taps.tobytes()).digest(), []).append(name)
    tied = {}
    for names in same.values():
        kept = max(names, key=lambda name: (-role_of(name), dotted(name).count(".")))
        tied |= {name: kept for name in names if name != kept}
    return tied


def _all_equal(taps: Float32[np.ndarray, "c k k"]) -> bool:
    """True if every channel has the same kernel, and that one is not constant."""
    return len(taps) > 1 and np.ptp(taps[0]) > 0 and bool((taps == taps[0]).all())


def _near_copies(kernels: Kernels) -> dict[str, str]:
    """Layers of subtrees whose kernels are nearly those of another subtree -> the layer that is taken."""
    subtrees: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for key, one, other in _counterparts(kernels):
        if kernels[one].shape == kernels[other].shape:
            subtrees.setdefault(key, []).append((one, other))
    copies: dict[str, str] = {}
    for pairs in subtrees.values():
        if all(_resemble(kernels[one], kernels[other]) for one, other in pairs):
            for one, other in pairs:
                taken, copy = sorted((one, other), key=role_of)
                copies.setdefault(copy, taken)
    # A copy of a copy is a copy of what is taken.
    for name in list(copies):
        while copies[name] in copies and copies[copies[name]] != name:
            copies[name] = copies[copies[name]]
    return {name: taken for name, taken in copies.items() if taken not in copies}


def _counterparts(kernels: Kernels) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Pairs of names that have the same place in a network or differ in one part, with what tells them apart.

    Parts that differ in numbers only are blocks of one network.
    """
    places: dict[tuple, dict[str, str]] = {}
    for name in kernels:
        parts = dotted(name).split(".")
        for index in range(len(parts)):
            before = tuple(parts[:index])
            places.setdefault((before, tuple(parts[index:])), {})[""] = name
            places.setdefault((before, tuple(parts[index + 1 :])), {})[parts[index]] = name
        places.setdefault(("bare", bare_name(name)), {})[name] = name
    for (before, _), members in places.items():
        kinds = {_without_numbers(word): word for word in members}
        if not 2 <= len(kinds) <= MAX_COPIES:
            continue
        for one, other in combinations(sorted(kinds.values()), 2):
            if before == "bare":
                key = (differing_part(one, other), differing_part(other, one))
            else:
                key = (*before, one, other)
            yield key, members[one], members[other]


def _without_numbers(part: str) -> str:
    return re.sub(r"\d+", "", part)


def _resemble(one: Float32[np.ndarray, "c k k"], other: Float32[np.ndarray, "c k k"]) -> bool:
    """True if each kernel resembles its counterpart, and more so than the counterpart's neighbor."""
    correlation = _correlation(one, other)
    return correlation > MIN_CORRELATION and (
        len(one) == 1 or correlation - _correlation(one, np.roll(other, 1, axis=0)) > MIN_ADVANTAGE
    )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the kernels about their means, over all channels; 0 where they are constant or not finite."""
    with np.errstate(all="ignore"):
        a, b = (_centered(taps) for taps in (one, other))
        norm = np.sqrt((a**2).sum() * (b**2).sum())
        return float((a * b).sum() / norm) if np.isfinite(norm) and norm > 0 else 0.0


def _centered(taps: np.ndarray) -> np.ndarray:
    wide = taps.astype(np.float64)
    return wide - wide.mean((1, 2), keepdims=True)
