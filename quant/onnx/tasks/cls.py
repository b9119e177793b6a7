"""Classification: PP-OCR's line classifier (0 or 180 degrees), and PP-LCNet's of a page's orientation. A model with a
fixed square input is fed as PaddleClas does (shorter side 256, the middle 224, ImageNet's mean), any other as PaddleOCR
feeds its line classifier (height 48, padded to a width of 192). Scored by accuracy.
"""

import math
from typing import Any

import cv2
import numpy as np

from .task import MEAN, STD, Prepared, Signature, chw, shares

LINE = (48, 192)
HALF = (0.5, 0.5, 0.5)
SHORT = 256 / 224  # the shorter side, before the middle is cut out, as a multiple of the input's
DEGREES = {2: ("0", "180"), 4: ("0", "90", "180", "270")}
"""The classes of models that bring no list, by their number."""


class Cls:
    """answer and label: the class."""

    name = "cls"
    metrics = ("accuracy",)

    def fits(self, signature: Signature) -> str | None:
        """None where the only output is [N, classes]."""
        shapes = list(signature.outputs.values())
        if len(shapes) == 1 and len(shapes[0]) == 2:
            return None
        return f"one output [N, classes] is expected, the outputs are {shapes}"

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 3, 224, 224] or [1, 3, 48, 192]."""
        height, width = image.shape[:2]
        rows, columns = signature.size
        if rows and rows == columns:
            ratio = SHORT * rows / min(height, width)
            sides = max(rows, round(height * ratio)), max(columns, round(width * ratio))
            resized = cv2.resize(image, (sides[1], sides[0]), interpolation=cv2.INTER_LINEAR)
            top, left = (sides[0] - rows) // 2, (sides[1] - columns) // 2
            middle = resized[top : top + rows, left : left + columns]
            return Prepared({signature.image: chw(middle, MEAN, STD)}, height, width)
        rows, columns = rows or LINE[0], columns or LINE[1]
        wide = min(columns, max(1, math.ceil(rows * width / height)))
        padded = np.zeros((1, 3, rows, columns), np.float32)
        padded[..., :wide] = chw(cv2.resize(image, (wide, rows)), HALF, HALF)
        return Prepared({signature.image: padded}, height, width)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> str:
        """[1, classes] -> the most likely one's name."""
        names = signature.words or DEGREES.get(outputs[0].shape[1], ())
        best = int(outputs[0][0].argmax())
        return names[best] if best < len(names) else str(best)

    def as_label(self, answer: str) -> str:
        """The answer in a label's form."""
        return answer

    def tally(self, answer: str, label: Any) -> np.ndarray:
        """[right, 1]."""
        return np.array([answer == label, 1], np.float64)

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 2] -> accuracy."""
        return shares(sums, self.metrics)
