"""Text recognition with CTC (Graves et al. 2006), as PaddleOCR runs it: a line scaled to the model's height, padded on
the right to at least WIDTH; of the output the most likely character per column, repeats and blanks taken out. Scored
as PaddleOCR does, spaces not counted: exact lines, and 1 - normalized edit distance.
"""

import math
from typing import Any

import cv2
import numpy as np
from rapidfuzz.distance import Levenshtein

from .task import Prepared, Signature, chw, shares, words_of

HEIGHT, WIDTH = 48, 320
HALF = (0.5, 0.5, 0.5)


class Rec:
    """answer and label: the text."""

    name = "rec"
    metrics = ("exact lines", "1 - edit distance")

    def fits(self, signature: Signature) -> str | None:
        """None where the only output is [N, columns, characters], and the list of characters is as long."""
        shapes = list(signature.outputs.values())
        if len(shapes) != 1 or len(shapes[0]) != 3:
            return f"one output [N, columns, characters] is expected, the outputs are {shapes}"
        if signature.words and shapes[0][2] and shapes[0][2] != len(signature.words) + 2:
            return (
                f"the output has {shapes[0][2]} classes, the list of {len(signature.words)} characters makes"
                f" {len(signature.words) + 2} with blank and space"
            )
        return None

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 3, 48, W'] in [-1, 1], 0 where it is padded."""
        height, width = image.shape[:2]
        rows = signature.size[0] or HEIGHT
        wide = max(1, math.ceil(rows * width / height))
        columns = signature.size[1] or max(WIDTH, wide)
        resized = chw(cv2.resize(image, (min(wide, columns), rows)), HALF, HALF)
        padded = np.zeros((1, 3, rows, columns), np.float32)
        padded[..., : resized.shape[-1]] = resized
        return Prepared({signature.image: padded}, height, width)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> str:
        """[1, columns, classes] -> text. Raises UsageError where the model brings no characters."""
        words = words_of(signature, "characters")
        best = outputs[0][0].argmax(1)
        kept = best[np.insert(best[1:] != best[:-1], 0, True) & (best > 0)]
        return "".join(words[place - 1] if place <= len(words) else " " for place in kept)

    def as_label(self, answer: str) -> str:
        """The answer in a label's form."""
        return answer

    def tally(self, answer: str, label: Any) -> np.ndarray:
        """[right, similarity, 1]."""
        said, asked = answer.replace(" ", ""), label.replace(" ", "")
        return np.array([said == asked, Levenshtein.normalized_similarity(said, asked), 1], np.float64)

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., 3] -> the scores."""
        return shares(sums, self.metrics)
