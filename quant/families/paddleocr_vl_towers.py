"""What PaddleOCR-VL's checkpoint holds: SigLIP blocks with LLaVA's names, ERNIE-4.5 blocks with Qwen2's, the projector;
and what transformers does not run, SigLIP's pooling head and positions for packed images.
"""

from dataclasses import replace

from .llava import VISION as CLIP
from .numbers import text, vision
from .qwen2vl import LANGUAGE as QWEN2
from .shapes import Shapes, attention, gated_mlp, linear, norm

TOWER = "visual.vision_model."


def _language_block(config: dict, index: int) -> Shapes:
    width, (heads, shared), channels = LANGUAGE.width(config), LANGUAGE.heads(config), text(config, "head_dim", 128)
    bias = bool(config.get("use_bias", (config.get("text_config") or {}).get("use_bias")))
    return {
        **norm("input_layernorm", width, bias=False),
        **norm("post_attention_layernorm", width, bias=False),
        **attention(width, heads * channels, shared * channels, bias, bias),
        **gated_mlp("mlp", width, LANGUAGE.mlp(config), bias),
    }


def outside(config: dict) -> Shapes:
    """What is outside the blocks."""
    width, hidden, words = VISION.width(config), LANGUAGE.width(config), text(config, "vocab_size", 103424)
    patch, merged = vision(config, "patch_size", 14), width * vision(config, "spatial_merge_size", 2) ** 2
    return {
        f"{TOWER}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{TOWER}embeddings.patch_embedding.bias": (width,),
        f"{TOWER}embeddings.position_embedding.weight": ((vision(config, "image_size", 384) // patch) ** 2, width),
        **norm(f"{TOWER}post_layernorm", width),
        **norm("mlp_AR.pre_norm", width),
        **linear("mlp_AR.linear_1", merged, merged),
        **linear("mlp_AR.linear_2", hidden, merged),
        "model.embed_tokens.weight": (words, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (words, hidden),
    }


def not_run(config: dict) -> Shapes:
    """What the checkpoint has besides."""
    width, mlp, head = VISION.width(config), VISION.mlp(config), f"{TOWER}head."
    return {
        f"{TOWER}embeddings.packing_position_embedding.weight": (32768, width),
        f"{head}probe": (1, 1, width),
        f"{head}attention.in_proj_weight": (3 * width, width),
        f"{head}attention.in_proj_bias": (3 * width,),
        **linear(f"{head}attention.out_proj", width, width),
        **norm(f"{head}layernorm", width),
        **linear(f"{head}mlp.fc1", mlp, width),
        **linear(f"{head}mlp.fc2", width, mlp),
    }


VISION = replace(
    CLIP,
    prefix=f"{TOWER}encoder.layers.",
    used=CLIP.blocks,
    tokens=lambda config, inputs: int(inputs["image_grid_thw"].prod(-1).sum()) if "image_grid_thw" in inputs else 0,
)
LANGUAGE = replace(
    QWEN2,
    blocks=lambda config: text(config, "num_hidden_layers", 18),
    used=lambda config: text(config, "num_hidden_layers", 18),
    heads=lambda config: (text(config, "num_attention_heads", 16), text(config, "num_key_value_heads", 2)),
    width=lambda config: text(config, "hidden_size", 1024),
    mlp=lambda config: text(config, "intermediate_size", 3072),
    holds=_language_block,
)
