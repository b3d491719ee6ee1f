"""Lazy public names: packages import at no cost, and their lists of names agree."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dogfit
from dogfit import errors
from dogfit.lazy import lazy_names

PACKAGE = Path(dogfit.__file__).parent
LAZY = [
    ".".join(("dogfit", *path.parent.relative_to(PACKAGE).parts))
    for path in sorted(PACKAGE.glob("**/__init__.py"))
    if "lazy_names(" in path.read_text()
]


def test_lazy_names_load_on_use():
    load, names = lazy_names("dogfit", {"Flag": "dogfit.normalize", "normalize": "dogfit.normalize"})
    assert load("Flag").__name__ == "Flag"
    assert load("normalize") is importlib.import_module("dogfit.normalize")
    assert {"Flag", "normalize", "__doc__"} <= set(names())
    with pytest.raises(AttributeError, match="module 'dogfit' has no attribute 'absent'"):
        load("absent")


@pytest.mark.parametrize("package", LAZY)
def test_lazy_package_lists_agree(package):
    """A type checker, `__all__` and the map of homes see the same names, and all of them are there."""
    module = importlib.import_module(package)
    (block,) = (
        node for node in ast.parse(Path(module.__file__).read_text()).body if isinstance(node, ast.If)
    )
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(module.__all__) == set(module._HOMES)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_packages_import_without_cost():
    code = (
        "import sys; before = set(sys.modules); "
        f"import {', '.join(LAZY)}; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(loaded - sys.stdlib_module_names))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["dogfit"]


def test_every_error_is_public():
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert {"DogfitError", "InputError", "HubError", "OutputError", "TooFewKernels"} <= kinds
    assert kinds <= set(dogfit.__all__)
