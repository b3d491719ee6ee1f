"""Inner products of a model's terms over the taps: by 1-D sums, or by images where taps have weights."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dogfit.kernels.linalg import (
    Solution,
    inverse_root,
    materialize,
    project,
    solve_factored,
    solve_gram,
    sum_arrays,
    sum_taps,
)
from dogfit.kernels.model.gaussian import Combination, GaussianModel, Term, TermImages, add_weighted
from dogfit.kernels.model.profiles import PROFILES, VARIATIONS
from dogfit.kernels.types import Batch, Image

# Orders by which a term is raised in a second derivative by widths.
ORDER_INCREASE = 4


class _Line(NamedTuple):
    """The profiles along one axis, stacked, and inner products with the first `c` of them.

    Attributes:
      whole: the profiles.
      about: the same about their means.
      mean: the means.
      products: inner products of `about`.
      of_means: those of the means.
    """

    whole: Float[Array, "m k b"]
    about: Float[Array, "m k b"]
    mean: Float[Array, "m b"]
    products: Float[Array, "m c b"]
    of_means: Float[Array, "m c b"]


class SeparableProducts:
    """Products of terms that are products of 1-D profiles, all taps alike.

    The profiles along an axis are stacked, so that all sums of one kind are one operation: on CPUs each
    costs more than its arithmetic. Barriers keep them whole, where the compiler would repeat what they
    share.
    """

    def __init__(self, model: GaussianModel, point: list[Batch], shape: tuple[int, int]) -> None:
        sigma = jnp.exp(point[2])
        widths = [sigma, sigma * jnp.exp(point[3])] if model.two_widths else [sigma]
        self._highest, self._widths = model.order + ORDER_INCREASE, len(widths)
        # Two Gaussians with weights of their own, which may all but cancel.
        self._free_pair = model.two_widths and not model.shared_amplitude
        columns = self._widths * (model.order + 3)
        if shape[0] == shape[1]:
            self._x, self._y = self._lines(model, point[:2], widths, shape[0], columns)
        else:
            self._x, self._y = (
                self._lines(model, [center], widths, size, columns)[0]
                for center, size in zip(point[:2], reversed(shape), strict=True)
            )
        self._inner: dict[tuple[Term, Term], Batch] = {}

    def _lines(
        self, model: GaussianModel, centers: list[Batch], widths: list[Batch], size: int, columns: int
    ) -> list[_Line]:
        """The lines of axes of one size, side by side in a batch so many times as long."""
        center, sides = jnp.concatenate(centers), len(centers)
        profiles, varying = [], []
        # Not `tile`: with it XLA's search for CPUs makes 40 % fewer kernels a second (jax 0.10.2).
        for width in (jnp.concatenate([width] * sides) for width in widths):
            profiles.append(materialize(PROFILES[model.profile](center, width, size, self._highest)))
            if self._free_pair:
                varying.append(VARIATIONS[model.profile](center, width, profiles[-1][0]))
        whole = [profile[n] for n in range(self._highest + 1) for profile in profiles]
        line = _line_of(whole, materialize(varying), columns)
        return [_Line(*part) for part in zip(*(jnp.split(v, sides, axis=-1) for v in line), strict=True)]

    def _place(self, width: int, order: int) -> int:
        """Place of a profile in its stack."""
        return self._widths * order + width

    def _of_terms(self, one: Term, other: Term) -> Batch:
        """Inner product of two centred terms."""
        # What is known of the higher orders is their products with lower ones.
        low, high = sorted((one, other), key=lambda term: (-term[1] - term[2], term))
        if (low, high) not in self._inner:
            (v, a, b), (w, c, d) = low, high
            x, y = (self._place(v, a), self._place(w, c)), (self._place(v, b), self._place(w, d))
            about_x, mean_x = self._x.products[x], self._x.of_means[x]
            about_y, mean_y = self._y.products[y], self._y.of_means[y]
            self._inner[low, high] = _about_means(about_x, mean_x, about_y, mean_y)
        return self._inner[low, high]

    def inner(self, one: Combination, other: Combination) -> Batch:
        """Inner product of two centred combinations."""
        return sum_arrays(p * q * self._of_terms(a, b) for a, p in one.items() for b, q in other.items())

    def project(self, kernels: Image, basis: list[Combination]) -> Solution:
        """Least-squares solution for centred kernels; prepares the moments of what is left."""
        x, y = self._x, self._y
        rows = materialize(_row_sums(x.whole, kernels))
        own_x, own_y = (p.reshape(-1, self._widths, *p.shape[1:]) for p in (rows, y.whole))
        self._moments = materialize(_dot(own_x[:, None], own_y[None]))
        if self._free_pair:
            solution = self._solve_pair(kernels)
        else:
            gram = {(i, j): self.inner(basis[i], basis[j]) for i in range(len(basis)) for j in range(i + 1)}
            right = [
                sum_arrays(weight * self._moments[i, j, w] for (w, i, j), weight in function.items())
                for function in basis
            ]
            solution = solve_gram(gram, right)
        self._basis = basis
        solution = Solution(*materialize(tuple(solution)))
        self._weights = solution.weights
        return solution

    def _solve_pair(self, kernels: Image) -> Solution:
        """Least-squares solution for two Gaussians.

        What the first leaves of the second is made as an image: normal equations would have no digits for it
        where both are of nearly one width, or much wider than the kernel.
        """
        x, y = self._x, self._y
        square, shared, whole = (self._of_terms((v, 0, 0), (w, 0, 0)) for v, w in ((0, 0), (0, 1), (1, 1)))
        inverse = inverse_root(square, 0.0)
        lower = shared * inverse
        share = lower * inverse
        left = materialize(
            x.about[1][None] * y.whole[1][:, None]
            - (share[None] * x.about[0])[None] * y.whole[0][:, None]
            + (x.mean[1][None] * y.about[1] - (share * x.mean[0])[None] * y.about[0])[:, None]
        )
        least = (16 * float(jnp.finfo(left.dtype).eps)) ** 2 * whole
        inverse_left = inverse_root(sum_taps(left * left), least)
        rows, column = materialize(
            (_row_sums(x.about[:1], kernels)[0], sum_arrays(kernels[:, u] for u in range(kernels.shape[1])))
        )
        first = _dot(rows, y.whole[0]) + x.mean[0] * _dot(column, y.about[0])
        solved = [first * inverse, sum_taps(left * kernels) * inverse_left]
        return solve_factored(({(1, 0): lower}, [inverse, inverse_left]), solved)

    def residual_moments(self, terms: set[Term]) -> Combination:
        """Inner products with terms of what the projection left of the kernels."""
        whole = add_weighted(self._basis, self._weights)
        fitted = sum_arrays(
            weight[None, None, None] * self._against_all(term) for term, weight in whole.items()
        )
        left = materialize(self._moments - fitted)
        return {(w, i, j): left[i, j, w] for w, i, j in sorted(terms)}

    def _against_all(self, term: Term) -> Float[Array, "m m w b"]:
        """Inner products of a centred term of the basis with those of all orders along x and y."""
        width, order_x, order_y = term

        def along(products: Float[Array, "mw c b"], order: int) -> Float[Array, "m w b"]:
            return products[:, self._place(width, order)].reshape(-1, self._widths, products.shape[-1])

        about_x, mean_x = (along(p, order_x)[:, None] for p in (self._x.products, self._x.of_means))
        about_y, mean_y = (along(p, order_y)[None] for p in (self._y.products, self._y.of_means))
        return _about_means(about_x, mean_x, about_y, mean_y)


def _about_means(about_x: Array, mean_x: Array, about_y: Array, mean_y: Array) -> Array:
    """Inner product about the means of two functions, given those of their profiles, and those of the means.

    Put together from centred 1-D profiles: subtracting the product of the means from the whole would cancel
    all digits of a Gaussian much wider than the kernel.
    """
    return about_x * (about_y + mean_y) + mean_x * about_y


def _dot(one: Float[Array, "*n k b"], other: Float[Array, "*n k b"]) -> Float[Array, "*n b"]:
    """Sum over the taps of a line; term by term, since XLA's reductions for CPUs are many times slower."""
    return sum_arrays(one[..., u, :] * other[..., u, :] for u in range(one.shape[-2]))


def _row_sums(profiles: Float[Array, "m kx b"], kernels: Image) -> Float[Array, "m ky b"]:
    """Sums along x of kernels times each profile."""
    return sum_arrays(profiles[:, u, None] * kernels[None, :, u] for u in range(kernels.shape[1]))


def _line_of(profiles: list[Float[Array, "k b"]], varying: list[Float[Array, "k b"]], columns: int) -> _Line:
    """A line of profiles, of which the first may be given once more, less any constants."""

    def mean_of(stack: Float[Array, "m k b"]) -> Float[Array, "m b"]:
        size = stack.shape[1]
        return sum_arrays(stack[:, u] for u in range(size)) / size

    whole = materialize(jnp.stack(profiles))
    mean = materialize(mean_of(whole))
    about = whole - mean[:, None]
    if varying:
        flat = materialize(jnp.stack(varying))
        about = jnp.concatenate([flat - mean_of(flat)[:, None], about[len(varying) :]])
    about = materialize(about)
    products = _dot(about[:, None], about[None, :columns])
    of_means = len(profiles[0]) * mean[:, None] * mean[None, :columns]
    return _Line(whole, about, mean, *materialize((products, of_means)))


class WeightedProducts:
    """Products of terms of any shape, each tap counted by its weight: every image is made in full.

    Images are centred about their weighted mean and multiplied by the roots of the weights, so that all
    sums are plain ones.
    """

    def __init__(
        self,
        model: GaussianModel,
        point: list[Batch],
        shape: tuple[int, int],
        weights: Image | None,
    ) -> None:
        self._terms = TermImages(model, point, shape, model.order + ORDER_INCREASE, varying=True)
        self._weights = weights
        self._images: dict[int, tuple[Combination, Image]] = {}

    def image(self, combination: Combination) -> Image:
        """Centred and weighted image of a combination."""
        key = id(combination)
        if key not in self._images:
            image = whiten(self._terms.combine(combination), self._weights)
            # Kept beside its combination, whose identity is the key.
            self._images[key] = (combination, image)
        return self._images[key][1]

    def inner(self, one: Combination, other: Combination) -> Batch:
        """Inner product of two centred combinations."""
        return sum_taps(self.image(one) * self.image(other))

    def project(self, kernels: Image, basis: list[Combination]) -> Solution:
        """Least-squares solution for whitened kernels; prepares the moments of what is left."""
        self._left, weights, factor = project(kernels, [self.image(function) for function in basis])
        return Solution(sum_taps(kernels * kernels) - sum_taps(self._left * self._left), weights, factor)

    def residual_moments(self, terms: set[Term]) -> Combination:
        """Inner products with terms of what the projection left of the kernels."""
        image = self._left if self._weights is None else jnp.sqrt(self._weights) * self._left
        return {term: sum_taps(image * self._terms.image(term)) for term in sorted(terms)}


def whiten(image: Image, weights: Image | None) -> Image:
    """An image about its (weighted) mean, times the roots of the weights."""
    centred = image - mean_taps(image, weights)[None, None, :]
    return centred if weights is None else jnp.sqrt(weights) * centred


def mean_taps(image: Image, weights: Image | None) -> Batch:
    """The (weighted) mean of an image."""
    if weights is None:
        return sum_taps(image) / (image.shape[0] * image.shape[1])
    return sum_taps(weights * image) / sum_taps(weights)


def products_of(
    model: GaussianModel, point: list[Batch], shape: tuple[int, int], weights: Image | None
) -> SeparableProducts | WeightedProducts:
    """The cheaper of the two that serves."""
    if are_separable(model, weights):
        return SeparableProducts(model, point, shape)
    return WeightedProducts(model, point, shape, weights)


def are_separable(model: GaussianModel, weights: Image | None) -> bool:
    """Tell whether terms are products of 1-D profiles and all taps alike, so that no image need be made."""
    return not model.elliptic and weights is None
