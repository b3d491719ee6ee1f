"""Copies of one network in a checkpoint: averages, teachers, momentum encoders, saved and original modules.

A checkpoint often holds a network more than once. Which tensors are the same part of the network is told by
their names without the parts that name a copy (ROLES) or only wrap a network (WRAPPERS). Two such sets of
tensors are copies if their shapes agree; networks of different widths or depths are networks of their own.
Where names do not say that one set is a copy of the other, `dogfit.checkpoints.distinct` compares values.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from dogfit.checkpoints.header import Tensor
from dogfit.checkpoints.naming import OPTIMIZER, QUANTIZED, dotted

# Parts that only wrap a network: `module.stages.0` is `stages.0`.
WRAPPERS = frozenset(
    "_orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module module state_dict "
    "model_state_dict model_state model base_model net network params variables weights".split()
)
# Parts that wrap a single layer, or the network, wherever they stand.
INNER_WRAPPERS = frozenset(
    "_orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module base_layer original_layer".split()
)


class Role(IntEnum):
    """Part that a copy plays; of several copies the one with the least role is taken."""

    SAVED = 0
    """Trained in place of another module, which is kept beside it."""
    AVERAGE = 1
    """Average of the weights, with which the network is evaluated."""
    PLAIN = 2
    """The trained weights."""
    MOMENTUM = 3
    """Average of the weights that serves the training alone, such as the targets of BYOL."""
    ORIGINAL = 4
    """Module as it was before training, kept beside the trained one."""


# Words of a part that tell the role by themselves, and those that do so beside a word for a network:
# `encoder_q`, and not the query `q` of an attention layer.
ROLES = {
    word: role
    for role, words in {
        Role.AVERAGE: "ema teacher shadow swa averaged average polyak",
        Role.PLAIN: "student online",
        Role.MOMENTUM: "target momentum",
    }.items()
    for word in words.split()
}
ROLES_OF_NETWORKS = {
    word: role
    for role, words in {
        Role.AVERAGE: "avg mean",
        Role.PLAIN: "q query base fast context main policy source current",
        Role.MOMENTUM: "k key m slow",
        Role.ORIGINAL: "original orig initial pretrained reference ref",
    }.items()
    for word in words.split()
}
# Words that remain of a part without its role and only wrap the network.
_WRAPPING_WORDS = frozenset(
    "model module net network state dict params param weights weight exponential moving".split()
)
_NETWORK_WORDS = frozenset("encoder backbone network net model feature features extractor".split())
_PART_WORDS = (
    _WRAPPING_WORDS
    | _NETWORK_WORDS
    | frozenset(
        "decoder trunk branch generator discriminator unet vit visual vision text image actor critic policy "
        "q projector predictor head g d student".split()
    )
)
_WHOLE_PARTS = {
    "ExponentialMovingAverage": Role.AVERAGE,
    "modules_to_save": Role.SAVED,
    "original_module": Role.ORIGINAL,
    "original_model": Role.ORIGINAL,
}
# Averages that may cover a part of the network; the other copies have every layer of it.
_PARTIAL = re.compile(r"(?i)ema|shadow|swa|averaged?|polyak|avg|modules_to_save|original_")
# Matrices that adapt a weight; alone they are no kernels.
ADAPTER = re.compile(
    r"(?:^|[./_])(?:lora|loha|lokr|locon|dora|hada|glora|adalora|boft|oft|vera|ia3|lycoris)(?:[./_\d]|$)",
    re.IGNORECASE,
)


class _Name(NamedTuple):
    """A tensor's name, taken apart."""

    bare: str
    """Name that the tensor has in the plain network."""
    copy: tuple[str, ...]
    """Parts that were taken out; the same for all tensors of a copy."""
    role: Role


@dataclass(frozen=True)
class Copies:
    """Names of a checkpoint's tensors: one copy of each network, and the rest."""

    names: dict[str, str]
    """Name of each tensor that is taken -> its bare name, which tells its place."""
    dropped: dict[str, str]
    """Name of each other tensor -> why it is left out."""


def bare_name(name: str) -> str:
    """Remove wrapping parts and the marks of a copy from a name.

    Args:
      name: tensor name, as in the file.

    Returns:
      The name that the tensor has in the plain network.
    """
    return _take_apart(name).bare


def role_of(name: str) -> Role:
    """Find the role that a tensor's name states.

    Args:
      name: tensor name, as in the file.

    Returns:
      The role of the copy that the tensor belongs to; PLAIN where the name says nothing.
    """
    return _take_apart(name).role


def split_copies(tensors: Mapping[str, Tensor], unwanted: Collection[str] = ()) -> Copies:
    """Choose one copy of each network by names and shapes.

    Args:
      tensors: all tensors of the checkpoint, by name.
      unwanted: names that are chosen only where there is no other copy.

    Returns:
      The names of the networks, and the other names with the reason.
    """
    apart, dropped = _judge_names(tensors)
    same_place = _same_place(apart)
    if len(same_place) == len(apart):
        return Copies({name: parts.bare for name, parts in apart.items()}, dropped)
    shapes: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
    for bare, members in same_place.items():
        for name in members:
            shapes.setdefault(apart[name].copy, {})[bare] = tensors[name].shape
    # Judged once for all tensors of two copies, and so is the reason.
    verdicts: dict[tuple[tuple[str, ...], tuple[str, ...]], str | None] = {}

    def reason(name: str, taken: str) -> str | None:
        one, other = apart[taken], apart[name]
        pair = one.copy, other.copy
        if pair not in verdicts:
            same = _is_copy(one, other, shapes[one.copy], shapes[other.copy])
            verdicts[pair] = copy_reason(name, taken) if same else None
        return verdicts[pair]

    names: dict[str, str] = {}
    separate: set[tuple[str, ...]] = set()
    for bare, members in same_place.items():
        kept: list[str] = []
        for name in sorted(members, key=lambda n: (n in unwanted, apart[n].role)):
            reasons = [found for taken in kept if (found := reason(name, taken)) is not None]
            if reasons:
                dropped[name] = reasons[0]
            else:
                kept.append(name)
        names |= dict.fromkeys(kept, bare)
        if len(kept) > 1:
            separate |= {apart[name].copy for name in kept}
    # Networks beside each other keep the parts of their names that tell them apart.
    if separate:
        names |= {name: dotted(name) for name in names if apart[name].copy in separate}
    return Copies({name: names[name] for name in tensors if name in names}, dropped)


def _judge_names(names: Collection[str]) -> tuple[dict[str, _Name], dict[str, str]]:
    """Take the names of weights apart; also the names of what is no weight, with the reason."""
    apart = {name: _unwrapped(dotted(name)) for name in names}
    dropped: dict[str, str] = {}
    # Most names have no other part that says anything, and numbers say nothing.
    words = [
        part for part in set(".".join([n.bare for n in apart.values()]).split(".")) if not part.isdecimal()
    ]
    telling = set(filter(_says_something, words))
    ends = {part for part in words if _no_weight_end(part, True) is not None}
    if not telling and not ends:
        return apart, dropped
    for name, plain in list(apart.items()):
        parts = plain.bare.split(".")
        if parts[-1] in ends or not telling.isdisjoint(parts):
            own = [*plain.copy, *parts]
            if reason := _no_weight(own):
                dropped[name] = reason
                del apart[name]
            else:
                apart[name] = _without_marks(name, own)
    return apart, dropped


def _unwrapped(text: str) -> _Name:
    """Take off the wrappers that a name with dots begins with."""
    taken, bare = (), text
    head, dot, rest = bare.partition(".")
    while dot and head in WRAPPERS:
        taken, bare = (*taken, head), rest
        head, dot, rest = bare.partition(".")
    return _Name(bare, taken, Role.PLAIN)


def networks(names: Sequence[str]) -> dict[str, int]:
    """Count layers by the network that their names say they belong to, where there are several.

    Args:
      names: names of the layers that are taken.

    Returns:
      Parts of the names that tell a network -> number of its layers; empty for a single network.
    """
    members: dict[str, set[str]] = {}
    for name in names:
        apart = _take_apart(name)
        inner = (
            index for index, part in enumerate(apart.copy) if part in INNER_WRAPPERS | _WHOLE_PARTS.keys()
        )
        members.setdefault(".".join(apart.copy[: next(inner, len(apart.copy))]), set()).add(apart.bare)
    plain = members.get("", set())
    if plain and not any(plain & others for network, others in members.items() if network):
        members.pop("")
    return {network: len(layers) for network, layers in members.items()} if len(members) > 1 else {}


def copy_reason(name: str, taken: str) -> str:
    """Say why a copy is left out.

    Args:
      name: tensor that is left out.
      taken: tensor that is taken in its place.

    Returns:
      The reason, the same for all tensors of one copy.
    """
    middle = differing_part(taken, name)
    place = repr(middle) if middle else "the plain name"
    role, instead = role_of(name), role_of(taken)
    if instead is Role.AVERAGE and role > instead:
        return f"its moving average is taken instead: {place}"
    if role in (Role.AVERAGE, Role.MOMENTUM) and instead is Role.PLAIN:
        return f"a moving average of {place}, which is taken"
    if role is Role.ORIGINAL or instead is Role.SAVED < role:
        return f"the original of {place}, which is taken"
    return f"a second copy of {place}, which is taken"


def differing_part(name: str, other: str) -> str:
    """Find the part of a name that another one has not, between what both begin and end with."""
    one, two = (dotted(n).split(".") for n in (name, other))
    start = _common(one, two)
    end = _common(one[: start - 1 if start else None : -1], two[: start - 1 if start else None : -1])
    return ".".join(one[start : len(one) - end])


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    """Number of items that two sequences begin with alike."""
    count = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        count += 1
    return count


def _no_weight(parts: Sequence[str]) -> str | None:
    """Reason why a tensor is no weight of the network, by the parts of its name; None for a weight."""
    for part in parts:
        if reason := _no_weight_part(part):
            return reason
    return _no_weight_end(parts[-1], len(parts) > 1)


@lru_cache(maxsize=1 << 16)
def _no_weight_part(part: str) -> str | None:
    if OPTIMIZER.search(part):
        return "optimiser state"
    if ADAPTER.search(part):
        return "a low-rank adapter, which is no kernel and is not merged into one"
    return None


@lru_cache(maxsize=1 << 16)
def _no_weight_end(last: str, has_parent: bool) -> str | None:
    if has_parent and OPTIMIZER.search(f".{last}"):
        return "optimiser state"
    return "companion of a quantised weight" if QUANTIZED.search(last) else None


def _same_place(apart: Mapping[str, _Name]) -> dict[str, list[str]]:
    """Bare name -> names of the tensors that have this place in a network."""
    places: dict[str, list[str]] = {}
    for name, parts in apart.items():
        places.setdefault(parts.bare, []).append(name)
    # Some averages are stored under the name of their weight without its dots.
    averages = {parts.bare for parts in apart.values() if parts.role is Role.AVERAGE}
    for bare in list(places) if averages else ():
        undotted = bare.replace(".", "")
        if undotted != bare and undotted in averages and undotted in places:
            places[bare] += places.pop(undotted)
    return places


def _is_copy(
    one: _Name,
    other: _Name,
    shapes: Mapping[str, tuple[int, ...]],
    other_shapes: Mapping[str, tuple[int, ...]],
) -> bool:
    """Judge by role and shapes whether two sets of tensors are the same network."""
    if one.role == other.role and one.role != Role.SAVED:
        return one.copy == other.copy
    # The shapes of heads may differ, for as many classes.
    convolutions = [bare for bare, shape in shapes.items() if len(shape) > 2]
    common = [bare for bare in convolutions if bare in other_shapes] or [
        bare for bare in shapes if bare in other_shapes
    ]
    if any(shapes[bare] != other_shapes[bare] for bare in common):
        return False
    if any(_PARTIAL.search(part) for part in (*one.copy, *other.copy)):
        return True
    others = [bare for bare, shape in other_shapes.items() if len(shape) > 2]
    return len(common) == len(convolutions) == len(others) or not convolutions


def _take_apart(name: str) -> _Name:
    return _without_marks(name, dotted(name).split("."))


def _without_marks(name: str, parts: Sequence[str]) -> _Name:
    kept: list[str] = []
    copy: list[str] = []
    role = Role.PLAIN
    leading, skip = True, False
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        if skip:  # the name of an adapter
            copy.append(part)
            skip = False
            continue
        if (leading and part in WRAPPERS) or (part in INNER_WRAPPERS and not last):
            copy.append(part)
            continue
        leading = False
        found = _part_role(part)
        if found is not None and not (last and not kept):
            rest, part_role = found
            role = part_role if role is Role.PLAIN else role
            copy.append(part)
            skip = part_role is Role.SAVED and index + 1 < len(parts) - 1
            leading = not rest and not kept
            part = rest
            if not part:
                continue
        kept.append(part)
    return _Name(".".join(kept) or name, tuple(copy), role)


@lru_cache(maxsize=1 << 16)
def _says_something(part: str) -> bool:
    """True for a part that may be taken out of a name, or tells that a tensor is no weight."""
    wraps = part in WRAPPERS or part in INNER_WRAPPERS
    return wraps or _part_role(part) is not None or _no_weight_part(part) is not None


@lru_cache(maxsize=1 << 16)
def _part_role(part: str) -> tuple[str, Role] | None:
    """Role that one part of a name states, and what remains of the part; None if it states none."""
    if part in _WHOLE_PARTS:
        return "", _WHOLE_PARTS[part]
    words = list(re.finditer(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part))
    certain = [match for match in words if match[0].lower() in ROLES]
    others = [match for match in words if match[0].lower() in ROLES_OF_NETWORKS]
    stating = [*certain, *others]  # both in "mean_teacher"
    rest = {match[0].lower() for match in words if match not in stating}
    if not stating or not (rest <= _PART_WORDS if certain else rest and rest <= _NETWORK_WORDS):
        return None
    left = part
    for match in sorted(stating, key=lambda match: -match.start()):
        left = left[: match.start()].rstrip("_-") + left[match.end() :]
    role = (ROLES | ROLES_OF_NETWORKS)[stating[0][0].lower()]
    return ("" if rest <= _WRAPPING_WORDS else left.strip("_-")), role
