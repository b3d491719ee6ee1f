"""How a fit is made: the profile, what chooses among families, and how hard to search."""

from dataclasses import dataclass
from typing import Literal

from dogfit.kernels.seeds import MAX_STARTS

Profile = Literal["integrated", "sampled", "discrete"]
Criterion = Literal["bic", "aicc", "cv"]
Engine = Literal["auto", "native", "xla", "pallas"]


@dataclass(frozen=True)
class FitConfig:
    """How a fit is made. The defaults are the ones whose accuracy `benchmarks/fit.py` reports.

    Models of two widths, one dimension more, get twice the starts and finalists.
    """

    profile: Profile = "integrated"
    """How a function becomes taps: its integral over each tap, its value at the tap's centre, or Lindeberg's
    discrete Gaussian and finite differences (centred on taps or half-way between)."""
    criterion: Criterion = "bic"
    """What chooses among families: the Bayesian information criterion, Akaike's corrected for few taps, or
    each tap predicted from all others (leave-one-out cross-validation, by leverages)."""
    engine: Engine = "auto"
    """What searches: compiled C++ ("native": CPU, float32) where it was built and serves, else "xla";
    "pallas" on an accelerator."""
    starts: int = 5
    """Dictionary nodes, of as many widths, that are refined."""
    first_steps: int = 5
    """Evaluations for each start."""
    finalists: int = 2
    """Starts that get a second round."""
    second_steps: int = 5
    """Evaluations for each finalist."""
    polish_steps: int = 3
    """Evaluations for the best start, with its block."""
    last_steps: int = 40
    """Evaluations for the few kernels that have not converged then."""

    def __post_init__(self) -> None:
        for name, choice in (("profile", Profile), ("criterion", Criterion), ("engine", Engine)):
            if getattr(self, name) not in choice.__args__:
                options = ", ".join(choice.__args__)
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        for name in ("starts", "first_steps", "finalists", "second_steps", "polish_steps", "last_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.finalists <= self.starts <= MAX_STARTS:
            raise ValueError(
                f"starts must be from finalists ({self.finalists}) to {MAX_STARTS}, got {self.starts}"
            )


DEFAULT = FitConfig()
THOROUGH = FitConfig(starts=10, first_steps=6, finalists=4, second_steps=8, polish_steps=8, last_steps=60)
"""For when each optimum counts more than the time: every width is a start."""
