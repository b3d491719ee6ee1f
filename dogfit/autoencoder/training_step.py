"""The compiled programs of training: initial state, chunks of steps, held-out scores.

Training has two phases. First the decoder alone is trained, so that its curve is laid through the kernels: a
step costs the decoding of 128 points and one matrix product with the batch. Then the encoder joins and learns
each kernel's position on the curve, which goes on moving.

Every restart sees the same batches; only the initial weights differ. That keeps the batch one array, so the
restarts' first layers are one matrix product, and the kernels are gathered once per step.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.autoencoder.network import Network, Params, code_grid
from dogfit.autoencoder.shuffle import shuffled_rows
from dogfit.devices import RowLayout

# Points of the decoder's curve that training compares each kernel with, and that encoding searches.
TRAINING_POINTS = 128
SEARCH_POINTS = 1024

CHUNK_STEPS = 50
"""Steps of one call of the compiled loop, about."""

State = dict[str, Any]


class TrainingSchedule(NamedTuple):
    """Numbers of steps of a training run.

    Attributes:
      decoder_only: steps of the first phase, which trains the decoder alone.
      joint: steps of the second phase, which trains the encoder as well.
      chunk: steps of one call of the compiled loop; all chunks have one length, so that one program serves
        them all.
    """

    decoder_only: int
    joint: int
    chunk: int

    @property
    def total(self) -> int:
        """Steps of both phases."""
        return self.decoder_only + self.joint


def training_schedule(config: AutoencoderConfig) -> TrainingSchedule:
    """Divide the steps asked for into phases and chunks; their number is rounded up to whole chunks."""
    chunks = max(round(config.steps / CHUNK_STEPS), 1)
    chunk = -(-config.steps // chunks)
    decoder_only = round(config.decoder_only_fraction * chunks * chunk)
    return TrainingSchedule(decoder_only, chunks * chunk - decoder_only, chunk)


@cache
def network_graph(config: AutoencoderConfig, taps: int) -> nnx.GraphDef:
    """Structure of the network, without weights."""
    return nnx.split(nnx.eval_shape(lambda: _network(config, taps, jax.random.key(0))))[0]


def _network(config: AutoencoderConfig, taps: int, key: PRNGKeyArray) -> Network:
    return Network(taps, config, rngs=nnx.Rngs(key))


def optimizers(config: AutoencoderConfig) -> dict[str, optax.GradientTransformation]:
    """AdamW for the encoder, which joins late, and for the decoder, whose rate falls and rises again then."""

    def rate(steps: int) -> optax.Schedule:
        peak = config.learning_rate
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 20, 1), max(steps, 2), peak / 100)

    schedule = training_schedule(config)
    both = optax.join_schedules([rate(schedule.decoder_only), rate(schedule.joint)], [schedule.decoder_only])
    rates = {"encoder": rate(schedule.joint), "decoder": both}
    return {part: optax.adamw(rate, weight_decay=config.weight_decay) for part, rate in rates.items()}


@partial(jax.jit, static_argnames=("config", "taps"))
def initial_state(config: AutoencoderConfig, taps: int) -> State:
    """Initial weights, optimizer states, random key, position in the data and loss history.

    Weights and optimizer states are stacked over restarts, on a leading axis.
    """
    key = jax.random.key(config.seed)
    weights_key, shuffle_key = jax.random.split(key)

    def initialize(key: PRNGKeyArray) -> Params:
        return nnx.to_pure_dict(nnx.split(_network(config, taps, key))[1])

    params = jax.vmap(initialize)(jax.random.split(weights_key, config.restarts))
    zero = jnp.zeros((), jnp.int32)
    steps = training_schedule(config).total
    return {
        "params": params,
        "optimizer": {part: jax.vmap(o.init)(params[part]) for part, o in optimizers(config).items()},
        "key": jax.random.key_data(shuffle_key),
        "epoch": zero,
        "position": zero,
        "step": zero,
        "history": jnp.full((steps, config.restarts), jnp.nan, jnp.float32),
    }


@partial(jax.jit, static_argnames=("config", "layout", "sharding"), donate_argnames="state")
def train_chunk(
    state: State,
    kernels: Float[Array, "m taps"],
    *,
    config: AutoencoderConfig,
    layout: RowLayout,
    sharding: NamedSharding,
) -> State:
    """Run one chunk of steps.

    Args:
      state: as `initial_state` or this function left it; donated.
      kernels: normalized kernels `[m, taps]`, split over the mesh.
      config: settings of the run.
      layout: positions of the kernels in `kernels`.
      sharding: the mesh's `row_sharding`.

    Returns:
      The state after the chunk, replicated on every device, so that each process can read it.
    """
    schedule = training_schedule(config)
    step = partial(_step, kernels=kernels, config=config, layout=layout, sharding=sharding)
    # Two loops, since a condition within one would copy the whole state at every step.
    switch = jnp.clip(schedule.decoder_only - state["step"], 0, schedule.chunk)
    if schedule.decoder_only:
        state = jax.lax.fori_loop(0, switch, lambda _, s: step(s, joint=False), state)
    if schedule.joint:
        state = jax.lax.fori_loop(switch, schedule.chunk, lambda _, s: step(s, joint=True), state)
    return jax.lax.with_sharding_constraint(state, NamedSharding(sharding.mesh, PartitionSpec()))


def next_batch(
    state: State, size: int, n: int, devices: int
) -> tuple[Int[Array, " b"], Bool[Array, " b"], dict[str, Int[Array, ""]]]:
    """Rows at the next positions of the epochs' shuffles.

    Batches run on over the end of an epoch, so every row comes once in each and none is dropped. Only the
    padding to a multiple of `devices` depends on the mesh, so every mesh sees the same batches.

    Args:
      state: holds "epoch", "position" and "key".
      size: rows wanted.
      n: rows in all.
      devices: the batch is padded to a multiple of this.

    Returns:
      Row numbers `[b]`, a mask `[b]` that is False on padding, and the "epoch" and "position" after them.
    """
    position = state["position"] + jnp.arange(size)
    index = shuffled_rows(state["epoch"] + position // n, position % n, state["key"], n)
    index = jnp.pad(index, (0, -size % devices), constant_values=n)
    after = state["position"] + size
    return index, index < n, {"epoch": state["epoch"] + after // n, "position": after % n}


def _step(
    state: State,
    kernels: Float[Array, "m taps"],
    config: AutoencoderConfig,
    layout: RowLayout,
    sharding: NamedSharding,
    *,
    joint: bool,
) -> State:
    """Take one step of encoder and decoder, or of the decoder alone."""
    step, params = state["step"], state["params"]
    size = config.batch_size if joint else config.decoder_only_batch_size
    index, valid, after = next_batch(state, size, layout.n, sharding.mesh.size)
    gathered = jnp.take(kernels, layout.places(index), axis=0, mode="clip")
    batch = jax.lax.with_sharding_constraint(gathered, sharding)
    weight = jax.lax.with_sharding_constraint(valid / size, sharding)

    key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), step)
    grid = jnp.asarray(code_grid(TRAINING_POINTS, config.code_dim))
    grid = (grid + jax.random.uniform(key, (1, config.code_dim))) % 1.0
    updated = ("encoder", "decoder") if joint else ("decoder",)
    loss = _joint_loss if joint else _decoder_only_loss
    fixed = {"config": config, "step": step, "batch": batch, "weight": weight, "grid": grid}

    def update(mine: Params, others: Params, optimizer: Any) -> tuple[Params, Any, Float[Array, ""]]:
        gradient, nearest = jax.grad(lambda p: loss({**others, **p}, **fixed), has_aux=True)(mine)
        new, states = {}, {}
        for part, rule in optimizers(config).items():
            if part in mine:
                updates, states[part] = rule.update(gradient[part], optimizer[part], mine[part])
                new[part] = optax.apply_updates(mine[part], updates)
        return new, states, nearest

    mine = {part: params[part] for part in updated}
    others = {part: params[part] for part in params if part not in updated}
    new, optimizer, nearest = jax.vmap(update)(mine, others, {p: state["optimizer"][p] for p in updated})
    return {
        "params": {**params, **new},
        "optimizer": {**state["optimizer"], **optimizer},
        "key": state["key"],
        **after,
        "step": step + 1,
        "history": state["history"].at[step].set(nearest),
    }


def _decoder_only_loss(
    params: Params,
    *,
    config: AutoencoderConfig,
    step: Int[Array, ""],
    batch: Float[Array, "b taps"],
    weight: Float[Array, "b"],
    grid: Float[Array, "g code"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss at the points of `grid` nearest to each kernel, softly chosen; and at the nearest one."""
    similarity = _similarity(_merged(config, batch, params).decode(grid) @ batch.T, config)
    return _curve_loss(similarity, weight, config, step)


def _joint_loss(
    params: Params,
    *,
    config: AutoencoderConfig,
    step: Int[Array, ""],
    batch: Float[Array, "b taps"],
    weight: Float[Array, "b"],
    grid: Float[Array, "g code"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss through the encoder's code and to the decoder's curve, and a term that ties the two.

    The first alone leaves kernels stranded: a code can only slide along the curve, past shapes that fit
    worse. The second moves the curve towards the kernels, independently of the encoder. The third, a
    cross-entropy on the logits, tells the encoder of the nearest point of the curve however far it is, and
    revives a saturated sigmoid; it fades, because an encoder torn between two positions aims at neither. The
    curve, once laid, yields to the encoder gradually: pulled by one that knows nothing yet, it would shrink.

    Returns:
      The objective, and the mean cosine loss at the nearest point of `grid`.
    """
    network = _merged(config, batch, params)
    similarity = _similarity(network.decode(grid) @ batch.T, config)
    to_curve, nearest = _curve_loss(similarity, weight, config, step)
    schedule = training_schedule(config)
    progress = _ramp(step - schedule.decoder_only, schedule.joint)
    logit = network.logit(batch)
    feedback = config.decoder_feedback * (progress if schedule.decoder_only else 1.0)
    decoder = scale_gradient(params["decoder"], feedback)
    decode = _merged(config, batch, {**params, "decoder": decoder}).decode
    at_code = _similarity(jnp.sum(decode(nnx.sigmoid(logit)) * batch, axis=-1), config)
    target = grid[jnp.argmax(similarity, axis=0)]
    missed = jnp.sum(optax.sigmoid_binary_cross_entropy(logit, target), axis=-1)
    fading = config.target_weight * (1 - progress)
    through_code = jnp.sum(weight * (1 - at_code))
    return through_code + config.curve_weight * to_curve + fading * jnp.sum(weight * missed), nearest


def _merged(config: AutoencoderConfig, batch: Float[Array, "b taps"], params: Params) -> Network:
    return nnx.merge(network_graph(config, batch.shape[1]), params)


def scale_gradient(params: Params, factor: Float[Array, ""] | float) -> Params:
    """Pass parameters on, with `factor` times their gradients.

    Args:
      params: a tree of arrays.
      factor: 1 changes nothing, 0 holds them.

    Returns:
      The same values.
    """
    fixed = jax.lax.stop_gradient(params)
    return jax.tree.map(lambda p, f: f + factor * (p - f), params, fixed)


def _similarity(cosine: Float[Array, "..."], config: AutoencoderConfig) -> Float[Array, "..."]:
    return jnp.abs(cosine) if config.tie_sign else cosine


def _ramp(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Rise from 0 at the first step to 1 in the middle of `steps`, and stay there."""
    return jnp.minimum(2 * step / max(steps, 1), 1.0)


def _curve_loss(
    similarity: Float[Array, "g b"],
    weight: Float[Array, "b"],
    config: AutoencoderConfig,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss at the nearest points of the curve, softly chosen; and at the nearest one."""
    hot, cold = config.temperatures
    schedule = training_schedule(config)
    temperature = hot * (cold / hot) ** _ramp(step, schedule.decoder_only or schedule.joint)
    pull = jax.lax.stop_gradient(jax.nn.softmax(similarity / temperature, axis=0))
    soft = 1 - jnp.sum(pull * similarity, axis=0)
    return jnp.sum(weight * soft), jnp.sum(weight * (1 - jnp.max(similarity, axis=0)))


def _in_float32(config: AutoencoderConfig) -> AutoencoderConfig:
    return replace(config, compute_dtype="float32")


@partial(jax.jit, static_argnames="config")
def encode_block(
    params: Params, kernels: Float[Array, "b taps"], config: AutoencoderConfig
) -> tuple[Float[Array, "b code"], Float[Array, "b"], Float[Array, "b code"], Float[Array, "b"]]:
    """Find the best code of each unit-norm kernel.

    The best code is the encoder's or a point of the search grid, whichever reconstructs better. With tied
    signs the better has the larger |cosine|, and cosines are absolute.

    Args:
      params: weights of one restart.
      kernels: normalized kernels `[b, taps]`.
      config: settings of the network.

    Returns:
      The best code `[b, code]` and its cosine `[b]`; the encoder's own code `[b, code]` and its cosine `[b]`.
    """
    network = nnx.merge(network_graph(_in_float32(config), kernels.shape[1]), params)
    grid = jnp.asarray(code_grid(SEARCH_POINTS, config.code_dim))
    code = network.encode(kernels)
    at_code = _similarity(jnp.sum(network.decode(code) * kernels, axis=-1), config)
    similarity = _similarity(kernels @ network.decode(grid).T, config)
    on_grid = jnp.max(similarity, axis=-1)
    best = jnp.where((on_grid > at_code)[:, None], grid[jnp.argmax(similarity, axis=-1)], code)
    return best, jnp.maximum(on_grid, at_code), code, at_code


@partial(jax.jit, static_argnames=("config", "taps"))
def decode_block(
    params: Params, code: Float[Array, "m code"], config: AutoencoderConfig, taps: int
) -> Float[Array, "m taps"]:
    """Decode codes `[m, code]` to centered unit-norm kernels `[m, taps]`."""
    return nnx.merge(network_graph(_in_float32(config), taps), params).decode(code)
