"""What a fit returns: scores, parameters and status of every kernel, and what follows from them."""

import enum
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dogfit.families import FAMILY, at_bounds, render

if TYPE_CHECKING:
    import polars

# Rows rendered, or differentiated, at once.
_ROWS = 4096


class Status(enum.IntEnum):
    """What became of a row, or of one family of a row."""

    CONVERGED = 0
    MAX_STEPS = 1
    AT_BOUND = 2
    CONSTANT = 3
    NONFINITE = 4


MESSAGES = {
    Status.CONVERGED: "converged inside the bounds",
    Status.MAX_STEPS: "step limit reached; raise FitConfig.last_steps",
    Status.AT_BOUND: "converged with a width or the centre at its bound",
    Status.CONSTANT: "not fitted: all taps are equal, so there is no shape",
    Status.NONFINITE: "not fitted: the kernel holds NaN or infinity",
}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "family", "r2", "rmse", "status", "r2_by_family", "bic_by_family", "status_by_family",
        "parameters", "steps", "agreeing",
    ],
    meta_fields=["families", "omitted", "size"],
)  # fmt: skip
@dataclass(frozen=True)
class FitResult:
    """Fits of `n` kernels; `f` families, in the order of `families`. A pytree.

    From `fit_kernel` the arrays lack the first axis.
    """

    families: tuple[str, ...]
    """Families fitted."""
    omitted: tuple[tuple[str, str], ...]
    """Families asked for that this kernel size cannot identify, each with the reason."""
    size: int
    """Taps per side."""
    family: Int[Array, " n"]
    """Index of the chosen family (least BIC), -1 where the kernel was not fitted."""
    r2: Float[Array, " n"]
    """1 - SS_res / SS_tot about the kernel's mean, of the chosen family; NaN where not fitted."""
    rmse: Float[Array, " n"]
    """Root mean squared residual of the chosen family, in the kernel's unit."""
    status: Int[Array, " n"]
    """`Status` of the chosen family."""
    r2_by_family: Float[Array, "n f"]
    bic_by_family: Float[Array, "n f"]
    """Bayesian information criterion, `k² ln(SS_res / k²) + p ln k²`, up to the kernel's scale."""
    status_by_family: Int[Array, "n f"]
    parameters: dict[str, Float[Array, "n p"]]
    """Per family; names and units in `dogfit.families.FAMILY[name].parameters`."""
    steps: Int[Array, "n f"]
    """Model evaluations spent on each family."""
    agreeing: Int[Array, "n f"]
    """Starts that came within 1e-3 of the kernel's energy of the best."""

    def __len__(self) -> int:
        return len(self.family)

    def templates(self) -> np.ndarray:
        """Fitted images of the chosen families `[n, k, k]`, in the kernels' units; NaN where not fitted."""
        out = np.full((len(self), self.size, self.size), np.nan, np.asarray(self.r2).dtype)
        for rows, name in self._rows_by_family():
            parameters = np.asarray(self.parameters[name])[rows]
            out[rows] = _in_pieces(lambda p, name=name: _images(p, name=name, size=self.size), parameters)
        return out

    def standard_errors(self) -> dict[str, np.ndarray]:
        """Standard errors `[n, p]` of each family's parameters, for the kernels that chose it; else NaN.

        From the Jacobian at the optimum and the residual variance, `s² (J'J)^-1`, over the parameters
        that are not on a bound; those are NaN, as are the rows of a singular problem.
        """
        out = {name: np.full(np.shape(self.parameters[name]), np.nan) for name in self.families}
        for rows, name in self._rows_by_family():
            parameters = np.asarray(self.parameters[name])[rows]
            out[name][rows] = _standard_errors(name, parameters, np.asarray(self.rmse)[rows], self.size)
        return out

    def table(self) -> "polars.DataFrame":
        """One row per kernel: choice, scores, and the chosen family's parameters with standard errors.

        Parameters that the chosen family does not have are null.
        """
        import polars

        chosen = [*self.families, None]
        columns: dict[str, Any] = {
            "family": [chosen[i] for i in np.asarray(self.family)],
            "r2": np.asarray(self.r2),
            "rmse": np.asarray(self.rmse),
            "status": [Status(s).name.lower() for s in np.asarray(self.status)],
        }
        for i, name in enumerate(self.families):
            columns[f"r2_{name}"] = np.asarray(self.r2_by_family)[:, i]
        errors = self.standard_errors()
        names = dict.fromkeys(p.name for family in self.families for p in FAMILY[family].parameters)
        spread = {name: np.full((2, len(self)), np.nan) for name in names}
        for rows, family in self._rows_by_family():
            for i, parameter in enumerate(FAMILY[family].parameters):
                spread[parameter.name][0, rows] = np.asarray(self.parameters[family])[rows, i]
                spread[parameter.name][1, rows] = errors[family][rows, i]
        columns |= {name: values[0] for name, values in spread.items()}
        columns |= {f"{name}_stderr": values[1] for name, values in spread.items()}
        return polars.DataFrame(columns, nan_to_null=True)

    def _rows_by_family(self) -> Iterator[tuple[np.ndarray, str]]:
        for i, name in enumerate(self.families):
            rows = np.flatnonzero(np.asarray(self.family) == i)
            if rows.size:
                yield rows, name


def concatenate(results: Sequence[FitResult]) -> FitResult:
    """Join results of the same families and kernel size along the first axis."""
    if len({(r.families, r.omitted, r.size) for r in results}) != 1:
        raise ValueError(f"results to join must share families and kernel size, got {len(results)} results")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *results)


def _in_pieces(function: Any, parameters: np.ndarray) -> np.ndarray:
    """Apply a jitted function of `[_ROWS, p]` to any number of rows, padding the last piece."""
    out = []
    for i in range(0, len(parameters), _ROWS):
        piece = parameters[i : i + _ROWS]
        padded = np.concatenate([piece, np.repeat(piece[-1:], _ROWS - len(piece), axis=0)])
        out.append(np.asarray(function(jnp.asarray(padded)))[: len(piece)])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames=("name", "size"))
def _images(parameters: Float[Array, "n p"], name: str, size: int) -> Float[Array, "n k k"]:
    return render(FAMILY[name], parameters, size)


@functools.partial(jax.jit, static_argnames=("name", "size"))
def _jacobian(parameters: Float[Array, "n p"], name: str, size: int) -> Float[Array, "n t p"]:
    """Derivative of every tap by every reported parameter."""

    def image(row: Float[Array, " p"]) -> Float[Array, " t"]:
        return render(FAMILY[name], row[None], size).ravel()

    return jax.vmap(jax.jacfwd(image))(parameters)


def _standard_errors(name: str, parameters: np.ndarray, rmse: np.ndarray, size: int) -> np.ndarray:
    family, taps = FAMILY[name], size * size
    jacobian = _in_pieces(lambda p: _jacobian(p, name=name, size=size), parameters).astype(np.float64)
    free = ~at_bounds(family, parameters, size)
    jacobian = np.where(free[:, None, :], jacobian, 0.0)
    norm = np.linalg.norm(jacobian, axis=1)
    norm = np.where(norm > 0, norm, 1.0)
    unit = jacobian / norm[:, None, :]
    # Held parameters get a unit diagonal, so that one factorisation serves all rows.
    normal = unit.swapaxes(1, 2) @ unit + np.eye(len(family.parameters)) * ~free[:, :, None]
    values, vectors = np.linalg.eigh(normal)
    regular = values[:, 0] > 1e-10
    inverse = np.sum(vectors**2 / np.where(regular[:, None], values, 1.0)[:, None, :], axis=2)
    variance = rmse.astype(np.float64) ** 2 * taps / (taps - free.sum(axis=1))
    error = np.sqrt(variance[:, None] * inverse) / norm
    return np.where(free & regular[:, None], error, np.nan)
