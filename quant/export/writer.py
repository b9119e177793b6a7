"""Writing the W8A8 directory that Ascend servers load, tensor by tensor (layout.py says which there are).

There are two layouts of the same tensors. "ascendV1": one directory for MindIE and vLLM-Ascend. "mindie": the names
that MindIE releases before 2.1 look for, and a quantization_config block in config.json; vLLM-Ascend would take that
block for another format. Written here is the first; formats.py makes the other from it.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..arithmetic.schemes import QuantizedLinear
from ..base.errors import QuantError
from ..base.output import DIR_MODE, FILE_MODE
from ..files import config_json
from ..files.checkpoint import Checkpoint
from ..files.safetensors_io import SafetensorsWriter, read_header
from .description import DESCRIPTION, MINDIE_NAMES, describe, model_type, vision_static
from .layout import Layout, export_layout, exported_names, file_names, in_parts, weights_stem
from .plan import Plan


class ExportWriter:
    """Writes an export into `directory`, which must be empty or absent; every tensor of export_layout once, in any
    order.

    part_bytes: the size above which a further weight file is begun. done: hub tensors that an earlier writer of the
    same export has brought to the disk. finish() writes what stands beside the weights. Raises QuantError when the disk
    refuses.
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
        parts = in_parts(self.layout, part_bytes)
        names = file_names(weights_stem(model_type(plan.schemes)), len(parts))
        written = {part for name in done for part in exported_names(name, plan)}
        self.files = [SafetensorsWriter(directory / name, part, written) for name, part in zip(names, parts)]
        self.file_of = {name: file for file in self.files for name in file.infos}

    @property
    def nbytes(self) -> int:
        """Size of all weight files when they are whole, bytes."""
        return sum(file.size for file in self.files)

    def put_linear(self, linear: QuantizedLinear) -> None:
        """All tensors of an int8 linear, its bias among them."""
        for name, tensor in linear.tensors().items():
            self.put(name, tensor)

    def put_float(self, name: str, tensor: Tensor) -> None:
        """A tensor, of any shape, that is not part of an int8 linear; floats are rounded to the model's dtype.

        Raises QuantError when a value does not fit it.
        """
        if tensor.is_floating_point():
            tensor = to_dtype(name, tensor, self.dtype)
        self.put(name, tensor)

    def put(self, name: str, tensor: Tensor) -> None:
        """A tensor as it will stand in the file: raises QuantError unless it has the dtype and shape of the layout,
        which can be any shape.
        """
        self.file_of[name].write(name, tensor)

    def copy(self, name: str, pieces: Iterable[Tensor]) -> None:
        """A tensor of the checkpoint as it was, in flat pieces [N] that follow each other; floats are rounded to the
        model's dtype. Raises QuantError when a value does not fit it.
        """
        kind = self.layout[name][0]
        self.file_of[name].write_pieces(
            name, (to_dtype(name, piece, kind) if piece.is_floating_point() else piece for piece in pieces)
        )

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
    """A float tensor of any shape, rounded to `dtype`. Raises QuantError, naming it, when a value leaves float16."""
    rounded = tensor.to(dtype)
    if (
        dtype == torch.float16
        and tensor.dtype != dtype
        and tensor.numel()
        and not torch.isfinite(torch.stack(rounded.aminmax())).all()
    ):
        raise QuantError(f"{name} reaches {tensor.abs().max().item():.3g}, float16 ends at 65504; use --dtype bfloat16")
    return rounded


def write_beside(directory: Path, checkpoint: Checkpoint, plan: Plan, layout: Layout, dtype: torch.dtype) -> None:
    """Everything of an export but its weights and its recipe."""
    word = model_type(plan.schemes)
    files = sorted(directory.glob(f"{weights_stem(word)}*.safetensors"))
    if len(files) > 1:
        headers = {name: file.name for file in files for name in read_header(file)}
        total = sum(torch.Size(shape).numel() * kind.itemsize for kind, shape in layout.values())
        index = {"metadata": {"total_size": total}, "weight_map": headers}
        config_json.write_json(directory / f"{weights_stem(word)}.safetensors.index.json", index)
    config_json.write_json(directory / DESCRIPTION["ascendV1"], describe(layout, plan.words, plan.family))
    vision_int8 = vision_static(plan.family, plan.words)
    edited = config_json.edit(
        checkpoint.config,
        flat=plan.family.flat_config,
        dtype=dtype,
        vision_int8=vision_int8,
        vocab_size=plan.family.vocab_size(checkpoint.config),
        old_rope=plan.family.old_rope,
    )
    edited["quantize"] = MINDIE_NAMES[model_type(plan.schemes, plan.family)]
    config_json.write_json(directory / "config.json", edited)
    for file in checkpoint.copied_files:
        copy_file(file, directory / file.name)
    for file in directory.iterdir():
        file.chmod(FILE_MODE)
    directory.chmod(DIR_MODE)


def copy_file(source: Path, target: Path) -> None:
    """A file's content, not its mode or times. Raises QuantError when the disk refuses."""
    try:
        shutil.copyfile(source, target)
    except OSError as err:
        raise QuantError(f"{source} -> {target}: {err.strerror}") from None
