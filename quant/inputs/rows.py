"""Files of samples or questions as people have them -> rows, each with the line that it begins on, whatever it means.

    .jsonl   an object a line
    .json    an array of objects: OCRBench's, LLaVA's conversations
    .tsv     OCRBench's: index, image, question, answer, category; image: base64, or the index of the row that holds it

A row that is of no use comes out as the QuantError that says so, and the caller skips it or stops; a file that cannot
be read on is a UsageError.
"""

import ast
import base64
import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..base.errors import QuantError, UsageError, one_line
from .images import read_bytes

INDEX_LENGTH = 64  # a TSV's image this short is the index of another row
OCRBENCH = ("index", "image", "question", "answer", "category")  # columns of its TSV

Rows = Iterator[tuple[int, Any]]


def read_rows(file: Path) -> Rows:
    """The rows of a file by its suffix: (line, dict), or (line, QuantError) for a row that is of no use.

    Raises UsageError for a suffix that is none of FORMATS, and naming the line where the file cannot be read on;
    ReadError when the disk does not give it.
    """
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"{file}: rows are read from {', '.join(FORMATS)}")
    return FORMATS[file.suffix.lower()](file, read_bytes(file).removeprefix(b"\xef\xbb\xbf"))


def parse_object(line: bytes) -> dict:
    """One line of a JSONL -> the object in it. Raises QuantError, without file and line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise QuantError("not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise QuantError(f"not JSON: {one_line(error)}") from None
    return _object(row)


def image_of(row: dict[str, str]) -> bytes:
    """The image file that a TSV's row holds. Raises QuantError."""
    if len(row["image"]) <= INDEX_LENGTH:
        raise QuantError("image is neither base64 of an image nor the index of a row that holds one")
    try:
        return base64.b64decode(row["image"], validate=True)
    except ValueError as error:
        raise QuantError(f"image is not base64: {error}") from None


def listed(text: str) -> Any:
    """A TSV's answer: a text, or a Python list of texts as text. Raises QuantError."""
    if not text.lstrip().startswith("["):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise QuantError(f"answer is not a list of texts: {text!r}") from None


def decoded(file: Path, data: bytes) -> str:
    """The text of a file. Raises UsageError, with the line, where it is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}:{line}: not UTF-8") from None


def _object(row: Any) -> dict:
    if not isinstance(row, dict):
        raise QuantError(f"expected an object, found {type(row).__name__}")
    return row


def _jsonl(file: Path, data: bytes) -> Rows:
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, parse_object(line)
            except QuantError as error:
                yield number, error


def _json(file: Path, data: bytes) -> Rows:
    text, decoder = decoded(file, data), json.JSONDecoder()
    position = _after_blanks(text, 0)
    if text[position : position + 1] != "[":
        raise UsageError(f"{file}:1: a JSON array of objects was expected")
    position = _after_blanks(text, position + 1)
    line, counted = 1, 0
    try:
        while text[position : position + 1] != "]":
            line, counted = line + text.count("\n", counted, position), position
            row, position = decoder.raw_decode(text, position)
            try:
                yield line, _object(row)
            except QuantError as error:
                yield line, error
            position = _after_blanks(text, position)
            if text[position : position + 1] == ",":
                position = _after_blanks(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("',' or ']' was expected", text, position)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UsageError(f"{file}:{line}: not JSON: nested too deep") from None


def _after_blanks(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _tsv(file: Path, data: bytes) -> Rows:
    csv.field_size_limit(2**31 - 1)  # an image is one field
    reader = csv.reader(io.StringIO(decoded(file, data), newline=""), delimiter="\t", strict=True)
    rows: list[tuple[int, dict[str, str] | QuantError]] = []
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = cells
                if missing := sorted(set(OCRBENCH) - set(cells)):
                    raise UsageError(
                        f"{file}:{line}: column {missing[0]} is missing, there are {', '.join(cells)[:200]}"
                    )
            elif cells and len(cells) != len(columns):
                rows.append((line, QuantError(f"{len(cells)} fields, the first line has {len(columns)}")))
            elif cells:
                rows.append((line, dict(zip(columns, cells))))
            line = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise UsageError(f"{file}:{line}: {error}") from None
    images = {row["index"]: row["image"] for _, row in rows if isinstance(row, dict)}
    for line, row in rows:
        if isinstance(row, dict) and len(row["image"]) <= INDEX_LENGTH:
            row = {**row, "image": images.get(row["image"], "")}
        yield line, row


FORMATS: dict[str, Callable[[Path, bytes], Rows]] = {".jsonl": _jsonl, ".json": _json, ".tsv": _tsv}
