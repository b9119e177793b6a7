"""Does an export hold the tensors that its source and its description call for, in the right shapes and dtypes, and are
those that no fold touches the source's own? What can be said without the arithmetic of folding, which is folding.py's.
"""

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..export.reader import Export
from ..families.family import Family
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
class Damage:
    """A tensor of an export that is not what it should be. tensor: its hub name; problem: one line.

    ("findings" in verify's JSON. What a server refuses is another matter, a Finding of servers/rules: it names the
    servers, and says what to do.)
    """

    tensor: str
    problem: str


def check_format(checkpoint: Checkpoint, export: Export) -> list[Damage]:
    """Every tensor that is missing, unknown, or not of the shape and dtype that a server reads; from headers alone."""
    damage: list[Damage] = []
    known: set[str] = set()
    for name, info in checkpoint.tensors.items():
        owner, _, leaf = name.rpartition(".")
        expected: dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
        expected = {name: ((export.dtype if info.dtype.is_floating_point else info.dtype,), info.shape)}
        if leaf == "weight" and owner in export.words:
            if len(info.shape) != 2:
                what = f"is described as an int8 linear's, the source's has shape {list(info.shape)}"
                damage.append(Damage(name, what))
                known.add(name)
                continue
            outputs, inputs = info.shape
            stored = export.scheme(owner).stored(outputs, inputs, export.dtype)
            expected = {f"{owner}.{part}": rule for part, rule in stored.items()}
        for tensor, (dtypes, shape) in expected.items():
            known.add(tensor)
            if problem := _wrong(export, tensor, dtypes, shape):
                damage.append(Damage(tensor, problem))
                if tensor == f"{owner}.weight" and problem.startswith(
                    "has shape"
                ):  # its scales and biases then have another shape too
                    known.update([*export.parts(name), f"{owner}.bias"])
                    break
    for tensor in export.tensors:
        if tensor not in known:
            damage.append(
                Damage(
                    tensor,
                    "is neither the source's nor part of an int8 linear; it would be ignored, or read as something"
                    " else",
                )
            )
    return damage


def _wrong(export: Export, tensor: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> str | None:
    """What is wrong with the dtype or the shape of a tensor; None where nothing is."""
    info = export.tensors.get(tensor)
    if info is None:
        return "is missing"
    if info.dtype not in dtypes:
        wanted, stored = (str(dtype).removeprefix("torch.") for dtype in (dtypes[0], info.dtype))
        return f"is {stored}, servers of {str(export.dtype).removeprefix('torch.')} models read {wanted} there"
    if info.shape != shape:
        what = "it is transposed" if info.shape == shape[::-1] else "it is another tensor, or of another model"
        return f"has shape {list(info.shape)}, the source makes it {list(shape)}: {what}"
    return None


def check_side_files(checkpoint: Checkpoint, export: Export) -> list[str]:
    """Files that servers read besides the weights and that the export changed or lacks, one line each."""
    notices = []
    for file in checkpoint.copied_files:
        copy = export.dir / file.name
        if not copy.is_file():
            notices.append(f"{file.name} of the source is missing in the export")
        elif copy.read_bytes() != file.read_bytes():
            notices.append(f"{file.name} is not the source's")
    return notices


def check_config(checkpoint: Checkpoint, export: Export) -> list[Damage]:
    """Keys that both config.json have and that do not say the same, in either layout of the language model's keys."""
    ours, theirs = _settings(checkpoint.config), _settings(export.config)
    return [
        Damage("config.json", f"{key} is {json.dumps(theirs[key])}, the source's is {json.dumps(value)}")
        for key, value in ours.items()
        if key in theirs and theirs[key] != value and key.rpartition(".")[2] not in MAY_DIFFER
    ]


def _settings(config: dict) -> dict:
    """Every key of the model: text_config's among the others, vision_config's as "vision_config.KEY"."""
    flat = {**config.get("text_config", {}), **config}
    vision = {f"vision_config.{key}": value for key, value in flat.get("vision_config", {}).items()}
    return {key: value for key, value in flat.items() if key not in ("text_config", "vision_config")} | vision


def check_outside(
    checkpoint: Checkpoint, export: Export, family: Family, known: frozenset[str] | set[str] = frozenset()
) -> list[Damage]:
    """Damage to what the blocks in use do not hold: embeddings, merger or projector, last norms and head, blocks that
    the model's output does not depend on. known: tensors that are damaged for sure, and not looked at again.
    """

    def outside(name: str) -> bool:
        block = family.block_of(name)
        return block is None or block[1] >= block[0].used(checkpoint.config)

    names = [name for name in checkpoint.tensors if name not in known and outside(name)]
    compared = ((name, difference(export.load(name), checkpoint.load(name))) for name in names)
    return [Damage(name, problem) for name, problem in compared if problem]


def difference(exported: Tensor, source: Tensor) -> str | None:
    """How a tensor differs from the source's, of the same shape, any shape, rounded to its dtype; None when it does
    not.
    """
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
