"""Run the example in a docstring."""

import doctest
from collections.abc import Callable
from typing import Any


def run_example(function: Callable, **names: Any) -> None:
    """Run what follows ">>>" in the docstring of a function, with some names defined."""
    (example,) = doctest.DocTestFinder(recurse=False).find(function, function.__qualname__, globs=names)
    assert example.examples, f"{function.__qualname__} has no example"
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example)
    assert not failed
