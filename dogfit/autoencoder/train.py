"""Training of one autoencoder: several restarts at once, over a mesh, resumable."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from dogfit.autoencoder.autoencoder import Autoencoder, code_entropy, is_collapsed
from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.autoencoder.sharding import KernelShard, check_mesh, shard_kernels
from dogfit.autoencoder.training_step import (
    State,
    decode_block,
    encode_block,
    initial_state,
    train_chunk,
    training_schedule,
)
from dogfit.devices import (
    data_mesh,
    pad_rows,
    place,
    place_rows,
    replicated,
    row_layout,
    row_sharding,
)
from dogfit.distributed import broadcast, wait_for_all
from dogfit.errors import DogfitError

if TYPE_CHECKING:
    from dogfit.autoencoder.checkpointing import Checkpoints

Progress = Callable[[int, int], None]


def train_autoencoder(
    kernels: ArrayLike,
    config: AutoencoderConfig | None = None,
    *,
    mesh: Mesh | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_every_s: float = 5.0,
    progress: Progress | None = None,
) -> Autoencoder:
    """Learn a code in [0, 1] for kernels of one size, by cosine loss.

    The decoder's curve is drawn towards the kernels, at first as a whole and then more and more locally,
    while the encoder learns to find each kernel's position on it. Batches are split over the mesh; uneven
    counts are padded and masked. The number of devices changes the result only through rounding. A mesh over
    several processes is trained on when each of them makes this call, with its own shard of the kernels and
    the same arguments otherwise; all get the result, and process 0 writes the checkpoints. How the kernels
    are sharded, in order of the processes, changes nothing.

    Args:
      kernels: `[n, k, k]`; centered and scaled to unit norm here. Leave constant and non-finite ones out. Of
        several processes each gives its shard alone, such as `kernels[dogfit.distributed.own_rows(n)]`.
      config: see `AutoencoderConfig`.
      mesh: devices to train on (see `dogfit.devices.data_mesh`); the first of this process when None.
      checkpoint_dir: folder for checkpoints. The same call continues a run that was killed, to bit-identical
        parameters on the same devices. Several processes need one that all of them can read.
      checkpoint_every_s: least seconds between two checkpoints; the last state is always written.
      progress: called with (steps done, steps in all) after every chunk of about 50 steps.

    Returns:
      The restart with the least held-out loss among those that are finite and not collapsed.

    Raises:
      TooFewKernels: there are fewer than `MIN_KERNELS`; the caller skips the size.
      InputError: some kernels are constant or not finite.
      ValueError: every process gives the same kernels, or the mesh leaves some processes out.
      DogfitError: the folder holds another run, the processes have other settings, or every restart diverged.

    Example:
      >>> import numpy as np
      >>> import dogfit
      >>> angle = np.linspace(0, 2 * np.pi, 128)[:, None, None]
      >>> u = np.arange(5) - 2
      >>> edges = np.cos(angle) * u + np.sin(angle) * u[:, None]  # [128, 5, 5]
      >>> config = dogfit.AutoencoderConfig(steps=50, restarts=1, widths=(16,), frequencies=2)
      >>> autoencoder = dogfit.train_autoencoder(edges, config)
      >>> autoencoder.encode(edges).shape
      (128,)
    """
    config = config or AutoencoderConfig()
    mesh = mesh or data_mesh(jax.local_devices()[:1])
    check_mesh(mesh, checkpoints=checkpoint_dir is not None)
    shard = shard_kernels(kernels, config, mesh)
    width = shard.taps.shape[1]
    fresh = jax.device_get(initial_state(config, width))
    state = jax.tree.map(lambda array: place(array, replicated(mesh)), fresh)
    with contextlib.ExitStack() as held:
        checkpoints = None
        if checkpoint_dir is not None:
            # Orbax takes a second to import, and most callers train without it.
            from dogfit.autoencoder.checkpointing import Checkpoints, fingerprint

            checkpoints = Checkpoints(Path(checkpoint_dir), fingerprint(shard, config), mesh)
            held.enter_context(contextlib.closing(checkpoints))
            state = checkpoints.restore(state)
        heldout, training = shard.split(config)
        # Of millions of kernels no copy is kept for longer than it is needed.
        del shard
        state = _train(state, training, config, mesh, checkpoints, checkpoint_every_s, progress)
    return _best_restart(jax.device_get(state), heldout, config, math.isqrt(width))


def _train(
    state: State,
    training: KernelShard,
    config: AutoencoderConfig,
    mesh: Mesh,
    checkpoints: "Checkpoints | None",
    checkpoint_every_s: float,
    progress: Progress | None,
) -> State:
    """Run chunks of steps until all are done, saving a state now and then."""
    layout = row_layout(training.counts, mesh)
    data = place_rows(training.taps, training.start, layout, mesh)
    # The seed is in the state, and another one needs no other program.
    static = {"config": replace(config, seed=0), "layout": layout, "sharding": row_sharding(mesh)}
    run_chunk = partial(train_chunk, **static)
    if mesh.is_multi_process:
        # Gloo, which does the collectives of CPUs, gives up on a process that comes half a minute after the
        # others, for which compiling is enough; so all compile first, and meet before every chunk.
        run_chunk = train_chunk.lower(state, data, **static).compile()
    total = state["history"].shape[0]
    step = int(state["step"])
    saved = time.monotonic()
    while step < total:
        if mesh.is_multi_process:
            wait_for_all()
        state = run_chunk(state, data)
        step = int(state["step"])
        if progress is not None:
            progress(step, total)
        if checkpoints is not None:
            due = step == total or time.monotonic() - saved >= checkpoint_every_s
            # The processes save together, by the clock of the first.
            if broadcast(bytes([due])) == b"\x01" if mesh.is_multi_process else due:
                checkpoints.save(state)
                saved = time.monotonic()
    return state


def _best_restart(
    state: State, heldout: Float[np.ndarray, "h taps"], config: AutoencoderConfig, size: int
) -> Autoencoder:
    """Score every restart on the held-out kernels and keep the best that is finite and not collapsed."""
    padded, valid = pad_rows(heldout, 1 << (len(heldout) - 1).bit_length())
    scores = []
    for restart in range(config.restarts):
        params = jax.tree.map(lambda a, r=restart: a[r], state["params"])
        code, cosine, own_code, own_cosine = (
            np.array(a)[valid] for a in encode_block(params, padded, config)
        )
        decoded = np.asarray(decode_block(params, code, config, size**2))
        variance = _variance(decoded) / _variance(heldout)
        finite = bool(np.isfinite(cosine).all() and np.isfinite(own_code).all())
        # An encoder without steps has not collapsed: the kernels' positions on the curve are the code then.
        judged = own_code if training_schedule(config).joint else code
        entropy = code_entropy(judged) if finite else 0.0
        scores.append((1 - cosine.mean(), 1 - own_cosine.mean(), entropy, variance))
    losses, encoder_losses, entropies, variances = np.array(scores, np.float32).T
    if not np.isfinite(losses).any():
        raise DogfitError(
            f"training diverged in all {config.restarts} restarts; "
            f"give a learning_rate below {config.learning_rate}"
        )
    sound = np.isfinite(losses) & ~is_collapsed(entropies, variances)
    restart = int(np.nanargmin(np.where(sound, losses, np.nan) if sound.any() else losses))
    return Autoencoder(
        params=jax.tree.map(lambda a: a[restart], state["params"]),
        config=config,
        size=size,
        history=np.asarray(state["history"]),
        heldout_losses=losses,
        encoder_losses=encoder_losses,
        code_entropies=entropies,
        reconstruction_variances=variances,
        restart=restart,
    )


def _variance(unit_norm: Float[np.ndarray, "n taps"]) -> float:
    """Variance of unit-norm rows about their mean, in [0, 1]."""
    return max(1.0 - float(np.sum(unit_norm.mean(axis=0) ** 2)), 1e-12)
