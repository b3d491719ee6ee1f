"""Settings of an analysis."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.fitting.config import FitConfig
from dogfit.fitting.family_names import FAMILIES

NULL_KERNELS = (8_192, 32_768)
"""Fewest and most kernels of each null: enough for a threshold at 1 %, and no more than shares need."""


@dataclass(frozen=True, eq=False)
class AnalysisConfig:
    """Settings of the analysis of one kernel size."""

    families: tuple[str, ...] = FAMILIES
    """Families to fit."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Settings of every fit, to kernels, nulls and decoded kernels alike."""
    autoencoder: AutoencoderConfig | None = field(default_factory=AutoencoderConfig)
    """Settings of the training; None leaves the autoencoder out."""
    seed: int = 0
    """Seed of the nulls, of k-means and of samples."""
    null_rate: float = 0.01
    """Share of each null that its threshold lets pass."""
    null_kernels: tuple[int, int] = NULL_KERNELS
    """Fewest and most kernels of each null; between these, as many as the network has."""
    filters: Float[np.ndarray, "m k k"] | None = None
    """Filters to compare the universal ones with."""
    evidence: bool = False
    """Weigh the evidence for and against clusters."""
