"""Model images of the families and profiles in float64, and their derivatives, for `scipy_reference`.

Shares no code with `dogfit`. Search points hold x0, y0, log sigma[, log ratio][, kappa][, e1, e2].
Derivatives by widths come from the heat equation: the derivative of a Gaussian by its covariance is half its
second derivative in space; differences of the discrete Gaussian obey the same.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.linalg import expm
from scipy.special import erf, ive

PROFILES = ("integrated", "sampled", "discrete")
SAMPLED_SIGMA = 0.6  # sampled derivatives of narrower Gaussians are three free numbers
SHEAR = np.log(3.0)


class Family(NamedTuple):
    order: int
    widths: int = 1
    tied: bool = False
    elliptic: bool = False

    @property
    def terms(self):
        """Orders along x and y of the columns of one width."""
        return [(self.order - j, j) for j in range(self.order + 1)]

    @property
    def columns(self):
        return len(self.terms) * (1 if self.tied else self.widths)


PLAIN = {
    "gaussian": Family(0),
    "dog": Family(0, widths=2),
    "d1": Family(1),
    "d2": Family(2),
    "dog_d1": Family(1, widths=2, tied=True),
    "dog_d2": Family(2, widths=2, tied=True),
}
REFERENCE_FAMILIES = PLAIN | {
    f"{name}_elliptic": family._replace(elliptic=True) for name, family in PLAIN.items()
}


def shape_of(size):
    return (size, size) if np.isscalar(size) else tuple(size)


def scaled_profiles(center, sigma, size, orders, profile="integrated"):
    """sigma**n times the n-th derivative of 1-D unit-mass Gaussians at each tap, `[orders, ..., size]`."""
    center, sigma = np.asarray(center, np.float64)[..., None], np.asarray(sigma, np.float64)[..., None]
    if profile == "discrete":
        stencil = np.stack([stencils(c, size, orders) for c in center.ravel()])
        smooth = ive(np.arange(stencil.shape[-1]), sigma**2).reshape(len(stencil), 1, -1, 1)
        out = np.moveaxis((stencil @ smooth)[..., 0], 1, 0).reshape(orders, *center.shape[:-1], size)
        return out * np.stack([sigma**n for n in range(orders)])
    integrated = profile == "integrated"
    points = np.arange(size + 1) - size / 2 if integrated else np.arange(size) - (size - 1) / 2
    z = (points - center) / sigma
    pdf = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    derivatives = [pdf, -z * pdf]
    while len(derivatives) < orders:
        derivatives.append(-z * derivatives[-1] - (len(derivatives) - 1) * derivatives[-2])
    if integrated:
        return np.diff(np.stack([0.5 * erf(z / np.sqrt(2)), *derivatives[: orders - 1]]))
    return np.stack(derivatives[:orders]) / sigma


@functools.lru_cache(maxsize=4096)
def stencils(center, size, orders):
    """Differences of exp(-s) I_m(s) for a centre on a tap or halfway between two, `[orders, size, m]`.

    Plain differences where their parity puts them on the taps; the average of the two neighbours elsewhere.
    """
    out = np.zeros((orders, size, size + orders + 2))
    for order in range(orders):
        stencil = np.ones(1)
        for _ in range(order):
            stencil = np.convolve(stencil, [1.0, -1.0])
        distance = np.arange(size) - (size - 1) / 2 - center
        if (2 * distance[0] + order) % 2:
            stencil = np.convolve(stencil, [0.5, 0.5])
        for tap, x in enumerate(distance):
            for j, weight in enumerate(stencil):
                out[order, tap, round(abs(x + (len(stencil) - 1) / 2 - j))] += weight
    return out


def profiles(center, sigma, size):
    """Orders 0, 1, 2 of a 1-D Gaussian integrated over each tap, `[3, size]`."""
    return scaled_profiles(center, sigma, size, 3) / sigma ** np.arange(3)[:, None]


def shear_matrix(e):
    """expm(e1 Z + e2 X) and its derivatives by e1 and e2, `[3, 2, 2]`."""
    squared = e[0] ** 2 + e[1] ** 2
    r = np.sqrt(squared)
    ratio = np.sinh(r) / r if r > 1e-4 else 1 + squared / 6
    slope = (np.cosh(r) - ratio) / squared if r > 1e-2 else 1 / 3 + squared / 30
    z, x, one = np.array([[1.0, 0], [0, -1]]), np.array([[0, 1.0], [1, 0]]), np.eye(2)
    generator = e[0] * z + e[1] * x
    by_e = [ei * (ratio * one + slope * generator) + ratio * b for ei, b in zip(e, (z, x), strict=True)]
    return np.stack([np.cosh(r) * one + ratio * generator, *by_e])


def pure_derivatives(along, across, precision, count):
    """d^n/dx^n, n < count, of a bivariate Gaussian of unit determinant, `[count, ...]`."""
    (kxx, kxy), (_, kyy) = precision
    p = -(kxx * along + kxy * across)
    density = np.exp(-0.5 * (kxx * along**2 + 2 * kxy * along * across + kyy * across**2)) / (2 * np.pi)
    out = [density, p * density]
    while len(out) < count:
        out.append(p * out[-1] - (len(out) - 1) * kxx * out[-2])
    return np.stack(out[:count])


def mixed_derivatives(x, y, precision, count):
    """d^i/dx^i d^j/dy^j of the same, `[count, count, ...]`, zero where i + j >= count."""
    kyy, kxy = precision[1, 1], precision[0, 1]
    q = -(kxy * x + kyy * y)
    first = pure_derivatives(x, y, precision, count)
    out = np.zeros((count, *first.shape))
    out[:, 0] = first
    for j in range(count - 1):
        for i in range(count - 1 - j):
            out[i, j + 1] = q * out[i, j]
            if j:
                out[i, j + 1] -= j * kyy * out[i, j - 1]
            if i:
                out[i, j + 1] -= i * kxy * out[i - 1, j]
    return out


@functools.cache
def quadrature(count, taps):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (np.arange(taps)[:, None] - (taps - 1) / 2 + nodes / 2).ravel(), weights / 2


def elliptic_images(center, sigma, e, shape, orders, profile):
    """As `scaled_profiles` for covariance sigma**2 expm(e1 Z + e2 X): `[orders, orders, h, w]`, x first.

    Over a tap, derivatives integrate to differences between its edges, along one edge by Gauss-Legendre.
    """
    height, width = shape
    covariance = shear_matrix(e)[0]
    precision = np.linalg.inv(covariance)

    def scaled(points, axis):
        return (points - center[axis]) / sigma

    if profile == "sampled":
        x = scaled(np.arange(width) - (width - 1) / 2, 0)
        y = scaled(np.arange(height) - (height - 1) / 2, 1)
        return mixed_derivatives(x[None, :], y[:, None], precision, orders) / sigma**2
    count = int(10 + 4 / (sigma * np.exp(-0.5 * np.hypot(*e))))
    edge_x = scaled(np.arange(width + 1) - width / 2, 0)
    edge_y = scaled(np.arange(height + 1) - height / 2, 1)
    inner_x, weights = quadrature(min(count, 40), width)
    inner_y, _ = quadrature(min(count, 40), height)
    inner_x, inner_y, weights = scaled(inner_x, 0), scaled(inner_y, 1), weights / sigma

    def over_tap(values, taps):
        """Integral along the last axis."""
        return values.reshape(*values.shape[:-1], taps, -1) @ weights

    out = np.zeros((orders, orders, height, width))
    along_x = pure_derivatives(edge_x[:, None], inner_y, precision, orders - 1)
    out[1:, 0] = np.diff(over_tap(along_x, height), axis=-2).swapaxes(-1, -2)
    along_y = pure_derivatives(edge_y[:, None], inner_x, precision[::-1, ::-1], orders - 1)
    out[0, 1:] = np.diff(over_tap(along_y, width), axis=-2)
    corners = mixed_derivatives(edge_x, edge_y[:, None], precision, orders - 1)
    out[1:, 1:] = np.diff(np.diff(corners, axis=-1), axis=-2)
    # x given y is Gaussian, of variance 1 / precision_xx.
    z = np.sqrt(precision[0, 0]) * (edge_x[:, None] + precision[0, 1] / precision[0, 0] * inner_y)
    marginal = np.exp(-0.5 * inner_y**2 / covariance[1, 1]) / np.sqrt(2 * np.pi * covariance[1, 1])
    out[0, 0] = np.diff(over_tap(0.5 * erf(z / np.sqrt(2)) * marginal, height), axis=0).T
    return out


def terms_of_order(family, order, count, x, sigma, shape, profile):
    """Derivatives of each total order from `order` on, `[order + 1, b, taps]`, the order along y rising."""
    total = order + count
    if family.elliptic:
        settings = zip(x[:, :2], sigma, x[:, -2:], strict=True)
        images = np.stack([elliptic_images(c, s, e, shape, total, profile) for c, s, e in settings], axis=2)
    else:
        px = scaled_profiles(x[:, 0], sigma, shape[1], total, profile)
        py = scaled_profiles(x[:, 1], sigma, shape[0], total, profile)
    levels = []
    for n in range(order, total):
        j = np.arange(n + 1)
        level = images[n - j, j] if family.elliptic else py[j][..., None] * px[n - j][:, :, None]
        levels.append(level.reshape(n + 1, len(x), -1))
    return levels


def responses(family, x, sigma, shape, profile, slopes=True):
    """Columns of one width `[q, b, taps]`; derivatives by x0, y0, log sigma[, e1, e2] `[p, q, b, taps]`."""
    order = family.order
    if not slopes:
        return terms_of_order(family, order, 2, x, sigma, shape, profile)[0], None
    value, first, second = terms_of_order(family, order, 3, x, sigma, shape, profile)
    along = -first / sigma[:, None]
    if not family.elliptic:
        return value, np.stack([along[:-1], along[1:], order * value + second[:-2] + second[2:]])
    heat = []
    for metric in np.stack([shear_matrix(e) for e in x[:, -2:]], axis=1):
        xx, xy, yy = metric[:, 0, 0, None], metric[:, 0, 1, None], metric[:, 1, 1, None]
        heat.append(xx * second[:-2] + 2 * xy * second[1:-1] + yy * second[2:])
    return value, np.stack([along[:-1], along[1:], order * value + heat[0], 0.5 * heat[1], 0.5 * heat[2]])


def columns(name, x, size, profile="integrated", slopes=True):
    """Columns solved for linearly at points `[b, p]`, offset left out, and their derivatives by the points.

    Returns `[b, taps, q]` and `[b, p, taps, q]`.
    """
    family, shape = REFERENCE_FAMILIES[name], shape_of(size)
    sigma = np.exp(x[:, 2])
    value, by = responses(family, x, sigma, shape, profile, slopes)
    if family.widths == 2:
        wide, by_wide = responses(family, x, sigma * np.exp(x[:, 3]), shape, profile, slopes)
        kappa = x[:, 4, None] if family.tied else None
        if slopes:
            by_ratio = by_wide[2:3]
            if family.tied:
                own = [-kappa * by_ratio, -wide[None]]
                by = by - kappa * by_wide
            else:
                own = [np.concatenate([np.zeros_like(by_ratio), by_ratio], axis=1)]
                by = np.concatenate([by, by_wide], axis=1)
            by = np.concatenate([by[:3], *own, by[3:]])
        value = value - kappa * wide if family.tied else np.concatenate([value, wide])
    return value.transpose(1, 2, 0), by.transpose(2, 0, 3, 1) if slopes else None


def basis(family, x, size, profile="integrated"):
    """Columns that are solved for linearly, offset included, `[taps, q]`."""
    value, _ = columns(family, np.asarray(x)[None], size, profile, slopes=False)
    return np.concatenate([np.ones((value.shape[1], 1)), value[0]], axis=1)


def bounds(name, size, profile="integrated"):
    family, (height, width) = REFERENCE_FAMILIES[name], shape_of(size)
    narrowest = SAMPLED_SIGMA if profile == "sampled" else 0.3
    low, high = (
        [-width / 2, -height / 2, np.log(narrowest)],
        [width / 2, height / 2, np.log(max(height, width))],
    )
    if family.widths == 2:
        low, high = [*low, np.log(1.5 if family.tied else 1.1)], [*high, np.log(8.0)]
    if family.tied:
        low, high = [*low, 0.0], [*high, 1.0]
    if family.elliptic:
        low, high = [*low, -SHEAR, -SHEAR], [*high, SHEAR, SHEAR]
    return np.array(low), np.array(high)


def draw(
    family,
    size,
    x0=0.0,
    y0=0.0,
    sigma=1.0,
    gains=(1.0,),
    theta=0.0,
    offset=0.0,
    surround=None,
    surround_weight=0.0,
    e=(0.0, 0.0),
):
    """Image of a family `[h, w]`, row = y down, by Gauss-Legendre quadrature over each tap.

    Evaluates the textbook formula in turned coordinates, `theta` from +x towards +y; gains multiply
    `sigma**n` times the n-th derivative of the unit-mass Gaussian.
    """
    height, width = shape_of(size)
    points_x, weights = quadrature(16, width)
    points_y, _ = quadrature(16, height)
    position = np.stack(np.meshgrid(points_x - x0, points_y - y0))
    turn = np.array([[np.cos(theta), np.sin(theta)], [-np.sin(theta), np.cos(theta)]])
    order = REFERENCE_FAMILIES[family].order

    def density(width):
        """Sum of the terms of one width."""
        precision = np.linalg.inv(expm(np.array([[e[0], e[1]], [e[1], -e[0]]]))) / width**2
        pulled = np.einsum("ab,byx->ayx", precision, position)
        gaussian = np.exp(-0.5 * np.sum(position * pulled, axis=0)) / (2 * np.pi * width**2)
        slopes = -width * np.einsum("ab,byx->ayx", turn, pulled)
        if order == 0:
            return gaussian
        if order == 1:
            return gains[0] * slopes[0] * gaussian
        bend = width**2 * np.einsum("ab,bc,ac->a", turn, precision, turn)
        return sum(g * (d**2 - b) for g, d, b in zip(gains, slopes, bend, strict=False)) * gaussian

    if REFERENCE_FAMILIES[family].tied:
        total = density(sigma) - surround_weight * density(surround)
    elif order == 0:
        total = gains[0] * density(sigma)
        if surround is not None:
            total = total + gains[1] * density(surround)
    else:
        total = density(sigma)
    total = total.reshape(height, 16, width, 16)
    return offset + np.einsum("ymxn,m,n->yx", total, weights, weights)
