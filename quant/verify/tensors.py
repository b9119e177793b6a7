"""Does an export hold the tensors that its source and its description call for, in the right shapes and dtypes, and are
those that no fold touches the source's own? What can be said without the arithmetic of folding; that is
audit_block.py's.
"""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..export.reader import Export
from ..files.checkpoint import Checkpoint

# Of config.json: what an export changes, and what says nothing of the computation.
MAY_DIFFER = {
    "quantize",
    "quantization_config",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "_name_or_path",
    "use_cache",
    "architectures",
    "model_type",
}


@dataclass(frozen=True)
class Finding:
    """Damage. tensor: its hub name; problem: one line."""

    tensor: str
    problem: str


def check_format(checkpoint: Checkpoint, export: Export) -> list[Finding]:
    """Every tensor that is missing, unknown, or not of the shape and dtype that a server reads; from headers alone."""
    findings, known = [], set()
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    for name, info in checkpoint.tensors.items():
        owner, _, leaf = name.rpartition(".")
        expected = {name: ((export.dtype if info.dtype.is_floating_point else info.dtype,), info.shape)}
        if leaf == "weight" and owner in export.words:
            stored = export.scheme(owner).stored(*info.shape, export.dtype)
            expected = {f"{owner}.{part}": rule for part, rule in stored.items()}
        for tensor, (dtypes, shape) in expected.items():
            known.add(tensor)
            if problem := _wrong(export, tensor, dtypes, shape, shapes):
                findings.append(Finding(tensor, problem))
                if tensor == f"{owner}.weight" and problem.startswith(
                    "has shape"
                ):  # its scales and biases then have another shape too
                    known.update([*export.parts(name), f"{owner}.bias"])
                    break
    for tensor in export.tensors:
        if tensor not in known:
            findings.append(
                Finding(
                    tensor,
                    "is neither the source's nor part of an int8 linear; it would be ignored, or read as something"
                    " else",
                )
            )
    return findings


def _wrong(
    export: Export, tensor: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...], shapes: dict
) -> str | None:
    info = export.tensors.get(tensor)
    if info is None:
        return "is missing"
    if info.dtype not in dtypes:
        wanted, stored = (str(dtype).removeprefix("torch.") for dtype in (dtypes[0], info.dtype))
        return f"is {stored}, servers of {str(export.dtype).removeprefix('torch.')} models read {wanted} there"
    if info.shape != shape:
        if len(shape) == 2 and info.shape == shape[::-1]:
            what = "it is transposed"
        else:
            block = tensor.rpartition(".")[0].rpartition(".")[0]
            like = [
                name
                for name, other in shapes.items()
                if other == info.shape and name.startswith(f"{block}.") and name != tensor
            ]
            what = f"which is the shape of {like[0]}" if like else "they are of different models"
        return f"has shape {list(info.shape)}, the source makes it {list(shape)}: {what}"
    return None


def check_side_files(checkpoint: Checkpoint, export: Export) -> list[str]:
    """What servers read beside the weights and the export changed or lacks, one line each: it is no damage to weights."""
    notices = []
    for file in checkpoint.side_files:
        copy = export.dir / file.name
        if file.name == "config.json":
            continue
        if not copy.is_file():
            notices.append(f"{file.name} of the source is missing in the export")
        elif copy.read_bytes() != file.read_bytes():
            notices.append(f"{file.name} is not the source's")
    return notices


def check_config(checkpoint: Checkpoint, export: Export) -> list[Finding]:
    """Keys that both config.json have and that do not say the same, in either layout of the language model's keys."""
    ours, theirs = _settings(checkpoint.config), _settings(export.config)
    return [
        Finding("config.json", f"{key} is {json.dumps(theirs[key])}, the source's is {json.dumps(value)}")
        for key, value in ours.items()
        if key in theirs and theirs[key] != value and key.rpartition(".")[2] not in MAY_DIFFER
    ]


def _settings(config: dict) -> dict:
    """Every key of the model, those of text_config beside the others, those of vision_config with its name before them."""
    flat = {**config.get("text_config", {}), **config}
    vision = {f"vision_config.{key}": value for key, value in flat.get("vision_config", {}).items()}
    return {key: value for key, value in flat.items() if key not in ("text_config", "vision_config")} | vision


def check_outside(checkpoint: Checkpoint, export: Export, names: list[str]) -> list[Finding]:
    """Tensors that no fold touches, compared one at a time."""
    compared = ((name, difference(export.load(name), checkpoint.load(name))) for name in names)
    return [Finding(name, problem) for name, problem in compared if problem]


def difference(exported: Tensor, source: Tensor) -> str | None:
    """How a tensor differs from the source's, rounded to its dtype; None when it does not."""
    expected = source.to(exported.dtype)
    if torch.equal(exported, expected):
        return None
    if exported.dim() == 2 and exported.shape[0] == exported.shape[1] and torch.equal(exported, expected.T):
        return "is the transpose of the source's"
    bad = (exported != expected).flatten()
    first = int(bad.nonzero()[0])
    values = f"[{first}] is {exported.flatten()[first].item():.6g}, there it is {expected.flatten()[first].item():.6g}"
    return f"differs from the source's in {int(bad.sum())} of {len(bad)} values: {values}"


def where(bad: Tensor, noun: str = "row") -> str:
    """[N] bool -> "row 3", or "5 of 96 rows (3, 17, 20, ...)"."""
    found = bad.nonzero().flatten().tolist()
    if len(found) == 1:
        return f"{noun} {found[0]}"
    return f"{len(found)} of {len(bad)} {noun}s ({', '.join(map(str, found[:3]))}{', ...' if len(found) > 3 else ''})"
