"""Depthwise tensors of a checkpoint, and what is read of them: values, order, names."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from dogfit.checkpoints import load_kernels
from dogfit.errors import InputError
from dogfit.export import replace_kernels
from dogfit.kernelset import Flag
from examples import run_example
from tiny_checkpoints import convnext_tensors, layer_names, load_tensors, random_tensor, skip_reasons


def test_load_kernels_values_and_order(tmp_path):
    tensors = convnext_tensors()
    kernels = load_tensors(tmp_path, tensors)
    expected = [(0, 0), (0, 1)] + [(1, block) for block in range(11)]
    assert [(layer.stage, layer.block) for layer in kernels.layers] == expected
    assert [layer.position for layer in kernels.layers] == list(range(13))
    assert {layer.model for layer in kernels.layers} == {"tiny"}
    for layer, taps in kernels.pairs():
        np.testing.assert_array_equal(taps, tensors[layer.name][:, 0])


def test_load_kernels_example():
    run_example(load_kernels)


def test_load_kernels_reads_headers_and_kernels_only(tmp_path):
    tensors = convnext_tensors(channels=32)
    seen = []
    kernels = load_tensors(tmp_path, tensors, progress=lambda *now: seen.append(now))
    size = (tmp_path / "tiny.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "tiny.safetensors").read_bytes()[:8], "little")
    (source,) = kernels.sources
    assert (source.bytes_read, source.bytes_total) == (8 + header + 13 * 32 * 49 * 4, size)
    assert seen[-1] == (13 * 32 * 49 * 4, 13 * 32 * 49 * 4)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("F64", np.float64),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
    ],
)
def test_load_kernels_stored_types(tmp_path, name, kind):
    values = random_tensor(8, 1, 5, 5).astype(kind)
    header = {"dwconv.weight": {"dtype": name, "shape": [8, 1, 5, 5], "data_offsets": [0, values.nbytes]}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    kernels = load_kernels(tmp_path / "x.safetensors")
    assert kernels.layers[0].dtype == name
    np.testing.assert_array_equal(kernels.groups[5].kernels, values[:, 0].astype(np.float32))


def test_load_kernels_keras_and_flax_layouts(tmp_path):
    flax, keras, multiplied = (
        random_tensor(5, 5, 1, 16),
        random_tensor(3, 3, 16, 1),
        random_tensor(7, 7, 16, 2),
    )
    tensors = {
        "params/stem/kernel": random_tensor(4, 4, 3, 16),
        "params/stages_0/blocks_0/dwconv/kernel": flax,
        "params/stages_0/blocks_0/mlp/kernel": random_tensor(16, 64),
        "params/stages_0/blocks_1/depthwise/depthwise_kernel": keras,
        "params/stages_1/blocks_0/depthwise_conv/depthwise_kernel": multiplied,
        "params/stages_1/blocks_0/out/kernel": random_tensor(1, 1, 32, 16),
        "params/head/kernel": random_tensor(3, 3, 16, 1),
    }
    kernels = load_tensors(tmp_path, tensors)
    assert [(layer.stage, layer.block, layer.size, layer.channels) for layer in kernels.layers] == [
        (0, 0, 5, 16),
        (0, 1, 3, 16),
        (1, 0, 7, 32),
    ]
    np.testing.assert_array_equal(kernels.groups[5].kernels[3], flax[:, :, 0, 3])
    np.testing.assert_array_equal(kernels.groups[3].kernels[3], keras[:, :, 3, 0])
    # TensorFlow puts output channel c * m + j from input channel c.
    np.testing.assert_array_equal(kernels.groups[7].kernels[2 * 3 + 1], multiplied[:, :, 3, 1])


def test_load_kernels_mlx_layout(tmp_path):
    """Kernels of (C, k, k, 1) are read, arranged as in the file again and replaced in place."""
    tensors = {"stem.weight": random_tensor(16, 4, 4, 3)}
    for block in range(3):
        tensors[f"stages.0.blocks.{block}.conv_dw.weight"] = random_tensor(16, 7, 7, 1, seed=block)
    kernels = load_tensors(tmp_path, tensors)
    assert [(layer.size, layer.channels, layer.block) for layer in kernels.layers] == [
        (7, 16, 0),
        (7, 16, 1),
        (7, 16, 2),
    ]
    for layer, taps in kernels.pairs():
        stored = tensors[layer.name]
        np.testing.assert_array_equal(taps, stored[..., 0])
        np.testing.assert_array_equal(layer.to_stored(taps), stored)
        np.testing.assert_array_equal(layer.from_stored(stored), taps)
    # The same network as PyTorch stores it, replaced in the same way, has the same kernels.
    twin = {name: np.moveaxis(values, 3, 1).copy() for name, values in tensors.items()}
    save_file(twin, tmp_path / "twin.safetensors")
    replaced = {}
    for name in ("tiny", "twin"):
        done = replace_kernels(
            tmp_path / f"{name}.safetensors", tmp_path / f"new-{name}.safetensors", _half_mirrored, min_r2=0.6
        )
        assert 0 < done.n_replaced < 48
        replaced[name] = load_file(tmp_path / f"new-{name}.safetensors")
    for name, values in replaced["twin"].items():
        np.testing.assert_array_equal(replaced["tiny"][name], np.moveaxis(values, 1, 3))


def _half_mirrored(kernels):
    return (kernels + kernels[:, :, ::-1]) / 2


def test_load_kernels_mlx_axes_that_cannot_be_told_apart(tmp_path):
    """Seven kernels of 7x7 in (7, 7, 7, 1) are left out: channels may be rows."""
    tensors = {
        "stem.weight": random_tensor(8, 4, 4, 3),
        "a.dwconv.weight": random_tensor(7, 7, 7, 1),
        "b.dwconv.weight": random_tensor(8, 7, 7, 1),
    }
    kernels = load_tensors(tmp_path, tensors)
    assert layer_names(kernels) == ["b.dwconv.weight"]
    assert skip_reasons(kernels) == {
        "a.dwconv.weight": "its axes cannot be told apart, as many channels as rows"
    }


def test_load_kernels_channel_multiplier(tmp_path):
    tensors = convnext_tensors() | {"stages.0.0.extra.depthwise.weight": random_tensor(24, 1, 3, 3)}
    kernels = load_tensors(tmp_path, tensors)
    np.testing.assert_array_equal(
        kernels.groups[3].kernels, tensors["stages.0.0.extra.depthwise.weight"][:, 0]
    )


@pytest.mark.parametrize(
    "prefix", ["module.", "state_dict.", "model.", "model.module.", "net.", "_orig_mod."]
)
def test_load_kernels_wrapping_prefixes(tmp_path, prefix):
    kernels = load_tensors(tmp_path, convnext_tensors(prefix))
    assert len(kernels.layers) == 13
    assert (kernels.layers[5].stage, kernels.layers[5].block) == (1, 3)


@pytest.mark.parametrize(
    "moment",
    [
        "optimizer.state.{}.exp_avg",
        "optimizer/{}/momentum",
        "opt_state/0/mu/{}",
        "opt_state.0.nu.{}",
        "{}.exp_avg_sq",
        "{}/Adam_1",
        "{}/Momentum",
        "momentum_buffer.{}",
    ],
)
def test_load_kernels_leaves_out_optimizer_state(tmp_path, moment):
    tensors = convnext_tensors()
    moments = {moment.format(name): values * 0.1 for name, values in tensors.items()}
    kernels = load_tensors(tmp_path, tensors | moments)
    assert set(layer_names(kernels)) == {name for name in tensors if "dwconv.weight" in name}
    assert set(skip_reasons(kernels).values()) == {"optimiser state"}
    assert "tiny: 13 left out: optimiser state" in kernels.notes


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("model.", "model_ema.module."),
        ("state_dict.", "state_dict_ema."),
        ("", "ema."),
        ("params.", "params_ema."),
        ("student.", "teacher."),
    ],
)
def test_load_kernels_takes_the_average_of_a_weight(tmp_path, raw, average):
    tensors = convnext_tensors(raw) | convnext_tensors(average, seed=1)
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == 13
    assert all(name.startswith(average) for name in layer_names(kernels))
    place = average.rstrip(".")
    assert f"tiny: 13 left out: its moving average is taken instead: {place!r}" in kernels.notes
    assert (kernels.layers[12].stage, kernels.layers[12].block) == (1, 10)


def test_load_kernels_average_stored_without_dots(tmp_path):
    average = {f"model_ema.{name.replace('.', '')}": v for name, v in convnext_tensors(seed=1).items()}
    kernels = load_tensors(tmp_path, convnext_tensors("model.") | average)
    assert layer_names(kernels)[3] == "model_ema.stages11dwconvweight"
    assert [layer.block for layer in kernels.layers] == [0, 1, *range(11)]


def test_load_kernels_average_alone(tmp_path):
    assert len(load_tensors(tmp_path, convnext_tensors("state_dict_ema.")).layers) == 13


def test_load_kernels_include_and_exclude(tmp_path):
    tensors = convnext_tensors("model.") | convnext_tensors("ema.", seed=1)
    both = load_tensors(tmp_path, tensors, include=["model.*"])
    assert len(both.layers) == 26
    fewer = load_tensors(tmp_path, tensors, include=["model.*"], exclude=["*stages.1*"])
    assert len(fewer.layers) == 4
    with pytest.raises(InputError, match=r"no depthwise layer .* excluded by pattern"):
        load_tensors(tmp_path, tensors, exclude=["*"])


def test_load_kernels_other_ranks_and_shapes(tmp_path):
    others = {
        "stages.0.0.conv1d.dwconv.weight": random_tensor(8, 1, 7),
        "stages.0.0.conv3d.dwconv.weight": random_tensor(8, 1, 3, 3, 3),
        "stages.0.0.point.dwconv.weight": random_tensor(8, 1, 1, 1),
        "stages.0.0.empty.dwconv.weight": random_tensor(0, 1, 3, 3),
        "stages.0.0.wide.dwconv.weight": random_tensor(8, 1, 1, 11),
        "stages.0.0.tall.dwconv.weight": random_tensor(8, 1, 11, 1),
        "stages.0.0.attention.conv.weight": random_tensor(1, 1, 3, 3),
        "stages.0.0.factored.weight": random_tensor(8, 8, 3, 1),
        "stages.0.0.down.blur.filt": random_tensor(8, 1, 3, 3),
        "stages.0.0.int8.dwconv.weight": np.ones((8, 1, 7, 7), np.int8),
        "stages.0.0.int8.dwconv.weight_scale": random_tensor(8, 1, 7, 7),
        "stages.0.0.int8.dwconv.zero_point": random_tensor(8, 1, 1, 1),
    }
    kernels = load_tensors(tmp_path, convnext_tensors() | others)
    assert len(kernels.layers) == 13
    assert skip_reasons(kernels) == {
        "stages.0.0.conv1d.dwconv.weight": "one-dimensional kernels, which are not read",
        "stages.0.0.conv3d.dwconv.weight": "three-dimensional kernels, which are not read",
        "stages.0.0.wide.dwconv.weight": "not square",
        "stages.0.0.tall.dwconv.weight": "not square",
        "stages.0.0.attention.conv.weight": "a single kernel: one channel to one channel",
        "stages.0.0.down.blur.filt": "a fixed filter or a table, by its name",
        "stages.0.0.int8.dwconv.weight": (
            "I8 with a scale of shape [8, 1, 7, 7], which does not divide it into equal blocks"
        ),
        "stages.0.0.int8.dwconv.weight_scale": "companion of a quantised weight",
    }
    assert "tiny: 2 left out: not square" in kernels.notes


@pytest.mark.parametrize("shape", [(8, 1, 4, 4), (8, 1, 7, 7)])
def test_load_kernels_gray_stem_is_ambiguous(tmp_path, shape):
    tensors = convnext_tensors() | {"downsample_layers.0.0.weight": random_tensor(*shape, seed=999)}
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == 13
    assert [item.name for item in kernels.skipped if item.is_ambiguous] == ["downsample_layers.0.0.weight"]
    taken = load_tensors(tmp_path, tensors, include=["downsample_layers.0*"])
    assert layer_names(taken)[0] == "downsample_layers.0.0.weight"
    assert len(taken.layers) == 14


@pytest.mark.parametrize(
    "shapes",
    [
        # LeNet
        {"conv1.weight": (6, 1, 5, 5), "conv2.weight": (16, 6, 5, 5), "fc1.weight": (120, 256)},
        # a crowd counter with three branches, each of which reads the grey image
        {
            f"branch{branch}.{2 * depth}.weight": shape
            for branch, width in ((1, 16), (2, 20), (3, 24))
            for depth, shape in enumerate([(width, 1, 9, 9), (2 * width, width, 7, 7), (8, 2 * width, 7, 7)])
        },
        # FSRCNN: a grey image in, and a transposed convolution to one channel at the end
        {
            "first_part.0.weight": (56, 1, 5, 5),
            "mid_part.0.weight": (12, 56, 1, 1),
            "mid_part.2.weight": (56, 12, 1, 1),
            "last_part.weight": (56, 1, 9, 9),
        },
        # the mask branch of a promptable segmenter: a second input of one channel
        {
            "image_encoder.patch_embed.proj.weight": (32, 3, 16, 16),
            "image_encoder.blocks.0.mlp.lin1.weight": (64, 32),
            "prompt_encoder.mask_downscaling.0.weight": (4, 1, 2, 2),
            "prompt_encoder.mask_downscaling.3.weight": (16, 4, 2, 2),
        },
        # two encoders, the second for thermal images of one channel
        {
            f"{branch}_encoder.{name}.weight": shape
            for branch, channels in (("rgb", 3), ("thermal", 1))
            for name, shape in {
                "conv1": (64, channels, 7, 7),
                "layer1.0.conv1": (64, 64, 3, 3),
                "layer1.0.conv2": (64, 64, 3, 3),
            }.items()
        },
        # an RGB network with an ordinary 3x1 convolution whose ends look like a square
        {"conv.weight": (64, 64, 3, 1), "other.weight": (64, 64, 1, 3), "stem.weight": (64, 3, 7, 7)},
    ],
)
def test_load_kernels_networks_without_depthwise_layers(tmp_path, shapes):
    with pytest.raises(InputError, match="no depthwise layer among"):
        load_tensors(tmp_path, {name: random_tensor(*shape) for name, shape in shapes.items()})


def test_load_kernels_names_that_say_nothing(tmp_path):
    """torchvision's MobileNetV2: depthwise by its neighbours alone; and the same network for grey images."""
    for channels in (3, 1):
        tensors = {"features.0.0.weight": random_tensor(32, channels, 3, 3)}
        width = 32
        for block in range(1, 12):
            name, inner = f"features.{block}.conv", width * (6 if block > 1 else 1)
            if block > 1:
                tensors[f"{name}.0.0.weight"] = random_tensor(inner, width, 1, 1)
            tensors[f"{name}.{int(block > 1)}.0.weight"] = random_tensor(inner, 1, 3, 3, seed=block)
            width += 8 * (block % 2)
            tensors[f"{name}.{1 + int(block > 1)}.weight"] = random_tensor(width, inner, 1, 1)
        kernels = load_tensors(tmp_path, tensors)
        assert [layer.block for layer in kernels.layers] == list(range(1, 12))
        assert ("features.0.0.weight" in skip_reasons(kernels)) == (channels == 1)


@pytest.mark.parametrize(
    "name",
    ["stages/{}/blocks/{}/conv_dw/kernel", ".stages[{}].blocks[{}].conv_dw.kernel",
     "['stages_{}']['blocks_{}']['conv_dw']['kernel']"],
)  # fmt: skip
def test_load_kernels_stage_and_block_in_every_spelling(tmp_path, name):
    """Names of Flax and of Equinox trees tell stage and block as those of PyTorch do."""
    places = [(0, 0), (0, 1), (1, 0), (2, 10)]
    tensors = {name.format(*place): random_tensor(3, 3, 1, 8, seed=i) for i, place in enumerate(places)}
    kernels = load_tensors(tmp_path, tensors, include=["*"])
    assert [(layer.stage, layer.block) for layer in kernels.layers] == places


def test_load_kernels_torchvision_names(tmp_path):
    tensors, width = {"features.0.0.weight": random_tensor(16, 3, 4, 4)}, 16
    for stage in range(1, 9, 2):
        for block in range(3):
            name = f"features.{stage}.{block}.block"
            tensors[f"{name}.0.weight"] = random_tensor(width, 1, 7, 7, seed=block)
            tensors[f"{name}.3.weight"] = random_tensor(4 * width, width)
            tensors[f"{name}.5.weight"] = random_tensor(width, 4 * width)
            tensors[f"features.{stage}.{block}.layer_scale"] = random_tensor(width, 1, 1)
        tensors[f"features.{stage + 1}.1.weight"] = random_tensor(width + 8, width, 2, 2)
        width += 8
    kernels = load_tensors(tmp_path, tensors)
    expected = [(stage, block) for stage in (1, 3, 5, 7) for block in range(3)]
    assert [(layer.stage, layer.block) for layer in kernels.layers] == expected
    assert kernels.skipped == ()


tensor_names = st.one_of(
    st.text(min_size=1, max_size=8),
    st.lists(
        st.sampled_from(
            ["stages", "blocks", "0", "1", "10", "conv_dw", "ema", "module", "mu", "weight", "", "dw"]
        ),
        min_size=1,
        max_size=6,
    ).map(".".join),
)
shapes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 3, 7, 64]), min_size=2, max_size=5)


@given(st.dictionaries(tensor_names.filter(bool), shapes, min_size=1, max_size=8), st.booleans())
def test_load_kernels_any_sound_file(tmp_path_factory, tensors, everything):
    """A sound file is read, or refused in words."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tensors.pop("__metadata__", None)
    save_file({name: np.zeros(shape, np.float16) for name, shape in tensors.items()}, path)
    try:
        kernels = load_kernels(path, include=["*"] if everything else [])
    except InputError as error:
        assert "no depthwise layer" in str(error)
        return
    assert set(layer_names(kernels)) <= set(tensors)
    assert all(layer.size > 1 and layer.channels > 0 for layer in kernels.layers)
    assert kernels.n == len(kernels.table())


def test_load_kernels_tied_layers_count_once(tmp_path):
    tensors = convnext_tensors()
    tensors["shared.dwconv.weight"] = tensors["stages.1.4.dwconv.weight"].copy()
    kernels = load_tensors(tmp_path, tensors)
    assert "shared.dwconv.weight" not in layer_names(kernels)
    assert skip_reasons(kernels)["shared.dwconv.weight"] == "tied to stages.1.4.dwconv.weight"
    assert kernels.notes == ("tiny: 1 left out: tied to another layer",)


def test_load_kernels_untouched_layers_are_not_tied(tmp_path):
    tensors = convnext_tensors()
    for block in (2, 3):
        tensors[f"stages.1.{block}.dwconv.weight"] = np.zeros((8, 1, 7, 7), np.float32)
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == 13
    assert (kernels.groups[7].flag == Flag.ZERO).sum() == 16


def test_load_kernels_broken_rows(tmp_path):
    tensors = convnext_tensors()
    tensors["stages.0.0.dwconv.weight"][3, 0, 2, 2] = np.nan
    tensors["stages.0.0.dwconv.weight"][5, 0, 2, 2] = np.inf
    group = load_tensors(tmp_path, tensors).groups[7]
    assert np.flatnonzero(group.flag).tolist() == [3, 5]
    assert set(group.flag[[3, 5]]) == {Flag.NONFINITE}


def test_load_kernels_sizes(tmp_path):
    tensors = convnext_tensors() | {"stages.0.0.small.dwconv.weight": random_tensor(8, 1, 3, 3)}
    everything = load_tensors(tmp_path, tensors)
    large = load_tensors(tmp_path, tensors, sizes=[7])
    assert (everything.sizes, large.sizes) == ((3, 7), (7,))
    assert large.layers == everything.select(size=7).layers
    with pytest.raises(InputError, match=r"no depthwise kernels of sizes \[5\]; there are \[3, 7\]"):
        load_tensors(tmp_path, tensors, sizes=[5])


def test_load_kernels_stated_order_and_layout(tmp_path):
    tensors = {name: random_tensor(6, 5, 5, seed=i) for i, name in enumerate(["Conv_9", "Conv_10", "Conv_2"])}
    order = ["Conv_10", "Conv_2", "Conv_9"]
    stated = {"layer_order": json.dumps(order), "shape_convention": "(channels, height, width), ..."}
    kernels = load_tensors(tmp_path, tensors, stated)
    assert layer_names(kernels) == order
    np.testing.assert_array_equal(kernels.groups[5].kernels[:6], tensors["Conv_10"])
    assert layer_names(load_tensors(tmp_path, tensors, include=["Conv_*"])) == ["Conv_2", "Conv_9", "Conv_10"]
    with pytest.raises(InputError, match=r"no depthwise layer among 3 tensors \(3 of F32 \[6, 5, 5\]\)"):
        load_tensors(tmp_path, tensors)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "[" * 10_000, '["unknown"]'])
def test_load_kernels_ignores_an_unusable_order(tmp_path, text):
    kernels = load_tensors(tmp_path, convnext_tensors(), {"layer_order": text})
    assert [layer.block for layer in kernels.layers] == [0, 1, *range(11)]
