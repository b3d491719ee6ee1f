"""Model, training over meshes, and the saved form. Resuming is in test_autoencoder_resume.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
from dogfit.autoencoder.network import Network, code_grid
from dogfit.devices import data_mesh, place_rows, replicated, row_layout, row_sharding
from dogfit.errors import DogfitError, InputError
from dogfit.normalize import normalize_rows

SMALL = AutoencoderConfig(
    steps=150, batch_size=64, decoder_only_batch_size=64, restarts=2, widths=(64,), frequencies=4
)


def unit_numpy(kernels):
    """Reference: centred unit vectors, in float64."""
    flat = np.asarray(kernels, np.float64).reshape(len(kernels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def edges(n, k=5, seed=0, noise=0.0):
    """Kernels on a true one-dimensional curve: a Gaussian slope at every orientation."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, 2 * np.pi, n)[:, None, None]
    u = np.arange(k) - (k - 1) / 2
    window = np.exp(-(u[:, None] ** 2 + u**2) / 2)
    kernels = (np.cos(theta) * u + np.sin(theta) * u[:, None]) * window
    return (kernels + noise * rng.normal(size=kernels.shape)).astype(np.float32)


PROGRESS = []


@pytest.fixture(scope="module")
def trained():
    return train_autoencoder(edges(500), SMALL, progress=lambda *call: PROGRESS.append(call))


def test_progress_counts_to_the_end(trained):
    assert PROGRESS == [(50, 150), (100, 150), (150, 150)]
    assert trained.history.shape == (150, 2)


def test_a_true_curve_is_learnt_and_new_kernels_on_it_are_found(trained):
    fresh = edges(300, seed=1)
    cosine = trained.reconstruction_cosine(fresh)
    assert cosine.mean() > 0.98
    assert trained.heldout_loss < 0.02
    assert not trained.notes
    # The reported cosine is that of the kernel with the decoded code.
    decoded = trained.decode(trained.encode(fresh)).reshape(300, -1)
    np.testing.assert_allclose(cosine, np.sum(unit_numpy(fresh) * decoded, axis=1), atol=1e-5)


def test_the_search_never_loses_to_the_encoder_and_equals_brute_force(trained):
    fresh = edges(200, seed=2, noise=0.1)
    own = trained.reconstruction_cosine(fresh, search=False)
    decoded = trained.decode(trained.encode(fresh, search=False)).reshape(200, -1)
    np.testing.assert_allclose(own, np.sum(unit_numpy(fresh) * decoded, axis=1), atol=1e-5)
    curve = trained.decode(code_grid(training_step.SEARCH_POINTS, 1)[:, 0]).reshape(
        training_step.SEARCH_POINTS, -1
    )
    brute = np.maximum((unit_numpy(fresh) @ curve.T.astype(np.float64)).max(axis=1), own)
    np.testing.assert_allclose(trained.reconstruction_cosine(fresh), brute, atol=1e-5)


def test_decoded_kernels_are_centred_unit_vectors_and_codes_lie_in_the_unit_interval(trained):
    kernels = trained.decode(np.linspace(0, 1, 33))
    assert kernels.shape == (33, 5, 5)
    np.testing.assert_allclose(kernels.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.sum(kernels**2, axis=(1, 2)), 1, atol=1e-5)
    codes = trained.encode(edges(50, seed=3))
    assert codes.min() >= 0 and codes.max() <= 1


def test_gain_and_offset_do_not_matter_but_sign_does(trained):
    fresh = edges(50, seed=4)
    # A gain of a power of two and no rounding in the offset: equal to the last bits that centring leaves.
    np.testing.assert_allclose(trained.encode(4 * fresh + 0.5), trained.encode(fresh), atol=2e-3)
    assert np.abs(trained.encode(-fresh) - trained.encode(fresh)).min() > 0.05
    assert trained.reconstruction_cosine(-fresh).mean() > 0.97


def test_rows_without_a_shape_are_nan_and_touch_no_other(trained):
    fresh = edges(20, seed=5)
    broken = fresh.copy()
    broken[3], broken[7], broken[11] = 0, np.nan, 2.5
    code, cosine = trained.encode(broken), trained.reconstruction_cosine(broken)
    bad = np.isin(np.arange(20), (3, 7, 11))
    assert np.isnan(code[bad]).all() and np.isnan(cosine[bad]).all()
    np.testing.assert_array_equal(code[~bad], trained.encode(fresh)[~bad])
    assert trained.encode(np.zeros((0, 5, 5))).shape == (0,)


def test_blocks_do_not_change_answers(trained, monkeypatch):
    fresh = edges(700, seed=6)
    whole = trained.encode(fresh)
    monkeypatch.setattr("dogfit.autoencoder.autoencoder.BLOCK", 256)
    np.testing.assert_allclose(trained.encode(fresh), whole, atol=2e-3)


def test_the_loss_curve_is_the_same_on_one_two_and_eight_devices():
    # 203 rows in batches of 50 and 70: neither the data nor a batch divides by the devices.
    kernels = edges(225, noise=0.3)
    config = dataclasses.replace(SMALL, steps=24, batch_size=50, decoder_only_batch_size=70)
    runs = [train_autoencoder(kernels, config, mesh=data_mesh(jax.devices()[:d])) for d in (1, 2, 8)]
    for run in runs[1:]:
        np.testing.assert_allclose(run.history, runs[0].history, atol=2e-5)
        np.testing.assert_allclose(run.heldout_losses, runs[0].heldout_losses, atol=1e-4)


def test_no_device_ever_holds_more_than_its_rows():
    """A batch is gathered from all devices; it must not bring all kernels along."""
    mesh = data_mesh()
    taps = normalize_rows(edges(801))[0]
    layout = row_layout([len(taps)], mesh)
    state = jax.device_put(jax.device_get(training_step.initial_state(SMALL, 25)), replicated(mesh))
    data = place_rows(taps, 0, layout, mesh)
    assert {shard.data.shape for shard in data.addressable_shards} == {(101, 25)}
    np.testing.assert_array_equal(np.asarray(data)[:801], taps)
    program = training_step.train_chunk.lower(
        state, data, config=SMALL, layout=layout, sharding=row_sharding(mesh)
    ).compile()
    assert "[101,25]" in program.as_text()
    assert "[808,25]" not in program.as_text()


def test_every_kernel_is_seen_once_an_epoch_on_an_uneven_mesh():
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
    ("size", "channels", "tie_sign", "compute_dtype"),
    [(7, (), True, "bfloat16"), (3, (4, 6), False, "float32"), (12, (4, 6), True, "float32")],
)
def test_networks_of_other_kinds(size, channels, tie_sign, compute_dtype):
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


def test_tied_signs_and_convolutions_learn_and_travel(tmp_path):
    config = dataclasses.replace(SMALL, tie_sign=True, channels=(8,), widths=(32,), steps=100, restarts=1)
    kernels = edges(400)
    model = train_autoencoder(kernels, config)
    model.save(tmp_path)
    again = Autoencoder.load(tmp_path)
    assert again.config == config
    fresh = edges(60, seed=1)
    code, cosine = again.encode_and_score(fresh)
    assert cosine.mean() > 0.95
    np.testing.assert_allclose(again.encode_and_score(-fresh), (code, cosine), atol=1e-6)
    # The decoded kernel stands for both signs: the cosine reported is the absolute one.
    decoded = again.decode(code).reshape(60, -1)
    np.testing.assert_allclose(cosine, np.abs(np.sum(unit_numpy(fresh) * decoded, axis=1)), atol=1e-5)


def test_bfloat16_arithmetic_holds_the_loss(trained):
    model = train_autoencoder(edges(500), dataclasses.replace(SMALL, compute_dtype="bfloat16"))
    assert not np.array_equal(model.history, trained.history)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
    assert model.heldout_loss == pytest.approx(trained.heldout_loss, abs=0.01)


def test_several_code_numbers_are_allowed():
    config = dataclasses.replace(SMALL, code_dim=2, steps=40)
    model = train_autoencoder(edges(200), config)
    codes = model.encode(edges(9, seed=1))
    assert codes.shape == (9, 2)
    assert model.decode(codes).shape == (9, 5, 5)
    grid = code_grid(400, 2)
    assert grid.min() >= 0 and grid.max() < 1
    # Evenly spread: each of 16 equal squares holds 25 points, give or take a few.
    counts = np.histogram2d(*grid.T, bins=4, range=[(0, 1)] * 2)[0]
    assert np.abs(counts - 25).max() <= 3


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
    trained.save(tmp_path / "deep" / "folder")
    again = Autoencoder.load(tmp_path / "deep" / "folder")
    fresh = edges(40, seed=7)
    np.testing.assert_array_equal(again.encode(fresh), trained.encode(fresh))
    np.testing.assert_array_equal(again.history, trained.history)
    assert (again.config, again.size, again.restart, again.heldout_loss) == (
        trained.config,
        trained.size,
        trained.restart,
        trained.heldout_loss,
    )
    assert [p.name for p in (tmp_path / "deep" / "folder").iterdir()] == [FILE]


def test_damaged_or_foreign_files_are_refused(trained, tmp_path):
    from safetensors.numpy import save_file

    path = trained.save(tmp_path)
    whole = path.read_bytes()
    for broken in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read as a dogfit autoencoder"):
            Autoencoder.load(tmp_path)
    save_file({"params.a": np.zeros(3)}, path)
    with pytest.raises(InputError, match="expected format"):
        Autoencoder.load(tmp_path)
    path.write_bytes(whole.replace(b'\\"size\\": 5', b'\\"size\\": 7'))
    with pytest.raises(InputError, match="shape"):
        Autoencoder.load(tmp_path)
    path.write_bytes(whole.replace(b"divided by its Frobenius norm", b"divided by its largest tap   "))
    with pytest.raises(InputError, match="normalized in another way"):
        Autoencoder.load(tmp_path)
    with pytest.raises(InputError, match="no autoencoder"):
        Autoencoder.load(tmp_path / "absent")


def test_autoencoders_of_several_sizes_are_found_in_a_folder(trained, tmp_path):
    trained.save(tmp_path / "autoencoder" / "5x5")
    for path in (tmp_path, tmp_path / "autoencoder", tmp_path / "autoencoder" / "5x5"):
        (found,) = load_autoencoders(path).items()
        assert found[0] == 5 and found[1].heldout_loss == trained.heldout_loss
    trained.save(tmp_path / "autoencoder" / "another")
    with pytest.raises(InputError, match="two autoencoders for 5x5"):
        load_autoencoders(tmp_path)


def test_too_few_kernels_is_a_plain_statement():
    with pytest.raises(TooFewKernels, match=f"{MIN_KERNELS - 1} kernels of 5x5 are too few") as error:
        train_autoencoder(edges(MIN_KERNELS - 1), SMALL)
    assert isinstance(error.value, DogfitError)


@pytest.mark.parametrize("row", [0.0, 3.0, np.nan, np.inf])
def test_kernels_without_a_shape_are_refused(row):
    kernels = edges(100)
    kernels[5] = row
    with pytest.raises(InputError, match="1 of 100 kernels are constant or not finite"):
        train_autoencoder(kernels, SMALL)


@pytest.mark.parametrize("shape", [(100, 25), (100, 5, 4), (5, 5)])
def test_wrong_shapes_are_refused(shape, trained):
    with pytest.raises(ValueError, match=r"kernels must be \[n, k, k\]"):
        train_autoencoder(np.ones(shape), SMALL)
    with pytest.raises(ValueError, match=r"kernels must be \[n, 5, 5\]"):
        trained.encode(np.ones((3, 7, 7)))


@pytest.mark.parametrize(
    "change",
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
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        AutoencoderConfig(**change)


def test_a_curve_without_an_encoder_is_no_dead_code():
    model = train_autoencoder(edges(300), dataclasses.replace(SMALL, decoder_only_fraction=1.0))
    assert not model.notes
    assert model.heldout_loss < 0.02 < 0.2 < model.encoder_loss


def test_a_run_that_diverges_everywhere_says_so():
    config = dataclasses.replace(SMALL, steps=20, decoder_only_fraction=1.0, learning_rate=1e30)
    with pytest.raises(DogfitError, match="diverged in all 2 restarts"):
        train_autoencoder(edges(100), config)


def test_dead_codes_are_told_from_live_ones(trained):
    even = code_grid(640, 1)
    assert code_entropy(even) == pytest.approx(1.0)
    assert code_entropy(np.full((50, 1), 0.3)) == 0.0
    assert code_entropy(np.array([[0.0], [1.0]] * 20)) == pytest.approx(np.log(2) / np.log(64))
    use, shape = np.array([0.0, 0.9, 0.9]), np.array([0.9, 0.0, 0.9])
    np.testing.assert_array_equal(is_collapsed(use, shape), [True, True, False])
    assert not trained.collapsed
    one_dead = dataclasses.replace(trained, code_entropies=np.array([0.0, 0.9]), restart=1)
    assert "collapsed in 1 of 2" in one_dead.notes[0]
    all_dead = dataclasses.replace(trained, code_entropies=np.zeros(2))
    assert all_dead.collapsed and "all 2 restarts" in all_dead.notes[0]
    lost = dataclasses.replace(trained, heldout_losses=np.array([np.nan, 0.1]), restart=1)
    assert "1 of 2 restarts diverged" in lost.notes[0]


def test_an_encoder_that_cannot_learn_is_reported():
    # Steps far too small to leave the start, and kernels of two kinds only: the codes fall in a few bins.
    kernels = np.concatenate([edges(1), -edges(1)] * 60)
    model = train_autoencoder(
        kernels, dataclasses.replace(SMALL, steps=2, decoder_only_fraction=0.0, learning_rate=1e-12)
    )
    assert model.collapsed
    assert "collapsed in all" in model.notes[0]


def test_unit_rows_agrees_with_float64_and_is_unmoved_by_scale():
    kernels = np.random.default_rng(0).normal(size=(30, 7, 7)) + 3
    for scale in (1e-30, 1.0, 1e30):
        rows, good = normalize_rows((kernels * scale).astype(np.float32))
        assert good.all()
        np.testing.assert_allclose(rows, unit_numpy(kernels), atol=3e-6)
