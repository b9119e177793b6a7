"""Which tensors a checkpoint holds: hub names, shapes and how their random values are drawn, from config.json alone.

    tensors(config) -> [Tensor("visual.patch_embed.proj.weight", (1280, 3, 2, 14, 14), std), ...]

in the order in which the hub's files hold them (vision tower, projector, language model, head). Values are normal with
a mean and a standard deviation per tensor, chosen so that activations keep the size they have in trained models:

    linear    std = 1 / sqrt(sum_c E[x_c^2]), so that each output has variance 1 for the input it will see
    norm      weight 1 +- 0.1; those in front of linears also get outlier channels, `gains` below
    bias      +- 0.1

Outlier channels: in trained models a few channels of a norm's output are 10 to 40 times larger than the rest, in the
same channels throughout a tower, and that is what makes per-tensor int8 activations hard. `gains(C)` says how large.

Left out: outliers inside v and up, which no group in front of a norm sees, and anything that only training makes.
"""

import math
from typing import NamedTuple

from bench.hub_config import LLAMA_DEFAULTS, MOLMO_VISION, TOWERS


class Tensor(NamedTuple):
    """One tensor of the checkpoint; value = mean + std * noise, times the gains in outlier channels if `outliers`; less
    `minus`, 1 for norms that store w - 1.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    outliers: bool = False
    minus: float = 0.0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def gains(channels: int) -> list[float]:
    """By how much the outlier channels of a norm of this width exceed the others: 3 to 8 factors from 10 to 40."""
    count = min(8, max(3, channels // 512))
    return [10.0 * 4.0 ** (i / (count - 1)) for i in range(count)]


def _norm_energy(channels: int) -> float:
    """Sum over the channels of E[x^2] behind a norm with outlier channels."""
    factors = gains(channels)
    return channels - len(factors) + sum(g * g for g in factors)


def _linear(name: str, out: int, inputs: int, *, bias: bool, behind_norm: int = 0) -> list[Tensor]:
    """A linear [out, inputs]; `behind_norm`: width of the outlier norm that it reads (merger: inputs = 4 widths)."""
    energy = _norm_energy(behind_norm) * inputs / behind_norm if behind_norm else inputs
    weight = Tensor(f"{name}.weight", (out, inputs), energy**-0.5)
    return [weight, Tensor(f"{name}.bias", (out,), 0.1)] if bias else [weight]


def _norm(name: str, width: int, *, bias: bool, outliers: bool = True, minus: float = 0.0) -> list[Tensor]:
    weight = Tensor(f"{name}.weight", (width,), 0.1, 1.0, outliers, minus)
    return [weight, Tensor(f"{name}.bias", (width,), 0.1, 0.0, outliers)] if bias else [weight]


def _language(prefix: str, head: str, text: dict, *, qkv_bias: bool, tied: bool) -> list[Tensor]:
    """Embedding, decoder blocks, final norm and head of LLaMA and Qwen2; `text` has their config keys."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    kv = width // heads * (text.get("num_key_value_heads") or heads)
    found = [Tensor(f"{prefix}embed_tokens.weight", (text["vocab_size"], width), width**-0.5)]
    for i in range(text["num_hidden_layers"]):
        block = f"{prefix}layers.{i}."
        found += _norm(f"{block}input_layernorm", width, bias=False)
        for part, out in (("q", width), ("k", kv), ("v", kv)):
            found += _linear(f"{block}self_attn.{part}_proj", out, width, bias=qkv_bias, behind_norm=width)
        found += _linear(f"{block}self_attn.o_proj", width, width, bias=False)
        found += _norm(f"{block}post_attention_layernorm", width, bias=False)
        for part in ("gate", "up"):
            found += _linear(f"{block}mlp.{part}_proj", inner, width, bias=False, behind_norm=width)
        found += _linear(f"{block}mlp.down_proj", width, inner, bias=False)
    found += _norm(f"{prefix}norm", width, bias=False, outliers=False)
    return found if tied else found + _linear(head, text["vocab_size"], width, bias=False)


def _attention(block: str, text: dict, *, gate: int = 1, stored: float = 1.0) -> list[Tensor]:
    """Qwen3's: q_proj of gate * queries rows, norms of queries and keys, whose weights are stored about `stored`."""
    width, channels = text["hidden_size"], text["head_dim"]
    queries, values = text["num_attention_heads"] * channels, text["num_key_value_heads"] * channels
    found = [Tensor(f"{block}self_attn.{part}_norm.weight", (channels,), 0.1, stored) for part in "kq"]
    for part, out in (("q", gate * queries), ("k", values), ("v", values)):
        found += _linear(f"{block}self_attn.{part}_proj", out, width, bias=False, behind_norm=width)
    return found + _linear(f"{block}self_attn.o_proj", width, queries, bias=False)


def _gated_mlp(name: str, width: int, inner: int) -> list[Tensor]:
    found = []
    for part in ("gate", "up"):
        found += _linear(f"{name}.{part}_proj", inner, width, bias=False, behind_norm=width)
    return found + _linear(f"{name}.down_proj", width, inner, bias=False)


def _mlp(name: str, text: dict, *, turned: bool) -> list[Tensor]:
    """An MLP, or a router and experts in two tensors, which Qwen3-VL holds `turned`, [experts, inputs, outputs]."""
    width, experts = text["hidden_size"], text.get("num_experts")
    if not experts:
        return _gated_mlp(name, width, text["intermediate_size"])
    inner, std = text["moe_intermediate_size"], _norm_energy(width) ** -0.5
    first, second = ((width, 2 * inner), (inner, width)) if turned else ((2 * inner, width), (width, inner))
    found = [
        Tensor(f"{name}.gate.weight", (experts, width), std),
        Tensor(f"{name}.experts.gate_up_proj", (experts, *first), std),
        Tensor(f"{name}.experts.down_proj", (experts, *second), inner**-0.5),
    ]
    if shared := text.get("shared_expert_intermediate_size"):
        found += [Tensor(f"{name}.shared_expert_gate.weight", (1, width), std)]
        found += _gated_mlp(f"{name}.shared_expert", width, shared)
    return found


def _linear_attention(block: str, text: dict) -> list[Tensor]:
    """Qwen3.5's gated delta net."""
    width, count, each = text["hidden_size"], text["linear_num_value_heads"], text["linear_value_head_dim"]
    mixed, name = 2 * text["linear_num_key_heads"] * text["linear_key_head_dim"] + count * each, f"{block}linear_attn."
    found = [
        Tensor(f"{name}A_log", (count,), 0.5, 0.5),
        Tensor(f"{name}dt_bias", (count,), 0.1, 1.0),
        Tensor(f"{name}conv1d.weight", (mixed, 1, text["linear_conv_kernel_dim"]), 0.5),
        Tensor(f"{name}norm.weight", (each,), 0.1, 1.0),
    ]
    for part, out in (("qkv", mixed), ("z", count * each), ("b", count), ("a", count)):
        found += _linear(f"{name}in_proj_{part}", out, width, bias=False, behind_norm=width)
    return found + _linear(f"{name}out_proj", width, count * each, bias=False)


def _qwen3_5_block(block: str, text: dict, full: bool) -> list[Tensor]:
    width = text["hidden_size"]
    found = _norm(f"{block}input_layernorm", width, bias=False, minus=1.0)
    found += _attention(block, text, gate=2, stored=0.0) if full else _linear_attention(block, text)
    found += _norm(f"{block}post_attention_layernorm", width, bias=False, minus=1.0)
    return found + _mlp(f"{block}mlp", text, turned=False)


def _qwen3_5_language(text: dict, tied: bool) -> list[Tensor]:
    """Embedding, decoder blocks, final norm and head of Qwen3.5, and its drafter."""
    width, prefix = text["hidden_size"], "model.language_model."
    found = [Tensor(f"{prefix}embed_tokens.weight", (text["vocab_size"], width), width**-0.5)]
    for i, kind in enumerate(text["layer_types"]):
        found += _qwen3_5_block(f"{prefix}layers.{i}.", text, kind == "full_attention")
    found += _norm(f"{prefix}norm", width, bias=False, outliers=False, minus=1.0)
    if not tied:
        found += _linear("lm_head", text["vocab_size"], width, bias=False)
    found += _linear("mtp.fc", width, 2 * width, bias=False)
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        found += _norm(f"mtp.{name}", width, bias=False, outliers=False, minus=1.0)
    for i in range(text["mtp_num_hidden_layers"]):
        found += _qwen3_5_block(f"mtp.layers.{i}.", text, full=True)
    return found


def _qwen3_language(prefix: str, head: str, text: dict, tied: bool) -> list[Tensor]:
    """Embedding, decoder blocks, final norm and head of Qwen3."""
    width = text["hidden_size"]
    found = [Tensor(f"{prefix}embed_tokens.weight", (text["vocab_size"], width), width**-0.5)]
    for i in range(text["num_hidden_layers"]):
        block = f"{prefix}layers.{i}."
        found += _norm(f"{block}input_layernorm", width, bias=False) + _attention(block, text)
        found += _norm(f"{block}post_attention_layernorm", width, bias=False)
        found += _mlp(f"{block}mlp", text, turned=True)
    found += _norm(f"{prefix}norm", width, bias=False, outliers=False)
    return found if tied else found + _linear(head, text["vocab_size"], width, bias=False)


def _intern_vision(prefix: str, vision: dict) -> list[Tensor]:
    """InternVL's ViT: class token, learned positions, layer scale."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"][0]
    positions, layer_norm = (vision["image_size"][0] // patch) ** 2 + 1, vision["norm_type"] == "layer_norm"
    found = [
        Tensor(f"{prefix}embeddings.cls_token", (1, 1, width), 0.5),
        Tensor(
            f"{prefix}embeddings.patch_embeddings.projection.weight", (width, 3, patch, patch), (3 * patch**2) ** -0.5
        ),
        Tensor(f"{prefix}embeddings.patch_embeddings.projection.bias", (width,), 0.1),
        Tensor(f"{prefix}embeddings.position_embeddings", (1, positions, width), 0.5),
    ]
    for i in range(vision["num_hidden_layers"]):
        block = f"{prefix}encoder.layer.{i}."
        found += [Tensor(f"{block}lambda_{number}", (width,), 0.05, 0.5) for number in (1, 2)]
        found += _norm(f"{block}layernorm_before", width, bias=layer_norm)
        found += _norm(f"{block}layernorm_after", width, bias=layer_norm)
        for part in "qkv":
            bias = vision["attention_bias"]
            found += _linear(f"{block}attention.{part}_proj", width, width, bias=bias, behind_norm=width)
        if vision["use_qk_norm"]:
            found += [Tensor(f"{block}attention.{part}_norm.weight", (width,), 0.1, 1.0) for part in "qk"]
        found += _linear(f"{block}attention.projection_layer", width, width, bias=True)
        found += _linear(f"{block}mlp.fc1", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.fc2", width, inner, bias=True)
    return found


def _qwen3_vision(vision: dict) -> list[Tensor]:
    """The ViT of Qwen3-VL and Qwen3.5, its merger, and Qwen3-VL's deepstack mergers."""
    width, inner, prefix = vision["hidden_size"], vision["intermediate_size"], "model.visual."
    merged = width * vision["spatial_merge_size"] ** 2
    patch = (3, vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    found = [
        Tensor(f"{prefix}patch_embed.proj.weight", (width, *patch), math.prod(patch) ** -0.5),
        Tensor(f"{prefix}patch_embed.proj.bias", (width,), 0.1),
        Tensor(f"{prefix}pos_embed.weight", (vision["num_position_embeddings"], width), 0.1),
    ]
    for i in range(vision["depth"]):
        block = f"{prefix}blocks.{i}."
        found += _norm(f"{block}norm1", width, bias=True) + _norm(f"{block}norm2", width, bias=True)
        found += _linear(f"{block}attn.qkv", 3 * width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}attn.proj", width, width, bias=True)
        found += _linear(f"{block}mlp.linear_fc1", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.linear_fc2", width, inner, bias=True)
    mergers = {"merger": width}
    mergers |= {f"deepstack_merger_list.{i}": merged for i in range(len(vision.get("deepstack_visual_indexes", [])))}
    for name, normed in mergers.items():
        found += _norm(f"{prefix}{name}.norm", normed, bias=True, outliers=False)
        found += _linear(f"{prefix}{name}.linear_fc1", merged, merged, bias=True)
        found += _linear(f"{prefix}{name}.linear_fc2", vision["out_hidden_size"], merged, bias=True)
    return found


def _qwen_vision(vision: dict, language_width: int) -> list[Tensor]:
    """The ViT and merger of Qwen2-VL (LayerNorm, fc1/fc2) and of Qwen2.5-VL (RMSNorm, gate/up/down)."""
    gated = "fullatt_block_indexes" in vision
    width = vision["hidden_size"] if gated else vision["embed_dim"]
    inner = vision["intermediate_size"] if gated else width * vision["mlp_ratio"]
    merged = width * vision["spatial_merge_size"] ** 2
    patch = (3, vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    found = [Tensor("visual.patch_embed.proj.weight", (width, *patch), math.prod(patch) ** -0.5)]
    for i in range(vision["depth"]):
        block = f"visual.blocks.{i}."
        found += _norm(f"{block}norm1", width, bias=not gated) + _norm(f"{block}norm2", width, bias=not gated)
        found += _linear(f"{block}attn.qkv", 3 * width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}attn.proj", width, width, bias=True)
        for name in ("gate_proj", "up_proj") if gated else ("fc1",):
            found += _linear(f"{block}mlp.{name}", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.{'down_proj' if gated else 'fc2'}", width, inner, bias=True)
    found += _norm("visual.merger.ln_q", width, bias=not gated)
    found += _linear("visual.merger.mlp.0", merged, merged, bias=True, behind_norm=width)
    return found + _linear("visual.merger.mlp.2", language_width, merged, bias=True)


def _clip_vision(prefix: str, vision: dict) -> list[Tensor]:
    """CLIP's ViT with class token, learned positions, and LayerNorms before and after its blocks."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    positions = (vision["image_size"] // patch) ** 2 + 1
    found = [
        Tensor(f"{prefix}embeddings.class_embedding", (width,), width**-0.5),
        Tensor(f"{prefix}embeddings.patch_embedding.weight", (width, 3, patch, patch), (3 * patch * patch) ** -0.5),
        Tensor(f"{prefix}embeddings.position_embedding.weight", (positions, width), width**-0.5),
        *_norm(f"{prefix}pre_layrnorm", width, bias=True, outliers=False),
    ]
    for i in range(vision["num_hidden_layers"]):
        block = f"{prefix}encoder.layers.{i}."
        for part in ("k_proj", "v_proj", "q_proj"):
            found += _linear(f"{block}self_attn.{part}", width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}self_attn.out_proj", width, width, bias=True)
        found += _norm(f"{block}layer_norm1", width, bias=True)
        found += _linear(f"{block}mlp.fc1", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.fc2", width, inner, bias=True)
        found += _norm(f"{block}layer_norm2", width, bias=True)
    return found + _norm(f"{prefix}post_layernorm", width, bias=True, outliers=False)


def _siglip_vision(prefix: str, vision: dict) -> list[Tensor]:
    """SigLIP's ViT: no class token, a bias of the patches, a LayerNorm after its blocks alone."""
    width, patch = vision["hidden_size"], vision["patch_size"]
    clip = {tensor.name.removeprefix(prefix): tensor for tensor in _clip_vision(prefix, vision)}
    bias = Tensor(f"{prefix}embeddings.patch_embedding.bias", (width,), 0.1)
    position = f"{prefix}embeddings.position_embedding.weight"
    found = [clip["embeddings.patch_embedding.weight"], bias]
    found += [Tensor(position, ((vision["image_size"] // patch) ** 2, width), width**-0.5)]
    return found + [tensor for name, tensor in clip.items() if name.startswith(("encoder.", "post_layernorm."))]


def _glm_block(block: str, text: dict) -> list[Tensor]:
    """Norms in front of attention and MLP, norms behind them, gate and up in one."""
    width, inner = text["hidden_size"], text["intermediate_size"]
    queries, values = (text[f"num_{kind}_heads"] * text["head_dim"] for kind in ("attention", "key_value"))
    found = _norm(f"{block}input_layernorm", width, bias=False)
    found += _linear(f"{block}mlp.gate_up_proj", 2 * inner, width, bias=False, behind_norm=width)
    found += _linear(f"{block}mlp.down_proj", width, inner, bias=False)
    found += _norm(f"{block}post_attention_layernorm", width, bias=False)
    found += _norm(f"{block}post_mlp_layernorm", width, bias=False, outliers=False)
    found += _norm(f"{block}post_self_attn_layernorm", width, bias=False, outliers=False)
    for part, out in (("k", values), ("q", queries), ("v", values)):
        found += _linear(f"{block}self_attn.{part}_proj", out, width, bias=False, behind_norm=width)
    return found + _linear(f"{block}self_attn.o_proj", width, queries, bias=False)


def _glm_ocr(config: dict) -> list[Tensor]:
    """GLM-OCR: ViT, merger, decoder, head, and the drafter's block behind the others."""
    text, vision = config["text_config"], config["vision_config"]
    width, inner, merged = vision["hidden_size"], vision["intermediate_size"], vision["out_hidden_size"]
    patch = (3, vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    square = vision["spatial_merge_size"]
    channels = width // vision["num_heads"]
    prefix = "model.visual."
    found = [
        Tensor(f"{prefix}patch_embed.proj.weight", (width, *patch), math.prod(patch) ** -0.5),
        Tensor(f"{prefix}patch_embed.proj.bias", (width,), 0.1),
    ]
    for i in range(vision["depth"]):
        block = f"{prefix}blocks.{i}."
        found += _norm(f"{block}norm1", width, bias=False) + _norm(f"{block}norm2", width, bias=False)
        found += [Tensor(f"{block}attn.{part}_norm.weight", (channels,), 0.1, 1.0) for part in "qk"]
        found += _linear(f"{block}attn.qkv", 3 * width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}attn.proj", width, width, bias=True)
        for part in ("gate", "up"):
            found += _linear(f"{block}mlp.{part}_proj", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.down_proj", width, inner, bias=True)
    found += _norm(f"{prefix}post_layernorm", width, bias=False, outliers=False)
    found += [
        Tensor(f"{prefix}downsample.weight", (merged, width, square, square), (width * square**2) ** -0.5),
        Tensor(f"{prefix}downsample.bias", (merged,), 0.1),
        *_linear(f"{prefix}merger.proj", merged, merged, bias=False),
        *_norm(f"{prefix}merger.post_projection_norm", merged, bias=True, outliers=False),
    ]
    for part in ("gate", "up"):
        found += _linear(f"{prefix}merger.{part}_proj", text["intermediate_size"], merged, bias=False)
    found += _linear(f"{prefix}merger.down_proj", merged, text["intermediate_size"], bias=False)
    hidden, words, layers = text["hidden_size"], text["vocab_size"], text["num_hidden_layers"]
    found += [Tensor("model.language_model.embed_tokens.weight", (words, hidden), hidden**-0.5)]
    for i in range(layers):
        found += _glm_block(f"model.language_model.layers.{i}.", text)
    found += _norm("model.language_model.norm", hidden, bias=False, outliers=False)
    found += _linear("lm_head", words, hidden, bias=False)
    for i in range(layers, layers + text["num_nextn_predict_layers"]):
        block = f"model.language_model.layers.{i}."
        found += [Tensor(f"{block}embed_tokens.weight", (words, hidden), hidden**-0.5)]
        for name in ("enorm", "hnorm", "shared_head.norm"):
            found += _norm(f"{block}{name}", hidden, bias=False, outliers=False)
        found += _linear(f"{block}eh_proj", hidden, 2 * hidden, bias=False)
        found += _linear(f"{block}shared_head.head", words, hidden, bias=False) + _glm_block(block, text)
    return found


def _paddleocr_vl(config: dict) -> list[Tensor]:
    """PaddleOCR-VL: projector, SigLIP with what nothing runs, ERNIE-4.5, head."""
    vision, prefix = config["vision_config"], "visual.vision_model."
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    found = _linear("mlp_AR.linear_1", merged, merged, bias=True)
    found += _linear("mlp_AR.linear_2", config["hidden_size"], merged, bias=True)
    found += _norm("mlp_AR.pre_norm", width, bias=True, outliers=False)
    positions = {"packing_position_embedding": 32768, "position_embedding": (vision["image_size"] // patch) ** 2}
    found += [
        Tensor(f"{prefix}embeddings.{name}.weight", (count, width), width**-0.5) for name, count in positions.items()
    ]
    found += [
        Tensor(f"{prefix}embeddings.patch_embedding.weight", (width, 3, patch, patch), (3 * patch * patch) ** -0.5),
        Tensor(f"{prefix}embeddings.patch_embedding.bias", (width,), 0.1),
    ]
    for i in range(vision["num_hidden_layers"]):
        block = f"{prefix}encoder.layers.{i}."
        found += _norm(f"{block}layer_norm1", width, bias=True) + _norm(f"{block}layer_norm2", width, bias=True)
        found += _linear(f"{block}mlp.fc1", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}mlp.fc2", width, inner, bias=True)
        for part in ("k_proj", "q_proj", "v_proj"):
            found += _linear(f"{block}self_attn.{part}", width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}self_attn.out_proj", width, width, bias=True)
    found += [
        Tensor(f"{prefix}head.attention.in_proj_weight", (3 * width, width), width**-0.5),
        Tensor(f"{prefix}head.attention.in_proj_bias", (3 * width,), 0.1),
        *_linear(f"{prefix}head.attention.out_proj", width, width, bias=True),
        *_norm(f"{prefix}head.layernorm", width, bias=True, outliers=False),
        *_linear(f"{prefix}head.mlp.fc1", inner, width, bias=True),
        *_linear(f"{prefix}head.mlp.fc2", width, inner, bias=True),
        Tensor(f"{prefix}head.probe", (1, 1, width), 0.1),
        *_norm(f"{prefix}post_layernorm", width, bias=True, outliers=False),
    ]
    words, hidden, channels = config["vocab_size"], config["hidden_size"], config["head_dim"]
    queries, values = (config[f"num_{kind}_heads"] * channels for kind in ("attention", "key_value"))
    found += [Tensor("model.embed_tokens.weight", (words, hidden), hidden**-0.5)]
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        found += _norm(f"{block}input_layernorm", hidden, bias=False)
        found += _gated_mlp(f"{block}mlp", hidden, config["intermediate_size"])
        found += _norm(f"{block}post_attention_layernorm", hidden, bias=False)
        for part, out in (("k", values), ("q", queries), ("v", values)):
            found += _linear(f"{block}self_attn.{part}_proj", out, hidden, bias=False, behind_norm=hidden)
        found += _linear(f"{block}self_attn.o_proj", hidden, queries, bias=False)
    found += _norm("model.norm", hidden, bias=False, outliers=False)
    return found + _linear("lm_head", words, hidden, bias=False)


def _internvl(config: dict) -> list[Tensor]:
    text, vision, tied = config["text_config"], config["vision_config"], config["tie_word_embeddings"]
    names = "language_model.model.", "language_model.lm_head"
    shuffled = round(vision["hidden_size"] / config["downsample_ratio"] ** 2)
    found = _intern_vision("vision_tower.", vision)
    found += _norm("multi_modal_projector.layer_norm", shuffled, bias=True, outliers=False)
    found += _linear("multi_modal_projector.linear_1", text["hidden_size"], shuffled, bias=True)
    found += _linear("multi_modal_projector.linear_2", text["hidden_size"], text["hidden_size"], bias=True)
    if text["model_type"] == "qwen2":
        return found + _language(*names, text, qkv_bias=True, tied=tied)
    return found + _qwen3_language(*names, text, tied)


def _llava_video(config: dict) -> list[Tensor]:
    """LLaVA-Video's original names: everything under `model.`, the projector by the numbers of its layers."""
    width = config["hidden_size"]
    vision = config.get("mm_vision_config") or TOWERS[config["mm_vision_tower"]]
    found = [Tensor("model.image_newline", (width,), 0.02)]
    found += _siglip_vision("model.vision_tower.vision_tower.vision_model.", vision)
    found += _linear("model.mm_projector.0", width, vision["hidden_size"], bias=True)
    found += _linear("model.mm_projector.2", width, width, bias=True)
    return found + _language("model.", "lm_head", config, qkv_bias=True, tied=False)


def _molmo(config: dict) -> list[Tensor]:
    """ViT, pooling, projector and decoder; the numbers of the tower where config.json does not say them."""
    vision = {**MOLMO_VISION, **config.get("vision_config", {})}
    width, inner, backbone = vision["hidden_size"], vision["intermediate_size"], "model.vision_backbone."
    patch, sides = vision["patch_size"], len(config.get("vit_layers", [-2, -9]))
    vit, patches = f"{backbone}image_vit.", (vision["image_size"] // patch) ** 2
    hidden, mlp, words = config["hidden_size"], config["intermediate_size"] // 2, config["embedding_size"]
    fused = hidden // config["num_attention_heads"] * config["num_key_value_heads"] * 2 + hidden
    found = [
        Tensor(f"{vit}class_embedding", (width,), width**-0.5),
        Tensor(f"{vit}positional_embedding", (patches + 1, width), width**-0.5),
        Tensor(f"{vit}patch_embedding.weight", (width, 3 * patch**2), (3 * patch**2) ** -0.5),
        *_norm(f"{vit}pre_ln", width, bias=True, outliers=False),
    ]
    for i in range(vision["num_hidden_layers"]):
        block = f"{vit}transformer.resblocks.{i}."
        found += _norm(f"{block}attention_norm", width, bias=True) + _norm(f"{block}ffn_norm", width, bias=True)
        for part in "qkv":
            found += _linear(f"{block}attention.w{part}", width, width, bias=True, behind_norm=width)
        found += _linear(f"{block}attention.wo", width, width, bias=True)
        found += _linear(f"{block}feed_forward.w1", inner, width, bias=True, behind_norm=width)
        found += _linear(f"{block}feed_forward.w2", width, inner, bias=True)
    for part in "qkv":
        found += _linear(f"{backbone}image_pooling_2d.w{part}", width, sides * width, bias=True)
    found += _linear(f"{backbone}image_pooling_2d.wo", width, width, bias=True)
    for part, outputs, inputs in (("w1", mlp, width), ("w2", hidden, mlp), ("w3", mlp, width)):
        found += _linear(f"{backbone}image_projector.{part}", outputs, inputs, bias=False)
    found += [
        Tensor(f"{backbone}pad_embed", (2, sides * width), 0.1),
        Tensor("model.transformer.wte.embedding", (words, hidden), hidden**-0.5),
        Tensor("model.transformer.wte.new_embedding", (128, hidden), hidden**-0.5),
    ]
    for i in range(config["num_hidden_layers"]):
        block = f"model.transformer.blocks.{i}."
        found += _norm(f"{block}attn_norm", hidden, bias=False) + _norm(f"{block}ff_norm", hidden, bias=False)
        found += _linear(f"{block}att_proj", fused, hidden, bias=True, behind_norm=hidden)
        found += _linear(f"{block}attn_out", hidden, hidden, bias=False)
        found += _linear(f"{block}ff_proj", 2 * mlp, hidden, bias=False, behind_norm=hidden)
        found += _linear(f"{block}ff_out", hidden, mlp, bias=False)
    found += _norm("model.transformer.ln_f", hidden, bias=False, outliers=False)
    return found + _linear("model.transformer.ff_out", words, hidden, bias=False)


def tensors(config: dict) -> list[Tensor]:
    """Every tensor of the checkpoint that `config` (a hub config.json, see hub_config.py) describes."""
    if config["model_type"] in ("qwen2_vl", "qwen2_5_vl"):
        found = _qwen_vision(config["vision_config"], config["hidden_size"])
        return found + _language("model.", "lm_head", config, qkv_bias=True, tied=config["tie_word_embeddings"])
    if config["model_type"].startswith("qwen3_5"):
        text, tied = config["text_config"], config["tie_word_embeddings"]
        return _qwen3_vision(config["vision_config"]) + _qwen3_5_language(text, tied)
    if config["model_type"] in ("qwen3_vl", "qwen3_vl_moe"):
        text, tied = config["text_config"], config["tie_word_embeddings"]
        return _qwen3_vision(config["vision_config"]) + _qwen3_language("model.language_model.", "lm_head", text, tied)
    if config["model_type"] == "internvl":
        return _internvl(config)
    if config["model_type"] == "llava_qwen":
        return _llava_video(config)
    if config["model_type"] == "glm_ocr":
        return _glm_ocr(config)
    if config["model_type"] == "paddleocr_vl":
        return _paddleocr_vl(config)
    if config["model_type"] == "molmo":
        return _molmo(config)
    text, vision = {**LLAMA_DEFAULTS, **config["text_config"]}, config["vision_config"]
    seen = _siglip_vision if vision["model_type"] == "siglip_vision_model" else _clip_vision
    newline = [] if config["model_type"] == "llava" else [Tensor("image_newline", (text["hidden_size"],), 0.02)]
    found = newline + seen("vision_tower.vision_model.", vision)
    found += _linear("multi_modal_projector.linear_1", text["hidden_size"], vision["hidden_size"], bias=True)
    found += _linear("multi_modal_projector.linear_2", text["hidden_size"], text["hidden_size"], bias=True)
    names, tied = ("language_model.model.", "language_model.lm_head"), config["tie_word_embeddings"]
    return found + _language(*names, text, qkv_bias=text.get("model_type") == "qwen2", tied=tied)
