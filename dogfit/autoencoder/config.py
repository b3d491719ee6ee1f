"""Settings of one training run, and the errors it can raise."""

from dataclasses import dataclass

from dogfit.errors import DogfitError

MIN_KERNELS = 64


class TooFewKernels(DogfitError):  # noqa: N818 - names the condition a caller skips on
    """A size has too few kernels to learn a code from; callers report it and skip the size."""


@dataclass(frozen=True)
class AutoencoderConfig:
    """What determines a trained autoencoder, apart from its kernels."""

    steps: int = 800
    """Optimiser steps, rounded up to whole chunks of about 50."""
    batch_size: int = 256
    """Kernels per step, shared by all restarts."""
    restarts: int = 3
    """Independent initialisations trained together; the best by held-out loss is kept."""
    widths: tuple[int, ...] = (256, 256, 64)
    """Hidden widths of the encoder; the decoder has them in reverse."""
    frequencies: int = 16
    """Sine and cosine pairs through which the decoder reads each code."""
    code_dim: int = 1
    """Numbers in the code."""
    learning_rate: float = 3e-3
    """Peak of the AdamW schedule: linear warm-up, then a cosine to one hundredth."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    holdout: float = 0.1
    """Share of the kernels held out to choose the restart (at most 4096 kernels)."""
    seed: int = 0
    """Seed of the split, the initial weights and the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "restarts", "code_dim", "frequencies"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive layer widths, got {self.widths}")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"learning_rate must be positive and weight_decay not negative, "
                f"got {self.learning_rate} and {self.weight_decay}"
            )
