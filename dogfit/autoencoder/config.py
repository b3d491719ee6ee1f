"""Settings of one training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

MIN_KERNELS = 64

ComputeDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Settings that determine a trained autoencoder, apart from its kernels. See docs/autoencoder.md.

    Raises:
      ValueError: a value is out of its range; the message names it.
    """

    steps: int = 800
    """Optimizer steps, rounded up to whole chunks of about 50."""
    decoder_only_fraction: float = 0.4
    """Fraction of the steps, from the first on, that train the decoder alone; then the encoder joins."""
    batch_size: int = 256
    """Kernels per step with the encoder, the same for all restarts."""
    decoder_only_batch_size: int = 1024
    """Kernels per step of the decoder alone, where a kernel costs a twelfth as much."""
    restarts: int = 3
    """Independent initializations trained together; the best by held-out loss is kept."""
    widths: tuple[int, ...] = (256, 256, 64)
    """Hidden widths of the encoder's dense layers; the decoder has them in reverse."""
    channels: tuple[int, ...] = ()
    """Channels of 3x3 convolutions of stride 2 before the encoder's dense layers, in reverse after the
    decoder's; empty for dense layers alone."""
    frequencies: int = 16
    """Sine and cosine pairs through which the decoder reads each code: how often its curve may bend. 0 gives
    it the bare code."""
    code_dim: int = 1
    """Numbers in the code."""
    tie_sign: bool = False
    """Give a kernel and its negative one code, and score reconstructions by |cosine|."""
    curve_weight: float = 0.5
    """Weight of the loss at the nearest points of the decoder's curve, beside the loss through the code."""
    target_weight: float = 1.0
    """Initial weight, falling to zero, of the cross-entropy that shows the encoder each kernel's nearest
    point of the curve."""
    decoder_feedback: float = 0.3
    """Factor that the decoder's gradient of the loss through the encoder's code reaches, rising from zero; 0
    leaves the decoder to the curve's own loss."""
    temperatures: tuple[float, float] = (0.2, 0.02)
    """Softness of "nearest", in units of cosine, at the start, and from the middle of the decoder-only steps
    on (of all steps, where there are none): early every kernel pulls on the whole curve, which unfolds and
    orders it; late on its nearest points only."""
    learning_rate: float = 3e-3
    """Peak of the AdamW schedules, one per phase: linear warm-up, then a cosine to one hundredth."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW."""
    compute_dtype: ComputeDtype = "float32"
    """Type of the layers' arithmetic in training. Weights, codes and losses, and all use after training, stay
    float32."""
    holdout: float = 0.1
    """Fraction of the kernels held out to choose the restart (at most 4096 kernels)."""
    seed: int = 0
    """Seed of the split, the initial weights and the order of the data."""

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Restore settings from what `dataclasses.asdict` gave, after JSON has made lists of its tuples.

        Args:
          settings: values by name; names that are missing get their defaults.

        Returns:
          The settings.

        Raises:
          TypeError: a name is unknown.
          ValueError: a value is out of its range.
        """
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "decoder_only_batch_size", "restarts", "code_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("frequencies", "curve_weight", "target_weight", "decoder_feedback", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive layer widths, got {self.widths}")
        if min(self.channels, default=1) < 1:
            raise ValueError(f"channels must be positive, got {self.channels}")
        if not 0 <= self.decoder_only_fraction <= 1:
            raise ValueError(
                f"decoder_only_fraction must lie between 0 and 1, got {self.decoder_only_fraction}"
            )
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        if len(self.temperatures) != 2 or not min(self.temperatures) > 0:
            raise ValueError(f"temperatures must be two positive numbers, got {self.temperatures}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.compute_dtype not in get_args(ComputeDtype):
            raise ValueError(
                f"compute_dtype must be {' or '.join(get_args(ComputeDtype))}, got {self.compute_dtype!r}"
            )
