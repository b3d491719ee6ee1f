"""Inner products of a model's terms over the taps: by 1-D sums, or by images where taps have weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dogfit.kernels.linalg import Batch, Solution, project, solve_gram, sum_taps, total
from dogfit.kernels.model import Combination, GaussianModel, Term, TermImages
from dogfit.kernels.profiles import PROFILES

# Orders by which a term is raised in a second derivative by widths.
RAISED = 4

Image = Float[Array, "kx ky b"]


class SeparableProducts:
    """Products of terms that are products of 1-D profiles, all taps alike: each 1-D sum computed once."""

    def __init__(self, model: GaussianModel, point: list[Batch], shape: tuple[int, int]) -> None:
        sigma = jnp.exp(point[2])
        widths = [sigma, sigma * jnp.exp(point[3])] if model.two_widths else [sigma]
        profiles, highest = PROFILES[model.profile], model.order + RAISED
        self.shape = shape
        # [width][axis][order] -> [k, b]
        self.profiles = [
            [profiles(c, w, size, highest) for c, size in zip(point[:2], shape, strict=True)] for w in widths
        ]
        self._means: dict[tuple[int, int, int], Batch] = {}
        self._grams: dict[tuple[int, tuple[int, int], tuple[int, int]], Batch] = {}
        self._inner: dict[tuple[Term, Term], Batch] = {}
        self._rows: dict[tuple[int, int], Float[Array, "ky b"]] = {}
        self._overlap = model.overlap(point) if model.two_widths and not model.tied else None

    def _mean(self, axis: int, width: int, order: int) -> Batch:
        key = (axis, width, order)
        if key not in self._means:
            self._means[key] = jnp.mean(self.profiles[width][axis][order], axis=0)
        return self._means[key]

    def _gram(self, axis: int, one: tuple[int, int], other: tuple[int, int]) -> Batch:
        """Inner product of two 1-D profiles about their means."""
        low, high = sorted((one, other))
        key = (axis, low, high)
        if key not in self._grams:
            a, b = self.profiles[low[0]][axis][low[1]], self.profiles[high[0]][axis][high[1]]
            a, b = a - self._mean(axis, *low)[None, :], b - self._mean(axis, *high)[None, :]
            self._grams[key] = jnp.sum(a * b, axis=0)
        return self._grams[key]

    def _of_terms(self, one: Term, other: Term) -> Batch:
        """Inner product of two centred terms.

        Put together from centred 1-D profiles: subtracting the product of the means from the whole
        would cancel all digits of a Gaussian much wider than the kernel.
        """
        low, high = sorted((one, other))
        if (low, high) not in self._inner:
            (v, a, b), (w, c, d) = low, high
            x, y = self._gram(0, (v, a), (w, c)), self._gram(1, (v, b), (w, d))
            mean_x = self.shape[0] * self._mean(0, v, a) * self._mean(0, w, c)
            mean_y = self.shape[1] * self._mean(1, v, b) * self._mean(1, w, d)
            self._inner[low, high] = x * y + mean_x * y + mean_y * x
        return self._inner[low, high]

    def inner(self, one: Combination, other: Combination) -> Batch:
        """Inner product of two centred combinations."""
        return total(p * q * self._of_terms(a, b) for a, p in one.items() for b, q in other.items())

    def project(self, kernels: Image, basis: list[Combination]) -> Solution:
        """Least-squares solution for centred kernels; prepares the moments of what is left."""
        self._kernels, self._basis = kernels, basis
        if self._overlap is not None:
            gram, right = self._pair_equations()
        else:
            gram = {(i, j): self.inner(basis[i], basis[j]) for i in range(len(basis)) for j in range(i + 1)}
            moments = self._moments({term for function in basis for term in function})
            right = [total(weight * moments[t] for t, weight in function.items()) for function in basis]
        solution = solve_gram(gram, right)
        self._weights = solution.weights
        return solution

    def _pair_equations(self) -> tuple[dict[tuple[int, int], Batch], list[Batch]]:
        """Normal equations of `search_basis`, to the relative precision of what the wider Gaussian adds.

        That is `(x' - s x) * y' + s x * (y' - y)`, with dashes for its profiles and `s` the overlap.
        """
        (x, y), (wide_x, wide_y) = ([profiles[axis][0] for axis in (0, 1)] for profiles in self.profiles)
        assert self._overlap is not None
        overlap = self._overlap[None, :]
        dx, dy = wide_x - overlap * x, overlap * (wide_y - y)
        narrow, added = [(x, y)], [(dx, wide_y), (x, dy)]

        def about_mean(profile: Array) -> Array:
            return profile - jnp.mean(profile, axis=0, keepdims=True)

        def inner(one: list[tuple[Array, Array]], other: list[tuple[Array, Array]]) -> Batch:
            out = []
            for a in one:
                for b in other:
                    pairs = list(zip(a, b, strict=True))
                    sums = [jnp.sum(p, axis=0) * jnp.sum(q, axis=0) / len(p) for p, q in pairs]
                    about = [jnp.sum(about_mean(p) * about_mean(q), axis=0) for p, q in pairs]
                    out.append(about[0] * about[1] + sums[0] * about[1] + sums[1] * about[0])
            return total(out)

        rows, more = (jnp.sum(p[:, None, :] * self._kernels, axis=0) for p in (x, dx))
        self._rows[0, 0] = rows
        right = [jnp.sum(rows * y, axis=0), jnp.sum(more * wide_y + rows * dy, axis=0)]
        gram = {(0, 0): inner(narrow, narrow), (1, 0): inner(narrow, added), (1, 1): inner(added, added)}
        return gram, right

    def residual_moments(self, terms: set[Term]) -> Combination:
        """Inner products with terms of what the projection left of the kernels."""
        one = jnp.ones_like(self.profiles[0][0][0][0])
        moments = self._moments(terms)
        for function, weight in zip(self._basis, self._weights, strict=True):
            moments = {t: m - weight * self.inner(function, {t: one}) for t, m in moments.items()}
        return moments

    def _moments(self, terms: set[Term]) -> Combination:
        """Inner products of the kernels with terms."""
        out: Combination = {}
        for width, i, j in sorted(terms):
            if (width, i) not in self._rows:
                self._rows[width, i] = jnp.sum(self.profiles[width][0][i][:, None, :] * self._kernels, axis=0)
            out[width, i, j] = jnp.sum(self._rows[width, i] * self.profiles[width][1][j], axis=0)
        return out


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
        self._terms = TermImages(model, point, shape, model.order + RAISED)
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
    if weights is None:
        return image - jnp.mean(image, axis=(0, 1))[None, None, :]
    mean = jnp.sum(weights * image, axis=(0, 1)) / jnp.sum(weights, axis=(0, 1))
    return jnp.sqrt(weights) * (image - mean[None, None, :])


def products_of(
    model: GaussianModel, point: list[Batch], shape: tuple[int, int], weights: Image | None
) -> SeparableProducts | WeightedProducts:
    """The cheaper of the two that serves."""
    if model.elliptic or weights is not None:
        return WeightedProducts(model, point, shape, weights)
    return SeparableProducts(model, point, shape)
