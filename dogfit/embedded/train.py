"""Train the embedded network to remove noise from photographs: `python -m dogfit.embedded.train`.

The photographs ship inside the wheels of scikit-image and scikit-learn; nothing is downloaded. The same seed
on the same machine and library versions gives the same bytes; elsewhere the result agrees statistically.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from safetensors.numpy import save

from dogfit.atomic_write import write_atomically
from dogfit.embedded.network import NetworkConfig, Parameters, denoise, initial_parameters, psnr
from dogfit.errors import DogfitError

TRAINING_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "moon",
    "retina",
    "rocket",
    "flower.jpg",
)
HELD_OUT_PHOTOGRAPHS = ("china.jpg", "chelsea")
"""Names ending in .jpg are scikit-learn's, the others are functions of `skimage.data`."""

Photograph = Float[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the embedded network's training; the defaults made the committed file."""

    out: Path = Path("embedded-model")
    """Folder for model.safetensors and training.json."""
    steps: int = 3000
    """Optimiser steps."""
    batch_size: int = 4
    """Patches per step."""
    patch_size: int = 64
    """Side of a patch in pixels, a multiple of 8."""
    noise: tuple[float, float] = (0.02, 0.3)
    """Range of the standard deviation of the noise, uniform per patch; intensities are in [0, 1]."""
    learning_rate: float = 2e-3
    """Peak of the one-cycle cosine schedule."""
    weight_decay: float = 0.5
    """Decoupled decay of every weight with two axes or more, the depthwise kernels among them."""
    seed: int = 0
    """Seed of initialisation, patches and noise."""
    report_every: int = 250
    """Steps between two measurements on the held-out photographs, each of which also writes the model."""


def load_photograph(name: str) -> Photograph:
    """Load a photograph.

    Args:
      name: one of TRAINING_PHOTOGRAPHS or HELD_OUT_PHOTOGRAPHS.

    Returns:
      RGB values in [0, 1], `[h, w, 3]`, float32; a grey photograph has three equal channels.

    Raises:
      DogfitError: if scikit-image is needed and missing.
    """
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image(name)
    else:
        try:
            from skimage import data
        except ImportError as error:
            raise DogfitError(
                f"the photograph {name!r} comes from scikit-image; pip install 'dogfit[train]'"
            ) from error
        pixels = getattr(data, name)()
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return (pixels / np.float32(255)).astype(np.float32)


def _halved(image: Photograph) -> Photograph:
    height, width = (side // 2 for side in image.shape[:2])
    return image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))


def sample_patches(
    photographs: Sequence[Photograph], config: TrainingConfig
) -> Iterator[Float[np.ndarray, "n p p 3"]]:
    """Draw random patches, each flipped and turned at random, in full or half resolution.

    Args:
      photographs: RGB images in [0, 1], larger than a patch.
      config: batch size, patch size and seed.

    Yields:
      Batches `[n, p, p, 3]`, without end.
    """
    rng, size = np.random.default_rng(config.seed), config.patch_size
    images = [*photographs, *(_halved(image) for image in photographs)]
    while True:
        batch = []
        for _ in range(config.batch_size):
            image = images[rng.integers(len(images))]
            top, left = (rng.integers(side - size + 1) for side in image.shape[:2])
            patch = np.rot90(image[top : top + size, left : left + size], int(rng.integers(4)))
            batch.append(patch[:, ::-1] if rng.integers(2) else patch)
        yield np.stack(batch)


@cache
def make_optimizer(steps: int, learning_rate: float, weight_decay: float) -> optax.GradientTransformation:
    """Make AdamW with a cosine schedule, warm-up over the first twentieth, and clipped gradients.

    Args:
      steps: length of the schedule.
      learning_rate: its peak.
      weight_decay: decoupled decay of weights with two axes or more.

    Returns:
      The same object for the same arguments, so that a training step is compiled once.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps)
    decayed = partial(jax.tree.map, lambda parameter: parameter.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.99, weight_decay=weight_decay, mask=decayed),
    )


@partial(jax.jit, static_argnames=("noise", "network", "update"), donate_argnums=(0, 1))
def train_step(
    parameters: Parameters,
    state: optax.OptState,
    clean: Float[Array, "n p p 3"],
    key: Array,
    *,
    noise: tuple[float, float],
    network: NetworkConfig,
    update: optax.TransformUpdateFn,
) -> tuple[Parameters, optax.OptState, Float[Array, ""]]:
    """Do one training step.

    Args:
      parameters: parameters of the network; given away.
      state: state of the optimiser; given away.
      clean: patches without noise, `[n, p, p, 3]`.
      key: random key of the noise.
      noise: range of the standard deviation of the noise.
      network: sizes of the network.
      update: update rule of the optimiser.

    Returns:
      New parameters, new state and the mean absolute error before the step.
    """
    level_key, noise_key = jax.random.split(key)
    low, high = noise
    level = jax.random.uniform(level_key, (clean.shape[0], 1, 1, 1), minval=low, maxval=high)
    noisy = clean + level * jax.random.normal(noise_key, clean.shape)

    def loss(parameters: Parameters) -> Array:
        return jnp.mean(jnp.abs(denoise(parameters, noisy, network) - clean))

    value, gradients = jax.value_and_grad(loss)(parameters)
    updates, state = update(gradients, state, parameters)
    return jax.tree.map(jnp.add, parameters, updates), state, value


def held_out_psnr(
    parameters: Parameters, photographs: Mapping[str, Photograph], level: float, network: NetworkConfig
) -> dict[str, dict[str, float]]:
    """Measure the denoiser on the central 256x256 pixels of photographs.

    Args:
      parameters: parameters of the network.
      photographs: name -> image, at least 256 pixels high and wide.
      level: standard deviation of the noise, which is the same in every call.
      network: sizes of the network.

    Returns:
      Name -> PSNR in dB of the `noisy` and the `denoised` image.
    """
    scores = {}
    for name, image in photographs.items():
        top, left = ((side - 256) // 2 for side in image.shape[:2])
        clean = image[None, top : top + 256, left : left + 256]
        noise = np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32)
        noisy = clean + level * noise
        denoised = np.asarray(_denoise(parameters, jnp.asarray(noisy), network))
        scores[name] = {
            "noisy": round(psnr(noisy, clean), 2),
            "denoised": round(psnr(denoised, clean), 2),
        }
    return scores


_denoise = jax.jit(denoise, static_argnums=2)


def train(
    config: TrainingConfig,
    network: NetworkConfig,
    photographs: Sequence[Photograph] | None = None,
    held_out: Mapping[str, Photograph] | None = None,
) -> Parameters:
    """Train from scratch; the model and the record of its training are written at every report.

    Args:
      config: the training run.
      network: the architecture.
      photographs: images to train on; TRAINING_PHOTOGRAPHS if None.
      held_out: images to measure on, by name; HELD_OUT_PHOTOGRAPHS if None.

    Returns:
      The trained parameters, float32; the file holds them as float16.
    """
    config.out.mkdir(parents=True, exist_ok=True)
    if held_out is None:
        held_out = {name: load_photograph(name) for name in HELD_OUT_PHOTOGRAPHS}
    if photographs is None:
        photographs = [load_photograph(name) for name in TRAINING_PHOTOGRAPHS]
    patches = sample_patches(photographs, config)
    parameters, key = initial_parameters(network, config.seed), jax.random.key(config.seed)
    optimizer = make_optimizer(config.steps, config.learning_rate, config.weight_decay)
    state = optimizer.init(parameters)
    record = {
        "config": asdict(config) | {"out": config.out.name},
        "network": asdict(network),
        "versions": {"jax": jax.__version__, "optax": optax.__version__, "numpy": np.__version__},
        "curve": [],
    }
    losses, start = [], time.perf_counter()
    for step in range(1, config.steps + 1):
        parameters, state, loss = train_step(
            parameters,
            state,
            next(patches),
            jax.random.fold_in(key, step),
            noise=config.noise,
            network=network,
            update=optimizer.update,
        )
        losses.append(loss)
        if step % config.report_every and step != config.steps:
            continue
        entry = {
            "step": step,
            "seconds": round(time.perf_counter() - start),
            "loss": round(float(np.mean(losses)), 5),
            "psnr": {str(level): held_out_psnr(parameters, held_out, level, network) for level in (0.1, 0.2)},
        }
        losses.clear()
        record["curve"].append(entry)
        print(json.dumps(entry), flush=True)
        half = {name: np.asarray(value, np.float16) for name, value in parameters.items()}
        write_atomically(config.out / "model.safetensors", save(half, metadata={"format": "pt"}))
        write_atomically(config.out / "training.json", json.dumps(record, indent=1).encode())
    return parameters


if __name__ == "__main__":
    import tyro

    from dogfit.closed_pipe import tolerate_closed_pipe

    with tolerate_closed_pipe():
        train(tyro.cli(TrainingConfig, description=__doc__), NetworkConfig())
