"""Images with labels as PaddleOCR's training takes them, in a folder or named by a file.

    det       labels.txt      file <tab> [{"transcription": "...", "points": [[x, y], ...]}, ...]
    rec, cls  labels.txt      file <tab> text, or class
    formula   labels.txt      file <tab> LaTeX
    table     labels.jsonl    {"filename": "...", "html": {"structure": {"tokens": [...]}, "cells": [...]}}
    layout    labels.json     COCO: {"images", "annotations", "categories"}

Files are named from the label file's folder on. A folder without a label file is images alone, in the order of their
names: the float model's answers then stand in for labels.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..base.errors import QuantError, UsageError

KINDS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
NAMES = ("labels.txt", "labels.jsonl", "labels.json")


@dataclass(frozen=True)
class Item:
    """An image and what it should be answered, None where nobody said."""

    file: Path
    label: Any = None


def read_items(place: str | Path, task: str) -> list[Item]:
    """The images of a folder or of a label file. Raises UsageError where there are none, QuantError for a line that is
    no label of this task, with its number.
    """
    place = Path(place)
    if place.is_dir():
        file = next((place / name for name in NAMES if (place / name).is_file()), None)
        if file is None:
            files = sorted(path for path in place.iterdir() if path.suffix.lower() in KINDS)
            if not files:
                raise UsageError(f"{place}: holds neither images nor a label file ({', '.join(NAMES)})")
            return [Item(path) for path in files]
        place = file
    elif not place.is_file():
        raise UsageError(f"{place}: no such folder or label file")
    try:
        text = place.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise QuantError(f"{place}: cannot be read as UTF-8 text: {err}") from None
    items = _coco(place, text) if task == "layout" else _lines(place, text, task)
    if not items:
        raise UsageError(f"{place}: holds no labels; a line for each image is expected")
    for item in items:
        if place.parent.resolve() not in item.file.resolve().parents:
            raise QuantError(f"{place}: {item.file} is outside the label file's folder")
        if not item.file.is_file():
            raise QuantError(f"{place}: names {item.file.name}, which is not there")
    return items


def _lines(place: Path, text: str, task: str) -> list[Item]:
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            name, label = READERS[task](line)
            if not isinstance(name, str) or not name:
                raise ValueError("no file is named")
        except (ValueError, KeyError, TypeError, IndexError) as err:
            raise QuantError(f"{place}, line {number}: no label of {task}: {err or type(err).__name__}") from None
        items.append(Item(place.parent / name, label))
    return items


def _text(line: str) -> tuple[str, str]:
    name, tab, label = line.partition("\t")
    if not tab or not label:
        raise ValueError("a file, a tab and a label are expected")
    return name, label


def _boxes(line: str) -> tuple[str, list[dict]]:
    name, label = _text(line)
    boxes = json.loads(label)
    for box in boxes:
        corners = np.array(box["points"], float)
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
            raise ValueError(f"points {box['points']} are no polygon")
        str(box["transcription"])
    return name, boxes


def _table(line: str) -> tuple[str, dict]:
    entry = json.loads(line)
    tokens = entry["html"]["structure"]["tokens"]
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError("html.structure.tokens is no list of tokens")
    return entry["filename"], entry["html"]


READERS: dict[str, Callable[[str], tuple[str, Any]]] = {
    "det": _boxes,
    "rec": _text,
    "cls": _text,
    "formula": _text,
    "table": _table,
}


def _coco(place: Path, text: str) -> list[Item]:
    """Each image with its boxes: {"size": [H, W], "boxes": [[x, y, w, h]], "classes": [id]}."""
    try:
        data = json.loads(text)
        boxes: dict[int, list[dict]] = {entry["id"]: [] for entry in data["images"]}
        for entry in data["annotations"]:
            boxes[entry["image_id"]].append({"bbox": list(map(float, entry["bbox"])), "class": entry["category_id"]})
        return [Item(place.parent / entry["file_name"], boxes[entry["id"]]) for entry in data["images"]]
    except (ValueError, KeyError, TypeError) as err:
        raise QuantError(f"{place}: no COCO annotations: {type(err).__name__}: {err}") from None


def decode(file: Path) -> np.ndarray:
    """uint8 [H, W, 3], blue first. Raises QuantError where it is no image."""
    try:
        image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        image = None
    if image is None:
        raise QuantError(f"{file}: is no image that OpenCV reads")
    return image
