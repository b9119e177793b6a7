"""The towers of GLM-OCR: a ViT of RMSNorms and gated MLPs, with norms of each head's queries and keys; GLM-4 blocks
with four norms and a fused gate_up_proj.

The two norms behind attention and MLP stand between a linear and the residual stream: nothing folds into them.
"""

from .family import Group, Tower
from .numbers import nested_text, vision
from .qwen2vl import GRIDS
from .shapes import Shapes, attention, gated_mlp, linear, norm

VISUAL, MODEL = "model.visual.", "model.language_model."


def _vision_block(config: dict, index: int) -> Shapes:
    width, mlp = VISION.width(config), VISION.mlp(config)
    bias, channels = (config.get("vision_config") or {}).get("attention_bias", True), width // VISION.heads(config)[0]
    return {
        **norm("norm1", width, bias=False),
        **norm("norm2", width, bias=False),
        **norm("attn.q_norm", channels, bias=False),
        **norm("attn.k_norm", channels, bias=False),
        **linear("attn.qkv", 3 * width, width, bias),
        **linear("attn.proj", width, width, bias),
        **gated_mlp("mlp", width, mlp, bias),
    }


VISION = Tower(
    name="vision",
    prefix=f"{VISUAL}blocks.",
    groups=(
        Group(("attn.qkv",), source="norm1", kind="norm"),
        Group(("attn.proj",), source="attn.qkv", kind="value"),
        Group(("mlp.gate_proj", "mlp.up_proj"), source="norm2", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.up_proj", kind="up"),
    ),
    blocks=lambda config: vision(config, "depth", 24),
    used=lambda config: vision(config, "depth", 24),
    heads=lambda config: (vision(config, "num_heads", 16),) * 2,
    width=lambda config: vision(config, "hidden_size", 1024),
    mlp=lambda config: vision(config, "intermediate_size", 4096),
    tokens=lambda config, inputs: sum(int(inputs[name].prod(-1).sum()) for name in GRIDS if name in inputs),
    inputs=("pixel_values", "pixel_values_videos"),
    holds=_vision_block,
)


def _language_block(config: dict, index: int) -> Shapes:
    width, mlp, (heads, shared) = LANGUAGE.width(config), LANGUAGE.mlp(config), LANGUAGE.heads(config)
    channels = nested_text(config, "head_dim", width // heads)
    names = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    return {
        **{f"{name}.weight": (width,) for name in names},
        **attention(width, heads * channels, shared * channels, qkv_bias=False),
        **linear("mlp.gate_up_proj", 2 * mlp, width, bias=False),
        **linear("mlp.down_proj", width, mlp, bias=False),
    }


LANGUAGE = Tower(
    name="language",
    prefix=f"{MODEL}layers.",
    groups=(
        Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), source="input_layernorm", kind="norm"),
        Group(("self_attn.o_proj",), source="self_attn.v_proj", kind="value"),
        Group(("mlp.gate_up_proj",), source="post_attention_layernorm", kind="norm"),
        Group(("mlp.down_proj",), source="mlp.gate_up_proj", kind="up"),
    ),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 16),
    used=lambda config: nested_text(config, "num_hidden_layers", 16),
    heads=lambda config: (
        nested_text(config, "num_attention_heads", 16),
        nested_text(config, "num_key_value_heads", 8),
    ),
    width=lambda config: nested_text(config, "hidden_size", 1024),
    mlp=lambda config: nested_text(config, "intermediate_size", 4096),
    tokens=lambda config, inputs: inputs["input_ids"].numel(),
    holds=_language_block,
)


def drafter(config: dict) -> Shapes:
    """The tensors of multi-token prediction: blocks behind the last one, each with what joins its two inputs, an
    embedding and a head.
    """
    width, words = LANGUAGE.width(config), nested_text(config, "vocab_size", 59392)
    said = (config.get("text_config") or {}).get("num_nextn_predict_layers")
    count = min(nested_text(config, "num_nextn_predict_layers"), 16) if said else 0
    joined = {f"{name}.weight": (width,) for name in ("enorm", "hnorm", "shared_head.norm")} | {
        "eh_proj.weight": (width, 2 * width),
        "embed_tokens.weight": (words, width),
        "shared_head.head.weight": (words, width),
    }
    return {
        LANGUAGE.block(LANGUAGE.blocks(config) + number) + name: shape
        for number in range(count)
        for name, shape in (_language_block(config, number) | joined).items()
    }
