"""Evaluation data: questions about images with known answers, from one file.

    OCRBench JSON   [{"dataset_name", "type", "question", "answers", "image_path"}, ...]
                    answers: a text or a list of texts
    OCRBench TSV    index, image, question, answer, category
                    image: base64, or the index of the row that holds the same image; answer: a Python list as text
    JSONL           {"image": path, "prompt": text, "answers": text or list, "category": text, "choices": list} a line
                    the last two may be left out; with choices, the answer is the letter of one; "images" and "videos"
                    are lists of paths, "video" is one
    TextVQA, DocVQA, MMMU and parquet: benchmarks.py

Paths are relative to the image folder, by default the data file's own. Everything is read and every image decoded
before the first question is asked; what is wrong is an error with file and line. An empty answer, which would be found
in whatever is said, is refused too.

A question's key is that of a calibration sample (sample.py), of one image sha256(image bytes + NUL + prompt): what was
answered stays known by content, whatever the file's name or order. Left out: benchmarks' questions with several images.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..base.errors import QuantError, UsageError
from ..inputs import video
from ..inputs.fields import paths_of
from ..inputs.images import decode_image, inside, read_bytes
from ..inputs.rows import image_of, listed, read_rows
from ..inputs.sample import key_of
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
SHOWN = ("image", "images", "video", "videos")
MATH_DATASET, MATH_TYPE = "HME100k", TYPES[-1]  # how the JSON and the TSV mark handwritten math


@dataclass(frozen=True)
class Question:
    """One question about images and videos. images: the file of each, or its bytes where the data file holds them;
    where: "file:line", for messages; choices: of a multiple choice, whose answer is a letter; videos: files and folders
    of frames, shown behind the images.
    """

    key: str
    where: str
    images: tuple[Path | bytes, ...]
    prompt: str
    answers: tuple[str, ...]
    category: str | None
    math: bool
    choices: tuple[str, ...] = ()
    videos: tuple[Path, ...] = ()

    def data(self) -> list[bytes]:
        """The bytes of each image's file."""
        return [image if isinstance(image, bytes) else read_bytes(image) for image in self.images]

    def open(self) -> list[Image.Image]:
        """RGB, 8 bit."""
        return [
            decode_image(data, self.where if isinstance(image, bytes) else image)
            for data, image in zip(self.data(), self.images)
        ]


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
    suffix = file.suffix.lower()
    if suffix not in FIELDS:
        raise UsageError(f"{file}: the data is a .json, .tsv or .parquet of a benchmark, or a .jsonl of your own")
    folder = Path(image_folder) if image_folder else file.parent
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; --image_folder names the one that image paths start from")
    named = benchmarks.rule_of(file.name) if suffix in (".tsv", ".json") else None
    questions: list[Question] = []
    left_out, rule = dict[str, int](), None
    try:
        for line, row in benchmarks.parquet_rows(file) if suffix == ".parquet" else read_rows(file):
            where = f"{file}:{line}"
            try:
                if isinstance(row, QuantError):
                    raise row
                questions.append(_checked(where, found := FIELDS[suffix](row, folder.resolve(), named)))
                rule = found.rule
            except LeftOut as reason:
                left_out[str(reason)] = left_out.get(str(reason), 0) + 1
            except QuantError as error:
                raise UsageError(f"{where}: " + str(error).removeprefix(f"{where}: ")) from None
    except UsageError:
        raise
    except QuantError as error:  # the data file itself
        raise UsageError(str(error)) from None
    if not questions:
        raise UsageError(f"{file}: holds no question{f' that is asked here: {left_out}' if left_out else ''}")
    ocrbench = suffix != ".jsonl" and all(question.category in TYPES for question in questions)
    rule = rule or (None if ocrbench else named)
    few = rule == "vqa" and min(len(question.answers) for question in questions) < benchmarks.LEAST_PEOPLE
    return QuestionSet(file, ocrbench, tuple(questions), rule if rule and not few else "contains", (*left_out.items(),))


def _checked(where: str, fields: Fields) -> Question:
    """Check what all formats have in common; decodes the image."""
    image, prompt, answers, category, math, choices, _, videos = fields
    images = image if isinstance(image, tuple) else (image,)
    if not isinstance(prompt, str) or not prompt.strip():
        raise QuantError(f"the question must be text that is not empty, found {prompt!r}")
    texts = [answers] if isinstance(answers, str) else answers
    if not isinstance(texts, list | tuple) or not texts or not all(isinstance(answer, str) for answer in texts):
        raise QuantError(f"the answers must be a text or a list of texts, found {answers!r}")
    if not all(answer.strip() for answer in texts):
        raise QuantError(f"an answer is empty, which every prediction would contain: {answers!r}")
    digests = [video.digest(path) for path in videos]
    for path in videos:
        video.check(path)
    question = Question("", where, images, prompt, tuple(texts), category, math, choices, videos)
    question.open()
    return replace(question, key=key_of(question.data(), prompt, videos=digests))


# ---- of each format: a row's fields, as _checked takes them; named: the rule that the file's name stands for


def _json_fields(row: dict, folder: Path, named: str | None) -> Fields:
    if "dataset_name" not in row and ("image_id" in row or "image" in row):
        return benchmarks.item_fields(row, folder)
    _require(row, "dataset_name", "type", "question", "answers", "image_path")
    if not isinstance(row["image_path"], str):
        raise QuantError(f'"image_path" must be text, found {row["image_path"]!r}')
    math = row["dataset_name"] == MATH_DATASET
    return Fields(inside(folder, row["image_path"]), row["question"], row["answers"], _type(row["type"]), math)


def _tsv_fields(row: dict[str, str], folder: Path, named: str | None) -> Fields:
    if row["image"].lstrip().startswith("["):
        raise LeftOut("a question with several images")
    if "A" in row or named:
        return benchmarks.tsv_fields(row, image_of(row))
    _require(row, "category")
    category = _type(row["category"])
    return Fields(image_of(row), row["question"], listed(row["answer"]), category, category == MATH_TYPE)


def _jsonl_fields(row: dict, folder: Path, named: str | None) -> Fields:
    videos = tuple(_video(folder, name) for name in paths_of(row, "video", ("video",)))
    images = paths_of(row, "image", ("image",))
    _require(row, *(() if images or videos else ("image",)), "prompt", "answers")
    if unknown := sorted(set(row) - {*SHOWN, "prompt", "answers", "category", "choices"}):
        known = f"{', '.join(SHOWN)}, prompt, answers, category and choices"
        raise QuantError(f'unknown key "{unknown[0]}": only {known} are known')
    if not isinstance(row.get("category", ""), str):
        raise QuantError(f'"category" must be text, found {row["category"]!r}')
    image, category = tuple(inside(folder, name) for name in images), row.get("category")
    if "choices" not in row:
        return Fields(image, row["prompt"], row["answers"], category, videos=videos)
    if not isinstance(row["choices"], list):
        raise QuantError(f"the choices must be a list of texts, found {row['choices']!r:.200}")
    fields = benchmarks.choice_fields(image, row["prompt"], row["choices"], row["answers"], category)
    return fields._replace(videos=videos)


def _video(folder: Path, name: str) -> Path:
    path = inside(folder, name, "video")
    for part in video.parts(path) if path.is_dir() else []:
        inside(folder, str(part.relative_to(folder)), "frame")
    return path


def _parquet_fields(row: dict[str, Any], folder: Path, named: str | None) -> Fields:
    return benchmarks.parquet_fields(row, TYPES, MATH_DATASET)


def _require(row: dict, *keys: str) -> None:
    for key in keys:
        if key not in row:
            raise QuantError(f'"{key}" is missing')


def _type(category) -> str:
    if category not in TYPES:
        raise QuantError(f"{category!r} is none of OCRBench's types: {', '.join(TYPES)}")
    return category


FIELDS: dict[str, Callable[[Any, Path, str | None], Fields]] = {
    ".json": _json_fields,
    ".tsv": _tsv_fields,
    ".jsonl": _jsonl_fields,
    ".parquet": _parquet_fields,
}
