"""InternVL3.5 (1B to 38B, and InternVL3) in its -hf form: the tower of internvl_vision.py, pixel shuffle, a two-layer
projector, a Qwen3 (Qwen2) decoder.

vLLM builds the projector of plain linears, too. MindIE has InternVL in the form with remote code alone.
"""

from ..base.errors import UsageError
from .family import Family, Tower
from .internvl_vision import PROCESSING, TOWER, VISION, patches
from .llava import LANGUAGE as LLAVA_LANGUAGE
from .numbers import nested_text, vision_side
from .shapes import Shapes, linear, norm, normed_decoder_block

MODEL = "language_model.model."
DECODERS = ("qwen3", "qwen2")


def _language_block(config: dict, index: int) -> Shapes:
    text, (heads, shared) = config["text_config"], LANGUAGE.heads(config)
    width, old = LANGUAGE.width(config), text.get("model_type") == "qwen2"
    channels = width // heads if old else nested_text(config, "head_dim", 128)
    return normed_decoder_block(width, LANGUAGE.mlp(config), (heads, shared), channels, qkv_bias=old, qk_norm=not old)


def _blocks(config: dict) -> int:
    kind = (config.get("text_config") or {}).get("model_type", "qwen2")
    if kind not in DECODERS:
        raise UsageError(f"config.json: its language model is a {kind}; supported are {' and '.join(DECODERS)}")
    return nested_text(config, "num_hidden_layers")


def _outside(config: dict) -> Shapes:
    width, hidden, words = VISION.width(config), LANGUAGE.width(config), nested_text(config, "vocab_size")
    patch, shuffled = vision_side(config, "patch_size", 14), width * PROCESSING.merge(config) ** 2
    return {
        f"{TOWER}embeddings.cls_token": (1, 1, width),
        f"{TOWER}embeddings.position_embeddings": (1, patches(config) + 1, width),
        f"{TOWER}embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        f"{TOWER}embeddings.patch_embeddings.projection.bias": (width,),
        **norm("multi_modal_projector.layer_norm", shuffled),
        **linear("multi_modal_projector.linear_1", hidden, shuffled),
        **linear("multi_modal_projector.linear_2", hidden, hidden),
        f"{MODEL}embed_tokens.weight": (words, hidden),
        f"{MODEL}norm.weight": (hidden,),
        "language_model.lm_head.weight": (words, hidden),
    }


LANGUAGE = Tower(
    name="language",
    prefix=f"{MODEL}layers.",
    groups=LLAVA_LANGUAGE.groups,
    blocks=_blocks,
    used=_blocks,
    heads=lambda config: (nested_text(config, "num_attention_heads"), nested_text(config, "num_key_value_heads")),
    width=lambda config: nested_text(config, "hidden_size"),
    mlp=lambda config: nested_text(config, "intermediate_size"),
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)

INTERNVL = Family(
    name="InternVL3.5",
    architecture="InternVLForConditionalGeneration",
    model_type="internvl",
    script="internvl",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding=f"{MODEL}embed_tokens",
    final_norm=f"{MODEL}norm",
    head="language_model.lm_head",
    holds=_outside,
    renames=(
        (TOWER, "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        (MODEL, "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    must_float={
        "language_model.lm_head": "servers load the head in float",
        "multi_modal_projector.*": "vLLM builds the projector of plain linears",
        f"{TOWER}encoder.layer.*.attention.*": "vLLM builds the vision tower's attention of plain linears",
    },
    recipe_float={f"{MODEL}layers.*.mlp.down_proj": "kept float by the published recipes"},
    vision="float",
    vision_int8_refused=None,
    vision_int8_whole=(),
    dtype=None,
    flat_config=False,
    vocab_size=lambda config: nested_text(config, "vocab_size"),
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
    old_rope=False,
    mindie_refuses="ValueError: `llm_config.architectures` does not exist! Check `config.json`.",
)
