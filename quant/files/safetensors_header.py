"""The header of a safetensors file, read without torch: what is in it, of which dtype and shape, and where it lies.

File: 8 bytes little-endian header length N, N bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}},
then the data. Nothing but the header is read, so this takes milliseconds for a file of any size; every number in it is
checked against the file before it is believed. safetensors_io.py reads and writes the data.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import QuantError

ITEM_SIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I8": 1, "U8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1}
MAX_HEADER = 100_000_000  # bytes; the library's own limit


@dataclass(frozen=True)
class HeaderEntry:
    """Where a tensor lies: file, absolute byte offset, dtype as the header writes it ("BF16"), shape."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its data, bytes."""
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]

    def read(self) -> bytes:
        """The tensor's bytes, little-endian. Raises QuantError when the file cannot be read."""
        try:
            with open(self.file, "rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.nbytes)
        except OSError as err:
            raise QuantError(f"{self.file}: {err.strerror} at byte {self.offset}") from None


def read_entries(file: Path) -> dict[str, HeaderEntry]:
    """Tensor name -> HeaderEntry. Raises QuantError, naming the file, for a missing, truncated or inconsistent one."""
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8 or length > MAX_HEADER:
                raise QuantError(
                    f"{file}: header of {length} bytes in a file of {size}; truncated or not a safetensors file, fetch"
                    " it again"
                )
            header = json.loads(stream.read(length))
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None
    except (ValueError, RecursionError):
        raise QuantError(f"{file}: the header is not JSON; damaged or not a safetensors file, fetch it again") from None
    if not isinstance(header, dict):
        raise QuantError(f"{file}: the header is not a JSON object; damaged, fetch it again")
    header.pop("__metadata__", None)
    return {name: _entry(file, name, fields, 8 + length, size) for name, fields in header.items()}


def _entry(file: Path, name: str, fields: dict, base: int, size: int) -> HeaderEntry:
    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        well_formed = type(dtype) is str and all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        well_formed = False
    if not well_formed:
        raise QuantError(f"{file}: the header entry of {name} is malformed; damaged, fetch it again")
    if dtype not in ITEM_SIZE:
        raise QuantError(f"{file}: {name} has dtype {dtype}; supported are {', '.join(ITEM_SIZE)}")
    entry = HeaderEntry(file, base + begin, dtype, shape)
    if entry.nbytes != end - begin:
        raise QuantError(
            f"{file}: {name} of shape {list(shape)} and dtype {dtype} needs {entry.nbytes} bytes, the header gives"
            f" {end - begin}; damaged, fetch it again"
        )
    if base + end > size:
        raise QuantError(f"{file}: truncated, {name} ends at byte {base + end} and the file at {size}; fetch it again")
    return entry
