"""Settings of one training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

MIN_KERNELS = 64

Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """What determines a trained autoencoder, apart from its kernels. docs/autoencoder.md measures them."""

    steps: int = 800
    """Optimiser steps, rounded up to whole chunks of about 50."""
    curve_share: float = 0.4
    """Share of the steps, from the first on, that train the decoder's curve alone; the encoder joins then."""
    batch_size: int = 256
    """Kernels per step with the encoder, shared by all restarts."""
    curve_batch_size: int = 1024
    """Kernels per step of the curve alone, where a kernel costs a twelfth as much."""
    restarts: int = 3
    """Independent initialisations trained together; the best by held-out loss is kept."""
    widths: tuple[int, ...] = (256, 256, 64)
    """Hidden widths of the encoder's dense layers; the decoder has them in reverse."""
    channels: tuple[int, ...] = ()
    """Channels of 3x3 convolutions of stride 2 before the encoder's dense layers, in reverse after the
    decoder's; none: dense layers alone."""
    frequencies: int = 16
    """Sine and cosine pairs through which the decoder reads each code: how often its curve may bend. 0: the
    bare code."""
    code_dim: int = 1
    """Numbers in the code."""
    tie_sign: bool = False
    """Give a kernel and its negative one code, and score reconstructions by |cosine|."""
    curve_weight: float = 0.5
    """Weight of the loss at the nearest points of the curve, beside the loss through the encoder's code."""
    target_weight: float = 1.0
    """Weight, falling to zero, of the cross-entropy that shows the encoder each kernel's nearest point."""
    yield_weight: float = 0.3
    """How far, at last, the curve yields to the encoder, by the loss through its code; 0: not at all."""
    temperatures: tuple[float, float] = (0.2, 0.02)
    """Softness of "nearest", in units of cosine, at the start and from the middle on of the curve's own
    steps (of all, where it has none): early every kernel pulls on the whole curve, which unfolds and orders
    it; late on its nearest points only."""
    learning_rate: float = 3e-3
    """Peak of the AdamW schedules, one per part of training: linear warm-up, a cosine to one hundredth."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    compute: Compute = "float32"
    """Type of the layers' arithmetic in training. Weights, codes, losses and trained use stay float32."""
    holdout: float = 0.1
    """Share of the kernels held out to choose the restart (at most 4096 kernels)."""
    seed: int = 0
    """Seed of the split, the initial weights and the order of the data."""

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """From what `dataclasses.asdict` gave, after JSON has made lists of its tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "curve_batch_size", "restarts", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("frequencies", "curve_weight", "target_weight", "yield_weight", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive layer widths, got {self.widths}")
        if min(self.channels, default=1) < 1:
            raise ValueError(f"channels must be positive, got {self.channels}")
        if not 0 <= self.curve_share <= 1:
            raise ValueError(f"curve_share must lie between 0 and 1, got {self.curve_share}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if len(self.temperatures) != 2 or not min(self.temperatures) > 0:
            raise ValueError(f"temperatures must be two positive numbers, got {self.temperatures}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.compute not in get_args(Compute):
            raise ValueError(f"compute must be one of {', '.join(get_args(Compute))}, got {self.compute!r}")
