"""Qwen3-VL (2B, 4B, 8B, 32B): the tower of qwen3_vision.py with deepstack, a Qwen3 decoder.

MindIE's ViT takes attn.qkv and mlp.linear_fc1 of every block in int8: it reads their input scales wherever the model is
W8A8. vLLM-Ascend looks up every merger, and lm_head even where it is tied.
"""

from .family import Family, Group, Tower
from .numbers import nested_text
from .qwen3_vision import LANGUAGE_MODEL, PROCESSING, VISION, outside, taps
from .shapes import Shapes, normed_decoder_block


def _language_block(config: dict, index: int) -> Shapes:
    width, mlp, channels = LANGUAGE.width(config), LANGUAGE.mlp(config), nested_text(config, "head_dim", 128)
    return normed_decoder_block(width, mlp, LANGUAGE.heads(config), channels)


LANGUAGE = Tower(
    name="language",
    prefix=f"{LANGUAGE_MODEL}layers.",
    groups=(
        Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="input_layernorm", kind="norm"),
        Group(("self_attn.o_proj",), source="self_attn.v_proj", kind="value"),
        Group(("mlp.gate_proj", "mlp.up_proj"), source="post_attention_layernorm", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.up_proj", kind="up"),
    ),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 32),
    used=lambda config: nested_text(config, "num_hidden_layers", 32),
    heads=lambda config: (
        nested_text(config, "num_attention_heads", 32),
        nested_text(config, "num_key_value_heads", 32),
    ),
    width=lambda config: nested_text(config, "hidden_size", 4096),
    mlp=lambda config: nested_text(config, "intermediate_size", 22016),
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)


def _mindie_unlisted(config: dict) -> str | None:
    tied = config.get("tie_word_embeddings", False)
    return "MindIE documents W8A8 for 8B and 32B; of the tied 2B and 4B at most W8A8SC" if tied else None


QWEN3_VL = Family(
    name="Qwen3-VL",
    architecture="Qwen3VLForConditionalGeneration",
    model_type="qwen3_vl",
    script="qwen3vl",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding=f"{LANGUAGE_MODEL}embed_tokens",
    final_norm=f"{LANGUAGE_MODEL}norm",
    head="lm_head",
    holds=lambda config: outside(config, len(taps(config))),
    renames=(("model.", "model."), ("lm_head.", "lm_head.")),
    must_float={
        "lm_head": "servers load the head in float",
        "model.visual.merger.*": "servers load the mergers in float",
        "model.visual.deepstack_merger_list.*": "servers load the mergers in float",
    },
    mindie_float={"model.visual.blocks.*.mlp.linear_fc2": "MindIE's vision MLP hands linear_fc2 a float input"},
    recipe_float={
        "model.language_model.layers.*.mlp.down_proj": (
            "kept float by the published recipes (its input has the largest outliers)"
        )
    },
    vision="int8",
    vision_int8_refused=None,
    vision_int8_whole=("attn.qkv", "mlp.linear_fc1"),
    dtype=None,
    flat_config=False,
    vocab_size=lambda config: nested_text(config, "vocab_size", 151936),
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=True,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
    mindie_unlisted=_mindie_unlisted,
    mindie_vision_follows=True,
)
