"""PaddleOCR's label files, and what is wrong with them."""

import json

import cv2
import numpy as np
import pytest

from quant.base.errors import QuantError
from quant.onnx.labels import read_items

BOXES = [{"transcription": "ab", "points": [[0, 0], [9, 0], [9, 4], [0, 4]]}]
TABLE = {"structure": {"tokens": ["<tbody>", "<tr>", "<td>", "</td>", "</tr>", "</tbody>"]}, "cells": []}
GOOD = {
    "det": ("labels.txt", f"a.png\t{json.dumps(BOXES)}\n", BOXES),
    "rec": ("labels.txt", "a.png\t发票 12\n", "发票 12"),
    "cls": ("labels.txt", "a.png\t180\n", "180"),
    "formula": ("labels.txt", "a.png\t\\frac{1}{2}\n", "\\frac{1}{2}"),
    "table": ("labels.jsonl", json.dumps({"filename": "a.png", "html": TABLE}) + "\n", TABLE),
    "layout": (
        "labels.json",
        json.dumps(
            {
                "images": [{"id": 7, "file_name": "a.png"}],
                "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 5}],
                "categories": [{"id": 5}],
            }
        ),
        [{"bbox": [1.0, 2.0, 3.0, 4.0], "class": 5}],
    ),
}


@pytest.fixture
def folder(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("task", GOOD)
def test_labels(folder, task):
    name, text, label = GOOD[task]
    (folder / name).write_text(text, encoding="utf-8")
    for place in (folder, folder / name):
        (item,) = read_items(place, task)
        assert item.file == folder / "a.png" and item.label == label


@pytest.mark.parametrize(
    "task, text",
    [
        ("det", "a.png\t[{\n"),
        ("det", 'a.png\t[{"points": [[1, 2]], "transcription": ""}]'),
        ("det", 'a.png\t[{"points": [[0, 0], [1, 0], [1, 1]]}]'),
        ("rec", "a.png text without a tab"),
        ("rec", "a.png\t"),
        ("table", '{"filename": "a.png"}'),
        ("table", '{"filename": 3, "html": {"structure": {"tokens": ["<tr>"]}}}'),
        ("table", "[1, 2]"),
    ],
)
def test_lines_that_are_no_labels(folder, task, text):
    (folder / "labels.txt").write_text(text)
    with pytest.raises(QuantError, match=f"line 1: no label of {task}"):
        read_items(folder / "labels.txt", task)


def test_no_coco(folder):
    (folder / "labels.json").write_text('{"images": []}')
    with pytest.raises(QuantError, match="no COCO annotations"):
        read_items(folder, "layout")


def test_bytes_that_are_no_text(folder):
    (folder / "labels.txt").write_bytes(b"a.png\t\xff\xfe\n")
    with pytest.raises(QuantError, match="UTF-8"):
        read_items(folder, "rec")
