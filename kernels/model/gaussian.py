"""Gaussian models: Gaussians, or derivatives of one total order, of one width or two, round or elliptic.

A model is `offset + sum_i u_i B_i(x, y)`. Its basis `B` depends on a search point, a list of batches in the
order of `GaussianModel.names`; the weights `u` and the offset are solved for. Basis functions are
combinations of terms (width index w, order i along x, order j along y): `sigma_w**(i + j)` times that
derivative of the Gaussian of covariance `sigma_w**2 K`. K is the unit matrix, or of determinant one: the
exponential of `[[e1, e2], [e2, -e1]]`, smooth where the ellipse is a circle, its axes in the ratio
`exp(|e|)`.
"""

import functools
import math
from dataclasses import dataclass
from types import MappingProxyType

import jax.numpy as jnp

from dogfit.kernels.linalg import materialize, sum_arrays
from dogfit.kernels.model.ellipses import elliptic_images
from dogfit.kernels.model.profiles import PROFILES, VARIATIONS
from dogfit.kernels.types import Batch, Image

# (width index, order along x, order along y)
Term = tuple[int, int, int]
# A function of x and y: a sum of terms with weights per item of the batch.
Combination = dict[Term, Batch]
# xx, xy, yy
Matrix = tuple[Batch, Batch, Batch]

# Narrowest Gaussian, in taps: a narrower one is a single tap; sampled further apart than this, derivatives
# cease to be derivatives.
MIN_SIGMA_PX = MappingProxyType({"integrated": 0.3, "sampled": 0.6, "discrete": 0.3})


@dataclass(frozen=True)
class GaussianModel:
    """Static description of a model.

    Attributes:
      order: total order of differentiation, 0 to 2.
      two_widths: whether there is a second, wider Gaussian with the same centre.
      shared_amplitude: whether the second is subtracted, `surround_weight` times, from each derivative of the
        first, so that both share an amplitude (else each has its own).
      elliptic: whether the Gaussians may be elliptic, all alike.
      profile: how functions become taps, out of `profiles.PROFILES`.
    """

    order: int
    two_widths: bool = False
    shared_amplitude: bool = False
    elliptic: bool = False
    profile: str = "integrated"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Search parameters: centre in taps from the middle, logarithms of widths, and shape."""
        optional = {
            "log_ratio": self.two_widths,
            "surround_weight": self.shared_amplitude,
            "e1": self.elliptic,
            "e2": self.elliptic,
        }
        return ("x0", "y0", "log_sigma", *(name for name, present in optional.items() if present))

    @property
    def is_searched(self) -> tuple[bool, ...]:
        """Flags of parameters that are searched: discrete profiles keep the centre of their seed."""
        return tuple(self.profile != "discrete" or name not in ("x0", "y0") for name in self.names)

    @property
    def min_sigma(self) -> float:
        """Narrowest Gaussian of the search, in taps."""
        return MIN_SIGMA_PX[self.profile]

    @property
    def max_step(self) -> tuple[float, ...]:
        """Longest step of the search per parameter, in units of `scale`."""
        steps = {"log_sigma": 0.8, "surround_weight": 0.5, "e1": 0.5, "e2": 0.5}
        return tuple(steps.get(name, 1.0) for name in self.names)

    @functools.cached_property
    def terms(self) -> tuple[tuple[Term, ...], ...]:
        """Terms of each basis function."""
        widths = (0, 1) if self.two_widths else (0,)
        orders = [(self.order - j, j) for j in range(self.order + 1)]
        if self.shared_amplitude:
            return tuple(tuple((w, i, j) for w in widths) for i, j in orders)
        return tuple(((w, i, j),) for w in widths for i, j in orders)

    def scale(self, point: list[Batch]) -> list[Batch]:
        """Unit of each search parameter: positions are measured in widths.

        Args:
          point: search parameters.

        Returns:
          A unit per parameter.
        """
        sigma = jnp.exp(point[2])
        return [sigma, sigma, *[jnp.ones_like(sigma)] * (len(point) - 2)]

    def basis(self, point: list[Batch]) -> list[Combination]:
        """Basis functions at a search point, by their terms.

        Args:
          point: search parameters.

        Returns:
          A combination of terms per function.
        """
        one = jnp.ones_like(point[0])
        second = -point[self.names.index("surround_weight")] if self.shared_amplitude else one
        return [
            {term: second if self.shared_amplitude and term[0] else one for term in terms}
            for terms in self.terms
        ]

    def images(self, point: list[Batch], shape: tuple[int, int]) -> list[Image]:
        """Basis functions as images, not centred.

        Args:
          point: search parameters.
          shape: number of taps along y and x.

        Returns:
          An image per function.
        """
        rendered = TermImages(self, point, shape, self.order)
        return [rendered.combine(combination) for combination in self.basis(point)]

    def varying_images(self, point: list[Batch], shape: tuple[int, int]) -> list[tuple[Image, Batch]]:
        """Basis functions as images, less a constant each, and the constants.

        In Gaussians much wider than the kernel they are almost all, and float32 has few digits for the rest.

        Args:
          point: search parameters.
          shape: number of taps along y and x.

        Returns:
          An image and a constant per function.
        """
        rendered = TermImages(self, point, shape, self.order, varying=True)
        return [(rendered.combine(function), rendered.level(function)) for function in self.basis(point)]


class TermImages:
    """Images of terms at a search point, each made once; with `varying` those of order 0 less a constant."""

    def __init__(
        self,
        model: GaussianModel,
        point: list[Batch],
        shape: tuple[int, int],
        highest: int,
        varying: bool = False,
    ) -> None:
        x0, y0, log_sigma = point[:3]
        sigma = jnp.exp(log_sigma)
        widths = [sigma, sigma * jnp.exp(point[3])] if model.two_widths else [sigma]
        self._images: dict[Term, Image] = {}
        self._levels: Combination = {}
        for w, width in enumerate(widths):
            if model.elliptic:
                xx, xy, yy = (2.0 * entry for entry in _half_matrices(*point[-2:])[()])
                paired = model.two_widths and not model.shared_amplitude
                images, level = elliptic_images(
                    (x0, y0), width, (xx, xy, yy), shape, (model.order, highest), model.profile, paired
                )
                if level is not None and varying:
                    self._levels[w, 0, 0] = level
                elif level is not None:
                    images[0, 0] += level[None, None]
            else:
                x, y = materialize(
                    [
                        PROFILES[model.profile](center, width, taps, max(highest, 1))
                        for center, taps in ((x0, shape[1]), (y0, shape[0]))
                    ]
                )
                orders = range(model.order, highest + 1)
                images = {(n - j, j): x[n - j][None] * y[j][:, None] for n in orders for j in range(n + 1)}
                if varying and model.order == 0:
                    along_x, along_y = materialize(
                        [
                            VARIATIONS[model.profile](center, width, profiles[0])
                            for center, profiles in ((x0, x), (y0, y))
                        ]
                    )
                    level_x, level_y = x[0][0] - along_x[0], y[0][0] - along_y[0]
                    images[0, 0] = along_x[None] * y[0][:, None] + level_x[None, None] * along_y[:, None]
                    self._levels[w, 0, 0] = level_x * level_y
            self._images |= {(w, i, j): image for (i, j), image in images.items()}

    def image(self, term: Term) -> Image:
        """Image of one term."""
        return self._images[term]

    def level(self, combination: Combination) -> Batch:
        """The constant that the image of a combination is less than the whole."""
        return sum_arrays(weight * self._levels.get(term, 0.0) for term, weight in combination.items())

    def combine(self, combination: Combination) -> Image:
        """Image of a combination."""
        return sum_arrays(weight[None, None, :] * self.image(term) for term, weight in combination.items())


def raise_order(model: Combination, along_x: int, along_y: int, weight: Batch | float = 1.0) -> Combination:
    """Derivative of a combination, in units of each term's own width."""
    return {(w, i + along_x, j + along_y): weight * value for (w, i, j), value in model.items()}


def add(*parts: Combination) -> Combination:
    """Sum of combinations."""
    out: Combination = {}
    for part in parts:
        for term, weight in part.items():
            out[term] = out[term] + weight if term in out else weight
    return out


def add_weighted(parts: list[Combination], weights: list[Batch]) -> Combination:
    """Sum of combinations times a weight each."""
    return add(
        *({term: u * weight for term, weight in part.items()} for u, part in zip(weights, parts, strict=True))
    )


class Calculus:
    """Derivatives of combinations by search parameters; positions in widths of the first Gaussian.

    A Gaussian changes with its covariance by its own second derivatives (heat equation): along a shape
    parameter s, with `C = sigma**2 K`, by half the sum of dC/ds times them.
    """

    def __init__(self, model: GaussianModel, point: list[Batch]) -> None:
        self.model = model
        self.inverse_ratio = jnp.exp(-point[3]) if model.two_widths else jnp.ones_like(point[0])
        self._half = _half_matrices(*point[-2:]) if model.elliptic else None

    def _spread(self, model: Combination, *parameters: str) -> Combination:
        """Half the derivative of the covariance by widths or by e1, e2, applied."""
        ellipse = tuple(name for name in parameters if name in ("e1", "e2"))
        if "log_ratio" in parameters:
            model = {term: weight for term, weight in model.items() if term[0] == 1}
        # Each width parameter doubles the covariance's derivative.
        factor = 2.0 ** (len(parameters) - len(ellipse))
        if self._half is None:
            return add(raise_order(model, 2, 0, factor / 2), raise_order(model, 0, 2, factor / 2))
        xx, xy, yy = (factor * entry for entry in self._half[ellipse])
        return add(
            raise_order(model, 2, 0, xx), raise_order(model, 1, 1, 2.0 * xy), raise_order(model, 0, 2, yy)
        )

    def first(self, model: Combination, parameter: str) -> Combination:
        """Derivative by any parameter but the surround's weight."""
        if parameter in ("x0", "y0"):
            shifted = raise_order(model, int(parameter == "x0"), int(parameter == "y0"))
            return {t: -weight * self.inverse_ratio if t[0] else -weight for t, weight in shifted.items()}
        spread = self._spread(model, parameter)
        if parameter == "log_ratio" and self.model.shared_amplitude and self.model.order:
            # The scale of the surround's derivative, which here is no weight's to absorb.
            own = {term: self.model.order * weight for term, weight in model.items() if term[0] == 1}
            return add(spread, own)
        return spread

    def second(self, model: Combination, one: str, other: str) -> Combination:
        """Second derivative by any parameters but the surround's weight."""
        twice = self.first(self.first(model, one), other)
        if one in ("x0", "y0") or other in ("x0", "y0"):
            return twice
        return add(twice, self._spread(model, one, other))


def _half_matrices(e1: Batch, e2: Batch) -> dict[tuple[str, ...], Matrix]:
    """Half of K and of its derivatives by e1, e2, keyed by what it is derived by."""
    e = {"e1": e1, "e2": e2}
    square = e1 * e1 + e2 * e2

    def series(shift: int) -> Batch:
        """cosh(a), then repeatedly (1/a) d/da of it, by powers of a**2: regular at a circle."""
        value = jnp.zeros_like(square)
        for n in reversed(range(10)):
            falling = math.prod(2 * (n + shift - m) for m in range(shift))
            value = value * square + falling / math.factorial(2 * (n + shift))
        return value

    # K = s0 + s1 E with ds_m / de_i = e_i s_(m+1).
    s0, s1, s2, s3 = (series(m) for m in range(4))

    def half(diagonal: Batch, along: dict[str, Batch]) -> Matrix:
        return 0.5 * (diagonal + along["e1"]), 0.5 * along["e2"], 0.5 * (diagonal - along["e1"])

    out: dict[tuple[str, ...], Matrix] = {(): half(s0, {k: s1 * e[k] for k in e})}
    for i in e:
        along = {k: s2 * e[i] * e[k] + (s1 if i == k else 0.0) for k in e}
        out[(i,)] = half(s1 * e[i], along)
        for j in e:
            along = {
                k: s3 * e[i] * e[j] * e[k]
                + s2 * ((i == k) * 1.0 * e[j] + (j == k) * 1.0 * e[i] + (i == j) * 1.0 * e[k])
                for k in e
            }
            out[i, j] = half(s2 * e[i] * e[j] + (s1 if i == j else 0.0), along)
    return out
