"""The pages keep their word: their code runs, their links lead somewhere, their names exist."""

import pkgutil
import re
from pathlib import Path

import jax
import pytest

import dogfit

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "dogfit" / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(page, number, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]
# Training to the end is for a reader; here the code has to run.
SHORTER = {"training": ("STEPS = 200", "STEPS = 2")}


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number", "code"), BLOCKS)
def test_code_runs(page, number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.stem in SHORTER:
        long, short = SHORTER[page.stem]
        assert code.count(long) == 1
        code = code.replace(long, short)
    with jax.numpy_rank_promotion("allow"):  # a reader's JAX is as it comes
        exec(compile(code, f"{page.name}, block {number}", "exec"), {"__name__": "__main__"})


def test_there_is_code_to_run():
    assert {page.stem for page in PAGES} >= {"calling", "clusters", "fitting", "training"}
    assert len(BLOCKS) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_names(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!https://)([^)#]+)[^)]*\)", text):
        assert (page.parent / link).is_file(), link
    for script in re.findall(r"^    python ([\w/]+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), script
    for name in set(re.findall(r"\bdogfit(?:\.\w+)+", text)):
        pkgutil.resolve_name(name)
    for name in set(re.findall(r"\bFitResult\.(\w+)", text)):
        fields = dogfit.FitResult.__dataclass_fields__
        assert name in fields or hasattr(dogfit.FitResult, name), name
    for name in set(re.findall(r"FitConfig\((\w+)=", text)):
        assert name in dogfit.FitConfig.__dataclass_fields__, name


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    pages = "\n".join(page.read_text() for page in PAGES)
    for page in PAGES:
        assert f"dogfit/docs/{page.name}" in readme or f"]({page.name}" in pages
