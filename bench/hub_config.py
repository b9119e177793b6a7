"""What config.json of each supported family says on the hub, at the published sizes and at tiny ones.

Written in the flat layout of the hub's own files (Qwen2-VL: text keys on the top level; LLaVA-1.5: a text_config that
leaves out whatever equals LLaMA-7B's defaults), because that is what users download and what servers parse; a config
saved by an installed transformers looks different. Shapes of tensors follow from these dicts alone (hub_tensors.py).

    SIZES["qwen2vl-2b"].config      a dict, to be copied before it is edited
    cut(config, 2, 2)               the same model with two blocks in each tower

The tiny sizes keep what kernels and folds depend on: ViT heads of 80 channels (Qwen2-VL), language heads of 128, query
heads that share a key/value head, and for Qwen2.5-VL window attention beside full attention.
"""

import copy
from typing import NamedTuple

QWEN_SPECIAL = 151643  # id of <|endoftext|>, the first of Qwen's fourteen special tokens
GLM_SPECIAL = 59246  # id of <|endoftext|>, the first of GLM-OCR's thirty-six special tokens
# What transformers' LlamaConfig assumes, and llava-1.5-7b-hf therefore does not state.
LLAMA_DEFAULTS = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
# What the code that Molmo-7B-D-0924 brings says of its vision tower, and config.json does not.
MOLMO_VISION = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "patch_size": 14,
}


class Size(NamedTuple):
    """One checkpoint: its config.json, the largest image its processor keeps, the size of a weight file (about)."""

    config: dict
    max_pixels: int | None = 12845056  # None: the family has no such key (LLaVA's CLIP takes one fixed size)
    shard_bytes: int = 4_000_000_000


def _qwen(
    model_type: str,
    architecture: str,
    vision: dict,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    tied: bool = False,
    special: int = QWEN_SPECIAL,
    positions: int = 32768,
) -> dict:
    return {
        "architectures": [architecture],
        "attention_dropout": 0.0,
        "bos_token_id": special,
        "eos_token_id": special + 2,
        "vision_start_token_id": special + 9,
        "vision_end_token_id": special + 10,
        "vision_token_id": special + 11,
        "image_token_id": special + 12,
        "video_token_id": special + 13,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "max_position_embeddings": positions,
        "max_window_layers": layers,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": vision,
        # Halves of a 128-channel head turned by time, height and width; they must add up to 64.
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": vocab,
    }


def qwen2_vl(*, hidden: int, depth: int = 32, embed_dim: int = 1280, vision_heads: int = 16, **language) -> dict:
    """Qwen2-VL. `hidden` is the language width, in which the ViT's merger ends; vision_config has no `model_type`."""
    vision = {
        "depth": depth,
        "embed_dim": embed_dim,
        "mlp_ratio": 4,
        "num_heads": vision_heads,
        "in_chans": 3,
        "hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    return _qwen("qwen2_vl", "Qwen2VLForConditionalGeneration", vision, hidden=hidden, **language)


def qwen2_5_vl(
    *,
    hidden: int,
    depth: int = 32,
    width: int = 1280,
    vision_intermediate: int = 3420,
    vision_heads: int = 16,
    window: int = 112,
    full_attention: tuple[int, ...] = (7, 15, 23, 31),
    **language,
) -> dict:
    """Qwen2.5-VL. The ViT's own width is called `hidden_size` here, the language width `out_hidden_size`."""
    vision = {
        "depth": depth,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": vision_intermediate,
        "num_heads": vision_heads,
        "in_chans": 3,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": window,
        "fullatt_block_indexes": list(full_attention),
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    return _qwen(
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", vision, hidden=hidden, positions=128000, **language
    )


def llava(*, text: dict, vision: dict, base_vocab: int = 32000, vocab: int = 32064) -> dict:
    """LLaVA-1.5 in float16. `base_vocab` is LLaMA's; <image> and <pad> are the two ids after it."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": base_vocab,
        "model_type": "llava",
        "pad_token_id": base_vocab + 1,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            **text,
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": vocab,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.0.dev0",
        "vision_config": {
            "model_type": "clip_vision_model",
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
            **vision,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": vocab,
    }


def llava_next(*, text: dict, vision: dict, base_vocab: int = 32000, vocab: int = 32064, video: bool = False) -> dict:
    """LLaVA-NeXT: LLaVA-1.5 whose images are cut into tiles; `text` names its decoder. video: LLaVA-NeXT-Video, with a
    token of its own before the image's.
    """
    config, side = llava(text=text, vision=vision, base_vocab=base_vocab, vocab=vocab), vision["image_size"]
    grid = [[rows * side, columns * side] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]
    config |= {"image_grid_pinpoints": grid, "image_seq_length": (side // 14) ** 2, "multimodal_projector_bias": True}
    config |= {"architectures": ["LlavaNextForConditionalGeneration"], "model_type": "llava_next"}
    del config["vocab_size"]
    if video:
        config |= {"architectures": ["LlavaNextVideoForConditionalGeneration"], "model_type": "llava_next_video"}
        config |= {"video_token_index": base_vocab, "image_token_index": base_vocab + 1, "pad_token_id": base_vocab + 2}
        config |= {"spatial_pool_mode": "average", "spatial_pool_stride": 2, "video_seq_length": 288}
    return config


def llava_onevision(
    *, text: dict, vision: dict, special: int = QWEN_SPECIAL, tied: bool = False, most: tuple[int, int] = (6, 9)
) -> dict:
    """LLaVA-OneVision. most: tiles a side of the largest resolution, and of how many tiles features are kept."""
    side, sides = vision["image_size"], range(1, most[0] + 1)
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": [[rows * side, columns * side] for rows in sides for columns in sides],
        "image_token_index": special + 3,
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "bos_token_id": special,
            "eos_token_id": special + 2,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 32768,
            "model_type": "qwen2",
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": tied,
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
            **text,
        },
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "transformers_version": "4.45.0.dev0",
        "use_image_newline_parameter": True,
        "video_token_index": special + 4,
        "vision_aspect_ratio": f"anyres_max_{most[1]}",
        "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, "vision_use_head": False, **vision},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }


def llava_video(
    *,
    text: dict,
    tower: str,
    side: int,
    described: dict | None = None,
    special: int = QWEN_SPECIAL,
    most: int = 6,
) -> dict:
    """LLaVA-Video under its original names: a Qwen2's config.json and what LLaVA adds. tower: the name of its vision
    tower, whose tiles have `side` pixels; described: its numbers, where it is not a published one.
    """
    sides = range(1, most + 1)
    return {
        "add_faster_video": False,
        "add_time_instruction": True,
        "architectures": ["LlavaQwenForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": special,
        "eos_token_id": special + 2,
        "faster_token_stride": 10,
        "force_sample": True,
        "hidden_act": "silu",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[rows * side, columns * side] for rows in sides for columns in sides],
        "image_token_index": special + 3,
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "model_type": "llava_qwen",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0",
        "use_mm_proj": True,
        "use_sliding_window": False,
        **({"mm_vision_config": described} if described else {}),
        **text,
    }


def _qwen3(
    model_type: str, architecture: str, text: dict, vision: dict, *, special: int, tied: bool = False, **outer
) -> dict:
    """Qwen3-VL and Qwen3.5: everything of the language model is in text_config."""
    return {
        "architectures": [architecture],
        "image_token_id": special + 12,
        "model_type": model_type,
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": special,
            "dtype": "bfloat16",
            "eos_token_id": special + 2,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "model_type": f"{model_type}_text",
            "rms_norm_eps": 1e-06,
            "tie_word_embeddings": tied,
            "use_cache": True,
            **text,
        },
        "tie_word_embeddings": tied,
        "transformers_version": "4.57.0.dev0",
        "video_token_id": special + 13,
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "initializer_range": 0.02,
            "model_type": model_type,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": text["hidden_size"],
            **vision,
        },
        "vision_end_token_id": special + 10,
        "vision_start_token_id": special + 9,
        **outer,
    }


def qwen3_vl(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int = 8,
    vocab: int = 151936,
    tied: bool = False,
    special: int = QWEN_SPECIAL,
    vision: dict,
) -> dict:
    """Qwen3-VL. Heads have 128 channels whatever the width."""
    text = {
        "head_dim": 128,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "max_position_embeddings": 262144,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        # Interleaved thirds of the 64 frequencies of a head: time, height, width.
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "vocab_size": vocab,
    }
    return _qwen3("qwen3_vl", "Qwen3VLForConditionalGeneration", text, vision, special=special, tied=tied)


def qwen3_vl_moe(*, experts: int = 128, top: int = 8, inner: int, **dense) -> dict:
    """Qwen3-VL with experts of `inner` channels, `top` of which a token is sent to."""
    config = qwen3_vl(**dense)
    vision = {**config["vision_config"], "model_type": "qwen3_vl_moe"}
    text = {**config["text_config"], "model_type": "qwen3_vl_moe_text", "decoder_sparse_step": 1, "mlp_only_layers": []}
    text |= {"moe_intermediate_size": inner, "norm_topk_prob": True, "num_experts": experts, "num_experts_per_tok": top}
    named = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    return {**config, **named, "text_config": text, "vision_config": vision}


def qwen3_5(
    *, text: dict, keys: int, values: int, head: int = 128, special: int = 248044, tied: bool = False, vision: dict
) -> dict:
    """Qwen3.5. keys, values: heads of its linear attention, of `head` channels; every fourth block has a full one."""
    layers, channels = text["num_hidden_layers"], text.get("head_dim", 256)
    third = channels // 8  # of the quarter of a head that turns, half: frequencies
    section = [third - 2 * (third // 3), third // 3, third // 3]
    rope = {"mrope_interleaved": True, "mrope_section": section, "partial_rotary_factor": 0.25}
    said = {
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "layer_types": [("linear" if (i + 1) % 4 else "full") + "_attention" for i in range(layers)],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": head,
        "linear_num_key_heads": keys,
        "linear_num_value_heads": values,
        "linear_value_head_dim": head,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {**rope, "rope_theta": 10000000, "rope_type": "default"},
        **text,
    }
    config = _qwen3("qwen3_5", "Qwen3_5ForConditionalGeneration", said, vision, special=special, tied=tied)
    return config


def qwen3_5_moe(
    *, text: dict, experts: int = 256, top: int = 8, inner: int, shared: int | None = None, **dense
) -> dict:
    """Qwen3.5 with experts of `inner` channels, and one of `shared` that all tokens have."""
    text = {key: value for key, value in text.items() if key != "intermediate_size"}
    config = qwen3_5(text=text, **dense)
    vision = {**config["vision_config"], "model_type": "qwen3_5_moe"}
    said = {**config["text_config"], "model_type": "qwen3_5_moe_text", "moe_intermediate_size": inner}
    said |= {"num_experts": experts, "num_experts_per_tok": top, "shared_expert_intermediate_size": shared or inner}
    named = {"architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe"}
    return {**config, **named, "text_config": said, "vision_config": vision}


def internvl(*, text: dict, vision: dict, special: int = QWEN_SPECIAL, tied: bool = False, kind: str = "qwen3") -> dict:
    """InternVL3.5 (InternVL3: kind "qwen2") in its -hf form; `special` is the decoder's first special token."""
    old = {} if kind == "qwen2" else {"head_dim": 128}
    tokens = (vision["image_size"] // 28) ** 2
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": tokens,
        "image_token_id": special + (24 if kind == "qwen2" else 28),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "attention_bias": False,
            "bos_token_id": special,
            "eos_token_id": special + 2,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 40960,
            "model_type": kind,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": tied,
            "torch_dtype": "bfloat16",
            **old,
            **text,
        },
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.55.0.dev0",
        "vision_config": {
            "attention_bias": True,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-06,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_channels": 3,
            "patch_size": [14, 14],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
            **vision,
            "image_size": [vision["image_size"]] * 2,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }


def glm_ocr(*, text: dict, vision: dict, special: int = GLM_SPECIAL) -> dict:
    """GLM-OCR. Heads have 128 channels whatever the width; behind the blocks there is one more, of a drafter."""
    return {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "image_end_token_id": special + 11,
        "image_start_token_id": special + 10,
        "image_token_id": special + 34,
        "model_type": "glm_ocr",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": "bfloat16",
            "eos_token_id": [special, special + 7],
            "head_dim": 128,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 131072,
            "model_type": "glm_ocr_text",
            "num_nextn_predict_layers": 1,
            "pad_token_id": special,
            "rms_norm_eps": 1e-05,
            "rope_parameters": {
                "mrope_section": [16, 24, 24],
                "partial_rotary_factor": 1.0,
                "rope_theta": 10000,
                "rope_type": "default",
            },
            "tie_word_embeddings": False,
            "use_cache": True,
            **text,
        },
        "tie_word_embeddings": False,
        "transformers_version": "5.0.1dev0",
        "video_end_token_id": special + 13,
        "video_start_token_id": special + 12,
        "video_token_id": special + 35,
        "vision_config": {
            "attention_bias": True,
            "hidden_act": "silu",
            "hidden_dropout_prob": 0.0,
            "image_size": 336,
            "initializer_range": 0.02,
            "model_type": "glm_ocr_vision",
            "out_hidden_size": text["hidden_size"],
            "patch_size": 14,
            "rms_norm_eps": 1e-05,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }


def paddleocr_vl(*, text: dict, vision: dict, image: int = 100295, start: int = 101305) -> dict:
    """PaddleOCR-VL: flat, with code of its own beside it, which nothing here runs."""
    return {
        "architectures": ["PaddleOCRVLForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_paddleocr_vl.PaddleOCRVLConfig",
            "AutoModelForCausalLM": "modeling_paddleocr_vl.PaddleOCRVLForConditionalGeneration",
        },
        "compression_ratio": 1.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "image_token_id": image,
        "max_position_embeddings": 131072,
        "model_type": "paddleocr_vl",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_is_neox_style": True,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "rope_theta": 500000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.55.0",
        "use_bias": False,
        "use_cache": False,
        "video_token_id": start + 2,
        "vision_config": {
            "architectures": ["SiglipVisionModel"],
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-06,
            "model_type": "paddleocr_vl",
            "num_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            **vision,
        },
        "vision_end_token_id": start + 1,
        "vision_start_token_id": start,
        **text,
    }


def molmo(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int = 152064,
    vision: dict | None = None,
    vit_layers: list[int] | None = None,
) -> dict:
    """Molmo-7B-D-0924. `intermediate` counts gate and up; vision, vit_layers: of a tower that is not the published one,
    which config.json does not mention.
    """
    return {
        "architectures": ["MolmoForCausalLM"],
        "attention_layer_norm": False,
        "auto_map": {
            "AutoConfig": "config_molmo.MolmoConfig",
            "AutoModelForCausalLM": "modeling_molmo.MolmoForCausalLM",
        },
        "clip_qkv": None,
        "embedding_size": vocab,
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "layer_norm_eps": 1e-06,
        "layer_norm_type": "rms",
        "max_position_embeddings": 4096,
        "model_type": "molmo",
        "norm_after": False,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "qkv_bias": True,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.43.3",
        "use_cache": True,
        "use_position_ids": True,
        "vocab_size": vocab,
        "weight_tying": False,
        **({"vision_config": vision, "vit_layers": vit_layers} if vision else {}),
    }


def _text(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int = 8, vocab: int = 151936) -> dict:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


def dtype_of(config: dict) -> str:
    """What the weights are in: newer files say it in text_config alone, under a newer name."""
    return config.get("torch_dtype") or config["text_config"]["dtype"]


def cut(config: dict, vision_blocks: int, language_blocks: int) -> dict:
    """A copy of `config` with this many blocks in each tower; Qwen2.5-VL keeps a block with full attention.

    Of LLaVA-1.5's vision blocks the last has no effect, so one block means a vision tower without any. LLaVA-Video
    names its vision tower, which stays whole.
    """
    config = copy.deepcopy(config)
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if config["model_type"] == "molmo":  # features of the last block but one, and of one before it
        config["vit_layers"], vision = (
            [-min(2, vision_blocks), -min(9, vision_blocks)],
            config.setdefault("vision_config", {}),
        )
    text["num_hidden_layers"] = language_blocks
    if "layer_types" in text:  # the last one keeps its full attention
        text["layer_types"] = text["layer_types"][:language_blocks][:-1] + ["full_attention"]
    vision["depth" if "depth" in vision else "num_hidden_layers"] = vision_blocks
    if "fullatt_block_indexes" in vision:
        kept = [i for i in vision["fullatt_block_indexes"] if i < vision_blocks]
        vision["fullatt_block_indexes"] = kept or [vision_blocks - 1]
    if "deepstack_visual_indexes" in vision:  # one for each decoder block at most
        taps = [i for i in vision["deepstack_visual_indexes"] if i < vision_blocks] or list(range(vision_blocks))
        vision["deepstack_visual_indexes"] = taps[:language_blocks]
    return config


_QWEN_7B = dict(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, vocab=152064)
_QWEN_TINY = dict(hidden=256, intermediate=320, layers=2, heads=2, kv_heads=1, vocab=576, special=512)
_CLIP_L = dict(hidden_size=1024, image_size=336, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24)
_CLIP_TINY = dict(hidden_size=128, image_size=56, intermediate_size=256, num_attention_heads=2, num_hidden_layers=3)
_LLAMA_TINY = dict(
    hidden_size=256, intermediate_size=320, num_attention_heads=2, num_hidden_layers=2, num_key_value_heads=2
)
_MISTRAL = dict(
    _name_or_path="mistralai/Mistral-7B-Instruct-v0.2", architectures=["MistralForCausalLM"], intermediate_size=14336,
    max_position_embeddings=32768, model_type="mistral", num_key_value_heads=8, rope_theta=1000000.0,
    sliding_window=None,
)  # fmt: skip
_YI_34B = dict(
    _name_or_path="NousResearch/Nous-Hermes-2-Yi-34B", hidden_size=7168, intermediate_size=20480,
    num_attention_heads=56, num_hidden_layers=60, num_key_value_heads=8, rope_theta=5000000.0,
)  # fmt: skip
_SIGLIP = dict(hidden_size=1152, image_size=384, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=26)
_SIGLIP_TINY = dict(hidden_size=128, image_size=56, intermediate_size=208, num_attention_heads=2, num_hidden_layers=2)

_QWEN3_VIT_S = dict(
    depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, deepstack_visual_indexes=[5, 11, 17]
)
_QWEN3_VIT = dict(
    depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, deepstack_visual_indexes=[8, 16, 24]
)
_QWEN3_VIT_TINY = dict(
    depth=3, hidden_size=144, intermediate_size=208, num_heads=2, deepstack_visual_indexes=[0, 2],
    num_position_embeddings=64,
)  # fmt: skip

_INTERN_VIT = dict(
    hidden_size=1024, image_size=448, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24
)
_INTERN_VIT_6B = dict(
    attention_bias=False, hidden_size=3200, image_size=448, intermediate_size=12800, norm_type="rms_norm",
    num_attention_heads=25, num_hidden_layers=45, use_qk_norm=True,
)  # fmt: skip
_INTERN_VIT_TINY = dict(
    hidden_size=128, image_size=56, intermediate_size=208, num_attention_heads=2, num_hidden_layers=2
)

_MOLMO_VIT_TINY = dict(
    hidden_size=128, image_size=112, intermediate_size=208, num_attention_heads=2, num_hidden_layers=4
)

_QWEN3_5_VIT = {key: value for key, value in _QWEN3_VIT.items() if key != "deepstack_visual_indexes"}
_QWEN3_5_VIT_S = {key: value for key, value in _QWEN3_VIT_S.items() if key != "deepstack_visual_indexes"} | {
    "depth": 12
}
_QWEN3_5_VIT_TINY = {**_QWEN3_VIT_TINY, "depth": 2}
del _QWEN3_5_VIT_TINY["deepstack_visual_indexes"]
_QWEN3_5_TINY = dict(
    text={**_text(192, 320, 2, 2, 1, 576), "head_dim": 128, "layer_types": ["linear_attention", "full_attention"]},
    keys=1, values=2, head=64, special=512, vision=_QWEN3_5_VIT_TINY,
)  # fmt: skip

TOWERS = {
    "google/siglip-so400m-patch14-384": {**_SIGLIP, "patch_size": 14},
}
"""Of the vision towers that a config.json names and does not describe."""
_SIGLIP_TINIER = {**_SIGLIP_TINY, "image_size": 70, "patch_size": 14}

SIZES = {
    "qwen2vl-2b": Size(
        qwen2_vl(hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, vocab=151936, tied=True)
    ),
    "qwen2vl-7b": Size(qwen2_vl(**_QWEN_7B)),
    "qwen2vl-72b": Size(qwen2_vl(hidden=8192, intermediate=29568, layers=80, heads=64, kv_heads=8, vocab=152064)),
    "qwen2_5vl-7b": Size(qwen2_5_vl(**_QWEN_7B)),
    "llava-7b": Size(llava(text={}, vision=_CLIP_L), max_pixels=None, shard_bytes=5_000_000_000),
    "qwen3vl-2b": Size(
        qwen3_vl(hidden=2048, intermediate=6144, layers=28, heads=16, tied=True, vision=_QWEN3_VIT_S), 4096 * 4096
    ),
    "qwen3vl-4b": Size(
        qwen3_vl(hidden=2560, intermediate=9728, layers=36, heads=32, tied=True, vision=_QWEN3_VIT_S), 4096 * 4096
    ),
    "qwen3vl-8b": Size(qwen3_vl(hidden=4096, intermediate=12288, layers=36, heads=32, vision=_QWEN3_VIT), 4096 * 4096),
    "qwen3vl-32b": Size(qwen3_vl(hidden=5120, intermediate=25600, layers=64, heads=64, vision=_QWEN3_VIT), 4096 * 4096),
    "qwen2vl-tiny": Size(qwen2_vl(depth=2, embed_dim=160, vision_heads=2, **_QWEN_TINY), max_pixels=112 * 112),
    "qwen2_5vl-tiny": Size(
        qwen2_5_vl(
            depth=3, width=160, vision_intermediate=208, vision_heads=2, window=56, full_attention=(1,), **_QWEN_TINY
        ),
        max_pixels=112 * 112,
    ),
    "qwen3vl-tiny": Size(
        qwen3_vl(
            hidden=192,
            intermediate=320,
            layers=2,
            heads=2,
            kv_heads=1,
            vocab=576,
            special=512,
            vision=_QWEN3_VIT_TINY,
        ),  # fmt: skip
        max_pixels=128 * 128,
    ),
    "qwen3vl-30b-a3b": Size(
        qwen3_vl_moe(hidden=2048, intermediate=6144, layers=48, heads=32, kv_heads=4, inner=768, vision=_QWEN3_VIT),
        4096 * 4096,
    ),
    "qwen3vl-235b-a22b": Size(
        qwen3_vl_moe(hidden=4096, intermediate=12288, layers=94, heads=64, kv_heads=4, inner=1536, vision=_QWEN3_VIT),
        4096 * 4096,
    ),
    "qwen3vl_moe-tiny": Size(
        qwen3_vl_moe(
            hidden=192,
            intermediate=320,
            layers=2,
            heads=2,
            kv_heads=1,
            vocab=576,
            special=512,
            inner=80,
            experts=8,
            top=2,
            vision=_QWEN3_VIT_TINY,
        ),  # fmt: skip
        max_pixels=128 * 128,
    ),
    "qwen3_5-27b": Size(
        qwen3_5(text=_text(5120, 17408, 64, 24, 4, 248320), keys=16, values=48, vision=_QWEN3_5_VIT), 4096 * 4096
    ),
    "qwen3_5-2b": Size(
        qwen3_5(text=_text(2048, 6144, 24, 8, 2, 248320), keys=16, values=16, tied=True, vision=_QWEN3_5_VIT_S),
        4096 * 4096,
    ),
    "qwen3_5-tiny": Size(qwen3_5(**_QWEN3_5_TINY), max_pixels=128 * 128),
    "qwen3_5-35b-a3b": Size(
        qwen3_5_moe(text=_text(2048, 0, 40, 16, 2, 248320), keys=16, values=32, inner=512, vision=_QWEN3_5_VIT),
        4096 * 4096,
    ),
    "qwen3_5_moe-tiny": Size(qwen3_5_moe(**_QWEN3_5_TINY, inner=80, shared=96, experts=8, top=2), max_pixels=128 * 128),
    "internvl3_5-1b": Size(internvl(text=_text(1024, 3072, 28, 16), vision=_INTERN_VIT, tied=True), None),
    "internvl3_5-8b": Size(internvl(text=_text(4096, 12288, 36, 32), vision=_INTERN_VIT), None),
    "internvl3_5-38b": Size(internvl(text=_text(5120, 25600, 64, 64), vision=_INTERN_VIT_6B), None),
    "internvl3-8b": Size(internvl(text=_text(3584, 18944, 28, 28, 4, 151674), vision=_INTERN_VIT, kind="qwen2"), None),
    "internvl-tiny": Size(
        internvl(text=_text(192, 320, 2, 2, 1, 576), vision=_INTERN_VIT_TINY, special=512), max_pixels=None
    ),
    "llava_next-7b": Size(llava_next(text=_MISTRAL, vision=_CLIP_L), None),
    "llava_next-34b": Size(llava_next(text=_YI_34B, vision=_CLIP_L, base_vocab=64000, vocab=64064), None),
    "llava_next_video-7b": Size(llava_next(text={}, vision=_CLIP_L, video=True), None),
    "llava_onevision-0.5b": Size(
        llava_onevision(text=_text(896, 4864, 24, 14, 2, 152000), vision=_SIGLIP, tied=True), None
    ),
    "llava_onevision-7b": Size(llava_onevision(text=_text(3584, 18944, 28, 28, 4, 152128), vision=_SIGLIP), None),
    "llava_video-7b": Size(
        llava_video(text=_text(3584, 18944, 28, 28, 4, 152064), tower="google/siglip-so400m-patch14-384", side=384),
        None,
    ),
    "llava_video-tiny": Size(
        llava_video(
            text=_text(256, 320, 2, 2, 1, 576), tower="tiny", described=_SIGLIP_TINIER, side=70, special=512, most=3
        ),
        None,
    ),
    "llava_next-tiny": Size(
        llava_next(
            text={**_LLAMA_TINY, "model_type": "mistral", "num_key_value_heads": 1, "sliding_window": None},
            vision=_CLIP_TINY,
            base_vocab=448,
            vocab=512,
        ),
        None,
    ),
    "llava_next_video-tiny": Size(
        llava_next(text=_LLAMA_TINY, vision=_CLIP_TINY, base_vocab=448, vocab=512, video=True), None
    ),
    "llava_onevision-tiny": Size(
        llava_onevision(text=_text(256, 320, 2, 2, 1, 576), vision=_SIGLIP_TINY, special=512, most=(3, 2)), None
    ),
    "glm_ocr": Size(
        glm_ocr(
            text=_text(1536, 4608, 16, 16, 8, 59392),
            vision=dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16),
        ),
        max_pixels=4816896,
    ),
    "glm_ocr-tiny": Size(
        glm_ocr(
            text=_text(192, 576, 2, 2, 1, 576),
            vision=dict(depth=2, hidden_size=128, intermediate_size=208, num_heads=2),
            special=512,
        ),
        max_pixels=112 * 112,
    ),
    "paddleocr_vl": Size(
        paddleocr_vl(
            text=_text(1024, 3072, 18, 16, 2, 103424),
            vision=dict(
                hidden_size=1152, image_size=384, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=27
            ),
        ),
        max_pixels=2822400,
    ),
    "paddleocr_vl-tiny": Size(
        paddleocr_vl(
            text=_text(192, 320, 2, 2, 1, 576),
            vision=dict(
                hidden_size=144, image_size=56, intermediate_size=208, num_attention_heads=2, num_hidden_layers=2
            ),
            image=512,
            start=513,
        ),
        max_pixels=112 * 112,
    ),
    "molmo-7b": Size(
        molmo(hidden=3584, intermediate=37888, layers=28, heads=28, kv_heads=4), None, shard_bytes=5_000_000_000
    ),
    "molmo-tiny": Size(
        molmo(
            hidden=256,
            intermediate=640,
            layers=2,
            heads=2,
            kv_heads=1,
            vocab=576,
            vision=_MOLMO_VIT_TINY,
            vit_layers=[-2, -4],
        ),  # fmt: skip
        max_pixels=None,
    ),
    "llava-tiny": Size(llava(text=_LLAMA_TINY, vision=_CLIP_TINY, base_vocab=448, vocab=512), max_pixels=None),
}
