"""Text detection by differentiable binarization (Liao et al., arXiv 1911.08947), as PaddleOCR runs it: the longer side
at most LIMIT, sides in multiples of 32; a map of probabilities is cut at THRESHOLD, every contour's smallest rectangle
grows by UNCLIP times its area over its circumference. Scored by ICDAR 2015's rule: an answer counts where its overlap
with a label of its own is above IOU; hmean = 2 P R / (P + R). Labels "###" are neither asked for nor held against.

Left out: polygons of more than four corners, and dilation; PP-OCRv4's own configuration uses neither.
"""

from typing import Any

import cv2
import numpy as np
import pyclipper
from shapely.geometry import Polygon

from .task import MEAN, STD, Prepared, Signature, chw

LIMIT, MULTIPLE = 960, 32
THRESHOLD, BOX_THRESHOLD, UNCLIP, MIN_SIDE, CANDIDATES = 0.3, 0.6, 1.5, 3, 1000
IOU = 0.5
IGNORED = "###"


class Det:
    """answer: list of corners int [4, 2]; label: list of {"transcription", "points"}."""

    name = "det"
    metrics = ("hmean", "precision", "recall")

    def fits(self, signature: Signature) -> str | None:
        """None where the only output is a map [N, 1, H, W]."""
        shapes = list(signature.outputs.values())
        if len(shapes) == 1 and len(shapes[0]) == 4 and shapes[0][1] in (0, 1):
            return None
        return f"a map of probabilities [N, 1, H, W] is expected, the outputs are {shapes}"

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 3, H', W'], the sides in multiples of 32, or as the model fixes them."""
        height, width = image.shape[:2]
        ratio = min(1.0, LIMIT / max(height, width))
        sides = [
            fixed or max(MULTIPLE, round(int(side * ratio) / MULTIPLE) * MULTIPLE)
            for side, fixed in zip((height, width), signature.size)
        ]
        resized = cv2.resize(image, (sides[1], sides[0]))
        return Prepared({signature.image: chw(resized, MEAN, STD)}, height, width)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> list[np.ndarray]:
        """[1, 1, H', W'] -> corners int [4, 2] in the image as it was."""
        chances = outputs[0][0, 0]
        mask = (chances > THRESHOLD).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        scale = np.array([prepared.width / mask.shape[1], prepared.height / mask.shape[0]])
        found = []
        for contour in contours[:CANDIDATES]:
            corners, side = _rectangle(contour)
            if side < MIN_SIDE or _chance(chances, corners) < BOX_THRESHOLD:
                continue
            corners, side = _rectangle(_grown(corners))
            if side >= MIN_SIDE + 2:
                found.append((corners * scale).round().clip(0, [prepared.width, prepared.height]).astype(int))
        return found

    def as_label(self, answer: list[np.ndarray]) -> list[dict]:
        """The answer in a label's form."""
        return [{"transcription": "", "points": corners.tolist()} for corners in answer]

    def tally(self, answer: list[np.ndarray], label: Any) -> np.ndarray:
        """[matched, found, to be found]."""
        asked = [Polygon(entry["points"]).buffer(0) for entry in label if entry["transcription"] != IGNORED]
        ignored = [Polygon(entry["points"]).buffer(0) for entry in label if entry["transcription"] == IGNORED]
        given = [Polygon(corners).buffer(0) for corners in answer]
        given = [one for one in given if not any(_inside(one, other) > IOU for other in ignored)]
        taken: set[int] = set()
        matched = 0
        for there in asked:
            for place, one in enumerate(given):
                if place not in taken and there.intersects(one) and _overlap(there, one) > IOU:
                    taken.add(place)
                    matched += 1
                    break
        return np.array([matched, len(given), len(asked)], np.float64)

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 3] -> hmean, precision, recall."""
        matched, found, asked = np.moveaxis(sums, -1, 0)
        return {
            "hmean": 200 * matched / np.maximum(found + asked, 1),
            "precision": 100 * matched / np.maximum(found, 1),
            "recall": 100 * matched / np.maximum(asked, 1),
        }


def _rectangle(contour: np.ndarray) -> tuple[np.ndarray, float]:
    """The smallest rectangle: corners [4, 2] from the upper left on, clockwise, and its shorter side."""
    box = cv2.minAreaRect(contour)
    corners = cv2.boxPoints(box)
    left, right = np.split(corners[np.argsort(corners[:, 0], kind="stable")], 2)
    left, right = left[np.argsort(left[:, 1], kind="stable")], right[np.argsort(right[:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]]), min(box[1])


def _chance(chances: np.ndarray, corners: np.ndarray) -> float:
    """The mean probability inside the corners."""
    height, width = chances.shape
    low = np.floor(corners.min(0)).clip(0, [width - 1, height - 1]).astype(int)
    high = np.ceil(corners.max(0)).clip(0, [width - 1, height - 1]).astype(int)
    mask = np.zeros((high[1] - low[1] + 1, high[0] - low[0] + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - low).astype(np.int32)], 1)
    return cv2.mean(chances[low[1] : high[1] + 1, low[0] : high[0] + 1], mask)[0]


def _grown(corners: np.ndarray) -> np.ndarray:
    shape = Polygon(corners)
    offset = pyclipper.PyclipperOffset()
    offset.AddPath(corners, pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    return np.array(offset.Execute(shape.area * UNCLIP / shape.length)[0], np.float32)


def _overlap(one: Polygon, other: Polygon) -> float:
    return one.intersection(other).area / max(one.union(other).area, 1e-9)


def _inside(one: Polygon, other: Polygon) -> float:
    return one.intersection(other).area / max(one.area, 1e-9)
