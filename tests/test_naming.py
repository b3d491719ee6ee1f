"""Names of tensors: the stage and block they tell, and the order in which their layers run."""

import pytest

from dogfit.checkpoints.copies import bare_name
from dogfit.checkpoints.naming import network_order, stage_and_block


@pytest.mark.parametrize(
    ("name", "stage", "block"),
    [
        ("stages.2.blocks.5.conv_dw.weight", 2, 5),
        ("visual.trunk.stages.3.blocks.1.conv_dw.weight", 3, 1),
        ("convnextv2.encoder.stages.2.layers.8.dwconv.weight", 2, 8),
        ("model.stages.0.layers.2.depthwise_conv.weight", 0, 2),
        ("stages.2.26.dwconv.weight", 2, 26),
        ("backbone.stages.1.0.dwconv.weight", 1, 0),
        ("blocks.3.1.conv_dw.weight", 3, 1),
        ("features.5.7.block.0.weight", 5, 7),
        ("features.4.conv.1.0.weight", None, 4),
        ("efficientnet.encoder.blocks.9.depthwise_conv.depthwise_conv.weight", None, 9),
        ("mobilenet_v2.layer.7.conv_3x3.convolution.weight", None, 7),
        ("layers.0.residual_group.blocks.2.mlp.dwconv.weight", 0, 2),
        ("convnext_tiny_stage_1_block_2_depthwise_conv/depthwise_kernel", 1, 2),
        ("block3b_dwconv/depthwise_kernel", 3, 1),
        ("block_5_depthwise/depthwise_kernel", None, 5),
        ("conv_dw_11/depthwise_kernel", None, 11),
        ("MobilenetV2/expanded_conv_4/depthwise/depthwise_weights", None, 4),
        ("params/ConvNeXtStage_1/ConvNeXtBlock_2/dwconv/kernel", 1, 2),
        ("stages/0/blocks/1/conv_dw/kernel", 0, 1),
        (".stages[0].blocks[1].conv_dw.weight", 0, 1),
        (".layers[2].blocks[11].conv", 2, 11),
        ("['stages_0']['blocks_1']['conv_dw']['kernel']", 0, 1),
        ("params['stages_2']['layers_8']['dwconv']['kernel']", 2, 8),
        ('["encoder"]["stages"][3]["layers"][1]["conv"]', 3, 1),
        ("stages\\\\1\\\\blocks\\\\2\\\\conv", 1, 2),
        ("blocks3.1.dw_conv.weight", 3, 1),
        ("Conv_12", None, None),
        ("stages." + "9" * 5000 + ".0.dwconv.weight", None, 0),
    ],
)
def test_stage_and_block_by_naming_rule(name, stage, block):
    assert stage_and_block(bare_name(name)) == (stage, block)


@pytest.mark.parametrize(
    "name", ["stages/{}/blocks/{}/dw", ".stages[{}].blocks[{}].dw", "['stages_{}']['blocks_{}']['dw']"]
)
def test_network_order_in_every_spelling(name):
    names = [name.format(stage, block) for stage in (0, 1, 10) for block in (0, 2, 11)]
    assert sorted(set(names), key=network_order) == names


def test_network_order_by_sorting_rules():
    """Stems, down-sampling and feed-forward layers sort where they run, heads last, whatever the numbers."""
    names = [
        "conv0.weight",
        "conv1.weight",
        "stem.0.weight",
        "stages.9.blocks.0.attn.q.weight",
        "stages.9.blocks.0.attn.k.weight",
        "stages.9.blocks.0.attn.v.weight",
        "stages.9.blocks.0.attn.proj.weight",
        "stages.9.blocks.0.mlp.fc.weight",
        "stages.123.downsample.0.weight",
        "stages.123.blocks.0.conv.weight",
        "head.fc.weight",
    ]
    assert sorted(set(names), key=network_order) == names


def test_network_order_by_value():
    names = [f"stages.{s}.{b}.dwconv.weight" for s in (0, 1, 10) for b in (0, 2, 9, 10, 100)]
    assert sorted(set(names), key=network_order) == names
    assert sorted(["x.01.a", "x.1.b", "x.002.a"], key=network_order) == ["x.01.a", "x.1.b", "x.002.a"]
