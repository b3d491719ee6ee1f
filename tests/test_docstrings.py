"""Docstrings can be read alone, and those of public functions say what goes in and what comes out."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dogfit

ROOT = Path(__file__).parents[1]
PUBLIC = (
    "dogfit",
    *(f"dogfit.{name}" for name in ("autoencoder", "checkpoints", "clusters", "devices", "distributed")),
    *(f"dogfit.{name}" for name in ("initializers", "kernelset", "labels", "nulls", "uncertainty")),
)
# A sentence that begins so hangs on the line above it.
DEPENDENT = re.compile(
    r"(Of|By|As|Amid|Who|Whether|Where|Which|What|With|Without|From|For|In|On|At|To|How|When|If)\b"
)


def docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of every docstring."""
    for folder in ("dogfit", "kernels"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if (ROOT / "dogfit" / "kernels") in path.parents:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    name = getattr(node, "name", "module")
                    yield f"{path.relative_to(ROOT)}:{name}", ast.get_docstring(node) or ""


def public_functions() -> list[tuple[str, Callable]]:
    """Functions and methods that a caller may use, by their full names."""
    found: dict[str, Callable] = {}
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        for name in names:
            value = getattr(module, name)
            if not getattr(value, "__module__", "").startswith("dogfit"):
                continue
            if inspect.isfunction(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
            elif inspect.isclass(value):
                for own, member in vars(value).items():
                    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                    if inspect.isfunction(function) and not own.startswith("_") and function.__doc__:
                        found[f"{value.__module__}.{function.__qualname__}"] = function
    return sorted(found.items())


FUNCTIONS = public_functions()


def test_docstrings_read_alone():
    assert [place for place, text in docstrings() if DEPENDENT.match(text)] == []


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])
def test_public_functions_state_arguments_and_results(name, function):
    """`Args` where there are any, `Returns` or `Yields` where something comes back."""
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function)
    arguments = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    assert text, name
    assert not arguments or "Args:" in text, name
    # A property's or a plain accessor's first sentence says what it is.
    if arguments and signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert re.search("Returns:|Yields:", text), name
    for argument in arguments:
        assert re.search(rf"\b{argument}\b", text), f"{name}: {argument}"


def test_public_functions_are_found():
    names = {name for name, _ in FUNCTIONS}
    assert {"dogfit.fitting.api.fit_kernels", "dogfit.nulls.white_noise"} <= names
    assert set(dogfit.__all__)
