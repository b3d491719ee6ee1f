"""Problems that an engine is given: kernels, and models to search, each with bounds."""

from typing import NamedTuple

from dogfit.kernels.model.kinds import Model
from dogfit.kernels.types import Box, Budget, Image


class Search(NamedTuple):
    """One model to search.

    Attributes:
      model: static.
      box: bounds of its search parameters.
      narrowed: whether they are narrower than the model's own, and may differ from kernel to kernel.
      budget: how hard to search; static.
    """

    model: Model
    box: Box
    narrowed: bool = False
    budget: Budget = Budget()


class Problem(NamedTuple):
    """Kernels and what is searched for each of them.

    Attributes:
      images: centred kernels of unit energy or zero; with weights, whitened
        (`dogfit.kernels.objective.products.whiten`).
      weights: of each tap; all alike if None.
      searches: models.
    """

    images: Image
    weights: Image | None
    searches: tuple[Search, ...]
