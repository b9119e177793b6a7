"""The two example models as hub directories: sizes, tokenizer, chat template, processor files, and weights under the
hub's names.

Both are as small as the real shapes allow: the Qwen2-VL keeps vision heads of 80 and language heads of 128 channels,
grouped-query attention and mRoPE; the LLaVA keeps CLIP's class token, `vision_feature_layer` -2 (its last vision block
has no effect, as in LLaVA-1.5) and a LLaMA without biases. config.json is laid out as on the hub (flat for Qwen2-VL),
not as transformers 5 would save it.

The tokenizer is byte-level BPE whose merges are learned from the words of the prompts and the colour names alone: these
are one token each, and the characters of an answer are too. A text of other words is spelled out in bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import data

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
WORDS = " ".join(prompt for prompt, _ in data.QUESTIONS)
CORPUS = [WORDS, *data.COLOURS, "user\nassistant\nsystem\nYou are a helpful assistant."]
SPLIT = (  # Qwen2's
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN2VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %} {% else %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """What tells one family from the other in this folder."""

    name: str
    dtype: str
    specials: tuple[str, ...]  # their ids follow the BPE vocabulary
    begin: str | None  # put before every text by the tokenizer
    end: str  # ends an answer
    pad: str
    image: str  # stands for one visual token
    tokenizer_class: str
    template: str
    rename: tuple[tuple[str, str], ...]  # module prefix -> prefix on the hub; first match wins


QWEN2VL = Kind(
    name="qwen2vl",
    dtype="bfloat16",
    specials=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    begin=None,
    end="<|im_end|>",
    pad="<|endoftext|>",
    image="<|image_pad|>",
    tokenizer_class="Qwen2Tokenizer",
    template=QWEN2VL_TEMPLATE,
    rename=(("model.language_model.", "model."), ("model.visual.", "visual."), ("lm_head.", "lm_head.")),
)
LLAVA = Kind(
    name="llava",
    dtype="float16",
    specials=("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    begin="<s>",
    end="</s>",
    pad="<pad>",
    image="<image>",
    tokenizer_class="PreTrainedTokenizerFast",
    template=LLAVA_TEMPLATE,
    rename=(
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),  # as transformers 4 calls it
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
)
KINDS = {kind.name: kind for kind in (QWEN2VL, LLAVA)}


def make_tokenizer(kind: Kind):
    """A `tokenizers.Tokenizer`: 256 bytes, the merges that CORPUS teaches, then kind.specials."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in kind.specials])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if kind.begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{kind.begin} $A",
            pair=f"{kind.begin} $A {kind.begin} $B",
            special_tokens=[(kind.begin, tokenizer.token_to_id(kind.begin))],
        )
    return tokenizer


def qwen2vl_config(token_id, vocab_size: int) -> dict:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "bfloat16",
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_token_id": token_id("<|vision_pad|>"),
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "sliding_window": 2048,
        "use_sliding_window": False,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": vocab_size,
        "vision_config": {
            "depth": 4,
            "embed_dim": 160,
            "num_heads": 2,
            "mlp_ratio": 4,
            "hidden_size": 256,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "hidden_act": "quick_gelu",
            "model_type": "qwen2_vl",
        },
    }


def llava_config(token_id, vocab_size: int) -> dict:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "float16",
        "ignore_index": -100,
        "image_token_index": token_id("<image>"),
        "pad_token_id": token_id("<pad>"),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vocab_size": vocab_size,
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "torch_dtype": "float16",
            "bos_token_id": token_id("<s>"),
            "eos_token_id": token_id("</s>"),
            "pad_token_id": token_id("<pad>"),
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "vocab_size": vocab_size,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 5,
            "num_attention_heads": 2,
            "image_size": 84,
            "patch_size": 14,
            "projection_dim": 160,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-05,
        },
    }


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_side_files(kind: Kind, folder: Path) -> None:
    """Everything but the weights: config, tokenizer, chat template, processor files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(kind)
    vocab_size = -(-tokenizer.get_vocab_size() // 16) * 16
    tokenizer.save(str(folder / "tokenizer.json"), pretty=True)
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt

    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in kind.specials
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": kind.tokenizer_class,
            "added_tokens_decoder": added,
            "add_prefix_space": False,
            "bos_token": kind.begin,
            "eos_token": kind.end,
            "pad_token": kind.pad,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "errors": "replace",
            "model_max_length": 2048,
            "chat_template": kind.template,
            "model_input_names": ["input_ids", "attention_mask"],  # else transformers 4 adds token_type_ids
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": kind.template})
    write_json(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "bos_token_id": tokenizer.token_to_id(kind.begin or kind.pad),
            "eos_token_id": tokenizer.token_to_id(kind.end),
            "pad_token_id": tokenizer.token_to_id(kind.pad),
            "max_new_tokens": 16,
        },
    )
    picture = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    if kind is QWEN2VL:
        write_json(folder / "config.json", qwen2vl_config(tokenizer.token_to_id, vocab_size))
        write_json(
            folder / "preprocessor_config.json",
            picture
            | {
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2VLProcessor",
                "min_pixels": 3136,
                "max_pixels": 12544,
                "patch_size": 14,
                "merge_size": 2,
                "temporal_patch_size": 2,
            },
        )
    else:
        config = llava_config(tokenizer.token_to_id, vocab_size)
        side = config["vision_config"]["image_size"]
        write_json(folder / "config.json", config)
        write_json(
            folder / "preprocessor_config.json",
            picture
            | {
                "image_processor_type": "CLIPImageProcessor",
                "processor_class": "LlavaProcessor",
                "do_center_crop": False,
                "size": {"height": side, "width": side},
                "crop_size": {"height": side, "width": side},
            },
        )
        write_json(
            folder / "processor_config.json",
            {
                "processor_class": "LlavaProcessor",
                "image_token": "<image>",
                "num_additional_image_tokens": 1,
                "patch_size": config["vision_config"]["patch_size"],
                "vision_feature_select_strategy": "default",
            },
        )


def hub_name(kind: Kind, module_name: str) -> str:
    for inside, outside in kind.rename:
        if module_name.startswith(inside):
            return outside + module_name[len(inside) :]
    raise KeyError(f"{module_name}: no hub name is known for it")


def write_weights(tensors: dict, folder: Path) -> None:
    """`tensors` under hub names to model.safetensors."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
