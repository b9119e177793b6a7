"""GLM-OCR (0.9B): the towers of glm_ocr_towers.py; between them a convolution that makes one token of 2 x 2 patches,
and a merger.

The block behind the last one is a drafter's, which transformers does not run. vLLM builds the vision tower twice, first
as GLM-4V's, under two tables of what is packed: it asks for attn.qkv as q, k and v, too, and for gate and up apart and
as one. MindIE does not have the model.
"""

from .family import Family
from .glm_ocr_towers import LANGUAGE, MODEL, VISION, VISUAL, drafter
from .numbers import nested_text, vision
from .processing import Processing
from .shapes import Shapes, gated_mlp, linear, norm


def _at_least(height: int, width: int, multiple: int) -> tuple[int, int]:
    scale = max(multiple / height, multiple / width)
    return int(height * scale), int(width * scale)


PROCESSING = Processing(
    processor="Glm46VProcessor",
    image_processors=("Glm46VImageProcessor",),
    image_token="<|image|>",
    image_token_id=lambda config: config.get("image_token_id", 59280),
    reserved=("<|image|>", "<|video|>"),
    chat="[gMASK]<sop><|user|>\n{images}{prompt}<|assistant|>\n",
    chat_image="<|begin_of_image|><|image|><|end_of_image|>",
    patch=lambda config: vision(config, "patch_size", 14),
    merge=lambda config: vision(config, "spatial_merge_size", 2),
    limits=(112 * 112 // 2, 28 * 28 * 15000 // 2),
    frames=2,
    at_least=_at_least,
)


def _outside(config: dict) -> Shapes:
    width, merged = VISION.width(config), vision(config, "out_hidden_size", 1536)
    patch, square = vision(config, "patch_size", 14), vision(config, "spatial_merge_size", 2)
    channels, frames = vision(config, "in_channels", 3), vision(config, "temporal_patch_size", 2)
    words, hidden = nested_text(config, "vocab_size", 59392), LANGUAGE.width(config)
    return {
        f"{VISUAL}patch_embed.proj.weight": (width, channels, frames, patch, patch),
        f"{VISUAL}patch_embed.proj.bias": (width,),
        f"{VISUAL}post_layernorm.weight": (width,),
        f"{VISUAL}downsample.weight": (merged, width, square, square),
        f"{VISUAL}downsample.bias": (merged,),
        **linear(f"{VISUAL}merger.proj", merged, merged, bias=False),
        **norm(f"{VISUAL}merger.post_projection_norm", merged),
        **gated_mlp(f"{VISUAL}merger", merged, merged * channels),
        f"{MODEL}embed_tokens.weight": (words, hidden),
        f"{MODEL}norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
    }


GLM_OCR = Family(
    name="GLM-OCR",
    architecture="GlmOcrForConditionalGeneration",
    model_type="glm_ocr",
    script="glm_ocr",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding=f"{MODEL}embed_tokens",
    final_norm=f"{MODEL}norm",
    head="lm_head",
    holds=_outside,
    renames=(("model.", "model."), ("lm_head.", "lm_head.")),
    must_float={
        "lm_head": "servers load the head in float",
        f"{VISUAL}merger.*": "float as in the published recipe of GLM-4.6V: the way of all image features",
    },
    recipe_float={
        f"{VISUAL}blocks.*.mlp.down_proj": "float as in the published recipe of GLM-4.6V",
        f"{MODEL}layers.*.mlp.down_proj": "float as in the published recipes of other models (largest outliers)",
    },
    vision="int8",
    vision_int8_refused=None,
    vision_int8_whole=(),
    dtype=None,
    flat_config=False,
    vocab_size=lambda config: nested_text(config, "vocab_size", 59392),
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=None,
    mindie_transposed=None,
    prompt="Text Recognition:",
    old_rope=False,
    mindie_refuses="NotImplementedError: unsupported model type: glm_ocr",
    may_hold=drafter,
    also_called={
        f"{VISUAL}blocks.*.attn.qkv": ("q_proj", "k_proj", "v_proj"),
        f"{VISUAL}blocks.*.mlp.gate_proj": ("gate_up_proj",),
        f"{VISUAL}merger.gate_proj": ("gate_up_proj",),
        f"{MODEL}layers.*.mlp.gate_up_proj": ("gate_proj", "up_proj"),
    },
)
