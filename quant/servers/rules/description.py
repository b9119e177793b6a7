"""Rules on quant_model_description.json: one entry per tensor, "FLOAT" or the type of the int8 linear that the tensor
is a part of.

Servers decide by it how a layer is built, before they see a tensor: MindIE and vLLM-Ascend look up `name.weight` of
every linear and embedding. Besides the entries it holds `model_quant_type`, `version`, and no key whose value is null.
"""

from collections.abc import Iterator

from .directory import DESCRIPTION, MAX_JSON, OLD_DESCRIPTION, PARTS, STATIC, Directory, Target
from .finding import Finding

METADATA = ("model_quant_type", "version", "group_size", "metadata", "optional")
UNKNOWN_TO_MINDIE = "KeyError, from the lookup of the type in LinearTypeV2"


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
    """model_quant_type and version, and no null."""
    if directory.description is None:
        return
    name, described = directory.description_file.name, directory.description
    if "model_quant_type" not in described:
        yield Finding(
            f"{name}: model_quant_type",
            "is missing",
            {"mindie": "its newer runtime looks the model's type up there"},
            "add it, the type of the int8 linears: --fix does it",
        )
    version = described.get("version")
    if version != "1.0.0" and (version is not None or name == DESCRIPTION):  # msmodelslim's older format has none
        yield Finding(
            f"{name}: version",
            f'is {version!r}, "1.0.0" is what this format is called',
            {"mindie": "takes the directory for the older format, version 0.0.0"},
            'set it to "1.0.0": --fix does it',
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
    """An entry for the weight of every linear and embedding. A tied head has no tensor, but is looked up all the same."""
    if directory.description is None:
        return
    looked_up = [name for name in directory.linears if not name.endswith("position_embedding")]
    if directory.head not in looked_up:
        looked_up.append(directory.head)
    for name in looked_up:
        if f"{name}.weight" in directory.description:
            continue
        effects = {
            "vllm-ascend": f"KeyError: '{name}.weight'; newer releases take a layer that is not packed for float"
        }
        if f"{name}.weight" in directory.tensors:  # MindIE loads a tied head as the embedding
            effects["mindie"] = f"KeyError: '{name}.weight'"
        yield Finding(
            f"{directory.description_file.name}: {name}.weight",
            "has no entry",
            effects,
            "add its entry, FLOAT for a float tensor: --fix does it",
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
            yield Finding(
                f"{directory.description_file.name}: {name}.weight",
                f"is of type {kind!r}; known are FLOAT, {', '.join(PARTS)}",
                {
                    "mindie": UNKNOWN_TO_MINDIE,
                    "vllm-ascend": (
                        f"NotImplementedError: Currently, vLLM Ascend doesn't support quant_type={kind} for"
                        " layer_type=linear."
                    ),
                },
                "the description belongs to the tensors beside it: fetch both from the same run",
            )
        elif (kind == "FLOAT") == (entry.dtype == "I8"):
            yield Finding(
                directory.where(f"{name}.weight"),
                f"is {entry.dtype}, described as {kind}",
                {
                    "mindie": "takes codes for values, or values for codes: wrong output, or a kernel error",
                    "vllm-ascend": "copies it into a parameter of the other dtype: wrong output",
                },
                "the description belongs to the tensors beside it: --fix writes it anew from them",
            )


def description_parts(directory: Directory, target: Target) -> Iterator[Finding]:
    """All tensors of an int8 linear carry its type; its float bias is FLOAT."""
    if directory.description is None:
        return
    for name in directory.int8:
        kind = directory.description.get(f"{name}.weight")
        if kind not in PARTS:
            continue
        wanted = {f"{name}.{part}": kind for part in PARTS[kind]} | {f"{name}.bias": "FLOAT"}
        for tensor, type_ in wanted.items():
            if tensor in directory.tensors and directory.description.get(tensor) != type_:
                yield Finding(
                    f"{directory.description_file.name}: {tensor}",
                    f"is {directory.description.get(tensor)!r}, its linear is {kind}, so {type_!r} is right",
                    dict.fromkeys(
                        ("mindie", "vllm-ascend"),
                        "reads a linear of two types; which one counts differs between releases",
                    ),
                    "--fix writes the description anew from the tensors",
                )


def description_stale(directory: Directory, target: Target) -> Iterator[Finding]:
    """No entry without its tensor: a sign that description and weights are of different runs."""
    if directory.description is None or not directory.tensors:
        return
    int8 = set(directory.int8)
    for tensor in directory.description:
        linear, _, part = tensor.rpartition(".")
        if tensor in directory.tensors or tensor in METADATA or tensor == f"{directory.head}.weight" or not linear:
            continue
        if linear in int8 and part in STATIC or tensor in directory.expected:
            continue  # linear_parts and missing_tensors report it
        yield Finding(
            f"{directory.description_file.name}: {tensor}",
            "is described, but there is no such tensor",
            dict.fromkeys(("mindie", "vllm-ascend"), "builds the layer as described, then does not find its tensor"),
            "description and weights are of different runs, or a weight file is missing: copy the export again",
        )
