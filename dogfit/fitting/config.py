"""Settings of a fit: the profile, what chooses among families, and how hard to search."""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

Profile = Literal["integrated", "sampled", "discrete"]
Criterion = Literal["bic", "aicc", "cv"]
Engine = Literal["auto", "native", "xla", "pallas"]


MAX_EFFORT = 10


@dataclass(frozen=True)
class FitConfig:
    """Settings of a fit. The defaults are the ones whose accuracy `benchmarks/fit.py` reports."""

    profile: Profile = "integrated"
    """How a function becomes taps: its integral over each tap, its value at the tap's centre, or Lindeberg's
    discrete Gaussian and finite differences (centred on taps or half-way between)."""
    criterion: Criterion = "bic"
    """Choice among families: the Bayesian information criterion, Akaike's corrected for few taps, or
    each tap predicted from all others (leave-one-out cross-validation, by leverages)."""
    engine: Engine = "auto"
    """Engine of the search: compiled C++ ("native": CPU, float32) where it was built and serves, else "xla";
    on request alone one fused kernel on an accelerator ("pallas")."""
    effort: int = 5
    """How hard to search, 1 to 10. The number of starts is in proportion, and the more there are, the worse a
    start may look and still be refined."""
    steps: int = 40
    """Most evaluations for each start (the plain search takes half); the best gets more if it needs them."""

    def __post_init__(self) -> None:
        for name, choice in (("profile", Profile), ("criterion", Criterion), ("engine", Engine)):
            if getattr(self, name) not in choice.__args__:
                options = ", ".join(choice.__args__)
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        for name, most in (("effort", MAX_EFFORT), ("steps", 10_000)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) <= most:
                raise ValueError(f"{name} must be 1 to {most}, got {value!r}; it is a whole number")


DEFAULT = FitConfig()
THOROUGH = FitConfig(effort=10, steps=60)
"""For when each optimum counts more than the time."""
