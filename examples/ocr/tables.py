"""Tables as papers and forms print them, with their structure in PubTabNet's tokens: a head, merged cells, full, open
or no rules.
"""

import json
from random import Random

import cv2
import numpy as np
import text as writing


def structure(random: Random) -> list[list[list[dict]]]:
    """[head rows, body rows] of cells {"column", "across", "down"}; merged ones stand where they begin."""
    columns, head, body = random.randint(2, 6), random.choice((1, 1, 1, 2)), random.randint(2, 8)
    parts = []
    for rows, may_merge in ((head, 0.25), (body, 0.04)):
        taken = np.zeros((rows, columns), bool)
        part = []
        for row in range(rows):
            cells = []
            for column in range(columns):
                if taken[row, column]:
                    continue
                across = down = 1
                if random.random() < may_merge and column + 1 < columns and not taken[row, column + 1]:
                    across = 2
                elif random.random() < may_merge and row + 1 < rows:
                    down = 2
                taken[row : row + down, column : column + across] = True
                cells.append({"row": row, "column": column, "across": across, "down": down})
            part.append(cells)
        parts.append(part)
    return parts


def tokens(parts: list[list[list[dict]]]) -> list[str]:
    """The structure as PubTabNet writes it."""
    result = []
    for tag, part in zip(("thead", "tbody"), parts):
        result.append(f"<{tag}>")
        for cells in part:
            result.append("<tr>")
            for cell in cells:
                spans = [f' colspan="{cell["across"]}"'] if cell["across"] > 1 else []
                spans += [f' rowspan="{cell["down"]}"'] if cell["down"] > 1 else []
                result += ["<td", *spans, ">", "</td>"] if spans else ["<td>", "</td>"]
            result.append("</tr>")
        result.append(f"</{tag}>")
    return result


def draw(random: Random, fonts, background, put, extent, spoil, name: str) -> tuple[np.ndarray, str]:
    """(image uint8 [H, W, 3], its line of labels.jsonl). The functions are draw.py's."""
    parts = structure(random)
    columns = max(cell["column"] + cell["across"] for part in parts for cells in part for cell in cells)
    rows = [len(part) for part in parts]
    file, size = random.choice(fonts.latin + fonts.chinese), random.randint(13, 18)
    row_height = round(size * random.uniform(1.7, 2.3))
    widths = [random.randint(4 * size, 8 * size) for _ in range(columns)]
    edges = np.cumsum([8, *widths])
    height = row_height * sum(rows) + 16
    image = np.full((height, int(edges[-1]) + 8, 3), 255, np.uint8)
    if random.random() < 0.3:
        image = background(random, *image.shape[:2], 0.0)
    boxes, top = [], 8
    rules = random.choice(("full", "open", "open", "none"))
    for number, (part, count) in enumerate(zip(parts, rows)):
        for cells in part:
            for cell in cells:
                left, right = int(edges[cell["column"]]), int(edges[cell["column"] + cell["across"]])
                upper = top + cell["row"] * row_height
                lower = upper + cell["down"] * row_height
                if rules == "full":
                    cv2.rectangle(image, (left, upper), (right, lower), (60, 60, 60), 1)
                words = _words(random, number == 0, right - left - 8, file, size, extent)
                wide, tall = extent(words, file, size)
                place = (left + (right - left - wide) // 2, upper + (lower - upper - tall) // 2)
                boxes.append({"tokens": list(words), "bbox": put(image, random, words, file, size, place)})
        if rules == "open":
            cv2.line(image, (8, top), (int(edges[-1]), top), (60, 60, 60), 1)
        top += count * row_height
    if rules == "open":
        cv2.line(image, (8, top), (int(edges[-1]), top), (60, 60, 60), 1)
    label = {"filename": name, "html": {"structure": {"tokens": tokens(parts)}, "cells": boxes}}
    return spoil(image, random, 0.4), json.dumps(label, ensure_ascii=False)


def _words(random: Random, head: bool, room: int, file: str, size: int, extent) -> str:
    """What stands in a cell, short enough for it."""
    for _ in range(8):
        words = writing.latin(random, 1) if head or random.random() < 0.3 else writing.figures(random)
        if extent(words, file, size)[0] <= room:
            return words
    return str(random.randint(1, 99))
