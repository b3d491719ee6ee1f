"""Inner products of a model's terms over the taps: by 1-D sums, or by images where taps have weights."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dogfit.kernels.linalg import Batch, Solution, project, settle, solve_gram, sum_taps, total
from dogfit.kernels.model import Combination, GaussianModel, Term, TermImages
from dogfit.kernels.profiles import PROFILES

# Orders by which a term is raised in a second derivative by widths.
RAISED = 4

Image = Float[Array, "kx ky b"]


class SeparableProducts:
    """Products of terms that are products of 1-D profiles, all taps alike.

    The profiles along an axis are stacked, so that all sums of one kind are one operation: on CPUs each
    costs more than its arithmetic. Barriers keep them whole, where the compiler would repeat what they
    share.
    """

    def __init__(self, model: GaussianModel, point: list[Batch], shape: tuple[int, int]) -> None:
        sigma = jnp.exp(point[2])
        widths = [sigma, sigma * jnp.exp(point[3])] if model.two_widths else [sigma]
        self._highest, self._widths = model.order + RAISED, len(widths)
        # [axis][width][order] -> [k, b]
        x, y = (
            [PROFILES[model.profile](c, w, size, self._highest) for w in widths]
            for c, size in zip(point[:2], shape, strict=True)
        )
        x, y = settle((x, y))
        changes: tuple[list[Array], list[Array]] = ([], [])
        if model.two_widths and not model.tied:
            overlap = model.overlap(point)[None, :]
            changes = [x[1][0] - overlap * x[0][0]], [overlap * (y[1][0] - y[0][0])]
        self._changes = len(changes[0])
        orders = range(self._highest + 1)
        self._x, self._y = (
            settle(jnp.stack([*change, *(profiles[n] for n in orders for profiles in axis)]))
            for change, axis in zip(changes, (x, y), strict=True)
        )
        columns = self._changes + self._widths * (model.order + 3)
        self._sums = settle([_sums(profiles, columns) for profiles in (self._x, self._y)])
        self._inner: dict[tuple[Term, Term], Batch] = {}

    def _place(self, width: int, order: int) -> int:
        """Of a profile in its stack."""
        return self._changes + self._widths * order + width

    def _product(self, x: tuple[int, int], y: tuple[int, int]) -> Batch:
        """Inner product about the means of two functions, given the places of their profiles.

        Put together from centred 1-D profiles: subtracting the product of the means from the whole
        would cancel all digits of a Gaussian much wider than the kernel.
        """
        (about_x, means_x), (about_y, means_y) = self._sums
        return about_x[x] * (about_y[y] + means_y[y]) + means_x[x] * about_y[y]

    def _of_terms(self, one: Term, other: Term) -> Batch:
        """Inner product of two centred terms."""
        # What is known of the higher orders is their products with lower ones.
        low, high = sorted((one, other), key=lambda term: (-term[1] - term[2], term))
        if (low, high) not in self._inner:
            (v, a, b), (w, c, d) = low, high
            x, y = (self._place(v, a), self._place(w, c)), (self._place(v, b), self._place(w, d))
            self._inner[low, high] = self._product(x, y)
        return self._inner[low, high]

    def inner(self, one: Combination, other: Combination) -> Batch:
        """Inner product of two centred combinations."""
        return total(p * q * self._of_terms(a, b) for a, p in one.items() for b, q in other.items())

    def project(self, kernels: Image, basis: list[Combination]) -> Solution:
        """Least-squares solution for centred kernels; prepares the moments of what is left."""
        self._basis = basis
        rows = settle(total(self._x[:, u, None] * kernels[None, u] for u in range(len(kernels))))
        by_order = (self._highest + 1, self._widths)
        own_x, own_y = (
            stack[self._changes :].reshape(*by_order, *stack.shape[1:]) for stack in (rows, self._y)
        )
        self._moments = settle(_dot(own_x[:, None], own_y[None]))
        if self._changes:
            gram, right = self._pair_equations(rows)
        else:
            gram = {(i, j): self.inner(basis[i], basis[j]) for i in range(len(basis)) for j in range(i + 1)}
            right = [
                total(weight * self._moments[i, j, w] for (w, i, j), weight in function.items())
                for function in basis
            ]
        solution = Solution(*settle(tuple(solve_gram(gram, right))))
        self._weights = solution.weights
        return solution

    def _pair_equations(
        self, rows: Float[Array, "m ky b"]
    ) -> tuple[dict[tuple[int, int], Batch], list[Batch]]:
        """Normal equations of `search_basis`, to the relative precision of what the wider Gaussian adds.

        That is `(x' - s x) * y' + s x * (y' - y)`, with dashes for its profiles and `s` the overlap.
        """
        change, narrow, wide = 0, self._place(0, 0), self._place(1, 0)
        parts = [(change, wide), (narrow, change)]

        def inner(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> Batch:
            return total(self._product((a, c), (b, d)) for a, b in one for c, d in other)

        itself = [(narrow, narrow)]
        gram = {(0, 0): inner(itself, itself), (1, 0): inner(itself, parts), (1, 1): inner(parts, parts)}
        added = total(_dot(rows[x], self._y[y]) for x, y in parts)
        return gram, [self._moments[0, 0, 0], added]

    def residual_moments(self, terms: set[Term]) -> Combination:
        """Inner products with terms of what the projection left of the kernels."""
        one = jnp.ones_like(self._moments[0, 0, 0])
        return settle(
            {
                (w, i, j): self._moments[i, j, w]
                - total(
                    weight * self.inner(function, {(w, i, j): one})
                    for function, weight in zip(self._basis, self._weights, strict=True)
                )
                for w, i, j in sorted(terms)
            }
        )


def _dot(one: Float[Array, "*n k b"], other: Float[Array, "*n k b"]) -> Float[Array, "*n b"]:
    """Sum over the taps of a line; term by term, since XLA's reductions for CPUs are many times slower."""
    return total(one[..., u, :] * other[..., u, :] for u in range(one.shape[-2]))


def _sums(
    profiles: Float[Array, "m k b"], columns: int
) -> tuple[Float[Array, "m c b"], Float[Array, "m c b"]]:
    """Inner products of profiles with the first of them: about their means, and of the means."""
    size = profiles.shape[1]
    mean = settle(total(profiles[:, u] for u in range(size)) / size)
    about = settle(profiles - mean[:, None])
    return _dot(about[:, None], about[None, :columns]), size * mean[:, None] * mean[None, :columns]


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
    """Whether terms are products of 1-D profiles and all taps alike, so that no image need be made."""
    return not model.elliptic and weights is None
