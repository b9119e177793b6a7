"""Formulas as LaTeX, as PP-FormulaNet answers them: the image in grey, its margins cut off, scaled into the model's
input and padded; the output is a list of token numbers, and the tokens are the model's own words. Scored by exact
formulas and 1 - normalized edit distance, spaces not counted.

Left out: BLEU, which PaddleOCR gives beside these: with one reference it tells what the edit distance tells.
"""

from typing import Any

import cv2
import numpy as np
from rapidfuzz.distance import Levenshtein

from .task import Prepared, Signature, shares, words_of

SIZE = (384, 384)
MEAN, STD = 0.7931, 0.1738  # of PaddleOCR's UniMERNet preprocessing
INK = 200  # a margin is what is lighter, of 255
SPACE, SPECIAL = "\u0120", ("<s>", "</s>", "<pad>", "<unk>")


class Formula:
    """answer and label: LaTeX."""

    name = "formula"
    metrics = ("1 - edit distance", "exact formulas")

    def fits(self, signature: Signature) -> str | None:
        """None where the first output is a list of numbers [N, steps] or chances [N, steps, tokens]."""
        shapes = list(signature.outputs.values())
        if shapes and len(shapes[0]) in (2, 3):
            return None
        return f"tokens [N, steps] are expected, the outputs are {shapes}"

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 1 or 3, 384, 384]."""
        height, width = image.shape[:2]
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        rows, columns = np.nonzero(grey < INK)
        if len(rows):
            grey = grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        sides = [fixed or default for fixed, default in zip(signature.size, SIZE)]
        ratio = min(sides[0] / grey.shape[0], sides[1] / grey.shape[1])
        small = cv2.resize(grey, (max(1, int(grey.shape[1] * ratio)), max(1, int(grey.shape[0] * ratio))))
        padded = np.zeros(sides, np.uint8)
        top, left = (sides[0] - small.shape[0]) // 2, (sides[1] - small.shape[1]) // 2
        padded[top : top + small.shape[0], left : left + small.shape[1]] = small
        value = ((padded.astype(np.float32) / 255 - MEAN) / STD)[None, None]
        channels = signature.inputs[signature.image][1] or 1
        return Prepared({signature.image: np.repeat(value, channels, 1)}, height, width)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> str:
        """Token numbers [1, steps], or their chances -> LaTeX. Raises UsageError where the model brings no tokens."""
        words = words_of(signature, "tokens")
        numbers = outputs[0][0] if outputs[0].ndim == 2 else outputs[0][0].argmax(1)
        said = []
        for number in numbers.astype(int):
            word = words[number] if number < len(words) else ""
            if word == SPECIAL[1]:
                break
            if word not in SPECIAL:
                said.append(word.replace(SPACE, " "))
        return "".join(said).strip()

    def as_label(self, answer: str) -> str:
        """The answer in a label's form."""
        return answer

    def tally(self, answer: str, label: Any) -> np.ndarray:
        """[similarity, exact, 1]."""
        said, asked = "".join(answer.split()), "".join(label.split())
        return np.array([Levenshtein.normalized_similarity(said, asked), said == asked, 1], np.float64)

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 3] -> the scores."""
        return shares(sums, self.metrics)
