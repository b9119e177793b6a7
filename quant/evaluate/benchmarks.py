"""TextVQA, DocVQA and MMMU as they are published, and what parquet files hold: rows -> Fields (questions.py reads).

    VLMEvalKit TSV   TextVQA_VAL.tsv, DocVQA_VAL.tsv: question, image, answer (a list as text)
                     MMMU_DEV_VAL.tsv: with the choices in columns A, B, ..., hint, answer (a letter), category
    published JSON   {"data": [{"question", "answers", "image_id" or "image"}]}: TextVQA_0.5.1_val.json with
                     IMAGE_ID.jpg, DocVQA's val_v1.0.json with its own paths
    parquet          as the hub has them, and with them evalscope and lmms-eval: image {"bytes"}, "answers"; MMMU with
                     "options" and "image_1"; OCRBench with "dataset" and "question_type"

The prompts are the harnesses': VLMEvalKit's request for a single word or phrase, MMMU's for a letter. A question with
several images, or an open one of MMMU, is left out and counted: what is asked here of a benchmark has one image.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..base.errors import QuantError, UsageError, one_line
from ..inputs.images import inside, read_bytes
from ..inputs.rows import listed

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
RULES = {"textvqa": "vqa", "docvqa": "anls", "infovqa": "anls", "infographicvqa": "anls"}
"""What a file's name says of the rule that scores it."""
COLUMNS = {"docId": "anls", "ucsf_document_id": "anls", "image_classes": "vqa", "flickr_original_url": "vqa"}
LEAST_PEOPLE = 4  # whose answers VQA's rule needs for an answer to be worth a whole point


class Fields(NamedTuple):
    """A question as a file has it, before it is checked. image: one, or several; choices: of a multiple choice, whose
    answer is a letter.
    """

    image: Path | bytes | tuple[Path | bytes, ...]
    prompt: object
    answers: object
    category: str | None = None
    math: bool = False
    choices: tuple[str, ...] = ()
    rule: str | None = None
    videos: tuple[Path, ...] = ()


class LeftOut(Exception):
    """A question of a kind that is not asked here; the text says which."""


def rule_of(name: str) -> str | None:
    """The scoring rule that a file's name stands for, None where it says none."""
    plain = "".join(char for char in name.lower() if char.isalnum())
    return next((rule for word, rule in RULES.items() if word in plain), None)


def rule_of_columns(row: dict[str, Any]) -> str | None:
    """The same by what a row has, as the hub's files do, which are all called validation-00000-of-00003."""
    return next((rule for column, rule in COLUMNS.items() if column in row), None)


def vqa_fields(
    image: Path | bytes, question: object, answers: object, category: str | None = None, rule: str | None = None
) -> Fields:
    """A question to be answered in a word or a phrase."""
    prompt = f"{question}{SHORT}" if isinstance(question, str) else question
    return Fields(image, prompt, answers, category, rule=rule)


def choice_fields(
    image: Path | bytes | tuple[Path | bytes, ...],
    question: object,
    choices: Sequence[str],
    answer: object,
    category: str | None,
    hint: str = "",
) -> Fields:
    """A question with choices, as MMMU puts it. Raises QuantError for an answer that is none of their letters."""
    if not isinstance(question, str) or not question.strip():
        raise QuantError(f"the question must be text that is not empty, found {question!r}")
    if not 2 <= len(choices) <= 26 or not all(isinstance(text, str) and text.strip() for text in choices):
        raise QuantError(f"from 2 to 26 choices are expected, each a text, found {choices!r:.200}")
    letters = [chr(ord("A") + number) for number in range(len(choices))]
    if answer not in letters:
        raise QuantError(f"the answer must be one of the letters {letters[0]} to {letters[-1]}, found {answer!r}")
    shown = "\n".join(f"({letter}) {text}" for letter, text in zip(letters, choices))
    before = f"{hint}\n" if hint else ""
    return Fields(image, f"{before}{question}\n{shown}\n\n{LETTER}", answer, category, choices=tuple(choices))


def tsv_fields(row: dict[str, str], image: bytes) -> Fields:
    """A row of one of VLMEvalKit's TSV files, its image decoded from base64; an empty cell is a choice that is not."""
    if "A" not in row:
        return vqa_fields(image, row["question"], listed(row["answer"]), row.get("category") or None)
    texts = [row.get(chr(code), "") for code in range(ord("A"), ord("Z") + 1)]
    choices = texts[: next((place for place, text in enumerate(texts) if not text.strip()), len(texts))]
    return choice_fields(
        image, row["question"], choices, row["answer"].strip(), row.get("category") or None, row.get("hint", "")
    )


def item_fields(row: dict, folder: Path) -> Fields:
    """An item of TextVQA's or DocVQA's published JSON. Raises QuantError for one that lacks what is needed."""
    name = row.get("image") or (f"{row['image_id']}.jpg" if row.get("image_id") else None)
    if not isinstance(name, str):
        raise QuantError('neither "image" nor "image_id" names an image')
    for key in ("question", "answers"):
        if key not in row:
            raise QuantError(f'"{key}" is missing; a test set without answers cannot be scored')
    return vqa_fields(inside(folder, name), row["question"], row["answers"], rule=rule_of_columns(row))


def parquet_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, row). Raises UsageError for a file that is none, and without pyarrow; QuantError where it cannot
    be read.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"{file}: parquet files need pyarrow, which is not installed: pip install pyarrow") from None
    try:
        number = 0
        whole = parquet.ParquetFile(io.BytesIO(read_bytes(file)))
        for batch in whole.iter_batches(batch_size=16):  # images stand in it
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (ArrowException, OSError) as error:
        raise UsageError(f"{file}: not a parquet file: {one_line(error)}") from None


def parquet_fields(row: dict[str, Any], types: Sequence[str], math_dataset: str) -> Fields:
    """A row by its columns. types, math_dataset: OCRBench's. Raises LeftOut, QuantError."""
    if "options" in row:
        images = [row[f"image_{number}"] for number in range(1, 8) if row.get(f"image_{number}")]
        if row.get("question_type", "multiple-choice") != "multiple-choice":
            raise LeftOut("an open question")
        if len(images) != 1:
            raise LeftOut(f"a question with {len(images)} images")
        options = row["options"] if isinstance(row["options"], list) else listed(str(row["options"]), "options")
        if not isinstance(options, list):
            raise QuantError(f"options is not a list of texts: {options!r:.200}")
        category = row.get("subfield")
        return choice_fields(_bytes(images[0]), row.get("question"), options, row.get("answer"), category)
    for key in ("question", "image"):
        if key not in row:
            raise QuantError(f"column {key} is missing, there are {', '.join(row)[:200]}")
    if "question_type" in row and "dataset" in row:
        if row["question_type"] not in types:
            raise QuantError(f"{row['question_type']!r} is none of OCRBench's types: {', '.join(types)}")
        math = row["dataset"] == math_dataset
        return Fields(_bytes(row["image"]), row["question"], row.get("answer"), row["question_type"], math)
    answers = row.get("answers", row.get("answer"))
    return vqa_fields(_bytes(row["image"]), row["question"], answers, rule=rule_of_columns(row))


def _bytes(image: object) -> bytes:
    """Of an image as the hub's data sets hold it."""
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise QuantError("the image is not held as bytes")
    return data
