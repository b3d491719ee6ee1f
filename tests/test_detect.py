"""Depthwise layers among tensors, judged by names and shapes alone."""

from itertools import pairwise

import pytest

from dogfit.checkpoints.detect import find_depthwise
from dogfit.checkpoints.header import Tensor


def judge(shapes, **options):
    """Names that are taken, in order, and the reason for each that is left out."""
    tensors = {name: Tensor(name, "F32", tuple(shape), 0, 0) for name, shape in shapes.items()}
    findings = find_depthwise(tensors, **options)
    reasons = {item.tensor.name: item.reason for item in findings.left_out}
    return [layer.tensor.name for layer in findings.layers], reasons


def ambiguous(shapes):
    """Names of the tensors that are left out as ambiguous."""
    tensors = {name: Tensor(name, "F32", tuple(shape), 0, 0) for name, shape in shapes.items()}
    return {item.tensor.name for item in find_depthwise(tensors).left_out if item.is_ambiguous}


def to_last(shape, depthwise="kkcm"):
    """A PyTorch shape with channels last, depthwise as Keras (`kkcm`) or Flax (`kk1c`) stores it."""
    if len(shape) != 4:
        return shape[::-1]
    out, taken, height, width = shape
    if taken == 1 and depthwise == "kkcm":
        return (height, width, out, 1)
    return (height, width, taken, out)


def to_mlx(shape):
    return (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape


def mobilenet_shapes(widths=(16, 24, 24, 32, 32, 64), stem=3, k=3):
    """Shapes of inverted bottlenecks after a stem, in running order, and which are depthwise."""
    shapes, depthwise = [(widths[0], stem, 3, 3)], []
    for before, after in pairwise(widths):
        inner = 4 * before
        depthwise.append(len(shapes) + 1)
        shapes += [(inner, before, 1, 1), (inner, 1, k, k), (after, inner, 1, 1)]
    return shapes, depthwise


def separable_shapes(widths=(16, 32, 64, 64, 128)):
    """Shapes of a network of depthwise separable convolutions after a stem, and which are depthwise."""
    shapes, depthwise = [(widths[0], 3, 3, 3)], []
    for before, after in pairwise(widths):
        depthwise.append(len(shapes))
        shapes += [(before, 1, 3, 3), (after, before, 1, 1)]
    return shapes, depthwise


FLAT_NAMES = (
    "conv{}.weight",
    "{}.weight",
    "conv2d_{}.w_0",
    "onnx::Conv_{}",
    "Conv_{}/kernel",
    "layer{}.0.weight",
    "block{}.conv.weight",
    "module_list.{}.Conv2d.weight",
    "params/Conv_{}/kernel",
    "['params']['Conv_{}']['kernel']",
    "w{}",
)


@pytest.mark.parametrize("shapes", [mobilenet_shapes(), separable_shapes(), mobilenet_shapes(k=5)])
@pytest.mark.parametrize("name", FLAT_NAMES)
@pytest.mark.parametrize("transpose", [tuple, to_last, lambda s: to_last(s, "kk1c"), to_mlx])
def test_find_depthwise_flat_networks(name, shapes, transpose):
    """Networks that number all their layers, in every layout."""
    shapes, depthwise = shapes
    tensors = {name.format(7 + index): transpose(shape) for index, shape in enumerate(shapes)}
    found, _ = judge(tensors)
    assert found == [name.format(7 + index) for index in depthwise]


@pytest.mark.parametrize("transpose", [tuple, to_last, to_mlx])
def test_find_depthwise_flat_network_with_attention_to_channels(transpose):
    """Squeeze-and-excitation layers between a depthwise convolution and the one that takes its channels."""
    shapes, expected = [(16, 3, 3, 3)], []
    for inner, out in ((16, 24), (72, 24), (96, 40)):
        expected.append(len(shapes) + 1)
        before = shapes[-1][0]
        shapes += [
            (inner, before, 1, 1),
            (inner, 1, 5, 5),
            (inner // 4, inner, 1, 1),
            (inner, inner // 4, 1, 1),
        ]
        shapes += [(out, inner, 1, 1)]
    found, _ = judge({f"conv2d_{i}.w_0": transpose(shape) for i, shape in enumerate(shapes)})
    assert found == [f"conv2d_{i}.w_0" for i in expected]


@pytest.mark.parametrize("name", FLAT_NAMES)
def test_find_depthwise_flat_network_for_gray_images(name):
    """The first convolution of a gray flat network stays ambiguous, the depthwise ones are found."""
    shapes, depthwise = separable_shapes()
    shapes[0] = (16, 1, 3, 3)
    tensors = {name.format(index): shape for index, shape in enumerate(shapes)}
    assert judge(tensors)[0] == [name.format(index) for index in depthwise]
    assert ambiguous(tensors) == {name.format(0)}


def test_find_depthwise_gray_patches_behind_linear_layers():
    """Patches of gray images become tokens between the linear layers of other towers: no depthwise layer."""
    shapes = [(64, 64)] * 4 + [(64, 1, 8, 8)] + [(64, 64)] * 4
    tensors = {f"{index}.weight": shape for index, shape in enumerate(shapes)}
    assert judge(tensors)[0] == []
    assert ambiguous(tensors) == {"4.weight"}


@pytest.mark.parametrize("sizes", [((1, 3), (3, 1)), ((1, 5), (7, 1)), ((1, 9), (1, 9)), ((1, 3), (1, 3))])
@pytest.mark.parametrize("width", [16, 24, 32, 48, 64])
def test_find_depthwise_among_factorized_convolutions(sizes, width):
    """1xk and kx1 convolutions of equal width decide nothing, however many there are."""
    shapes = {"stem.weight": (width, 3, 3, 3), "b.0.dwconv.weight": (width, 1, 3, 3)}
    for block in range(4):
        for j, kernel in enumerate(sizes):
            shapes[f"b.{block}.c{j}.weight"] = (width, width, *kernel)
    assert judge(shapes) == (["b.0.dwconv.weight"], {})
    last = {name.replace(".weight", "/kernel"): to_last(shape) for name, shape in shapes.items()}
    assert judge(last) == (["b.0.dwconv/kernel"], {})


@pytest.mark.parametrize("width", [16, 24, 32, 64, 80])
def test_find_depthwise_audio_network_of_1xk(width):
    """A network of 1xk convolutions that reads one channel has no depthwise layer at all."""
    shapes = {f"enc.{i}.weight": (width, 1 if i == 0 else width, 1, 3 + 2 * (i % 3)) for i in range(6)}
    found, reasons = judge(shapes)
    assert found == []
    assert set(reasons) <= {"enc.0.weight"}


@pytest.mark.parametrize(
    "shapes",
    [
        # heads that end with a transposed convolution to one channel
        {
            "stem.weight": (16, 3, 3, 3),
            "head.edge.0.weight": (16, 16, 3, 3),
            "head.edge.3.weight": (16, 1, 4, 4),
            "head.mask.0.weight": (16, 16, 3, 3),
            "head.mask.3.weight": (16, 1, 4, 4),
        },
        {
            "stem.weight": (16, 3, 3, 3),
            **{f"heads.{h}.0.weight": (16, 16, 3, 3) for h in range(3)},
            **{f"heads.{h}.3.weight": (16, 1, 2, 2) for h in range(3)},
        },
        {
            "stem.weight": (16, 3, 3, 3),
            "body.weight": (32, 16, 3, 3),
            "edge.reduce.weight": (16, 32, 1, 1),
            "edge.up.weight": (16, 1, 4, 4),
            "mask.reduce.weight": (16, 16, 1, 1),
            "mask.up.weight": (16, 1, 4, 4),
        },
        # U-Net whose side outputs are transposed convolutions
        {
            "enc1.weight": (16, 3, 3, 3),
            "enc2.weight": (32, 16, 3, 3),
            "side1.weight": (32, 1, 2, 2),
            "side2.weight": (32, 1, 4, 4),
            "dec1.weight": (32, 32, 3, 3),
            "dec2.weight": (16, 32, 3, 3),
        },
        # two branches, the second for gray images
        {
            "rgb.0.weight": (32, 3, 3, 3),
            "rgb.2.weight": (64, 32, 3, 3),
            "thermal.0.weight": (32, 1, 3, 3),
            "thermal.2.weight": (64, 32, 3, 3),
            "fuse.weight": (64, 128, 1, 1),
        },
        # all widths equal, so that channels agree by accident
        {
            "image.conv1.weight": (16, 3, 3, 3),
            "image.conv2.weight": (16, 16, 3, 3),
            "mask.conv1.weight": (16, 1, 3, 3),
            "mask.conv2.weight": (16, 16, 3, 3),
            "noise.conv1.weight": (16, 1, 3, 3),
            "noise.conv2.weight": (16, 16, 3, 3),
            "out.weight": (3, 16, 3, 3),
        },
        {
            "image.conv1.weight": (16, 3, 3, 3),
            "image.conv2.weight": (16, 16, 1, 1),
            "mask.conv1.weight": (16, 1, 3, 3),
            "mask.conv2.weight": (16, 16, 1, 1),
            "noise.conv1.weight": (16, 1, 3, 3),
            "noise.conv2.weight": (16, 16, 1, 1),
            "out.weight": (3, 16, 1, 1),
        },
        # numbered branches; and all of them gray
        {
            f"branch{b}.{i}.weight": (16 * 2**i, (1 if b else 3) if i == 0 else 8 * 2**i, 3, 3)
            for b in range(4)
            for i in range(3)
        },
        {
            f"branches.{b}.{i}.weight": (16 * 2**i, 1 if i == 0 else 8 * 2**i, 3, 3)
            for b in range(4)
            for i in range(3)
        },
        {
            f"streams.{b}.conv{i}.weight": (16, (3, 1, 1)[b] if i == 1 else 16, 3, 3)
            for b in range(3)
            for i in (1, 2)
        },
        # deeper in the tree
        {
            "backbone.encoders.color.conv1.weight": (64, 3, 7, 7),
            "backbone.encoders.color.layer1.0.conv1.weight": (64, 64, 1, 1),
            "backbone.encoders.color.layer1.0.conv2.weight": (64, 64, 3, 3),
            "backbone.encoders.depth.conv1.weight": (64, 1, 7, 7),
            "backbone.encoders.depth.layer1.0.conv1.weight": (64, 64, 1, 1),
            "backbone.encoders.depth.layer1.0.conv2.weight": (64, 64, 3, 3),
        },
        # a stem for each input
        {
            "rgb_stem.weight": (32, 3, 3, 3),
            "thermal_stem.weight": (32, 1, 3, 3),
            "fuse.weight": (64, 32, 1, 1),
            "layer1.weight": (64, 64, 3, 3),
        },
    ],
)
@pytest.mark.parametrize("transpose", [tuple, lambda s: to_last(s, "kk1c"), to_mlx])
def test_find_depthwise_none_in_branches(shapes, transpose):
    """Gray stems and convolutions to one channel are no depthwise layers, wherever branches begin and end."""
    tensors = {name: transpose(shape) for name, shape in shapes.items()}
    found, reasons = judge(tensors)
    assert found == []
    assert set(reasons) == ambiguous(tensors) == {name for name, shape in shapes.items() if shape[1] == 1}


def test_find_depthwise_beside_gray_stem_of_a_branch():
    """Depthwise layers of two branches are found, whether their names say so or not; the gray stem is not."""
    for part in ("dwconv", "conv1"):
        shapes = {}
        for branch, channels in (("color", 3), ("depth", 1)):
            shapes[f"{branch}.stem.weight"] = (16, channels, 3, 3)
            for block in range(3):
                shapes[f"{branch}.blocks.{block}.{part}.weight"] = (16, 1, 3, 3)
                shapes[f"{branch}.blocks.{block}.pw1.weight"] = (64, 16, 1, 1)
                shapes[f"{branch}.blocks.{block}.pw2.weight"] = (16, 64, 1, 1)
        found, reasons = judge(shapes)
        assert found == [name for name in shapes if f".{part}." in name]
        assert list(reasons) == ["depth.stem.weight"]


@pytest.mark.parametrize("next_kernel", [1, 3])
def test_find_depthwise_one_filter_with_channels_last(next_kernel):
    """A convolution (kh, kw, C, 1) with one filter stays ambiguous, whatever comes after it."""
    k = next_kernel
    shapes = {
        "face/conv2d/kernel": (3, 3, 3, 32),
        "face/conv2d_1/kernel": (3, 3, 32, 16),
        "face/conv2d_2/kernel": (7, 7, 16, 1),
        "face/conv2d_3/kernel": (k, k, 16, 8),
    }
    found, reasons = judge(shapes)
    assert found == []
    assert list(reasons) == ["face/conv2d_2/kernel"]


def test_find_depthwise_one_filter_by_its_bias():
    """A bias with one entry tells a convolution to one channel, even where its name says depthwise."""
    shapes, depthwise = separable_shapes()
    tensors = {f"conv_{i}/kernel": to_last(shape) for i, shape in enumerate(shapes)}
    tensors |= {f"conv_{i}/bias": (shape[0],) for i, shape in enumerate(shapes)}
    tensors |= {"conv_40/kernel": (3, 3, 128, 1), "conv_40/bias": (1,), "conv_41/kernel": (1, 1, 128, 8)}
    found, reasons = judge(tensors)
    assert found == [f"conv_{i}/kernel" for i in depthwise]
    assert list(reasons) == ["conv_40/kernel"]


@pytest.mark.parametrize(
    ("kernel", "pointwise"),
    [
        ("block{}_sepconv1/depthwise_kernel", "block{}_sepconv1/pointwise_kernel"),
        ("layers/separable_conv2d_{}/vars/0", "layers/separable_conv2d_{}/vars/1"),
        ("_layer_checkpoint_dependencies/entry_{}/vars/0", "_layer_checkpoint_dependencies/entry_{}/vars/1"),
        ("sep{}/sep{}/depthwise_kernel:0", "sep{}/sep{}/pointwise_kernel:0"),
    ],
)
@pytest.mark.parametrize("multiplier", [1, 2, 3, 4])
def test_find_depthwise_separable_convolutions(kernel, pointwise, multiplier):
    """Separable convolutions of Keras, with a multiplier or without, in the names of both file formats."""
    tensors, expected = {"layers/conv2d/vars/0": (3, 3, 3, 16), "layers/conv2d/vars/1": (16,)}, []
    for index, width in enumerate((16, 32, 64), 1):
        expected.append(kernel.format(index, index))
        tensors[expected[-1]] = (3, 3, width, multiplier)
        tensors[pointwise.format(index, index)] = (1, 1, width * multiplier, 2 * width)
        tensors[pointwise.format(index, index).replace("vars/1", "vars/2") + "_bias"] = (2 * width,)
    found, _ = judge(tensors)
    assert found == expected


def test_find_depthwise_depthwise_layers_of_keras_3():
    """`.weights.h5` names layers by their class and weights by their number."""
    tensors = {
        "layers/conv2d/vars/0": (3, 3, 3, 16),
        "layers/depthwise_conv2d/vars/0": (3, 3, 16, 2),
        "layers/depthwise_conv2d/vars/1": (32,),
        "layers/conv2d_1/vars/0": (1, 1, 32, 24),
        "layers/depthwise_conv2d_1/vars/0": (5, 5, 24, 1),
        "layers/conv2d_2/vars/0": (3, 3, 24, 8),
    }
    found, _ = judge(tensors)
    assert found == ["layers/depthwise_conv2d/vars/0", "layers/depthwise_conv2d_1/vars/0"]


def test_find_depthwise_unnamed_multiplier_is_listed():
    """(k, k, C, m) before a pointwise convolution of C m channels is ambiguous where names say nothing."""
    tensors = {
        "conv_0/kernel": (3, 3, 3, 16),
        "conv_1/kernel": (3, 3, 16, 2),
        "conv_2/kernel": (1, 1, 32, 24),
        "conv_3/kernel": (3, 3, 24, 24),
    }
    found, reasons = judge(tensors)
    assert found == []
    assert list(reasons) == ["conv_1/kernel"]


def test_find_depthwise_of_a_part_of_the_channels():
    """Layers of many blocks that take a part of the channels have no neighbors of their width."""
    tensors, expected = {"stem.weight": (128, 3, 3, 3)}, []
    for block in range(12):
        expected.append(f"blocks.{block}.conv.weight")
        tensors[expected[-1]] = (160, 1, 7, 7)
        tensors[f"blocks.{block}.fc1.weight"] = (768, 128)
        tensors[f"blocks.{block}.fc2.weight"] = (128, 384)
    assert judge(tensors)[0] == expected


def test_find_depthwise_first_by_name():
    """A layer that sorts before the stem is found, like the same part of other blocks."""
    tensors, expected = {"net.patches.weight": (64, 3, 4, 4)}, []
    for block in range(6):
        expected.append(f"net.blocks.{block}.a_conv.weight")
        tensors[expected[-1]] = (64, 1, 3, 3)
        tensors[f"net.blocks.{block}.grow.weight"] = (256, 64, 1, 1)
        tensors[f"net.blocks.{block}.shrink.weight"] = (64, 256, 1, 1)
    assert judge(tensors)[0] == expected


def test_find_depthwise_words_for_a_larger_part():
    """A word that names a part of the network with ordinary convolutions says nothing about each of them."""
    shapes = {
        "depthwise_net.conv1.weight": (64, 1, 7, 7),
        "depthwise_net.conv2.weight": (64, 64, 3, 3),
        "depthwise_net.fc.weight": (10, 64),
    }
    assert judge(shapes)[0] == []
    assert ambiguous(shapes) == {"depthwise_net.conv1.weight"}
    last = {"dw_block/expand/kernel": (3, 3, 16, 64), "dw_block/project/kernel": (3, 3, 64, 4)}
    assert judge({"stem/kernel": (3, 3, 3, 16), **last})[0] == []


def test_find_depthwise_refuses_what_cannot_be():
    """A few large kernels are another layout or a fixed filter; a pattern takes them all the same."""
    shapes = {"a.weight": (3, 3, 3, 24), "b.weight": (3, 3, 24, 24), "c.weight": (24, 24, 1, 3)}
    found, reasons = judge(shapes)
    assert found == []
    assert reasons == {"c.weight": "3 kernels of 24x24 are no depthwise layer"}
    assert judge(shapes, include=["c.*"])[0] == ["c.weight"]


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"dw.weight": (16, 1, 7), "pw.weight": (16, 16, 1)}, "one-dimensional kernels, which are not read"),
        ({"dw/kernel": (7, 16, 1), "s/kernel": (3, 3, 3, 16)}, "one-dimensional kernels, which are not read"),
        ({"dw/kernel": (7, 1, 16), "s/kernel": (3, 3, 3, 16)}, "one-dimensional kernels, which are not read"),
        ({"dw.weight": (16, 7, 1), "s.weight": (16, 5, 5, 4)}, "one-dimensional kernels, which are not read"),
        ({"dw.weight": (16, 1, 3, 3, 3)}, "three-dimensional kernels, which are not read"),
        (
            {"dw.weight": (16, 1, 1, 3, 3)},
            "kernels in the layout (C, 1, 1, k, k) of OpenVINO, which are not read",
        ),
        (
            {"dw/filter": (1, 3, 3, 16), "pw/filter": (32, 1, 1, 16)},
            "kernels in the layout (1, k, k, C) of TFLite, which are not read",
        ),
    ],
)
def test_find_depthwise_names_other_layouts(shapes, reason):
    """Kernels of other axes are left out by name, and nothing else is."""
    found, reasons = judge(shapes)
    assert (found, list(reasons.values())) == ([], [reason])


def test_find_depthwise_position_tables_are_no_layout():
    """Tables of positions have the axes of TFLite's kernels."""
    shapes = {"pos_embed": (1, 14, 14, 64), "cls_token": (1, 1, 64), "stem.weight": (64, 3, 16, 16)}
    assert judge(shapes) == ([], {})


def test_find_depthwise_mlx_next_to_linear_layers():
    """MLX kernels are told from a few convolutions, or none but themselves."""
    for stem in ({"stem.weight": (16, 4, 4, 3)}, {}):
        blocks = {f"stages.0.blocks.{i}.conv_dw.weight": (16, 7, 7, 1) for i in range(3)}
        linear = {f"stages.0.blocks.{i}.mlp.fc1.weight": (64, 16) for i in range(3)}
        assert judge(stem | blocks | linear) == (list(blocks), {})


def test_find_depthwise_many_blocks():
    """Layers of thousands of blocks come in the order of their numbers."""
    shapes = {"stem.weight": (8, 3, 3, 3)}
    for block in range(3_000):
        for part, shape in (("conv1", (8, 1, 3, 3)), ("conv2", (32, 8, 1, 1)), ("conv3", (8, 32, 1, 1))):
            name = f"layers.{block // 300}.{block}.{part}"
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1], f"{name}.scale": shape[:1]}
    found, _ = judge(dict(reversed(shapes.items())))
    assert found == [f"layers.{block // 300}.{block}.conv1.weight" for block in range(3_000)]
