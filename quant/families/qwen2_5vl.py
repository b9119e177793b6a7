"""Qwen2.5-VL (3B, 7B, 32B, 72B) and what is fine-tuned from it, such as RolmOCR: Qwen2-VL with a vision tower of
RMSNorms and gated MLPs.

Most vision blocks attend within windows of 8 x 8 patches, those in fullatt_block_indexes over the whole image; the
patches are sorted by window before the first block and back after the merger, all of which is the model's own forward's
work. The decoder is Qwen2-VL's. MindIE's ViT takes attn.qkv of every block in int8, or the whole tower in float;
attn.proj and gate/up may be either, down_proj must be float.
"""

from dataclasses import replace

from .family import Family, Group, Tower
from .numbers import text, vision
from .qwen2vl import GRIDS, LANGUAGE, outside
from .qwen2vl import PROCESSING as QWEN2_VL_PROCESSING
from .shapes import Shapes, gated_vision_block


def _vision_block(config: dict, index: int) -> Shapes:
    return gated_vision_block(VISION.width(config), VISION.mlp(config))


# Fine-tunes saved by transformers 4.4x leave out of vision_config what equals the defaults of its class: hence 32, 16,
# 3584 (which no published size has) and 3420.
VISION = Tower(
    name="vision",
    prefix="visual.blocks.",
    groups=(
        Group(("attn.qkv",), source="norm1", kind="norm"),
        Group(("attn.proj",), source="attn.qkv", kind="value"),
        Group(("mlp.gate_proj", "mlp.up_proj"), source="norm2", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.up_proj", kind="up"),
    ),
    blocks=lambda config: vision(config, "depth", 32),
    used=lambda config: vision(config, "depth", 32),
    heads=lambda config: (vision(config, "num_heads", 16),) * 2,
    width=lambda config: vision(config, "hidden_size", 3584),
    mlp=lambda config: vision(config, "intermediate_size", 3420),
    tokens=lambda config, inputs: sum(int(inputs[name].prod(-1).sum()) for name in GRIDS if name in inputs),
    inputs=("pixel_values", "pixel_values_videos"),
    holds=_vision_block,
)

QWEN2_5_VL = Family(
    name="Qwen2.5-VL",
    architecture="Qwen2_5_VLForConditionalGeneration",
    model_type="qwen2_5_vl",
    script="qwen2_5vl",
    processing=replace(QWEN2_VL_PROCESSING, processor="Qwen2_5_VLProcessor"),
    towers=(VISION, LANGUAGE),
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    holds=lambda config: outside(config, VISION.width(config), vision(config, "out_hidden_size", 3584), False),
    renames=(("visual.", "model.visual."), ("model.", "model.language_model."), ("lm_head.", "lm_head.")),
    must_float={"lm_head": "servers load the head in float"},
    mindie_float={"visual.blocks.*.mlp.down_proj": "MindIE's vision MLP hands down_proj a float input"},
    recipe_float={
        "model.layers.*.mlp.down_proj": "kept float by the published recipes (its input has the largest outliers)"
    },
    vision="int8",
    vision_int8_refused=None,
    vision_int8_whole=("attn.qkv",),
    dtype=None,
    flat_config=True,
    vocab_size=lambda config: text(config, "vocab_size", 152064),
    mindie_config_alone=False,
    mindie_looks_up=("visual.blocks.*.mlp.gate_proj", "visual.blocks.*.mlp.up_proj"),
    mindie_310p=True,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
)
