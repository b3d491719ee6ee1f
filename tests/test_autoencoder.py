"""Model, training over meshes, and the saved form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from dogfit.autoencoder import (
    MIN_KERNELS,
    Autoencoder,
    AutoencoderConfig,
    TooFewKernels,
    load_autoencoders,
    train_autoencoder,
    training_step,
)
from dogfit.autoencoder.autoencoder import FILE, code_entropy, is_collapsed
from dogfit.autoencoder.network import Mlp, Network, code_grid
from dogfit.autoencoder.train import _best_restart
from dogfit.devices import data_mesh, place_rows, replicated, row_layout, row_sharding
from dogfit.errors import DogfitError, InputError
from dogfit.normalize import normalize_rows
from examples import run_example
from tiny_autoencoder import CONFIG, edges, unit_norm


def change(**settings):
    return dataclasses.replace(CONFIG, **settings)


def test_train_autoencoder_learns_a_curve(trained):
    """New kernels on the curve are found; the reported cosine is that of the kernel with the decoded code."""
    fresh = edges(64, seed=1)
    cosine = trained.reconstruction_cosine(fresh)
    assert cosine.mean() > 0.98
    assert trained.heldout_loss < 0.02
    assert trained.history.shape == (150, 2)
    assert not trained.notes
    decoded = trained.decode(trained.encode(fresh)).reshape(64, -1)
    np.testing.assert_allclose(cosine, np.sum(unit_norm(fresh) * decoded, axis=1), atol=1e-5)


def test_encode_search_equals_brute_force(trained):
    """The search never loses to the encoder."""
    fresh = edges(64, seed=2, noise=0.1)
    own = trained.reconstruction_cosine(fresh, search=False)
    decoded = trained.decode(trained.encode(fresh, search=False)).reshape(64, -1)
    np.testing.assert_allclose(own, np.sum(unit_norm(fresh) * decoded, axis=1), atol=1e-5)
    grid = code_grid(training_step.SEARCH_POINTS, 1)[:, 0]
    curve = trained.decode(grid).reshape(len(grid), -1).astype(np.float64)
    brute = np.maximum((unit_norm(fresh) @ curve.T).max(axis=1), own)
    np.testing.assert_allclose(trained.reconstruction_cosine(fresh), brute, atol=1e-5)


def test_decode_gives_centered_unit_vectors(trained):
    kernels = trained.decode(np.linspace(0, 1, 64))
    assert kernels.shape == (64, 5, 5)
    np.testing.assert_allclose(kernels.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.sum(kernels**2, axis=(1, 2)), 1, atol=1e-5)


def test_encode_ignores_gain_and_offset_but_not_sign(trained):
    fresh = edges(64, seed=4)
    codes = trained.encode(fresh)
    assert codes.min() >= 0 and codes.max() <= 1
    # A gain of a power of two and no rounding in the offset: equal to the last bits that centering leaves.
    np.testing.assert_allclose(trained.encode(4 * fresh + 0.5), codes, atol=2e-3)
    assert np.abs(trained.encode(-fresh) - codes).min() > 0.05
    assert trained.reconstruction_cosine(-fresh).mean() > 0.97


def test_encode_of_kernels_without_a_shape(trained):
    """Constant and damaged kernels get NaN and touch no other."""
    fresh = edges(64, seed=5)
    broken = fresh.copy()
    broken[3], broken[7], broken[11] = 0, np.nan, 2.5
    code, cosine = trained.encode_and_score(broken)
    bad = np.isin(np.arange(64), (3, 7, 11))
    assert np.isnan(code[bad]).all() and np.isnan(cosine[bad]).all()
    np.testing.assert_array_equal(code[~bad], trained.encode(fresh)[~bad])
    assert trained.encode(np.zeros((0, 5, 5))).shape == (0,)


def test_encode_in_blocks(trained):
    fresh = edges(150, seed=6)
    whole = np.concatenate([trained.encode(fresh[i : i + 50]) for i in (0, 50, 100)])
    np.testing.assert_allclose(trained.encode_and_score(fresh, block=64)[0], whole, atol=2e-3)


def test_examples_of_encode_and_decode(trained):
    run_example(Autoencoder.encode, autoencoder=trained, kernels=edges(64))
    run_example(Autoencoder.decode, autoencoder=trained)


@pytest.mark.slow
def test_example_of_train_autoencoder():
    run_example(train_autoencoder)


@pytest.fixture(scope="module")
def trained_on_eight_devices():
    return train_autoencoder(edges(500), CONFIG, mesh=data_mesh())


def test_train_autoencoder_on_eight_devices(trained, trained_on_eight_devices):
    """Neither the data nor a batch divides by the devices, and the loss curve is that of one device."""
    run = trained_on_eight_devices
    np.testing.assert_allclose(run.history[:30], trained.history[:30], atol=2e-5)
    np.testing.assert_allclose(run.heldout_losses, trained.heldout_losses, atol=2e-3)


@pytest.mark.slow
def test_train_autoencoder_on_one_two_and_eight_devices():
    kernels = edges(225, noise=0.3)
    runs = [
        train_autoencoder(kernels, change(steps=24), mesh=data_mesh(jax.devices()[:d])) for d in (1, 2, 8)
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run.history, runs[0].history, atol=2e-5)
        np.testing.assert_allclose(run.heldout_losses, runs[0].heldout_losses, atol=1e-4)


@pytest.mark.slow
def test_train_chunk_never_gathers_all_kernels():
    """A batch is gathered from all devices; it must not bring all kernels along."""
    mesh = data_mesh()
    taps = normalize_rows(edges(801))[0]
    layout = row_layout([len(taps)], mesh)
    state = jax.device_put(jax.device_get(training_step.initial_state(CONFIG, 25)), replicated(mesh))
    data = place_rows(taps, 0, layout, mesh)
    assert {shard.data.shape for shard in data.addressable_shards} == {(101, 25)}
    np.testing.assert_array_equal(np.asarray(data)[:801], taps)
    static = {"config": CONFIG, "layout": layout, "sharding": row_sharding(mesh)}
    program = training_step.train_chunk.lower(state, data, **static).compile().as_text()
    assert "[101,25]" in program
    assert "[808,25]" not in program


def test_scale_gradient_of_a_tree():
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}

    def loss(params):
        seen = training_step.scale_gradient(params, 0.25)
        return jnp.sum(seen["w"] ** 2) + seen["b"]

    value, gradient = jax.value_and_grad(loss)(params)
    assert value == 8
    np.testing.assert_array_equal(gradient["w"], [0.5, -1.0])
    assert gradient["b"] == 0.25


def test_next_batch_shows_every_kernel_once_an_epoch():
    """Batches are padded on a mesh whose devices do not divide them."""
    n, size, epochs = 203, 50, 4
    state = {"epoch": jnp.int32(0), "position": jnp.int32(0), "key": jnp.array([1, 2], jnp.uint32)}
    seen = []
    batch = jax.jit(lambda s: training_step.next_batch(s, size, n, devices=8))
    for _ in range(-(-epochs * n // size)):
        index, valid, after = batch(state)
        state |= after
        assert len(index) % 8 == 0
        assert np.sum(valid) == size
        seen.append(np.asarray(index)[np.asarray(valid)])
    shuffles = np.concatenate(seen)[: epochs * n].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(shuffles, axis=1), np.tile(np.arange(n), (epochs, 1)))
    assert len({tuple(s) for s in shuffles}) == epochs


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"),
    [(800, 0.4, (320, 480, 50)), (24, 0.5, (12, 12, 24)), (130, 1.0, (132, 0, 44)), (1, 0.0, (0, 1, 1))],
)
def test_training_schedule_rounds_up_to_whole_chunks(steps, fraction, expected):
    config = AutoencoderConfig(steps=steps, decoder_only_fraction=fraction)
    schedule = training_step.training_schedule(config)
    assert tuple(schedule) == expected
    assert schedule.total % schedule.chunk == 0


def test_mlp_even():
    """An even network gives the same for x and -x, and another one does not."""
    x = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    for even in (True, False):
        layers = Mlp((9, 16, 1), jnp.float32, even=even, rngs=nnx.Rngs(0))
        assert (np.asarray(layers(x)) == np.asarray(layers(-x))).all() == even


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "channels", "tie_sign", "compute_dtype"),
    [(7, (), True, "bfloat16"), (3, (4, 6), False, "float32"), (12, (4, 6), True, "float32")],
)
def test_network_of_other_kinds(size, channels, tie_sign, compute_dtype):
    config = AutoencoderConfig(
        widths=(64, 32),
        channels=channels,
        tie_sign=tie_sign,
        compute_dtype=compute_dtype,
        frequencies=0,
        code_dim=2,
    )
    network = Network(size**2, config, rngs=nnx.Rngs(0))
    graph, weights = nnx.split(network)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(weights))
    kernels = normalize_rows(np.random.default_rng(0).normal(size=(6, size, size)))[0]

    @jax.jit
    def apply(weights, kernels):
        network = nnx.merge(graph, weights)
        code = network.encode(kernels)
        return code, network.encode(-kernels), network.decode(code)

    code, mirrored, decoded = apply(weights, kernels)
    assert code.shape == (6, 2) and decoded.shape == kernels.shape
    assert (np.asarray(code) == np.asarray(mirrored)).all() == tie_sign
    assert code.dtype == decoded.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)


@pytest.mark.slow
def test_train_autoencoder_with_tied_signs_and_convolutions(tmp_path):
    config = change(tie_sign=True, channels=(8,), widths=(32,), steps=100, restarts=1)
    model = train_autoencoder(edges(400), config)
    model.save(tmp_path)
    again = Autoencoder.load(tmp_path)
    assert again.config == config
    fresh = edges(64, seed=1)
    code, cosine = again.encode_and_score(fresh)
    assert cosine.mean() > 0.95
    np.testing.assert_allclose(again.encode_and_score(-fresh), (code, cosine), atol=1e-6)
    # The decoded kernel stands for both signs: the cosine reported is the absolute one.
    decoded = again.decode(code).reshape(64, -1)
    np.testing.assert_allclose(cosine, np.abs(np.sum(unit_norm(fresh) * decoded, axis=1)), atol=1e-5)


@pytest.mark.slow
def test_train_autoencoder_in_bfloat16(trained):
    model = train_autoencoder(edges(500), change(compute_dtype="bfloat16"))
    assert not np.array_equal(model.history, trained.history)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
    assert model.heldout_loss == pytest.approx(trained.heldout_loss, abs=0.01)


@pytest.mark.slow
def test_train_autoencoder_with_two_code_numbers():
    model = train_autoencoder(edges(200), change(code_dim=2, steps=40))
    codes = model.encode(edges(9, seed=1))
    assert codes.shape == (9, 2)
    assert model.decode(codes).shape == (9, 5, 5)


def test_code_grid_spreads_evenly():
    """Each of 16 equal squares holds 25 points, give or take a few."""
    grid = code_grid(400, 2)
    assert grid.min() >= 0 and grid.max() < 1
    counts = np.histogram2d(*grid.T, bins=4, range=[(0, 1)] * 2)[0]
    assert np.abs(counts - 25).max() <= 3
    np.testing.assert_allclose(np.diff(code_grid(10, 1)[:, 0]), 0.1, rtol=1e-5)


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path / "deep" / "folder")
    again = Autoencoder.load(tmp_path / "deep" / "folder")
    fresh = edges(64, seed=7)
    np.testing.assert_array_equal(again.encode(fresh), trained.encode(fresh))
    np.testing.assert_array_equal(again.history, trained.history)
    for name in ("config", "size", "restart", "heldout_loss", "encoder_loss"):
        assert getattr(again, name) == getattr(trained, name)
    assert [p.name for p in (tmp_path / "deep" / "folder").iterdir()] == [FILE]


def test_load_refuses_damaged_and_foreign_files(trained, tmp_path):
    path = trained.save(tmp_path)
    whole = path.read_bytes()
    for broken in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read as a dogfit autoencoder"):
            Autoencoder.load(tmp_path)
    save_file({"params.a": np.zeros(3)}, path)
    with pytest.raises(InputError, match="expected format"):
        Autoencoder.load(tmp_path)
    path.write_bytes(whole.replace(b"dogfit-autoencoder-2", b"dogfit-autoencoder-1"))
    with pytest.raises(InputError, match="found dogfit-autoencoder-1; train it with this version"):
        Autoencoder.load(tmp_path)
    path.write_bytes(whole.replace(b'\\"size\\": 5', b'\\"size\\": 7'))
    with pytest.raises(InputError, match="shape"):
        Autoencoder.load(tmp_path)
    path.write_bytes(whole.replace(b"divided by its Frobenius norm", b"divided by its largest tap   "))
    with pytest.raises(InputError, match="normalized in another way"):
        Autoencoder.load(tmp_path)
    with pytest.raises(InputError, match="no autoencoder"):
        Autoencoder.load(tmp_path / "absent")


def test_load_autoencoders_by_size(trained, tmp_path):
    trained.save(tmp_path / "autoencoder" / "5x5")
    for path in (tmp_path, tmp_path / "autoencoder", tmp_path / "autoencoder" / "5x5"):
        (found,) = load_autoencoders(path).items()
        assert found[0] == 5 and found[1].heldout_loss == trained.heldout_loss
    trained.save(tmp_path / "autoencoder" / "another")
    with pytest.raises(InputError, match="two autoencoders for 5x5"):
        load_autoencoders(tmp_path)


def test_train_autoencoder_refuses_too_few_kernels():
    with pytest.raises(TooFewKernels, match=f"{MIN_KERNELS - 1} kernels of 5x5 are too few") as error:
        train_autoencoder(edges(MIN_KERNELS - 1), CONFIG)
    assert isinstance(error.value, DogfitError)


@pytest.mark.parametrize("row", [0.0, 3.0, np.nan, np.inf])
def test_train_autoencoder_refuses_kernels_without_a_shape(row):
    kernels = edges(100)
    kernels[5] = row
    with pytest.raises(InputError, match="1 of 100 kernels are constant or not finite"):
        train_autoencoder(kernels, CONFIG)


@pytest.mark.parametrize("shape", [(100, 25), (100, 5, 4), (5, 5)])
def test_wrong_shapes_are_refused(shape, trained):
    with pytest.raises(ValueError, match=r"kernels must be \[n, k, k\]"):
        train_autoencoder(np.ones(shape), CONFIG)
    with pytest.raises(ValueError, match=r"kernels must be \[n, 5, 5\]"):
        trained.encode(np.ones((3, 7, 7)))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"restarts": 0},
        {"widths": ()},
        {"widths": (8, 0)},
        {"holdout": 1.0},
        {"learning_rate": 0.0},
        {"channels": (0,)},
        {"decoder_only_fraction": 1.5},
        {"temperatures": (0.1, 0.0)},
        {"decoder_feedback": -1.0},
        {"compute_dtype": "float16"},
    ],
)
def test_autoencoder_config_refuses_impossible_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        AutoencoderConfig(**settings)


@pytest.mark.slow
def test_train_autoencoder_without_an_encoder():
    """An encoder that had no steps has not collapsed."""
    model = train_autoencoder(edges(300), change(decoder_only_fraction=1.0))
    assert not model.notes
    assert model.heldout_loss < 0.02 < 0.2 < model.encoder_loss


@pytest.mark.slow
def test_train_autoencoder_that_diverges():
    config = change(steps=20, decoder_only_fraction=1.0, learning_rate=1e30)
    with pytest.raises(DogfitError, match="diverged in all 2 restarts"):
        train_autoencoder(edges(100), config)


@pytest.mark.slow
def test_train_autoencoder_reports_an_encoder_that_cannot_learn():
    """Steps far too small to leave the start, and kernels of two kinds only: the codes fall in a few bins."""
    kernels = np.concatenate([edges(1), -edges(1)] * 60)
    model = train_autoencoder(kernels, change(steps=2, decoder_only_fraction=0.0, learning_rate=1e-12))
    assert model.collapsed
    assert "collapsed in all" in model.notes[0]


def test_best_restart_is_finite_and_not_collapsed(trained):
    """A restart that diverged is left out; where all did, that is an error."""
    heldout = unit_norm(edges(64, seed=8)).astype(np.float32)
    params = jax.tree.map(np.asarray, trained.params)
    broken = jax.tree.map(lambda a: np.full_like(a, np.nan), params)
    # A decoder of biases alone draws one kernel at every code.
    layers = {
        number: {name: weight * (name == "bias") for name, weight in layer.items()}
        for number, layer in params["decoder"]["layers"].items()
    }
    constant = {**params, "decoder": {"layers": layers}}

    def state(*restarts):
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *restarts)
        return {"params": stacked, "history": np.zeros((1, len(restarts)), np.float32)}

    best = _best_restart(state(broken, params), heldout, CONFIG, 5)
    assert best.restart == 1 and best.notes == ("1 of 2 restarts diverged and were left out",)
    best = _best_restart(state(params, constant), heldout, CONFIG, 5)
    assert best.restart == 0 and "collapsed in 1 of 2" in best.notes[0]
    with pytest.raises(DogfitError, match="diverged in all 2 restarts"):
        _best_restart(state(broken, broken), heldout, CONFIG, 5)


def test_code_entropy_and_is_collapsed():
    even = code_grid(640, 1)
    assert code_entropy(even) == pytest.approx(1.0)
    assert code_entropy(np.full((50, 1), 0.3)) == 0.0
    assert code_entropy(np.array([[0.0], [1.0]] * 20)) == pytest.approx(np.log(2) / np.log(64))
    entropy, variance = np.array([0.0, 0.9, 0.9]), np.array([0.9, 0.0, 0.9])
    np.testing.assert_array_equal(is_collapsed(entropy, variance), [True, True, False])


def test_notes_tell_collapsed_and_diverged_restarts(trained):
    assert not trained.collapsed
    one = dataclasses.replace(trained, code_entropies=np.array([0.0, 0.9]), restart=1)
    assert "collapsed in 1 of 2" in one.notes[0]
    every = dataclasses.replace(trained, code_entropies=np.zeros(2))
    assert every.collapsed and "all 2 restarts" in every.notes[0]
    lost = dataclasses.replace(trained, heldout_losses=np.array([np.nan, 0.1]), restart=1)
    assert "1 of 2 restarts diverged" in lost.notes[0]


def test_normalize_rows_at_any_scale():
    kernels = np.random.default_rng(0).normal(size=(30, 7, 7)) + 3
    for scale in (1e-30, 1.0, 1e30):
        rows, good = normalize_rows((kernels * scale).astype(np.float32))
        assert good.all()
        np.testing.assert_allclose(rows, unit_norm(kernels), atol=3e-6)
