"""What an Ascend export will hold, decided from the plan before a tensor is written: names, dtypes, shapes, and their
order in the files.

Of a linear in int8, `name.weight` becomes the tensors of its scheme (schemes.py) and `name.bias` stays, in the model's
dtype. Everything else keeps its hub name, in the model's dtype.
"""

import torch

from ..arithmetic.schemes import SCHEMES
from ..files.checkpoint import Checkpoint
from .plan import Plan

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def export_layout(checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype) -> Layout:
    """Tensor name -> (dtype, shape) of the export, in file order: blocks in the order they are done, then the rest."""

    def position(name: str) -> tuple[int, int]:
        block = plan.family.block_of(name)
        return (plan.family.towers.index(block[0]), block[1]) if block else (len(plan.family.towers), 0)

    layout = {}
    for name in sorted(checkpoint.tensors, key=position):
        info, linear = checkpoint.tensors[name], name.removesuffix(".weight")
        if linear == name or not plan.is_int8(linear):
            layout[name] = (dtype if info.dtype.is_floating_point else info.dtype, info.shape)
            continue
        outputs, inputs = info.shape
        for part, (dtypes, shape) in SCHEMES[plan.words[linear]].stored(outputs, inputs, dtype).items():
            layout[f"{linear}.{part}"] = (dtypes[0], shape)
    return layout


def exported_names(name: str, plan: Plan) -> list[str]:
    """What the hub tensor `name` becomes in the export: several for the weight of an int8 linear, else itself."""
    linear = name.removesuffix(".weight")
    if linear == name or not plan.is_int8(linear):
        return [name]
    return [f"{linear}.{part}" for part in SCHEMES[plan.words[linear]].parts]


def file_names(stem: str, count: int) -> list[str]:
    """Names of `count` weight files."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def weights_stem(word: str) -> str:
    """What the weight files of a model of this type are called."""
    return f"quant_model_weight_{word.lower()}"


def in_parts(layout: Layout, part_bytes: int) -> list[Layout]:
    """The layout over files: a further one is begun where a tensor would take one above `part_bytes`."""
    parts: list[Layout] = [{}]
    size = 0
    for name, (kind, shape) in layout.items():
        nbytes = torch.Size(shape).numel() * kind.itemsize
        if parts[-1] and size + nbytes > part_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = (kind, shape)
        size += nbytes
    return parts
