"""Numba: Levenberg-Marquardt on the projected residual, one row at a time, all cores, float64.

No library's: what a careful user of Numba would write. Kaufman's Jacobian, Nielsen's damping, an early end
per row, nothing allocated inside the loop.
"""

import math
from collections.abc import Mapping

import numba
import numpy as np

from peers.common import FAMILIES, SIZE, bounds, from_free, normalised, to_free

MOST_STEPS, LEAST_GAIN = 50, 1e-6
_TAPS = SIZE * SIZE
_SCALE = 1 / math.sqrt(2 * math.pi)


@numba.njit(fastmath=True, inline="never")
def _value(u, kernel, middle, half, rows, columns, widths, lines, q, lower, weights, residual, sigma):
    """Residual energy at u; fills the orthonormal images `q`, the weights and the residual."""
    highest = lines.shape[2] - 1
    sigma[0] = math.exp(middle[2] + half[2] * math.sin(u[2]))
    if len(sigma) > 1:
        sigma[1] = sigma[0] * math.exp(middle[3] + half[3] * math.sin(u[3]))
    for width in range(len(sigma)):
        for axis in range(2):
            centre = middle[axis] + half[axis] * math.sin(u[axis])
            for edge in range(SIZE + 1):
                z = (edge - SIZE / 2 - centre) / sigma[width]
                two, one = 0.5 * math.erf(z * math.sqrt(0.5)), _SCALE * math.exp(-0.5 * z * z)
                for n in range(highest + 1):
                    if edge > 0:
                        lines[width, axis, n, edge - 1] += two
                    if edge < SIZE:
                        lines[width, axis, n, edge] = -two
                    two, one = one, -z * one - n * two
    residual[:] = kernel
    count = len(rows)
    for k in range(count):
        image = q[k]
        mean = 0.0
        for y in range(SIZE):
            factor = lines[widths[k], 1, rows[k], y]
            for x in range(SIZE):
                value = factor * lines[widths[k], 0, columns[k], x]
                image[SIZE * y + x] = value
                mean += value
        mean /= _TAPS
        before = 0.0
        for t in range(_TAPS):
            image[t] -= mean
            before += image[t] * image[t]
        for m in range(k):
            inner = 0.0
            for t in range(_TAPS):
                inner += q[m, t] * image[t]
            lower[k, m] = inner
            for t in range(_TAPS):
                image[t] -= inner * q[m, t]
        square = 0.0
        for t in range(_TAPS):
            square += image[t] * image[t]
        inverse = 1 / math.sqrt(square) if square > 1e-20 * before and square > 0 else 0.0
        lower[k, k] = inverse
        inner = 0.0
        for t in range(_TAPS):
            image[t] *= inverse
            inner += image[t] * residual[t]
        weights[k] = inner
        for t in range(_TAPS):
            residual[t] -= inner * image[t]
    for k in range(count - 1, -1, -1):
        for m in range(k + 1, count):
            weights[k] -= lower[m, k] * weights[m]
        weights[k] *= lower[k, k]
    energy = 0.0
    for t in range(_TAPS):
        energy += residual[t] * residual[t]
    return energy


@numba.njit(fastmath=True, inline="never")
def _slopes(u, half, rows, columns, widths, lines, q, weights, residual, sigma, slopes, normal, right):
    """Normal matrix and right-hand side of the step at the point last evaluated."""
    searched = len(u)
    slopes[:] = 0.0
    for k in range(len(rows)):
        w, i, j = widths[k], rows[k], columns[k]
        for y in range(SIZE):
            y0, y1, y2 = lines[w, 1, i, y], lines[w, 1, i + 1, y], lines[w, 1, i + 2, y]
            for x in range(SIZE):
                x0, x1, x2 = lines[w, 0, j, x], lines[w, 0, j + 1, x], lines[w, 0, j + 2, x]
                t = SIZE * y + x
                slopes[0, t] -= weights[k] / sigma[w] * y0 * x1
                slopes[1, t] -= weights[k] / sigma[w] * y1 * x0
                wider = weights[k] * (y2 * x0 + y0 * x2)
                slopes[2, t] += wider
                if w == 1:
                    slopes[3, t] += wider
    for a in range(searched):
        mean = slopes[a].sum() / _TAPS
        for t in range(_TAPS):
            slopes[a, t] -= mean
        for k in range(len(rows)):
            inner = 0.0
            for t in range(_TAPS):
                inner += q[k, t] * slopes[a, t]
            for t in range(_TAPS):
                slopes[a, t] -= inner * q[k, t]
        turn = half[a] * math.cos(u[a])
        right[a] = 0.0
        for t in range(_TAPS):
            slopes[a, t] *= turn
            right[a] += slopes[a, t] * residual[t]
        for b in range(a + 1):
            inner = 0.0
            for t in range(_TAPS):
                inner += slopes[a, t] * slopes[b, t]
            normal[a, b] = inner


@numba.njit(fastmath=True, inline="never")
def _solve(normal, right, damping, factor, step):
    """Step of the damped normal equations, by Cholesky; the gain it promises."""
    n = len(right)
    for i in range(n):
        for j in range(i + 1):
            value = normal[i, j] + (damping if i == j else 0.0)
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            factor[i, j] = math.sqrt(max(value, 1e-30)) if i == j else value / factor[j, j]
    for i in range(n):
        step[i] = right[i]
        for k in range(i):
            step[i] -= factor[i, k] * step[k]
        step[i] /= factor[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            step[i] -= factor[k, i] * step[k]
        step[i] /= factor[i, i]
    promised = 0.0
    for i in range(n):
        promised += step[i] * (damping * step[i] + right[i])
    return promised


@numba.njit(parallel=True, fastmath=True)
def _fit_rows(free, kernels, middle, half, rows, columns, widths):
    """Move every start `[s, n, p]` to its optimum."""
    starts, count, p = free.shape
    levels, most = widths.max() + 1, (rows + columns).max() + 3
    for item in numba.prange(count):
        lines = np.empty((levels, 2, most, SIZE))
        q, slopes = np.empty((len(rows), _TAPS)), np.empty((p, _TAPS))
        lower, normal, factor = np.zeros((3, 3)), np.zeros((p, p)), np.zeros((p, p))
        weights, sigma, residual = np.empty(len(rows)), np.empty(levels), np.empty(_TAPS)
        right, step, trial = np.empty(p), np.empty(p), np.empty(p)
        for s in range(starts):
            u, kernel = free[s, item], kernels[item]
            energy = _value(
                u, kernel, middle, half, rows, columns, widths, lines, q, lower, weights, residual, sigma
            )
            _slopes(u, half, rows, columns, widths, lines, q, weights, residual, sigma, slopes, normal, right)
            damping, growth = 1e-3, 2.0
            for _ in range(MOST_STEPS):
                promised = _solve(normal, right, damping, factor, step)
                for a in range(p):
                    trial[a] = u[a] + step[a]
                new = _value(
                    trial,
                    kernel,
                    middle,
                    half,
                    rows,
                    columns,
                    widths,
                    lines,
                    q,
                    lower,
                    weights,
                    residual,
                    sigma,
                )
                if new < energy:
                    agreement = (energy - new) / promised
                    damping *= max(1 / 3, 1 - (2 * agreement - 1) ** 3)
                    growth = 2.0
                    u[:] = trial
                    energy = new
                    _slopes(
                        u,
                        half,
                        rows,
                        columns,
                        widths,
                        lines,
                        q,
                        weights,
                        residual,
                        sigma,
                        slopes,
                        normal,
                        right,
                    )
                else:
                    damping *= growth
                    growth *= 2.0
                if promised < LEAST_GAIN:
                    break


class Numba:
    """Levenberg-Marquardt compiled by Numba."""

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`."""
        images = normalised(kernels).reshape(len(kernels), -1)
        found = {}
        for family in FAMILIES:
            low, high = bounds(family)
            free = to_free(family, starts[family.name])
            rows, columns = (np.array([pair[a] for pair in family.orders]) for a in (0, 1))
            widths = np.array(family.widths)
            _fit_rows(free, images, (low + high) / 2, (high - low) / 2, rows, columns, widths)
            found[family.name] = from_free(family, free)
        return found
