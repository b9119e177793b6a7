"""Qwen2-VL (2B, 7B, 72B): a ViT with fused q/k/v and LayerNorms, a merger, a Qwen2 decoder.

MindIE's ViT takes attn.qkv, attn.proj and mlp.fc1 of every block in int8 or none of them; fc2 and the merger are always
float there.
"""

from .family import Family, Group, Tower
from .numbers import text, vision
from .processing import Processing
from .shapes import Shapes, decoder_block, linear, norm
from .video import Video, sample_starts, size_of_each

GRIDS = ("image_grid_thw", "video_grid_thw")  # [images, 3]: patches along time, height, width

PROCESSING = Processing(
    processor="Qwen2VLProcessor",
    image_processors=("Qwen2VLImageProcessor",),
    image_token="<|image_pad|>",
    image_token_id=lambda config: config.get("image_token_id", 151655),
    reserved=("<|image_pad|>", "<|video_pad|>"),
    chat=(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{images}{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ),
    chat_image="<|vision_start|><|image_pad|><|vision_end|>",
    patch=lambda config: vision(config, "patch_size", 14),
    merge=lambda config: vision(config, "spatial_merge_size", 2),
    limits=(56 * 56, 28 * 28 * 1280),
    video=Video(
        token="<|video_pad|>",
        token_id=lambda config: config.get("video_token_id", 151656),
        chat="<|vision_start|><|video_pad|><|vision_end|>",
        layout="patches",
        sample=sample_starts,
        fps=2.0,
        most=768,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        size=size_of_each,
        limits=(128 * 28 * 28, 768 * 28 * 28),
    ),
)


def _vision_block(config: dict, index: int) -> Shapes:
    width, mlp = VISION.width(config), VISION.mlp(config)
    return {
        **norm("norm1", width),
        **norm("norm2", width),
        **linear("attn.qkv", 3 * width, width),
        **linear("attn.proj", width, width),
        **linear("mlp.fc1", mlp, width),
        **linear("mlp.fc2", width, mlp),
    }


def _language_block(config: dict, index: int) -> Shapes:
    return decoder_block(LANGUAGE.width(config), LANGUAGE.mlp(config), LANGUAGE.heads(config), qkv_bias=True)


def outside(config: dict, width: int, merged: int, layer_norm: bool) -> Shapes:
    """What is outside the blocks of Qwen2-VL and Qwen2.5-VL. width: of the vision tower; merged: behind its merger."""
    patch, square = vision(config, "patch_size", 14), vision(config, "spatial_merge_size", 2) ** 2
    channels, frames = vision(config, "in_channels", 3), vision(config, "temporal_patch_size", 2)
    hidden, words = LANGUAGE.width(config), text(config, "vocab_size", 152064)
    return {
        "visual.patch_embed.proj.weight": (width, channels, frames, patch, patch),
        **norm("visual.merger.ln_q", width, layer_norm),
        **linear("visual.merger.mlp.0", square * width, square * width),
        **linear("visual.merger.mlp.2", merged, square * width),
        "model.embed_tokens.weight": (words, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
    }


# Fine-tunes saved by transformers 4.4x leave out of vision_config what equals the defaults of its class: hence 32, 16,
# 1280 and 4. (hidden_size is the width behind the merger here, the language model's.)
VISION = Tower(
    name="vision",
    prefix="visual.blocks.",
    groups=(
        Group(("attn.qkv",), source="norm1", kind="norm"),
        Group(("attn.proj",), source="attn.qkv", kind="value"),
        Group(("mlp.fc1",), source="norm2", kind="norm"),
        Group(("mlp.fc2",)),  # quick_gelu stands between fc1 and fc2: no scale passes through it
    ),
    blocks=lambda config: vision(config, "depth", 32),
    used=lambda config: vision(config, "depth", 32),
    heads=lambda config: (vision(config, "num_heads", 16),) * 2,
    width=lambda config: vision(config, "embed_dim", 1280),
    mlp=lambda config: vision(config, "embed_dim", 1280) * vision(config, "mlp_ratio", 4),
    tokens=lambda config, inputs: sum(int(inputs[name].prod(-1).sum()) for name in GRIDS if name in inputs),
    inputs=("pixel_values", "pixel_values_videos"),
    holds=_vision_block,
)

LANGUAGE = Tower(
    name="language",
    prefix="model.layers.",
    groups=(
        Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="input_layernorm", kind="norm"),
        Group(("self_attn.o_proj",), source="self_attn.v_proj", kind="value"),
        Group(("mlp.gate_proj", "mlp.up_proj"), source="post_attention_layernorm", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.up_proj", kind="up"),
    ),
    blocks=lambda config: text(config, "num_hidden_layers"),
    used=lambda config: text(config, "num_hidden_layers"),
    heads=lambda config: (text(config, "num_attention_heads"), text(config, "num_key_value_heads")),
    width=lambda config: text(config, "hidden_size"),
    mlp=lambda config: text(config, "intermediate_size"),
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)

QWEN2_VL = Family(
    name="Qwen2-VL",
    architecture="Qwen2VLForConditionalGeneration",
    model_type="qwen2_vl",
    script="qwen2vl",
    processing=PROCESSING,
    towers=(VISION, LANGUAGE),
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    holds=lambda config: outside(config, VISION.width(config), vision(config, "hidden_size", 3584), layer_norm=True),
    renames=(("visual.", "model.visual."), ("model.", "model.language_model."), ("lm_head.", "lm_head.")),
    must_float={
        "lm_head": "servers load the head in float",
        "visual.merger.mlp.*": "servers load the merger in float",
    },
    mindie_float={"visual.blocks.*.mlp.fc2": "MindIE's vision kernel takes fc2 in float"},
    recipe_float={
        "model.layers.*.mlp.down_proj": "kept float by the published recipes (its input has the largest outliers)"
    },
    vision="int8",
    vision_int8_refused=None,
    vision_int8_whole=("attn.qkv", "attn.proj", "mlp.fc1"),
    dtype=None,
    flat_config=True,
    vocab_size=lambda config: text(config, "vocab_size", 152064),
    mindie_config_alone=False,
    mindie_looks_up=(),
    mindie_310p=False,
    mindie_vision_head=80,  # padded to 128
    mindie_transposed="attn.proj",
    prompt="Describe this image in detail.",
)
