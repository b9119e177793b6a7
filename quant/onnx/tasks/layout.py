"""Layout of a page, as PP-DocLayout's exports answer it: the image stretched to SIDE x SIDE, no mean taken off; rows of
class, score and corners come out. Scored by COCO's mean average precision over IoU 0.5 to 0.95 (pycocotools).

mAP is no sum over images, as the other tasks' scores are: a tally holds the boxes themselves, and `score` makes one
number of all.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .task import Prepared, Signature

SIDE = 800
LEAST, SURE = 0.05, 0.5  # scores below are no answers; above, they are taken as labels where there are none


class Layout:
    """answer and label: list of {"bbox": [x, y, width, height], "class", "score"}."""

    name = "layout"
    metrics = ("mAP",)

    def fits(self, signature: Signature) -> str | None:
        """None where an output has rows of six or more, or boxes [N, queries, 4] come with classes."""
        shapes = list(signature.outputs.values())
        rows = any(len(shape) == 2 and (shape[1] == 0 or shape[1] >= 6) for shape in shapes)
        pairs = any(len(shape) == 3 and shape[2] == 4 for shape in shapes) and len(shapes) > 1
        return None if rows or pairs else f"rows of boxes are expected, the outputs are {shapes}"

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3] -> [1, 3, 800, 800] in [0, 1]; and im_shape and scale_factor, where the model has them."""
        height, width = image.shape[:2]
        sides = [fixed or SIDE for fixed in signature.size]
        resized = cv2.resize(image, (sides[1], sides[0]), interpolation=cv2.INTER_CUBIC)
        feeds = {signature.image: np.ascontiguousarray(resized.astype(np.float32).transpose(2, 0, 1)[None] / 255)}
        scale = (sides[0] / height, sides[1] / width)
        for name in signature.inputs:
            if "im_shape" in name:
                feeds[name] = np.array([sides], np.float32)
            elif "scale_factor" in name:
                feeds[name] = np.array([scale], np.float32)
        return Prepared(feeds, height, width, scale)

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> list[dict]:
        """Rows [boxes, 6: class, score, corners], or chances [1, Q, classes] and centres with sizes [1, Q, 4]."""
        rows = next((value for value in outputs if value.ndim == 2 and value.shape[1] >= 6), None)
        if rows is not None:
            return [
                {"bbox": [row[2], row[3], row[4] - row[2], row[5] - row[3]], "class": int(row[0]), "score": row[1]}
                for row in rows.astype(float)
                if row[1] >= LEAST
            ]
        boxes = next(value for value in outputs if value.ndim == 3 and value.shape[2] == 4)[0].astype(float)
        logits = next(value for value in outputs if value.ndim == 3 and value.shape[2] != 4)[0].astype(float)
        chances = 1 / (1 + np.exp(-logits))
        size = np.array([prepared.width, prepared.height] * 2)
        found = []
        for (x, y, wide, high), row in zip(boxes * size, chances):
            best = int(row.argmax())
            if row[best] >= LEAST:
                found.append({"bbox": [x - wide / 2, y - high / 2, wide, high], "class": best, "score": row[best]})
        return found

    def as_label(self, answer: list[dict]) -> list[dict]:
        """The boxes that the model is sure of."""
        return [box for box in answer if box["score"] >= SURE]

    def tally(self, answer: list[dict], label: Any) -> np.ndarray:
        """Both lists, object [1]."""
        held = np.empty(1, object)
        held[0] = (answer, label)
        return held

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Not of sums: see score."""
        raise NotImplementedError

    def score(self, tallies: Sequence[np.ndarray]) -> dict[str, float]:
        """mAP of all items, 0 where no label is there."""
        images: list[dict] = []
        truth: list[dict] = []
        said: list[dict] = []
        for number, held in enumerate(tallies, 1):
            answer, label = held[0]
            images.append({"id": number})
            for box in label:
                truth.append(_annotation(box, number) | {"id": len(truth) + 1, "iscrowd": 0})
            said += [_annotation(box, number) | {"score": float(box["score"])} for box in answer]
        if not truth or not said:
            return {"mAP": 0.0}
        classes = sorted({entry["category_id"] for entry in truth})
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            coco = COCO()
            coco.dataset = {
                "info": {},
                "images": images,
                "annotations": truth,
                "categories": [{"id": each} for each in classes],
            }
            coco.createIndex()
            judge = COCOeval(coco, coco.loadRes(said), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        return {"mAP": 100 * max(0.0, float(judge.stats[0]))}


def _annotation(box: dict, image: int) -> dict:
    """As COCO has it."""
    sides = [float(value) for value in box["bbox"]]
    return {"image_id": image, "category_id": int(box["class"]), "bbox": sides, "area": sides[2] * sides[3]}
