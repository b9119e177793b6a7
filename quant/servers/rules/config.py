"""Rules on config.json: that it names the model which the weights are, and says of them what they are."""

from collections.abc import Iterator

from .directory import DESCRIPTION, STATIC, TORCH_NAMES, Directory, Target
from .finding import NOT_MATCHED, Finding, missing

QUANTIZE = {"W8A8": "w8a8", "W8A8_DYNAMIC": "w8a8_dynamic", "W8A8_MIX": "w8a8_pdmix"}
"""Type of the int8 linears -> MindIE's name for it in config.json."""
READS = {"w8a8": STATIC[:1] + STATIC[3:], "w8a8_dynamic": STATIC[:3], "w8a8_pdmix": STATIC}
"""MindIE's name -> the tensors of an int8 linear that it then reads."""
KNOWN_TO_MINDIE = (
    *("w4a16", "w8a8", "w8a16", "w8a8s", "w8a8sc", "w8a8_dynamic", "w8a8_pdmix"),
    *("w4a8_dynamic", "w8a8_mix", "w16a16s", "w16a16sc"),
)
MINDIE_THETA = 1000000.0  # where config.json has no rope_theta; Qwen's
SERVED = ("float16", "bfloat16")
BOTH = ("mindie", "vllm-ascend")
SAMPLE = 4096  # bytes compared at three places of two tensors, which may have a gigabyte each


def model_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """The family's model_type: MindIE chooses the model by it, vLLM the class that reads config.json."""
    says, wanted = directory.config.get("model_type"), directory.family.model_type
    if says == wanted or target.server == "mindie" and str(says).lower() == wanted:
        return
    yield Finding(
        "config.json: model_type",
        f"is {says!r}, {wanted!r} is {directory.family.name}'s"
        if says is not None
        else f"is missing, {wanted!r} is right",
        {
            "mindie": f"KeyError: '{'model_type' if says is None else says}', or another model's loader",
            "vllm-ascend": "ValueError: Unrecognized model, or config.json is read as another model's",
        },
        f"set it to {wanted!r}: --fix does it",
    )


def tied_head(directory: Directory, target: Target) -> Iterator[Finding]:
    """A head of its own, or tie_word_embeddings; both only where they are the same."""
    head, embedding = f"{directory.head}.weight", directory.family.embedding_tensor
    if head not in directory.tensors and not directory.tied:
        yield Finding(
            head,
            "is missing, and config.json does not say tie_word_embeddings: true",
            missing(directory, head),
            "copy the export again, or take tie_word_embeddings over from the source's config.json",
        )
    elif head in directory.tensors and directory.tied and not _alike(directory, head, embedding):
        yield Finding(
            "config.json: tie_word_embeddings",
            f"is true, and there is a {directory.head} that is not the embedding",
            dict.fromkeys(BOTH, "takes the embedding for the head without a word: another model"),
            "take tie_word_embeddings over from the source's config.json",
        )


def _alike(directory: Directory, *names: str) -> bool:
    """Whether two tensors have one shape and dtype, and the same bytes at the places that are looked at."""
    one, other = (directory.tensors.get(name) for name in names)
    if one is None or other is None:
        return True  # missing_tensors reports it
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    places = [0, max(0, one.nbytes // 2 - SAMPLE), max(0, one.nbytes - SAMPLE)]
    return all(directory.bytes_at(names[0], at, SAMPLE) == directory.bytes_at(names[1], at, SAMPLE) for at in places)


def quantize_key(directory: Directory, target: Target) -> Iterator[Finding]:
    """config.json's `quantize` names the type of the int8 linears for MindIE. Where it is missing, the description's
    model_quant_type does, for families whose configuration MindIE does not read from config.json alone.
    """
    kinds = {directory.kind(name) for name in directory.int8}
    main = max if directory.family.mindie_experts and "W8A8_DYNAMIC" in kinds else min  # as MindIE knows its experts
    says, wanted = directory.config.get("quantize"), QUANTIZE[main(kinds)] if kinds else None
    described = (directory.description or {}).get("model_quant_type")
    found, where = says, "config.json: quantize"
    if says is None and directory.description_file and directory.description_file.name == DESCRIPTION:
        if described is None and directory.description is not None:
            yield Finding(
                where,
                f"is missing, and so is the description's model_quant_type; {wanted!r} is what the tensors are",
                {"mindie": "KeyError: 'quantize'"},
                f"set it to {wanted!r}: --fix does it" if wanted else "quantize again",
            )
            return
        if described is not None and not directory.family.mindie_config_alone:
            found, where = str(described).lower(), f"{DESCRIPTION}: model_quant_type"
    if found == "w8a8_mix" and not directory.family.mindie_config_alone:
        found = "w8a8_pdmix"
    if found == wanted:
        return
    if found is None:
        effect = NOT_MATCHED
    elif found not in KNOWN_TO_MINDIE:
        effect = "NotImplementedError: `quantize` is only supported for value in [...]"
    elif kinds:
        effect = f"AssertionError: weight {directory.int8[0]}.deq_scale does not exist, or another part of it"
    else:
        effect = "reads a description that is not there"
    loads = (
        found in READS and kinds and all(f"{directory.int8[0]}.{part}" in directory.tensors for part in READS[found])
    )
    if loads:
        effect = f"loads, and computes it as {found}: not what was exported, and not documented for these models"
    yield Finding(
        where,
        f"is {says if found == says else described!r}, {wanted!r} is what the tensors are"
        if found is not None
        else f"is missing, {wanted!r} is what the tensors are",
        {"mindie": effect},
        f"set quantize to {wanted!r}: --fix does it" if wanted else "remove the key: --fix does it",
        level="warning" if loads else "error",
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
    """float16 or bfloat16; vLLM also takes it under the newer name, dtype."""
    says = directory.config.get("torch_dtype")
    if says in SERVED or target.server == "vllm-ascend" and directory.configured_dtype in SERVED:
        return
    wanted = directory.float_dtype if directory.float_dtype in SERVED else None
    yield Finding(
        "config.json: torch_dtype",
        f"is {says!r}; servers compute in float16 or bfloat16",
        {
            "mindie": "NotImplementedError: `torch_dtype` is only supported for type `float16` and `bfloat16`",
            "vllm-ascend": "chooses a dtype itself, which need not be the one that the scales were rounded for",
        },
        f"set it to {wanted!r}: --fix does it" if wanted else "quantize again with --dtype bfloat16 or float16",
    )


def text_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """Of the newer, nested files MindIE takes the language model's own dtype. (MindIE-LLM 8b4871a: Qwen3-VL's
    text_config becomes a BaseConfig of its own, atb_llm.models.qwen3_vl.config_qwen3_vl.)
    """
    family, text = directory.family, directory.config.get("text_config", {})
    if family.flat_config or family.mindie_config_alone or family.mindie_refuses:
        return
    says, wanted = text.get("dtype") or text.get("torch_dtype"), directory.configured_dtype
    if says == wanted or wanted not in SERVED:  # torch_dtype reports it
        return
    yield Finding(
        "config.json: text_config.dtype",
        f"is {says!r}, {wanted!r} is the model's",
        {
            "mindie": "computes in it: deq_scale is of the other form, wrong output without an error"
            if says in SERVED
            else "NotImplementedError: `torch_dtype` is only supported for type `float16` and `bfloat16`"
        },
        f"set it to {wanted!r}: --fix does it",
    )


def changed_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """torch_dtype is what the export was made for: deq_scale's dtype and input_scale's rounding depend on it."""
    says, holds = directory.configured_dtype, directory.float_dtype
    if says in SERVED and holds in TORCH_NAMES.values() and holds in SERVED and says != holds:
        effect = "deq_scale is of the other form: wrong output without an error"
        yield Finding(
            "config.json: torch_dtype",
            f"is {says}, the float tensors are {holds}: it was changed after quantizing",
            {"mindie": effect, "vllm-ascend": effect},
            f"set it back to {holds!r} (--fix does it), or quantize again with --dtype {says}",
        )


def vocab_size(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE's service reads vocab_size at the top of config.json."""
    if not directory.config.get("vocab_size") and not directory.config.get("padded_vocab_size"):
        yield Finding(
            "config.json: vocab_size",
            "is not at the top level",
            {"mindie": "loads; the service takes 0 for it, and sets every request's top_k to 0"},
            "copy it up from text_config: --fix does it",
            level="warning",
        )


def flat_config(directory: Directory, target: Target) -> Iterator[Finding]:
    """The older of the hub's layouts (Qwen's): the language model's keys at the top, rope_theta and rope_scaling in
    place of rope_parameters. A rope_theta that is missing is Qwen's usual one.
    """
    if not directory.family.flat_config:
        return
    config, rope = directory.config, directory.config.get("rope_parameters")
    absent = [
        key
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        if key not in config
    ]
    effect = "a model of default sizes" if absent else ""
    if not config.get("rope_scaling"):
        absent.append("rope_scaling")
        effect = "AttributeError: 'NoneType' object has no attribute 'get'"
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    if "rope_theta" not in config and theta not in (None, MINDIE_THETA):
        absent.append("rope_theta")
        effect = effect or f"computes with {MINDIE_THETA:.0f} without a word: another model"
    nested = "text_config" in config
    if nested:
        effect = "TypeError: got multiple values for keyword argument 'text_config'"
    if nested or absent:
        lacks = [f"lacks {key}" for key in absent]
        what = " and ".join(["has text_config", *lacks] if nested else lacks)
        yield Finding(
            "config.json",
            f"is in the layout of transformers 5: {what}" if nested or rope else what,
            {"mindie": effect},
            "take the hub's own config.json and edit it: --fix does it",
        )


def nested_config(directory: Directory, target: Target) -> Iterator[Finding]:
    """Of families whose language model has a text_config of its own, MindIE takes these two keys from nowhere else."""
    text = directory.config.get("text_config", {})
    if directory.family.flat_config or not directory.family.mindie_config_alone:
        return
    effects = {
        "vocab_size": "KeyError: 'vocab_size', told as: Get config from pretrained failed",
        "max_position_embeddings": "ValueError: The parameter `max_position_embeddings` is not initialized.",
    }
    for key, effect in effects.items():
        if not text.get(key):
            yield Finding(
                f"config.json: text_config.{key}",
                "is missing",
                {"mindie": effect},
                "take it over from the source's config.json",
            )
