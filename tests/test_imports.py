"""The house: imports only go down, `dogfit.kernels` needs JAX alone, and asking for help stays cheap."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dogfit

REPOSITORY = Path(__file__).parent.parent

# Top floor first. A module may import its own floor's package and any floor below it.
HOUSE = (
    "run",
    "job",
    "report",
    "analysis",
    "runtime",
    "convert",
    "export",
    "embedded",
    "clusters",
    "autoencoder",
    "nulls",
    "labels",
    "initializers",
    "uncertainty",
    "fitting",
    "checkpoints",
    "kernelset",
    "devices",
    "distributed",
    "normalize",
    "host_arrays",
    "kernels",
    "atomic_write",
    "closed_pipe",
    "errors",
    "lazy",
)


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name (with `__init__`) and file of every module; kernels/ counts as dogfit.kernels."""
    for package, folder in (("dogfit", root / "dogfit"), ("dogfit.kernels", root / "kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            # Python before 3.13 differs in whether rglob enters the link dogfit/kernels.
            if package == "dogfit" and parts[0] == "kernels":
                continue
            yield ".".join((package, *parts)), path


def imports(module: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything imported anywhere in a module, inside functions too.

    `dogfit.name` counts as an import of it: the front door would load it from whatever floor it is on.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += [node.module] if node.module else []
            for alias in node.names:
                yield node.lineno, ".".join([*base, alias.name])
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "dogfit"
        ):
            yield node.lineno, f"dogfit.{node.attr}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def fault(module: str, imported: str) -> str | None:
    """Why a module of the house may not import this name, or None where it may."""
    here, target = module.split(".")[1], imported.split(".")
    if here == "kernels":
        allowed = target[0] in sys.stdlib_module_names | {"jax", "jaxtyping", "numpy"}
        inside = target[:2] == ["dogfit", "kernels"]
        return None if allowed or inside else "kernels/ may import nothing but jax, jaxtyping and numpy"
    if target[0] == "kernels":
        return "write dogfit.kernels: the top-level name belongs to another package"
    if target[0] != "dogfit" or target[1:] in ([], ["__version__"]):
        return None
    if target[1] not in HOUSE:
        return "import it from the module that defines it: a lazy name hides the direction"
    if HOUSE.index(target[1]) < HOUSE.index(here):
        return f"imports go down, and {target[1]} is above {here}"
    return None


def faults(root: Path) -> list[str]:
    """Every breach of the contract in a checkout, as `file:line: import X: reason`."""
    found = []
    for module, path in sources(root):
        where = path.relative_to(root)
        if module == "dogfit.__init__":  # the front door lists lazy names of every floor
            continue
        if module.split(".")[1] not in HOUSE:
            found.append(f"{where}: not in HOUSE; give it a floor in tests/test_imports.py")
            continue
        for line, imported in imports(module, ast.parse(path.read_text())):
            if reason := fault(module, imported):
                found.append(f"{where}:{line}: import {imported}: {reason}")
    return found


def test_imports_only_go_down():
    assert faults(REPOSITORY) == []
    floors = {module.split(".")[1] for module, _ in sources(REPOSITORY)}
    assert floors == {*HOUSE, "__init__"}  # the walk saw them all, and the list names none that is gone


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("dogfit/fitting/api.py", "from dogfit.run import main", "run is above fitting"),
        ("dogfit/fitting/api.py", "def f():\n    import dogfit.labels", "labels is above fitting"),
        ("dogfit/fitting/api.py", "from dogfit import labels", "labels is above fitting"),
        ("dogfit/fitting/api.py", "from ..labels import LABELS", "labels is above fitting"),
        ("dogfit/fitting/api.py", "from .. import labels", "labels is above fitting"),
        (
            "dogfit/fitting/api.py",
            "import importlib as i\ni.import_module('dogfit.labels')",
            "labels is above fitting",
        ),
        ("dogfit/fitting/api.py", "from dogfit import fit_kernels", "the module that defines it"),
        ("dogfit/fitting/api.py", "import dogfit\ndogfit.fit_kernels(x)", "the module that defines it"),
        ("dogfit/fitting/api.py", "import kernels", "dogfit.kernels"),
        ("dogfit/checkpoints/hub.py", "from ..nulls import white_noise", "nulls is above checkpoints"),
        ("dogfit/checkpoints/__init__.py", "from ..nulls import white_noise", "nulls is above checkpoints"),
        ("dogfit/errors.py", "import dogfit.kernels", "kernels is above errors"),
        ("kernels/model/profiles.py", "import scipy.special", "nothing but jax"),
        ("kernels/model/profiles.py", "from dogfit.errors import InputError", "nothing but jax"),
        ("kernels/deep/profiles.py", "import scipy.special", "nothing but jax"),
        ("dogfit/cellar.py", "import math", "not in HOUSE"),
    ],
)
def test_the_contract_sees_a_breach(tmp_path, file, line, reason):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    (found,) = faults(tmp_path)
    assert file in found
    assert reason in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("dogfit/fitting/api.py", "import numpy\nfrom dogfit.kernels import x\nfrom .families import y"),
        (
            "dogfit/checkpoints/__init__.py",
            "from .hub import x\nfrom . import hub\nfrom ..kernelset import y",
        ),
        ("dogfit/run.py", "from dogfit import __version__, labels"),
        ("dogfit/fitting/api.py", "import dogfit\nprint(dogfit.__version__)"),
        (
            "dogfit/fitting/api.py",
            "import dogfit.fitting.families\nprint(dogfit.fitting.families.BUILTIN_FAMILIES)",
        ),
        (
            "kernels/solve.py",
            "import jax.numpy\nimport math\nfrom dogfit.kernels.a import x\nfrom . import y",
        ),
        ("dogfit/__init__.py", "from dogfit.run import main"),
    ],
)
def test_the_contract_lets_good_imports_pass(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert faults(tmp_path) == []


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_importing_dogfit_loads_nothing_heavy(tmp_path):
    script = (
        "import sys; before = {name.partition('.')[0] for name in sys.modules}; import dogfit; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules} - before - sys.stdlib_module_names))"
    )
    assert python("-c", script, cwd=tmp_path).stdout.split() == ["dogfit"]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_command_line_answers_without_jax(tmp_path, option):
    done = python("-X", "importtime", "-m", "dogfit.run", option, cwd=tmp_path)
    loaded = {
        line.rsplit("|", 1)[1].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "dogfit" in loaded
    heavy = {
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax",
        "polars",
        "matplotlib",
        "sklearn",
        "scipy",
        "huggingface_hub",
    }
    assert loaded & heavy == set()
    assert ("usage" if option == "--help" else dogfit.__version__) in done.stdout


def test_every_public_name_is_there():
    for name in dogfit.__all__:
        assert getattr(dogfit, name) is not None
        assert name in dir(dogfit)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dogfit.no_such_name


def test_no_public_name_is_that_of_a_module():
    """Loading such a module would put it in the place of what it holds."""
    modules = {module.name for module in pkgutil.iter_modules(dogfit.__path__)}
    public_modules = {name for name, home in dogfit._HOMES.items() if home == f"dogfit.{name}"}
    assert modules & set(dogfit._HOMES) == public_modules
    assert set(dogfit.__all__) == set(dogfit._HOMES)
