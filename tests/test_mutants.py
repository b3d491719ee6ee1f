"""Mutants keep up with the code they change; whether the tests catch them, `benchmarks/mutants.py` says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "benchmarks" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_read_mutants_that_apply_to_the_code(mutants):
    found = mutants.read_mutants()
    assert [fault for mutant in found if (fault := mutants.misfit(ROOT, mutant))] == []
    assert len({(m.file, m.before, m.after) for m in found}) == len(found) >= 40
    assert {m.file.split("/")[1] for m in found} >= {"autoencoder", "checkpoints", "fitting", "runtime"}


def test_read_mutants_name_tests_that_exist(mutants):
    for mutant in mutants.read_mutants():
        assert any(list((ROOT / "tests").glob(pattern)) for pattern in mutant.tests), mutant.what


def test_apply_refuses_text_that_is_not_there(mutants, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    mutant = mutants.Mutant("room", "twice", "a.py", "x = 1", "x = 2", ())
    with pytest.raises(ValueError, match="2 times"):
        mutant.apply(tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 1\nx = 1\n"
