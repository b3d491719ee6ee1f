"""The plain search as an engine: every model, weights and bounds, on every device."""

from dogfit.kernels import tuning
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.objective.products import are_separable
from dogfit.kernels.problem import Problem, Search
from dogfit.kernels.types import Found
from dogfit.kernels.xla.search import search_optimum


def check_available() -> None:
    """See `dogfit.kernels.dispatch.Engine`; XLA is wherever JAX is."""


def check(problem: Problem, search: Search) -> None:
    """See `dogfit.kernels.dispatch.Engine`; there is nothing that this engine cannot do."""


def search(problem: Problem) -> list[Found]:
    """See `dogfit.kernels.dispatch.Engine`."""
    return [_search_one(problem, search) for search in problem.searches]


def _search_one(problem: Problem, search: Search) -> Found:
    images, weights, _ = problem
    device = tuning.device()
    lean = isinstance(search.model, GaussianModel) and are_separable(search.model, weights)
    return search_optimum(
        images,
        search.box,
        search.model,
        tuning.xla_effort(search.model, search.budget, images.dtype),
        block=min(device.block if lean else device.image_block, images.shape[-1]),
        weights=weights,
        narrowed=search.narrowed,
    )
