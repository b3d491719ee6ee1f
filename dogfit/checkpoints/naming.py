"""Naming rules as data: what the name of a tensor says about its place in the network.

A new naming scheme is a line in NAMING_RULES; parts whose names do not sort as they run are lines in
SORTING_RULES.
"""

import re
from functools import lru_cache
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
    """Mark that makes a part of a name sort where its layer runs."""

    pattern: re.Pattern[str]
    """Expression for a name with dots between its parts; the group `part` begins the part to be marked."""
    mark: str
    """Text put before the part: '!' sorts before letters, '~' after them."""


# Of several rules for the same part the first counts.
SORTING_RULES = tuple(
    SortingRule(re.compile(pattern), mark)
    for pattern, mark in (
        (r"(?:^|[.])(?P<part>stem|conv_stem|patch_embed\w*|embeddings?|cell_stem|first)(?=[._\d]|$)", "!"),
        (r"^(?P<part>conv[012])(?=[.])", "!"),
        (
            r"(?:^|[.])(?P<part>head|heads|conv_head|final\w*|last\w*|classifier|decoder|decode_head|neck|fpn)"
            r"(?=[.]|$)",
            "~",
        ),
        # timm halves the resolution at the start of a stage, Swin-like `layers` at the end
        # (EfficientViM too, told by its parts)
        (r"stages?[._]\d+[.](?P<part>downsample)(?=[.](?:dwconv\d|conv[.]\d))", "~"),
        (r"stages?[._]\d+[.](?P<part>downsample|pos_emb)", "!"),
        (r"[.](?P<part>downsampling_layer)(?=[.])", "!"),
        (r"downsample[.](?P<part>res1)(?=[.])", "!"),
        (r"[.](?P<part>mlp|ffn|convffn)(?=[.])", "~"),
        # MobileNetV4, GhostNet, DaViT, EfficientViM, EfficientViT (MSRA)
        (r"[.](?P<part>dw_start)(?=[.])", "!"),
        (r"[.](?P<part>dw_end)(?=[.])", "~"),
        (r"[.](?P<part>ghost1)(?=[.])", "!"),
        (r"[.](?P<part>ghost2|shortcut)(?=[.])", "~"),
        (r"[.](?P<part>spatial_block)(?=[.])", "!"),
        (r"[.](?P<part>dwconv1)(?=[.])", "!"),
        (r"[.](?P<part>dwconv2|dw1)(?=[.])", "~"),
        # PP-LCNetV4: the mixer of positions runs before that of channels
        (r"[.](?P<part>token_conv)(?=[.])", "!"),
        # query, key, value, projection
        (r"[.](?P<part>pool_q|q|query)(?=[.])", "!"),
        (r"[.](?P<part>pool_v|v|v_local|value)(?=[.])", "~"),
        (r"attn[.](?P<part>proj)(?=[.])", "~~"),
        # CoaT
        (r"^(?P<part>parallel_blocks)", "~"),
    )
)
# Parts that sort as if they had another name. NASNet-A large: a reduction cell follows every sixth cell.
SORTS_AS = {"reduction_cell_0": "cell_5_reduction", "reduction_cell_1": "cell_11_reduction"}


class NamingRule(NamedTuple):
    """Way in which a library or a family of networks names the tensors of a block."""

    scheme: str
    """Library or family, for the reader."""
    pattern: re.Pattern[str]
    """Expression for a name with dots between its parts, with the group `stage`, `block` or both."""


# Searched in order; the first match wins.
NAMING_RULES = tuple(
    NamingRule(scheme, re.compile(pattern))
    for scheme, pattern in (
        # stages.2.blocks.5.conv_dw; also under visual.trunk (OpenCLIP) and in Flax (stages_2/blocks_5)
        ("timm", r"(?i)(?:^|[.])\w*?stages?[._]?(?P<stage>\d+)[.]\w*?blocks?[._]?(?P<block>\d+)(?=[.])"),
        # encoder.stages.2.layers.5.dwconv, stages.2.layers.5.depthwise_conv (DINOv3)
        ("transformers", r"(?:^|[.])stages?[._](?P<stage>\d+)[.]layers?[._](?P<block>\d+)(?=[.])"),
        # stages.2.5.dwconv: ConvNeXt and ConvNeXtV2 as released
        ("convnext", r"(?:^|[.])stages?[._](?P<stage>\d+)[.](?P<block>\d+)(?=[.])"),
        # blocks.3.1.conv_dw: EfficientNet, MobileNet and their like in timm; blocks3.1.dw_conv: PP-LCNet
        ("timm-efficientnet", r"(?:^|[.])blocks[.]?(?P<stage>\d+)[.](?P<block>\d+)(?=[.])"),
        # features.3.1.block.0: torchvision ConvNeXt and EfficientNet; features.4.conv.1.0: MobileNet
        ("torchvision", r"(?:^|[.])features[.](?P<stage>\d+)[.](?P<block>\d+)[.]block(?=[.])"),
        ("torchvision-mobilenet", r"(?:^|[.])features[.](?P<block>\d+)(?=[.])"),
        # layers.1.blocks.4: Swin-like; layers.0.residual_group.blocks.2: super-resolution
        (
            "swin",
            r"(?:^|[.])layers?[._](?P<stage>\d+)[.](?:residual_group[.])?blocks?[._](?P<block>\d+)(?=[.])",
        ),
        # convnext_tiny_stage_1_block_2_depthwise_conv, block3b_dwconv, block_5_depthwise, conv_dw_5 (Keras)
        ("keras-convnext", r"stage_(?P<stage>\d+)_block_(?P<block>\d+)_"),
        ("keras-efficientnet", r"(?:^|[._])block(?P<stage>\d+)(?P<block>[a-z])_"),
        (
            "keras-mobilenet",
            r"(?:^|[.])(?:block|conv_dw|expanded_conv|Conv2d|blocks)_(?P<block>\d+)(?=[._]|$)",
        ),
        ("stage", r"(?i)(?:^|[.])stages?[._]?(?P<stage>\d+)(?:[.]\w+[.](?P<block>\d+))?(?=[.])"),
        # encoder.blocks.7, mobilenet_v2.layer.7 (transformers), body.7
        ("block", r"(?:^|[.])(?:blocks?|layers?|body|feats)[._]?(?P<block>\d+)(?=[.])"),
    )
)  # fmt: skip


def stage_and_block(name: str) -> tuple[int | None, int | None]:
    """Read the numbers of stage and block from a name.

    Args:
      name: bare name of a tensor.

    Returns:
      Stage and block as the name counts them; None for what it does not say.
    """
    name = dotted(name)
    for rule in NAMING_RULES:
        if match := rule.pattern.search(name):
            groups = match.groupdict()
            return _number(groups.get("stage")), _number(groups.get("block"))
    return None, None


def network_order(name: str) -> str:
    """Make a key that sorts names in the order their layers run, as far as names tell.

    Args:
      name: bare name of a tensor.

    Returns:
      A text that sorts as the parts of the name do, one after the other, with numbers by value, after
      SORTING_RULES.
    """
    parts = [_sorting_part(part) for part in dotted(name).split(".")]
    marks = _marks(".".join([template for template, _ in parts]))
    if not marks:
        return "\0".join([key for _, key in parts])
    return "\0".join(["\2" + marks[i] + key if i in marks else key for i, (_, key) in enumerate(parts)])


def dotted(name: str) -> str:
    """Write a name with dots between its parts, whatever its framework puts there.

    Args:
      name: such as `stages/0/conv`, `.stages[0].conv` or `['stages_0']['conv']`.

    Returns:
      The same parts with dots between them.
    """
    text = name
    # Nearly all names have dots alone, and a checkpoint may have hundreds of thousands of them.
    if "/" in name or "[" in name or "]" in name or "'" in name or '"' in name or "\\" in name:
        text = name.translate(_SEPARATORS)
    if ".." in text or text[:1] == "." or text[-1:] == ".":
        text = ".".join([part for part in text.split(".") if part])
    return text


_SEPARATORS = str.maketrans(dict.fromkeys("/\\[]'\"", "."))


@lru_cache(maxsize=1 << 14)
def _marks(name: str) -> dict[int, str]:
    """Part of a name by its number -> the mark that it gets by SORTING_RULES."""
    marks: dict[int, str] = {}
    for rule in SORTING_RULES:
        for match in rule.pattern.finditer(name):
            marks.setdefault(name.count(".", 0, match.start("part")), rule.mark)
    return marks


@lru_cache(maxsize=1 << 14)
def _sorting_part(part: str) -> tuple[str, str]:
    """Part of a name as far as SORTING_RULES can tell, and a text that sorts as it does, numbers by value.

    What the rules say depends on no number of more than one digit and on no part that is a number.
    """
    template = "0" if part.isdecimal() else re.sub(r"\d\d+", "99", part)
    return template, re.sub(r"\d{1,18}|\D+", _sorting_run, SORTS_AS.get(part, part))


def _sorting_run(match: re.Match[str]) -> str:
    run = match[0]
    return f"\1{int(run):018d}" if run.isdecimal() else f"\2{run}"


def _number(text: str | None) -> int | None:
    """Number of a stage or block, which Keras writes as a letter; None for more digits than networks have."""
    if text is None or len(text) > 6:
        return None
    return int(text) if text.isdecimal() else ord(text) - ord("a")
