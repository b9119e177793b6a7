"""Text that a model wrote for its own calibration: calibration_text.jsonl, one object a line

    {"answer_to": KEY, "ids": [...], "text": "..."}     KEY: of the sample (sample.py) that it answers
    {"ids": [...], "text": "..."}                       a passage

ids are what counts, for a text need not become the same tokens again. text is the same for people, and tells a file
that was written with another tokenizer.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..base.config import TEXT_FILE
from ..base.errors import UsageError, one_line
from .reopen import image_data, video_digests
from .sample import Sample, key_of, passage

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """answers: key of a sample -> token ids of its answer; passages: token ids of each."""

    answers: dict[str, Ids] = field(default_factory=dict)
    passages: tuple[Ids, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens all of it has."""
        return sum(map(len, (*self.answers.values(), *self.passages)))

    def lines(self, decode: Callable[[Ids], str]) -> bytes:
        """The file's content. decode: token ids -> text."""
        rows = [{"answer_to": key, "ids": ids, "text": decode(ids)} for key, ids in sorted(self.answers.items())]
        rows += [{"ids": ids, "text": decode(ids)} for ids in self.passages]
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="replace")

    def put_into(self, samples: list[Sample]) -> list[Sample]:
        """The samples with their answers, and the passages. Raises ReadError as read_bytes does."""
        joined = [answered(sample, self.answers.get(sample.key, sample.answer)) for sample in samples]
        return joined + [passage(ids, f"own passage {number}") for number, ids in enumerate(self.passages, 1)]


def answered(sample: Sample, answer: str | Ids) -> Sample:
    """The sample with that answer, "" for none. Raises ReadError as read_bytes does."""
    if answer == sample.answer:
        return sample
    return replace(sample, answer=answer, key=key_of(image_data(sample), sample.prompt, answer, video_digests(sample)))


def is_written(file: Path) -> bool:
    """Whether a file is one of these, by its first line."""
    try:
        with open(file, encoding="utf-8") as stream:
            row = json.loads(stream.readline())
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "ids" in row


def read_written(file: Path, decode: Callable[[Ids], str] | None = None) -> Written:
    """What a file holds. decode: token ids -> text, as lines() had it; None: the text is not compared. Raises
    UsageError, with file:line, for a line that is not one of these, or whose ids are another tokenizer's.
    """
    try:
        return parse_written(file.read_bytes(), file, decode)
    except OSError as error:
        raise UsageError(f"{file}: {one_line(error)}") from None


def parse_written(data: bytes, file: Path, decode: Callable[[Ids], str] | None = None) -> Written:
    """What the bytes of `file` hold. Raises UsageError as read_written does."""
    answers: dict[str, Ids] = {}
    passages: list[Ids] = []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            row = json.loads(line)
            ids, text, key = tuple(row["ids"]), row["text"], row.get("answer_to")
            if not ids or not all(type(token) is int and token >= 0 for token in ids):
                raise ValueError("ids must be numbers of tokens")
            found = decode(ids) if decode else str(text)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UsageError(f"{file}:{number}: is not a line of {TEXT_FILE}: {one_line(error)}") from None
        if found.encode(errors="replace") != str(text).encode(errors="replace"):
            raise UsageError(
                f"{file}:{number}: its ids are {found[:40]!r} with this model's tokenizer, and its text is"
                f" {str(text)[:40]!r}; it was written by another model"
            )
        if key is None:
            passages.append(ids)
        else:
            answers[str(key)] = ids
    return Written(answers, tuple(passages))
