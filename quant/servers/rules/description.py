"""Rules on quant_model_description.json: one entry per tensor, "FLOAT" or the type of the int8 linear that the tensor
is a part of.

Servers decide by it how a layer is built, before they see a tensor: vLLM-Ascend looks up `name.weight` of every linear
and embedding, MindIE those of the linears that it packs (q, k, v; gate, up). Besides the entries it holds
`model_quant_type`, `version`, and no key whose value is null.
"""

from collections.abc import Iterator

from ...families.family import match
from .directory import DESCRIPTION, MAX_JSON, OLD_DESCRIPTION, PARTS, STATIC, Directory, Target
from .finding import Finding

METADATA = ("model_quant_type", "version", "group_size", "metadata", "optional")


def description_file(directory: Directory, target: Target) -> Iterator[Finding]:
    """The description, under the name that the server looks for."""
    file = directory.description_file
    if file is None:
        yield Finding(
            DESCRIPTION,
            f"there is neither it nor {OLD_DESCRIPTION}",
            {
                "mindie": "AssertionError while it reads the description",
                "vllm-ascend": "ERROR: ModelSlim Quantization Config Not Found",
            },
            "quantize again; the description is part of the export",
        )
    elif file.name == OLD_DESCRIPTION:
        yield Finding(
            OLD_DESCRIPTION,
            f"vLLM-Ascend reads {DESCRIPTION} only",
            {"vllm-ascend": "ERROR: ModelSlim Quantization Config Not Found"},
            f"rename it to {DESCRIPTION}, which MindIE reads too: --fix does it",
        )


def description_size(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE opens no JSON file above 100 MB."""
    file = directory.description_file
    if file and (size := file.stat().st_size) > MAX_JSON:
        yield Finding(
            file.name,
            f"{size} bytes, MindIE reads at most {MAX_JSON}",
            {"mindie": f"ValueError: The size of file should not be greater than {MAX_JSON}, but got {size}."},
            "write it without blanks, one entry per tensor",
        )


def description_keys(directory: Directory, target: Target) -> Iterator[Finding]:
    """model_quant_type and version, as good exports have them (quantize_key says where MindIE needs the first), and no
    null.
    """
    if directory.description is None:
        return
    name, described = directory.description_name, directory.description
    for key in ("model_quant_type", "version"):
        if key not in described and name == DESCRIPTION:  # msmodelslim's older format has no version
            yield Finding(
                f"{name}: {key}",
                "is missing",
                {"mindie": "does without"},
                "add it, as good exports have it: --fix does it",
                level="taste",
            )
    for key, value in described.items():
        if value is None:
            yield Finding(
                f"{name}: {key}",
                "is null",
                {
                    "vllm-ascend": (
                        "takes the feature for switched on, since only an empty text or an absent key means off"
                    )
                },
                "remove the key: --fix does it",
            )


def description_entry(directory: Directory, target: Target) -> Iterator[Finding]:
    """An entry for the weight of every linear and embedding; for a tied head, too, which has no tensor of its own.

    vLLM-Ascend asks for all of them, under the names of vLLM's modules; MindIE for those that it packs. (vllm-ascend
    182b75ea: quantization.modelslim_config, get_linear_quant_type; MindIE-LLM 8b4871a:
    atb_llm.utils.quantize.pack_type.)
    """
    if directory.description is None:
        return
    names = [name for name in directory.linears if f"{name}.weight" in directory.expected]
    looked_up = [name for name in names if not name.endswith(("position_embedding", "pos_embed"))]  # nobody asks
    for name in dict.fromkeys((*looked_up, directory.head)):
        if f"{name}.weight" in directory.description:
            continue
        effects = {
            "vllm-ascend": f"KeyError: '{name}.weight'; newer releases take a layer that is not packed for float"
        }
        if directory.mindie_asks(name):
            effects["mindie"] = f"KeyError: '{name}.weight'"
        yield Finding(
            f"{directory.description_name}: {name}.weight",
            "has no entry",
            effects,
            "add its entry, FLOAT for a float tensor: --fix does it",
        )


def description_alias(directory: Directory, target: Target) -> Iterator[Finding]:
    """An entry under each further name of a linear, of the linear's type: vLLM asks by the name of the module that it
    packs, or takes one apart that the checkpoint has fused.

    Inferred from sources, not run: vllm-ascend 182b75ea, quantization.modelslim_config, get_linear_quant_type; which
    table of packed modules counts when, in vLLM 0.27.1 and 0.32.0, model_loader.utils.configure_quant_config; names and
    prefixes in model_executor.models: llava_onevision and paddleocr_vl (SiglipAttention), glm_ocr
    (GlmOcrVisionAttention), glm4_1v, glm4.
    """
    if directory.description is None:
        return
    for alias, linear in directory.aliases.items():
        says, wanted = directory.description.get(f"{alias}.weight"), directory.description.get(f"{linear}.weight")
        if says == wanted:
            continue
        yield Finding(
            f"{directory.description_name}: {alias}.weight",
            "has no entry" if says is None else f"is {says!r}, its part {linear} is {wanted!r}",
            {"vllm-ascend": f"KeyError: '{alias}.weight'" if says is None else "builds it for another type"},
            f"describe it as {linear}: --fix does it",
        )


def description_type(directory: Directory, target: Target) -> Iterator[Finding]:
    """A type that servers know, and that of the tensor: int8 for W8A8, a float for FLOAT."""
    if directory.description is None:
        return
    for name in directory.linears:
        kind, entry = directory.description.get(f"{name}.weight"), directory.tensors[f"{name}.weight"]
        if kind is None:
            continue
        if kind != "FLOAT" and kind not in PARTS:
            effects = {
                "vllm-ascend": (
                    f"NotImplementedError: Currently, vLLM Ascend doesn't support quant_type={kind} for"
                    " layer_type=linear."
                )
            }
            if match(directory.family.mindie_looks_up, name):
                effects["mindie"] = f"KeyError: '{kind}'"
            elif directory.mindie_asks(name):
                effects["mindie"] = "builds the layer as a float one: wrong output, or a kernel error"
            yield Finding(
                f"{directory.description_name}: {name}.weight",
                f"is of type {kind!r}; known are FLOAT, {', '.join(PARTS)}",
                effects,
                "the description belongs to the tensors beside it: fetch both from the same run",
            )
        elif (kind == "FLOAT") == (entry.dtype == "I8"):
            effects = {"vllm-ascend": "copies it into a parameter of the other dtype: wrong output"}
            if directory.mindie_asks(name):
                effects["mindie"] = "builds the layer for the type described: wrong output, or a kernel error"
            yield Finding(
                directory.where(f"{name}.weight"),
                f"is {entry.dtype}, described as {kind}",
                effects,
                "the description belongs to the tensors beside it: --fix writes it anew from them",
            )
        elif kind == "W8A8_MIX" and match(directory.family.mindie_looks_up, name):
            yield Finding(
                f"{directory.description_name}: {name}.weight",
                f"is W8A8_MIX; MindIE looks the types of {directory.family.name}'s packed linears up by their names,"
                " and has this type under another",
                {"mindie": "KeyError: 'W8A8_MIX'"},
                "export it with --act static for MindIE",
            )


def description_parts(directory: Directory, target: Target) -> Iterator[Finding]:
    """All tensors of an int8 linear are of its type; its float bias is FLOAT. These releases ask for weights only."""
    if directory.description is None:
        return
    for name in directory.int8:
        kind = directory.description.get(f"{name}.weight")
        if kind not in PARTS:
            continue
        wanted = {f"{name}.{part}": kind for part in PARTS[kind]} | {f"{name}.bias": "FLOAT"}
        for tensor, type_ in wanted.items():
            said = directory.description.get(tensor)
            if tensor in directory.tensors and said not in (None, type_):
                yield Finding(
                    f"{directory.description_name}: {tensor}",
                    f"is {said!r}, its linear is {kind}, so {type_!r} is right",
                    dict.fromkeys(("mindie", "vllm-ascend"), "reads the weight's entry alone, other releases may not"),
                    "--fix writes the description anew from the tensors",
                    level="warning",
                )


def description_stale(directory: Directory, target: Target) -> Iterator[Finding]:
    """No entry without its tensor: a sign that description and weights are of different runs. The servers build the
    model by config.json, and do not ask for the entry.
    """
    if directory.description is None or not directory.tensors:
        return
    int8 = set(directory.int8)
    for tensor in directory.description:
        linear, _, part = tensor.rpartition(".")
        if tensor in directory.tensors or tensor in METADATA or tensor == f"{directory.head}.weight" or not linear:
            continue
        if part == "weight" and linear in directory.aliases:
            continue
        lost = f"{linear}.weight" in directory.expected and f"{linear}.weight" not in directory.tensors
        if (linear in int8 or lost) and part in STATIC or tensor in directory.expected:
            continue  # linear_parts and missing_tensors report it
        wrapped = linear.endswith(".module")
        effects = dict.fromkeys(("mindie", "vllm-ascend"), "does not ask for it")
        if wrapped:
            effects = {"mindie": f"AssertionError: weight {tensor} does not exist"}
        yield Finding(
            f"{directory.description_name}: {tensor}",
            "is described, but there is no such tensor",
            effects,
            "description and weights are of different runs, or a weight file is missing: copy the export again",
            level="error" if wrapped else "warning",
        )
