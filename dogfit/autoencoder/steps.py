"""The compiled programs of training: initial state, chunks of steps, held-out scores.

Every restart sees the same batches; only the initial weights differ. That keeps the batch one array, so the
restarts' first layers are one matrix product, and the kernels are gathered once per step.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dogfit.autoencoder.config import AutoencoderConfig
from dogfit.autoencoder.model import Network, Params, code_grid

# Points of the decoder's curve that training compares each kernel with, and that encoding searches.
TRAINING_POINTS = 128
SEARCH_POINTS = 1024
# Softmax temperature, in units of cosine, at the start and from the middle of training on: early every kernel
# pulls on the whole curve, which unfolds it; late on its nearest points only.
HOT, COLD = 0.2, 0.02

State = dict[str, Any]


@cache
def graph(config: AutoencoderConfig, taps: int) -> nnx.GraphDef:
    """Structure of the network, without weights."""
    return nnx.split(nnx.eval_shape(lambda: _network(config, taps, jax.random.key(0))))[0]


def _network(config: AutoencoderConfig, taps: int, key: PRNGKeyArray) -> Network:
    return Network(taps, config.widths, config.code_dim, config.frequencies, rngs=nnx.Rngs(key))


def optimiser(config: AutoencoderConfig) -> optax.GradientTransformation:
    total = chunks(config)[0] * chunks(config)[1]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(total // 20, 1), max(total, 2), config.learning_rate / 100
    )
    return optax.adamw(schedule, weight_decay=config.weight_decay)


def chunks(config: AutoencoderConfig) -> tuple[int, int]:
    """Number of chunks and steps per chunk; all of one length, so that one program serves them all."""
    count = max(round(config.steps / 50), 1)
    return count, -(-config.steps // count)


def batches(config: AutoencoderConfig, n: int) -> tuple[int, int]:
    """Batches per epoch and rows per batch; the rows are spread evenly, so no batch is left with a crumb."""
    per_epoch = -(-n // config.batch_size)
    return per_epoch, -(-n // per_epoch)


@partial(jax.jit, static_argnames=("config", "taps", "n"))
def initial_state(config: AutoencoderConfig, taps: int, n: int) -> State:
    """Weights and optimiser state stacked over restarts, the data order, the key and the loss history."""
    key = jax.random.key(config.seed)
    weights_key, order_key = jax.random.split(key)

    def fresh(key: PRNGKeyArray) -> Params:
        return nnx.to_pure_dict(nnx.split(_network(config, taps, key))[1])

    params = jax.vmap(fresh)(jax.random.split(weights_key, config.restarts))
    count, length = chunks(config)
    per_epoch, size = batches(config, n)
    return {
        "params": params,
        "optimiser": jax.vmap(optimiser(config).init)(params),
        "key": jax.random.key_data(order_key),
        "order": jnp.arange(per_epoch * size),
        "step": jnp.zeros((), jnp.int32),
        "history": jnp.full((count * length, config.restarts), jnp.nan, jnp.float32),
    }


@partial(jax.jit, static_argnames=("config", "n", "rows"), donate_argnames="state")
def train_chunk(
    state: State, kernels: Float[Array, "m taps"], *, config: AutoencoderConfig, n: int, rows: NamedSharding
) -> State:
    """Run one chunk of steps. The first `n` rows of `kernels` are data, the others padding for the mesh."""
    one = partial(_step, kernels=kernels, config=config, n=n, rows=rows)
    state = jax.lax.scan(lambda s, _: (one(s), None), state, length=chunks(config)[1])[0]
    # Whole on every device, so that each process can read it.
    return jax.lax.with_sharding_constraint(state, NamedSharding(rows.mesh, PartitionSpec()))


def batch_indices(
    state: State, config: AutoencoderConfig, n: int, devices: int
) -> tuple[Int[Array, " b"], Bool[Array, " b"], Int[Array, " e"]]:
    """Rows of the current step's batch, which of them are data, and the order of the current epoch.

    An epoch is one shuffle of the rows, padded to whole batches; the batch is padded to a multiple of
    `devices`. Only the latter padding depends on the mesh, so every mesh sees the same batches.
    """
    per_epoch, size = batches(config, n)
    epoch, place = state["step"] // per_epoch, state["step"] % per_epoch
    key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), 2 * epoch)
    order = jax.lax.cond(
        place == 0, lambda: jax.random.permutation(key, per_epoch * size), lambda: state["order"]
    )
    index = jax.lax.dynamic_slice(order, (place * size,), (size,))
    index = jnp.pad(index, (0, -size % devices), constant_values=n)
    return index, index < n, order


def _step(
    state: State, kernels: Float[Array, "m taps"], config: AutoencoderConfig, n: int, rows: NamedSharding
) -> State:
    key, step = jax.random.wrap_key_data(state["key"]), state["step"]
    index, valid, order = batch_indices(state, config, n, rows.mesh.size)
    batch = jax.lax.with_sharding_constraint(jnp.take(kernels, index, axis=0, mode="clip"), rows)
    valid = jax.lax.with_sharding_constraint(valid, rows)

    shift = jax.random.uniform(jax.random.fold_in(key, 2 * step + 1), (1, config.code_dim))
    grid = (jnp.asarray(code_grid(TRAINING_POINTS, config.code_dim)) + shift) % 1.0
    progress = jnp.minimum(2 * step / state["history"].shape[0], 1.0)
    temperature = HOT * (COLD / HOT) ** progress

    def update(params, optimiser_state):
        objective = partial(
            _loss, config=config, batch=batch, valid=valid, grid=grid, temperature=temperature
        )
        gradient, loss = jax.grad(objective, has_aux=True)(params)
        updates, optimiser_state = optimiser(config).update(gradient, optimiser_state, params)
        return optax.apply_updates(params, updates), optimiser_state, loss

    params, optimiser_state, loss = jax.vmap(update)(state["params"], state["optimiser"])
    return {
        "params": params,
        "optimiser": optimiser_state,
        "key": state["key"],
        "order": order,
        "step": step + 1,
        "history": state["history"].at[step].set(loss),
    }


def _loss(
    params: Params,
    *,
    config: AutoencoderConfig,
    batch: Float[Array, "b taps"],
    valid: Bool[Array, "b"],
    grid: Float[Array, "g code"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss through the encoder, cosine loss to the decoder's curve, and what ties the two.

    The first alone leaves kernels stranded: a code can only slide along the curve, past shapes that fit
    worse. The second moves the curve towards the kernels, wherever the encoder has put them. The third, a
    cross-entropy on the logits, tells the encoder of the nearest point of the curve however far it is, and
    revives a saturated sigmoid.

    Returns:
      The objective, and the mean cosine loss at the nearest point of `grid`.
    """
    network = nnx.merge(graph(config, batch.shape[1]), params)
    weight = valid / jnp.maximum(jnp.sum(valid), 1)
    similarity = batch @ network.decode(grid).T
    pull = jax.lax.stop_gradient(jax.nn.softmax(similarity / temperature, axis=-1))
    to_curve = 1 - jnp.sum(pull * similarity, axis=-1)
    logit = network.logit(batch)
    through_code = 1 - jnp.sum(network.decode(nnx.sigmoid(logit)) * batch, axis=-1)
    target = grid[jnp.argmax(similarity, axis=-1)]
    missed = jnp.sum(optax.sigmoid_binary_cross_entropy(logit, target), axis=-1)
    nearest = 1 - jnp.max(similarity, axis=-1)
    return jnp.sum(weight * (to_curve / 2 + through_code / 2 + missed)), jnp.sum(weight * nearest)


@partial(jax.jit, static_argnames="config")
def encode_block(
    params: Params, kernels: Float[Array, "b taps"], config: AutoencoderConfig
) -> tuple[Float[Array, "b code"], Float[Array, "b"], Float[Array, "b code"], Float[Array, "b"]]:
    """Best code of each unit-norm kernel and its cosine; the encoder's own code and its cosine.

    The best code is the encoder's or a point of the search grid, whichever reconstructs better.
    """
    network = nnx.merge(graph(config, kernels.shape[1]), params)
    grid = jnp.asarray(code_grid(SEARCH_POINTS, config.code_dim))
    code = network.encode(kernels)
    at_code = jnp.sum(network.decode(code) * kernels, axis=-1)
    similarity = kernels @ network.decode(grid).T
    on_grid = jnp.max(similarity, axis=-1)
    best = jnp.where((on_grid > at_code)[:, None], grid[jnp.argmax(similarity, axis=-1)], code)
    return best, jnp.maximum(on_grid, at_code), code, at_code


@partial(jax.jit, static_argnames=("config", "taps"))
def decode_block(
    params: Params, code: Float[Array, "m code"], config: AutoencoderConfig, taps: int
) -> Float[Array, "m taps"]:
    """Centred unit-norm kernels at the given codes."""
    return nnx.merge(graph(config, taps), params).decode(code)
