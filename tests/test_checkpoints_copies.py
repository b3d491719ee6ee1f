"""Copies of one network in a checkpoint count once; networks beside each other each count."""

import numpy as np
import pytest

from dogfit.checkpoints.copies import Role, bare_name, differing_part, role_of
from dogfit.checkpoints.distinct import distinct_layers
from dogfit.errors import InputError
from tiny_checkpoints import convnext_tensors, layer_names, load_tensors, random_tensor, skip_reasons

N_LAYERS = 13


def near(tensors, prefix, noise=0.05):
    """The same tensors under another prefix, as an average of the weights lies near them."""
    return {prefix + name: t + noise * random_tensor(*t.shape, seed=7) for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("online_network.", "target_network."),
        ("online_encoder.net.", "target_encoder.net."),
        ("encoder_q.", "encoder_k."),
        ("module.encoder_q.", "module.encoder_k."),
        ("query_encoder.", "key_encoder."),
        ("base_encoder.", "momentum_encoder."),
        ("encoder.", "momentum_encoder."),
        ("backbone.", "target_backbone."),
        ("critic.", "critic_target."),
        ("visual_encoder.", "visual_encoder_target."),
        ("teacher.module.", "student.module."),
        ("teacher_backbone.", "student_backbone."),
        ("backbone_ema.", "backbone."),
        ("netG_ema.", "netG."),
        ("swa_model.module.", "model."),
        ("averaged_model.", ""),
        ("ema.shadow.", "net."),
        ("mean_teacher.", "student."),
        ("policy_net.", "target_net."),
        ("feature_extractor_q.", "feature_extractor_k."),
        ("modelTeacher.", "modelStudent."),
    ],
)
def test_load_kernels_copies_by_name(tmp_path, taken, left):
    """Names tell that one set of tensors is a copy of the other, and the note says which was taken."""
    tensors = convnext_tensors(taken) | convnext_tensors(left, seed=1)
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == N_LAYERS
    assert all(name.startswith(taken) for name in layer_names(kernels))
    assert (kernels.layers[12].stage, kernels.layers[12].block) == (1, 10)
    left_out = {name for name in tensors if name.startswith(left) and not name.startswith(taken)}
    assert set(skip_reasons(kernels)) == {name for name in left_out if "dwconv.weight" in name}
    (note,) = [note for note in kernels.notes if "average" in note]
    assert differing_part(f"{taken}x", f"{left}x") in note


def test_load_kernels_copies_by_include_and_exclude(tmp_path):
    tensors = convnext_tensors("encoder_q.") | convnext_tensors("encoder_k.", seed=1)
    both = load_tensors(tmp_path, tensors, include=["encoder_k.*"])
    assert len(both.layers) == 2 * N_LAYERS
    other = load_tensors(tmp_path, tensors, exclude=["encoder_q.*"])
    assert all(name.startswith("encoder_k.") for name in layer_names(other))
    assert len(other.layers) == N_LAYERS


@pytest.mark.parametrize(("one", "other"), [("student.", "teacher."), ("model.", "net."), ("", "teacher.")])
def test_load_kernels_networks_of_other_widths(tmp_path, one, other):
    """A wider network of the same form is no copy; both count, and a note says so."""
    tensors = convnext_tensors(one) | convnext_tensors(other, channels=12, seed=1)
    kernels = load_tensors(tmp_path, tensors)
    assert sorted(layer.channels for layer in kernels.layers) == N_LAYERS * [8] + N_LAYERS * [12]
    (note,) = [note for note in kernels.notes if "networks beside each other" in note]
    assert repr(other.rstrip(".")) in note


def test_load_kernels_teacher_of_other_depth(tmp_path):
    student = {n: t for n, t in convnext_tensors("student.").items() if "stages.1.9" not in n}
    kernels = load_tensors(tmp_path, student | convnext_tensors("teacher.", seed=1))
    assert len(kernels.layers) == 2 * N_LAYERS - 1


def test_load_kernels_average_of_a_part(tmp_path):
    """An average that covers a part of the network replaces that part alone."""
    average = {n: t for n, t in convnext_tensors("ema.", seed=1).items() if "stages.1" in n}
    names = layer_names(load_tensors(tmp_path, convnext_tensors("model.") | average))
    assert len(names) == N_LAYERS
    assert [name.startswith("ema.") for name in names] == [False] * 2 + [True] * 11


@pytest.mark.parametrize(
    ("one", "other"),
    [("model.", "module."), ("net_a.", "net_b."), ("left.body.", "right.body."), ("", "copy.")],
)
def test_load_kernels_copies_by_value(tmp_path, one, other):
    """Kernels close to each other are copies though names say nothing, and others are not."""
    plain = convnext_tensors()
    tensors = {one + name: values for name, values in plain.items()} | near(plain, other)
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == N_LAYERS
    assert set(layer_names(kernels)) == {f"{one}{name}" for name in plain if "dwconv.weight" in name}
    place = differing_part(f"{one}x", f"{other}x")
    (note,) = [note for note in kernels.notes if "13 left out: a second copy" in note]
    assert (repr(place) if place else "plain name") in note
    independent = convnext_tensors(one) | convnext_tensors(other, seed=1)
    assert len(load_tensors(tmp_path, independent).layers) == 2 * N_LAYERS


def test_load_kernels_branches_are_no_copies(tmp_path):
    """Projections of queries and keys, and blocks that resemble each other, are layers of one network."""
    tensors = convnext_tensors()
    shared = random_tensor(1, 1, 7, 7)
    for block in range(4):
        name = f"stages.1.{block}"
        tensors[f"{name}.dwconv.weight"] = shared + 0.05 * random_tensor(8, 1, 7, 7, seed=block)
        for part in ("q", "k", "v"):
            tensors[f"{name}.attn.conv_{part}.dwconv.weight"] = random_tensor(8, 1, 3, 3, seed=ord(part))
    for part, noise in (("left", 1), ("right", 2)):
        tensors[f"stages.1.5.{part}.dwconv.weight"] = shared + 0.05 * random_tensor(
            8, 1, 7, 7, seed=noise + 50
        )
    kernels = load_tensors(tmp_path, tensors)
    tied = [name for name, reason in skip_reasons(kernels).items() if "tied" in reason]
    assert len(kernels.layers) == N_LAYERS + 12 + 2 - len(tied)
    assert all("attn" in name for name in tied)


def test_load_kernels_saved_and_original_modules(tmp_path):
    plain = convnext_tensors("base_model.model.")
    name = "base_model.model.stages.0.1.dwconv"
    original = plain.pop(f"{name}.weight")
    tensors = plain | {
        f"{name}.original_module.weight": original,
        f"{name}.modules_to_save.default.weight": random_tensor(8, 1, 7, 7, seed=3),
    }
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == N_LAYERS
    assert layer_names(kernels)[1] == f"{name}.modules_to_save.default.weight"
    assert skip_reasons(kernels) == {
        f"{name}.original_module.weight": "the original of 'modules_to_save.default', which is taken"
    }


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_A.default", "lora_B.default"),
        ("lora_down", "lora_up"),
        ("hada_w1_a", "hada_w1_b"),
        ("lokr_t2", "lokr_w2_a"),
    ],
)
def test_load_kernels_low_rank_adapters_are_no_kernels(tmp_path, down, up):
    plain = convnext_tensors("base_model.model.")
    name = "base_model.model.stages.0.1.dwconv"
    weight = plain.pop(f"{name}.weight")
    tensors = plain | {
        f"{name}.base_layer.weight": weight,
        f"{name}.{down}.weight": random_tensor(8, 1, 7, 7, seed=3),
        f"{name}.{up}.weight": random_tensor(8, 8, 1, 1),
    }
    kernels = load_tensors(tmp_path, tensors)
    assert len(kernels.layers) == N_LAYERS
    assert f"{name}.base_layer.weight" in layer_names(kernels)
    assert "low-rank adapter" in skip_reasons(kernels)[f"{name}.{down}.weight"]


def test_load_kernels_fixed_filters_are_no_trained_layer(tmp_path):
    """A buffer that holds one kernel for every channel was not trained, whatever its name says."""
    blur = np.tile(np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16, (8, 1, 1, 1))
    tensors = convnext_tensors() | {"stages.0.1.down.dwconv.weight": blur}
    kernels = load_tensors(tmp_path, tensors)
    assert kernels.sizes == (7,)
    assert "no trained layer" in skip_reasons(kernels)["stages.0.1.down.dwconv.weight"]
    assert load_tensors(tmp_path, tensors, include=["*.down.*"]).sizes == (3, 7)
    with pytest.raises(InputError, match="no trained layer: all its kernels are equal"):
        load_tensors(tmp_path, {"dwconv.weight": blur})


def test_distinct_layers_broken_kernels():
    """Kernels that are not finite or constant resemble nothing."""
    broken = random_tensor(8, 7, 7)
    broken[0, 0, 0], broken[1, 0, 0] = np.nan, np.inf
    flat = np.ones((8, 7, 7), np.float32)
    found = distinct_layers({"a.x": broken, "b.x": broken + 1, "a.y": flat, "b.y": flat})
    assert (found.tied, found.left_out) == ({}, {})


@pytest.mark.parametrize(
    ("name", "bare", "role"),
    [
        ("module.stages.0.dw.weight", "stages.0.dw.weight", Role.PLAIN),
        ("encoder_k.stem.weight", "encoder.stem.weight", Role.MOMENTUM),
        ("model_ema.module.stem.weight", "stem.weight", Role.AVERAGE),
        ("block/conv/kernel/ExponentialMovingAverage", "block.conv.kernel", Role.AVERAGE),
        (".ema.stages[0].conv.weight", "stages.0.conv.weight", Role.AVERAGE),
        ("['ema_params']['stem']['kernel']", "stem.kernel", Role.AVERAGE),
        ("stages.0.attn.conv_proj_k.weight", "stages.0.attn.conv_proj_k.weight", Role.PLAIN),
        ("attn.head_q.weight", "attn.head_q.weight", Role.PLAIN),
        ("schema.weight", "schema.weight", Role.PLAIN),
        ("avgpool.weight", "avgpool.weight", Role.PLAIN),
        ("reference_model.stem.weight", "stem.weight", Role.ORIGINAL),
        ("momentum_teacher.stem.weight", "stem.weight", Role.MOMENTUM),
        ("ema_0.stem.weight", "stem.weight", Role.AVERAGE),
        ("base_conv.weight", "base_conv.weight", Role.PLAIN),
        ("text_encoder.k.weight", "text_encoder.k.weight", Role.PLAIN),
        ("model", "model", Role.PLAIN),
    ],
)
def test_bare_name_and_role(name, bare, role):
    assert (bare_name(name), role_of(name)) == (bare, role)
