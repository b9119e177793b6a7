"""LLaVA-1.5 (7B, 13B): a CLIP ViT, a two-layer projector, a LLaMA decoder.

The features come from the last CLIP block but one (vision_feature_layer -2): the last block has no effect and is
carried over unseen.
"""

from ..base.errors import UsageError
from .family import Family, Group, Tower
from .numbers import nested_text, vision
from .processing import Processing
from .shapes import Shapes, decoder_block, linear, norm


def vision_blocks_used(config: dict, blocks: int | None = None, layer: int = -2) -> int:
    """How many vision blocks come before vision_feature_layer. blocks, layer: what config.json need not say. Raises
    UsageError for several layers, and for one that there is not.
    """
    layer, blocks = config.get("vision_feature_layer", layer), vision(config, "num_hidden_layers", blocks)
    if type(layer) is not int:
        raise UsageError(f"vision_feature_layer={layer}: features from several layers are not supported, one layer is")
    used = layer + blocks + 1 if layer < 0 else layer  # hidden_states[0] is the input of block 0
    if not 0 < used <= blocks:
        raise UsageError(f"vision_feature_layer={layer}: the vision tower has {blocks} blocks")
    return used


def _image_token_id(config: dict) -> int:
    return config.get("image_token_id", config.get("image_token_index", 32000))


def _vision_tokens(config: dict, inputs: dict) -> int:
    """Counted by the image tokens in the text, which are one per patch: the pixels themselves may not be at hand."""
    patches = (vision(config, "image_size") // vision(config, "patch_size")) ** 2
    images = round(int((inputs["input_ids"] == _image_token_id(config)).sum()) / patches)
    return images * (patches + 1)  # class token


def _processor_arguments(config: dict) -> dict:
    section = config["vision_config"]
    return {
        "patch_size": section["patch_size"],
        "vision_feature_select_strategy": config.get("vision_feature_select_strategy", "default"),
        "num_additional_image_tokens": int(section.get("model_type") == "clip_vision_model"),  # CLIP's class token
    }


PROCESSING = Processing(
    processor="LlavaProcessor",
    image_processors=("CLIPImageProcessor", "LlavaImageProcessor", "CLIPFeatureExtractor"),
    image_token="<image>",
    image_token_id=_image_token_id,
    reserved=("<image>",),
    chat="USER: {images}{prompt} ASSISTANT:",
    chat_image="<image>\n",
    patch=lambda config: vision(config, "patch_size"),
    merge=lambda config: 1,
    limits=None,
    from_config=_processor_arguments,
)


def _vision_block(config: dict, index: int) -> Shapes:
    width, mlp = VISION.width(config), VISION.mlp(config)
    return {
        **norm("layer_norm1", width),
        **norm("layer_norm2", width),
        **linear("self_attn.q_proj", width, width),
        **linear("self_attn.k_proj", width, width),
        **linear("self_attn.v_proj", width, width),
        **linear("self_attn.out_proj", width, width),
        **linear("mlp.fc1", mlp, width),
        **linear("mlp.fc2", width, mlp),
    }


def _language_block(config: dict, index: int) -> Shapes:
    said = config.get("text_config") or {}
    bias, mlp_bias = bool(said.get("attention_bias")), bool(said.get("mlp_bias"))
    return decoder_block(LANGUAGE.width(config), LANGUAGE.mlp(config), LANGUAGE.heads(config), bias, bias, mlp_bias)


def outside_clip(config: dict) -> Shapes:
    """What is outside the blocks of a CLIP."""
    width, patch, tower = VISION.width(config), vision(config, "patch_size"), "vision_tower.vision_model."
    return {
        f"{tower}embeddings.class_embedding": (width,),
        f"{tower}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{tower}embeddings.position_embedding.weight": ((vision(config, "image_size", 224) // patch) ** 2 + 1, width),
        **norm(f"{tower}pre_layrnorm", width),
        **norm(f"{tower}post_layernorm", width),
    }


def _outside(config: dict) -> Shapes:
    width, hidden, words = VISION.width(config), LANGUAGE.width(config), nested_text(config, "vocab_size", 32000)
    return {
        **outside_clip(config),
        **linear("multi_modal_projector.linear_1", hidden, width),
        **linear("multi_modal_projector.linear_2", hidden, hidden),
        "language_model.model.embed_tokens.weight": (words, hidden),
        "language_model.model.norm.weight": (hidden,),
        "language_model.lm_head.weight": (words, hidden),
    }


VISION = Tower(
    name="vision",
    prefix="vision_tower.vision_model.encoder.layers.",
    groups=(
        Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="layer_norm1", kind="norm"),
        Group(("self_attn.out_proj",), source="self_attn.v_proj", kind="value"),
        Group(("mlp.fc1",), source="layer_norm2", kind="norm"),
        Group(("mlp.fc2",)),
    ),
    blocks=lambda config: vision(config, "num_hidden_layers"),
    used=vision_blocks_used,
    heads=lambda config: (vision(config, "num_attention_heads"),) * 2,
    width=lambda config: vision(config, "hidden_size"),
    mlp=lambda config: vision(config, "intermediate_size"),
    tokens=_vision_tokens,
    inputs=("pixel_values",),
    holds=_vision_block,
)

# llava-hf's config.json leaves out what equals LlamaConfig's defaults: hence the 32s, 4096, 11008 and 32000.
LANGUAGE = Tower(
    name="language",
    prefix="language_model.model.layers.",
    groups=(
        Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="input_layernorm", kind="norm"),
        Group(("self_attn.o_proj",), source="self_attn.v_proj", kind="value"),
        Group(("mlp.gate_proj", "mlp.up_proj"), source="post_attention_layernorm", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.up_proj", kind="up"),
    ),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 32),
    used=lambda config: nested_text(config, "num_hidden_layers", 32),
    heads=lambda config: (
        heads := nested_text(config, "num_attention_heads", 32),
        nested_text(config, "num_key_value_heads", heads),
    ),
    width=lambda config: nested_text(config, "hidden_size", 4096),
    mlp=lambda config: nested_text(config, "intermediate_size", 11008),
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)

LLAVA = Family(
    name="LLaVA-1.5",
    architecture="LlavaForConditionalGeneration",
    model_type="llava",
    script="llava",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding="language_model.model.embed_tokens",
    final_norm="language_model.model.norm",
    head="language_model.lm_head",
    holds=_outside,
    renames=(
        ("vision_tower.vision_model.", "model.vision_tower.vision_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),  # transformers 5
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
    ),
    must_float={
        "language_model.lm_head": "servers load the head in float",
        "multi_modal_projector.*": "MindIE loads the projector in float; int8 there is silently wrong",
    },
    recipe_float={
        "language_model.model.layers.*.mlp.down_proj": (
            "kept float by the published recipes (its input has the largest outliers)"
        )
    },
    vision="float",
    vision_int8_refused="MindIE loads LLaVA's vision tower in float and computes silently wrong values from int8",
    vision_int8_whole=(),
    dtype="float16",
    flat_config=False,
    vocab_size=lambda config: nested_text(config, "vocab_size", 32000),
    mindie_config_alone=True,
    mindie_looks_up=(
        "language_model.model.layers.*.self_attn.[qkv]_proj",
        "language_model.model.layers.*.mlp.gate_proj",
        "language_model.model.layers.*.mlp.up_proj",
    ),
    mindie_310p=True,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Describe this image in detail.",
)
