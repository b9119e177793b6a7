"""What counts of a row, whatever other keys it has, by the names that data sets use for it.

images   "image", "file_name" or "image_path": a path; "images": several, for one prompt
videos   "video" or "video_path": the path of a file or a folder of frames; "videos": several, shown behind the images
prompt   "prompt" or "question"
answer   "answer", or "answers", of which the first counts
both     "conversations", LLaVA's: the first question, without its image markers, and what is answered to it
text     "text": the answer beside an image (a caption), a passage without one
"""

import json
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import QuantError
from .rows import listed

PATHS, QUESTIONS, ANSWERS = ("image", "file_name", "image_path"), ("prompt", "question"), ("answer", "answers")
VIDEOS = ("video", "video_path")
KNOWN = {*PATHS, *VIDEOS, *QUESTIONS, *ANSWERS, "images", "videos", "text", "conversations"}
MARKERS = [marker for what in ("image", "video") for marker in (f"<{what}>\n", f"\n<{what}>", f"<{what}>")]


@dataclass(frozen=True)
class Fields:
    """images, videos: paths as they are written; prompt: None where there is none, as for a passage; answer: "" for
    none.
    """

    images: list[str]
    prompt: str | None
    answer: str
    videos: list[str] = field(default_factory=list)


def fields_of(row: dict, embedded: bool = False) -> Fields:
    """What counts of a row. embedded: it holds its image itself, and its answer as OCRBench's TSV has it. Raises
    QuantError for a row of no use.
    """
    images = [] if embedded else paths_of(row, "image", PATHS)
    videos = [] if embedded else paths_of(row, "video", VIDEOS)
    prompt, answer, text = _text(row, QUESTIONS), _answer(row, embedded), _text(row, ("text",))
    if row.get("conversations") is not None:
        prompt, answer = _first_turn(row["conversations"])
    if images or videos or embedded:
        return Fields(images, prompt, answer or text or "", videos)
    if text and prompt is None and not answer:
        return Fields([], None, text)
    if not prompt or not (answer or text):
        raise QuantError(
            'neither an image ("image", "images", "file_name") or a video ("video", "videos"), nor "prompt" and'
            ' "answer", nor "text"'
        )
    return Fields([], prompt, answer or text or "")


def paths_of(row: dict, what: str, keys: tuple[str, ...]) -> list[str]:
    """The paths in "images" or "videos", else the one under the first of `keys` that there is. what: "image" or
    "video". Raises QuantError for what is no path.
    """
    if (names := row.get(f"{what}s")) is not None:
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            raise QuantError(f'"{what}s" must be a list of paths, found {json.dumps(names)[:80]}')
        return names
    for key in keys:
        if row.get(key) is not None:
            if not isinstance(row[key], str) or not row[key]:
                article = "an" if what == "image" else "a"
                raise QuantError(f'"{key}" must be the path of {article} {what}, found {json.dumps(row[key])[:80]}')
            return [row[key]]
    return []


def _text(row: dict, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        if (value := row.get(key)) is not None:
            if not isinstance(value, str):
                raise QuantError(f'"{key}" must be text, found {type(value).__name__}')
            return value
    return None


def _answer(row: dict, embedded: bool) -> str:
    value: Any = next((row[key] for key in ANSWERS if row.get(key) is not None), "")
    if embedded:
        value = listed(value)
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if not isinstance(value, str):
        raise QuantError(f'"answer" must be a text or a list of texts, found {type(value).__name__}')
    return value


def _first_turn(turns: Any) -> tuple[str, str]:
    """LLaVA's conversations -> what the human asks first, without the image's marker, and what is answered to it."""
    try:
        asked, *rest = [turn["value"] for turn in turns if turn["from"] in ("human", "gpt")]
        texts = [asked, *rest[:1]]
        if turns[0]["from"] != "human" or not all(isinstance(text, str) for text in texts):
            raise ValueError
    except (TypeError, KeyError, ValueError, IndexError):
        raise QuantError(
            '"conversations" must be a list of {"from": "human" or "gpt", "value": text}, the human first'
        ) from None
    for marker in MARKERS:
        asked = asked.replace(marker, "")
    return asked, texts[1] if len(texts) > 1 else ""
