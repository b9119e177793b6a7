"""What a task is to the rest: how an image becomes the model's input, what the model's outputs mean, and how an answer
is scored. Scores are sums over items, so that a resample of the items costs one product of matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...base.errors import QuantError, UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet; PaddleOCR subtracts them in the order of the file's channels, blue first."""


@dataclass(frozen=True)
class Signature:
    """A model's inputs and outputs, name -> shape; 0 for a size that is not fixed. words: its own list of characters,
    tokens or classes, empty where it brings none.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    words: tuple[str, ...] = ()

    @property
    def image(self) -> str:
        """The input that takes the image: the one of four axes. Raises QuantError where there is no such input."""
        for name, shape in self.inputs.items():
            if len(shape) == 4:
                return name
        raise QuantError(f"the model has no input of four axes for an image, only {self.inputs}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image input; 0 for one that is not fixed."""
        return self.inputs[self.image][2:4]  # type: ignore[return-value]


@dataclass
class Prepared:
    """feeds: the model's inputs by name, float32, the image [1, 3, H, W]; height, width: of the image as it was;
    scale: what its sides were multiplied by, (y, x).
    """

    feeds: dict[str, np.ndarray]
    height: int
    width: int
    scale: tuple[float, float] = (1.0, 1.0)


class Task(Protocol):
    """det, rec, cls, table, layout or formula.

    metrics: the names of the scores in points of 100; the first one is what --max_drop bounds.
    """

    @property
    def name(self) -> str:
        """As --task has it."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores' names."""

    def fits(self, signature: Signature) -> str | None:
        """None, or what about the model's outputs does not fit this task."""

    def prepare(self, image: np.ndarray, signature: Signature) -> Prepared:
        """uint8 [H, W, 3], blue first -> the model's inputs."""

    def answer(self, outputs: list[np.ndarray], prepared: Prepared, signature: Signature) -> Any:
        """What the model says of one image, in the label's form."""

    def as_label(self, answer: Any) -> Any:
        """An answer in the place of a label, where nobody gave one."""

    def tally(self, answer: Any, label: Any) -> np.ndarray:
        """Of one item, float64 [K]: what `points` makes scores of, once the items' are added up."""

    def points(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """[..., K] -> metric -> [...] in points of 100."""


def chw(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8 [H, W, 3] -> (image / 255 - mean) / std, float32 [1, 3, H, W]."""
    scaled = (image.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def shares(sums: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The scores that are plain means: sums [..., 1 + len(names)], the last being the number of items."""
    return {name: 100 * sums[..., place] / sums[..., -1] for place, name in enumerate(names)}


def words_of(signature: Signature, what: str) -> tuple[str, ...]:
    """The model's own list, or what --characters gave. Raises UsageError where there is neither."""
    if not signature.words:
        raise UsageError(f"the model brings no list of {what} (metadata `character`); name a file with --characters")
    return signature.words
