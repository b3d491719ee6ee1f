"""Examples in docstrings print what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "dogfit.fitting.api",
    "dogfit.fitting.composite",
    "dogfit.fitting.families",
    "dogfit.fitting.parquet",
    "dogfit.fitting.penalty",
    "dogfit.fitting.result",
    "dogfit.labels",
    "dogfit.nulls",
    "dogfit.uncertainty",
)
# Functions whose example must not be lost.
NEEDED = (
    "custom_family dog_penalty fit_composites fit_kernel fit_kernels fit_parquet fit_stream label_fits "
    "standard_errors"
).split()
EXAMPLES = [
    test
    for name in MODULES
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_example(test, capsys):
    failures, _ = doctest.DocTestRunner().run(test)
    assert not failures, capsys.readouterr().out


def test_examples_are_complete():
    assert {test.name.rsplit(".", 1)[-1] for test in EXAMPLES} >= set(NEEDED)
