"""Naming rules as data: what the name of a tensor says about its place in the network.

A new naming scheme is a line in NAMING_RULES; parts whose names do not sort as they run are lines in
SORTING_RULES.
"""

import re
from typing import NamedTuple

# Values that an optimiser keeps for each weight: any whole part of the name, or TensorFlow's last part.
OPTIMIZER = re.compile(
    r"(?:^|[./])(?:exp_avg|exp_avg_sq|max_exp_avg_sq|momentum|momentum_buffer|square_avg|optimi[sz]ers?"
    r"|optimi[sz]er_state|optim|opt_state|opt|adamw?|lamb|lion|velocity|accumulator|gradients?|grads?|mu|nu|trace)"
    r"(?:[./]|$)"
    r"|[./](?:exp_avg|exp_avg_sq|Adam|Adam_1|Momentum|RMSProp|RMSProp_1|m|v|grad)$",
    re.IGNORECASE,
)
# Fixed filters and tables that have the shape of a depthwise kernel and are not one.
NOT_A_KERNEL = re.compile(
    r"(?:^|[./_])(?:filt|blur\w*|gaussian\w*|sobel\w*|window|pos_embed|position_embedding\w*|relative_position\w*"
    r"|rel_pos\w*|attention_bias\w*|anchor\w*|mask|token)$",
    re.IGNORECASE,
)
# Companions of a quantised weight.
QUANTIZED = re.compile(
    r"(?:^|[./_])(?:scales?|zero_points?|scale_inv|qzeros|qscale|g_idx|input_scale|weight_scale)(?:_\d+)?$",
    re.IGNORECASE,
)
# Names that say "depthwise" themselves.
DEPTHWISE = re.compile(
    r"(?:^|[./_\d])(?:dw|dws|dwc|cpe|crpe|lkb)(?:[./_\d]|$)|conv_?dw|dw_?conv|depth_?wise|depth_?conv|conv_kxk_dw"
    r"|cheap_operation|cheap_rpr_conv|large_conv|lkb_",
    re.IGNORECASE,
)


class SortingRule(NamedTuple):
    """Change of a name that makes it sort where its layer runs."""

    pattern: re.Pattern[str]
    replacement: str
    """Text in place of a match: '!' sorts before letters, '~' after them."""


# Applied in order, all that match.
SORTING_RULES = tuple(
    SortingRule(re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(^|[./])(stem|conv_stem|patch_embed\w*|embeddings?|cell_stem|first)(?=[./_\d]|$)", r"\1!\2"),
        (r"^(conv[12])(?=[.])", r"!\1"),
        (
            r"(^|[./])(head|heads|conv_head|final\w*|last\w*|classifier|decoder|decode_head|neck|fpn)(?=[./]|$)",
            r"\1~\2",
        ),
        # NASNet-A large: a reduction cell follows every sixth cell
        (r"^reduction_cell_0", "cell_5_reduction"),
        (r"^reduction_cell_1", "cell_11_reduction"),
        # timm halves the resolution at the start of a stage, Swin-like `layers` at the end
        # (EfficientViM too, told by its parts)
        (r"(stages?[./_]\d+[./])downsample(?=[.](?:dwconv\d|conv[.]\d))", r"\1~downsample"),
        (r"(stages?[./_]\d+[./])(downsample|pos_emb)", r"\1!\2"),
        (r"[.](downsampling_layer)(?=[.])", r".!\1"),
        (r"downsample[.]res1(?=[.])", "downsample.!res1"),
        (r"[./](mlp|ffn|convffn)(?=[./])", r".~\1"),
        # MobileNetV4, GhostNet, DaViT, EfficientViM, EfficientViT (MSRA)
        (r"[./]dw_start(?=[./])", ".!dw_start"),
        (r"[./]dw_end(?=[./])", ".~dw_end"),
        (r"[./]ghost1(?=[./])", ".!ghost1"),
        (r"[./](ghost2|shortcut)(?=[./])", r".~\1"),
        (r"[./]spatial_block(?=[./])", ".!spatial_block"),
        (r"[./]dwconv1(?=[./])", ".!dwconv1"),
        (r"[./](dwconv2|dw1)(?=[./])", r".~\1"),
        # query, key, value, projection
        (r"[./](pool_q|q|query)(?=[./])", r".!\1"),
        (r"[./](pool_v|v|v_local|value)(?=[./])", r".~\1"),
        (r"attn[./]proj(?=[./])", "attn.~~proj"),
        # CoaT
        (r"^parallel_blocks", "~parallel_blocks"),
    )
)


class NamingRule(NamedTuple):
    """Way in which a library or a family of networks names the tensors of a block."""

    scheme: str
    """Library or family, for the reader."""
    pattern: re.Pattern[str]
    """Expression with the named groups `stage` and `block`, or one of them."""


# Searched in order; the first match wins.
NAMING_RULES = tuple(
    NamingRule(scheme, re.compile(pattern))
    for scheme, pattern in (
        # stages.2.blocks.5.conv_dw; also under visual.trunk (OpenCLIP) and in Flax (stages_2/blocks_5)
        ("timm", r"(?i)(?:^|[./])\w*?stages?[._]?(?P<stage>\d+)[./]\w*?blocks?[._]?(?P<block>\d+)(?=[./])"),
        # encoder.stages.2.layers.5.dwconv, stages.2.layers.5.depthwise_conv (DINOv3)
        ("transformers", r"(?:^|[./])stages?[._](?P<stage>\d+)[./]layers?[._](?P<block>\d+)(?=[./])"),
        # stages.2.5.dwconv: ConvNeXt and ConvNeXtV2 as released
        ("convnext", r"(?:^|[./])stages?[._](?P<stage>\d+)[./](?P<block>\d+)(?=[./])"),
        # blocks.3.1.conv_dw: EfficientNet, MobileNet and their like in timm
        ("timm-efficientnet", r"(?:^|[./])blocks[.](?P<stage>\d+)[.](?P<block>\d+)(?=[./])"),
        # features.3.1.block.0: torchvision ConvNeXt and EfficientNet; features.4.conv.1.0: MobileNet
        ("torchvision", r"(?:^|[./])features[.](?P<stage>\d+)[.](?P<block>\d+)[.]block(?=[.])"),
        ("torchvision-mobilenet", r"(?:^|[./])features[.](?P<block>\d+)(?=[.])"),
        # layers.1.blocks.4: Swin-like; layers.0.residual_group.blocks.2: super-resolution
        (
            "swin",
            r"(?:^|[./])layers?[._](?P<stage>\d+)[./](?:residual_group[./])?blocks?[._](?P<block>\d+)(?=[./])",
        ),
        # convnext_tiny_stage_1_block_2_depthwise_conv, block3b_dwconv, block_5_depthwise, conv_dw_5 (Keras)
        ("keras-convnext", r"stage_(?P<stage>\d+)_block_(?P<block>\d+)_"),
        ("keras-efficientnet", r"(?:^|[./_])block(?P<stage>\d+)(?P<block>[a-z])_"),
        (
            "keras-mobilenet",
            r"(?:^|[./])(?:block|conv_dw|expanded_conv|Conv2d|blocks)_(?P<block>\d+)(?=[./_]|$)",
        ),
        ("stage", r"(?i)(?:^|[./])stages?[._]?(?P<stage>\d+)(?:[./]\w+[./](?P<block>\d+))?(?=[./])"),
        # encoder.blocks.7, mobilenet_v2.layer.7 (transformers), body.7
        ("block", r"(?:^|[./])(?:blocks?|layers?|body|feats)[._]?(?P<block>\d+)(?=[./])"),
    )
)  # fmt: skip


def stage_and_block(name: str) -> tuple[int | None, int | None]:
    """Read the numbers of stage and block from a name.

    Args:
      name: bare name of a tensor.

    Returns:
      Stage and block as the name counts them; None for what it does not say.
    """
    for rule in NAMING_RULES:
        if match := rule.pattern.search(name):
            groups = match.groupdict()
            return _number(groups.get("stage")), _number(groups.get("block"))
    return None, None


def network_order(name: str) -> tuple:
    """Make a key that sorts names in the order their layers run, as far as names tell.

    Args:
      name: bare name of a tensor.

    Returns:
      The parts of the name, to be compared in turn, with numbers by value, after SORTING_RULES.
    """
    for rule in SORTING_RULES:
        name = rule.pattern.sub(rule.replacement, name)
    return tuple(
        tuple(
            (0, int(run), "") if run.isdecimal() else (1, 0, run) for run in re.findall(r"\d{1,18}|\D+", part)
        )
        for part in re.split(r"[./]", name)
    )


def _number(text: str | None) -> int | None:
    """Number of a stage or block, which Keras writes as a letter; None for more digits than networks have."""
    if text is None or len(text) > 6:
        return None
    return int(text) if text.isdecimal() else ord(text) - ord("a")
