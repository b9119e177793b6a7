"""The data of safetensors files, as far as streaming needs it and the library does not offer it; the header is
safetensors_header.py's.

Reading goes into fresh memory at the disk's speed (the library memory-maps, so pages once touched count as resident for
as long as any tensor of the file lives). Writing lays out the header first, from names, dtypes and shapes alone, then
takes the tensors in any order: a 70 GB export needs memory for one tensor. The library reads what is written here; a
test says so, byte for byte.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.errors import QuantError
from . import experts
from .safetensors_header import read_entries

DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "I8": torch.int8, "U8": torch.uint8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool,
}  # fmt: skip
MAX_WRITE = 1 << 30  # bytes a call; Linux takes 2 GiB at most
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: file, absolute byte offset, dtype, shape.

    columns: of a matrix [O, I] that is the transpose of columns first ... first + O of a wider one [I, N], which begins
    at the offset: (first, N).
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    columns: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Size of its data, bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int, count: int) -> "TensorInfo":
        """Where `count` rows of it lie, rows along the first dimension."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, offset=self.offset + start * row, shape=(count, *self.shape[1:]))


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensor name -> TensorInfo. Raises QuantError, naming the file, for a missing, truncated or inconsistent one."""
    entries = read_entries(file).items()
    return {name: TensorInfo(entry.file, entry.offset, DTYPES[entry.dtype], entry.shape) for name, entry in entries}


def read_tensor(info: TensorInfo) -> Tensor:
    """A fresh tensor of any shape, filled from the file. Raises QuantError on a read error or a file that has become
    shorter.
    """
    if info.columns is not None:
        first, wide = info.columns
        whole = read_tensor(replace(info, shape=(info.shape[1], wide), columns=None))
        return whole[:, first : first + info.shape[0]].T.contiguous()
    tensor = torch.empty(info.shape, dtype=info.dtype)
    if not info.nbytes:
        return tensor
    view = tensor.reshape(-1).view(torch.uint8).numpy().data
    try:
        with open(info.file, "rb", buffering=0) as stream:
            stream.seek(info.offset)
            done = 0
            while done < info.nbytes:
                count = stream.readinto(view[done:])
                if not count:
                    raise QuantError(
                        f"{info.file}: ended at byte {info.offset + done}, {info.offset + info.nbytes} expected; was it"
                        " changed meanwhile?"
                    )
                done += count
    except OSError as err:
        raise QuantError(f"{info.file}: {err.strerror} at byte {info.offset}") from None
    return tensor


def read_rows(info: TensorInfo, rows: Tensor) -> Tensor:
    """A tensor [R, ...] of which only these rows, int64 [N], are read; the others are undefined, and take no memory
    before they are touched. Rows that it does not have are left out. Raises QuantError as read_tensor does.
    """
    tensor = torch.empty(info.shape, dtype=info.dtype)
    for row in rows[(rows >= 0) & (rows < len(tensor))].tolist():
        tensor[row] = read_tensor(info.rows(row, 1))[0]
    return tensor


def read_pieces(info: TensorInfo, numbers: int = 1 << 23) -> Iterator[Tensor]:
    """The same tensor as flat pieces [N] of at most `numbers` numbers that follow each other (one piece where it is
    transposed in the file). Raises as read_tensor.
    """
    if info.columns is not None:
        yield read_tensor(info).reshape(-1)
        return
    flat = replace(info, shape=(math.prod(info.shape),))
    for start in range(0, flat.shape[0], numbers):
        yield read_tensor(flat.rows(start, min(numbers, flat.shape[0] - start)))


def unfused(tensors: dict[str, TensorInfo], config: dict) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint with experts one by one (experts.py), in their order. config: config.json."""
    fused = experts.pieces({name: info.shape for name, info in tensors.items()}, experts.width(config))
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        for linear, piece in fused.get(name, ()):
            matrix = info.rows(piece.expert, 1)
            if piece.turned:
                found[linear] = replace(matrix, shape=piece.shape, columns=(piece.first, piece.stored[1]))
            else:
                found[linear] = replace(matrix, shape=piece.stored).rows(piece.first, piece.shape[0])
        if name not in fused:
            found[name] = info
    return found


class SafetensorsWriter:
    """One safetensors file of known layout, whose tensors, of any shape, arrive in any order.

    layout: name -> (dtype, shape), in file order. Every tensor must be written exactly once before close(). written:
    the tensors that an earlier writer of the same file and layout brought to the disk; None begins the file anew.
    Raises QuantError when the disk refuses, or the file that is there has another layout.
    """

    def __init__(
        self, file: Path, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]], written: set[str] | None = None
    ):
        self.file, begin = file, 0
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape) in layout.items():
            end = begin + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
        self.infos = {
            name: TensorInfo(file, 8 + len(text) + header[name]["data_offsets"][0], dtype, tuple(shape))
            for name, (dtype, shape) in layout.items()
        }
        self.pending, self.size = set(layout) - (written or set()), 8 + len(text) + begin
        try:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
        except OSError as err:
            raise QuantError(f"{file}: {err.strerror}") from None
        head = len(text).to_bytes(8, "little") + text
        if written and os.pread(self._handle, len(head), 0) != head:
            self.abandon()
            raise QuantError(
                f"{file}: its header is not the one that was written; it was changed, or is of another job"
            )
        if not written:
            self._put(0, head, anew=True)

    def write(self, name: str, tensor: Tensor) -> None:
        """Raises QuantError when the tensor is not the one announced, or the disk refuses it."""
        info = self.infos[name]
        if (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
            raise QuantError(
                f"{name}: {tensor.dtype} {list(tensor.shape)} written where {info.dtype} {list(info.shape)} was"
                " announced; this is a bug"
            )
        self.write_pieces(name, [tensor])

    def write_pieces(self, name: str, pieces: Iterable[Tensor]) -> None:
        """The same, of a tensor that comes in flat pieces [N], in order. Raises QuantError as write() does, and when it
        was written before.
        """
        info = self.infos[name]
        if name not in self.pending:
            raise QuantError(f"{name}: written twice; this is a bug")
        done = 0
        for piece in pieces:
            if piece.dtype != info.dtype:
                raise QuantError(f"{name}: {piece.dtype} written where {info.dtype} was announced; this is a bug")
            if piece.numel():
                flat = piece.detach().contiguous().cpu().reshape(-1)
                self._put(info.offset + done, flat.view(torch.uint8).numpy().data)
            done += piece.nbytes
        if done != info.nbytes:
            raise QuantError(f"{name}: {done} bytes written where {info.nbytes} were announced; this is a bug")
        self.pending.discard(name)

    def _put(self, offset: int, data: bytes | memoryview, anew: bool = False) -> None:
        try:
            if anew:
                os.ftruncate(self._handle, 0)
            view = memoryview(data)
            while view:
                done = os.pwrite(self._handle, view[:MAX_WRITE], offset)
                view, offset = view[done:], offset + done
        except OSError as err:
            raise QuantError(f"{self.file}: {err.strerror}; {self.size / 1e9:.1f} GB needed for this file") from None

    def close(self) -> None:
        """Flush to the disk, and close. Raises QuantError when a tensor was never written, or the disk refuses."""
        try:
            if self.pending:
                raise QuantError(
                    f"{self.file}: {len(self.pending)} tensors were never written, {sorted(self.pending)[0]} among"
                    " them; this is a bug"
                )
            self.sync()
        finally:
            self.abandon()

    def sync(self) -> None:
        """Bring to the disk what was written so far. Raises QuantError when it refuses."""
        try:
            os.fsync(self._handle)
        except OSError as err:
            raise QuantError(f"{self.file}: {err.strerror}; {self.size / 1e9:.1f} GB needed for this file") from None

    def abandon(self) -> None:
        """Close the file as it is."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)
