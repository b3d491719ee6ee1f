"""Public names of a package that are loaded on first use (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose names live in other modules.

    Importing the package then loads none of these modules, so that it costs nothing; the first use of a name
    loads its module. A type checker needs the same names in a `TYPE_CHECKING` block, and `__all__` as a list.

    Args:
      package: dotted name of the package, its `__name__`.
      homes: public name -> module that defines it. A module that is public itself is its own home:
        "labels" -> "dogfit.labels".

    Returns:
      Functions to assign to `__getattr__` and `__dir__` in the package's `__init__.py`.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name])
        return module if homes[name] == f"{package}.{name}" else getattr(module, name)

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *homes})

    return load, names
