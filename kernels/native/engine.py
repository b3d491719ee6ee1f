"""The search in C++ as an engine: Gaussian models of integrated profiles on CPUs."""

import jax
import jax.numpy as jnp

from dogfit.kernels import tuning
from dogfit.kernels.model.gaussian import GaussianModel
from dogfit.kernels.native import binding
from dogfit.kernels.problem import Problem, Search
from dogfit.kernels.types import Found, Image
from dogfit.kernels.xla.search import seed_all


def check_available() -> None:
    """See `dogfit.kernels.dispatch.Engine`."""
    if jax.default_backend() != "cpu":
        raise NotImplementedError(
            f"the C++ search runs on CPUs, and this process has {jax.default_backend()}s"
        )
    binding.check_available()


def check(problem: Problem, search: Search) -> None:
    """See `dogfit.kernels.dispatch.Engine`."""
    images, weights, _ = problem
    if not isinstance(search.model, GaussianModel) or search.model.profile != "integrated":
        raise NotImplementedError("the C++ search has Gaussian families with integrated profiles only")
    if weights is not None or search.narrowed:
        raise NotImplementedError("the C++ search has neither weights nor bounds")
    if images.dtype != jnp.float32 or images.shape[0] != images.shape[1]:
        shape = f"{images.shape[0]}x{images.shape[1]}"
        raise NotImplementedError(
            f"the C++ search fits square kernels in float32, and these are {shape} in {images.dtype}"
        )
    check_available()


def search(problem: Problem) -> list[Found]:
    """See `dogfit.kernels.dispatch.Engine`; round models are searched in one call."""
    found: dict[int, Found] = {}
    round_ones = [n for n, search in enumerate(problem.searches) if not _gaussian(search).elliptic]
    if round_ones:
        searches = [problem.searches[number] for number in round_ones]
        calls = binding.search_families(
            problem.images,
            tuple(_gaussian(search) for search in searches),
            [search.box for search in searches],
            tuple(tuning.native_effort(search.model, search.budget) for search in searches),
        )
        found |= zip(round_ones, calls, strict=True)
    for number, search in enumerate(problem.searches):
        if number not in found:
            found[number] = _search_elliptic(problem.images, search)
    return [found[number] for number in range(len(problem.searches))]


def _search_elliptic(images: Image, search: Search) -> Found:
    """Find starts as the plain search does, and ascend from them in C++."""
    model = _gaussian(search)
    effort = tuning.native_effort(model, search.budget)
    points, energies = seed_all(images, None, None, model, effort)
    return binding.climb(images, points, energies, model, search.box, effort)


def _gaussian(search: Search) -> GaussianModel:
    assert isinstance(search.model, GaussianModel)
    return search.model
