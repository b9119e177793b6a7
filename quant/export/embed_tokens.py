"""The embedding table as a file of its own, for deployments that run vision tower and language model as two parts.

Such a deployment looks tokens up by itself, puts the visual features in the place of the image tokens, and hands the
language model the result:

    file: [vocabulary, hidden], row-major, little-endian
    embedding of token t = hidden numbers from byte t * hidden * itemsize on

Quantization does not touch the table, so that of the float checkpoint is the export's. Nothing else is read, and in
pieces: memory stays at one piece, whatever the size. OUT.json beside it says tensor, shape, dtype and SHA-256. Left
out: tables split over several tensors.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ..base.errors import QuantError, UsageError
from ..base.output import FILE_MODE
from ..families import family_of
from ..files.checkpoint import Checkpoint
from ..files.config_json import write_json
from ..files.safetensors_io import TensorInfo, read_tensor
from .writer import to_dtype

PIECE = 64 * 2**20  # bytes read at a time


def embedding(checkpoint: Checkpoint) -> tuple[str, TensorInfo]:
    """Hub name and place of the language model's embedding table [vocabulary, hidden].

    Raises UsageError for an unknown architecture, QuantError when the checkpoint has no such matrix.
    """
    name = family_of(checkpoint.config, checkpoint.dir).embedding_tensor
    if name not in checkpoint.tensors:
        raise QuantError(f"{checkpoint.dir}: tensor {name} is missing; fetch the model again")
    info = checkpoint.tensors[name]
    if len(info.shape) != 2 or not info.dtype.is_floating_point:
        raise QuantError(
            f"{info.file}: {name} is {info.dtype} of shape {list(info.shape)}, a float matrix was expected"
        )
    return name, info


def extract(source: str | Path, out: str | Path, dtype: torch.dtype | None = None, piece: int = PIECE) -> dict:
    """Write the embedding table of the checkpoint in `source` to the file `out`, in `dtype` (None: as stored), and what
    it is to OUT.json.

    Returns what OUT.json holds. Either both files appear or none. Raises UsageError when `out` exists, lies inside the
    source or cannot be written; QuantError when the table is missing, damaged, or does not fit the dtype.
    """
    checkpoint, out = Checkpoint(source), Path(out)
    name, info = embedding(checkpoint)
    dtype = dtype or info.dtype
    description = Path(f"{out}.json")
    _check_out(out, description, checkpoint.dir)
    _check_space(out, info, dtype)
    digest, (rows, hidden) = hashlib.sha256(), info.shape
    step = max(1, piece // (hidden * info.dtype.itemsize))
    handle, partial = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with open(handle, "wb") as stream:
            for row in range(0, rows, step):
                data = _rows(name, info, row, min(step, rows - row), dtype)
                digest.update(data)
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        described = {
            "tensor": name,
            "shape": [rows, hidden],
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "row-major, little-endian",
            "bytes": rows * hidden * dtype.itemsize,
            "sha256": digest.hexdigest(),
        }
        write_json(description, described)
        description.chmod(FILE_MODE)
        Path(partial).chmod(FILE_MODE)
        Path(partial).rename(out)
    except BaseException as err:
        Path(partial).unlink(missing_ok=True)
        description.unlink(missing_ok=True)
        if isinstance(err, OSError):
            raise QuantError(f"{out}: {err.strerror}; {rows * hidden * dtype.itemsize / 1e9:.2f} GB needed") from None
        raise
    return described


def _rows(name: str, info: TensorInfo, first: int, count: int, dtype: torch.dtype) -> memoryview:
    """Rows first to first + count of the table, in `dtype`, as bytes."""
    width = info.shape[1]
    table = read_tensor(replace(info, offset=info.offset + first * width * info.dtype.itemsize, shape=(count, width)))
    if not torch.isfinite(torch.stack(table.aminmax())).all():
        raise QuantError(
            f"{info.file}: {name} holds NaN or Inf between rows {first} and {first + count - 1}; the checkpoint is"
            " damaged"
        )
    return to_dtype(name, table, dtype).reshape(-1).view(torch.uint8).numpy().data


def _check_out(out: Path, description: Path, source: Path) -> None:
    for file in (out, description):
        if file.exists():
            raise UsageError(f"{file}: exists already; choose another name or remove it")
    if source.resolve() in out.resolve().parents:
        raise UsageError(
            f"{out}: lies inside the source {source}, which is never written to; choose a place outside it"
        )
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        what = "cannot be written to" if out.parent.is_dir() else "no such directory"
        raise UsageError(f"{out.parent}: {what}; OUT names a file in a place that can be written to")


def _check_space(out: Path, info: TensorInfo, dtype: torch.dtype) -> None:
    needed, free = info.nbytes // info.dtype.itemsize * dtype.itemsize, shutil.disk_usage(out.parent).free
    if free < needed:
        raise QuantError(
            f"{out.parent}: {free / 1e9:.2f} GB free, the table takes {needed / 1e9:.2f} GB; choose another place"
        )
