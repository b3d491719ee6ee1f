"""The compiled programs of training: initial state, chunks of steps, held-out scores.

Training has two parts. First the decoder's curve alone is laid through the kernels: a step costs the
decoding of 128 points and one matrix product with the batch. Then the encoder joins and learns each kernel's
place on the curve, which goes on moving.

Every restart sees the same batches; only the initial weights differ. That keeps the batch one array, so the
restarts' first layers are one matrix product, and the kernels are gathered once per step.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

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

State = dict[str, Any]


@cache
def graph(config: AutoencoderConfig, taps: int) -> nnx.GraphDef:
    """Structure of the network, without weights."""
    return nnx.split(nnx.eval_shape(lambda: _network(config, taps, jax.random.key(0))))[0]


def _network(config: AutoencoderConfig, taps: int, key: PRNGKeyArray) -> Network:
    return Network(taps, config, rngs=nnx.Rngs(key))


def chunks(config: AutoencoderConfig) -> tuple[int, int]:
    """Number of chunks and steps per chunk; all of one length, so that one program serves them all."""
    count = max(round(config.steps / 50), 1)
    return count, -(-config.steps // count)


def parts(config: AutoencoderConfig) -> tuple[int, int]:
    """Steps of the curve alone, and steps with the encoder."""
    count, length = chunks(config)
    curve = round(config.curve_share * count * length)
    return curve, count * length - curve


def optimisers(config: AutoencoderConfig) -> dict[str, optax.GradientTransformation]:
    """One for the encoder, which joins late, and one for the decoder, whose rate falls and rises with it."""

    def schedule(steps: int) -> optax.Schedule:
        peak = config.learning_rate
        return optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 20, 1), max(steps, 2), peak / 100)

    curve, joint = parts(config)
    both = optax.join_schedules([schedule(curve), schedule(joint)], [curve])
    rates = {"encoder": schedule(joint), "decoder": both}
    return {part: optax.adamw(rate, weight_decay=config.weight_decay) for part, rate in rates.items()}


@partial(jax.jit, static_argnames=("config", "taps"))
def initial_state(config: AutoencoderConfig, taps: int) -> State:
    """Weights and optimiser state stacked over restarts, the key, the place in the data, the loss history."""
    key = jax.random.key(config.seed)
    weights_key, order_key = jax.random.split(key)

    def fresh(key: PRNGKeyArray) -> Params:
        return nnx.to_pure_dict(nnx.split(_network(config, taps, key))[1])

    params = jax.vmap(fresh)(jax.random.split(weights_key, config.restarts))
    zero = jnp.zeros((), jnp.int32)
    return {
        "params": params,
        "optimiser": {part: jax.vmap(o.init)(params[part]) for part, o in optimisers(config).items()},
        "key": jax.random.key_data(order_key),
        "epoch": zero,
        "place": zero,
        "step": zero,
        "history": jnp.full((sum(parts(config)), config.restarts), jnp.nan, jnp.float32),
    }


@partial(jax.jit, static_argnames=("config", "dealt", "rows"), donate_argnames="state")
def train_chunk(
    state: State,
    kernels: Float[Array, "m taps"],
    *,
    config: AutoencoderConfig,
    dealt: RowLayout,
    rows: NamedSharding,
) -> State:
    """Run one chunk of steps on kernels that lie where `dealt` says."""
    curve, joint = parts(config)
    length = chunks(config)[1]
    step = partial(_step, kernels=kernels, config=config, dealt=dealt, rows=rows)
    # Two loops, since a condition within one would copy the whole state at every step.
    alone = jnp.clip(curve - state["step"], 0, length)
    if curve:
        state = jax.lax.fori_loop(0, alone, lambda _, s: step(s, whole=False), state)
    if joint:
        state = jax.lax.fori_loop(alone, length, lambda _, s: step(s, whole=True), state)
    # Whole on every device, so that each process can read it.
    return jax.lax.with_sharding_constraint(state, NamedSharding(rows.mesh, PartitionSpec()))


def next_batch(
    state: State, size: int, n: int, devices: int
) -> tuple[Int[Array, " b"], Bool[Array, " b"], dict[str, Int[Array, ""]]]:
    """Rows at the next `size` places of the shuffles, which of them are data, and the place after.

    Batches run on over the end of an epoch, so every row comes once in each and none is dropped. Only the
    padding to a multiple of `devices` depends on the mesh, so every mesh sees the same batches.
    """
    place = state["place"] + jnp.arange(size)
    index = shuffled_rows(state["epoch"] + place // n, place % n, state["key"], n)
    index = jnp.pad(index, (0, -size % devices), constant_values=n)
    after = state["place"] + size
    return index, index < n, {"epoch": state["epoch"] + after // n, "place": after % n}


def _step(
    state: State,
    kernels: Float[Array, "m taps"],
    config: AutoencoderConfig,
    dealt: RowLayout,
    rows: NamedSharding,
    *,
    whole: bool,
) -> State:
    """One step of the whole network, or of the decoder's curve alone."""
    step, params = state["step"], state["params"]
    size = config.batch_size if whole else config.curve_batch_size
    index, valid, after = next_batch(state, size, dealt.n, rows.mesh.size)
    taken = jnp.take(kernels, dealt.places(index), axis=0, mode="clip")
    batch = jax.lax.with_sharding_constraint(taken, rows)
    weight = jax.lax.with_sharding_constraint(valid / size, rows)

    key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), step)
    grid = jnp.asarray(code_grid(TRAINING_POINTS, config.code_dim))
    grid = (grid + jax.random.uniform(key, (1, config.code_dim))) % 1.0
    trained = ("encoder", "decoder") if whole else ("decoder",)
    loss = _whole_loss if whole else _curve_loss
    fixed = {"config": config, "step": step, "batch": batch, "weight": weight, "grid": grid}

    def update(mine: Params, others: Params, optimiser: Any) -> tuple[Params, Any, Float[Array, ""]]:
        gradient, nearest = jax.grad(lambda p: loss({**others, **p}, **fixed), has_aux=True)(mine)
        new, states = {}, {}
        for part, rule in optimisers(config).items():
            if part in mine:
                updates, states[part] = rule.update(gradient[part], optimiser[part], mine[part])
                new[part] = optax.apply_updates(mine[part], updates)
        return new, states, nearest

    mine = {part: params[part] for part in trained}
    others = {part: params[part] for part in params if part not in trained}
    new, optimiser, nearest = jax.vmap(update)(mine, others, {p: state["optimiser"][p] for p in trained})
    return {
        "params": {**params, **new},
        "optimiser": {**state["optimiser"], **optimiser},
        "key": state["key"],
        **after,
        "step": step + 1,
        "history": state["history"].at[step].set(nearest),
    }


def _curve_loss(
    params: Params,
    *,
    config: AutoencoderConfig,
    step: Int[Array, ""],
    batch: Float[Array, "b taps"],
    weight: Float[Array, "b"],
    grid: Float[Array, "g code"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss at the points of `grid` nearest to each kernel, softly chosen; and at the nearest one."""
    similarity = _match(_merged(config, batch, params).decode(grid) @ batch.T, config)
    return _to_curve(similarity, weight, config, step)


def _whole_loss(
    params: Params,
    *,
    config: AutoencoderConfig,
    step: Int[Array, ""],
    batch: Float[Array, "b taps"],
    weight: Float[Array, "b"],
    grid: Float[Array, "g code"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cosine loss through the encoder, cosine loss to the decoder's curve, and what ties the two.

    The first alone leaves kernels stranded: a code can only slide along the curve, past shapes that fit
    worse. The second moves the curve towards the kernels, wherever the encoder has put them. The third, a
    cross-entropy on the logits, tells the encoder of the nearest point of the curve however far it is, and
    revives a saturated sigmoid; it fades, because an encoder torn between two places aims at neither. The
    curve, once laid, yields to the encoder gradually: pulled by one that knows nothing yet, it would shrink.

    Returns:
      The objective, and the mean cosine loss at the nearest point of `grid`.
    """
    network = _merged(config, batch, params)
    similarity = _match(network.decode(grid) @ batch.T, config)
    to_curve, nearest = _to_curve(similarity, weight, config, step)
    curve, joint = parts(config)
    progress = _progress(step - curve, joint)
    logit = network.logit(batch)
    decoder = _scaled_gradient(params["decoder"], config.yield_weight * (progress if curve else 1.0))
    decode = _merged(config, batch, {**params, "decoder": decoder}).decode
    at_code = _match(jnp.sum(decode(nnx.sigmoid(logit)) * batch, axis=-1), config)
    target = grid[jnp.argmax(similarity, axis=0)]
    missed = jnp.sum(optax.sigmoid_binary_cross_entropy(logit, target), axis=-1)
    fading = config.target_weight * (1 - progress)
    through_code = jnp.sum(weight * (1 - at_code))
    return through_code + config.curve_weight * to_curve + fading * jnp.sum(weight * missed), nearest


def _merged(config: AutoencoderConfig, batch: Float[Array, "b taps"], params: Params) -> Network:
    return nnx.merge(graph(config, batch.shape[1]), params)


def _scaled_gradient(params: Params, factor: Float[Array, ""] | float) -> Params:
    """The same values; gradients times `factor`."""
    fixed = jax.lax.stop_gradient(params)
    return jax.tree.map(lambda p, f: f + factor * (p - f), params, fixed)


def _match(cosine: Float[Array, "..."], config: AutoencoderConfig) -> Float[Array, "..."]:
    return jnp.abs(cosine) if config.tie_sign else cosine


def _progress(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """0 at the start, 1 from the middle of `steps` on."""
    return jnp.minimum(2 * step / max(steps, 1), 1.0)


def _to_curve(
    similarity: Float[Array, "g b"],
    weight: Float[Array, "b"],
    config: AutoencoderConfig,
    step: Int[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    hot, cold = config.temperatures
    curve, joint = parts(config)
    temperature = hot * (cold / hot) ** _progress(step, curve or joint)
    pull = jax.lax.stop_gradient(jax.nn.softmax(similarity / temperature, axis=0))
    soft = 1 - jnp.sum(pull * similarity, axis=0)
    return jnp.sum(weight * soft), jnp.sum(weight * (1 - jnp.max(similarity, axis=0)))


def _in_float32(config: AutoencoderConfig) -> AutoencoderConfig:
    return replace(config, compute="float32")


@partial(jax.jit, static_argnames="config")
def encode_block(
    params: Params, kernels: Float[Array, "b taps"], config: AutoencoderConfig
) -> tuple[Float[Array, "b code"], Float[Array, "b"], Float[Array, "b code"], Float[Array, "b"]]:
    """Best code of each unit-norm kernel and its cosine; the encoder's own code and its cosine.

    The best code is the encoder's or a point of the search grid, whichever reconstructs better. With tied
    signs the better has the larger |cosine|, and cosines are absolute.
    """
    network = nnx.merge(graph(_in_float32(config), kernels.shape[1]), params)
    grid = jnp.asarray(code_grid(SEARCH_POINTS, config.code_dim))
    code = network.encode(kernels)
    at_code = _match(jnp.sum(network.decode(code) * kernels, axis=-1), config)
    similarity = _match(kernels @ network.decode(grid).T, config)
    on_grid = jnp.max(similarity, axis=-1)
    best = jnp.where((on_grid > at_code)[:, None], grid[jnp.argmax(similarity, axis=-1)], code)
    return best, jnp.maximum(on_grid, at_code), code, at_code


@partial(jax.jit, static_argnames=("config", "taps"))
def decode_block(
    params: Params, code: Float[Array, "m code"], config: AutoencoderConfig, taps: int
) -> Float[Array, "m taps"]:
    """Centred unit-norm kernels at the given codes."""
    return nnx.merge(graph(_in_float32(config), taps), params).decode(code)
