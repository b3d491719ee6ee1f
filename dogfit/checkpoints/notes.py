"""Notes and errors about what was read of a checkpoint, and what was left out and why."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from dogfit.checkpoints.copies import networks
from dogfit.checkpoints.detect import LeftOut
from dogfit.checkpoints.effective import EffectiveTensor
from dogfit.checkpoints.patterns import covering_patterns
from dogfit.checkpoints.read import Contents, meant_tensors
from dogfit.errors import InputError

# Of more, the first ones are shown.
MAX_SHOWN = 8


def reading_notes(
    model: str, contents: Contents, taken: Sequence[str], left_out: Sequence[LeftOut]
) -> list[str]:
    """Say what was chosen while reading, in words.

    Args:
      model: name of the checkpoint's model.
      contents: its contents.
      taken: names of the layers that were taken.
      left_out: what was left out.

    Returns:
      A sentence for each reason to leave something out, and for each thing that the kernels do not show.
    """
    counts = Counter(item.reason for item in left_out)
    notes = [f"{model}: {count} left out: {reason}" for reason, count in counts.items()]
    if hint := include_hint(contents, left_out):
        notes.append(f"{model}: {hint}")
    rules = Counter(
        tensor.rule for tensor in map(contents.tensors.get, taken) if isinstance(tensor, EffectiveTensor)
    )
    notes += [
        f"{model}: kernels of {count} layers as the network computes them: {rule}"
        for rule, count in rules.items()
    ]
    if several := networks(taken):
        shown = ", ".join(f"{name or 'no prefix'!r} ({count} layers)" for name, count in several.items())
        notes.append(
            f"{model}: holds networks beside each other, of different shapes or values, and all are taken: "
            f"{shown}; an exclude pattern leaves one out"
        )
    return [*notes, *contents.notes]


def include_hint(contents: Contents, left_out: Sequence[LeftOut]) -> str:
    """Write the options that take the ambiguous tensors; an empty string if there are none.

    Args:
      contents: contents of the checkpoint.
      left_out: what was left out of it.
    """
    ambiguous = [item.tensor.name for item in left_out if item.is_ambiguous]
    if not ambiguous:
        return ""
    patterns = covering_patterns(ambiguous, contents.tensors.keys() - set(ambiguous))
    options = " ".join(f"--include {shlex.quote(pattern)}" for pattern in patterns[:MAX_SHOWN])
    more = f" (and {len(patterns) - MAX_SHOWN} more)" if len(patterns) > MAX_SHOWN else ""
    return f"to take what is ambiguous: {options}{more}"


def nothing_found(model: str, contents: Contents, left_out: Sequence[LeftOut]) -> InputError:
    """Make the error for a checkpoint without depthwise layers.

    Args:
      model: name of the checkpoint's model.
      contents: its contents.
      left_out: tensors that resemble depthwise kernels.
    """
    tensors = contents.tensors
    shapes = Counter(f"{t.stored_dtype} {list(t.shape)}" for t in tensors.values() if len(t.shape) > 2)
    seen = (
        ", ".join(f"{count} of {shape}" for shape, count in shapes.most_common(6)) or "none of 3 or more axes"
    )
    text = f"{model}: no depthwise layer among {len(tensors)} tensors ({seen})"
    if left_out:
        reasons = Counter(item.reason for item in left_out).most_common(4)
        example = left_out[0].tensor
        text += "; left out: " + "; ".join(f"{count} {reason}" for reason, count in reasons)
        text += f" (such as {example.name!r} {list(example.shape)})"
    text += ". Depthwise kernels have shape (C, 1, k, k), (k, k, 1, C) or (k, k, C, 1), k > 1"
    hints = [hint for hint in (include_hint(contents, left_out), *contents.notes) if hint]
    return InputError(". ".join([text, *hints]))


def unmatched_notes(all_contents: Sequence[Contents], options: Mapping[str, Sequence[str]]) -> list[str]:
    """Say which patterns match no tensor of any checkpoint.

    Args:
      all_contents: contents of each checkpoint.
      options: name of each option -> its patterns.
    """
    return [
        f"{option} {pattern!r} matches the name of no tensor"
        for option, patterns in options.items()
        for pattern in patterns
        if not any(meant_tensors(contents.tensors, [pattern]) for contents in all_contents)
    ]
