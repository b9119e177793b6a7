"""Rules on the tensors of an int8 linear, weight int8 [O, I]:

    weight_scale, weight_offset  float [O, 1]
    input_scale, input_offset    float [1]; the offset also as integers, which both cast it to
    quant_bias                   int32 [O]; vLLM-Ascend takes any integers
    deq_scale                    [O]: float32 in a bfloat16 model, else int64
    bias                         float [O], where the layer has one

W8A8_DYNAMIC has the first three alone; of static W8A8 MindIE reads neither weight_scale nor weight_offset. Linears that
read one tensor (q, k, v; gate, up) are one kernel call: one type, one input_scale and one input_offset.
"""

from collections.abc import Iterator

from .directory import PARTS, TORCH_NAMES, Directory, Target
from .finding import Finding, missing

FLOATS = tuple(TORCH_NAMES)
INTEGERS = ("I8", "I16", "I32", "I64")
SHAPE_ERROR = {
    "mindie": "RuntimeError from the slicing of the tensor, or a kernel error",
    "vllm-ascend": "AssertionError: Attempted to load weight (torch.Size(...)) into parameter (torch.Size(...))",
}
IDLE = {"W8A8": ("weight_scale", "weight_offset")}
"""Type of a linear -> its tensors that no kernel computes with: MindIE does not read them, vLLM-Ascend does."""


def linear_parts(directory: Directory, target: Target) -> Iterator[Finding]:
    """Every tensor of an int8 linear is there."""
    for name in directory.int8:
        kind = directory.kind(name)
        for part in PARTS[kind]:
            if f"{name}.{part}" in directory.tensors:
                continue
            idle = part in IDLE.get(kind, ())
            effects = missing(directory, f"{name}.{part}")
            if idle:
                effects = {"vllm-ascend": "leaves it uninitialised, which the static product does not notice"}
            yield Finding(
                f"{name}.{part}",
                f"is missing; {kind} needs {', '.join(PARTS[kind])}",
                effects,
                "copy the export again; if it was made so, quantize again",
                level="warning" if idle else "error",
            )


def linear_shapes(directory: Directory, target: Target) -> Iterator[Finding]:
    """Shapes and dtypes of all parts but deq_scale's dtype, which is a rule of its own."""
    for name in directory.int8:
        kind, shape = directory.kind(name), directory.tensors[f"{name}.weight"].shape
        made = directory.shapes.get(f"{name}.weight", shape)
        if shape != made and shape == made[::-1]:
            yield _misshapen(directory, f"{name}.weight", made, ("I8",), SHAPE_ERROR)
            shape = made
        outputs = shape[0]
        wanted = {
            "weight_scale": ((outputs, 1), FLOATS),
            "weight_offset": ((outputs, 1), (*FLOATS, *INTEGERS)),
            "input_scale": ((1,), FLOATS),
            "input_offset": ((1,), (*FLOATS, *INTEGERS)),
            "quant_bias": ((outputs,), ("I32",) if target.server == "mindie" else INTEGERS),
            "deq_scale": ((outputs,), ("F32", "I64")),
            "bias": ((outputs,), FLOATS),
        }
        for part, (shape_, dtypes) in wanted.items():
            entry = directory.tensors.get(f"{name}.{part}")
            if target.server == "mindie" and part in IDLE.get(kind, ()):
                continue
            if entry and (entry.shape != shape_ or entry.dtype not in dtypes):
                effects = SHAPE_ERROR
                if entry.shape == shape_:
                    effects = {
                        "mindie": "hands it to the kernel as it is, or rounded to the model's dtype: wrong output",
                        "vllm-ascend": "casts it into a parameter of another dtype: wrong output without an error",
                    }
                yield _misshapen(directory, f"{name}.{part}", shape_, dtypes, effects)


def _misshapen(directory: Directory, tensor: str, shape: tuple, dtypes: tuple, effects: dict[str, str]) -> Finding:
    entry = directory.tensors[tensor]
    return Finding(
        directory.where(tensor),
        f"is {entry.dtype} {list(entry.shape)}, {' or '.join(dtypes)} {list(shape)} is demanded",
        effects,
        "quantize again; this is not what a loader of this format can read",
    )


def deq_scale_dtype(directory: Directory, target: Target) -> Iterator[Finding]:
    """deq_scale: float32 for a bfloat16 model, int64 that holds the float32's bits for a float16 one, int64 always on
    the 310P.
    """
    dtype = directory.float_dtype
    if dtype not in ("float16", "bfloat16"):  # float32, which servers round to what config.json says
        dtype = directory.configured_dtype
    if dtype is None:
        return
    on_310p = target.hardware == "310p"
    wanted = "F32" if dtype == "bfloat16" and not on_310p else "I64"
    for name in directory.int8:
        entry = directory.tensors.get(f"{name}.deq_scale")
        if entry and entry.dtype in ("F32", "I64") and entry.dtype != wanted:
            why = "the Atlas 300I Duo (310P)" if on_310p else f"a {dtype} model"
            yield Finding(
                directory.where(f"{name}.deq_scale"),
                f"is {entry.dtype}, {wanted} is what {why} takes",
                {
                    "mindie": "reads bits as numbers, or rounds numbers to float16: wrong output without an error",
                    "vllm-ascend": "is cast into a parameter of the other dtype: wrong output without an error",
                },
                (
                    "quantize again with --dtype float16"
                    if on_310p
                    else "quantize again with --dtype as the model is to be served"
                ),
            )


def packed_types(directory: Directory, target: Target) -> Iterator[Finding]:
    """One type in a packed group, as described and as the tensors are."""
    for group in directory.packed():
        kinds = {name: directory.kind(name) if name in directory.int8 else "FLOAT" for name in group}
        if len(set(kinds.values())) > 1:
            prefix, leaf = group[-1].rsplit(".", 1)
            mixed = target.server == "mindie" and set(kinds.values()) == {"FLOAT", "W8A8"}
            yield Finding(
                f"{prefix}: {', '.join(name.rsplit('.', 1)[1] for name in group)}",
                f"are {', '.join(kinds.values())}: one type is demanded, since they are one matrix product",
                {
                    "mindie": "loads them one by one; what its graph makes of the layer was not established"
                    if mixed
                    else "the layer is built for one type: RuntimeError, or wrong output",
                    "vllm-ascend": (
                        f"ValueError: Not all shards of {prefix}.{_packed_name(leaf)} are quantized with same quant"
                        " type."
                    ),
                },
                "quantize again and keep all of them float or none (--disable_names)",
                level="warning" if mixed else "error",
            )


def expert_types(directory: Directory, target: Target) -> Iterator[Finding]:
    """The experts of a block are one layer: all of one type, which is float or W8A8_DYNAMIC; vLLM-Ascend asks for that
    of the first, and has no static product for experts. (vllm-ascend 182b75ea: quantization.modelslim_config, packed
    "experts"; the schemes registered for "moe".)
    """
    blocks: dict[str, dict[str, str]] = {}
    int8 = set(directory.int8)
    for name, block in directory.experts.items():
        if f"{name}.weight" in directory.tensors:
            blocks.setdefault(block, {})[name] = directory.kind(name) if name in int8 else "FLOAT"
    for block, kinds in blocks.items():
        found = sorted(set(kinds.values()))
        static = [kind for kind in found if kind not in ("FLOAT", "W8A8_DYNAMIC")]
        if len(found) == 1 and not static:
            continue
        first = next(name for name, kind in kinds.items() if kind == (static or found[:1])[0])
        yield Finding(
            directory.where(f"{first}.weight"),
            f"is {kinds[first]}; the experts of {block[:-1]} are {', '.join(found)}, all W8A8_DYNAMIC or all FLOAT is"
            " demanded",
            {
                "mindie": "builds all of them for the first's type: misses a tensor of the others, or is wrong",
                "vllm-ascend": "NotImplementedError: Currently, vLLM Ascend doesn't support quant_type="
                f"{static[0]} for layer_type=moe."
                if static
                else "ValueError: Not all shards of ... are quantized with same quant type., or wrong output",
            },
            "quantize again; without --disable_names the experts are all W8A8_DYNAMIC",
        )


def _packed_name(leaf: str) -> str:
    return "qkv_proj" if leaf == "v_proj" else "gate_up_proj"


def shared_input_scale(directory: Directory, target: Target) -> Iterator[Finding]:
    """Equal input_scale and input_offset in a packed group."""
    for group in directory.packed():
        for part in ("input_scale", "input_offset"):
            values = {name: directory.scalar(f"{name}.{part}") for name in group}
            known = {value for value in values.values() if value is not None}
            if len(known) < 2:
                continue
            prefix = group[0].rsplit(".", 1)[0]
            listed = ", ".join(
                f"{name.rsplit('.', 1)[1]} {value:.6g}" for name, value in values.items() if value is not None
            )
            yield Finding(
                f"{prefix}: {part}",
                f"differs: {listed}",
                {
                    "mindie": f"ValueError: `{part}` are not equal",
                    "vllm-ascend": "the one that is loaded last silently counts for all: wrong output",
                },
                "quantize again; linears that read one tensor must be given one range",
            )
