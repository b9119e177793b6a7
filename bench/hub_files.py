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
MOLMO_TEMPLATE = """\
{%- for message in messages -%}{{ ' ' + message['role'] | capitalize + ': ' + message['content'] }}{%- endfor -%}
{%- if add_generation_prompt %}{{ ' Assistant:' }}{% endif -%}
"""
LLAVA_TEMPLATE = """\
{%- for message in messages -%}
{{- message.role | upper + ': ' -}}
{%- for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor -%}
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


def _llava(config: dict, old: bool) -> dict[str, object]:
    merges = _merges([prefix + word for prefix in ("", "▁") for word in [*WORDS, "USER:", "ASSISTANT:"]])
    letters = sorted({character for pair in merges for character in pair[0][:1] + pair[1]})
    image, pad = config["image_token_index"], config["pad_token_id"]
    specials = ["<unk>", "<s>", "</s>"]
    vocab = _fill([*specials, *(f"<0x{b:02X}>" for b in range(256)), *letters], merges, image)
    added = {**{i: _added(t) for i, t in enumerate(specials)}, image: _added("<image>"), pad: _added("<pad>")}
    side, patch = config["vision_config"]["image_size"], config["vision_config"]["patch_size"]
    keys = {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": patch,
        "vision_feature_select_strategy": "default",
    }
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
            "processor_class": "LlavaProcessor",
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
        "added_tokens.json": {"<image>": image, "<pad>": pad},
        "chat_template.json": {"chat_template": LLAVA_TEMPLATE},
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
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "LlavaProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": side},
        },
        "processor_config.json": ({} if old else keys) | {"processor_class": "LlavaProcessor"},
    }


def write(directory: Path, size: Size, *, old_llava: bool = False) -> None:
    """Writes every file of the checkpoint that is not a weight, config.json last.

    old_llava: processor_config.json as in the revisions of transformers 4.37's days, which do not say patch_size,
    num_additional_image_tokens or vision_feature_select_strategy.
    """
    config = size.config
    if config["model_type"] == "llava":
        files = _llava(config, old_llava)
    elif config["model_type"] == "internvl":
        files = _internvl(config)
    elif config["model_type"] == "molmo":
        files = _molmo(config)
    else:
        files = (_qwen3 if config["model_type"].startswith("qwen3") else _qwen)(config, size.max_pixels)
    for name, content in {**files, "config.json": config}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
