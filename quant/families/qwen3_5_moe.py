"""Qwen3.5 and Qwen3.6 with experts (35B-A3B, 122B-A10B, 397B-A17B): Qwen3.5, whose MLPs are a router, experts, and an
expert that all tokens share, with a gate of its own.

Experts and shared expert are W8A8_DYNAMIC; router and gate are float. Fused experts are split as Qwen3-VL's are, those
of the drafter too, since its keys are looked up alike.
"""

from dataclasses import replace

from .family import Group
from .numbers import nested_text
from .qwen3_5 import LANGUAGE as DENSE
from .qwen3_5 import MIXERS, QWEN3_5, WORDS
from .qwen3_5_blocks import drafter, mixer
from .qwen3_vision import outside
from .shapes import Shapes, experts, gated_mlp


def count(config: dict) -> int:
    """Experts of a block."""
    return nested_text(config, "num_experts", 256)


def share(config: dict, linear: str) -> float:
    """What share of the tokens a linear sees, on the average."""
    return nested_text(config, "num_experts_per_tok", 8) / count(config) if ".experts." in linear else 1.0


def _block(config: dict, index: int) -> Shapes:
    width, inner = LANGUAGE.width(config), nested_text(config, "moe_intermediate_size", 512)
    return {
        **mixer(config, index),
        "mlp.gate.weight": (count(config), width),
        "mlp.shared_expert_gate.weight": (1, width),
        **gated_mlp("mlp.shared_expert", width, LANGUAGE.mlp(config)),
        **experts("mlp.experts", count(config), width, inner),
    }


SHARED = ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj")
LANGUAGE = replace(
    DENSE,
    groups=(
        *MIXERS,
        # Not smoothed: a router behind a norm that stores w - 1 cannot take up a scale without being rounded, and then
        # sends tokens to other experts. On random weights with outlier channels smoothing cost 2 to 4 dB; on a stand-in
        # with real activations it gained (docs/accuracy.md, Experts).
        Group(
            ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
            readers=("mlp.gate", "mlp.shared_expert_gate"),
            experts=True,
            with_experts=SHARED,
        ),
        Group(("mlp.experts.*.down_proj",), observed=False, experts=True),
        Group(("mlp.shared_expert.down_proj",), source="mlp.shared_expert.up_proj", kind="up"),
    ),
    blocks=lambda config: nested_text(config, "num_hidden_layers", 40),
    used=lambda config: nested_text(config, "num_hidden_layers", 40),
    heads=lambda config: (
        nested_text(config, "num_attention_heads", 16),
        nested_text(config, "num_key_value_heads", 2),
    ),
    width=lambda config: nested_text(config, "hidden_size", 2048),
    mlp=lambda config: nested_text(config, "shared_expert_intermediate_size", 512),
    holds=_block,
    experts=count,
    share=share,
)
LAYERS = "model.language_model.layers.*"
QWEN3_5_MOE = replace(
    QWEN3_5,
    name="Qwen3.5-MoE",
    architecture="Qwen3_5MoeForConditionalGeneration",
    model_type="qwen3_5_moe",
    script="qwen3_5_moe",
    towers=(QWEN3_5.tower("vision"), LANGUAGE),
    holds=lambda config: outside(config, words=WORDS) | drafter(config, _block),
    must_float={
        **QWEN3_5.must_float,
        f"{LAYERS}.mlp.gate": "servers load the router in float",
        f"{LAYERS}.mlp.shared_expert_gate": "one row; servers load it in float",
    },
    recipe_float={f"{LAYERS}.linear_attn.*": "kept float by the published recipes"},
    must_dynamic={
        **QWEN3_5.must_dynamic,
        "*.mlp.experts.*": "servers have no static product for experts",
        "*.mlp.shared_expert.*": "it reads what the experts read, and is of their type",
    },
    mindie_refuses="NotImplementedError: unsupported model type: qwen3_5_moe",
)
