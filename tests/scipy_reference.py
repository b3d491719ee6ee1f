"""Independent float64 reference for the fitter: dense multi-start bounded least squares in SciPy.

Shares no code with `dogfit`. Bounds as documented: centre within half the kernel of the middle,
0.3 <= sigma <= k, surround width 1.1 to 8 times the centre width (1.5 to 8 in tied families), surround weight
0 to 1, shears e1 and e2 within ±log 3. Offset and gains are solved for; the Jacobian of what is left is that
of Golub and Pereyra (SIAM J. Numer. Anal. 10, 1973).
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from scipy_families import REFERENCE_FAMILIES, bounds, columns, shape_of
from scipy_nodes import (
    NARROW,
    apart_in_space,
    best_nodes,
    center_line,
    geometric,
    grid,
    grid_energies,
    tap_line,
)

FEWER_OFFSETS = (-0.45, -0.2, 0.0, 0.2, 0.45, 0.5)  # for large kernels
DENSE_TAPS = 100  # in larger kernels elliptic starts are sheared round fits alone
SHEARS = [
    (0.0, 0.0),
    *((r * np.cos(a), r * np.sin(a)) for r in (0.4, 0.8, 1.09) for a in np.arange(8) * np.pi / 4),
]
CORNER_KAPPAS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.68, 0.76, 0.84, 0.92, 1.0)
CORNER_OFFSETS = np.union1d(np.arange(-10, 11) / 20, (-0.475, -0.025, 0.025, 0.475))
KAPPAS = (0.2, 0.5, 0.8, 1.0)
CORNER_STARTS = 8
FIRST_STEPS, FINALISTS = 10, 12
EFFORT = 1  # rises with every change that may find lower costs: points kept from before are then not used
STARTS = {"gaussian": 24, "d1": 24, "d2": 24, "dog": 64, "dog_d1": 64, "dog_d2": 64}


def factor(centred):
    """Left singular vectors `[..., taps, q]` of columns, and what turns them into the pseudo-inverse."""
    scale = np.linalg.norm(centred, axis=-2, keepdims=True)
    # A derivative whose support left the window is all rounding: it explains nothing.
    scale[scale == 0] = 1.0
    u, s, vt = np.linalg.svd(centred / scale, full_matrices=False)
    kept = s > 1e-10 * s[..., :1]
    inverse = np.divide(1, s, out=np.zeros_like(s), where=kept)
    return u * kept[..., None, :], vt.swapaxes(-1, -2) * inverse[..., None, :] / scale.swapaxes(-1, -2)


def orthonormal(columns):
    """Orthonormal basis of the centred columns (the offset is projected out), zero where they coincide."""
    return factor(columns[:, 1:] - columns[:, 1:].mean(axis=0))[0]


class Dense(NamedTuple):
    """Dictionary of elliptic nodes that share widths and shear."""

    nodes: np.ndarray
    bases: np.ndarray
    """Orthonormal, rows of zeros where columns coincide, `[nodes, q, taps]`."""


class Problem:
    """Projected residual of one kernel, and its Jacobian."""

    def __init__(self, reference, target):
        self.reference, self.target = reference, target
        self.at = self.found = None

    def look(self, x):
        """Residuals `[b, taps]` and Jacobians `[b, taps, p]` at points `[b, p]`."""
        r = self.reference
        value, slopes = columns(r.family, x, r.shape, r.profile)
        slopes = r.centred(slopes)
        u, inverse = factor(r.centred(value))
        projection = self.target @ u
        residual = self.target - np.einsum("btq,bq->bt", u, projection)
        gains = inverse @ projection[..., None]
        moved = (slopes @ gains[:, None])[..., 0]
        moved -= moved @ u @ u.swapaxes(1, 2)
        turned = np.einsum("bptq,bt->bpq", slopes, residual) @ inverse @ u.swapaxes(1, 2)
        return residual, -(moved + turned).swapaxes(1, 2)

    def look_at(self, x):
        if self.at is None or not np.array_equal(x, self.at):
            self.at, self.found = x.copy(), [part[0] for part in self.look(x[None])]
        return self.found

    def residual(self, x):
        return self.look_at(x)[0]

    def jacobian(self, x):
        return self.look_at(x)[1]


# Optima found in this process, by all that they depend on: engines are compared with the same ones.
OPTIMA: dict[tuple, tuple[float, np.ndarray]] = {}


class Reference:
    """Best bounded fit of one family at one kernel size."""

    def __init__(self, family, size, starts=None, *, profile="integrated", weights=None, low=None, high=None):
        self.family, self.shape, self.profile = family, shape_of(size), profile
        self.starts = starts or STARTS[family.removesuffix("_elliptic")]
        self.weights = np.ones(self.shape) if weights is None else np.asarray(weights, np.float64)
        self.root = np.sqrt(self.weights).ravel()
        default = bounds(family, size, profile)
        self.low = default[0] if low is None else np.asarray(low, np.float64)
        self.high = default[1] if high is None else np.asarray(high, np.float64)
        self.plain = family.removesuffix("_elliptic")

    @functools.cached_property
    def round(self):
        """The reference of the round family that an elliptic one extends."""
        box = {"low": self.low[:-2], "high": self.high[:-2]}
        return Reference(self.plain, self.shape, profile=self.profile, weights=self.weights, **box)

    @functools.cached_property
    def untied(self):
        """The reference of the single width that a tied family is without a surround."""
        box = {"low": self.low[:3], "high": self.high[:3]}
        name = self.plain.removeprefix("dog_")
        return Reference(name, self.shape, profile=self.profile, weights=self.weights, **box)

    @functools.cached_property
    def dense(self):
        return list(self.dense_groups()) if self.weights.size <= DENSE_TAPS else []

    @functools.cached_property
    def grids(self):
        return self.grids_of(self.settings())

    @functools.cached_property
    def corner(self):
        return self.grids_of(self.corner_settings())

    def grids_of(self, settings):
        return [grid(self.family, self.shape, self.profile, self.weights, *setting) for setting in settings]

    def corner_settings(self):
        """Narrow widths on a finer grid: functions change their shape there within hundredths of a tap."""
        family = REFERENCE_FAMILIES[self.family]
        if self.profile != "integrated" or self.low[2] > np.log(NARROW):
            return
        offsets = CORNER_OFFSETS if self.weights.size <= DENSE_TAPS else FEWER_OFFSETS
        lines = [tap_line(offsets, self.low[i], self.high[i], self.shape[1 - i]) for i in (0, 1)]
        tails = [()]
        if family.widths == 2:
            tails = [(min(self.low[3] + wider, self.high[3]),) for wider in (0.0, 0.25, 0.6, 1.2)]
        if family.tied:
            low, high = self.low[4], self.high[4]
            tails = [(*tail, low + kappa * (high - low)) for tail in tails for kappa in CORNER_KAPPAS]
        for wider, tail in itertools.product((0.0, 0.15), tails):
            yield (min(self.low[2] + wider, self.high[2]), *tail), lines

    def settings(self):
        """Settings of all but the centre, and the lines of centres for each."""
        spacing = 0.12 if self.profile == "discrete" else 0.33
        count = int(np.ceil((self.high[2] - self.low[2]) / spacing)) + 1
        family = REFERENCE_FAMILIES[self.family]
        order = 2 if family.widths == 2 else family.order
        for sigma in geometric(self.low[2], self.high[2], count):
            lines = [
                center_line(sigma, order, self.low[i], self.high[i], self.shape[1 - i], self.profile)
                for i in (0, 1)
            ]
            tails = [()]
            if family.widths == 2:
                tails = [(np.log(ratio),) for ratio in geometric(self.low[3], self.high[3], 6)]
            if family.tied:
                low, high = self.low[4], self.high[4]
                tails = [(*tail, low + kappa * (high - low)) for tail in tails for kappa in KAPPAS]
            for tail in tails:
                yield (np.log(sigma), *tail), lines

    def centred(self, columns):
        """Taps on the last axis but one."""
        mean = np.tensordot(columns, self.weights.ravel(), (-2, 0)) / self.weights.sum()
        return (columns - mean[..., None, :]) * self.root[:, None]

    def dense_groups(self):
        """Groups of elliptic nodes; several widths and shears, a line of centres along each axis."""
        family = REFERENCE_FAMILIES[self.family]
        rings = [(0.6, a) for a in np.arange(8) / 4] + [(1.05, a) for a in np.arange(16) / 8]
        shears = [(r * np.cos(np.pi * a), r * np.sin(np.pi * a)) for r, a in rings]
        for sigma in geometric(self.low[2], self.high[2], 7):
            step = np.clip(0.7 * sigma, 0.35, 1.5)
            counts = [int(np.ceil((self.high[i] - self.low[i]) / step)) + 1 for i in (0, 1)]
            lines = [np.linspace(self.low[i], self.high[i], counts[i]) for i in (0, 1)]
            for e in shears:
                tails = [()]
                if family.widths == 2:
                    tails = [(self.low[3] + wider,) for wider in (0.05, 0.5, 1.2)]
                if family.tied:
                    tails = [(*tail, kappa) for tail in tails for kappa in (0.5, 1.0)]
                for tail in tails:
                    yield self.dense_group(np.log(sigma), tail, e, lines)

    def dense_group(self, log_sigma, tail, e, lines):
        centers = itertools.product(*lines)
        nodes = np.array([(x, y, log_sigma, *tail, *e) for x, y in centers])
        value, _ = columns(self.family, nodes, self.shape, self.profile, slopes=False)
        bases = factor(self.centred(value))[0].swapaxes(1, 2)
        return Dense(nodes, bases.astype(np.float32))

    def candidates(self, target):
        """Starts that explain most, best first."""
        if self.family != self.plain:
            return self.elliptic_candidates(target)
        image = (self.root * target).reshape(self.shape)

        def ranked(grids, each):
            found = []
            for g in grids:
                apart = max(0.3, 0.5 * np.exp(g.tail[0]))
                found += best_nodes(g, grid_energies(g, image), each, apart)
            return [x for _, x in sorted(found, key=lambda item: -item[0])]

        starts = ranked(self.grids, 2)[: self.starts]
        for _, grids in itertools.groupby(self.corner, key=lambda g: g.tail[:2]):
            starts += apart_in_space(ranked(grids, 4), CORNER_STARTS)
        if REFERENCE_FAMILIES[self.family].tied:
            near = self.untied.approach(Problem(self.untied, target), self.untied.candidates(target))
            ratios = np.log(geometric(self.low[3], self.high[3], 3))
            starts += [[*x, ratio, self.low[4]] for x in distinct(near) for ratio in ratios]
        return np.array(starts)

    def elliptic_candidates(self, target):
        """Round fits under several shears, and the best of the dictionary."""
        found = []
        for group in self.dense:
            energies = np.sum((group.bases @ target.astype(np.float32)) ** 2, axis=1)
            best = int(energies.argmax())
            found.append((energies[best], group.nodes[best]))
        found = sorted(found, key=lambda item: -item[0])[: self.starts]
        problem, own = Problem(self.round, target), Problem(self, target)
        near = self.round.approach(problem, self.round.candidates(target))
        for start in distinct(near):
            sheared = [np.append(start, e) for e in SHEARS]
            energies = 1 - np.sum(own.look(np.array(sheared))[0] ** 2, axis=1)
            ranked = sorted(zip(energies, sheared, strict=True), key=lambda item: -item[0])
            found += [ranked[0], ranked[1], (energies[0], sheared[0])]
        return np.array([x for _, x in sorted(found, key=lambda item: -item[0])])

    @functools.cached_property
    def free(self):
        free = self.high > self.low
        return free & (np.arange(len(free)) > 1) if self.profile == "discrete" else free

    def approach(self, problem, starts):
        """(cost, search point) of each start after a few damped Gauss-Newton steps, all at once."""
        x = np.clip(starts, self.low, self.high)
        residual, jacobian = problem.look(x)
        cost, damping = np.sum(residual**2, axis=1), np.full(len(x), 0.01)
        for _ in range(FIRST_STEPS):
            slope = np.einsum("btp,bt->bp", jacobian, residual)
            held = ~self.free | ((x <= self.low) & (slope > 0)) | ((x >= self.high) & (slope < 0))
            slope[held] = 0
            curvature = jacobian.swapaxes(1, 2) @ jacobian
            curvature += (
                np.eye(x.shape[1]) * (damping[:, None] * np.einsum("bpp->bp", curvature) + 1e-10)[:, None]
            )
            curvature[held[:, None, :] | held[:, :, None]] = 0
            curvature += held[:, :, None] * np.eye(x.shape[1])
            step = -np.linalg.solve(curvature, slope[..., None])[..., 0]
            there = np.clip(x + np.clip(step, -0.7, 0.7), self.low, self.high)
            new_residual, new_jacobian = problem.look(there)
            new_cost = np.sum(new_residual**2, axis=1)
            better = new_cost < cost
            x[better], cost[better] = there[better], new_cost[better]
            residual[better], jacobian[better] = new_residual[better], new_jacobian[better]
            damping *= np.where(better, 0.2, 8.0)
        return list(zip(cost, x, strict=True))

    def climb(self, problem, start, method="trf"):
        """Cost and search point where `least_squares` stops."""
        full = np.where(self.high > self.low, start, self.low)

        def at(x):
            point = full.copy()
            point[self.free] = x
            return point

        low, high = self.low[self.free], self.high[self.free]
        inset = 1e-6 * (high - low) if method == "trf" else 0.0
        found = least_squares(
            lambda x: problem.residual(at(x)),
            np.clip(full[self.free], low + inset, high - inset),
            jac=lambda x: problem.jacobian(at(x))[:, self.free],
            bounds=(low, high),
            method=method,
            xtol=1e-10,
            ftol=1e-12,
            gtol=1e-10,
        )
        return 2 * found.cost, at(found.x)

    def normalised(self, kernel):
        """The kernel as `Problem` takes it, centred, weighted, of unit norm, and what its norm was."""
        w = self.centred(np.asarray(kernel, np.float64).reshape(-1, 1)).ravel()
        norm = np.linalg.norm(w)
        return w / norm, norm

    def cost_at(self, kernel, x):
        """(Weighted) squared error of `kernel` `[h, w]` at a search point."""
        target, norm = self.normalised(kernel)
        return np.sum(Problem(self, target).residual(x) ** 2) * norm**2

    def fit(self, kernel):
        """Least (weighted) squared error of `kernel` `[h, w]` about its mean, and its search point."""
        kernel = np.ascontiguousarray(kernel, np.float64)
        # Tests may have left out the elliptic nodes.
        without_nodes = vars(self).get("dense") == []
        arrays = (array.tobytes() for array in (kernel, self.weights, self.low, self.high))
        key = (self.family, self.shape, self.profile, self.starts, without_nodes, *arrays)
        if key not in OPTIMA:
            OPTIMA[key] = self.search(kernel)
        cost, point = OPTIMA[key]
        return cost, point.copy()

    def search(self, kernel):
        """What `fit` finds, searched for."""
        target, norm = self.normalised(kernel)
        problem = Problem(self, target)
        near = self.approach(problem, self.candidates(target))
        finals = [self.climb(problem, x) for x in distinct(near)]
        cost, x = min(finals, key=lambda item: item[0])
        # `trf` stays inside the bounds: where the best fit lies on one, go there.
        close = 1e-3 * (self.high - self.low)
        on_bound = np.where(x - self.low < close, self.low, np.where(self.high - x < close, self.high, x))
        cost, x = min((cost, x), self.climb(problem, on_bound, method="dogbox"), key=lambda item: item[0])
        return cost * norm**2, x


def distinct(found):
    """Search points of the best few that differ."""
    kept = []
    for cost, x in sorted(found, key=lambda item: item[0]):
        apart = all(np.abs(x - other).max() > 0.03 for _, other in kept)
        if not kept or (apart and len(kept) < FINALISTS and cost < 1.3 * kept[0][0] + 0.03):
            kept.append((cost, x))
    return [x for _, x in kept]
