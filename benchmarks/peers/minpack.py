"""SciPy and lmfit: MINPACK's Levenberg-Marquardt on the projected residual, with its analytic Jacobian.

`leastsq` on variable projection is the fastest of SciPy's ways here: `least_squares(method="lm")` adds
overhead, bounded `trf` is several times slower, and the full problem (weights and offset as parameters) takes
a quarter less time per start but needs several times the starts, and on the DoG never reaches the share.
"""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import leastsq
from scipy.special import ndtr

from peers.common import FAMILIES, SIZE, Family, bounds, from_free, normalised, to_free

# Tighter ones take longer and find no more optima; looser ones need more starts.
TOLERANCE, MOST_EVALUATIONS = 1e-4, 100
_EDGES = np.arange(SIZE + 1) - SIZE / 2


class Projected:
    """Residual of one kernel after the best weights and offset, and its Jacobian (Kaufman's)."""

    def __init__(self, family: Family, kernel: np.ndarray) -> None:
        self.order = family.order
        self.rows, self.columns = (np.array([pair[a] for pair in family.orders]) for a in (0, 1))
        self.widths = np.array(family.widths)
        self.two_widths = family.two_widths
        self.kernel = kernel.ravel()
        self.point = np.full(3 + family.two_widths, np.nan)

    def residual(self, point: np.ndarray) -> np.ndarray:
        """Model less kernel `[49]`; keeps what the Jacobian at the same point needs."""
        self.point = point.copy()
        sigma = np.exp(point[2])
        self.sigma = np.array([sigma, sigma * np.exp(point[3])]) if self.two_widths else np.array([sigma])
        z = (_EDGES - point[:2, None])[None] / self.sigma[:, None, None]
        edges = [ndtr(z), np.exp(-0.5 * z * z) * (1 / np.sqrt(2 * np.pi))]
        for n in range(1, self.order + 2):
            edges.append(-z * edges[n] - (n - 1) * edges[n - 1])
        stacked = np.stack(edges, axis=2)
        self.lines = stacked[..., 1:] - stacked[..., :-1]  # [width, axis, order, tap]
        along_y, along_x = (self.lines[self.widths, a, o] for a, o in ((1, self.rows), (0, self.columns)))
        images = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(self.rows), -1)
        images -= images.mean(axis=1, keepdims=True)
        norm = np.sqrt((images * images).sum(axis=1))
        self.scale = 1 / np.where(norm > 0, norm, 1.0)
        self.images = images * self.scale[:, None]
        gram = self.images @ self.images.T + 1e-13 * np.eye(len(images))
        self.inverse = np.linalg.inv(gram) if len(images) > 1 else 1 / gram
        self.weights = self.inverse @ (self.images @ self.kernel)
        return self.weights @ self.images - self.kernel

    def jacobian(self, point: np.ndarray) -> np.ndarray:
        """Derivative of the residual by the point, `[p, 49]`."""
        if not np.array_equal(point, self.point):
            self.residual(point)
        order, weights = self.order, self.weights * self.scale
        by_x = by_y = by_width = wide = np.zeros((SIZE, SIZE))
        for width, sigma in enumerate(self.sigma):
            mine = self.widths == width
            mixed = np.zeros((order + 1, order + 1))
            mixed[self.rows[mine], self.columns[mine]] = weights[mine]
            x, y = self.lines[width]
            from_x, from_y = mixed @ x[: order + 1], y[: order + 1].T @ mixed
            by_x = by_x - from_y @ x[1 : order + 2] / sigma
            by_y = by_y - y[1 : order + 2].T @ from_x / sigma
            # By the heat equation the derivative by log sigma is the Laplacian.
            wide = y[2 : order + 3].T @ from_x + from_y @ x[2 : order + 3]
            by_width = by_width + wide
        slopes = np.stack([by_x, by_y, by_width, wide][: len(point)]).reshape(len(point), -1)
        slopes -= slopes.mean(axis=1, keepdims=True)
        return slopes - slopes @ self.images.T @ self.inverse @ self.images


class Scipy:
    """`scipy.optimize.leastsq`; bounds by the sine transform."""

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`."""
        unit = normalised(kernels)
        found = {}
        for family in FAMILIES:
            low, high = bounds(family)
            middle, half = (low + high) / 2, (high - low) / 2
            free = to_free(family, starts[family.name])
            for i, kernel in enumerate(unit):
                problem = Projected(family, kernel)

                def residual(u, problem=problem, middle=middle, half=half):
                    return problem.residual(middle + half * np.sin(u))

                def jacobian(u, problem=problem, middle=middle, half=half):
                    return problem.jacobian(middle + half * np.sin(u)) * (half * np.cos(u))[:, None]

                for start in free[:, i]:
                    start[:] = leastsq(
                        residual,
                        start,
                        Dfun=jacobian,
                        col_deriv=True,
                        ftol=TOLERANCE,
                        xtol=TOLERANCE,
                        maxfev=MOST_EVALUATIONS,
                        full_output=True,
                    )[0]
            found[family.name] = from_free(family, free)
        return found


class Lmfit:
    """`lmfit.Minimizer.leastsq`, which makes the same transform of its bounds."""

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`."""
        from lmfit import Minimizer, Parameters

        unit = normalised(kernels)
        found = {}
        for family in FAMILIES:
            low, high = bounds(family)
            names = ("x0", "y0", "log_sigma", "log_ratio")[: len(low)]
            points = from_free(family, to_free(family, starts[family.name]))
            for i, kernel in enumerate(unit):
                problem = Projected(family, kernel)

                def values(parameters, names=names):
                    return np.array([parameters[name].value for name in names])

                def residual(parameters, problem=problem, values=values):
                    return problem.residual(values(parameters))

                def jacobian(parameters, problem=problem, values=values):
                    return problem.jacobian(values(parameters))

                for start in points[:, i]:
                    parameters = Parameters()
                    for name, value, least, greatest in zip(names, start, low, high, strict=True):
                        parameters.add(name, value=value, min=least, max=greatest)
                    fit = Minimizer(residual, parameters, calc_covar=False).leastsq(
                        Dfun=jacobian,
                        col_deriv=True,
                        ftol=TOLERANCE,
                        xtol=TOLERANCE,
                        max_nfev=MOST_EVALUATIONS,
                    )
                    start[:] = values(fit.params)
            found[family.name] = points
        return found
