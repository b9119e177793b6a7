"""The files beside the weights of a hub checkpoint: configs, a working tokenizer, chat template, image processor.

The tokenizers are small but stand where the real ones stand: special tokens carry the ids that config.json names, and
the vocabulary below them is filled with tokens that no text reaches. Both are byte-complete BPE, so that any text can
be encoded, with merges for the few words of WORDS only.

    Qwen     256 byte tokens, merges, <|unused_n|> ..., then fourteen special tokens from <|endoftext|> on
    LLaMA    <unk> <s> </s>, <0x00> to <0xFF>, characters and merges, unused, then <image> and <pad>

Left out: LLaMA's tokenizer.model (sentencepiece; nothing here reads it) and Qwen's pre-tokenizing pattern for numbers
and contractions, for which GPT-2's stands.
"""

import json
from pathlib import Path

from bench.hub_config import MOLMO_VISION, Size

WORDS = "a the of is in this image photo what describe detail text user assistant system you are helpful".split()
QWEN_SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
QWEN3_SPECIALS = [
    *QWEN_SPECIALS,
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
]
INTERN_TOKENS = [
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<video>",
]
GLM_SPECIALS = [
    "<|endoftext|>",
    *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"),
    *("<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "/nothink", "<think>", "</think>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<|begin_of_box|>", "<|end_of_box|>"),
    *("<|image|>", "<|video|>"),
]
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]
MOLMO_TOKENS = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>"]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

QWEN_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\
{% endif -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}\
{% elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}\
{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
QWEN3_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}\
{% elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}\
{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
INTERN_TEMPLATE = QWEN3_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\\n").replace(
    "<|vision_start|><|video_pad|><|vision_end|>", "<video>\\n"
)
TEXT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ONEVISION_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + ' ' -}}
{%- for part in message.content if part.type == 'image' %}{{ '<image>' }}{% endfor -%}
{%- for part in message.content if part.type == 'video' %}{{ '<video>' }}{% endfor -%}
{%- for part in message.content if part.type == 'text' %}{{ '\\n' + part.text }}{% endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
MISTRAL_TEMPLATE = """\
{%- for message in messages -%}
{{- '[INST] ' if message.role == 'user' -}}
{%- for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor -%}
{%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor -%}
{{- ' [/INST]' if message.role == 'user' else '</s>' -}}
{%- endfor -%}
"""
GLM_TEMPLATE = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' -}}
{%- if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}\
{% elif part.type == 'video' %}{{ '<|begin_of_video|><|video|><|end_of_video|>' }}\
{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}
"""
PADDLE_TEMPLATE = """\
{{- '<|begin_of_sentence|>' -}}
{%- for message in messages -%}
{%- if message.role == 'system' %}{{ message.content[0].text + '\\n' }}{% else -%}
{{- message.role.capitalize().replace('Assistant', 'Assistant:\\n').replace('User', 'User: ') -}}
{%- for part in message.content if part.type == 'image' %}{{ '<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>' }}\
{% endfor -%}
{%- for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor -%}
{{- '</s>' if message.role == 'assistant' else '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif -%}
"""
MOLMO_TEMPLATE = """\
{%- for message in messages -%}{{ ' ' + message['role'] | capitalize + ': ' + message['content'] }}{%- endfor -%}
{%- if add_generation_prompt %}{{ ' Assistant:' }}{% endif -%}
"""
LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{{- message.role | upper + ': ' -}}
{%- for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor -%}
{%- for part in message.content if part.type == 'video' %}{{ '<video>\\n' }}{% endfor -%}
{%- for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that build each word from the left, one character at a time, without repeats."""
    return list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))


def _byte_characters() -> list[str]:
    """The printable character that stands for each of the 256 bytes in a byte-level BPE (GPT-2's convention)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def _fill(vocab: list[str], merges: list[tuple[str, str]], size: int) -> dict[str, int]:
    """token -> id for the first `size` ids: `vocab`, what the merges make, then tokens that nothing makes."""
    found = list(dict.fromkeys([*vocab, *(left + right for left, right in merges)]))
    if len(found) > size:
        raise ValueError(f"{len(found)} tokens do not fit below the first special token, {size}")
    return {token: i for i, token in enumerate(found + [f"<|unused_{i}|>" for i in range(len(found), size)])}


def _added(token: str) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": token, **flags}


def _tokenizer_json(added: dict[int, dict], vocab: dict[str, int], merges: list[tuple[str, str]], **parts) -> dict:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    model |= parts.pop("model", {}) | {"vocab": vocab, "merges": [" ".join(pair) for pair in merges]}
    listed = [{"id": i, **token} for i, token in added.items()]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": listed, **parts, "model": model}


def _qwen_tokenizer(first: int, specials: list[str], template: str, length: int) -> dict[str, object]:
    """Byte-level BPE with these special tokens from the id `first` on."""
    bytes_ = _byte_characters()
    merges = _merges([prefix + word for prefix in ("", "Ġ") for word in WORDS])
    vocab = _fill(bytes_, merges, first)
    added = {first + i: _added(token) for i, token in enumerate(specials)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "vocab.json": vocab,
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "tokenizer.json": _tokenizer_json(
            added, vocab, merges, normalizer={"type": "NFC"}, pre_tokenizer=level, post_processor=level, decoder=level
        ),
        "tokenizer_config.json": {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(i): token for i, token in added.items()},
            "additional_special_tokens": specials[1:],
            "bos_token": None,
            "chat_template": template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": length,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
        "chat_template.json": {"chat_template": template},
    }


def _qwen(config: dict, max_pixels: int) -> dict[str, object]:
    first = config["bos_token_id"]
    processor = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}[config["model_type"]]
    return {
        **_qwen_tokenizer(first, QWEN_SPECIALS, QWEN_TEMPLATE, config["max_position_embeddings"]),
        "generation_config.json": {
            "bos_token_id": first,
            "do_sample": True,
            "eos_token_id": [first + 2, first],
            "pad_token_id": first,
            "temperature": 0.01,
            "top_k": 1,
            "top_p": 0.001,
            "transformers_version": "4.37.0",
        },
        "preprocessor_config.json": {
            "min_pixels": min(3136, max_pixels),
            "max_pixels": max_pixels,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": processor,
        },
    }


def _qwen3(config: dict, max_pixels: int) -> dict[str, object]:
    """Qwen3-VL and Qwen3.5: patches of 16 pixels, another mean; a size of areas in the place of two limits."""
    first = config["text_config"]["bos_token_id"]
    return {
        **_qwen_tokenizer(first, QWEN_SPECIALS, QWEN3_TEMPLATE, config["text_config"]["max_position_embeddings"]),
        "generation_config.json": {
            "bos_token_id": first,
            "do_sample": True,
            "eos_token_id": [first + 2, first],
            "pad_token_id": first,
            "temperature": 0.7,
            "top_k": 20,
            "top_p": 0.8,
            "transformers_version": "4.56.0",
        },
        "preprocessor_config.json": {
            "size": {"longest_edge": max_pixels, "shortest_edge": min(65536, max_pixels // 4)},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "processor_class": "Qwen3VLProcessor",
        },
    }


def _glm_ocr(config: dict, max_pixels: int) -> dict[str, object]:
    """GLM-OCR: limits of two frames' areas, the chat template in a file of its own."""
    text = config["text_config"]
    first = text["pad_token_id"]
    files = _qwen_tokenizer(first, GLM_SPECIALS, GLM_TEMPLATE, text["max_position_embeddings"])
    said = {
        **files["tokenizer_config.json"],
        "eos_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }  # type: ignore
    del said["chat_template"]
    return {
        "tokenizer.json": files["tokenizer.json"],
        "tokenizer_config.json": {**said, "processor_class": "Glm46VProcessor"},
        "chat_template.jinja": GLM_TEMPLATE,
        "generation_config.json": {
            "_from_model_config": True,
            "do_sample": False,
            "eos_token_id": text["eos_token_id"],
            "pad_token_id": first,
            "transformers_version": "5.0.1dev0",
        },
        "preprocessor_config.json": {
            "size": {"shortest_edge": min(12544, max_pixels // 2), "longest_edge": 2 * max_pixels},
            "do_rescale": True,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "Glm46VImageProcessor",
            "processor_class": "Glm46VProcessor",
        },
    }


def _internvl(config: dict) -> dict[str, object]:
    text, side = config["text_config"], config["vision_config"]["image_size"][0]
    specials = (
        QWEN_SPECIALS + QWEN3_SPECIALS[14:22] if text["model_type"] == "qwen2" else QWEN3_SPECIALS
    ) + INTERN_TOKENS
    files = _qwen_tokenizer(text["bos_token_id"], specials, INTERN_TEMPLATE, text["max_position_embeddings"])
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    said = {**files["tokenizer_config.json"], "extra_special_tokens": {**names, "video_token": "<video>"}}  # type: ignore
    return {
        **files,
        "tokenizer_config.json": {**said, "processor_class": "InternVLProcessor"},
        "generation_config.json": {
            "bos_token_id": text["bos_token_id"],
            "eos_token_id": text["eos_token_id"],
            "pad_token_id": text["bos_token_id"],
            "transformers_version": "4.55.0.dev0",
        },
        "preprocessor_config.json": {
            "crop_to_patches": False,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": IMAGENET_MEAN,
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_std": IMAGENET_STD,
            "max_patches": 12,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": side, "width": side},
        },
        "processor_config.json": {
            "image_seq_length": config["image_seq_length"],
            "processor_class": "InternVLProcessor",
        },
    }


def _molmo(config: dict) -> dict[str, object]:
    """Molmo-7B-D-0924, whose model is code that the checkpoint brings: bench/molmo, written for this project."""
    words, own = config["embedding_size"], Path(__file__).parent / "molmo"
    first = 151643 if words == 152064 else words - 64
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    specials += [f"|<EXTRA_TOKENS_{i}>|" for i in range(words - first - len(specials))] + MOLMO_TOKENS
    files = _qwen_tokenizer(first, specials, MOLMO_TEMPLATE, 32768)
    said: dict = {**files["tokenizer_config.json"], "eos_token": "<|endoftext|>"}  # type: ignore[dict-item]
    del files["chat_template.json"]
    vision = {**MOLMO_VISION, **config.get("vision_config", {})}
    side, patch = vision["image_size"], vision["patch_size"]
    features, tiny = side // patch // 2, side != MOLMO_VISION["image_size"]
    return {
        **files,
        "tokenizer_config.json": {**said, "auto_map": {"AutoProcessor": "preprocessing_molmo.MolmoProcessor"}},
        "generation_config.json": {"_from_model_config": True, "transformers_version": "4.43.3"},
        "preprocessor_config.json": {
            "auto_map": {
                "AutoImageProcessor": "image_preprocessing_molmo.MolmoImageProcessor",
                "AutoProcessor": "preprocessing_molmo.MolmoProcessor",
            },
            "base_image_input_size": [side, side],
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_padding_mask": True,
            "image_patch_size": patch,
            "image_processor_type": "MolmoImageProcessor",
            "image_std": CLIP_STD,
            "image_token_length_h": features,
            "image_token_length_w": features,
            "max_crops": 4 if tiny else 12,
            "overlap_margins": [2, 2] if tiny else [4, 4],
            "processor_class": "MolmoProcessor",
        },
        "processor_config.json": {
            "auto_map": {"AutoProcessor": "preprocessing_molmo.MolmoProcessor"},
            "processor_class": "MolmoProcessor",
        },
        **{name: (own / name).read_text(encoding="utf-8") for name in ("config_molmo.py", "modeling_molmo.py")},
    }


def _llama_vocabulary(words: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens of a byte-complete BPE as LLaMA has it, `size` of them, and merges for these words besides WORDS."""
    merges = _merges([prefix + word for prefix in ("", "▁") for word in [*WORDS, *words]])
    letters = sorted({character for pair in merges for character in pair[0][:1] + pair[1]})
    return _fill([*LLAMA_SPECIALS, *(f"<0x{b:02X}>" for b in range(256)), *letters], merges, size), merges


def _paddleocr_vl(config: dict, max_pixels: int) -> dict[str, object]:
    """PaddleOCR-VL: LLaMA's tokenizer without its <s> in front, and what is special in two places."""
    image, start = config["image_token_id"], config["vision_start_token_id"]
    begin = image - 22
    vocab, merges = _llama_vocabulary(["User:", "Assistant:"], begin)
    added = {number: _added(token) for number, token in enumerate(LLAMA_SPECIALS)}
    added |= {begin: _added("<|begin_of_sentence|>"), image: _added("<|IMAGE_PLACEHOLDER|>")}
    names = ("<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>")
    added |= {start + number: _added(token) for number, token in enumerate(names)}
    vocab |= {f"<|unused_{number}|>": number for number in range(begin, start) if number not in added}
    vocab |= {token["content"]: number for number, token in added.items()}  # or they were numbered from the end on
    return {
        "tokenizer.json": _tokenizer_json(
            added,
            vocab,
            merges,
            normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            pre_tokenizer=None,
            post_processor=None,
            decoder={
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        ),
        "tokenizer_config.json": {
            "add_bos_token": False,
            "add_eos_token": False,
            "added_tokens_decoder": {str(number): token for number, token in added.items()},
            "additional_special_tokens": [token["content"] for token in list(added.values())[4:]],
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "cls_token": "<|begin_of_sentence|>",
            "eos_token": "</s>",
            "image_token": "<|IMAGE_PLACEHOLDER|>",
            "legacy": False,
            "model_max_length": config["max_position_embeddings"],
            "pad_token": "<unk>",
            "processor_class": "PaddleOCRVLProcessor",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
        "chat_template.jinja": PADDLE_TEMPLATE,
        "generation_config.json": {"eos_token_id": 2, "transformers_version": "4.55.0", "use_cache": False},
        "preprocessor_config.json": {
            "auto_map": {"AutoImageProcessor": "image_processing_paddleocr_vl.PaddleOCRVLImageProcessor"},
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "max_pixels": max_pixels,
            "merge_size": 2,
            "min_pixels": min(147384, max_pixels // 4),
            "patch_size": 14,
            "processor_class": "PaddleOCRVLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "temporal_patch_size": 1,
        },
    }


def _llava(config: dict, old: bool) -> dict[str, object]:
    last = {"<video>": config.get("video_token_index"), "<image>": config["image_token_index"]}
    last = {token: number for token, number in last.items() if number} | {"<pad>": config["pad_token_id"]}
    mistral = config["text_config"]["model_type"] == "mistral"
    pad, template = last["<pad>"], MISTRAL_TEMPLATE if mistral else LLAVA_TEMPLATE
    specials = LLAMA_SPECIALS
    vocab, merges = _llama_vocabulary(["USER:", "ASSISTANT:"], min(last.values()))
    added = {i: _added(t) for i, t in enumerate(specials)} | {i: _added(t) for t, i in last.items()}
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    keys = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
    }
    name = {"llava": "Llava", "llava_next": "LlavaNext", "llava_next_video": "LlavaNextVideo"}[config["model_type"]]
    processor, grid = f"{name}Processor", config.get("image_grid_pinpoints")
    tiles = {"aspect_ratio_setting": "anyres", "do_pad": True, "image_grid_pinpoints": grid} if grid else {}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "tokenizer.json": _tokenizer_json(
            added,
            vocab,
            merges,
            normalizer={
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            pre_tokenizer=None,
            post_processor={
                "type": "TemplateProcessing",
                "single": single,
                "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            decoder={
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            model={"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
        ),
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": {str(i): token for i, token in added.items()},
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": False,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": "<pad>",
            "padding_side": "left",
            "processor_class": processor,
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        "special_tokens_map.json": {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
        "added_tokens.json": last,
        "chat_template.json": {"chat_template": template},
        "generation_config.json": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": pad,
            "transformers_version": "4.36.0.dev0",
        },
        "preprocessor_config.json": {
            "crop_size": {"height": side, "width": side},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "image_processor_type": "LlavaNextImageProcessor" if tiles else "CLIPImageProcessor",
            "processor_class": processor,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": side},
            **tiles,
        },
        "processor_config.json": ({} if old else keys) | {"processor_class": processor},
    }


def _llava_onevision(config: dict) -> dict[str, object]:
    text, side = config["text_config"], config["vision_config"]["image_size"]
    specials, processor = [*QWEN_SPECIALS[:3], "<image>", "<video>"], "LlavaOnevisionProcessor"
    files = _qwen_tokenizer(text["bos_token_id"], specials, ONEVISION_TEMPLATE, text["max_position_embeddings"])
    return {
        **files,
        "generation_config.json": {
            "bos_token_id": text["bos_token_id"],
            "do_sample": True,
            "eos_token_id": [text["eos_token_id"], text["bos_token_id"]],
            "pad_token_id": text["bos_token_id"],
            "top_k": 20,
            "transformers_version": "4.45.0.dev0",
        },
        "preprocessor_config.json": {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_grid_pinpoints": config["image_grid_pinpoints"],
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": processor,
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": side, "width": side},
        },
        "processor_config.json": {
            "image_token": "<image>",
            "num_image_tokens": (side // config["vision_config"]["patch_size"]) ** 2,
            "processor_class": processor,
            "video_token": "<video>",
            "vision_aspect_ratio": config["vision_aspect_ratio"],
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        },
    }


def _llava_video(config: dict) -> dict[str, object]:
    """No processor's file, and a language model's tokenizer, which knows no token for images."""
    specials = QWEN_SPECIALS[:3]
    files = _qwen_tokenizer(config["bos_token_id"], specials, TEXT_TEMPLATE, config["max_position_embeddings"])
    del files["chat_template.json"]
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"], "do_sample": True}
    return {**files, "generation_config.json": {**generation, "transformers_version": "4.40.0.dev0"}}


def write(directory: Path, size: Size, *, old_llava: bool = False) -> None:
    """Writes every file of the checkpoint that is not a weight, config.json last.

    old_llava: processor_config.json as in the revisions of transformers 4.37's days, which do not say patch_size,
    num_additional_image_tokens or vision_feature_select_strategy.
    """
    config = size.config
    if config["model_type"] in ("llava", "llava_next", "llava_next_video"):
        files = _llava(config, old_llava)
    elif config["model_type"] == "llava_onevision":
        files = _llava_onevision(config)
    elif config["model_type"] == "llava_qwen":
        files = _llava_video(config)
    elif config["model_type"] == "internvl":
        files = _internvl(config)
    elif config["model_type"] == "glm_ocr":
        files = _glm_ocr(config, size.max_pixels)
    elif config["model_type"] == "paddleocr_vl":
        files = _paddleocr_vl(config, size.max_pixels)
    elif config["model_type"] == "molmo":
        files = _molmo(config)
    else:
        files = (_qwen3 if config["model_type"].startswith("qwen3") else _qwen)(config, size.max_pixels)
    for name, content in {**files, "config.json": config}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
