"""Train one autoencoder: several restarts at once, over a mesh, resumable."""

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from dogfit.autoencoder import steps
from dogfit.autoencoder.config import MIN_KERNELS, AutoencoderConfig, TooFewKernels
from dogfit.autoencoder.trained import Autoencoder, collapsed, entropy_share, unit_rows
from dogfit.devices import data_mesh, everywhere, pad_rows, place, rows
from dogfit.distributed import broadcast, process_count, wait_for_all
from dogfit.errors import DogfitError, InputError

HELDOUT_MOST = 4096


def train_autoencoder(
    kernels: ArrayLike,
    config: AutoencoderConfig | None = None,
    *,
    mesh: Mesh | None = None,
    checkpoint_dir: Path | None = None,
    checkpoint_every_s: float = 5.0,
    progress: Callable[[int, int, float], None] | None = None,
) -> Autoencoder:
    """Learn a code in [0, 1] for kernels of one size, by cosine loss.

    The decoder's curve is drawn towards the kernels, at first as a whole and then more and more locally,
    while the encoder learns to find each kernel's place on it. Batches are split over the mesh; uneven
    counts are padded and masked. The number of devices changes the result only through rounding. A mesh over
    several processes is trained on when each of them makes this call with the same arguments; all get the
    result, and process 0 writes the checkpoints.

    Args:
      kernels: `[n, k, k]`; centred and scaled to unit norm here. Leave constant and non-finite ones out.
      config: see `AutoencoderConfig`.
      mesh: devices to train on (see `dogfit.devices.data_mesh`); the first of this process when None.
      checkpoint_dir: folder for checkpoints. The same call continues a run that was killed, to bit-identical
        parameters on the same devices. Several processes need one that all of them can read.
      checkpoint_every_s: least seconds between two checkpoints; the last state is always written.
      progress: called with (steps done, steps in all, lowest current cosine loss of the restarts).

    Raises:
      TooFewKernels: there are fewer than `MIN_KERNELS`; the caller skips the size.
      InputError: some kernels are constant or not finite.
      DogfitError: the folder holds another run, or every restart diverged.
    """
    config = config or AutoencoderConfig()
    taps, good = unit_rows(kernels)
    size = math.isqrt(taps.shape[1])
    if not good.all():
        raise InputError(f"{np.sum(~good)} of {len(good)} kernels are constant or not finite; leave them out")
    if len(taps) < MIN_KERNELS:
        raise TooFewKernels(
            f"{len(taps)} kernels of {size}x{size} are too few to learn a code from; "
            f"at least {MIN_KERNELS} are needed"
        )
    mesh = mesh or data_mesh(jax.local_devices()[:1])
    among = len({device.process_index for device in mesh.devices.flat})
    if among < process_count() and (among > 1 or checkpoint_dir is not None):
        raise ValueError(
            f"the mesh spans {among} of {process_count()} processes; give one that spans all, or the devices "
            "of one process and no checkpoint_dir"
        )
    heldout, training = _split(taps, config)

    fresh = jax.device_get(steps.initial_state(config, taps.shape[1]))
    state = jax.tree.map(lambda array: place(array, everywhere(mesh)), fresh)
    if checkpoint_dir is None:
        state = _train(state, training, config, mesh, None, checkpoint_every_s, progress)
    else:
        # Orbax takes a second to import, and most callers train without it.
        from dogfit.autoencoder.resume import Checkpoints, fingerprint

        with contextlib.closing(
            Checkpoints(Path(checkpoint_dir), fingerprint(taps, config), mesh)
        ) as checkpoints:
            state = checkpoints.restore(state)
            state = _train(state, training, config, mesh, checkpoints, checkpoint_every_s, progress)
    return _keep_best(jax.device_get(state), heldout, config, size)


def _split(
    taps: Float[np.ndarray, "n taps"], config: AutoencoderConfig
) -> tuple[Float[np.ndarray, "h taps"], Float[np.ndarray, "m taps"]]:
    """Held-out kernels, drawn at random, and the others: all that training sees."""
    count = min(max(round(len(taps) * config.holdout), 1), len(taps) - 1, HELDOUT_MOST)
    chosen = np.zeros(len(taps), bool)
    chosen[np.random.default_rng(config.seed).choice(len(taps), count, replace=False)] = True
    return taps[chosen], taps[~chosen]


def _train(state, training, config, mesh, checkpoints, every_s, progress) -> steps.State:
    data = place(pad_rows(training, mesh.size)[0], rows(mesh))
    how = {"config": config, "n": len(training), "rows": rows(mesh)}
    train_chunk = partial(steps.train_chunk, **how)
    if mesh.is_multi_process:
        # Gloo, which does the collectives of CPUs, gives up on a process that comes half a minute after the
        # others, for which compiling is enough; so all compile first, and meet before every chunk.
        train_chunk = steps.train_chunk.lower(state, data, **how).compile()
    total = state["history"].shape[0]
    step = int(state["step"])
    saved = time.monotonic()
    while step < total:
        if mesh.is_multi_process:
            wait_for_all()
        state = train_chunk(state, data)
        step = int(state["step"])
        if progress is not None:
            progress(step, total, float(np.nanmin(np.asarray(state["history"])[step - 1])))
        if checkpoints is not None:
            due = step == total or time.monotonic() - saved >= every_s
            # The processes save together, by the clock of the first.
            if broadcast(bytes([due])) == b"\x01" if mesh.is_multi_process else due:
                checkpoints.save(state)
                saved = time.monotonic()
    return state


def _keep_best(
    state: steps.State, heldout: Float[np.ndarray, "h taps"], config: AutoencoderConfig, size: int
):
    """Score every restart on the held-out kernels and keep the best that is finite and not collapsed."""
    padded, valid = pad_rows(heldout, 1 << (len(heldout) - 1).bit_length())
    scores = []
    for restart in range(config.restarts):
        params = jax.tree.map(lambda a, r=restart: a[r], state["params"])
        code, cosine, own_code, own_cosine = (
            np.array(a)[valid] for a in steps.encode_block(params, padded, config)
        )
        shape_use = _variance(np.asarray(steps.decode_block(params, code, config, size**2))) / _variance(
            heldout
        )
        finite = bool(np.isfinite(cosine).all() and np.isfinite(own_code).all())
        # An encoder that had no steps is not dead; its kernels' places on the curve are the code then.
        judged = own_code if steps.parts(config)[1] else code
        scores.append(
            (1 - cosine.mean(), 1 - own_cosine.mean(), entropy_share(judged) if finite else 0.0, shape_use)
        )
    losses, encoder_losses, code_use, shape_use = np.array(scores, np.float32).T
    if not np.isfinite(losses).any():
        raise DogfitError(
            f"training diverged in all {config.restarts} restarts; "
            f"lower learning_rate (now {config.learning_rate})"
        )
    sound = np.isfinite(losses) & ~collapsed(code_use, shape_use)
    restart = int(np.nanargmin(np.where(sound, losses, np.nan) if sound.any() else losses))
    return Autoencoder(
        params=jax.tree.map(lambda a: a[restart], state["params"]),
        config=config,
        size=size,
        history=np.asarray(state["history"]),
        heldout_losses=losses,
        encoder_losses=encoder_losses,
        code_use=code_use,
        shape_use=shape_use,
        restart=restart,
    )


def _variance(unit_rows: Float[np.ndarray, "n taps"]) -> float:
    """Variance of unit vectors about their mean, in [0, 1]."""
    return max(1.0 - float(np.sum(unit_rows.mean(axis=0) ** 2)), 1e-12)
