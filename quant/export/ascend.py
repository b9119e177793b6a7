"""The W8A8 directory that Ascend servers load: written tensor by tensor, and read back.

Of a linear in int8, `name.weight` becomes
    weight int8 [O, I]         weight_scale, weight_offset float32 [O, 1] (offset 0)      input_scale, input_offset float32 [1]
    quant_bias int32 [O]       deq_scale [O]: float32 for a bfloat16 model, else int64 that holds the float32's bits
and `name.bias` stays, in the model's dtype. Everything else keeps its hub name, in the model's dtype. quant_model_description.json has one
entry per tensor: W8A8 for those of an int8 linear, FLOAT for its bias and all others.

Two layouts of the same tensors. "ascendV1": one directory for MindIE and vLLM-Ascend. "mindie": the names that MindIE
releases before 2.1 look for, and a quantization_config block in config.json; vLLM-Ascend would take that block for
another format. Written here is the first; formats.py makes the other from it.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.int8 import QLinear
from ..base.errors import QuantError, UsageError
from ..base.output import DIR_MODE, FILE_MODE, replace_file
from ..files import config_json
from ..files.checkpoint import Checkpoint
from ..files.safetensors_io import SafetensorsWriter, TensorInfo, read_header, read_tensor
from .plan import Plan

WEIGHTS = "quant_model_weight_w8a8"
DESCRIPTION = {"ascendV1": "quant_model_description.json", "mindie": "quant_model_description_w8a8.json"}
INT8_PARTS = ("weight", "weight_scale", "weight_offset", "input_scale", "input_offset", "quant_bias", "deq_scale")
STATIC_KINDS = ("W8A8", "W8A8_MIX")
METADATA = {"version": "1.0.0", "model_quant_type": "W8A8"}


def deq_dtype(dtype: torch.dtype) -> torch.dtype:
    """What deq_scale is stored as for a model of `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else torch.int64


def pack_deq_scale(deq_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [O] -> itself, or int64 whose low 32 bits are the float32's."""
    if deq_dtype(dtype) == torch.float32:
        return deq_scale
    return deq_scale.contiguous().view(torch.int32).to(torch.int64)  # a scale is positive: its sign bit is 0


def linear_tensors(linear: QLinear, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensor name -> tensor of one int8 linear, its bias among them."""
    parts = {
        "weight": linear.weight,
        "weight_scale": linear.weight_scale,
        "weight_offset": torch.zeros_like(linear.weight_scale),
        "input_scale": linear.input_scale,
        "input_offset": linear.input_offset,
        "quant_bias": linear.quant_bias,
        "deq_scale": pack_deq_scale(linear.deq_scale, dtype),
    }
    if linear.bias is not None:
        parts["bias"] = linear.bias
    return {f"{linear.name}.{part}": tensor for part, tensor in parts.items()}


def export_layout(
    checkpoint: Checkpoint, plan: Plan, dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Tensor name -> (dtype, shape) of the export, in file order: the blocks in the order they are done, then the rest."""

    def position(name: str) -> tuple[int, int]:
        block = plan.family.block_of(name)
        return (plan.family.towers.index(block[0]), block[1]) if block else (len(plan.family.towers), 0)

    layout = {}
    for name in sorted(checkpoint.tensors, key=position):
        info, linear = checkpoint.tensors[name], name.removesuffix(".weight")
        if exported_names(name, plan) == [name]:
            layout[name] = (dtype if info.dtype.is_floating_point else info.dtype, info.shape)
            continue
        outputs = info.shape[0]
        shapes = {
            "weight": info.shape,
            "weight_scale": (outputs, 1),
            "weight_offset": (outputs, 1),
            "quant_bias": (outputs,),
            "deq_scale": (outputs,),
        }
        dtypes = {"weight": torch.int8, "quant_bias": torch.int32, "deq_scale": deq_dtype(dtype)}
        layout.update(
            {f"{linear}.{part}": (dtypes.get(part, torch.float32), shapes.get(part, (1,))) for part in INT8_PARTS}
        )
    return layout


def exported_names(name: str, plan: Plan) -> list[str]:
    """What the hub tensor `name` becomes in the export: several tensors for the weight of an int8 linear, else itself."""
    linear = name.removesuffix(".weight")
    return [f"{linear}.{part}" for part in INT8_PARTS] if linear != name and linear in plan.int8_names else [name]


class ExportWriter:
    """Writes an export into `directory`, which must be empty or absent; every tensor of export_layout once, in any
    order.

    part_bytes: the size above which a further weight file is begun. done: hub tensors that an earlier writer of the
    same export has brought to the disk. finish() writes what stands beside the weights.
    """

    def __init__(
        self,
        directory: Path,
        checkpoint: Checkpoint,
        plan: Plan,
        dtype: torch.dtype,
        part_bytes: int,
        done: Iterable[str] = (),
    ):
        self.dir, self.checkpoint, self.plan, self.dtype = directory, checkpoint, plan, dtype
        try:
            directory.mkdir(parents=True, mode=DIR_MODE, exist_ok=True)
        except OSError as err:
            raise QuantError(f"{directory}: {err.strerror}") from None
        self.layout = export_layout(checkpoint, plan, dtype)
        parts: list[dict] = [{}]
        size = 0
        for name, (kind, shape) in self.layout.items():
            nbytes = torch.Size(shape).numel() * kind.itemsize
            if parts[-1] and size + nbytes > part_bytes:
                parts.append({})
                size = 0
            parts[-1][name] = (kind, shape)
            size += nbytes
        names = (
            [f"{WEIGHTS}.safetensors"]
            if len(parts) == 1
            else [f"{WEIGHTS}-{i + 1:05d}-of-{len(parts):05d}.safetensors" for i in range(len(parts))]
        )
        written = {part for name in done for part in exported_names(name, plan)}
        self.files = [SafetensorsWriter(directory / name, part, written) for name, part in zip(names, parts)]
        self.file_of = {name: file for file in self.files for name in file.infos}
        self.pending = set(self.layout) - written

    @property
    def nbytes(self) -> int:
        return sum(file.size for file in self.files)

    def put_linear(self, linear: QLinear) -> None:
        for name, tensor in linear_tensors(linear, self.dtype).items():
            self.put(name, tensor)

    def put_float(self, name: str, tensor: Tensor) -> None:
        """Any tensor that is not part of an int8 linear; floats are rounded to the model's dtype.

        Raises QuantError when a value does not fit it.
        """
        if tensor.is_floating_point():
            tensor = to_dtype(name, tensor, self.dtype)
        self.put(name, tensor)

    def put(self, name: str, tensor: Tensor) -> None:
        """A tensor as it will stand in the file."""
        self.file_of[name].write(name, tensor)
        self.pending.discard(name)

    def copy(self, name: str, pieces: Iterable[Tensor]) -> None:
        """A tensor of the checkpoint as it was, in pieces that follow each other; floats are rounded to the model's
        dtype.
        """
        kind = self.layout[name][0]
        self.file_of[name].write_pieces(
            name, (to_dtype(name, piece, kind) if piece.is_floating_point() else piece for piece in pieces)
        )
        self.pending.discard(name)

    def sync(self) -> None:
        """Bring to the disk what was written so far."""
        for file in self.files:
            file.sync()

    def finish(self) -> None:
        """Close the weights; write description, index, config.json and the source's other files."""
        for file in self.files:
            file.close()
        write_beside(self.dir, self.checkpoint, self.plan, self.layout, self.dtype)

    def abandon(self) -> None:
        """Close without a complaint what a failed run leaves open."""
        for file in self.files:
            file.abandon()


def to_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype)
    if (
        dtype == torch.float16
        and tensor.dtype != dtype
        and tensor.numel()
        and not torch.isfinite(torch.stack(rounded.aminmax())).all()
    ):
        raise QuantError(f"{name} reaches {tensor.abs().max().item():.3g}, float16 ends at 65504; use --dtype bfloat16")
    return rounded


def describe(layout: dict, plan: Plan) -> dict[str, str]:
    """The description's entries. A tied head has no tensor of its own, but vLLM-Ascend looks its entry up."""
    entries = {}
    for name in layout:
        linear, _, part = name.rpartition(".")
        entries[name] = "W8A8" if linear in plan.int8_names and part in INT8_PARTS else "FLOAT"
    entries.setdefault(f"{plan.family.head}.weight", "FLOAT")
    return {**METADATA, **entries}


def write_beside(directory: Path, checkpoint: Checkpoint, plan: Plan, layout: dict, dtype: torch.dtype) -> None:
    """Everything of an export but its weights and its recipe."""
    files = sorted(directory.glob(f"{WEIGHTS}*.safetensors"))
    if len(files) > 1:
        headers = {name: file.name for file in files for name in read_header(file)}
        total = sum(torch.Size(shape).numel() * kind.itemsize for kind, shape in layout.values())
        write_json(
            directory / f"{WEIGHTS}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": headers}
        )
    write_json(directory / DESCRIPTION["ascendV1"], describe(layout, plan))
    vision_int8 = any(name.startswith(plan.family.tower("vision").prefix) for name in plan.int8_names)
    edited = config_json.edit(
        checkpoint.config,
        flat=plan.family.flat_config,
        dtype=dtype,
        vision_int8=vision_int8,
        vocab_size=plan.family.vocab_size(checkpoint.config),
    )
    write_json(directory / "config.json", edited)
    for file in checkpoint.side_files:
        if file.name != "config.json":
            copy_file(file, directory / file.name)
    for file in directory.iterdir():
        file.chmod(FILE_MODE)
    directory.chmod(DIR_MODE)


def write_json(file: Path, value: dict) -> None:
    replace_file(file, config_json.dumps(value).encode())


def copy_file(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as err:
        raise QuantError(f"{source} -> {target}: {err.strerror}") from None


@dataclass
class Export:
    """An export directory as it is on disk, of either layout, ours or msmodelslim's; tensors are read when asked for."""

    dir: Path
    kind: str
    config: dict
    description: dict[str, str]
    tensors: dict[str, TensorInfo]

    @property
    def linear_names(self) -> list[str]:
        """The int8 linears. W8A8_MIX holds all that static W8A8 does."""
        return [
            name.removesuffix(".weight")
            for name, kind in self.description.items()
            if kind in STATIC_KINDS and name.endswith(".weight")
        ]

    @property
    def dtype(self) -> torch.dtype:
        """What the server computes in."""
        return getattr(torch, config_json.dtype_name(self.config))

    def load(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise QuantError(f"{self.dir}: tensor {name} is missing")
        return read_tensor(self.tensors[name])

    def linear(self, name: str) -> QLinear:
        """The int8 linear as it was exported, deq_scale checked to be the product of the scales it is stored beside."""
        part = {key: self.load(f"{name}.{key}") for key in INT8_PARTS}
        bias = self.load(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        linear = QLinear(
            name,
            part["weight"],
            part["weight_scale"].float(),
            part["input_scale"].float(),
            part["input_offset"].float(),
            part["quant_bias"],
            bias,
        )
        return linear


def read(directory: str | Path) -> Export:
    """Raises UsageError when it is no export, QuantError when it is a damaged one."""
    directory = Path(directory)
    kind = next((kind for kind, name in DESCRIPTION.items() if (directory / name).is_file()), None)
    if kind is None:
        raise UsageError(f"{directory}: holds neither {' nor '.join(DESCRIPTION.values())}; not an Ascend export")
    description = config_json.read_json(directory / DESCRIPTION[kind])
    if other := next(
        (
            name
            for name, value in description.items()
            if name.endswith(".weight") and value not in ("FLOAT", *STATIC_KINDS)
        ),
        None,
    ):
        raise UsageError(
            f"{directory}: {other} is {description[other]}; only static W8A8 (and W8A8_MIX, which holds it) can be read"
            " back"
        )
    tensors: dict[str, TensorInfo] = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, info in read_header(file).items():
            if name in tensors:
                raise QuantError(f"{file}: {name} is also in {tensors[name].file.name}; servers refuse it")
            tensors[name] = info
    return Export(directory, kind, config_json.read_json(directory / "config.json"), description, tensors)
