"""Rules on where a directory is to run: hardware, number of NPUs, and the known faults of servers that go with them."""

from collections.abc import Iterator

from .directory import Directory, Target
from .finding import Finding

MINDIE_WORLD_SIZES = (1, 2, 4, 8)


def served(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE has a folder for each model_type that it serves (atb_llm/models), and a list of the sizes that it takes in
    W8A8 (its README for the model).
    """
    family = directory.family
    if family.mindie_refuses:
        yield Finding(
            "config.json: model_type",
            f"is {family.model_type!r}, for which MindIE has no loader",
            {"mindie": family.mindie_refuses},
            "use vLLM-Ascend",
        )
    elif unlisted := family.mindie_unlisted(directory.config):
        yield Finding(
            "config.json",
            f"describes a {family.name} of another size: {unlisted}",
            {"mindie": "has its loader; whether it computes this size right was not established"},
            "use vLLM-Ascend, or try it",
            level="warning",
        )


def activation_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE documents static W8A8 for these models; per-token and mixed activations are for vLLM-Ascend."""
    others = sorted({directory.kind(name) for name in directory.int8} - {"W8A8"})
    if others and not _static_and_experts(directory):
        yield Finding(
            "the int8 linears",
            f"are {', '.join(others)}; for {directory.family.name} MindIE documents W8A8",
            {"mindie": "its loader knows the type, whether this model's graph does was not established"},
            "export it with --act static for MindIE",
            level="warning",
        )


def _static_and_experts(directory: Directory) -> bool:
    """Whether the export is what MindIE builds of models with experts: those W8A8_DYNAMIC, and all else W8A8."""
    kinds = {directory.kind(name) for name in directory.int8 if name in directory.experts}
    others = {directory.kind(name) for name in directory.int8 if name not in directory.experts}
    return directory.family.mindie_experts and kinds == {"W8A8_DYNAMIC"} and others == {"W8A8"}


def one_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """vLLM-Ascend builds each linear by its own entry of the description, MindIE all of them for one type."""
    kinds: dict[str, list[str]] = {}
    for name in directory.int8:
        kinds.setdefault(directory.kind(name), []).append(name)
    if len(kinds) < 2 or _static_and_experts(directory):
        return
    counts = ", ".join(f"{len(names)} {kind} ({names[0]} among them)" for kind, names in sorted(kinds.items()))
    yield Finding(
        "the int8 linears",
        f"are of several types: {counts}",
        {"mindie": "takes all for the type that model_quant_type names: misses a tensor of the others, or is wrong"},
        "export it with --act dynamic, or quantize again without --dynamic_names; vLLM-Ascend takes it as it is",
    )


def hardware(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE runs all models on the Atlas 800 A2 and A3, not all of them (Qwen2-VL) on the Atlas 300I Duo."""
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
    vision, language = directory.family.tower("vision"), directory.family.tower("language")
    heads, kv_heads = language.heads(directory.config)
    divided = {"num_attention_heads": heads, "intermediate_size": language.mlp(directory.config)}
    divided["vision heads"] = vision.heads(directory.config)[0]
    uneven = [f"{name} {number}" for name, number in divided.items() if number % target.world_size]
    if kv_heads % target.world_size and target.world_size % kv_heads:
        uneven.append(f"num_key_value_heads {kv_heads}")
    if uneven:
        number = uneven[0].rsplit(" ", 1)[1]
        yield Finding(
            f"--world_size {target.world_size}",
            f"does not divide {', '.join(uneven)}",
            {
                "vllm-ascend": (
                    f"Total number of attention heads ({number}) must be divisible by tensor parallel size"
                    f" ({target.world_size})."
                )
            },
            "use --world_size"
            f" {max(size for size in range(1, target.world_size) if _divides(size, divided, kv_heads))}",
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


def _divides(size: int, divided: dict[str, int], kv_heads: int) -> bool:
    return all(number % size == 0 for number in divided.values()) and (kv_heads % size == 0 or size % kv_heads == 0)


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
            level="warning",
        )
