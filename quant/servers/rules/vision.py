"""Rules on MindIE's vision towers, which are built by switches of their own.

Read in MindIE-LLM 8b4871a of April 2026, atb_llm.models. Qwen2-VL's: qwen2_vl.modeling_qwen2_vl_vit_atb. Qwen3-VL's:
qwen3_vl.flash_causal_qwen3_vl hands `quantize` on to the vision tower; qwen3_vl.modeling_qwen3_vl_vit takes
W8A8_DYNAMIC for W8A8, so beside dynamic experts the tower is static, and norm1 and norm2 of every block then emit int8
with the input_scale of attn.qkv and mlp.linear_fc1. A tensor that is not there: atb_llm.utils.weights, get_filename.
"""

from collections.abc import Iterator

from ...families.family import match
from .directory import Directory, Target
from .finding import NOT_MATCHED, Finding


def vision_whole(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE takes these linears in int8 in every vision block, or the whole tower in float."""
    vision, refused = directory.family.tower("vision"), directory.family.vision_int8_refused
    int8 = [
        name
        for name in directory.vision_int8
        if not match(directory.family.must_float | directory.family.mindie_float, name)
    ]
    if not int8:
        yield from _follows(directory)
        return
    if refused:
        yield Finding(
            f"{len(int8)} linears of the vision tower, {int8[0]} among them",
            f"are int8; {refused}",
            {"mindie": "takes the codes for float values: wrong output without an error"},
            "quantize again with --vision float",
        )
        return
    whole = [
        vision.block(index) + linear
        for index in directory.blocks(vision)
        for linear in directory.family.vision_int8_whole
    ]
    floats = [name for name in whole if f"{name}.weight" in directory.tensors and name not in int8]
    if floats:
        yield Finding(
            f"{len(floats)} linears of the vision tower, {floats[0]} among them",
            f"are float while {len(int8)} are int8; MindIE takes {', '.join(directory.family.vision_int8_whole)} of"
            " every block in int8, or none",
            {"mindie": f"AssertionError: weight {floats[0]}.input_scale does not exist"},
            "quantize again with --vision float, or with no vision linear in --disable_names",
        )


def _follows(directory: Directory) -> Iterator[Finding]:
    """A float vision tower where MindIE builds it for the type of the language model."""
    family, static = directory.family, [name for name in directory.int8 if directory.kind(name) == "W8A8"]
    if family.mindie_vision_follows and static:
        first = family.tower("vision").block(0) + family.vision_int8_whole[0]
        yield Finding(
            "the vision tower",
            f"is float; MindIE builds {family.name}'s for the type of the language model, here W8A8",
            {"mindie": f"AssertionError: weight {first}.input_scale does not exist"},
            "quantize again without --vision float; vLLM-Ascend takes it as it is",
        )


def vision_switch(directory: Directory, target: Target) -> Iterator[Finding]:
    """vision_config.quantize says "w8a8" exactly when the vision tower is static int8: MindIE knows it from nowhere
    else.
    """
    if directory.family.vision_int8_refused:
        return
    if directory.family.mindie_vision_follows:
        yield from _follows_static(directory)
        return
    says, int8 = directory.config.get("vision_config", {}).get("quantize"), directory.vision_int8
    dynamic = [name for name in int8 if directory.kind(name) == "W8A8_DYNAMIC"]
    if dynamic:
        effect = f"AssertionError: weight {dynamic[0]}.deq_scale does not exist" if says == "w8a8" else NOT_MATCHED
        yield Finding(
            f"{len(dynamic)} linears of the vision tower, {dynamic[0]} among them",
            "are W8A8_DYNAMIC; MindIE's vision tower computes static W8A8 or float",
            {"mindie": effect},
            "export it with --act static, or quantize again with --vision float",
        )
    elif int8 and says != "w8a8":
        yield Finding(
            "config.json: vision_config.quantize",
            f"is {says!r}, {len(int8)} linears of the vision tower are int8",
            {"mindie": NOT_MATCHED if says is None else f"fails, or computes the tower as {says}"},
            'set it to "w8a8": --fix does it',
        )
    elif says is not None and not int8:
        first = directory.family.tower("vision").block(0) + (*directory.family.vision_int8_whole, "attn.qkv")[0]
        yield Finding(
            "config.json: vision_config.quantize",
            f"is {says!r}, the vision tower is float",
            {"mindie": f"AssertionError: weight {first}.input_scale does not exist"},
            "remove the key: --fix does it",
        )


def _follows_static(directory: Directory) -> Iterator[Finding]:
    """Of such a tower MindIE has the static kind alone, or float."""
    if dynamic := [name for name in directory.vision_int8 if directory.kind(name) == "W8A8_DYNAMIC"]:
        yield Finding(
            f"{len(dynamic)} linears of the vision tower, {dynamic[0]} among them",
            "are W8A8_DYNAMIC; MindIE's vision tower computes static W8A8 or float",
            {"mindie": f"AssertionError: weight {dynamic[0]}.input_scale does not exist, or {NOT_MATCHED}"},
            "export it with --act static, or quantize again with --scheme W8A8; vLLM-Ascend takes it as it is",
        )


def vision_shape(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE's vision kernel for Qwen2-VL is written for heads of 80 channels."""
    wanted, tower = directory.family.mindie_vision_head, directory.family.tower("vision")
    if wanted is None:
        return
    width, heads = tower.width(directory.config), tower.heads(directory.config)[0]
    if width // heads != wanted:
        yield Finding(
            "config.json: vision_config",
            f"a width of {width} over {heads} heads makes heads of {width // heads} channels, {wanted} is what the"
            " kernel takes",
            {"mindie": f"RuntimeError: shape is invalid for input, padding heads of {wanted} to 128 channels"},
            "this model does not run on MindIE; use vLLM-Ascend",
        )


def vision_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE hands some vision towers (LLaVA's) pixels of one dtype whatever the model's is: weights must be of it."""
    wanted, says = directory.family.dtype, directory.configured_dtype
    if wanted and says in ("float16", "bfloat16") and says != wanted:
        yield Finding(
            "config.json: torch_dtype",
            f"is {says}; MindIE feeds {directory.family.name}'s vision tower {wanted} pixels",
            {"mindie": "RuntimeError: expected mat1 and mat2 to have the same dtype"},
            f"quantize again with --dtype {wanted}",
        )
