"""Qwen3-VL with experts (30B-A3B, 235B-A22B): Qwen3-VL, whose MLPs are a router and experts.

On the hub the experts of a block are two tensors, in the export each linear has its own, as both servers name them
(files/experts.py). They are W8A8_DYNAMIC and all else W8A8: neither server has a static product for experts, and MindIE
calls such a model W8A8_DYNAMIC. The router is float and takes scales of the norm before it by powers of two: smoothing
that norm gains 2.5 dB over leaving it (docs/accuracy.md, Experts).
"""

from dataclasses import replace

from .family import Group
from .numbers import nested_text
from .qwen3vl import LANGUAGE as DENSE
from .qwen3vl import QWEN3_VL
from .shapes import Shapes, experts, normed_decoder_block


def is_sparse(config: dict, index: int) -> bool:
    """Whether a block has experts; the others have an MLP."""
    text = config.get("text_config") or {}
    return (
        index not in (text.get("mlp_only_layers") or ()) and (index + 1) % (text.get("decoder_sparse_step") or 1) == 0
    )


def _language_block(config: dict, index: int) -> Shapes:
    width, channels = LANGUAGE.width(config), nested_text(config, "head_dim", 128)
    block = normed_decoder_block(width, LANGUAGE.mlp(config), LANGUAGE.heads(config), channels)
    if not is_sparse(config, index):
        return block
    inner = nested_text(config, "moe_intermediate_size", 1408)
    kept = {name: shape for name, shape in block.items() if not name.startswith("mlp.")}
    return {**kept, "mlp.gate.weight": (count(config), width), **experts("mlp.experts", count(config), width, inner)}


def count(config: dict) -> int:
    """Experts of a block."""
    text = config.get("text_config") or {}
    return nested_text(config, "num_experts" if "num_experts" in text else "num_local_experts", 60)


def share(config: dict, linear: str) -> float:
    """What share of the tokens a linear sees: an expert that of those which a router sends to it, on the average."""
    return nested_text(config, "num_experts_per_tok", 4) / count(config) if ".experts." in linear else 1.0


ATTENTION = DENSE.groups[:2]
EXPERTS = (
    Group(
        ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
        source="post_attention_layernorm",
        kind="norm",
        when=is_sparse,
        readers=("mlp.gate",),
        experts=True,
    ),
    Group(("mlp.experts.*.down_proj",), when=is_sparse, observed=False, experts=True),
)
LANGUAGE = replace(
    DENSE,
    groups=(
        *ATTENTION,
        *(replace(group, when=lambda config, index: not is_sparse(config, index)) for group in DENSE.groups[2:]),
        *EXPERTS,
    ),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 24),
    used=lambda config: nested_text(config, "num_hidden_layers", 24),
    heads=lambda config: (
        nested_text(config, "num_attention_heads", 16),
        nested_text(config, "num_key_value_heads", 16),
    ),
    width=lambda config: nested_text(config, "hidden_size", 2048),
    mlp=lambda config: nested_text(config, "intermediate_size", 5632),
    holds=_language_block,
    experts=count,
    share=share,
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="Qwen3-VL-MoE",
    architecture="Qwen3VLMoeForConditionalGeneration",
    model_type="qwen3_vl_moe",
    script="qwen3vl_moe",
    towers=(QWEN3_VL.tower("vision"), LANGUAGE),
    must_float={
        **QWEN3_VL.must_float,
        "model.language_model.layers.*.mlp.gate": "servers load the router in float",
    },
    recipe_float={
        "model.language_model.layers.*.mlp.down_proj": "kept float by the published recipes, of blocks without experts"
    },
    must_dynamic={"*.mlp.experts.*": "servers have no static product for experts"},
    mindie_unlisted=lambda config: None if count(config) == 128 and LANGUAGE.width(config) == 2048 else _UNLISTED,
    mindie_experts=True,
)
_UNLISTED = "MindIE documents W8A8 for 30B-A3B alone"
