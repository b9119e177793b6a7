"""The compressed-tensors format (vLLM, transformers with the compressed-tensors package): a plain model directory whose
linears hold int8 codes, and a quantization_config in config.json that says so.

    weight int8 [O, I], weight_scale float32 [O, 1]    as in the Ascend export: per output channel, symmetric
    dynamic: nothing more; the server rounds each token by its own largest value
    static:  input_scale [1] in the model's dtype, per tensor and symmetric: the exported range [lo, hi] fits,

        lo = (-128 - input_offset) input_scale,  hi = (127 - input_offset) input_scale,  s = max(-lo, hi) / 127

Symmetric codes waste what the asymmetric ones use wherever lo and hi are unequal, up to one bit: dynamic is the better
choice here, and the only right one on vLLM-Ascend, which leaves the offset of this format uninitialised.

`ignore` lists the linears that stay float by their hub names, as vLLM has them, and by those of transformers 5, each as
far as it differs. Left out: reading it back (transformers does), and the shift of an asymmetric activation, which
vLLM's kernels take but transformers does not.
"""

from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.int8 import ACT_MAX, ACT_MIN, EPS
from ..base.errors import QuantError
from ..base.output import check_space
from ..families import family_of
from ..families.family import Family
from ..files.config_json import write_json
from ..files.safetensors_io import SafetensorsWriter
from .reader import Export

WEIGHTS, INDEX = "model", "model.safetensors.index.json"
HEAD = "re:.*lm_head"  # vLLM has it inside the language model
INT8 = {"num_bits": 8, "type": "int", "symmetric": True}


def write(export: Export, directory: Path, act: str) -> None:
    """Weights, index and config.json of an Ascend export in this format. act: "dynamic", or "static" of a static one.

    Raises QuantError when a tensor is missing or the disk is full.
    """
    family = family_of(export.config, export.dir)
    parts = {
        f"{linear}.{part}"
        for linear in export.linear_names
        for part in export.scheme(linear).parts
        if part not in ("weight", "weight_scale")
    }
    scales = {name for name in parts if act == "static" and name.endswith(".input_scale")}
    files = sorted({info.file for info in export.tensors.values()})
    names: dict[str, str] = {}
    check_space(directory, sum(info.nbytes for name, info in export.tensors.items() if name not in parts))
    for number, file in enumerate(files):
        target = (
            directory / f"{WEIGHTS}{'' if len(files) == 1 else f'-{number + 1:05d}-of-{len(files):05d}'}.safetensors"
        )
        inside = [
            name for name, info in export.tensors.items() if info.file == file and (name not in parts or name in scales)
        ]
        layout = {name: _place(export, name, scales) for name in inside}
        writer = SafetensorsWriter(target, layout)
        try:
            for name in inside:
                if name in scales:
                    writer.write(name, symmetric_scale(export, name.removesuffix(".input_scale")))
                else:
                    writer.write(name, export.load(name).to(layout[name][0]))
            writer.close()
        finally:
            writer.abandon()
        names.update(dict.fromkeys(inside, target.name))
    if len(files) > 1:
        total = sum(info.nbytes for name, info in export.tensors.items() if name in names)
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": names})
    write_json(directory / "config.json", _config(export, family, act))


def _place(export: Export, name: str, scales: set[str]) -> tuple[torch.dtype, tuple[int, ...]]:
    info = export.tensors[name]
    if name in scales:
        return export.dtype, info.shape
    return (torch.float32 if name.endswith(".weight_scale") else info.dtype), info.shape


def symmetric_scale(export: Export, linear: str) -> Tensor:
    """[1], in the model's dtype: the symmetric scale that holds the exported range of the linear's input.

    Raises QuantError where that dtype has no such number.
    """
    scale, offset = (export.load(f"{linear}.{part}").float() for part in ("input_scale", "input_offset"))
    largest = torch.maximum((ACT_MAX - offset) * scale, (offset - ACT_MIN) * scale)
    symmetric = (largest / ACT_MAX).clamp(min=EPS).to(export.dtype)
    if not torch.isfinite(symmetric).all():
        raise QuantError(
            f"{export.dir}: {linear}.input_scale: a symmetric scale for inputs up to {largest.item():.3g} leaves"
            f" {str(export.dtype).removeprefix('torch.')}; use --act dynamic"
        )
    return symmetric


def _config(export: Export, family: Family, act: str) -> dict:
    config = {key: value for key, value in export.config.items() if key not in ("quantize", "quantization_config")}
    if "vision_config" in config:
        config["vision_config"] = {key: value for key, value in config["vision_config"].items() if key != "quantize"}
    activations = {**INT8, "strategy": "token" if act == "dynamic" else "tensor", "dynamic": act == "dynamic"}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**INT8, "strategy": "channel", "dynamic": False},
                "input_activations": activations,
            }
        },
        "ignore": ignored(export, family),
    }
    return config


def ignored(export: Export, family: Family) -> list[str]:
    """Names of the linears that stay float: the hub's, then those of transformers 5 that differ; and any head, tied or
    not.
    """
    int8 = {f"{linear}.weight" for linear in export.linear_names}
    weights = [
        name
        for name, info in export.tensors.items()
        if name.endswith(".weight") and len(info.shape) == 2 and "embed" not in name and name not in int8
    ]
    weights = [name for name in weights if name != f"{family.head}.weight"]  # HEAD has it
    renamed = [new + name[len(old) :] for name in weights for old, new in family.renames if name.startswith(old)]
    return [*dict.fromkeys(name.removesuffix(".weight") for name in weights + renamed), HEAD]


def act_of(config: dict) -> str:
    """How the activations of such a directory are rounded, by its config.json: dynamic or static."""
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    return "dynamic" if any(group["input_activations"]["dynamic"] for group in groups) else "static"
