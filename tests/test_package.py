"""Package as it is installed: the wheel, built and used away from the checkout, and one version."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import dogfit

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
NO_COMPILER = {"CC": "false", "CXX": "false"}


def call(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Standard output of a command that must succeed, run without the checkout on its path."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": ""} | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path, **variables: str) -> Path:
    """Wheel or sdist of a source tree, by the backend itself: no network and no isolated environment."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    name = call(sys.executable, "-W", "ignore", "-c", script, out, cwd=source, **variables).split()[-1]
    return out / name


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy to build in, so that the checkout stays clean."""
    setuptools = pytest.importorskip("setuptools", reason="building needs setuptools, see the extra `test`")
    needed = PROJECT["build-system"]["requires"][0].partition(">=")[2]
    if [int(n) for n in setuptools.__version__.split(".")[:2]] < [int(n) for n in needed.split(".")[:2]]:
        pytest.skip(f"building needs setuptools >= {needed}, got {setuptools.__version__}")
    copy = tmp_path_factory.mktemp("source") / "dogfit"
    copy.mkdir()
    for folder in ("dogfit", "kernels"):
        shutil.copytree(
            REPOSITORY / folder,
            copy / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, copy)
    return copy


@pytest.fixture(scope="module")
def plain_wheel(source, tmp_path_factory) -> Path:
    """The wheel of a machine without a compiler."""
    return build("wheel", source, tmp_path_factory.mktemp("plain"), **NO_COMPILER)


@pytest.fixture(scope="module")
def wheel(source, plain_wheel, tmp_path_factory) -> Path:
    assert plain_wheel.exists()  # first, because both are built in one folder
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The interpreter of a fresh environment that holds the wheel and nothing else."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    try:
        call(sys.executable, "-m", "pip", "--version", cwd=home)
    except AssertionError:
        pytest.skip("installing the wheel needs pip in this environment")
    install = ("--isolated", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    call(sys.executable, "-m", "pip", *install, cwd=home)
    return python


@pytest.fixture(scope="module")
def usable(installed) -> Path:
    """The same interpreter, now able to see the dependencies of the running one."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    folder = Path(call(installed, "-c", script, cwd=installed.parent).strip())
    # A folder named in a .pth file joins the path, its own .pth files do not run: an editable
    # dogfit next to the dependencies stays invisible.
    (folder / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return installed


def test_wheel_holds_dogfit_alone(plain_wheel):
    tops = {name.partition("/")[0] for name in contents(plain_wheel)}
    assert tops == {"dogfit", f"dogfit-{dogfit.__version__}.dist-info"}


def test_wheel_holds_every_module_and_data_file(plain_wheel, source):
    files = [path.relative_to(source) for path in (source / "dogfit").rglob("*") if path.is_file()]
    files += ["dogfit" / p.relative_to(source) for p in (source / "kernels").rglob("*.py")]
    expected = {path.as_posix() for path in files}
    assert {name for name in contents(plain_wheel) if name.startswith("dogfit/")} == expected
    assert {"dogfit/kernels/__init__.py", "dogfit/py.typed", "dogfit/embedded/model.safetensors"} <= expected


@pytest.mark.slow
def test_wheel_holds_the_compiled_search(wheel, plain_wheel):
    """It is optional, but nothing may hide that it does not build where there is a compiler."""
    compiled = contents(wheel) - contents(plain_wheel)
    assert len(compiled) == (shutil.which("c++") is not None)
    assert all(name.startswith("dogfit/kernels/native/_native.") for name in compiled)


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(source, plain_wheel, tmp_path):
    call(sys.executable, "-m", "tarfile", "-e", build("sdist", source, tmp_path), tmp_path, cwd=tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    sources = {path.name for path in (source / "kernels" / "native" / "csrc").iterdir()}
    assert {path.name for path in (unpacked / "kernels" / "native" / "csrc").iterdir()} == sources
    (tmp_path / "out").mkdir()
    again = build("wheel", unpacked, tmp_path / "out", **NO_COMPILER)
    assert contents(again) == contents(plain_wheel)


@pytest.mark.slow
def test_wheel_installs_no_top_level_kernels(installed, tmp_path):
    script = (
        "import importlib.util as u, pathlib, sysconfig; print(u.find_spec('kernels'), "
        "*(p.name for p in pathlib.Path(sysconfig.get_path('purelib')).iterdir() if 'kernels' in p.name))"
    )
    assert call(installed, "-c", script, cwd=tmp_path).split() == ["None"]


@pytest.mark.slow
def test_installed_package_works_elsewhere(usable, tmp_path):
    script = "import dogfit, dogfit.kernels as k; print(dogfit.__file__, k.__file__, dogfit.__version__)"
    package, kernels, version = call(usable, "-c", script, cwd=tmp_path).split()
    assert version == dogfit.__version__
    assert Path(package).is_relative_to(usable.parent.parent)
    assert Path(kernels).parent == Path(package).parent / "kernels"
    script = "from dogfit.embedded import PATH; print((PATH / 'model.safetensors').stat().st_size)"
    assert 0 < int(call(usable, "-c", script, cwd=tmp_path)) <= 3 * 2**20


@pytest.mark.slow
def test_console_script_is_the_main_job(usable, tmp_path):
    script = usable.parent / "dogfit"
    assert call(script, "--version", cwd=tmp_path) == call(
        usable, "-m", "dogfit.run", "--version", cwd=tmp_path
    )
    assert call(script, "--version", cwd=tmp_path).split()[-1] == dogfit.__version__


def test_pyproject_lists_every_package():
    inside = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "dogfit").rglob("__init__.py")}
    below = {path.parent.relative_to(REPOSITORY) for path in (REPOSITORY / "kernels").rglob("__init__.py")}
    packages = {".".join(path.parts) for path in inside | {"dogfit" / path for path in below}}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages


def test_version_is_the_same_everywhere():
    """It is written in pyproject.toml alone; the package reads it from its metadata."""
    version = PROJECT["project"]["version"]
    assert importlib.metadata.version("dogfit") == dogfit.__version__ == version
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert version not in (REPOSITORY / "dogfit" / "__init__.py").read_text()
