"""The autoencoder of dogfit in PyTorch: the same network, losses, schedules and batches, one restart.

Written as a PyTorch user would: modules, autograd, the fused AdamW. `compiled` puts the losses and their
gradients through `torch.compile`.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dogfit.autoencoder import AutoencoderConfig
from dogfit.autoencoder.training_step import TRAINING_POINTS, training_schedule


def mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        linear = nn.Linear(a, b)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class TorchAutoencoder:
    """One restart in training; `step()` does one optimiser step."""

    def __init__(self, training: np.ndarray, config: AutoencoderConfig, *, compiled: bool, seed: int = 0):
        torch.manual_seed(seed)
        taps = training.shape[1]
        self.config, self.data, self.number = config, torch.tensor(training), 0
        self.encoder = mlp([taps, *config.widths, 1])
        self.decoder = mlp([1 + 2 * config.frequencies, *reversed(config.widths), taps])
        self.multiples = math.pi * torch.arange(1, config.frequencies + 1, dtype=torch.float32)
        self.grid = (torch.arange(TRAINING_POINTS, dtype=torch.float32)[:, None] + 0.5) / TRAINING_POINTS
        self.curve, self.joint, _ = training_schedule(config)
        self.optimisers = [
            torch.optim.AdamW(part.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True)
            for part in (self.encoder, self.decoder)
        ]
        self.order, self.place = torch.randperm(len(training)), 0
        wrap: Callable = torch.compile if compiled else lambda f: f
        self.curve_loss, self.whole_loss = wrap(self._curve_loss), wrap(self._whole_loss)

    def features(self, code: Tensor) -> Tensor:
        angle = code * self.multiples
        return torch.cat([2 * code - 1, torch.sin(angle), torch.cos(angle)], dim=1)

    def decode(self, code: Tensor) -> Tensor:
        return self.unit(self.decoder(self.features(code)))

    @staticmethod
    def unit(taps: Tensor) -> Tensor:
        centred = taps - taps.mean(dim=1, keepdim=True)
        return centred * torch.rsqrt((centred**2).sum(dim=1, keepdim=True) + 1e-12)

    def to_curve(self, similarity: Tensor, temperature: Tensor) -> Tensor:
        pull = torch.softmax(similarity.detach() / temperature, dim=1)
        return 1 - (pull * similarity).sum(dim=1).mean()

    def _curve_loss(self, batch: Tensor, grid: Tensor, temperature: Tensor) -> Tensor:
        return self.to_curve(batch @ self.decode(grid).T, temperature)

    def _whole_loss(
        self, batch: Tensor, grid: Tensor, temperature: Tensor, yields: Tensor, fading: Tensor
    ) -> Tensor:
        similarity = batch @ self.decode(grid).T
        logit = self.encoder(batch * math.sqrt(batch.shape[1]))
        x = self.features(torch.sigmoid(logit))
        for layer in self.decoder:
            if isinstance(layer, nn.Linear):
                scaled = [p.detach() + yields * (p - p.detach()) for p in (layer.weight, layer.bias)]
                x = nn.functional.linear(x, *scaled)
            else:
                x = layer(x)
        through_code = 1 - (self.unit(x) * batch).sum(dim=1).mean()
        target = grid[similarity.argmax(dim=1)]
        missed = binary_cross_entropy_with_logits(logit, target)
        to_curve = self.to_curve(similarity, temperature)
        return through_code + self.config.curve_weight * to_curve + fading * missed

    def step(self) -> None:
        whole = self.number >= self.curve
        number = self.number - self.curve if whole else self.number
        total = self.joint if whole else self.curve
        size = self.config.batch_size if whole else self.config.decoder_only_batch_size
        if self.place + size > len(self.order):
            self.order, self.place = torch.randperm(len(self.data)), 0
        batch = self.data[self.order[self.place : self.place + size]]
        self.place += size
        grid = (self.grid + torch.rand(1)) % 1.0
        hot, cold = self.config.temperatures
        warming = self.number / max(self.curve or self.joint, 1)
        temperature = torch.tensor(hot * (cold / hot) ** min(2 * warming, 1.0))
        progress = min(2 * number / total, 1.0)
        if whole:
            yields = torch.tensor(self.config.decoder_feedback * (progress if self.curve else 1.0))
            fading = torch.tensor(self.config.target_weight * (1 - progress))
            loss = self.whole_loss(batch, grid, temperature, yields, fading)
        else:
            loss = self.curve_loss(batch, grid, temperature)
        loss.backward()
        for optimiser in self.optimisers if whole else self.optimisers[1:]:
            optimiser.param_groups[0]["lr"] = self._rate(number, total)
            optimiser.step()
            optimiser.zero_grad()
        self.number += 1

    def _rate(self, number: int, total: int) -> float:
        peak, warm = self.config.learning_rate, max(total // 20, 1)
        if number < warm:
            return peak * number / warm
        done = (number - warm) / max(total - warm, 1)
        return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))

    @torch.no_grad()
    def heldout_loss(self, heldout: np.ndarray, points: int) -> float:
        grid = (torch.arange(points, dtype=torch.float32)[:, None] + 0.5) / points
        return float(1 - (torch.tensor(heldout) @ self.decode(grid).T).amax(dim=1).mean())
