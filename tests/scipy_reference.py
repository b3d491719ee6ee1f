"""Independent float64 reference for the fitter: dense multi-start bounded least squares in SciPy.

Shares no code with `dogfit`. Bounds as documented: centre within ±k/2 of the middle,
0.3 <= sigma <= k, surround width 1.1 to 8 times the centre width.
"""

import itertools

import numpy as np
from scipy.optimize import least_squares
from scipy.special import erf

SEARCHED = {"gaussian": 3, "dog": 4, "d1": 3, "d2": 3}


def profiles(center, sigma, size):
    """Orders 0, 1, 2 of a 1-D Gaussian integrated over each tap, `[3, size]`."""
    edges = np.arange(size + 1) - size / 2 - center
    z = edges / sigma
    cdf = 0.5 * erf(z / np.sqrt(2))
    pdf = np.exp(-0.5 * z**2) / (np.sqrt(2 * np.pi) * sigma)
    return np.stack([np.diff(cdf), np.diff(pdf), np.diff(-z / sigma * pdf)])


def basis(family, x, size):
    """Columns that are solved for linearly, offset included, `[size * size, q]`."""
    x0, y0, log_sigma = x[:3]
    sigma = np.exp(log_sigma)
    px, py = profiles(x0, sigma, size), profiles(y0, sigma, size)

    def image(order_x, order_y):
        return np.outer(py[order_y], px[order_x]).ravel()

    columns = [np.ones(size * size)]
    if family == "d1":
        columns += [image(1, 0), image(0, 1)]
    elif family == "d2":
        columns += [image(2, 0), image(1, 1), image(0, 2)]
    else:
        columns += [image(0, 0)]
    if family == "dog":
        wide = sigma * np.exp(x[3])
        columns += [np.outer(profiles(y0, wide, size)[0], profiles(x0, wide, size)[0]).ravel()]
    return np.stack(columns, axis=1)


def orthonormal(columns):
    """Orthonormal basis of the centred columns (the offset is projected out)."""
    centred = columns[:, 1:] - columns[:, 1:].mean(axis=0)
    scale = np.linalg.norm(centred, axis=0)
    # A derivative whose support left the window is all rounding: it explains nothing.
    scale[scale == 0] = 1.0
    u, s, _ = np.linalg.svd(centred / scale, full_matrices=False)
    return u[:, s > 1e-10 * s[0]]


def bounds(family, size):
    low, high = [-size / 2, -size / 2, np.log(0.3)], [size / 2, size / 2, np.log(size)]
    if family == "dog":
        low, high = [*low, np.log(1.1)], [*high, np.log(8.0)]
    return np.array(low), np.array(high)


def dense_nodes(family, size, widths=10):
    """Search points on a dense grid, a list per start group, each `[m, p]`."""
    groups = []
    for sigma in np.geomspace(0.31, 0.9 * size, widths):
        step = np.clip(0.5 * sigma, 0.25, 1.5)
        line = np.arange(-size / 2, size / 2 + 1e-9, step)
        line = line - line.mean()
        ratios = (1.15, 1.5, 2.2, 3.5, 7.0) if family == "dog" else (None,)
        for ratio in ratios:
            tail = () if ratio is None else (np.log(ratio),)
            groups.append(np.array([(x, y, np.log(sigma), *tail) for x, y in itertools.product(line, line)]))
    return groups


class Reference:
    """Best bounded fit of one family at one kernel size."""

    def __init__(self, family, size, starts=12):
        self.family, self.size, self.starts = family, size, starts
        self.low, self.high = bounds(family, size)
        self.groups = dense_nodes(family, size)
        self.bases = []
        for nodes in self.groups:
            stack = np.zeros((len(nodes), SEARCHED_COLUMNS[family], size * size))
            for row, node in zip(stack, nodes, strict=True):
                q = orthonormal(basis(family, node, size)).T
                row[: len(q)] = q
            self.bases.append(stack)

    def residual(self, x, kernel):
        q = orthonormal(basis(self.family, x, self.size))
        return kernel - q @ (q.T @ kernel)

    def fit(self, kernel):
        """Lowest sum of squared residuals of `kernel` `[k, k]` after centring, and its parameters."""
        w = np.asarray(kernel, np.float64).ravel()
        w = w - w.mean()
        scale = np.linalg.norm(w)
        w = w / scale
        candidates = []
        for nodes, stack in zip(self.groups, self.bases, strict=True):
            energy = ((stack @ w) ** 2).sum(axis=1)
            best = int(energy.argmax())
            candidates.append((energy[best], nodes[best]))
        candidates.sort(key=lambda item: -item[0])
        best_cost, best_x = np.inf, None
        for _, node in candidates[: self.starts]:
            start = np.clip(node, self.low + 1e-6, self.high - 1e-6)
            found = least_squares(
                self.residual,
                start,
                args=(w,),
                bounds=(self.low, self.high),
                xtol=1e-10,
                ftol=1e-12,
                gtol=1e-10,
            )
            if 2 * found.cost < best_cost:
                best_cost, best_x = 2 * found.cost, found.x
        return best_cost * scale**2, best_x


SEARCHED_COLUMNS = {"gaussian": 1, "dog": 2, "d1": 2, "d2": 3}


def draw(family, size, x0=0.0, y0=0.0, sigma=1.0, gains=(1.0,), theta=0.0, offset=0.0, surround=None):
    """Image of a family `[size, size]`, row = y down, by Gauss-Legendre quadrature over each tap.

    Evaluates the textbook formula in turned coordinates, `theta` from +x towards +y; gains multiply
    `sigma**n` times the n-th derivative of the unit-mass Gaussian.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    taps = np.arange(size) - (size - 1) / 2
    line = taps[:, None] + nodes / 2
    y, x = line[:, :, None, None] - y0, line[None, None] - x0

    def gaussian(width):
        return np.exp(-(x**2 + y**2) / (2 * width**2)) / (2 * np.pi * width**2)

    along, across = (
        (np.cos(theta) * x + np.sin(theta) * y) / sigma,
        (np.cos(theta) * y - np.sin(theta) * x) / sigma,
    )
    if family == "gaussian":
        density = gains[0] * gaussian(sigma)
    elif family == "dog":
        density = gains[0] * gaussian(sigma) + gains[1] * gaussian(surround)
    elif family == "d1":
        density = -gains[0] * along * gaussian(sigma)
    else:
        density = (gains[0] * (along**2 - 1) + gains[1] * (across**2 - 1)) * gaussian(sigma)
    return offset + np.einsum("ymxn,m,n->yx", density, weights / 2, weights / 2)
