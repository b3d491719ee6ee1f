"""Patterns of tensor names, as `--include` and `--exclude` take them."""

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase


def matching_names(names: Collection[str], patterns: Iterable[str]) -> set[str]:
    """Find the names that patterns mean.

    Args:
      names: all names.
      patterns: each one of the names, taken literally, or a pattern as of file names.

    Returns:
      The names that match any of the patterns.
    """
    found: set[str] = set()
    for pattern in patterns:
        # Brackets are common in names, and mean something in patterns.
        found |= {pattern} if pattern in names else {name for name in names if fnmatchcase(name, pattern)}
    return found


def covering_patterns(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Write patterns that mean these names, few where names differ in numbers only.

    Args:
      names: names to match.
      others: names that no pattern may match.

    Returns:
      A pattern, or the name itself, for each group of names.
    """
    others = list(others)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", re.sub(r"[\[*?]", "?", name)), []).append(name)
    patterns = []
    for pattern, group in groups.items():
        short = len(group) > 1 and not any(fnmatchcase(name, pattern) for name in others)
        patterns += [pattern] if short else group
    return patterns
