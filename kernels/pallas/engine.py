"""The fused search as an engine: round models of integrated profiles on accelerators, on request."""

import jax

from dogfit.kernels import tuning
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.pallas.search import check_supported, search_optimum
from dogfit.kernels.problem import Problem, Search
from dogfit.kernels.types import Found

# Pallas' backend for each kind of device.
_BACKENDS = {"gpu": "triton", "tpu": "tpu"}


def check_available() -> None:
    """See `dogfit.kernels.dispatch.Engine`."""
    if jax.default_backend() not in _BACKENDS:
        raise NotImplementedError(
            f"the fused search is for accelerators, and this process has {jax.default_backend()} devices"
        )


def check(problem: Problem, search: Search) -> None:
    """See `dogfit.kernels.dispatch.Engine`."""
    check_available()
    if search.narrowed:
        raise NotImplementedError("the fused search has no bounds but the families' own")
    check_supported(problem.images, search.box, search.model, problem.weights)


def search(problem: Problem) -> list[Found]:
    """See `dogfit.kernels.dispatch.Engine`."""
    return [_search_one(problem, search) for search in problem.searches]


def _search_one(problem: Problem, search: Search) -> Found:
    assert isinstance(search.model, GaussianModel)
    return search_optimum(
        problem.images,
        search.box,
        search.model,
        tuning.fused_effort(search.model, search.budget),
        backend=_BACKENDS[jax.default_backend()],
    )
