"""Effort of a fit's searches, as the engines understand it."""

from dogfit.fitting.config import DEFAULT, FitConfig
from dogfit.kernels.types import Budget


def budget_of(config: FitConfig) -> Budget:
    """Budget of each search of a fit; the default effort is the level at which the engines were tuned."""
    return Budget(level=config.effort / DEFAULT.effort, steps=config.steps)
