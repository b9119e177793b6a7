"""What vLLM-Ascend looks up in quant_model_description.json, as data: how it renames the description's keys, which
modules of a model it asks for, and what it does with the answer. A key that is not found is a KeyError at start.

Read in vllm-ascend 182b75ea of August 2026, vllm_ascend/quantization/modelslim_config.py (get_linear_quant_type,
is_layer_skipped_ascend, quant_prefix_mapper, packed_modules_model_mapping), and in the model classes of vLLM 0.32.0
(hf_to_vllm_mapper, and the LinearBase, VocabParallelEmbedding and fused MoE layers that each model builds with a
quant_config). Of GLM-OCR and PaddleOCR-VL also in vLLM 0.27.1, which that vllm-ascend is for: the table of packed
modules there changes while the model is built (model_loader.utils.configure_quant_config, interfaces.SupportsQuant).
"""

import json
from collections.abc import Iterator
from pathlib import Path

QKV, GATE_UP = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}, {"gate_up_proj": ["gate_proj", "up_proj"]}
EXPERTS = {"experts": ["experts.0.gate_proj", "experts.0.up_proj", "experts.0.down_proj"]}
DELTA = {"in_proj_qkvz": ["in_proj_qkv", "in_proj_z"], "in_proj_ba": ["in_proj_b", "in_proj_a"]}
PACKED = {
    "qwen2_vl": QKV | GATE_UP,
    "qwen2_5_vl": QKV | GATE_UP,
    "llava": QKV | GATE_UP,
    "qwen3_vl": QKV | GATE_UP,
    "qwen3_vl_moe": QKV | GATE_UP | EXPERTS,
    "qwen3_5": QKV | GATE_UP | DELTA,
    "qwen3_5_moe": QKV | GATE_UP | DELTA | EXPERTS,
    "internvl": QKV | GATE_UP,
    "llava_next": QKV | GATE_UP,
    "llava_next_video": QKV | GATE_UP,
    "llava_onevision": QKV | GATE_UP,
    "glm_ocr": QKV | GATE_UP,
    "paddleocr_vl": QKV | GATE_UP,
    "molmo": {"qkv_proj": ["qkv_proj"], "gate_up_proj": ["gate_up_proj"], "merged_linear": ["gate_proj", "up_proj"]},
}
"""model_type -> what is packed into one: the plugin's table where it has the model, else the class's own."""

QWEN2_MAPPER = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
QWEN3_MAPPER = {
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
}
LLAVA_MAPPER = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}
MAPPERS: dict[str, dict[str, str | None]] = {
    "qwen2_vl": QWEN2_MAPPER,
    "qwen2_5_vl": QWEN2_MAPPER,
    "llava": LLAVA_MAPPER,
    "qwen3_vl": QWEN3_MAPPER,
    "qwen3_vl_moe": QWEN3_MAPPER,
    "qwen3_5": {**QWEN3_MAPPER, "mtp.": None},
    "qwen3_5_moe": {**QWEN3_MAPPER, "mtp.": None},
    "internvl": LLAVA_MAPPER,
    "llava_next": {**LLAVA_MAPPER, "model.image_newline": "image_newline"},
    "llava_next_video": {**LLAVA_MAPPER, "model.image_newline": "image_newline"},
    "llava_onevision": {**LLAVA_MAPPER, "model.image_newline": "image_newline"},
    "glm_ocr": {
        "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
        "model.visual.": "visual.",
    },
    "paddleocr_vl": {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
    "molmo": {
        "model.vision_backbone.": "vision_backbone.",
        "model.transformer.blocks.": "model.layers.",
        "model.transformer.ln_f.": "model.norm.",
        "model.transformer.mlp.down_proj.": "lm_head.",
    },
}
"""model_type -> prefix in the checkpoint -> prefix of the module; None: the key is dropped."""
WITHIN = {
    "model.transformer.|model.vision_backbone.": {
        "image_projector.w1.": "image_projector.gate_proj.",
        "image_projector.w3.": "image_projector.up_proj.",
        "image_projector.w2.": "image_projector.down_proj.",
        "att_proj": "self_attn.qkv_proj",
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_up_proj",
        "ff_out": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
    }
}
"""Prefixes of Molmo's keys, which no other model has -> what is replaced anywhere in them before prefixes are. (In
vLLM f06ae651 of 2025 molmo.py gave its linears no prefix: there all of them are built float.)
"""
DRAFTER: dict[str, dict[str, str | None]] = {"model.language_model.": "model.", "mtp.": "mtp."}
"""The same of the drafter, a model of its own (qwen3_5_mtp.py) that reads the mtp tensors of the same directory."""


def renamed(description: dict[str, str], mapper: dict[str, str | None]) -> dict[str, str]:
    """The description under the modules' names: the first prefix that fits is replaced."""
    found = {}
    for key, word in description.items():
        for prefixes, parts in WITHIN.items():
            if key.startswith(tuple(prefixes.split("|"))):
                for part, new_part in parts.items():
                    key = key.replace(part, new_part, 1)
        old = next((old for old in mapper if key.startswith(old)), None)
        new = mapper[old] if old is not None else None
        if old is None:
            found[key] = word
        elif new is not None:
            found[new + key[len(old) :]] = word
    return found


def kind_of(module: str, description: dict[str, str], packed: dict[str, list[str]], moe: bool = False) -> str:
    """The type that a module is built for. Raises KeyError, ValueError or NotImplementedError where the server does."""
    if module == "lm_head" and "lm_head.weight" not in description:
        module = "language_model.lm_head"
    last = module.rsplit(".", 1)[-1]
    if last in packed:
        kinds = {description[f"{module.replace(last, part)}.weight"] for part in packed[last]}
        if len(kinds) > 1:
            raise ValueError(f"Not all shards of {module} are quantized with same quant type")
        kind = kinds.pop()
    elif any(
        key.startswith(module) and key.endswith(".weight") and word == "FLOAT" for key, word in description.items()
    ):
        kind = "FLOAT"
    else:
        kind = description[f"{module}.weight"]
    if kind != "FLOAT" and (kind not in ("W8A8", "W8A8_DYNAMIC", "W8A8_MIX") or moe and kind != "W8A8_DYNAMIC"):
        layer = "moe" if moe else "linear"
        raise NotImplementedError(f"vLLM Ascend doesn't support quant_type={kind} for layer_type={layer}")
    return kind


def assert_found(out: Path) -> dict[str, str]:
    """Every module that is built of the export `out` finds its keys, and is built for the type of the tensors that are
    loaded into it; whatever is int8 there is loaded; the drafter, where there is one, is float. -> the type of each
    module.
    """
    config, said = (json.loads((out / file).read_text()) for file in ("config.json", "quant_model_description.json"))
    mapper = MAPPERS[config["model_type"]]
    description, found = renamed(said, mapper), {}
    for module, packed in built(config):
        kind = kind_of(module, description, packed, module.endswith(".experts"))
        assert found.setdefault(module, kind) == kind, f"{module} is built for two types"
        loaded = [f"{part}.weight" for part in parts_of(module) if f"{part}.weight" in description]
        assert {description[key] for key in loaded if ".experts" not in key} <= {kind}, module
    parts = {part for module, word in found.items() if word != "FLOAT" for part in parts_of(module)}
    int8 = {key: word for key, word in description.items() if word != "FLOAT" and key.endswith(".weight")}
    assert int8, "nothing is int8"
    lost = {key for key in int8 if not any(key.startswith(f"{part}.") for part in parts)}
    assert not lost, f"int8 that nobody asks for: {sorted(lost)[:3]}"
    if config.get("text_config", {}).get("mtp_num_hidden_layers"):
        drafter, packed = renamed(said, DRAFTER), PACKED[config["model_type"]]
        assert {kind_of(module, drafter, packed) for module in asked_by_drafter(config)} == {"FLOAT"}
    return found


def parts_of(module: str) -> list[str]:
    """The names under which tensors are loaded into a module: its own, which all experts' linears have in front, and
    those that it is packed of.
    """
    last, packs = module.rsplit(".", 1)[-1], QKV | GATE_UP | DELTA
    return [module, *(module.replace(last, part) for part in packs.get(last, []))]


def built(config: dict) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The modules of a model of this config.json, each with the table of packed ones that is in force as it is built.

    GLM-OCR's tower is first built as GLM-4V's, under that class's table; its own comes behind the decoder, whose table
    has taken its place. PaddleOCR-VL's class has no table, nor has LLaVA-OneVision's: until the decoder is
    built, nothing counts as packed.
    """
    kind, names = config["model_type"], list(asked(config))
    if kind == "glm_ocr":
        tower = [name for name in names if name.startswith("visual.")]
        first = [name.replace("attn.qkv_proj", "attn.qkv") for name in tower]
        yield from ((name, QKV | {"gate_up_proj": ["gate_up_proj"]}) for name in first)
        yield from ((name, PACKED[kind]) for name in (*names, *first, *tower))
    else:
        early = {"paddleocr_vl": "visual.", "llava_onevision": "vision_tower."}.get(kind, "nothing")
        yield from ((name, {} if name.startswith(early) else PACKED[kind]) for name in names)


def asked(config: dict) -> Iterator[str]:
    """The modules that a model of this config.json asks for; those of fused experts end in ".experts"."""
    yield from _vision(config)
    if config["model_type"] == "molmo":
        yield "lm_head"  # the embedding has no prefix, and is float like all that has none
        parts = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
        yield from (f"model.layers.{index}.{part}" for index in range(config["num_hidden_layers"]) for part in parts)
        return
    text, model = config.get("text_config", config), "language_model.model."
    yield f"{model}embed_tokens"
    yield "language_model.lm_head"
    for index in range(text.get("num_hidden_layers", 32)):
        block, kinds = f"{model}layers.{index}.", text.get("layer_types") or []
        yield from _mixer(block, kinds[index] if kinds else "full_attention")
        yield from _mlp(f"{block}mlp", text, index)


def asked_by_drafter(config: dict) -> Iterator[str]:
    """The same of the drafter (multi-token prediction), where there is one."""
    text = config["text_config"]
    for index in range(text.get("mtp_num_hidden_layers", 0)):
        yield "mtp.fc"
        yield from _mixer(f"mtp.layers.{index}.", "full_attention")
        yield from _mlp(f"mtp.layers.{index}.mlp", text, index)


def _mixer(block: str, kind: str) -> Iterator[str]:
    if kind == "linear_attention":
        yield from (f"{block}linear_attn.{name}" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj"))
    else:
        yield from (f"{block}self_attn.{name}" for name in ("qkv_proj", "o_proj"))


def _mlp(mlp: str, text: dict, index: int) -> Iterator[str]:
    if not text.get("num_experts") or index in text.get("mlp_only_layers", ()):
        yield from (f"{mlp}.{name}" for name in ("gate_up_proj", "down_proj"))
        return
    yield from (f"{mlp}.gate", f"{mlp}.experts")
    if text.get("shared_expert_intermediate_size"):
        yield from (f"{mlp}.{name}" for name in ("shared_expert_gate", "shared_expert.gate_up_proj"))
        yield f"{mlp}.shared_expert.down_proj"


def _vision(config: dict) -> Iterator[str]:
    vision, kind = config["vision_config"], config["model_type"]
    if kind == "internvl":  # attention and projector are plain linears, which nobody asks for
        for index in range(vision["num_hidden_layers"]):
            yield from (f"vision_tower.encoder.layer.{index}.mlp.{name}" for name in ("fc1", "fc2"))
    elif kind == "paddleocr_vl":
        for index in range(vision["num_hidden_layers"]):
            yield from _clip_block(f"visual.vision_model.encoder.layers.{index}.", vision, siglip=True)
    elif kind == "glm_ocr":
        for index in range(vision["depth"]):
            block = f"visual.blocks.{index}."
            yield from (
                f"{block}{name}" for name in ("attn.qkv_proj", "attn.proj", "mlp.gate_up_proj", "mlp.down_proj")
            )
        yield from (f"visual.merger.{name}" for name in ("proj", "gate_up_proj", "down_proj"))
    elif kind == "molmo":
        parts = *(f"attention.w{part}" for part in "qkvo"), "feed_forward.w1", "feed_forward.w2"
        vit = "vision_backbone.image_vit.transformer.resblocks"
        yield from (f"{vit}.{index}.{part}" for index in range(vision["num_hidden_layers"]) for part in parts)
        yield from (f"vision_backbone.image_pooling_2d.w{part}" for part in "qkvo")
        yield from (f"vision_backbone.image_projector.{part}" for part in ("merged_linear", "down_proj"))
    elif kind.startswith("llava"):
        for index in range(vision["num_hidden_layers"] + config["vision_feature_layer"] + 1):
            block = f"vision_tower.vision_model.encoder.layers.{index}."
            yield from _clip_block(block, vision, siglip=kind == "llava_onevision")
        if kind in ("llava", "llava_next"):  # the projectors of the others are plain linears, which nobody asks for
            yield from (f"multi_modal_projector.{name}" for name in ("linear_1", "linear_2"))
    else:
        mlp = {"qwen2_vl": ("fc1", "fc2"), "qwen2_5_vl": ("gate_up_proj", "down_proj")}
        names = mlp.get(kind, ("linear_fc1", "linear_fc2"))
        for index in range(vision["depth"]):
            yield from (f"visual.blocks.{index}.attn.{name}" for name in ("qkv", "proj"))
            yield from (f"visual.blocks.{index}.mlp.{name}" for name in names)
        parts = ("mlp.0", "mlp.2") if kind in mlp else ("linear_fc1", "linear_fc2")
        stacks = range(len(vision.get("deepstack_visual_indexes") or ()))
        for merger in ("merger", *(f"deepstack_merger_list.{index}" for index in stacks)):
            yield from (f"visual.{merger}.{part}" for part in parts)


def _clip_block(block: str, vision: dict, siglip: bool) -> Iterator[str]:
    yield from (f"{block}self_attn.{name}" for name in ("qkv_proj", "out_proj"))
    # siglip.SiglipMLP drops quant_config where a width is no multiple of 64.
    if not siglip or not (vision["hidden_size"] % 64 or vision["intermediate_size"] % 64):
        yield from (f"{block}mlp.{name}" for name in ("fc1", "fc2"))
