"""Evaluation data: questions about images with known answers, from one of three files.

    OCRBench JSON   [{"dataset_name", "type", "question", "answers", "image_path"}, ...]
                    answers: a text or a list of texts
    OCRBench TSV    index, image, question, answer, category
                    image: base64, or the index of the row that holds the same image; answer: a Python list as text
    JSONL           {"image": path, "prompt": text, "answers": text or list, "category": text} a line
                    "category" may be left out

Paths are relative to the image folder, by default the data file's own. Everything is read and every image decoded
before the first question is asked; what is wrong is an error with file and line. An answer that is empty would be found
in whatever is said, so it is refused too.

A question's key is sha256(image bytes + NUL + prompt), as for calibration samples: what was answered stays known by
content, whatever the file's name or order. Left out: several images to a question, parquet.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import QuantError, UsageError
from ..inputs.images import decode_image, inside, read_bytes
from ..inputs.rows import image_of, listed, read_rows
from ..inputs.sample import key_of

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


@dataclass(frozen=True)
class Question:
    """One question about one image. image: its file, or its bytes where the data file holds them; where: "file:line",
    for messages.
    """

    key: str
    where: str
    image: Path | bytes
    prompt: str
    answers: tuple[str, ...]
    category: str | None
    math: bool

    def data(self) -> bytes:
        """The image file's bytes."""
        return self.image if isinstance(self.image, bytes) else read_bytes(self.image)

    def open(self) -> Image.Image:
        """RGB, 8 bit."""
        return decode_image(self.data(), self.where if isinstance(self.image, bytes) else self.image)


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a file, in its order. ocrbench: whether OCRBench's own table applies."""

    file: Path
    ocrbench: bool
    questions: tuple[Question, ...]

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
    """Read a data file, by its suffix: .json, .tsv or .jsonl.

    image_folder: where image paths start from, the file's own folder by default. Raises UsageError with file and line
    for what is of no use.
    """
    file = Path(file)
    if file.suffix.lower() not in FIELDS:
        raise UsageError(f"{file}: the data is a .json or .tsv of OCRBench, or a .jsonl of image, prompt and answers")
    folder = Path(image_folder) if image_folder else file.parent
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --image_folder names the one that image paths start from")
    questions = []
    try:
        for line, row in read_rows(file):
            where = f"{file}:{line}"
            try:
                if isinstance(row, QuantError):
                    raise row
                questions.append(_checked(where, *FIELDS[file.suffix.lower()](row, folder.resolve())))
            except QuantError as error:
                raise UsageError(f"{where}: " + str(error).removeprefix(f"{where}: ")) from None
    except UsageError:
        raise
    except QuantError as error:  # the data file itself
        raise UsageError(str(error)) from None
    if not questions:
        raise UsageError(f"{file}: holds no question")
    return QuestionSet(file, file.suffix.lower() != ".jsonl", tuple(questions))


def _checked(where: str, image: Path | bytes, prompt, answers, category: str | None, math: bool) -> Question:
    """Check what all formats have in common; decodes the image."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise QuantError(f"the question must be text that is not empty, found {prompt!r}")
    texts = [answers] if isinstance(answers, str) else answers
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(answer, str) for answer in texts):
        raise QuantError(f"the answers must be a text or a list of texts, found {answers!r}")
    if not all(answer.strip() for answer in texts):
        raise QuantError(f"an answer is empty, which every prediction would contain: {answers!r}")
    data = image if isinstance(image, bytes) else read_bytes(image)
    decode_image(data, where if isinstance(image, bytes) else image)
    return Question(key_of([data], prompt), where, image, prompt, tuple(texts), category, math)


# ---- of each format: a row's fields, as _checked takes them

Fields = tuple[Path | bytes, object, object, str | None, bool]


def _json_fields(row: dict, folder: Path) -> Fields:
    _require(row, "dataset_name", "type", "question", "answers", "image_path")
    if not isinstance(row["image_path"], str):
        raise QuantError(f'"image_path" must be text, found {row["image_path"]!r}')
    math = row["dataset_name"] == MATH_DATASET
    return inside(folder, row["image_path"]), row["question"], row["answers"], _type(row["type"]), math


def _tsv_fields(row: dict[str, str], folder: Path) -> Fields:
    image, answers, category = image_of(row), listed(row["answer"]), _type(row["category"])
    return image, row["question"], answers, category, category == MATH_TYPE


def _jsonl_fields(row: dict, folder: Path) -> Fields:
    _require(row, "image", "prompt", "answers")
    if unknown := sorted(set(row) - {"image", "prompt", "answers", "category"}):
        raise QuantError(f'unknown key "{unknown[0]}": only image, prompt, answers and category are known')
    for key in ("image", "category"):
        if not isinstance(row.get(key, ""), str):
            raise QuantError(f'"{key}" must be text, found {row[key]!r}')
    return inside(folder, row["image"]), row["prompt"], row["answers"], row.get("category"), False


def _require(row: dict, *keys: str) -> None:
    for key in keys:
        if key not in row:
            raise QuantError(f'"{key}" is missing')


def _type(category) -> str:
    if category not in TYPES:
        raise QuantError(f"{category!r} is none of OCRBench's types: {', '.join(TYPES)}")
    return category


FIELDS: dict[str, Callable[[Any, Path], Fields]] = {
    ".json": _json_fields,
    ".tsv": _tsv_fields,
    ".jsonl": _jsonl_fields,
}
