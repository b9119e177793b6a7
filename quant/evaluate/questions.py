"""Evaluation data: questions about images with known answers, from one file.

    OCRBench JSON   [{"dataset_name", "type", "question", "answers", "image_path"}, ...]
                    answers: a text or a list of texts
    OCRBench TSV    index, image, question, answer, category
                    image: base64, or the index of the row that holds the same image; answer: a Python list as text
    JSONL           {"image": path, "prompt": text, "answers": text or list, "category": text, "choices": list} a line
                    the last two may be left out; with choices, the answer is the letter of one
    TextVQA, DocVQA, MMMU and parquet: benchmarks.py

Paths are relative to the image folder, by default the data file's own. Everything is read and every image decoded
before the first question is asked; what is wrong is an error with file and line. An empty answer, which would be found
in whatever is said, is refused too.

A question's key is sha256(image bytes + NUL + prompt), as for calibration samples: what was answered stays known by
content, whatever the file's name or order. Left out: several images to a question.
"""

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import QuantError, UsageError
from ..inputs.images import decode_image, inside, parse_object, read_bytes
from . import benchmarks
from .benchmarks import Fields, LeftOut

TYPES = (  # OCRBench's; the first six are its "Text Recognition"
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)
MATH_DATASET, MATH_TYPE = "HME100k", TYPES[-1]  # how the JSON and the TSV mark handwritten math
INDEX_LENGTH = 64  # a TSV's image this short is the index of another row


@dataclass(frozen=True)
class Question:
    """One question about one image. image: its file, or its bytes where the data file holds them; where: "file:line",
    for messages; choices: of a multiple choice, whose answer is a letter.
    """

    key: str
    where: str
    image: Path | bytes
    prompt: str
    answers: tuple[str, ...]
    category: str | None
    math: bool
    choices: tuple[str, ...] = ()

    def data(self) -> bytes:
        """The image file's bytes."""
        return self.image if isinstance(self.image, bytes) else read_bytes(self.image)

    def open(self) -> Image.Image:
        """RGB, 8 bit."""
        return decode_image(self.data(), self.where if isinstance(self.image, bytes) else self.image)


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file, in its order. ocrbench: whether OCRBench's own table applies; rule: of scoring.py, if no
    other is asked for; left_out: why, and how many of its questions are not asked.
    """

    file: Path
    ocrbench: bool
    questions: tuple[Question, ...]
    rule: str = "contains"
    left_out: tuple[tuple[str, int], ...] = ()

    @property
    def digest(self) -> str:
        """sha256, in hex, over keys and answers."""
        content = "\n".join(json.dumps([question.key, question.answers]) for question in self.questions)
        return hashlib.sha256(content.encode()).hexdigest()

    def some(self, count: int | None, seed: int) -> "QuestionSet":
        """`count` of the questions, chosen by the seed and their keys alone, in the file's order; all for None."""
        if count is None:
            return self
        ranked = sorted(self.questions, key=lambda question: hashlib.sha256(f"{seed}:{question.key}".encode()).digest())
        chosen = {question.where for question in ranked[:count]}
        return replace(self, questions=tuple(question for question in self.questions if question.where in chosen))


def load_questions(file: str | Path, image_folder: str | Path | None = None) -> QuestionSet:
    """Read a data file, by its suffix: .json, .tsv, .jsonl or .parquet. image_folder: where image paths start from, the
    file's own folder by default. Raises UsageError with file and line for what is of no use.
    """
    file = Path(file)
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"{file}: the data is a .json, .tsv or .parquet of a benchmark, or a .jsonl of your own")
    folder = Path(image_folder) if image_folder else file.parent
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --image_folder names the one that image paths start from")
    try:
        data = read_bytes(file).removeprefix(b"\xef\xbb\xbf")
    except QuantError as error:
        raise UsageError(str(error)) from None
    rows, fields = FORMATS[file.suffix.lower()]
    questions: list[Question] = []
    left_out, rule = dict[str, int](), None
    for line, row in rows(file, data):
        where = f"{file}:{line}"
        try:
            questions.append(_checked(where, found := fields(row, folder.resolve())))
            rule = found.rule
        except LeftOut as reason:
            left_out[str(reason)] = left_out.get(str(reason), 0) + 1
        except QuantError as error:
            raise UsageError(f"{where}: " + str(error).removeprefix(f"{where}: ")) from None
    if not questions:
        raise UsageError(f"{file}: holds no question{f' that is asked here: {left_out}' if left_out else ''}")
    ocrbench = file.suffix.lower() != ".jsonl" and all(question.category in TYPES for question in questions)
    rule = rule or (benchmarks.rule_of(file.name) if rows in (_tsv_rows, _json_rows) and not ocrbench else None)
    few = rule == "vqa" and min(len(question.answers) for question in questions) < benchmarks.LEAST_PEOPLE
    return QuestionSet(file, ocrbench, tuple(questions), rule if rule and not few else "contains", (*left_out.items(),))


def _checked(where: str, fields: Fields) -> Question:
    """Check what all formats have in common; decodes the image."""
    image, prompt, answers, category, math, choices, _ = fields
    if not isinstance(prompt, str) or not prompt.strip():
        raise QuantError(f"the question must be text that is not empty, found {prompt!r}")
    listed = [answers] if isinstance(answers, str) else answers
    if not isinstance(listed, list | tuple) or not listed or not all(isinstance(answer, str) for answer in listed):
        raise QuantError(f"the answers must be a text or a list of texts, found {answers!r}")
    if not all(answer.strip() for answer in listed):
        raise QuantError(f"an answer is empty, which every prediction would contain: {answers!r}")
    data = image if isinstance(image, bytes) else read_bytes(image)
    decode_image(data, where if isinstance(image, bytes) else image)
    try:
        key = hashlib.sha256(data + b"\0" + prompt.encode()).hexdigest()
    except UnicodeEncodeError:
        raise QuantError("the question holds half a surrogate pair, which is no text") from None
    return Question(key, where, image, prompt, tuple(listed), category, math, choices)


# ---- of each format: its rows, each with the line that it begins on; and a row's fields, as _checked takes them

BENCHMARK = ""  # a column that no file has: the row is of TextVQA, DocVQA or MMMU
ITEMS = re.compile(r'"data"\s*:\s*\[')


def _decoded(file: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file}:{line}: not UTF-8") from None


def _json_rows(file: Path, data: bytes) -> Iterator[tuple[int, object]]:
    text, decoder = _decoded(file, data), json.JSONDecoder()
    position = _after_blanks(text, 0)
    found = ITEMS.search(text) if text[position : position + 1] == "{" else None
    if text[position : position + 1] != "[" and not found:
        raise UsageError(f'{file}:1: a JSON array of OCRBench\'s items was expected, or an object with them in "data"')
    position = _after_blanks(text, found.end() if found else position + 1)
    try:
        while text[position : position + 1] != "]":
            line = text.count("\n", 0, position) + 1
            row, position = decoder.raw_decode(text, position)
            yield line, row
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


def _json_fields(row, folder: Path) -> Fields:
    if not isinstance(row, dict):
        raise QuantError(f"an object was expected, found {type(row).__name__}")
    if "dataset_name" not in row and ("image_id" in row or "image" in row):
        return benchmarks.item_fields(row, folder)
    _require(row, "dataset_name", "type", "question", "answers", "image_path")
    if not isinstance(row["image_path"], str):
        raise QuantError(f'"image_path" must be text, found {row["image_path"]!r}')
    math = row["dataset_name"] == MATH_DATASET
    return Fields(inside(folder, row["image_path"]), row["question"], row["answers"], _type(row["type"]), math)


def _tsv_rows(file: Path, data: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(2**31 - 1)  # an image is one field
    reader = csv.reader(io.StringIO(_decoded(file, data), newline=""), delimiter="\t", strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    line = 1
    try:
        for cells in reader:
            if not columns:
                columns = cells
                benchmark = "A" in cells or benchmarks.rule_of(file.name)
                wanted = {"index", "image", "question", "answer"} | (set() if benchmark else {"category"})
                if missing := sorted(wanted - set(cells)):
                    raise UsageError(
                        f"{file}:{line}: column {missing[0]} is missing, there are {', '.join(cells)[:200]}"
                    )
            elif cells and len(cells) != len(columns):
                raise UsageError(f"{file}:{line}: {len(cells)} fields, the first line has {len(columns)}")
            elif cells:
                rows.append((line, dict(zip(columns, cells)) | dict.fromkeys([BENCHMARK] * bool(benchmark), "")))
            line = reader.line_num + 1  # a quoted field may span lines
    except csv.Error as error:
        raise UsageError(f"{file}:{line}: {error}") from None
    images = {row["index"]: row["image"] for _, row in rows}
    for line, row in rows:
        if len(row["image"]) <= INDEX_LENGTH:
            row = {**row, "image": images.get(row["image"], "")}
        yield line, row


def _tsv_fields(row: dict[str, str], folder: Path) -> Fields:
    if row["image"].lstrip().startswith("["):
        raise LeftOut("a question with several images")
    if len(row["image"]) <= INDEX_LENGTH:
        raise QuantError("image is neither base64 of an image nor the index of a row that holds one")
    try:
        image = base64.b64decode(row["image"], validate=True)
    except ValueError as error:
        raise QuantError(f"image is not base64: {error}") from None
    if BENCHMARK in row:
        return benchmarks.tsv_fields(row, image)
    category = _type(row["category"])
    answers = benchmarks.listed(row["answer"], "answer")
    return Fields(image, row["question"], answers, category, category == MATH_TYPE)


def _jsonl_rows(file: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())


def _jsonl_fields(line: bytes, folder: Path) -> Fields:
    row = parse_object(line)
    _require(row, "image", "prompt", "answers")
    if unknown := sorted(set(row) - {"image", "prompt", "answers", "category", "choices"}):
        raise QuantError(f'unknown key "{unknown[0]}": only image, prompt, answers, category and choices are known')
    for key in ("image", "category"):
        if not isinstance(row.get(key, ""), str):
            raise QuantError(f'"{key}" must be text, found {row[key]!r}')
    image, category = inside(folder, row["image"]), row.get("category")
    if "choices" not in row:
        return Fields(image, row["prompt"], row["answers"], category)
    if not isinstance(row["choices"], list):
        raise QuantError(f"the choices must be a list of texts, found {row['choices']!r:.200}")
    return benchmarks.choice_fields(image, row["prompt"], row["choices"], row["answers"], category)


def _parquet_fields(row: dict[str, Any], folder: Path) -> Fields:
    return benchmarks.parquet_fields(row, TYPES, MATH_DATASET)


def _require(row: dict, *keys: str) -> None:
    for key in keys:
        if key not in row:
            raise QuantError(f'"{key}" is missing')


def _type(category) -> str:
    if category not in TYPES:
        raise QuantError(f"{category!r} is none of OCRBench's types: {', '.join(TYPES)}")
    return category


FORMATS: dict[str, tuple[Callable[[Path, bytes], Iterator[tuple[int, Any]]], Callable[[Any, Path], Fields]]] = {
    ".json": (_json_rows, _json_fields),
    ".tsv": (_tsv_rows, _tsv_fields),
    ".jsonl": (_jsonl_rows, _jsonl_fields),
    ".parquet": (benchmarks.parquet_rows, _parquet_fields),
}
