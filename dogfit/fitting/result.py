"""Results of a fit: scores, parameters and status of every kernel, and what follows from them."""

import enum
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dogfit.fitting.families import Family, render, split_units, with_profile
from dogfit.fitting.padding import map_padded_rows
from dogfit.fitting.standard_errors import standard_errors

if TYPE_CHECKING:
    import polars


class Status(enum.IntEnum):
    """Outcome for a row, or for one family of a row."""

    CONVERGED = 0
    """Inside the bounds."""
    MAX_STEPS = 1
    """Step limit reached: raise `FitConfig.steps`."""
    AT_BOUND = 2
    """Converged with a width or the centre at its bound."""
    CONSTANT = 3
    """Not fitted: all taps are equal, so there is no shape."""
    NONFINITE = 4
    """Not fitted: the kernel holds NaN or infinity."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "family", "r2", "rmse", "status", "r2_by_family", "score_by_family", "status_by_family",
        "parameters", "at_bound", "predicted_gain", "steps", "n_agreeing", "weights", "fixed",
    ],
    meta_fields=["families", "unidentifiable", "shape", "profile", "criterion"],
)  # fmt: skip
@dataclass(frozen=True)
class FitResult:
    """Fits of `n` kernels; `f` families, in the order of `families`. A pytree.

    From `fit_kernel` the arrays lack the first axis; all that follows from them, such as `table()` and
    `templates()`, is that of a batch of one. `result[2:5]`, `result[mask]` and `result[numbers]` are the fits
    of some kernels, `result[2]` is that of one.
    """

    families: tuple[Family, ...]
    """Families fitted."""
    unidentifiable: tuple[tuple[str, str], ...]
    """Families asked for that this kernel shape cannot identify, each with the reason."""
    shape: tuple[int, int]
    """Taps along y and x."""
    profile: str
    """How functions became taps; see `FitConfig`."""
    criterion: str
    """Criterion that chose among the families; see `FitConfig`."""
    family: Int[Array, " n"]
    """Index of the chosen family (least score), -1 where the kernel was not fitted."""
    r2: Float[Array, " n"]
    """1 - SS_res / SS_tot about the kernel's mean, of the chosen family; NaN where not fitted."""
    rmse: Float[Array, " n"]
    """Root mean squared residual of the chosen family, in the kernel's unit."""
    status: Int[Array, " n"]
    """`Status` of the chosen family."""
    r2_by_family: Float[Array, "n f"]
    score_by_family: Float[Array, "n f"]
    """The criterion, less is better: for N taps and p parameters `N ln(SS_res / N) + p ln N` (bic),
    `N ln(SS_res / N) + 2 (p + 1) N / (N - p - 2)` (aicc), or `N ln(SS_cv / N)` with each tap's error when
    predicted from the others (cv); SS as a share of the kernel's energy about its mean."""
    status_by_family: Int[Array, "n f"]
    parameters: dict[str, Float[Array, "n p"]]
    """Per family; names and units in `dogfit.fitting.families.BUILTIN_FAMILIES[name].parameters`. Float64,
    like `rmse`, if the kernels were of a type with more digits than float32: room for a large offset."""
    at_bound: dict[str, Bool[Array, "n s"]]
    """Per family, which search parameters (`Family.model.names`) sit on a bound."""
    predicted_gain: Float[Array, "n f"]
    """Share of the kernel's energy that one more step promised: how far from an optimum."""
    steps: Int[Array, "n f"]
    """Model evaluations spent on each family."""
    n_agreeing: Int[Array, "n f"]
    """Starts that came within 1e-3 of the kernel's energy of the best."""
    weights: Float[Array, "n h w"] | None
    """Weights of taps, where they were given or taps were masked."""
    fixed: dict[str, Bool[Array, "n s"]] = field(default_factory=dict)
    """Per family with bounds of the caller's own, which search parameters these fix at one value."""

    @property
    def family_names(self) -> tuple[str, ...]:
        """Names of the families fitted."""
        return tuple(family.name for family in self.families)

    @property
    def size(self) -> int:
        """Taps per side of square kernels."""
        height, width = self.shape
        if height != width:
            raise ValueError(f"kernels of shape {self.shape} have no single size; use shape")
        return height

    @property
    def evidence_ratio(self) -> np.ndarray:
        """Ratio of evidence for the chosen family to that for the next `[n]`: exp of half the difference of
        scores.

        With BIC about the Bayes factor, with AICc the ratio of Akaike weights. Residuals below what the
        search can tell from none count alike, so that among families that all fit exactly only the numbers
        of parameters speak. Infinite if only one family was fitted, NaN for kernels that were not.
        """
        scores = np.sort(np.asarray(self.score_by_family, np.float64), axis=-1)
        if scores.shape[-1] == 1:
            return np.where(np.isnan(scores[..., 0]), np.nan, np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.minimum(np.exp((scores[..., 1] - scores[..., 0]) / 2), np.finfo(np.float64).max)

    @property
    def noise(self) -> np.ndarray:
        """Noise level `[n]` in the kernel's unit: the residual over the degrees of freedom left."""
        taps = self.n_taps
        spent = np.array([len(family.parameters) for family in self.families])[np.asarray(self.family)]
        return np.asarray(self.rmse) * np.sqrt(taps / np.maximum(taps - spent, 1))

    @property
    def n_taps(self) -> Int[np.ndarray, " n"]:
        """Number of taps that count: all, or those that have weight, at least 1."""
        if self.weights is None:
            return np.full(np.shape(self.rmse), self.shape[0] * self.shape[1])
        return np.maximum(np.sum(np.asarray(self.weights) > 0, axis=(-2, -1)), 1)

    def __len__(self) -> int:
        return len(self.family) if np.ndim(self.family) else 1

    def __getitem__(self, rows: Any) -> Self:
        """Select the fits of some kernels, by their number, a slice, a mask or an array of numbers."""
        chosen: Any = rows
        if not isinstance(rows, slice):
            chosen = np.asarray(rows, None if np.size(rows) else np.intp)
            if chosen.ndim > 1 or chosen.dtype.kind not in "biu":
                raise TypeError(
                    "fits are selected by a number, a slice, a mask [n] or an array of numbers, "
                    f"got {type(rows).__name__}"
                )
        return jax.tree.map(lambda leaf: np.asarray(leaf)[chosen], self.as_batch())

    def templates(self) -> np.ndarray:
        """Draw the fitted images of the chosen families.

        Returns:
          Images `[n, h, w]` in the kernels' unit; NaN where not fitted.
        """
        batch = self.as_batch()
        dtype = np.result_type(np.asarray(batch.r2).dtype, *map(np.asarray, batch.parameters.values()))
        out = np.full((len(batch), *self.shape), np.nan, dtype)
        for rows, family in batch._rows_by_family():
            draw = functools.partial(_images, family=family, shape=self.shape)
            parameters = np.asarray(batch.parameters[family.name])[rows]
            if dtype == np.asarray(batch.r2).dtype:
                out[rows] = map_padded_rows(draw, parameters)
                continue
            # Drawn in the precision of the fit, which has no digits to spare for the offset.
            plain, offset, power = split_units(family, parameters)
            images = map_padded_rows(draw, plain.astype(batch.r2.dtype)).astype(dtype)
            out[rows] = np.ldexp(images, power[:, None, None]) + offset[:, None, None]
        return out

    def standard_errors(self) -> dict[str, np.ndarray]:
        """Estimate standard errors of the parameters of the chosen families.

        From the Jacobian at the optimum and the residual variance, `s² (J'J)^-1`, over the parameters that
        are not on a bound. NaN for those on a bound and for those that would move if these could: beside a
        width on its bound, all but the place and the angles. NaN too in the rows of a singular problem.
        Parameters that the caller fixed count as known. Compiles once per family, for seconds.

        Returns:
          Errors `[n, p]` by family, in the order and units of its parameters; NaN for the kernels that chose
          another.

        Example:
          >>> import numpy as np
          >>> import dogfit
          >>> y, x = np.mgrid[-2:3, -2:3]
          >>> noise = np.random.default_rng(0).normal(size=(1, 5, 5))
          >>> fit = dogfit.fit_kernels(np.exp(-(x**2 + y**2) / 2) + 0.05 * noise, ["gaussian", "d1"])
          >>> error = dict(zip(fit.families[0].names, fit.standard_errors()["gaussian"][0]))
          >>> print(f"center ± {error['x0_px']:.2f} taps")
          center ± 0.04 taps
        """
        batch = self.as_batch()
        out = {
            family.name: np.full(np.shape(batch.parameters[family.name]), np.nan) for family in self.families
        }
        taps = batch.n_taps
        for rows, family in batch._rows_by_family():
            weights = None if batch.weights is None else np.asarray(batch.weights)[rows]
            at_bound = np.asarray(batch.at_bound[family.name])[rows]
            fixed = batch.fixed.get(family.name)
            out[family.name][rows] = standard_errors(
                family,
                np.asarray(batch.parameters[family.name])[rows],
                at_bound,
                np.asarray(batch.rmse, np.float64)[rows] * np.sqrt(taps[rows]),
                self.shape,
                weights,
                np.zeros_like(at_bound) if fixed is None else np.asarray(fixed)[rows],
            )
        return out

    def table(self) -> "polars.DataFrame":
        """Put choice, scores, and the chosen family's parameters with standard errors in a table.

        Returns:
          A row for each kernel. Parameters that the chosen family does not have are null.
        """
        import polars

        batch = self.as_batch()
        chosen = np.array([*self.family_names, None], dtype=object)
        statuses = np.array([status.name.lower() for status in Status], dtype=object)
        columns: dict[str, Any] = {
            "family": polars.Series(chosen[np.asarray(batch.family)].tolist(), dtype=polars.String),
            "r2": np.asarray(batch.r2),
            "rmse": np.asarray(batch.rmse),
            "status": polars.Series(statuses[np.asarray(batch.status)].tolist(), dtype=polars.String),
        }
        for i, name in enumerate(self.family_names):
            columns[f"r2_{name}"] = np.asarray(batch.r2_by_family)[:, i]
        errors = batch.standard_errors()
        names = dict.fromkeys(name for family in self.families for name in family.names)
        spread = {name: np.full((2, len(batch)), np.nan) for name in names}
        for rows, family in batch._rows_by_family():
            for i, name in enumerate(family.names):
                spread[name][0, rows] = np.asarray(batch.parameters[family.name])[rows, i]
                spread[name][1, rows] = errors[family.name][rows, i]
        columns |= {name: values[0] for name, values in spread.items()}
        columns |= {f"{name}_stderr": values[1] for name, values in spread.items()}
        return polars.DataFrame(columns, nan_to_null=True)

    def blank_unfitted(self, xp: Any = np) -> Self:
        """Put NaN in the place of what the program found for kernels that were not fitted.

        Args:
          xp: NumPy or `jax.numpy`, whichever the arrays are of.

        Returns:
          The fits, with `r2`, `rmse`, scores and parameters that are NaN where `family` is -1.
        """
        fitted = self.family >= 0

        def blank(values: Any) -> Any:
            return xp.where(fitted.reshape(-1, *[1] * (values.ndim - 1)), values, xp.nan)

        return replace(
            self,
            r2=blank(self.r2),
            rmse=blank(self.rmse),
            r2_by_family=blank(self.r2_by_family),
            score_by_family=blank(self.score_by_family),
            parameters={name: blank(values) for name, values in self.parameters.items()},
        )

    def as_batch(self) -> Self:
        """Give the fit of one kernel the first axis that it lacks.

        Returns:
          Fits with a row for each kernel: these, or a batch of one.

        Raises:
          ValueError: if there is more than one axis of kernels.
        """
        axes = np.ndim(self.family)
        if axes > 1:
            shape = ", ".join(map(str, np.shape(self.family)))
            raise ValueError(
                f"fits with batch axes [{shape}] have no rows; flatten them first: "
                f"jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[{axes}:]), fit)"
            )
        return self if axes else jax.tree.map(lambda leaf: np.asarray(leaf)[None], self)

    def _rows_by_family(self) -> Iterator[tuple[np.ndarray, Family]]:
        for i, family in enumerate(self.families):
            rows = np.flatnonzero(np.asarray(self.family) == i)
            if rows.size:
                yield rows, with_profile(family, self.profile)


def concatenate(results: Sequence[FitResult]) -> FitResult:
    """Join results of the same families and kernel shape along the first axis."""
    if len({(r.families, r.unidentifiable, r.shape, r.profile, r.criterion) for r in results}) != 1:
        raise ValueError(f"results to join must share families and kernel size, got {len(results)} results")
    if len({r.weights is None for r in results}) > 1:
        # Of some blocks taps were masked, of others none.
        results = [r if r.weights is not None else replace(r, weights=_equal_weights(r)) for r in results]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


def _equal_weights(result: FitResult) -> Float[np.ndarray, "n h w"]:
    return np.ones((len(result), *result.shape), np.asarray(result.r2).dtype)


@functools.partial(jax.jit, static_argnames=("family", "shape"))
def _images(parameters: Float[Array, "n p"], family: Family, shape: tuple[int, int]) -> Float[Array, "n h w"]:
    return render(family, parameters, shape)
