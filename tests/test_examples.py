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
# Examples whose programs no other test of the default tier compiles.
SLOW = ("custom_family", "fit_composites", "fit_stream")
EXAMPLES = [
    test
    for name in MODULES
    for test in doctest.DocTestFinder().find(importlib.import_module(name))
    if test.examples
]


def function_of(test: doctest.DocTest) -> str:
    return test.name.rsplit(".", 1)[-1]


@pytest.mark.parametrize(
    "test",
    [
        pytest.param(test, id=test.name, marks=[pytest.mark.slow] * (function_of(test) in SLOW))
        for test in EXAMPLES
    ],
)
def test_example(test, capsys):
    failures, _ = doctest.DocTestRunner().run(test)
    assert not failures, capsys.readouterr().out


def test_examples_are_complete():
    assert {function_of(test) for test in EXAMPLES} >= set(NEEDED)
