"""A directory with an int8 ONNX model: what is in it, read and written.

    NAME.int8.onnx     int8 weights, DequantizeLinear behind them: for onnxruntime, and whatever reads ONNX
    NAME.amct.onnx     the same values, the weights float32 with pairs of QuantizeLinear and DequantizeLinear: for AMCT
    quant_onnx.json    what was done: task, source, images, layers, scores

Nothing here imports onnx, so that a command can ask cheaply what a directory is.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import QuantError, UsageError

RECORD, FORMAT = "quant_onnx.json", 1


def is_export(place: str | Path) -> bool:
    """Whether `place` is a directory that this room wrote."""
    return (Path(place) / RECORD).is_file()


def is_model(place: str | Path | None) -> bool:
    """Whether `place` names an ONNX file, or an exported directory with one."""
    return place is not None and (Path(place).suffix == ".onnx" or is_export(place))


def digest(file: Path) -> str:
    """sha256 of a file. Raises QuantError where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return (
                hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(stream)
            )
    except OSError as err:
        raise QuantError(f"{file}: {err.strerror}") from None


def _slow(stream) -> str:
    """Python 3.10 has no file_digest."""
    sha = hashlib.sha256()
    while part := stream.read(1 << 20):
        sha.update(part)
    return sha.hexdigest()


@dataclass(frozen=True)
class Export:
    """directory; record: quant_onnx.json."""

    directory: Path
    record: dict

    @property
    def model(self) -> Path:
        """The int8 model's file."""
        return self.directory / self.record["model"]["file"]

    @property
    def amct(self) -> Path:
        """The file for AMCT."""
        return self.directory / self.record["amct"]["file"]

    @property
    def int8(self) -> list[str]:
        """The names of int8 layers."""
        return [layer["name"] for layer in self.record["layers"] if layer["int8"]]

    def refuse_changed(self) -> None:
        """Raises QuantError where a model's file is not the one that was written."""
        for part, file in (("model", self.model), ("amct", self.amct)):
            written, found = self.record[part]["sha256"], digest(file)
            if written != found:
                raise QuantError(f"{file}: sha256 {found[:16]}, {written[:16]} was written; export again")


def read_export(directory: str | Path) -> Export:
    """Raises UsageError where `directory` is no export, QuantError where its record is damaged."""
    file = Path(directory) / RECORD
    if not file.is_file():
        raise UsageError(f"{directory}: holds no {RECORD}; `python -m quant onnx` makes such a directory")
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise QuantError(f"{file}: format {record['format']}, this version reads {FORMAT}; export again")
        export = Export(Path(directory), record)
        for name in (record["model"]["file"], record["amct"]["file"]):
            if Path(name).name != name:
                raise QuantError(f"{file}: names {name}, which is outside the directory")
        if not export.int8:
            raise QuantError(f"{file}: no layer is int8")
    except (ValueError, KeyError, TypeError, OSError) as err:
        raise QuantError(f"{file}: damaged ({type(err).__name__}: {err})") from None
    return export
