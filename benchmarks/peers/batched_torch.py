"""PyTorch: batched Levenberg-Marquardt on the projected residual, eager, float32.

No library's: what a careful user of PyTorch would write. Kaufman's Jacobian, Nielsen's damping; rows that
are done leave the batch every few steps, so that stragglers cost little. A thread per core takes whole
batches: operations this small, split over threads, wait for one another (ten times as long where busy).
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from peers.common import FAMILIES, SIZE, Family, bounds, from_free, normalised, to_free

MOST_STEPS, LEAST_GAIN = 48, 1e-6
# Between two rounds of dropping rows that are done.
STRETCH = 4
# Rows at a time.
BATCH = 1024


class _Slopes(NamedTuple):
    """Residual energy, and the normal matrix and right-hand side of a step."""

    energy: torch.Tensor
    normal: torch.Tensor
    right: torch.Tensor


class _Problem:
    """A family, and its residual on batches."""

    def __init__(self, family: Family) -> None:
        self.family = family
        low, high = (torch.tensor(b, dtype=torch.float32) for b in bounds(family))
        self.middle, self.half = (low + high) / 2, (high - low) / 2
        self.edges = torch.arange(SIZE + 1) - SIZE / 2

    def evaluate(self, u: torch.Tensor, kernels: torch.Tensor) -> _Slopes:
        """At `u [m, p]` for centred kernels `[m, 49]`."""
        family = self.family
        point = self.middle + self.half * torch.sin(u)
        log_sigma = (
            torch.stack([point[:, 2], point[:, 2] + point[:, 3]], 1) if family.two_widths else point[:, 2:3]
        )
        sigma = torch.exp(log_sigma)
        z = (self.edges - point[:, None, :2, None]) / sigma[:, :, None, None]
        edges = [0.5 * torch.erf(z * math.sqrt(0.5)), torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)]
        for n in range(1, family.order + 2):
            edges.append(-z * edges[n] - (n - 1) * edges[n - 1])
        lines = [edge[..., 1:] - edge[..., :-1] for edge in edges]  # by order: [m, width, axis, tap]

        def image(width: int, i: int, j: int) -> torch.Tensor:
            return (lines[i][:, width, 1, :, None] * lines[j][:, width, 0, None, :]).flatten(1)

        terms = [(w, i, j) for (i, j), w in zip(family.orders, family.widths, strict=True)]
        directions, weights, residual = self.project([image(*term) for term in terms], kernels)
        zero = torch.zeros_like(kernels)
        by_x, by_y, by_width, wide = zero, zero, zero, zero
        for (w, i, j), weight in zip(terms, weights, strict=True):
            by_x = by_x - weight / sigma[:, w : w + 1] * image(w, i, j + 1)
            by_y = by_y - weight / sigma[:, w : w + 1] * image(w, i + 1, j)
            wide = weight * (image(w, i + 2, j) + image(w, i, j + 2))
            by_width = by_width + wide
        slopes = torch.stack([by_x, by_y, by_width, wide][: u.shape[1]], 1)
        slopes = slopes - slopes.mean(-1, keepdim=True)
        slopes = slopes - (slopes @ directions.mT) @ directions
        slopes = slopes * (self.half * torch.cos(u))[:, :, None]
        right = (slopes @ residual[:, :, None])[:, :, 0]
        return _Slopes((residual * residual).sum(1), slopes @ slopes.mT, right)

    def project(
        self, images: list[torch.Tensor], kernels: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Orthonormal centred images, weights of the images, and residual, by Gram-Schmidt."""
        directions: list[torch.Tensor] = []
        lower: dict[tuple[int, int], torch.Tensor] = {}
        weights = []
        residual = kernels
        for k, image in enumerate(images):
            image = image - image.mean(1, keepdim=True)
            before = (image * image).sum(1, keepdim=True)
            for m, direction in enumerate(directions):
                lower[k, m] = (direction * image).sum(1, keepdim=True)
                image = image - lower[k, m] * direction
            square = (image * image).sum(1, keepdim=True)
            inverse = torch.where(square > 1e-11 * before, square.clamp_min(1e-30).rsqrt(), 0.0)
            lower[k, k] = inverse
            directions.append(image * inverse)
            weights.append((directions[k] * residual).sum(1, keepdim=True))
            residual = residual - weights[k] * directions[k]
        for k in reversed(range(len(images))):
            for m in range(k + 1, len(images)):
                weights[k] = weights[k] - lower[m, k] * weights[m]
            weights[k] = weights[k] * lower[k, k]
        return torch.stack(directions, 1), weights, residual

    @torch.inference_mode()
    def fit(self, u: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
        """Optima from starts `[m, p]`."""
        out = u.clone()
        rows = torch.arange(len(u))
        at = self.evaluate(u, kernels)
        damping, growth = torch.full((len(u), 1), 1e-3), torch.full((len(u), 1), 2.0)
        eye = torch.eye(u.shape[1])
        promised = torch.full((len(u), 1), torch.inf)
        for turn in range(MOST_STEPS):
            factor, _ = torch.linalg.cholesky_ex(at.normal + (damping[:, :, None] + 1e-9) * eye)
            step = torch.cholesky_solve(at.right[:, :, None], factor)[:, :, 0]
            promised = (step * (damping * step + at.right)).sum(1, keepdim=True)
            trial = u + step
            new = self.evaluate(trial, kernels)
            gain = (at.energy - new.energy)[:, None]
            better = gain > 0
            agreement = (gain / promised.clamp_min(1e-30)).clamp(0, 2)
            shrunk = damping * (1 - (2 * agreement - 1) ** 3).clamp_min(1 / 3)
            damping, growth = (
                torch.where(better, shrunk, damping * growth),
                torch.where(better, 2.0, 2 * growth),
            )
            u = torch.where(better, trial, u)
            at = _Slopes(
                torch.where(better[:, 0], new.energy, at.energy),
                torch.where(better[:, :, None], new.normal, at.normal),
                torch.where(better, new.right, at.right),
            )
            if turn % STRETCH == STRETCH - 1:
                out[rows] = u
                left = torch.nonzero(~(promised[:, 0] < LEAST_GAIN))[:, 0]
                if not len(left):
                    break
                rows, u, kernels, damping, growth = (a[left] for a in (rows, u, kernels, damping, growth))
                at = _Slopes(*(leaf[left] for leaf in at))
        return out


class Torch:
    """Batched Levenberg-Marquardt in PyTorch."""

    def __init__(self, cores: int) -> None:
        torch.set_num_threads(1)
        self.pool = ThreadPoolExecutor(cores)
        self.problems = {family.name: _Problem(family) for family in FAMILIES}

    def fit(self, kernels: np.ndarray, starts: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `common.Fitter`."""
        images = torch.from_numpy(normalised(kernels).reshape(len(kernels), -1).astype(np.float32))
        found = {}
        for family in FAMILIES:
            free = to_free(family, starts[family.name]).astype(np.float32)
            rows = torch.from_numpy(free.reshape(-1, free.shape[-1]))
            targets = images.repeat(len(free), 1)
            fit = self.problems[family.name].fit
            parts = list(self.pool.map(fit, rows.split(BATCH), targets.split(BATCH)))
            found[family.name] = from_free(family, torch.cat(parts).numpy().reshape(free.shape))
        return found
