"""Rules on the model as a whole: which layers must be float, what config.json says against what the tensors are, names
that servers take or do not take.
"""

from collections.abc import Iterator
from pathlib import Path

from ...families.family import match
from ...files.safetensors_header import read_entries
from .directory import Directory, Target
from .finding import Finding, missing

QUANTIZE = {"W8A8": "w8a8", "W8A8_DYNAMIC": "w8a8_dynamic", "W8A8_MIX": "w8a8_pdmix"}
"""Type of the int8 linears -> MindIE's name for it in config.json."""
ROPE = ("rope_theta", "rope_scaling")


def missing_tensors(directory: Directory, target: Target) -> Iterator[Finding]:
    """What every block of a tower has, each of them has; embedding and last norm are there; with the source at hand,
    every name of it.
    """
    wanted = set(directory.expected)
    if target.source:
        wanted |= _tensor_names(target.source)
    for name in sorted(wanted - set(directory.tensors)):
        if name != f"{directory.head}.weight":  # tied_head reports it
            yield Finding(
                name, "is missing", missing(name), "a weight file is missing or incomplete: copy the export again"
            )


def _tensor_names(checkpoint: Path) -> set[str]:
    return {
        name
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name in read_entries(file)
        if not name.endswith("inv_freq")
    }


def kept_float(directory: Directory, target: Target) -> Iterator[Finding]:
    """The head in float for both servers, and what MindIE loads in float besides."""
    for name in directory.int8:
        pattern = match(directory.family.must_float, name)
        if pattern is None:
            continue
        effects = {"mindie": "takes the codes for float values: wrong output without an error"}
        if name == directory.head:
            effects["vllm-ascend"] = "NotImplementedError or wrong output: its head is float"
        yield Finding(
            directory.where(f"{name}.weight"),
            f"is int8; {directory.family.must_float[pattern]}",
            effects,
            f"quantize again; without --disable_names {name} stays float",
        )


def vision_whole(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE takes these linears in int8 in every vision block, or the whole tower in float."""
    vision, refused = directory.family.tower("vision"), directory.family.vision_int8_refused
    int8 = [name for name in directory.vision_int8 if not match(directory.family.must_float, name)]
    if not int8:
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


def vision_switch(directory: Directory, target: Target) -> Iterator[Finding]:
    """vision_config.quantize says "w8a8" exactly when the vision tower is static int8: MindIE knows it from nowhere
    else.
    """
    if directory.family.vision_int8_refused:
        return
    says, int8 = directory.config.get("vision_config", {}).get("quantize"), directory.vision_int8
    dynamic = [name for name in int8 if directory.kind(name) == "W8A8_DYNAMIC"]
    if dynamic:
        yield Finding(
            f"{len(dynamic)} linears of the vision tower, {dynamic[0]} among them",
            "are W8A8_DYNAMIC; MindIE's vision tower computes static W8A8 or float",
            {"mindie": f"AssertionError: weight {dynamic[0]}.input_scale does not exist"},
            "export it with --act static, or quantize again with --vision float",
        )
    elif int8 and says != "w8a8":
        yield Finding(
            "config.json: vision_config.quantize",
            f"is {says!r}, {len(int8)} linears of the vision tower are int8",
            {"mindie": "takes the codes for float values: wrong output, or a kernel error"},
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


def norm_names(directory: Directory, target: Target) -> Iterator[Finding]:
    """Norms under their own names. `{norm}.module.weight` and a second `{norm}.weight` are a retired way to write a
    shifted norm.
    """
    for name in directory.tensors:
        if ".module." in name:
            yield Finding(
                directory.where(name),
                "is named as a wrapped module's",
                {
                    "mindie": "switches this layer to the older computation with a shifted norm",
                    "vllm-ascend": f"KeyError: '{name}'",
                },
                "quantize again; a norm is {norm}.weight and, if shifted, {norm}.bias",
            )


def norm_bias(directory: Directory, target: Target) -> Iterator[Finding]:
    """A language norm's bias is only read when a consumer of the norm is int8."""
    tower, int8 = directory.family.tower("language"), set(directory.int8)
    for index in directory.blocks(tower):
        for group in tower.groups_of(directory.config, index):
            bias = f"{tower.block(index)}{group.source}.bias" if group.kind == "norm" else None
            consumers = [tower.block(index) + linear for linear in group.linears]
            if bias in directory.tensors and not any(name in int8 for name in consumers):
                yield Finding(
                    directory.where(bias),
                    f"is the bias of a norm whose consumers {', '.join(group.linears)} are all float",
                    {"mindie": "drops the bias without a word: wrong output"},
                    "quantize again; only a norm before int8 linears may be shifted",
                )


def tied_head(directory: Directory, target: Target) -> Iterator[Finding]:
    """A head of its own, or tie_word_embeddings."""
    tied = directory.config.get(
        "tie_word_embeddings", directory.config.get("text_config", {}).get("tie_word_embeddings", False)
    )
    head = f"{directory.head}.weight"
    if head not in directory.tensors and not tied:
        yield Finding(
            head,
            "is missing, and config.json does not say tie_word_embeddings: true",
            missing(head),
            "copy the export again, or take tie_word_embeddings over from the source's config.json",
        )


def quantize_key(directory: Directory, target: Target) -> Iterator[Finding]:
    """config.json's `quantize` names the type of the int8 linears; by it MindIE decides whether to read the description
    at all.
    """
    kinds = {directory.kind(name) for name in directory.int8}
    says, wanted = directory.config.get("quantize"), QUANTIZE[min(kinds)] if kinds else None
    if says == wanted:
        return
    effect = "takes the codes for float values: wrong output, or a kernel error"
    if says is not None:
        effect = (
            f"AssertionError: weight {directory.int8[0]}.deq_scale does not exist"
            if kinds
            else "reads a description that is not there"
        )
        if says not in QUANTIZE.values():
            effect = (
                f"NotImplementedError: `quantize` is only supported for value in [...], or Quantization `{says}` is not"
                " implemented yet"
            )
    yield Finding(
        "config.json: quantize",
        f"is {says!r}, {wanted!r} is what the tensors are",
        {"mindie": effect},
        f"set it to {wanted!r}: --fix does it" if wanted else "remove the key: --fix does it",
    )


def quantization_config(directory: Directory, target: Target) -> Iterator[Finding]:
    """vLLM-Ascend takes a quantization_config in config.json for the quantization itself, and never opens the
    description.
    """
    if "quantization_config" in directory.config:
        yield Finding(
            "config.json: quantization_config",
            "is there and hides the description",
            {"vllm-ascend": f"KeyError: '{(directory.int8 or directory.linears or ['layer'])[0]}.weight'"},
            "remove the block, which MindIE does without: --fix does it",
        )


def torch_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """float16 or bfloat16 under the key torch_dtype."""
    says = directory.config.get("torch_dtype")
    if says in ("float16", "bfloat16"):
        return
    wanted = directory.float_dtype if directory.float_dtype in ("float16", "bfloat16") else None
    yield Finding(
        "config.json: torch_dtype",
        f"is {says!r}; servers compute in float16 or bfloat16",
        {
            "mindie": "the service does not start: it reads torch_dtype from the model's config.json",
            "vllm-ascend": "chooses a dtype itself, which need not be the one that the scales were rounded for",
        },
        f"set it to {wanted!r}: --fix does it" if wanted else "quantize again with --dtype bfloat16 or float16",
    )


def changed_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """torch_dtype is what the export was made for: deq_scale's dtype and input_scale's rounding depend on it."""
    says, holds = directory.configured_dtype, directory.float_dtype
    if says in ("float16", "bfloat16") and holds in ("float16", "bfloat16") and says != holds:
        effect = "deq_scale is of the other form: wrong output without an error"
        yield Finding(
            "config.json: torch_dtype",
            f"is {says}, the float tensors are {holds}: it was changed after quantizing",
            {"mindie": effect, "vllm-ascend": effect},
            f"set it back to {holds!r} (--fix does it), or quantize again with --dtype {says}",
        )


def vocab_size(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE's service reads vocab_size at the top of config.json."""
    if not directory.config.get("vocab_size"):
        yield Finding(
            "config.json: vocab_size",
            "is not at the top level",
            {"mindie": "ValueError: The parameter `vocab_size` is not initialized."},
            "copy it up from text_config: --fix does it",
        )


def flat_config(directory: Directory, target: Target) -> Iterator[Finding]:
    """The older of the hub's layouts (Qwen's): the language model's keys at the top, rope_theta and rope_scaling in
    place of rope_parameters.
    """
    if not directory.family.flat_config:
        return
    nested = [key for key in ("text_config", "rope_parameters") if key in directory.config]
    absent = [
        key for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", *ROPE) if key not in directory.config
    ]
    if nested or absent:
        what = " and ".join([f"has {key}" for key in nested] + [f"lacks {key}" for key in absent])
        yield Finding(
            "config.json",
            f"is in the layout of transformers 5: {what}" if nested else what,
            {"mindie": "reads these keys at the top level: AttributeError, or a model of default sizes"},
            "take the hub's own config.json and edit it: --fix does it",
        )
