"""Qwen3.5 and Qwen3.6, dense: the tower of qwen3_vision.py without deepstack; a decoder in which three blocks of four
have a linear attention (gated delta net), the fourth a full one whose queries come with a gate.

Its norms store w - 1, but for the gated one of the linear attention. The linear attention is float by the published
recipes; asked for in int8 it is W8A8_DYNAMIC, but for in_proj_b and in_proj_a, which are small. `mtp.` tensors, of a
drafter that transformers does not run, are copied. MindIE does not have the model.
"""

from dataclasses import replace

from .family import Family, Group, Tower
from .numbers import nested_text
from .qwen3_5_blocks import drafter, is_full, is_linear, mixer
from .qwen3_vision import LANGUAGE_MODEL, PROCESSING, VIDEO, VISION, outside
from .qwen3vl import LANGUAGE as QWEN3
from .qwen3vl import QWEN3_VL
from .shapes import Shapes, gated_mlp

WORDS = 248320


def _block(config: dict, index: int) -> Shapes:
    return mixer(config, index) | gated_mlp("mlp", nested_text(config, "hidden_size", 4096), LANGUAGE.mlp(config))


MIXERS = (
    replace(QWEN3.groups[0], when=is_full, adds=1.0),
    replace(QWEN3.groups[1], when=is_full),  # the gate stands between, channel by channel: a scale passes
    Group(
        ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
        source="input_layernorm",
        kind="norm",
        when=is_linear,
        adds=1.0,
        readers=("linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    ),
    Group(("linear_attn.out_proj",), when=is_linear),  # the norm before it has one weight for all heads
)
LANGUAGE = Tower(
    name="language",
    prefix=QWEN3.prefix,
    groups=(*MIXERS, replace(QWEN3.groups[2], adds=1.0), QWEN3.groups[3]),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 32),
    used=lambda config: nested_text(config, "num_hidden_layers", 32),
    heads=lambda config: (
        nested_text(config, "num_attention_heads", 16),
        nested_text(config, "num_key_value_heads", 4),
    ),
    width=lambda config: nested_text(config, "hidden_size", 4096),
    mlp=lambda config: nested_text(config, "intermediate_size", 12288),
    tokens=QWEN3.tokens,
    holds=_block,
)
BLOCKS = f"{LANGUAGE_MODEL}layers.*"
QWEN3_5: Family = replace(
    QWEN3_VL,
    name="Qwen3.5",
    architecture="Qwen3_5ForConditionalGeneration",
    model_type="qwen3_5",
    script="qwen3_5",
    processing=replace(
        PROCESSING,
        image_token_id=lambda config: config.get("image_token_id", 248056),
        video=replace(VIDEO, token_id=lambda config: config.get("video_token_id", 248057)),
    ),
    towers=(replace(VISION, taps=lambda config: ()), LANGUAGE),
    holds=lambda config: outside(config, words=WORDS) | drafter(config, _block),
    must_float={
        **QWEN3_VL.must_float,
        "mtp.*": "the drafter is copied; nothing here runs it",
        f"{BLOCKS}.linear_attn.in_proj_[ab]": "small; a gate each of every head's memory",
    },
    recipe_float={
        f"{BLOCKS}.mlp.down_proj": "kept float by the published recipes (its input has the largest outliers)",
        f"{BLOCKS}.linear_attn.*": "kept float by the published recipes",
    },
    must_dynamic={f"{BLOCKS}.linear_attn.*": "no published recipe rounds the linear attention per tensor"},
    vocab_size=lambda config: nested_text(config, "vocab_size", WORDS),
    mindie_310p=False,
    mindie_unlisted=lambda config: None,
    mindie_vision_follows=False,
    old_rope=False,
    mindie_refuses="NotImplementedError: unsupported model type: qwen3_5",
)
