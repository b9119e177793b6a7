"""Rules on where a directory is to run: hardware, number of NPUs, and the known faults of servers that go with them."""

from collections.abc import Iterator

from ...families.family import Family
from .directory import Directory, Target
from .finding import Finding

MINDIE_WORLD_SIZES = (1, 2, 4, 8)
TRIED = (1, 2, 4, 8, 16)  # the sizes that a summary names


def served(directory: Directory, target: Target) -> Iterator[Finding]:
    """vLLM has a class for each architecture. MindIE has a folder for each model_type that it serves, and a list of the
    sizes that it takes in W8A8.
    (MindIE-LLM 8b4871a: atb_llm.models, models.internvl.router_internvl; the README of examples/models/qwen3_vl.)
    """
    family = directory.family
    if family.vllm_refuses and target.server == "vllm-ascend":
        yield Finding(
            "config.json: architectures",
            f"is {family.architecture}, for which vLLM has no class",
            {"vllm-ascend": family.vllm_refuses},
            "no server has it: it can be run, scored and served here",
        )
    elif family.mindie_refuses:
        yield Finding(
            "config.json: model_type",
            f"is {family.model_type!r}, for which MindIE has no loader",
            {"mindie": family.mindie_refuses},
            "use vLLM-Ascend" if not family.vllm_refuses else "no server has it: it can be run and served here",
        )
    elif unlisted := family.mindie_unlisted(directory.config):
        yield Finding(
            "config.json",
            f"describes a {family.name} that is not documented: {unlisted}",
            {"mindie": "has its loader; whether it computes this size right was not established"},
            "use vLLM-Ascend, or try it",
            level="warning",
        )


def activation_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE documents static W8A8 for these models; per-token and mixed activations are for vLLM-Ascend."""
    others = sorted({directory.kind(name) for name in directory.int8} - {"W8A8"})
    if others and not static_but_for_experts(directory):
        yield Finding(
            "the int8 linears",
            f"are {', '.join(others)}; for {directory.family.name} MindIE documents W8A8",
            {"mindie": "its loader knows the type, whether this model's graph does was not established"},
            "export it with --act static for MindIE",
            level="warning",
        )


def static_but_for_experts(directory: Directory) -> bool:
    """Whether the export is what MindIE builds of models with experts: those W8A8_DYNAMIC, and all else W8A8."""
    kinds = {directory.kind(name) for name in directory.int8 if name in directory.experts}
    others = {directory.kind(name) for name in directory.int8 if name not in directory.experts}
    return directory.family.mindie_experts and kinds == {"W8A8_DYNAMIC"} and others == {"W8A8"}


def one_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """vLLM-Ascend builds each linear by its own entry of the description, MindIE all of them for one type, but for the
    attention beside W8A8_DYNAMIC experts, which is static. (MindIE-LLM 8b4871a:
    atb_llm.models.qwen3_vl_moe.modeling_qwen3_vl_moe_text; vllm-ascend 182b75ea: quantization.modelslim_config.)
    """
    kinds: dict[str, list[str]] = {}
    for name in directory.int8:
        kinds.setdefault(directory.kind(name), []).append(name)
    if len(kinds) < 2 or static_but_for_experts(directory):
        return
    counts = ", ".join(f"{len(names)} {kind} ({names[0]} among them)" for kind, names in sorted(kinds.items()))
    yield Finding(
        "the int8 linears",
        f"are of several types: {counts}",
        {"mindie": "takes all for the type that model_quant_type names: misses a tensor of the others, or is wrong"},
        "export it with --act dynamic, or quantize again without --dynamic_names; vLLM-Ascend takes it as it is",
    )


def hardware(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE runs all models on the Atlas 800 A2 and A3, not all of them (Qwen2-VL) on the Atlas 300I Duo. (MindIE-LLM
    8b4871a: the README of each model.)
    """
    if target.hardware == "310p" and not directory.family.mindie_310p:
        yield Finding(
            "--hardware 310p",
            f"{directory.family.name} is not among the models that MindIE runs on the Atlas 300I Duo",
            {"mindie": "fails while the model's graph is built"},
            "use an Atlas 800 A2 or A3",
        )


def world_size(directory: Directory, target: Target) -> Iterator[Finding]:
    """What tensor parallelism divides must be divisible: heads, MLP width, and in vLLM the vision tower's heads."""
    if target.world_size == 1:
        return
    parts = uneven(directory.family, directory.config, target.world_size)
    if parts:
        number = parts[0].rsplit(" ", 1)[1]
        yield Finding(
            f"--world_size {target.world_size}",
            f"does not divide {', '.join(parts)}",
            {
                "vllm-ascend": (
                    f"Total number of attention heads ({number}) must be divisible by tensor parallel size"
                    f" ({target.world_size})."
                )
            },
            f"use --world_size {largest_even(directory.family, directory.config, target.world_size)}",
        )
    if target.hardware == "310p":
        yield Finding(
            f"--world_size {target.world_size}",
            "int8 weights on several chips of the Atlas 300I Duo",
            {"mindie": "is not supported: fails while the weights are split"},
            "use --world_size 1, or an Atlas 800 A2 or A3",
        )
    elif target.world_size not in MINDIE_WORLD_SIZES:
        yield Finding(
            f"--world_size {target.world_size}",
            f"is none of {', '.join(map(str, MINDIE_WORLD_SIZES))}",
            {"mindie": "the split of the weights is not established for it"},
            "use one of these",
        )


def uneven(family: Family, config: dict, size: int) -> list[str]:
    """What vLLM divides by the number of NPUs and `size` does not divide: "num_attention_heads 28"...; [] where it can
    be served so.
    """
    language = family.tower("language")
    heads, kv_heads = language.heads(config)
    divided = {"num_attention_heads": heads, "intermediate_size": language.mlp(config)}
    divided["vision heads"] = family.tower("vision").heads(config)[0]
    parts = [f"{name} {number}" for name, number in divided.items() if number % size]
    if kv_heads % size and size % kv_heads:
        parts.append(f"num_key_value_heads {kv_heads}")
    return parts


def largest_even(family: Family, config: dict, size: int) -> int:
    """The largest number of NPUs below `size` that vLLM can divide the model over."""
    return max(fewer for fewer in range(1, size) if not uneven(family, config, fewer))


def served_on(directory: Directory, server: str, hardware: str | None = None) -> list[int]:
    """The numbers of NPUs, of TRIED, that an export without errors is served rightly on, by what depends on them."""
    return [
        size
        for size in TRIED
        for target in [Target(server, hardware, size)]
        if not any(
            server in finding.effects
            for rule in (world_size, vision_tensor_parallel)
            for finding in rule(directory, target)
        )
    ]


def vision_tensor_parallel(directory: Directory, target: Target) -> Iterator[Finding]:
    """A fault of MindIE: on several NPUs it pads an int8 linear of the vision tower (Qwen2-VL's attn.proj) as if it
    were transposed.
    """
    transposed = directory.family.mindie_transposed
    if target.world_size > 1 and transposed and directory.vision_int8:
        yield Finding(
            f"--world_size {target.world_size}",
            "with an int8 vision tower",
            {"mindie": f"uses {transposed} of the vision tower transposed: wrong output without an error"},
            "quantize again with --vision float for this number of NPUs, or use --world_size 1",
        )
