"""Coverage of standard errors, by parametric bootstrap of fitted kernels."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from dogfit.fitting.api import fit_kernels
from dogfit.fitting.config import FitConfig
from dogfit.fitting.families import Family
from dogfit.fitting.result import FitResult, Status
from dogfit.kernels.model.custom import CustomModel

if TYPE_CHECKING:
    import polars

NOMINAL = math.erf(math.sqrt(0.5))
"""Share of truths that an interval of one standard error should cover."""


@dataclass(frozen=True)
class Coverage:
    """Errors of bootstrapped parameters beside the standard errors reported for them."""

    family: Family
    truth: Float[np.ndarray, "m p"]
    """Fitted parameters, taken as true."""
    error: Float[np.ndarray, "m p"]
    """Refitted less true parameters; angles the short way round."""
    stderr: Float[np.ndarray, "m p"]
    """As reported for the refits; NaN where there is none."""
    signal: Float[np.ndarray, " m"]
    """Root of the energy of the template about its mean, over the noise level: the signal-to-noise ratio."""
    freedom: int
    """Taps less parameters."""
    at_bound: int
    """Refits left out for a parameter at its bound."""
    unfinished: int
    """Refits left out for another status."""

    def covered(self, factor: float = 1.0) -> Float[np.ndarray, "m p"]:
        """Decide for each parameter of each refit whether its interval covers the truth.

        Args:
          factor: half the width of the interval, in standard errors.

        Returns:
          1 where the interval reaches the truth, 0 where not, NaN where there is no standard error.
        """
        inside = np.abs(self.error) <= factor * self.stderr
        return np.where(np.isfinite(self.stderr), inside, np.nan)


def bootstrap(
    result: FitResult, *, sample: int = 1000, draws: int = 1, seed: int = 0, config: FitConfig | None = None
) -> tuple[dict[str, Coverage], int]:
    """Redraw fitted kernels with noise of their own level, and refit them with their own family.

    Args:
      result: of `fit_kernels`.
      sample: kernels drawn from those that converged inside the bounds; all if there are fewer.
      draws: noisy copies of each.
      seed: of the sample and the noise.
      config: of the refits; the defaults with the result's profile if None.

    Returns:
      `Coverage` by the name of the family, and the number of kernels at a bound or unconverged, which could
      not be drawn.

    Raises:
      ValueError: if no kernel converged inside the bounds, or for a number below 1.
    """
    if sample < 1 or draws < 1:
        raise ValueError(f"sample and draws must be at least 1, got {sample} and {draws}")
    generator = np.random.default_rng(seed)
    usable = np.flatnonzero((np.asarray(result.status) == Status.CONVERGED) & (result.noise > 0))
    fitted = int(np.sum(np.asarray(result.family) >= 0))
    if not usable.size:
        raise ValueError(f"none of the {len(result)} kernels converged inside the bounds with some residual")
    rows = np.sort(generator.permutation(usable)[:sample]).repeat(draws)
    config = FitConfig(profile=result.profile) if config is None else config  # pyright: ignore[reportArgumentType]
    found = {}
    for index, family in enumerate(result.families):
        mine = rows[np.asarray(result.family)[rows] == index]
        if mine.size:
            found[family.name] = _redraw(result, family, mine, generator, config)
    return found, fitted - usable.size


def bootstrap_coverage(
    result: FitResult, *, sample: int = 1000, draws: int = 1, seed: int = 0, config: FitConfig | None = None
) -> "polars.DataFrame":
    """Share of intervals `estimate ± standard error` that cover the truth, by parametric bootstrap.

    Fitted kernels are taken as true, Gaussian noise of the fitted level is added, and the sum is fitted with
    the same family. Kernels and refits with a parameter at a bound are left out: it has no error.

    Args:
      result: of `fit_kernels`.
      sample: kernels drawn from those that converged inside the bounds; all if there are fewer.
      draws: noisy copies of each.
      seed: of the sample and the noise.
      config: of the refits; the defaults with the result's profile if None.

    Returns:
      A row for each family and parameter: `covered`, which should be 0.683, with its 95 % interval (Wilson)
      `low` to `high`; `covered_t`, with Student's factor for the degrees of freedom; `needed`, the factor
      on the standard error that would cover 68.3 %; `count` of intervals; `at_bound` and `unfinished`
      refits left out.

    Raises:
      ValueError: if no kernel converged inside the bounds, or for a number below 1.
    """
    import polars
    from scipy.stats import binomtest

    found, _ = bootstrap(result, sample=sample, draws=draws, seed=seed, config=config)
    table = []
    for name, coverage in found.items():
        plain, student = coverage.covered(), coverage.covered(student_factor(coverage.freedom))
        for column, parameter in enumerate(coverage.family.names):
            known = np.isfinite(plain[:, column])
            count = int(known.sum())
            if not count:
                continue
            test = binomtest(int(plain[known, column].sum()), count)
            interval = test.proportion_ci(0.95, method="wilson")
            ratio = np.abs(coverage.error[known, column]) / coverage.stderr[known, column]
            table.append(
                {
                    "family": name,
                    "parameter": parameter,
                    "covered": float(test.statistic),
                    "low": float(interval.low),
                    "high": float(interval.high),
                    "covered_t": float(student[known, column].mean()),
                    "needed": float(np.quantile(ratio, NOMINAL)),
                    "count": count,
                    "at_bound": coverage.at_bound,
                    "unfinished": coverage.unfinished,
                }
            )
    return polars.DataFrame(table)


def student_factor(freedom: int) -> float:
    """Find the factor on standard errors with which intervals from few taps cover 68.3 %.

    Args:
      freedom: taps less parameters.

    Returns:
      The quantile of Student's t that covers what one standard deviation of a normal variable does.

    Example:
      >>> print(f"{student_factor(44):.3f} at 7x7, {student_factor(4):.3f} at 3x3, for a Gaussian")
      1.011 at 7x7, 1.142 at 3x3, for a Gaussian
    """
    from scipy.stats import t

    return float(t.ppf((1 + NOMINAL) / 2, freedom))


def draw_noise(result: FitResult, generator: np.random.Generator) -> Float[np.ndarray, "n h w"]:
    """Draw Gaussian noise of the level that each fit left, in the kernels' unit.

    Args:
      result: fits, with weights if they had any: those are relative inverse variances. A tap of weight 0 gets
        no noise.
      generator: the source of the noise.

    Returns:
      An image for each kernel, float64 `[n, h, w]`.
    """
    level = np.asarray(result.noise, np.float64)[:, None, None]
    if result.weights is not None:
        weights = np.asarray(result.weights, np.float64)
        mean = weights.sum(axis=(1, 2)) / result.n_taps
        level = level * np.sqrt(mean[:, None, None] / np.where(weights > 0, weights, np.inf))
    return level * generator.standard_normal((len(result), *result.shape))


def _redraw(
    result: FitResult, family: Family, rows: np.ndarray, generator: np.random.Generator, config: FitConfig
) -> Coverage:
    import jax

    chosen = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], result)
    templates = chosen.templates().astype(np.float64)
    level = np.asarray(chosen.noise, np.float64)
    noisy = (templates + draw_noise(chosen, generator)).astype(chosen.r2.dtype)
    refit = fit_kernels(noisy, [family], weights=chosen.weights, config=config)
    kept = refit.status == Status.CONVERGED
    truth = np.asarray(chosen.parameters[family.name], np.float64)
    estimate = np.asarray(refit.parameters[family.name], np.float64)
    centered = templates - templates.mean(axis=(1, 2), keepdims=True)
    return Coverage(
        family,
        truth[kept],
        parameter_errors(family, estimate[kept], truth[kept]),
        refit.standard_errors()[family.name][kept],
        (np.sqrt((centered**2).sum(axis=(1, 2))) / level)[kept],
        int(np.median(chosen.n_taps)) - len(family.parameters),
        int(np.sum(refit.status == Status.AT_BOUND)),
        int(np.sum(~kept & (refit.status != Status.AT_BOUND))),
    )


def parameter_errors(
    family: Family, estimate: Float[np.ndarray, "m p"], truth: Float[np.ndarray, "m p"]
) -> Float[np.ndarray, "m p"]:
    """Compare reported parameters with the true ones.

    Args:
      family: whose parameters they are.
      estimate: as reported.
      truth: likewise.

    Returns:
      Differences, of that description of the estimate which is nearest to the truth: angles the short way
      round, and principal axes of like gains in either order.
    """
    error = estimate - truth
    if isinstance(family.model, CustomModel):
        return error
    at = {name: column for column, name in enumerate(family.names)}
    axis = family.model.order == 2
    if axis:
        # The two principal axes change names where their gains are of one size.
        first, second, theta = at["amplitude_1"], at["amplitude_2"], at["theta_rad"]
        other = estimate.copy()
        other[:, first], other[:, second] = estimate[:, second], estimate[:, first]
        other[:, theta] += math.pi / 2
        swapped = other - truth
        gains = [first, second]
        nearer = np.sum(swapped[:, gains] ** 2, axis=1) < np.sum(error[:, gains] ** 2, axis=1)
        error = np.where(nearer[:, None], swapped, error)
    for name, period in (("theta_rad", math.pi if axis else 2 * math.pi), ("phi_rad", math.pi)):
        if name in at:
            error[:, at[name]] = (error[:, at[name]] + period / 2) % period - period / 2
    return error
