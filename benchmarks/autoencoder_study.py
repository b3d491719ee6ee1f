"""Study of how well a one-dimensional code trains: one change at a time, on real 7x7 kernels.

    python benchmarks/autoencoder_study.py            all; two minutes of processor time on real kernels
    python benchmarks/autoencoder_study.py --only plain tied

Losses are means of 1 - cosine over all kernels, training kernels and held-out ones alike: "nearest" at the
best of 1,024 points of the decoder's curve, "encoder" at the encoder's own code. "Length" is that of the
curve on the unit sphere, in radians: the shorter, the simpler the code. CPU seconds are without compilation.
One restart each, unless said otherwise.

"labels" sets tied signs beside untied ones: the names of segments of the code, and how far 64 bins of the
code and the labels of the kernels' own fits agree (normalised mutual information).
"""

import argparse
import dataclasses
import itertools

import numpy as np
from autoencoder import SHARED, cpu_seconds, real, synthetic

from dogfit.autoencoder import Autoencoder, AutoencoderConfig, train_autoencoder, training_step
from dogfit.autoencoder.network import code_grid
from dogfit.normalize import normalize_rows

DEFAULT = AutoencoderConfig(restarts=1)
PLAIN = dataclasses.replace(
    DEFAULT,
    decoder_only_fraction=0.0,
    curve_weight=0.0,
    target_weight=0.0,
    decoder_feedback=1.0,
    frequencies=0,
)
VARIANTS = {
    "plain": ("the loss through the code alone, bare scalar into the decoder", PLAIN),
    "waves": ("... with 16 sine and cosine pairs", dataclasses.replace(PLAIN, frequencies=16)),
    "targets": (
        "... with the nearest points as targets for the encoder",
        dataclasses.replace(PLAIN, frequencies=16, target_weight=1.0),
    ),
    "together": (
        "... with the loss to the curve, all from the start",
        dataclasses.replace(DEFAULT, decoder_only_fraction=0.0, decoder_feedback=1.0),
    ),
    "default": ("the curve first, then the encoder: the default", DEFAULT),
    "four": ("default, best of 4 restarts", dataclasses.replace(DEFAULT, restarts=4)),
    "yielding": ("default, the curve yields wholly", dataclasses.replace(DEFAULT, decoder_feedback=1.0)),
    "cold": ("default, cold from the start", dataclasses.replace(DEFAULT, temperatures=(0.02, 0.02))),
    "hotter": ("default, never below 0.05", dataclasses.replace(DEFAULT, temperatures=(0.2, 0.05))),
    "few": ("default, 6 frequencies", dataclasses.replace(DEFAULT, frequencies=6)),
    "curve": (
        "the curve alone, no encoder",
        dataclasses.replace(DEFAULT, steps=400, decoder_only_fraction=1.0),
    ),
    "tied": ("default, tied signs (absolute cosine)", dataclasses.replace(DEFAULT, tie_sign=True)),
    "bfloat16": ("default, bfloat16 arithmetic", dataclasses.replace(DEFAULT, compute_dtype="bfloat16")),
    "conv": (
        "default, convolutions of 16 and 32 channels",
        dataclasses.replace(DEFAULT, channels=(16, 32), widths=(128, 64)),
    ),
    "long": (
        "for the encoder: 5000 steps, 6 frequencies, a tenth for the curve",
        dataclasses.replace(
            DEFAULT,
            steps=5000,
            decoder_only_fraction=0.1,
            frequencies=6,
            curve_weight=0.0,
            decoder_feedback=1.0,
        ),
    ),
}


def seriated(points: np.ndarray) -> np.ndarray:
    """Points in the order of a short open path: nearest neighbour, then 2-opt."""
    distance = 1 - points @ points.T
    path, left = [0], set(range(1, len(points)))
    while left:
        path.append(min(left, key=lambda j: distance[path[-1], j]))
        left.remove(path[-1])
    improved = True
    while improved:
        improved = False
        for i, j in itertools.combinations(range(1, len(path)), 2):
            after = path[j + 1] if j + 1 < len(path) else None
            old = distance[path[i - 1], path[i]] + (distance[path[j], after] if after is not None else 0)
            new = distance[path[i - 1], path[j]] + (distance[path[i], after] if after is not None else 0)
            if new < old - 1e-9:
                path[i : j + 1] = path[i : j + 1][::-1]
                improved = True
    return points[path]


def curve_from_order(kernels: np.ndarray, ordered: bool) -> tuple[float, float, float]:
    """Loss, length and CPU seconds of a curve started on 64 k-means centroids, put in order or left as found.

    The decoder is fitted to the centroids at equal steps of the code for 400 steps, then trained as a curve,
    cold.
    """
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from dogfit.clusters import kmeans
    from dogfit.devices import data_mesh, row_layout, row_sharding

    config = dataclasses.replace(DEFAULT, steps=400, decoder_only_fraction=1.0, temperatures=(0.02, 0.02))
    taps = normalize_rows(kernels)[0]
    size = kernels.shape[1]
    centroids = normalize_rows(kmeans(kernels, 64).centroids.reshape(-1, size, size))[0]
    path = jnp.asarray(seriated(centroids) if ordered else centroids)
    codes = jnp.asarray(code_grid(len(path), 1))
    state = training_step.initial_state(config, taps.shape[1])
    graph, optimizer = training_step.network_graph(config, taps.shape[1]), optax.adamw(3e-3)

    @jax.jit
    def fitted(params):
        def step(carry, _):
            decoder, memory = carry
            gradient = jax.grad(
                lambda d: -jnp.sum(nnx.merge(graph, {**params, "decoder": d}).decode(codes) * path)
            )(decoder)
            updates, memory = optimizer.update(gradient, memory, decoder)
            return (optax.apply_updates(decoder, updates), memory), None

        return jax.lax.scan(step, (params["decoder"], optimizer.init(params["decoder"])), length=400)[0][0]

    mesh = data_mesh(jax.devices()[:1])
    data = jax.device_put(taps, row_sharding(mesh))
    arguments = {"config": config, "layout": row_layout([len(taps)], mesh), "sharding": row_sharding(mesh)}
    train = training_step.train_chunk.lower(state, data, **arguments).compile()
    first = jax.tree.map(lambda a: a[0], state["params"])
    fit = fitted.lower(first).compile()
    cpu = cpu_seconds()
    state["params"]["decoder"] = jax.tree.map(lambda a: a[None], fit(first))
    schedule = training_step.training_schedule(config)
    for _ in range(schedule.total // schedule.chunk):
        state = jax.block_until_ready(train(state, data))
    cpu = cpu_seconds() - cpu
    params = jax.tree.map(lambda a: a[0], state["params"])
    curve = np.asarray(
        training_step.decode_block(params, code_grid(training_step.SEARCH_POINTS, 1), config, taps.shape[1])
    )
    return float(1 - (taps @ curve.T).max(axis=1).mean()), length(curve), cpu


def labels(kernels: np.ndarray) -> None:
    from dogfit.clusters import agreement, segment_code
    from dogfit.fitting.api import fit_kernels
    from dogfit.labels import label_fits

    chosen = np.random.default_rng(0).permutation(kernels)[:2048]
    own = label_fits(fit_kernels(chosen), 0.49)
    print("| | segments | names along the code | NMI of code and label |\n|---|---|---|---|")
    for says, config in (VARIANTS["default"], VARIANTS["tied"]):
        model = train_autoencoder(kernels, config)
        segmented = segment_code(model, fit_kernels, lambda fit: label_fits(fit, 0.49))
        bins = np.minimum(model.encode(chosen) * 64, 63).astype(int)
        nmi = agreement(bins, own).nmi
        names = ", ".join(segmented.names)
        print(f"| {says} | {len(segmented.segments)} | {names} | {nmi:.3f} |", flush=True)


def length(curve: np.ndarray) -> float:
    return float(np.arccos(np.clip(np.sum(curve[1:] * curve[:-1], axis=1), -1, 1)).sum())


def trained(kernels: np.ndarray, config: AutoencoderConfig) -> tuple[Autoencoder, float]:
    """The autoencoder, and the CPU seconds of its chunks but the first, scaled to all."""
    times: list[float] = []
    model = train_autoencoder(kernels, config, progress=lambda *_: times.append(cpu_seconds()))
    schedule = training_step.training_schedule(config)
    # Chunks of the two phases cost differently; the first holds the compilation and counts as the second.
    spent = np.diff(times)
    alike = schedule.decoder_only >= schedule.chunk or schedule.total == schedule.chunk
    return model, float(spent.sum() + (spent[0] if alike else spent.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*VARIANTS, "seriated", "labels"])
    arguments = parser.parse_args()
    kernels = real(7) if SHARED.is_dir() else synthetic(20_000, 7)
    print(f"{len(kernels):,} {'real' if SHARED.is_dir() else 'synthetic'} 7x7 kernels\n")
    if arguments.only == ["labels"]:
        labels(kernels)
        return
    print("| | nearest | encoder | length | CPU-s |\n|---|---|---|---|---|")
    for name in arguments.only or [*VARIANTS, "seriated"]:
        if name == "seriated":
            for ordered in (True, False):
                loss, far, cpu = curve_from_order(kernels, ordered)
                says = "put in order by a short path" if ordered else "in the order found"
                print(f"| the curve alone, from 64 centroids {says} | {loss:.3f} | | {far:.0f} | {cpu:.1f} |")
            continue
        says, config = VARIANTS[name]
        model, cpu = trained(kernels, config)
        nearest, own = (1 - model.reconstruction_cosine(kernels, search=s).mean() for s in (True, False))
        far = length(
            model.decode(code_grid(training_step.SEARCH_POINTS, 1)).reshape(training_step.SEARCH_POINTS, -1)
        )
        through = "" if config.decoder_only_fraction == 1 else f"{own:.3f}"
        print(f"| {says} | {nearest:.3f} | {through} | {far:.0f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
